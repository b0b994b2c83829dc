//! What a client leaves to its successor on the same machine: its session, the locks and the pending versions in it.
//!
//! A process that crashes leaves its session to its lease. A successor that opens a session under the same client id gets that
//! very session, with all locks; it must know the locks, since a new metadata leader asks for them, and the pending versions,
//! which nobody writes any more. Its sequence numbers begin where the predecessor's cannot have come.
//!
//! | the process dies                                 | and the successor                                                |
//! |--------------------------------------------------|------------------------------------------------------------------|
//! | before the id is recorded                        | opens another session; the first one ends with its lease         |
//! | between a lock's grant and its record            | does not know it: the kernel asks for it again, or it ends with the session |
//! | between the end of a lock and that of its record | tells a new leader of a lock that nobody has, until its file is closed |
//! | between a version's opening and its record       | leaves it to the end of the session                              |
//! | between a version's end and that of its record   | ends it again, which the cluster refuses without harm            |

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dfs_common::{
    FileId, InodeId, SessionId, Uuid,
    ledger::{Entry, Found, Ledger, RECORD_BYTES, Record},
    lock::{Class, Kind, Lock, Owner},
};

/// Kinds of records below this one are the client's; the others are free for its user.
pub const CLIENT_KINDS: u8 = 16;
const SESSION: u8 = 1;
const LOCK: u8 = 2;
const PENDING: u8 = 3;

/// Sequence numbers of one process: more than it can use before it ends.
const SEQS_PER_LIFE: u64 = 1 << 40;

/// What was left, and where the client writes what it would leave.
#[derive(Debug)]
pub struct Estate {
    ledger: Arc<Ledger>,
    /// How many processes had it before.
    lives: u64,
    session: Option<Left>,
    locks: Vec<(InodeId, Lock, Entry)>,
    pending: Vec<(InodeId, FileId, Entry)>,
    entry: Option<Entry>,
}

/// The session that was left.
#[derive(Clone, Copy, Debug)]
struct Left {
    client_id: Uuid,
    id: SessionId,
}

impl Estate {
    /// Of the records that were found in `ledger`, the client's ones: `found` keeps the others.
    #[must_use]
    pub fn new(ledger: Arc<Ledger>, found: &mut Found) -> Self {
        let mut estate = Self { ledger, lives: 0, session: None, locks: Vec::new(), pending: Vec::new(), entry: None };
        for (entry, record) in found.extract_if(.., |(_, record)| record[0] < CLIENT_KINDS) {
            match record[0] {
                SESSION => {
                    estate.lives = number(&record, 8);
                    let client_id = Uuid::from_slice(&record[16..32]).expect("16 bytes");
                    estate.session = Some(Left { client_id, id: SessionId(number(&record, 32)) });
                    estate.entry = Some(entry);
                }
                LOCK => {
                    let (ino, lock) = lock_of(&record);
                    estate.locks.push((ino, lock, entry));
                }
                PENDING => {
                    let file_id = FileId(record[16..32].try_into().expect("16 bytes"));
                    estate.pending.push((InodeId(number(&record, 8)), file_id, entry));
                }
                // Of a later version: its successor drops what it does not know.
                _ => {}
            }
        }
        estate
    }

    /// Whether another process had it before.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.session.is_some()
    }

    /// The locks that were left: inode, class and number of the owner.
    #[must_use]
    pub fn locks(&self) -> Vec<(InodeId, Class, u64)> {
        self.locks.iter().map(|(ino, lock, _)| (*ino, lock.class, lock.owner.number)).collect()
    }
}

fn number(record: &Record, at: usize) -> u64 {
    u64::from_le_bytes(record[at..at + 8].try_into().expect("8 bytes"))
}

fn put(record: &mut Record, at: usize, value: u64) {
    record[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn lock_record(ino: InodeId, lock: &Lock) -> Record {
    let mut record = [0; RECORD_BYTES];
    record[..3].copy_from_slice(&[LOCK, u8::from(lock.class == Class::Record), u8::from(lock.kind == Kind::Exclusive)]);
    record[4..8].copy_from_slice(&lock.pid.to_le_bytes());
    for (at, value) in
        [(8, ino.0), (16, lock.owner.session.0), (24, lock.owner.number), (32, lock.start), (40, lock.end)]
    {
        put(&mut record, at, value);
    }
    record
}

fn lock_of(record: &Record) -> (InodeId, Lock) {
    let lock = Lock {
        class: if record[1] == 1 { Class::Record } else { Class::Whole },
        kind: if record[2] == 1 { Kind::Exclusive } else { Kind::Shared },
        owner: Owner { session: SessionId(number(record, 16)), number: number(record, 24) },
        start: number(record, 32),
        end: number(record, 40),
        pid: u32::from_le_bytes(record[4..8].try_into().expect("4 bytes")),
    };
    (InodeId(number(record, 8)), lock)
}

/// The will of a running client: all that it would leave. Without a ledger it leaves nothing.
#[derive(Debug, Default)]
pub(crate) struct Will(Option<Kept>);

#[derive(Debug)]
struct Kept {
    ledger: Arc<Ledger>,
    life: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The session that was left and is not opened yet.
    left: Option<Left>,
    /// Pending versions of the predecessor, to be ended in its session.
    to_end: Vec<(InodeId, FileId)>,
    session: Option<Entry>,
    pending: HashMap<FileId, Entry>,
    locks: HashMap<InodeId, Vec<Entry>>,
}

impl Will {
    /// Goes on with an estate; also the locks that were left.
    pub(crate) fn new(estate: Estate) -> (Self, Vec<(InodeId, Lock)>) {
        let mut state = State { left: estate.session, session: estate.entry, ..State::default() };
        let mut locks = Vec::new();
        for (ino, lock, entry) in estate.locks {
            locks.push((ino, lock));
            state.locks.entry(ino).or_default().push(entry);
        }
        for (ino, file_id, entry) in estate.pending {
            state.to_end.push((ino, file_id));
            state.pending.insert(file_id, entry);
        }
        let kept = Kept { ledger: estate.ledger, life: estate.lives + 1, state: Mutex::new(state) };
        (Self(Some(kept)), locks)
    }

    fn state(kept: &Kept) -> MutexGuard<'_, State> {
        kept.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client id to open a session with: that of the predecessor, once.
    pub(crate) fn client_id(&self) -> Uuid {
        let left = self.0.as_ref().and_then(|kept| Self::state(kept).left);
        left.map_or_else(Uuid::random, |left| left.client_id)
    }

    /// A session was opened; the number before its first sequence number, and what is to be ended in it. The second is the
    /// session of the predecessor if this is another one, because that has ended.
    pub(crate) fn opened(&self, client_id: Uuid, id: SessionId) -> (u64, Vec<(InodeId, FileId)>, Option<SessionId>) {
        let Some(kept) = &self.0 else { return (0, Vec::new(), None) };
        let mut state = Self::state(kept);
        let before = state.left.take();
        let ended = before.map(|left| left.id).filter(|left| *left != id);
        let to_end = std::mem::take(&mut state.to_end);
        if before.is_none() || ended.is_some() {
            // Pending versions go with their session, those of this process, too.
            state.pending.clear();
        }
        let mut record = [0; RECORD_BYTES];
        record[0] = SESSION;
        put(&mut record, 8, kept.life);
        record[16..32].copy_from_slice(client_id.as_bytes());
        put(&mut record, 32, id.0);
        let outcome = match &state.session {
            Some(entry) => entry.set(&record),
            None => kept.ledger.put(&record).map(|entry| state.session = Some(entry)),
        };
        told(outcome, "a session");
        let to_end = if ended.is_some() { Vec::new() } else { to_end };
        (kept.life * SEQS_PER_LIFE, to_end, ended)
    }

    /// A pending version begins.
    pub(crate) fn began(&self, ino: InodeId, file_id: FileId) {
        let Some(kept) = &self.0 else { return };
        let mut record = [0; RECORD_BYTES];
        record[0] = PENDING;
        put(&mut record, 8, ino.0);
        record[16..32].copy_from_slice(file_id.as_bytes());
        let put = kept.ledger.put(&record);
        told(put.map(|entry| drop(Self::state(kept).pending.insert(file_id, entry))), "a pending version");
    }

    /// It has ended.
    pub(crate) fn ended(&self, file_id: FileId) {
        if let Some(kept) = &self.0 {
            Self::state(kept).pending.remove(&file_id);
        }
    }

    /// The locks on a file are these now.
    pub(crate) fn locked<'a>(&self, ino: InodeId, locks: impl Iterator<Item = &'a Lock>) {
        let Some(kept) = &self.0 else { return };
        // The new ones first, so that a lock is never left out.
        let entries: Result<Vec<_>, _> = locks.map(|lock| kept.ledger.put(&lock_record(ino, lock))).collect();
        let outcome = entries.map(|entries| {
            let mut state = Self::state(kept);
            let _ = if entries.is_empty() { state.locks.remove(&ino) } else { state.locks.insert(ino, entries) };
        });
        told(outcome, "a lock");
    }

    /// All locks are gone.
    pub(crate) fn unlocked(&self) {
        if let Some(kept) = &self.0 {
            Self::state(kept).locks.clear();
        }
    }
}

fn told(outcome: std::io::Result<()>, what: &str) {
    if let Err(error) = outcome {
        tracing::warn!(%error, "should this process crash, its successor will not know of {what}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn heir(ledger: &Ledger) -> Estate {
        let file = File::from(ledger.descriptor().try_clone_to_owned().expect("a descriptor"));
        let (ledger, mut found) = Ledger::open(file).expect("whole");
        ledger.take_over();
        let estate = Estate::new(ledger, &mut found);
        assert!(found.is_empty(), "all records are the client's");
        estate
    }

    fn lock(session: u64, start: u64) -> Lock {
        Lock {
            class: Class::Record,
            owner: Owner { session: SessionId(session), number: 77 },
            kind: Kind::Exclusive,
            start,
            end: start + 9,
            pid: 4321,
        }
    }

    #[test]
    fn a_successor_goes_on_in_the_same_session() {
        let ledger = Ledger::new().expect("memory");
        let (first, _) = Will::new(Estate::new(Arc::clone(&ledger), &mut Vec::new()));
        let client_id = first.client_id();
        let (base, to_end, ended) = first.opened(client_id, SessionId(5));
        assert_eq!((base, to_end.len(), ended), (SEQS_PER_LIFE, 0, None));
        first.began(InodeId(10), FileId([1; 16]));
        first.began(InodeId(11), FileId([2; 16]));
        first.ended(FileId([1; 16]));
        first.locked(InodeId(12), [lock(5, 0), lock(5, 100)].iter());
        first.locked(InodeId(12), [lock(5, 100)].iter());
        first.locked(InodeId(13), [lock(5, 0)].iter());
        first.locked(InodeId(13), [].iter());

        let estate = heir(&ledger);
        assert!(estate.is_inherited());
        assert_eq!(estate.locks(), [(InodeId(12), Class::Record, 77)]);
        let (second, locks) = Will::new(estate);
        assert_eq!(locks, [(InodeId(12), lock(5, 100))]);
        assert_eq!(second.client_id(), client_id);
        let (base, to_end, ended) = second.opened(client_id, SessionId(5));
        assert_eq!((base, ended), (2 * SEQS_PER_LIFE, None));
        assert_eq!(to_end, [(InodeId(11), FileId([2; 16]))]);
        assert_ne!(second.client_id(), client_id, "a session after that one is another one");
        std::mem::forget(first);
    }

    #[test]
    fn nothing_is_ended_in_a_session_that_came_too_late() {
        let ledger = Ledger::new().expect("memory");
        let (first, _) = Will::new(Estate::new(Arc::clone(&ledger), &mut Vec::new()));
        let client_id = first.client_id();
        first.opened(client_id, SessionId(5));
        first.began(InodeId(10), FileId([1; 16]));
        let (second, _) = Will::new(heir(&ledger));
        let (_, to_end, ended) = second.opened(client_id, SessionId(6));
        assert_eq!((to_end.len(), ended), (0, Some(SessionId(5))));
        assert!(heir(&ledger).pending.is_empty(), "it went with the session");
        std::mem::forget(first);
    }
}
