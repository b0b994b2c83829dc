//! The closed set of error codes that cross process borders.
//!
//! Every operation has its own error enum inside a crate; at the edge it becomes one of these. Three tables are made from
//! them and all are exhaustive: to and from the wire (dfs-proto), to errno (below), to an exit code (dfsctl).

/// Why a call failed. The number is the wire form and never changes its meaning.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[repr(u32)]
pub enum ErrorCode {
    /// No such file, directory, version or chunk.
    #[error("not found")]
    NotFound = 1,
    /// The name is taken.
    #[error("already exists")]
    AlreadyExists = 2,
    /// A component that must be a directory is not.
    #[error("not a directory")]
    NotDirectory = 3,
    /// The operation does not work on directories.
    #[error("is a directory")]
    IsDirectory = 4,
    /// The directory still has entries.
    #[error("directory not empty")]
    NotEmpty = 5,
    /// A name of more than 255 bytes or a path of more than 4096.
    #[error("name too long")]
    NameTooLong = 6,
    /// An argument makes no sense.
    #[error("invalid argument")]
    InvalidArgument = 7,
    /// The operation is not permitted on this object.
    #[error("operation not permitted")]
    NotPermitted = 8,
    /// The caller lacks the right.
    #[error("permission denied")]
    PermissionDenied = 9,
    /// The extended attribute is not there.
    #[error("no such attribute")]
    NoAttribute = 10,
    /// Too many hard links.
    #[error("too many links")]
    TooManyLinks = 11,
    /// The value or file is larger than can be held.
    #[error("too large")]
    TooLarge = 12,
    /// The disks are full.
    #[error("no space left")]
    NoSpace = 13,
    /// Mounted read-only.
    #[error("read-only")]
    ReadOnly = 14,
    /// The operation is not built.
    #[error("not supported")]
    NotSupported = 15,

    /// The answering metadata node is not the leader; nothing happened.
    #[error("not the leader")]
    NotLeader = 32,
    /// The server cannot serve now; nothing happened.
    #[error("unavailable")]
    Unavailable = 33,
    /// The change may or may not have happened; repeating it under the same sequence number is safe.
    #[error("outcome unknown")]
    Indeterminate = 34,
    /// The deadline passed.
    #[error("timed out")]
    TimedOut = 35,
    /// Too much work is queued; nothing happened.
    #[error("overloaded")]
    Overloaded = 36,
    /// Fewer live storage nodes than the write quorum.
    #[error("not enough storage nodes")]
    NotEnoughNodes = 37,

    /// The session ended; pending files of it are gone.
    #[error("session expired")]
    SessionExpired = 48,
    /// The version or handle is no longer there.
    #[error("stale")]
    Stale = 49,
    /// Bytes do not match their checksum.
    #[error("corrupt")]
    Corrupt = 50,
    /// The node does not hold the chunk.
    #[error("chunk missing")]
    ChunkMissing = 51,
    /// The request was meant for another node: its address was reused.
    #[error("wrong node")]
    WrongNode = 52,
    /// The request or data directory belongs to another cluster.
    #[error("wrong cluster")]
    WrongCluster = 53,
    /// The two processes speak incompatible versions.
    #[error("incompatible version")]
    Incompatible = 54,
    /// A disk or the network failed in a way that has no better name.
    #[error("input/output error")]
    Io = 55,
    /// A defect of dfs itself.
    #[error("internal error")]
    Internal = 56,
}

impl ErrorCode {
    /// Every code, for tests of the tables.
    pub const ALL: [Self; 30] = [
        Self::NotFound,
        Self::AlreadyExists,
        Self::NotDirectory,
        Self::IsDirectory,
        Self::NotEmpty,
        Self::NameTooLong,
        Self::InvalidArgument,
        Self::NotPermitted,
        Self::PermissionDenied,
        Self::NoAttribute,
        Self::TooManyLinks,
        Self::TooLarge,
        Self::NoSpace,
        Self::ReadOnly,
        Self::NotSupported,
        Self::NotLeader,
        Self::Unavailable,
        Self::Indeterminate,
        Self::TimedOut,
        Self::Overloaded,
        Self::NotEnoughNodes,
        Self::SessionExpired,
        Self::Stale,
        Self::Corrupt,
        Self::ChunkMissing,
        Self::WrongNode,
        Self::WrongCluster,
        Self::Incompatible,
        Self::Io,
        Self::Internal,
    ];

    /// The code with this wire number.
    #[must_use]
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u32 == number)
    }

    /// Whether the same request may succeed later, perhaps at another node. A mutation is repeated under its old sequence
    /// number, so this includes [`ErrorCode::Indeterminate`].
    #[must_use]
    pub fn is_retryable(self) -> bool {
        match self {
            Self::NotLeader
            | Self::Unavailable
            | Self::Indeterminate
            | Self::TimedOut
            | Self::Overloaded
            | Self::NotEnoughNodes => true,
            Self::NotFound
            | Self::AlreadyExists
            | Self::NotDirectory
            | Self::IsDirectory
            | Self::NotEmpty
            | Self::NameTooLong
            | Self::InvalidArgument
            | Self::NotPermitted
            | Self::PermissionDenied
            | Self::NoAttribute
            | Self::TooManyLinks
            | Self::TooLarge
            | Self::NoSpace
            | Self::ReadOnly
            | Self::NotSupported
            | Self::SessionExpired
            | Self::Stale
            | Self::Corrupt
            | Self::ChunkMissing
            | Self::WrongNode
            | Self::WrongCluster
            | Self::Incompatible
            | Self::Io
            | Self::Internal => false,
        }
    }

    /// The errno that a program on the mount sees.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::AlreadyExists => libc::EEXIST,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotEmpty => libc::ENOTEMPTY,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::InvalidArgument => libc::EINVAL,
            Self::NotPermitted => libc::EPERM,
            Self::PermissionDenied => libc::EACCES,
            Self::NoAttribute => libc::ENODATA,
            Self::TooManyLinks => libc::EMLINK,
            Self::TooLarge => libc::EFBIG,
            Self::NoSpace => libc::ENOSPC,
            Self::ReadOnly => libc::EROFS,
            Self::NotSupported => libc::EOPNOTSUPP,
            Self::Stale => libc::ESTALE,
            Self::NotLeader
            | Self::Unavailable
            | Self::Indeterminate
            | Self::TimedOut
            | Self::Overloaded
            | Self::NotEnoughNodes
            | Self::SessionExpired
            | Self::Corrupt
            | Self::ChunkMissing
            | Self::WrongNode
            | Self::WrongCluster
            | Self::Incompatible
            | Self::Io
            | Self::Internal => libc::EIO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_numbers_are_distinct_and_round_trip() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_wire(code as u32), Some(code));
        }
        assert_eq!(ErrorCode::from_wire(0), None);
    }
}
