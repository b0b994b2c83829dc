//! Locks of files: flock(2) and the record locks of fcntl(2), as a table that knows nothing of networks.
//!
//! The metadata leader keeps one for all sessions, each client one of what it holds. The two classes do not see each other,
//! as on a local disk. A record lock replaces what its owner had in its range, and is split when a part is given up.

use std::collections::BTreeMap;

use crate::{InodeId, SessionId};

/// Which call makes the lock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// flock(2): belongs to an open file.
    Whole,
    /// fcntl(2): belongs to a process.
    Record,
}

/// Who else may have it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// Other shared locks.
    Shared,
    /// Nobody.
    Exclusive,
}

/// Whose lock it is: a number that the client's kernel gave, unique in its session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Owner {
    /// The client.
    pub session: SessionId,
    /// An open file or a process there.
    pub number: u64,
}

/// A lock that is held or wished for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lock {
    /// The call.
    pub class: Class,
    /// Whose.
    pub owner: Owner,
    /// Shared or not.
    pub kind: Kind,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Process that made it, for people.
    pub pid: u32,
}

impl Lock {
    fn is_of(&self, class: Class, owner: Owner) -> bool {
        (self.class, self.owner) == (class, owner)
    }

    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start <= end && start <= self.end
    }

    fn forbids(&self, wish: &Self) -> bool {
        self.class == wish.class
            && self.owner != wish.owner
            && self.overlaps(wish.start, wish.end)
            && (self.kind == Kind::Exclusive || wish.kind == Kind::Exclusive)
    }
}

/// All locks that are held. Invariant: no two of them forbid each other, and those of one owner and class do not overlap.
#[derive(Clone, Debug, Default)]
pub struct Locks {
    files: BTreeMap<InodeId, Vec<Lock>>,
}

impl Locks {
    /// A lock that stands in the way of `wish`.
    #[must_use]
    pub fn conflict(&self, ino: InodeId, wish: &Lock) -> Option<Lock> {
        self.files.get(&ino)?.iter().find(|held| held.forbids(wish)).copied()
    }

    /// Takes a lock. A whole lock that its owner holds is given up first, as flock(2) says: two owners that both want to go
    /// from shared to exclusive then cannot wait for each other.
    ///
    /// # Errors
    /// A lock that stands in the way; a record lock that the owner has stays as it was.
    pub fn take(&mut self, ino: InodeId, wish: Lock) -> Result<(), Lock> {
        if wish.class == Class::Whole {
            self.give_up(ino, wish.class, wish.owner, 0, u64::MAX);
        }
        if let Some(conflict) = self.conflict(ino, &wish) {
            return Err(conflict);
        }
        self.give_up(ino, wish.class, wish.owner, wish.start, wish.end);
        self.files.entry(ino).or_default().push(wish);
        Ok(())
    }

    /// Gives up what `owner` holds between two bytes, both included; whether that was anything.
    pub fn give_up(&mut self, ino: InodeId, class: Class, owner: Owner, start: u64, end: u64) -> bool {
        let Some(held) = self.files.get_mut(&ino) else { return false };
        let (touched, mut rest): (Vec<Lock>, Vec<Lock>) =
            held.iter().partition(|lock| lock.is_of(class, owner) && lock.overlaps(start, end));
        for lock in &touched {
            if let Some(before) = start.checked_sub(1).filter(|before| lock.start <= *before) {
                rest.push(Lock { end: before, ..*lock });
            }
            if let Some(behind) = end.checked_add(1).filter(|behind| *behind <= lock.end) {
                rest.push(Lock { start: behind, ..*lock });
            }
        }
        *held = rest;
        if held.is_empty() {
            self.files.remove(&ino);
        }
        !touched.is_empty()
    }

    /// Keeps only the locks of some sessions; whether any was given up.
    pub fn retain(&mut self, keep: impl Fn(SessionId) -> bool) -> bool {
        let before = self.len();
        self.files.values_mut().for_each(|held| held.retain(|lock| keep(lock.owner.session)));
        self.files.retain(|_, held| !held.is_empty());
        self.len() != before
    }

    /// Every lock, by inode.
    pub fn iter(&self) -> impl Iterator<Item = (InodeId, &Lock)> {
        self.files.iter().flat_map(|(ino, held)| held.iter().map(|lock| (*ino, lock)))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.files.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: InodeId = InodeId(7);

    fn lock(owner: u64, kind: Kind, start: u64, end: u64) -> Lock {
        let owner = Owner { session: SessionId(owner % 2), number: owner };
        Lock { class: Class::Record, owner, kind, start, end, pid: 1 }
    }

    fn whole(owner: u64, kind: Kind) -> Lock {
        Lock { class: Class::Whole, ..lock(owner, kind, 0, u64::MAX) }
    }

    #[test]
    fn shared_locks_go_together_and_exclusive_ones_do_not() {
        let mut locks = Locks::default();
        locks.take(FILE, whole(1, Kind::Shared)).expect("free");
        locks.take(FILE, whole(2, Kind::Shared)).expect("shared");
        assert_eq!(locks.take(FILE, whole(3, Kind::Exclusive)).expect_err("held").owner.number, 1);
        locks.take(FILE, lock(3, Kind::Exclusive, 0, 9)).expect("the classes do not see each other");
        locks.take(InodeId(8), whole(3, Kind::Exclusive)).expect("another file");
    }

    #[test]
    fn two_that_want_more_do_not_wait_for_each_other() {
        let mut locks = Locks::default();
        locks.take(FILE, whole(1, Kind::Shared)).expect("free");
        locks.take(FILE, whole(2, Kind::Shared)).expect("shared");
        locks.take(FILE, whole(1, Kind::Exclusive)).expect_err("2 has it");
        locks.take(FILE, whole(2, Kind::Exclusive)).expect("1 gave its own up when it asked for more");
    }

    #[test]
    fn a_record_lock_is_split_and_replaced() {
        let mut locks = Locks::default();
        locks.take(FILE, lock(1, Kind::Exclusive, 0, 99)).expect("free");
        locks.take(FILE, lock(1, Kind::Shared, 40, 59)).expect("its own");
        locks.take(FILE, lock(2, Kind::Shared, 40, 59)).expect("shared now");
        locks.take(FILE, lock(2, Kind::Shared, 39, 40)).expect_err("39 is exclusive");
        assert!(locks.give_up(FILE, Class::Record, lock(1, Kind::Shared, 0, 0).owner, 0, 9));
        locks.take(FILE, lock(3, Kind::Exclusive, 0, 9)).expect("given up");
        locks.take(FILE, lock(1, Kind::Exclusive, 50, 60)).expect_err("2 shares it");
        assert!(!locks.retain(|_| true));
        assert!(locks.retain(|session| session != SessionId(1)), "that of owners 1 and 3 ends");
        locks.take(FILE, lock(1, Kind::Exclusive, 0, 39)).expect("free again");
    }

    proptest! {
        #[test]
        fn the_table_is_what_a_map_of_bytes_says(
            steps in proptest::collection::vec((0..4u64, 0..3u8, 0..12u64, 0..6u64), 1..80),
        ) {
            let mut locks = Locks::default();
            let mut model: BTreeMap<(u64, u64), Kind> = BTreeMap::new();
            for (owner, what, start, length) in steps {
                let (end, kind) = (start + length, if what == 1 { Kind::Shared } else { Kind::Exclusive });
                let wish = lock(owner, kind, start, end);
                if what == 0 {
                    locks.give_up(FILE, Class::Record, wish.owner, start, end);
                    model.retain(|(byte, who), _| *who != owner || !(start..=end).contains(byte));
                    continue;
                }
                let is_free = model.iter().all(|((byte, who), held)| {
                    *who == owner || !(start..=end).contains(byte) || (*held, kind) == (Kind::Shared, Kind::Shared)
                });
                prop_assert_eq!(locks.take(FILE, wish).is_ok(), is_free);
                if is_free {
                    model.extend((start..=end).map(|byte| ((byte, owner), kind)));
                }
                let bytes: BTreeMap<(u64, u64), Kind> = locks
                    .iter()
                    .flat_map(|(_, held)| (held.start..=held.end).map(|byte| ((byte, held.owner.number), held.kind)))
                    .collect();
                prop_assert_eq!(&bytes, &model);
            }
        }
    }
}
