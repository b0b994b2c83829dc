//! Why an operation of the file system failed, and the errno that says so.

use std::time::Duration;

use dfs_common::ErrorCode;

/// A failed operation.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The cluster said no, or did not answer.
    #[error("{0}")]
    Cluster(#[from] dfs_client::Error),
    /// Decided here, without asking the cluster.
    #[error("{why}")]
    Refused {
        /// What the program sees.
        errno: i32,
        /// For the log.
        why: &'static str,
    },
    /// The last net under every operation: the client's own deadlines should have ended it before.
    #[error("gave up after {0:?}")]
    Late(Duration),
}

impl Error {
    /// A refusal.
    pub(crate) fn refused(errno: i32, why: &'static str) -> Self {
        Self::Refused { errno, why }
    }

    /// What the program sees.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Cluster(error) => error.errno(),
            Self::Refused { errno, .. } => *errno,
            Self::Late(_) => libc::EIO,
        }
    }

    /// Whether the object was not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Cluster(error) if matches!(error.code, ErrorCode::NotFound | ErrorCode::Stale))
    }

    /// Whether a person should read about it: a program asking for a name that does not exist is everyday life, a lost
    /// replica or a full disk is not.
    pub(crate) fn is_remarkable(&self) -> bool {
        matches!(self.errno(), libc::EIO | libc::ENOSPC | libc::ESTALE)
    }
}
