//! Disks and scrubs. Texts of a node are cut and cleaned here: they end in terminals.

use dfs_common::{
    Uuid,
    disk::{DiskEvent, DiskNotice, DiskReport, ScrubOrder, ScrubPass, ScrubReport, ScrubState, ScrubVerb},
};

use super::{id_bytes, malformed};
use crate::{status::RpcError, v1};

/// Longest path or reason that is taken over, characters.
const TEXT_MAX: usize = 300;

/// A text from a node without control characters and not too long.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect()
}

/// # Errors
/// Not 16 bytes, or zero.
pub fn disk_id(bytes: &[u8]) -> Result<Uuid, RpcError> {
    Uuid::from_slice(bytes).filter(|id| !id.is_zero()).ok_or_else(|| malformed("disk id"))
}

impl From<&DiskReport> for v1::DiskReport {
    fn from(report: &DiskReport) -> Self {
        Self {
            disk_id: id_bytes(report.id.as_bytes()),
            path: report.path.clone(),
            failed: report.failure.is_some(),
            reason: report.failure.clone().unwrap_or_default(),
            capacity_bytes: report.capacity_bytes,
            used_bytes: report.used_bytes,
            chunk_count: report.chunk_count,
            quarantined_copies: report.quarantined.0,
            quarantined_bytes: report.quarantined.1,
            scrub: Some(report.scrub.into()),
        }
    }
}

impl TryFrom<v1::DiskReport> for DiskReport {
    type Error = RpcError;

    fn try_from(wire: v1::DiskReport) -> Result<Self, RpcError> {
        Ok(Self {
            id: disk_id(&wire.disk_id)?,
            path: clean(&wire.path),
            failure: wire.failed.then(|| clean(&wire.reason)),
            capacity_bytes: wire.capacity_bytes,
            used_bytes: wire.used_bytes,
            chunk_count: wire.chunk_count,
            quarantined: (wire.quarantined_copies, wire.quarantined_bytes),
            scrub: wire.scrub.map(ScrubReport::try_from).transpose()?.unwrap_or_default(),
        })
    }
}

impl From<ScrubReport> for v1::ScrubReport {
    fn from(report: ScrubReport) -> Self {
        Self {
            state: scrub_state_to_wire(report.state).into(),
            started_ns: report.started_ns,
            chunks: report.chunks,
            bytes: report.bytes,
            bad: report.bad,
            done: report.done,
            bytes_per_s: report.bytes_per_s,
            eta_ms: report.eta_ms,
            next_ns: report.next_ns,
            last: report.last.map(Into::into),
        }
    }
}

impl TryFrom<v1::ScrubReport> for ScrubReport {
    type Error = RpcError;

    fn try_from(wire: v1::ScrubReport) -> Result<Self, RpcError> {
        Ok(Self {
            state: scrub_state(wire.state)?,
            started_ns: wire.started_ns,
            chunks: wire.chunks,
            bytes: wire.bytes,
            bad: wire.bad,
            done: if wire.done.is_finite() { wire.done.clamp(0.0, 1.0) } else { 0.0 },
            bytes_per_s: if wire.bytes_per_s.is_finite() { wire.bytes_per_s.max(0.0) } else { 0.0 },
            eta_ms: wire.eta_ms,
            next_ns: wire.next_ns,
            last: wire.last.map(Into::into),
        })
    }
}

impl From<ScrubPass> for v1::ScrubPass {
    fn from(ScrubPass { started_ns, ended_ns, chunks, bytes, bad }: ScrubPass) -> Self {
        Self { started_ns, ended_ns, chunks, bytes, bad }
    }
}

impl From<v1::ScrubPass> for ScrubPass {
    fn from(v1::ScrubPass { started_ns, ended_ns, chunks, bytes, bad }: v1::ScrubPass) -> Self {
        Self { started_ns, ended_ns, chunks, bytes, bad }
    }
}

/// State to the wire.
#[must_use]
pub fn scrub_state_to_wire(state: ScrubState) -> v1::ScrubState {
    match state {
        ScrubState::Off => v1::ScrubState::Off,
        ScrubState::Waiting => v1::ScrubState::Waiting,
        ScrubState::Running => v1::ScrubState::Running,
        ScrubState::Paused => v1::ScrubState::Paused,
    }
}

/// # Errors
/// A number without a meaning.
pub fn scrub_state(wire: i32) -> Result<ScrubState, RpcError> {
    match v1::ScrubState::try_from(wire) {
        Ok(v1::ScrubState::Off) => Ok(ScrubState::Off),
        Ok(v1::ScrubState::Waiting) => Ok(ScrubState::Waiting),
        Ok(v1::ScrubState::Running) => Ok(ScrubState::Running),
        Ok(v1::ScrubState::Paused) => Ok(ScrubState::Paused),
        Ok(v1::ScrubState::Unspecified) | Err(_) => Err(malformed("scrub state")),
    }
}

/// Verb to the wire.
#[must_use]
pub fn scrub_verb_to_wire(verb: ScrubVerb) -> v1::ScrubVerb {
    match verb {
        ScrubVerb::Start => v1::ScrubVerb::Start,
        ScrubVerb::Pause => v1::ScrubVerb::Pause,
        ScrubVerb::Resume => v1::ScrubVerb::Resume,
    }
}

/// # Errors
/// A number without a meaning.
pub fn scrub_verb(wire: i32) -> Result<ScrubVerb, RpcError> {
    match v1::ScrubVerb::try_from(wire) {
        Ok(v1::ScrubVerb::Start) => Ok(ScrubVerb::Start),
        Ok(v1::ScrubVerb::Pause) => Ok(ScrubVerb::Pause),
        Ok(v1::ScrubVerb::Resume) => Ok(ScrubVerb::Resume),
        Ok(v1::ScrubVerb::Unspecified) | Err(_) => Err(malformed("order about scrubs")),
    }
}

impl From<ScrubOrder> for v1::ScrubOrder {
    fn from(ScrubOrder { number, verb }: ScrubOrder) -> Self {
        Self { number, verb: scrub_verb_to_wire(verb).into() }
    }
}

impl TryFrom<v1::ScrubOrder> for ScrubOrder {
    type Error = RpcError;

    fn try_from(wire: v1::ScrubOrder) -> Result<Self, RpcError> {
        Ok(Self { number: wire.number, verb: scrub_verb(wire.verb)? })
    }
}

impl From<&DiskNotice> for v1::DiskNotice {
    fn from(notice: &DiskNotice) -> Self {
        use v1::disk_notice::What;
        let what = match &notice.what {
            DiskEvent::Failed { reason, copies } => {
                What::Failed(v1::DiskFailure { reason: reason.clone(), copies: *copies })
            }
            DiskEvent::Returned => What::Returned(v1::DiskReturn {}),
            DiskEvent::Pass(pass) => What::Pass((*pass).into()),
        };
        Self { disk_id: id_bytes(notice.id.as_bytes()), disk: notice.path.clone(), what: Some(what) }
    }
}

impl TryFrom<v1::DiskNotice> for DiskNotice {
    type Error = RpcError;

    fn try_from(wire: v1::DiskNotice) -> Result<Self, RpcError> {
        use v1::disk_notice::What;
        let what = match wire.what.ok_or_else(|| malformed("notice of a disk"))? {
            What::Failed(v1::DiskFailure { reason, copies }) => DiskEvent::Failed { reason: clean(&reason), copies },
            What::Returned(v1::DiskReturn {}) => DiskEvent::Returned,
            What::Pass(pass) => DiskEvent::Pass(pass.into()),
        };
        Ok(Self { id: disk_id(&wire.disk_id)?, path: clean(&wire.disk), what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_and_notices_survive_the_wire() {
        let pass = ScrubPass { started_ns: -1, ended_ns: 5, chunks: 6, bytes: 7, bad: 1 };
        for state in [ScrubState::Off, ScrubState::Waiting, ScrubState::Running, ScrubState::Paused] {
            let scrub = ScrubReport {
                state,
                started_ns: 3,
                chunks: 4,
                bytes: 5,
                bad: 1,
                done: 0.5,
                bytes_per_s: 2.0,
                eta_ms: Some(9),
                next_ns: 8,
                last: Some(pass),
            };
            let report = DiskReport {
                id: Uuid([1; 16]),
                path: "/d".into(),
                failure: (state == ScrubState::Off).then(|| "gone".into()),
                capacity_bytes: 10,
                used_bytes: 9,
                chunk_count: 8,
                quarantined: (1, 2),
                scrub,
            };
            assert_eq!(DiskReport::try_from(v1::DiskReport::from(&report)), Ok(report));
        }
        let failed = DiskEvent::Failed { reason: "EIO".into(), copies: 3 };
        for what in [failed, DiskEvent::Returned, DiskEvent::Pass(pass)] {
            let notice = DiskNotice { id: Uuid([2; 16]), path: "/e".into(), what };
            assert_eq!(DiskNotice::try_from(v1::DiskNotice::from(&notice)), Ok(notice));
        }
        for verb in [ScrubVerb::Start, ScrubVerb::Pause, ScrubVerb::Resume] {
            let order = ScrubOrder { number: 7, verb };
            assert_eq!(ScrubOrder::try_from(v1::ScrubOrder::from(order)), Ok(order));
        }
    }

    #[test]
    fn nonsense_is_refused_and_texts_are_cleaned() {
        let wire = v1::DiskReport { disk_id: vec![1; 16].into(), path: "a\nb\u{1b}[0m".into(), ..Default::default() };
        assert_eq!(DiskReport::try_from(wire.clone()).map(|report| report.path), Ok("ab[0m".into()));
        assert!(DiskReport::try_from(v1::DiskReport { disk_id: vec![0; 16].into(), ..wire }).is_err());
        assert!(ScrubReport::try_from(v1::ScrubReport::default()).is_err());
        assert!(ScrubOrder::try_from(v1::ScrubOrder { number: 1, verb: 77 }).is_err());
        assert!(DiskNotice::try_from(v1::DiskNotice { disk_id: vec![1; 16].into(), ..Default::default() }).is_err());
    }
}
