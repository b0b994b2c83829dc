//! Inode attributes as POSIX programs know them.

use serde::{Deserialize, Serialize};

use crate::id::{FileId, InodeId};

/// What an inode is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket node.
    Socket,
    /// Character device node.
    CharDevice,
    /// Block device node.
    BlockDevice,
}

/// Attributes of an inode. Times are nanoseconds since the Unix epoch, negative before it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attr {
    /// Inode number.
    pub ino: InodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes; of a symbolic link the length of its target.
    pub size: u64,
    /// Number of names; of a directory 2 plus its sub-directories.
    pub nlink: u32,
    /// Access time in nanoseconds.
    pub atime_ns: i64,
    /// Modification time in nanoseconds.
    pub mtime_ns: i64,
    /// Change time in nanoseconds.
    pub ctime_ns: i64,
    /// Device number of a device node.
    pub rdev: u32,
    /// Grows with every change of the inode.
    pub generation: u64,
    /// Published version of a file; `None` before the first publication and for everything that is not a file.
    pub file_id: Option<FileId>,
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SetTime {
    /// The metadata leader's clock.
    Now,
    /// Nanoseconds since the Unix epoch.
    At(i64),
}

/// Attributes to change; `None` leaves one as it is. Size is not here: a new size is a new version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
}
