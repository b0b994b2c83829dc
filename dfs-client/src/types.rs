//! What operations take and give.

use dfs_common::{Attr, FileId, FileKind, InodeId, SessionId};

/// A file to create.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NewFile {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Fail with `AlreadyExists` if the name is taken.
    pub exclusive: bool,
}

/// A pipe, socket, device or empty file to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewNode {
    /// What to make.
    pub kind: FileKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device.
    pub rdev: u32,
}

/// Outcome of a creation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Created {
    /// The new inode, or the one that had the name.
    pub attr: Attr,
    /// The pending version to write; `None` if the file existed.
    pub file_id: Option<FileId>,
    /// Whether the name was there already.
    pub existed: bool,
    /// The session that the pending version belongs to.
    pub session: SessionId,
}

/// How to rename.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RenameFlags {
    /// Fail with `AlreadyExists` if the new name is taken.
    pub no_replace: bool,
    /// Swap the two names.
    pub exchange: bool,
}

/// One name of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// The name, any bytes but NUL and `/`.
    pub name: Vec<u8>,
    /// What it names.
    pub ino: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// Its attributes, when they were asked for.
    pub attr: Option<Attr>,
}

/// Some entries of a directory, in byte order of their names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirPage {
    /// The entries; `.` and `..` are not among them.
    pub entries: Vec<DirEntry>,
    /// Whether these are the last ones.
    pub end: bool,
    /// The directory's parent; of the root the root.
    pub parent: InodeId,
}

/// Space and inodes of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StatFs {
    /// Raw bytes of all live nodes.
    pub capacity_bytes: u64,
    /// Raw bytes used.
    pub used_bytes: u64,
    /// Raw bytes available.
    pub available_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Copies of each chunk: divide raw bytes by this for what a user can store.
    pub replication: u32,
}

/// One file found by a prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedFile {
    /// Path from the root, with a leading `/`.
    pub path: Vec<u8>,
    /// Its attributes.
    pub attr: Attr,
}

/// Some files found by a prefix, in byte order of their paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilePage {
    /// The files.
    pub files: Vec<ListedFile>,
    /// Whether these are the last ones.
    pub end: bool,
}
