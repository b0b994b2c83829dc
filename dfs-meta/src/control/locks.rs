//! Locks of files as the leader knows them.
//!
//! They are soft, like the pins of sessions: after a change of leader each client sends what it holds with its next renewal.
//! Until every live session has done so, or has ended, no lock is granted, since it might be somebody's already. What is given
//! up in that time is remembered, because the set that its session sends may be older.

use dfs_common::{
    InodeId, SessionId,
    lock::{Class, Lock, Locks},
};

/// Locks that all sessions together may hold; a lock takes about 100 bytes.
const LOCKS_MAX: usize = 1 << 20;

/// The locks of all sessions.
#[derive(Debug, Default)]
pub(super) struct SessionLocks {
    held: Locks,
    /// Given up by sessions whose set has not come yet.
    given_up: Vec<(InodeId, Lock)>,
}

impl SessionLocks {
    /// Whether there is no room for another lock.
    pub(super) fn is_full(&self) -> bool {
        self.held.len() >= LOCKS_MAX
    }

    /// A session sends what it holds for the first time under this leader. Gives those that somebody else has: their client was
    /// cut off for so long that the leader before this one had ended its session.
    pub(super) fn claim(&mut self, session: SessionId, locks: Vec<(InodeId, Lock)>) -> Vec<(InodeId, Lock)> {
        let refused = locks.into_iter().filter(|(ino, lock)| self.held.take(*ino, *lock).is_err()).collect();
        let (own, others) =
            std::mem::take(&mut self.given_up).into_iter().partition(|(_, l)| l.owner.session == session);
        self.given_up = others;
        for (ino, lock) in own {
            self.held.give_up(ino, lock.class, lock.owner, lock.start, lock.end);
        }
        refused
    }

    /// Takes a lock.
    ///
    /// # Errors
    /// A lock that stands in the way.
    pub(super) fn take(&mut self, ino: InodeId, wish: Lock) -> Result<(), Lock> {
        self.held.take(ino, wish)
    }

    /// Gives up the whole lock that the owner of `wish` has, if it wishes for one: flock(2) does so before it takes another.
    pub(super) fn trade_in(&mut self, ino: InodeId, wish: &Lock) -> bool {
        wish.class == Class::Whole && self.held.give_up(ino, wish.class, wish.owner, 0, u64::MAX)
    }

    /// A lock that would stand in the way.
    pub(super) fn conflict(&self, ino: InodeId, wish: &Lock) -> Option<Lock> {
        self.held.conflict(ino, wish)
    }

    /// Gives up what the owner of `lock` has in its range. `is_heard` says whether its session has sent its set.
    pub(super) fn give_up(&mut self, ino: InodeId, lock: Lock, is_heard: bool) {
        self.held.give_up(ino, lock.class, lock.owner, lock.start, lock.end);
        if !is_heard && self.given_up.len() < LOCKS_MAX {
            self.given_up.push((ino, lock));
        }
    }

    /// Forgets what sessions held that are no more; whether that was anything.
    pub(super) fn retain(&mut self, keep: impl Fn(SessionId) -> bool) -> bool {
        self.given_up.retain(|(_, lock)| keep(lock.owner.session));
        self.held.retain(keep)
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::lock::{Kind, Owner};

    use super::*;

    const FILE: InodeId = InodeId(7);

    fn lock(session: u64) -> Lock {
        let owner = Owner { session: SessionId(session), number: 9 };
        Lock { class: Class::Whole, owner, kind: Kind::Exclusive, start: 0, end: u64::MAX, pid: 1 }
    }

    #[test]
    fn what_a_session_holds_is_claimed_once() {
        let mut locks = SessionLocks::default();
        assert_eq!(locks.claim(SessionId(1), vec![(FILE, lock(1))]), []);
        assert_eq!(locks.claim(SessionId(2), vec![(FILE, lock(2))]), [(FILE, lock(2))], "somebody else has it");
        assert_eq!(locks.conflict(FILE, &lock(2)), Some(lock(1)));
        assert!(locks.retain(|session| session == SessionId(2)));
        assert_eq!(locks.take(FILE, lock(2)), Ok(()));
    }

    #[test]
    fn what_was_given_up_does_not_come_back_with_an_older_set() {
        let mut locks = SessionLocks::default();
        locks.give_up(FILE, lock(1), false);
        locks.give_up(FILE, lock(2), false);
        assert_eq!(locks.claim(SessionId(1), vec![(FILE, lock(1)), (InodeId(8), lock(1))]), []);
        assert_eq!(locks.conflict(FILE, &lock(3)), None);
        assert_eq!(locks.conflict(InodeId(8), &lock(3)), Some(lock(1)));
        assert_eq!(locks.given_up.len(), 1, "the other session has not been heard yet");
    }
}
