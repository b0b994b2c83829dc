//! What a metadata node keeps on disk: the log and the vote, and snapshots.
//!
//! ```text
//! DATA/raft/journal-0000000001    log, vote, committed and purged position; the last file is appended to
//! DATA/raft/MARK                  how far the log must reach
//! DATA/snapshots/snapshot-I-T     newest two, by index and term
//! DATA/snapshots/*.tmp            being written or received; removed at start
//! ```

pub(crate) mod codec;
pub(crate) mod journal;
pub(crate) mod log;
mod mark;
pub(crate) mod snapshot;
mod writer;

#[cfg(test)]
mod tests;

pub(crate) use log::LogStore;

pub(crate) use snapshot::{Head, SnapshotDir, SnapshotFile};

use std::{io, path::PathBuf};

/// Something on disk cannot be used. Each message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The log cannot be opened.
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
    /// An earlier version kept the log in another way.
    #[error(
        "{path} was made by an earlier version of dfs-meta, which kept the log in another way. Move the whole data directory \
         away and start this node again: it is filled again by the other metadata nodes. If there are none: make a backup with \
         that version (dfsctl meta backup) and begin with it (dfs-meta restore)"
    )]
    Earlier {
        /// What it has left.
        path: PathBuf,
    },
    /// The disk has no room for the first file of the log.
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
        /// The file, or the directory of the log.
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
        /// The file, or the directory of the log.
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
