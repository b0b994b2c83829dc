//! What the leader sees and the event log shall hold: gathered here, and proposed at most once a second.
//!
//! A storm (a disk whose every chunk is bad, a repair of a million chunks) must not flood the Raft log: facts of one kind about
//! the same thing add up, progress is reported in spans of seconds, and what does not fit is counted instead of kept. Facts are
//! lost with the leadership that saw them; they are for people, nothing is decided by them.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Handle;
use crate::fsm::{Command, Fact};

/// Least time between two entries of events.
const ENTRY_GAP: Duration = Duration::from_secs(1);
/// Different facts that wait for the next entry; more are counted only.
const WAITING_MAX: usize = 256;
/// Progress is reported when nothing was added for so long,
const PROGRESS_IDLE: Duration = Duration::from_secs(1);
/// or when it began so long ago.
const PROGRESS_SPAN: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Waiting {
    fact: Fact,
    first: Instant,
    last: Instant,
}

impl Waiting {
    fn due(&self) -> Instant {
        match self.fact {
            Fact::RepairProgress { .. } | Fact::RebalanceProgress { .. } => {
                (self.last + PROGRESS_IDLE).min(self.first + PROGRESS_SPAN)
            }
            _ => self.first,
        }
    }
}

/// Facts until they are proposed. Pure: the clock comes in.
#[derive(Debug, Default)]
struct Gatherer {
    waiting: Vec<Waiting>,
    dropped: u64,
    last_entry: Option<Instant>,
}

impl Gatherer {
    fn push(&mut self, fact: Fact, now: Instant) {
        let mut fact = fact;
        for earlier in self.waiting.iter_mut().rev() {
            match earlier.fact.absorb(fact) {
                Ok(()) => {
                    earlier.last = now;
                    return;
                }
                Err(itself) => fact = itself,
            }
        }
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push(Waiting { fact, first: now, last: now });
        } else {
            self.dropped += 1;
        }
    }

    /// When the next entry is to be proposed.
    fn due(&self) -> Option<Instant> {
        let first = self.waiting.iter().map(Waiting::due).min()?;
        Some(self.last_entry.map_or(first, |last| first.max(last + ENTRY_GAP)))
    }

    /// What the next entry holds: everything that waits, so that the order of the facts is kept.
    fn take(&mut self, now: Instant) -> Vec<Fact> {
        self.last_entry = Some(now);
        let mut facts: Vec<Fact> = self.waiting.drain(..).map(|waiting| waiting.fact).collect();
        let dropped = std::mem::take(&mut self.dropped);
        facts.extend((dropped > 0).then_some(Fact::EventsDropped { events: dropped }));
        facts
    }
}

/// The gatherer with its alarm.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    gatherer: Mutex<Gatherer>,
    pushed: Notify,
}

impl Recorder {
    fn with<R>(&self, f: impl FnOnce(&mut Gatherer) -> R) -> R {
        f(&mut self.gatherer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets what waits: this node does not lead any more.
    pub(super) fn forget(&self) {
        self.with(|gatherer| *gatherer = Gatherer::default());
    }
}

impl Handle {
    /// Enters what this leader saw into the event log, within about a second. Never fails and never waits; on a node that does
    /// not lead it does nothing. What a command does when it is applied is recorded by the state machine itself, not here.
    pub fn record_event(&self, fact: Fact) {
        if self.inner.leadership.borrow().is_leader {
            self.inner.recorder.with(|gatherer| gatherer.push(fact, Instant::now()));
            self.inner.recorder.pushed.notify_one();
        }
    }

    /// Enters a changed setting into the event log; nothing if it is as it was.
    pub fn setting_changed(&self, name: &str, from: u64, to: u64) {
        if from != to {
            self.record_event(Fact::SettingChanged {
                name: name.to_owned(),
                from: from.to_string(),
                to: to.to_string(),
            });
        }
    }

    /// Proposes what was recorded, until `cancel`.
    pub(super) async fn propose_events(&self, cancel: &CancellationToken) {
        loop {
            let due = self.inner.recorder.with(|gatherer| gatherer.due());
            let alarm = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.inner.recorder.pushed.notified() => continue,
                () = alarm => {}
            }
            let facts = self.inner.recorder.with(|gatherer| gatherer.take(Instant::now()));
            if let Err(error) = self.apply(Command::RecordEvents { facts }).await {
                tracing::info!(%error, "events were not recorded");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::{ChunkId, NodeId};

    use super::*;

    fn bad(n: u16) -> Fact {
        let chunk = ChunkId(std::array::from_fn(|at| n.to_be_bytes()[at % 2]));
        Fact::CopyCorrupt { chunk, node: NodeId(1), reason: "test".into(), last: false }
    }

    fn progress(live: u32, at_ns: i64) -> Fact {
        Fact::RepairProgress { live, chunks: 1, bytes: 4, from_ns: at_ns, to_ns: at_ns }
    }

    #[test]
    fn the_first_goes_at_once_and_a_storm_once_a_second() {
        let t0 = Instant::now();
        let mut gatherer = Gatherer::default();
        assert_eq!(gatherer.due(), None);
        gatherer.push(bad(1), t0);
        assert_eq!(gatherer.due(), Some(t0));
        assert_eq!(gatherer.take(t0), [bad(1)]);
        for n in 0..600_u16 {
            gatherer.push(bad(n), t0 + Duration::from_millis(5));
        }
        assert_eq!(gatherer.due(), Some(t0 + ENTRY_GAP));
        let facts = gatherer.take(t0 + ENTRY_GAP);
        assert_eq!(facts.len(), WAITING_MAX + 1);
        assert_eq!(facts.last(), Some(&Fact::EventsDropped { events: 600 - WAITING_MAX as u64 }));
        assert_eq!(gatherer.due(), None);
    }

    #[test]
    fn progress_is_gathered_until_it_pauses_or_for_ten_seconds() {
        let t0 = Instant::now();
        let mut gatherer = Gatherer::default();
        gatherer.push(progress(1, 0), t0);
        assert_eq!(gatherer.due(), Some(t0 + PROGRESS_IDLE));
        for second in 1..100 {
            gatherer.push(progress(1, second), t0 + Duration::from_millis(500) * u32::try_from(second).expect("small"));
            gatherer.push(progress(2, second), t0 + Duration::from_millis(500) * u32::try_from(second).expect("small"));
        }
        assert_eq!(gatherer.due(), Some(t0 + PROGRESS_SPAN));
        let facts = gatherer.take(t0 + PROGRESS_SPAN);
        assert_eq!(
            facts,
            [
                Fact::RepairProgress { live: 1, chunks: 100, bytes: 400, from_ns: 0, to_ns: 99 },
                Fact::RepairProgress { live: 2, chunks: 99, bytes: 396, from_ns: 1, to_ns: 99 },
            ]
        );
    }
}
