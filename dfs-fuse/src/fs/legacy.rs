//! What this process leaves to the one that takes the mount over when it crashes: its handles.
//!
//! The kernel goes on using the numbers of handles that a dead process gave out. So each is recorded with its inode, a reader's
//! with its version, and of every inode that is being written it is recorded whether anything is unpublished. The successor
//! takes handles up as they were; those whose bytes went with the process answer EIO until they are closed.
//!
//! | the process dies                                        | and the successor                                             |
//! |---------------------------------------------------------|---------------------------------------------------------------|
//! | between the record of a handle and its number's arrival | keeps a handle that nobody uses until the mount ends          |
//! | between a write's beginning and its answer              | takes its bytes for lost, with all that is unpublished        |
//! | between a publication and its record                    | takes for lost what is published: EIO once too often          |
//! | between the removal of a record and the kernel's release | answers the release: there is nothing left to do             |

use std::{
    collections::HashSet,
    io,
    sync::{Arc, OnceLock, atomic::AtomicBool},
};

use dfs_common::{
    Attr, FileId, FileKind, InodeId,
    ledger::{Entry, Found, Ledger, RECORD_BYTES, Record},
};

use super::{
    Fs,
    backend::Backend,
    error::Error,
    file::{Handle, Inherited},
    inode::{Role, lock},
};

const READ: u8 = dfs_client::CLIENT_KINDS;
const WRITE: u8 = READ + 1;
const CHANGES: u8 = READ + 2;
const LOST: u8 = READ + 3;

/// One thing that was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Legacy {
    /// A handle for reading.
    Read {
        handle: u64,
        ino: InodeId,
        /// The version, unless it reads what its inode's writer has.
        version: Option<FileId>,
        is_cached: bool,
        last: Last,
    },
    /// A handle for writing.
    Write { handle: u64, ino: InodeId, is_append: bool },
    /// An inode is being written; whether anything of it is unpublished.
    Changes { ino: InodeId, is_unpublished: bool },
    /// A handle whose bytes are lost already.
    Lost { handle: u64, ino: InodeId, may_write: bool },
}

/// Attributes of a file that may lose its name while it is open: nobody else knows them then.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Last {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime_ns: i64,
}

impl Last {
    pub(crate) fn of(attr: &Attr) -> Self {
        Self { mode: attr.mode, uid: attr.uid, gid: attr.gid, mtime_ns: attr.mtime_ns }
    }

    /// As attributes of an inode without a name, of which the size is not known.
    fn attr(self, ino: InodeId, version: FileId) -> Attr {
        let Self { mode, uid, gid, mtime_ns } = self;
        Attr {
            ino,
            kind: FileKind::File,
            mode,
            uid,
            gid,
            size: 0,
            nlink: 0,
            atime_ns: mtime_ns,
            mtime_ns,
            ctime_ns: mtime_ns,
            rdev: 0,
            generation: 0,
            file_id: Some(version),
        }
    }
}

impl Legacy {
    fn record(self) -> Record {
        let (kind, handle, ino, flag, version, last) = match self {
            Self::Read { handle, ino, version, is_cached, last } => (READ, handle, ino, is_cached, version, last),
            Self::Write { handle, ino, is_append } => (WRITE, handle, ino, is_append, None, Last::default()),
            Self::Changes { ino, is_unpublished } => (CHANGES, 0, ino, is_unpublished, None, Last::default()),
            Self::Lost { handle, ino, may_write } => (LOST, handle, ino, may_write, None, Last::default()),
        };
        let mut record = [0; RECORD_BYTES];
        record[..3].copy_from_slice(&[kind, u8::from(flag), u8::from(version.is_some())]);
        record[8..16].copy_from_slice(&handle.to_le_bytes());
        record[16..24].copy_from_slice(&ino.0.to_le_bytes());
        record[24..40].copy_from_slice(version.unwrap_or(FileId([0; 16])).as_bytes());
        record[40..44].copy_from_slice(&last.mode.to_le_bytes());
        record[44..48].copy_from_slice(&last.uid.to_le_bytes());
        record[48..52].copy_from_slice(&last.gid.to_le_bytes());
        record[52..60].copy_from_slice(&last.mtime_ns.to_le_bytes());
        record
    }

    /// The inode of which something unpublished was lost.
    fn lost_changes(&self) -> Option<InodeId> {
        match self {
            Self::Changes { ino, is_unpublished: true } => Some(*ino),
            _ => None,
        }
    }

    /// What a record says; `None` if a later version has written it.
    fn read(record: &Record) -> Option<Self> {
        let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("8 bytes"));
        let short = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("4 bytes"));
        let (flag, handle, ino) = (record[1] != 0, number(8), InodeId(number(16)));
        match record[0] {
            READ => {
                let version = FileId(record[24..40].try_into().expect("16 bytes"));
                let version = (record[2] != 0).then_some(version);
                let mtime_ns = number(52).cast_signed();
                let last = Last { mode: short(40), uid: short(44), gid: short(48), mtime_ns };
                Some(Self::Read { handle, ino, version, is_cached: flag, last })
            }
            WRITE => Some(Self::Write { handle, ino, is_append: flag }),
            CHANGES => Some(Self::Changes { ino, is_unpublished: flag }),
            LOST => Some(Self::Lost { handle, ino, may_write: flag }),
            _ => None,
        }
    }
}

/// What was left, as it was found.
pub(crate) fn read(found: Found) -> Vec<(Legacy, Entry)> {
    found.into_iter().filter_map(|(entry, record)| Some((Legacy::read(&record)?, entry))).collect()
}

/// A record for as long as this is there. Without a ledger nothing is recorded.
#[derive(Debug, Default)]
pub(crate) struct Recorded(Option<Entry>);

impl Recorded {
    /// One that a predecessor made.
    pub(crate) fn inherited(entry: Entry) -> Self {
        Self(Some(entry))
    }

    /// Says it anew.
    pub(crate) fn set(&self, legacy: Legacy) {
        // A record that is there already needs no memory, so this does not fail.
        if let Some(Err(error)) = self.0.as_ref().map(|entry| entry.set(&legacy.record())) {
            tracing::error!(%error, ?legacy, "should this process crash, its successor will be told something outdated");
        }
    }
}

/// Where things are recorded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Legacies(Option<Arc<Ledger>>);

impl Legacies {
    pub(crate) fn new(ledger: Option<Arc<Ledger>>) -> Self {
        Self(ledger)
    }

    /// Records something.
    pub(crate) fn record(&self, legacy: Legacy) -> Result<Recorded, Error> {
        let entry = self.0.as_ref().map(|ledger| ledger.put(&legacy.record())).transpose();
        entry.map(Recorded).map_err(|error: io::Error| {
            tracing::warn!(%error, "a file cannot be opened, since there is no memory for its record");
            Error::refused(libc::ENOMEM, "no memory for the record of an open file")
        })
    }
}

impl<B: Backend> Fs<B> {
    /// Takes over what was left. Numbers of handles go on at `first`.
    pub(crate) fn inherit(&self, left: Vec<(Legacy, Entry)>, first: u64) {
        self.handles.continue_at(first);
        self.dirs.continue_at(first);
        let unpublished: HashSet<InodeId> = left.iter().filter_map(|(legacy, _)| legacy.lost_changes()).collect();
        let mut of_writers = Vec::new();
        for (legacy, entry) in left {
            match legacy {
                Legacy::Changes { .. } => of_writers.push(entry),
                Legacy::Read { handle, ino, version: None, .. } if unpublished.contains(&ino) => {
                    self.inherit_lost(handle, ino, false, entry);
                }
                Legacy::Write { handle, ino, .. } if unpublished.contains(&ino) => {
                    self.inherit_lost(handle, ino, true, entry);
                }
                Legacy::Lost { handle, ino, may_write } => self.inherit_lost(handle, ino, may_write, entry),
                Legacy::Read { handle, ino, version, is_cached, last } => {
                    let version = version.map(|version| (last.attr(ino, version), version, is_cached));
                    self.inherit_reader(handle, ino, version, entry);
                }
                Legacy::Write { handle, ino, is_append } => {
                    let inode = self.inodes.acquire(ino, Role::Write);
                    lock(&self.pages).soil(ino);
                    let _recorded = Recorded::inherited(entry);
                    self.handles.insert(handle, Handle::Write { inode, is_append, _recorded });
                }
            }
        }
        // What was lost is recorded with each handle now, so that the next successor knows it as well.
        drop(of_writers);
    }

    fn inherit_reader(&self, handle: u64, ino: InodeId, version: Option<(Attr, FileId, bool)>, entry: Entry) {
        let inode = self.inodes.acquire(ino, Role::Read);
        if let Some((_, version, true)) = &version {
            // The kernel has pages of it, and gets more.
            lock(&self.pages).open(ino, *version);
        }
        let inherited = version.map(|(last, version, is_cached)| {
            let _pin = self.backend.pin(version);
            Inherited { last, version, is_cached, _pin }
        });
        let recorded = Recorded::inherited(entry);
        let is_unconfirmed = AtomicBool::new(false);
        let version = OnceLock::new();
        self.handles
            .insert(handle, Handle::Read { inode, version, is_unconfirmed, inherited, number: handle, recorded });
    }

    fn inherit_lost(&self, handle: u64, ino: InodeId, may_write: bool, entry: Entry) {
        let inode = self.inodes.acquire(ino, if may_write { Role::Write } else { Role::Read });
        let recorded = Recorded::inherited(entry);
        recorded.set(Legacy::Lost { handle, ino, may_write });
        tracing::warn!(
            ino = ino.0,
            handle,
            "what was written to a file and not published is lost: its handle answers EIO"
        );
        self.handles.insert(handle, Handle::Lost { inode, may_write, _recorded: recorded });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_again() {
        let ino = InodeId(77);
        let last = Last { mode: 0o4755, uid: u32::MAX, gid: 2, mtime_ns: -5 };
        for legacy in [
            Legacy::Read { handle: 5, ino, version: Some(FileId([3; 16])), is_cached: true, last },
            Legacy::Read { handle: 5, ino, version: None, is_cached: false, last: Last::default() },
            Legacy::Write { handle: u64::MAX, ino, is_append: true },
            Legacy::Changes { ino, is_unpublished: true },
            Legacy::Lost { handle: 1 << 40, ino, may_write: false },
        ] {
            assert_eq!(Legacy::read(&legacy.record()), Some(legacy));
        }
        let mut unknown = [0; RECORD_BYTES];
        unknown[0] = 200;
        assert_eq!(Legacy::read(&unknown), None);
    }
}
