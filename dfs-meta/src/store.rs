//! What a metadata node keeps on disk: the log and the vote (a database), and snapshots (files).
//!
//! ```text
//! DATA/raft/CURRENT               name of the log's directory in use
//! DATA/raft/log-0001/             the database
//! DATA/raft/MARK                  how far the log must reach
//! DATA/snapshots/snapshot-I-T     newest two, by index and term
//! DATA/snapshots/*.tmp            being written or received; removed at start
//! ```
//!
//! The database never gives disk space back, so its directory has a generation: when it is both large and mostly dead at
//! start, the live records are copied into the next one ([`disk`]). Only `disk` names the database.
//! In a simulation the log is one plain file instead ([`journal`]).

pub(crate) mod codec;
pub(crate) mod disk;
mod journal;
pub(crate) mod log;
mod mark;
pub(crate) mod snapshot;
mod writer;

#[cfg(test)]
mod tests;

pub(crate) use log::LogStore;

pub(crate) use snapshot::{Head, SnapshotDir, SnapshotFile};

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
};

use disk::{Contents, Disk};
use journal::Journal;

use crate::raft::types::Entry;

/// Where the records of the log are. All writes come from the thread in [`writer`]; reads come from anywhere.
pub(crate) trait Database: Send + Sync {
    /// Reads and checks everything but the entries' payload.
    fn contents(&self) -> Result<Contents, StoreError>;
    /// Entries with an index in `from..to`; those that are missing are left out.
    fn read(&self, from: u64, to: u64) -> Result<Vec<Entry>, StoreError>;
    /// Puts encoded entries in place; durable after [`Database::flush`], as every change.
    fn put_entries(&self, records: Vec<(u64, Vec<u8>)>) -> io::Result<()>;
    /// Removes up to `limit` entries with an index in `from..=to`, and says whether more are left.
    ///
    /// The highest go first when `from_the_end`, so that a crash never leaves a hole in the log.
    fn remove_entries(&self, from: u64, to: u64, limit: usize, from_the_end: bool) -> io::Result<bool>;
    /// Puts the vote in place.
    fn put_vote(&self, bytes: Vec<u8>) -> io::Result<()>;
    /// Puts the committed position in place.
    fn put_committed(&self, bytes: Vec<u8>) -> io::Result<()>;
    /// Puts the purged position in place.
    fn put_purged(&self, bytes: Vec<u8>) -> io::Result<()>;
    /// Makes every change so far durable.
    fn flush(&self) -> io::Result<()>;
    /// Bytes on disk; 0 if they cannot be asked for.
    fn size_bytes(&self) -> u64;
    /// Where it is, for messages.
    fn path(&self) -> &Path;
}

/// Opens the log's database under `root` and reads what is in it.
fn open_database(root: &Path) -> Result<(Arc<dyn Database>, Contents), StoreError> {
    let open = || -> Result<(Arc<dyn Database>, Contents), StoreError> {
        let disk: Arc<dyn Database> = match dfs_proto::machine::simulated() {
            None => Arc::new(Disk::open(root)?),
            Some(_) => Arc::new(Journal::open(root)?),
        };
        let contents = disk.contents()?;
        Ok((disk, contents))
    };
    // Sled panics on some kinds of damage, such as a file of a large value that is missing. Nothing of it is used afterwards.
    panic::catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|panicked| {
        let said = panicked.downcast_ref::<String>().map(String::as_str);
        let reason = said.or_else(|| panicked.downcast_ref::<&str>().copied()).unwrap_or("it does not say why");
        let reason = format!("the database gave up: {reason}");
        Err(StoreError::Open { path: root.to_owned(), reason })
    })
}

/// Something on disk cannot be used. Each message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be opened.
    #[error(
        "cannot open the log in {path}: {reason}. If the disk is damaged, move the whole data directory away and start this \
         node again: it is filled again by the other metadata nodes"
    )]
    Open {
        /// Its directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The disk has no room for what the database writes when it is opened.
    #[error(
        "cannot open the log in {path}: the disk is full. Nothing is lost: make room on it and start this node again"
    )]
    Full {
        /// Its directory.
        path: PathBuf,
    },
    /// A record does not decode.
    #[error(
        "the log in {path} is damaged at {record}: {reason}. Move the whole data directory away and start this node again: \
         it is filled again by the other metadata nodes"
    )]
    Corrupt {
        /// Directory of the database.
        path: PathBuf,
        /// Which record.
        record: String,
        /// What is wrong.
        reason: String,
    },
    /// The log does not reach as far as it did.
    #[error(
        "the log in {path} lost what this node had acknowledged: {lost}. Move the whole data directory away and start this node \
         again: it is filled again by the other metadata nodes. Only if there are none that have it: remove {mark} to go on with \
         what is left, without the changes that were lost"
    )]
    Lost {
        /// Directory of the database.
        path: PathBuf,
        /// What was there and is not.
        lost: String,
        /// The file that tells.
        mark: PathBuf,
    },
    /// The note of how far the log must reach does not decode.
    #[error(
        "{path} is damaged: {reason}. Move the whole data directory away and start this node again: it is filled again by the \
         other metadata nodes. Only if there are none: remove the file, and whether the log is complete is not checked"
    )]
    Mark {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The snapshots that are readable are too old for the log that is left.
    #[error(
        "no usable snapshot in {path}: the log starts behind index {purged} and the newest readable snapshot ends at {found}. \
         Move the whole data directory away and start this node again: it is filled again by the other metadata nodes"
    )]
    NoSnapshot {
        /// Directory of the snapshots.
        path: PathBuf,
        /// Index up to which the log was purged.
        purged: u64,
        /// Index of the newest readable snapshot, 0 if there is none.
        found: u64,
    },
    /// A snapshot file does not verify.
    #[error("snapshot {path} is damaged: {reason}")]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk failed.
    #[error("{path}: {source}")]
    Io {
        /// What was accessed.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
}

impl StoreError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io { path, source } => io::Error::new(source.kind(), format!("{}: {source}", path.display())),
            other => io::Error::new(io::ErrorKind::InvalidData, other),
        }
    }
}
