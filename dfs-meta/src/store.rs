//! What a metadata node keeps on disk: the log and the vote (a database), and snapshots (files).
//!
//! ```text
//! DATA/raft/CURRENT               name of the log's directory in use
//! DATA/raft/log-0001/             the database
//! DATA/snapshots/snapshot-I-T     newest two, by index and term
//! DATA/snapshots/*.tmp            being written or received; removed at start
//! ```
//!
//! The database never gives disk space back, so its directory has a generation: when it is both large and mostly dead at
//! start, the live records are copied into the next one ([`disk`]). Only `disk` names the database.

pub(crate) mod codec;
pub(crate) mod disk;
pub(crate) mod log;
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
