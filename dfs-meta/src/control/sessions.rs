//! Sessions as the leader knows them beyond the replicated state: when each renewed last, and which versions it has open.
//!
//! Pins are soft: after a change of leader each client sends its full set with its next renewal (`need_full`). Until every
//! live session has done so the leader does not know what is open and releases nothing, see [`Sessions::all_heard`].

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use dfs_common::{ErrorCode, FileId, SessionId};
use dfs_proto::status::RpcError;

/// Open versions that one session may have. A mount has about as many as it has open files, which the kernel limits too.
const PINS_MAX: usize = 1 << 20;

#[derive(Debug)]
struct Soft {
    renewed: Instant,
    /// Whether the full set of pins was heard by this leader.
    heard: bool,
    pins: HashSet<FileId>,
}

/// What a client sends with a renewal.
#[derive(Debug, Default, Clone)]
pub struct Renewal {
    /// `pins` replaces everything known.
    pub full: bool,
    /// Versions opened, or all open versions.
    pub pins: Vec<FileId>,
    /// Versions closed.
    pub unpins: Vec<FileId>,
}

/// Renewals and pins under this leader.
#[derive(Debug)]
pub struct Sessions {
    leader_since: Instant,
    lease: Duration,
    sessions: HashMap<SessionId, Soft>,
    pinned: HashMap<FileId, u32>,
}

impl Sessions {
    /// Nothing heard yet, leading since `leader_since`.
    #[must_use]
    pub fn new(lease: Duration, leader_since: Instant) -> Self {
        Self { leader_since, lease, sessions: HashMap::new(), pinned: HashMap::new() }
    }

    /// A session was opened with this leader: it has nothing open, so its pins are known.
    pub fn opened(&mut self, session: SessionId, now: Instant) {
        let soft = self.sessions.entry(session).or_insert(Soft { renewed: now, heard: true, pins: HashSet::new() });
        soft.renewed = now;
    }

    /// A session renews. Returns whether the next renewal must bring the full set of pins.
    ///
    /// # Errors
    /// [`ErrorCode::TooLarge`] with more open versions than are kept for one session; nothing changed.
    pub fn renew(&mut self, session: SessionId, renewal: Renewal, now: Instant) -> Result<bool, RpcError> {
        let soft = self.sessions.entry(session).or_insert(Soft { renewed: now, heard: false, pins: HashSet::new() });
        let kept = if renewal.full { 0 } else { soft.pins.len() };
        if kept + renewal.pins.len() > PINS_MAX {
            return Err(RpcError::new(ErrorCode::TooLarge, format!("a session may have {PINS_MAX} versions open")));
        }
        soft.renewed = now;
        if renewal.full {
            soft.heard = true;
            for file in std::mem::take(&mut soft.pins) {
                release(&mut self.pinned, file);
            }
        }
        // A difference to a base that this leader never heard still pins: keeping too much is safe.
        for file in renewal.pins {
            if soft.pins.insert(file) {
                *self.pinned.entry(file).or_default() += 1;
            }
        }
        for file in renewal.unpins {
            if soft.pins.remove(&file) {
                release(&mut self.pinned, file);
            }
        }
        Ok(!soft.heard)
    }

    /// A session ended.
    pub fn closed(&mut self, session: SessionId) {
        let Some(soft) = self.sessions.remove(&session) else { return };
        for file in soft.pins {
            release(&mut self.pinned, file);
        }
    }

    /// Whether the full set of a session was heard by this leader.
    #[must_use]
    pub fn is_heard(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|soft| soft.heard)
    }

    /// Whether any session has `file` open.
    #[must_use]
    pub fn is_pinned(&self, file: FileId) -> bool {
        self.pinned.contains_key(&file)
    }

    /// The sessions that have `file` open, in order.
    #[must_use]
    pub fn holders(&self, file: FileId) -> Vec<SessionId> {
        let mut holders: Vec<_> =
            self.sessions.iter().filter(|(_, soft)| soft.pins.contains(&file)).map(|(id, _)| *id).collect();
        holders.sort_unstable();
        holders
    }

    /// Which of the `known` sessions did not renew within their lease. One that this leader never heard gets a full lease
    /// from when it began to lead.
    pub fn expired(&self, known: impl Iterator<Item = SessionId>, now: Instant) -> Vec<SessionId> {
        known
            .filter(|session| {
                let renewed = self.sessions.get(session).map_or(self.leader_since, |soft| soft.renewed);
                now.saturating_duration_since(renewed.max(self.leader_since)) > self.lease
            })
            .collect()
    }

    /// Whether the full set of pins of each of the `known` sessions was heard.
    pub fn all_heard(&self, mut known: impl Iterator<Item = SessionId>) -> bool {
        known.all(|session| self.sessions.get(&session).is_some_and(|soft| soft.heard))
    }

    /// Forgets sessions that the replicated state does not have.
    pub fn retain(&mut self, keep: impl Fn(SessionId) -> bool) {
        let gone: Vec<SessionId> = self.sessions.keys().copied().filter(|session| !keep(*session)).collect();
        gone.into_iter().for_each(|session| self.closed(session));
    }
}

fn release(pinned: &mut HashMap<FileId, u32>, file: FileId) {
    if let Some(count) = pinned.get_mut(&file) {
        *count -= 1;
        if *count == 0 {
            pinned.remove(&file);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn file(n: u8) -> FileId {
        FileId([n; 16])
    }

    fn pins(full: bool, pins: &[u8], unpins: &[u8]) -> Renewal {
        let files = |list: &[u8]| list.iter().copied().map(file).collect();
        Renewal { full, pins: files(pins), unpins: files(unpins) }
    }

    #[test]
    fn a_new_leader_asks_for_the_full_set() {
        let t0 = Instant::now();
        let mut sessions = Sessions::new(LEASE, t0);
        let s = SessionId(1);
        assert!(!sessions.all_heard([s].into_iter()));
        assert!(sessions.renew(s, pins(false, &[1], &[]), t0).expect("small"), "needs the full set");
        assert!(sessions.is_pinned(file(1)), "but believes what it heard");
        assert!(!sessions.all_heard([s].into_iter()));
        assert!(!sessions.renew(s, pins(true, &[2], &[]), t0).expect("small"));
        assert!(sessions.all_heard([s].into_iter()));
        assert!(!sessions.is_pinned(file(1)) && sessions.is_pinned(file(2)));
    }

    #[test]
    fn leases_end_but_not_within_a_lease_of_a_new_leader() {
        let t0 = Instant::now();
        let mut sessions = Sessions::new(LEASE, t0);
        sessions.opened(SessionId(1), t0);
        let known = || [SessionId(1), SessionId(2)].into_iter();
        assert!(sessions.expired(known(), t0 + LEASE).is_empty());
        sessions.renew(SessionId(1), Renewal::default(), t0 + Duration::from_secs(30)).expect("small");
        let later = t0 + LEASE + Duration::from_secs(1);
        assert_eq!(sessions.expired(known(), later), [SessionId(2)]);
    }

    #[test]
    fn a_session_that_ends_pins_nothing() {
        let t0 = Instant::now();
        let mut sessions = Sessions::new(LEASE, t0);
        sessions.opened(SessionId(1), t0);
        sessions.renew(SessionId(1), pins(false, &[1, 1, 2], &[]), t0).expect("small");
        sessions.retain(|_| false);
        assert!(!sessions.is_pinned(file(1)) && !sessions.is_pinned(file(2)));
        assert!(sessions.pinned.is_empty());
    }

    proptest! {
        #[test]
        fn pinned_is_what_any_session_has_open(
            steps in proptest::collection::vec(
                (0..3u64, any::<bool>(), proptest::collection::vec(0..6u8, 0..4), proptest::collection::vec(0..6u8, 0..4), 0..10u8),
                1..60,
            ),
        ) {
            let t0 = Instant::now();
            let mut sessions = Sessions::new(LEASE, t0);
            let mut model: HashMap<u64, HashSet<u8>> = HashMap::new();
            for (session, full, add, remove, closing) in steps {
                if closing == 0 {
                    sessions.closed(SessionId(session));
                    model.remove(&session);
                    continue;
                }
                sessions.renew(SessionId(session), pins(full, &add, &remove), t0).expect("small");
                let open = model.entry(session).or_default();
                if full {
                    open.clear();
                }
                open.extend(add);
                remove.iter().for_each(|f| { open.remove(f); });
                for n in 0..6u8 {
                    prop_assert_eq!(sessions.is_pinned(file(n)), model.values().any(|open| open.contains(&n)));
                }
            }
        }
    }
}
