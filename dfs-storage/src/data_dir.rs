//! A data directory: whose it is, and that only one process uses it. [`crate::data_dirs`] has all those of a node.
//!
//! ```text
//! DIR/IDENTITY   TOML: kind, format, cluster, uuid, number and name of the node, uuid of the directory, epoch of the metadata
//! DIR/METADATA   addresses of the metadata nodes as they were last heard, one a line; only a help to find them again
//! DIR/LOCK       locked while a process uses the directory
//! DIR/PROBE      written now and then, to see whether that works
//! DIR/chunks, DIR/tmp   see engine::disk
//! ```
//!
//! The uuid is written before the first registration, so that a node that dies between registration and stamp registers
//! again under the same uuid and gets the same number.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use dfs_common::{
    ClusterId, NodeId, Uuid,
    crash::{self, Point},
    durable,
};
use serde::{Deserialize, Serialize};

const IDENTITY: &str = "IDENTITY";
const METADATA: &str = "METADATA";
/// Written now and then to see whether that works.
const PROBE: &str = "PROBE";
const KIND: &str = "storage";
const FORMAT: u32 = 2;
/// What a fresh directory may hold: our own first steps, and what mkfs leaves at the root of a file system.
const HARMLESS: [&str; 4] = ["LOCK", "IDENTITY", "IDENTITY.tmp", "lost+found"];

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process uses it.
    #[error(
        "data directory {path} is in use by another process: stop that process, or give this one its own --data-dir"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It holds other files.
    #[error(
        "data directory {path} is not empty and not a dfs data directory (it holds {found:?}): give an empty or new \
         directory with --data-dir"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of the files.
        found: String,
    },
    /// It belongs to a process of another kind.
    #[error("data directory {path} belongs to a {kind} node of dfs: give the storage node its own --data-dir")]
    OtherKind {
        /// The directory.
        path: PathBuf,
        /// What is there.
        kind: String,
    },
    /// It is given twice.
    #[error("data directory {path} is given twice: each disk of a node has a directory of its own")]
    Twice {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to another node than the others of this process.
    #[error(
        "data directory {path} belongs to storage node {theirs}, {other} to {ours}: one process serves the directories of one node; \
         take one of them out of --data-dir"
    )]
    OtherOwner {
        /// The directory.
        path: PathBuf,
        /// The directory whose owner was taken for this node.
        other: PathBuf,
        /// The name of this node in that directory.
        ours: String,
        /// The name in the directory.
        theirs: String,
    },
    /// It is a copy of another one.
    #[error(
        "data directory {path} is a copy of {other} (both are disk {disk}): take one of them out of --data-dir, and remove the \
         copy: it is stale from the first change on"
    )]
    Copied {
        /// The directory.
        path: PathBuf,
        /// The other one.
        other: PathBuf,
        /// Their common identity.
        disk: Uuid,
    },
    /// It belongs to another cluster than the others of this process.
    #[error(
        "data directory {path} belongs to cluster {theirs}, {other} to cluster {ours}: take one of them out of --data-dir"
    )]
    Mixed {
        /// The directory.
        path: PathBuf,
        /// The other one.
        other: PathBuf,
        /// The cluster of the other one.
        ours: String,
        /// The cluster in the directory.
        theirs: String,
    },
    /// It was written by another version of dfs.
    #[error(
        "data directory {path} has format {format}, this program knows format {FORMAT}: it is of another version of dfs; use that program, or an empty directory"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// It belongs to another cluster.
    #[error(
        "data directory {path} belongs to cluster {ours}, but the metadata nodes are of cluster {theirs}: check --meta, or \
         give an empty --data-dir"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster it is stamped with.
        ours: String,
        /// The cluster that was found.
        theirs: String,
    },
    /// The metadata that answers is older than what this node has seen.
    #[error(
        "data directory {path} has seen metadata of epoch {ours}, the metadata nodes that answer are of epoch {theirs}: they are \
         what was given up when the cluster was restored or rescued. Stop them, and check --meta"
    )]
    FormerMetadata {
        /// The directory.
        path: PathBuf,
        /// The epoch in the directory.
        ours: u64,
        /// The epoch of who answered.
        theirs: u64,
    },
    /// Metadata knows the directory under another number.
    #[error(
        "data directory {path} is stamped as node {ours}, but metadata calls it node {theirs}: metadata was reset or the \
         directory was copied; give an empty --data-dir"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// The number in the directory.
        ours: NodeId,
        /// The number given now.
        theirs: NodeId,
    },
    /// The identity file makes no sense.
    #[error(
        "{path} is damaged ({reason}): restore it from a backup, or remove the directory and let repair refill the node"
    )]
    Damaged {
        /// The identity file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The disk failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// What is wrong with a directory that is in use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// It is not there any more, is not the same any more, or is read-only: that does not pass by itself.
    Gone(String),
    /// It cannot be written to for lack of space, which is no failure.
    Full,
    /// An error that may pass.
    Error(String),
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::Full,
            Some(libc::EROFS) => Self::Gone("the file system is read-only".into()),
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO | libc::ESTALE) => {
                Self::Gone(error.to_string())
            }
            _ => Self::Error(error.to_string()),
        }
    }
}

/// The cluster and the number of a node, known after its first registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Membership {
    /// The cluster.
    pub cluster: ClusterId,
    /// The number in it.
    pub node: NodeId,
    /// Epoch of its metadata: grows when the metadata is restored or rescued.
    pub epoch: u64,
}

/// A data directory in use by this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    uuid: Uuid,
    disk: Uuid,
    name: String,
    membership: Option<Membership>,
    _lock: durable::DirLock,
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    kind: String,
    format: u32,
    node_uuid: String,
    /// Not there in directories of the first versions.
    disk_uuid: Option<String>,
    name: String,
    cluster_id: Option<String>,
    node_id: Option<u32>,
    #[serde(default)]
    epoch: u64,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl DataDir {
    /// Takes `path` into use, makes and stamps it if it is new.
    ///
    /// # Errors
    /// Why it cannot be used, with what to do.
    pub fn open(path: &Path, name: &str) -> Result<Self, DataDirError> {
        let claim = Claim::take(path)?;
        let uuid = claim.stamp.as_ref().map_or_else(Uuid::random, |stamp| stamp.uuid);
        let membership = claim.stamp.as_ref().and_then(|stamp| stamp.membership);
        claim.into_dir(uuid, name, membership)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's identity for ever.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The directory's own identity for ever.
    #[must_use]
    pub fn disk(&self) -> Uuid {
        self.disk
    }

    /// Cluster and number, if the node was registered before.
    #[must_use]
    pub fn membership(&self) -> Option<Membership> {
        self.membership
    }

    /// Metadata nodes as they were last heard. What cannot be read is as good as nothing: the configured addresses are there too.
    #[must_use]
    pub fn metadata(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path.join(METADATA)).unwrap_or_default();
        text.lines().map(str::to_owned).filter(|line| dfs_proto::transport::check_address(line).is_ok()).collect()
    }

    /// Remembers the metadata nodes.
    ///
    /// # Errors
    /// The disk failed.
    pub fn remember_metadata(&self, addresses: &[String]) -> Result<(), DataDirError> {
        let path = self.path.join(METADATA);
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        durable::write_file(&path, text.as_bytes()).map_err(|source| DataDirError::Io { action: "write", path, source })
    }

    /// Whether the directory is still the one that was taken into use, and can be written to; with `write` that is tried.
    ///
    /// # Errors
    /// What is wrong: see [`Trouble`].
    pub fn probe(&self, write: bool) -> Result<(), Trouble> {
        let path = self.path.join(IDENTITY);
        let failed = |error: io::Error| Trouble::of(&error);
        match read_identity(&self.path) {
            Ok(Some(stamp)) if stamp.disk == Some(self.disk) => {}
            Ok(Some(_)) => return Err(Trouble::Gone("another disk is in its place".into())),
            Ok(None) => return Err(Trouble::Gone(format!("{} is not there any more", path.display()))),
            Err(DataDirError::Io { source, .. }) => return Err(failed(source)),
            Err(error) => return Err(Trouble::Gone(error.to_string())),
        }
        if is_read_only(&self.path).map_err(failed)? {
            return Err(Trouble::of(&io::Error::from_raw_os_error(libc::EROFS)));
        }
        if !write {
            return Ok(());
        }
        let probe = self.path.join(PROBE);
        fs::write(&probe, self.disk.to_string()).map_err(failed)?;
        fs::File::open(&probe).and_then(|file| file.sync_all()).map_err(failed)
    }

    /// Takes over what a registration said.
    ///
    /// # Errors
    /// It contradicts the stamp, or the stamp cannot be written.
    pub fn join(&mut self, membership: Membership) -> Result<(), DataDirError> {
        match self.membership {
            Some(ours) if ours.cluster != membership.cluster => Err(DataDirError::OtherCluster {
                path: self.path.clone(),
                ours: ours.cluster.to_string(),
                theirs: membership.cluster.to_string(),
            }),
            Some(ours) if ours.epoch > membership.epoch => Err(DataDirError::FormerMetadata {
                path: self.path.clone(),
                ours: ours.epoch,
                theirs: membership.epoch,
            }),
            // Metadata that was restored may not know a node that came after the backup, and gives it a new number.
            Some(ours) if ours.epoch < membership.epoch => {
                self.stamp(Some(membership))?;
                self.membership = Some(membership);
                Ok(())
            }
            Some(ours) if ours.node != membership.node => {
                Err(DataDirError::OtherNode { path: self.path.clone(), ours: ours.node, theirs: membership.node })
            }
            Some(_) => Ok(()),
            None => {
                self.stamp(Some(membership))?;
                self.membership = Some(membership);
                Ok(())
            }
        }
    }

    fn stamp(&self, membership: Option<Membership>) -> Result<(), DataDirError> {
        let path = self.path.join(IDENTITY);
        let file = IdentityFile {
            kind: KIND.into(),
            format: FORMAT,
            node_uuid: self.uuid.to_string(),
            disk_uuid: Some(self.disk.to_string()),
            name: self.name.clone(),
            cluster_id: membership.map(|m| m.cluster.to_string()),
            node_id: membership.map(|m| m.node.0),
            epoch: membership.map_or(0, |m| m.epoch),
        };
        let text = toml::to_string(&file).expect("strings and numbers are TOML");
        if fs::read(&path).is_ok_and(|present| present == text.as_bytes()) {
            return Ok(());
        }
        durable::write_file(&path, text.as_bytes()).map_err(|source| DataDirError::Io { action: "write", path, source })
    }
}

/// Whether the file system of `path` takes no writes.
fn is_read_only(path: &Path) -> io::Result<bool> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut out = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path is a C string and `out` has room for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), out.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled all of it.
    let out = unsafe { out.assume_init() };
    Ok(out.f_flag & libc::ST_RDONLY != 0)
}

/// Refuses a directory with files but no identity, before anything is written to it.
fn check_foreign(path: &Path) -> Result<(), DataDirError> {
    if path.join(IDENTITY).exists() {
        return Ok(());
    }
    let failed = |source| DataDirError::Io { action: "list data directory", path: path.into(), source };
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !HARMLESS.iter().any(|harmless| name == *harmless) {
            return Err(DataDirError::Foreign { path: path.into(), found: name.to_string_lossy().into_owned() });
        }
    }
    Ok(())
}

/// What a stamped directory says of itself.
#[derive(Debug)]
pub(crate) struct Stamp {
    pub(crate) uuid: Uuid,
    pub(crate) disk: Option<Uuid>,
    pub(crate) name: String,
    pub(crate) membership: Option<Membership>,
}

/// A directory that is locked, with what it says of itself; `None`: it is new. Nothing is written but the lock.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) path: PathBuf,
    pub(crate) stamp: Option<Stamp>,
    lock: durable::DirLock,
}

impl Claim {
    /// Locks `path`, which is made if it is not there.
    ///
    /// # Errors
    /// Why it cannot be used, with what to do.
    pub(crate) fn take(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { action: "create data directory", path: path.into(), source };
        durable::create_dir_all(path).map_err(failed)?;
        Self::take_present(path)
    }

    /// Locks `path`, which is there.
    ///
    /// # Errors
    /// As [`Claim::take`].
    pub(crate) fn take_present(path: &Path) -> Result<Self, DataDirError> {
        let failed = |source| DataDirError::Io { action: "lock data directory", path: path.into(), source };
        check_foreign(path)?;
        let lock = durable::lock_dir(path).map_err(failed)?;
        let lock = lock.ok_or_else(|| DataDirError::Locked { path: path.into() })?;
        Ok(Self { path: path.into(), stamp: read_identity(path)?, lock })
    }

    /// Takes the directory into use as one of the node `uuid`.
    ///
    /// # Errors
    /// It cannot be stamped.
    pub(crate) fn into_dir(
        self,
        uuid: Uuid,
        name: &str,
        membership: Option<Membership>,
    ) -> Result<DataDir, DataDirError> {
        let disk = self.stamp.and_then(|stamp| stamp.disk).unwrap_or_else(Uuid::random);
        let dir = DataDir { path: self.path, uuid, disk, name: name.into(), membership, _lock: self.lock };
        dir.stamp(membership)?;
        crash::point(Point::IdentityStamped);
        Ok(dir)
    }
}

fn read_identity(dir: &Path) -> Result<Option<Stamp>, DataDirError> {
    let path = dir.join(IDENTITY);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DataDirError::Io { action: "read", path, source }),
    };
    let damaged = |reason: String| DataDirError::Damaged { path: path.clone(), reason };
    // The kind comes first: the files of other kinds have other fields.
    let kind: Kind = toml::from_str(&text).map_err(|e| damaged(e.message().into()))?;
    match kind.kind {
        Some(kind) if kind == KIND => {}
        Some(kind) => return Err(DataDirError::OtherKind { path: dir.into(), kind }),
        None => return Err(damaged("no kind in it".into())),
    }
    let file: IdentityFile = toml::from_str(&text).map_err(|e| damaged(e.message().into()))?;
    if file.format != FORMAT {
        return Err(DataDirError::Format { path: dir.into(), format: file.format });
    }
    let uuid = file.node_uuid.parse().map_err(|e| damaged(format!("{e}")))?;
    let disk = file.disk_uuid.map(|text| text.parse()).transpose().map_err(|e| damaged(format!("{e}")))?;
    let membership = match (file.cluster_id, file.node_id) {
        (Some(cluster), Some(node)) => {
            let cluster = cluster.parse().map_err(|e| damaged(format!("{e}")))?;
            Some(Membership { cluster, node: NodeId(node), epoch: file.epoch })
        }
        (None, None) => None,
        _ => return Err(damaged("cluster without node or node without cluster".into())),
    };
    Ok(Some(Stamp { uuid, disk, name: file.name, membership }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: Membership = Membership { cluster: ClusterId([1; 16]), node: NodeId(4), epoch: 0 };

    #[test]
    fn identity_survives_and_contradictions_are_refused() {
        let tmp = tempfile::tempdir().expect("tmp");
        let path = tmp.path().join("a/b");
        let mut dir = DataDir::open(&path, "storage-1").expect("fresh");
        let uuid = dir.uuid();
        assert_eq!(dir.membership(), None);
        dir.join(MEMBER).expect("first");
        drop(dir);
        let mut dir = DataDir::open(&path, "renamed").expect("again");
        assert_eq!((dir.uuid(), dir.membership()), (uuid, Some(MEMBER)));
        let other = Membership { cluster: ClusterId([2; 16]), ..MEMBER };
        assert!(matches!(dir.join(other), Err(DataDirError::OtherCluster { .. })));
        let other = Membership { node: NodeId(5), ..MEMBER };
        assert!(matches!(dir.join(other), Err(DataDirError::OtherNode { .. })));
        assert!(matches!(DataDir::open(&path, "second"), Err(DataDirError::Locked { .. })));
        // Metadata was restored: it may give another number, and the one before is refused from then on.
        let restored = Membership { node: NodeId(9), epoch: 3, ..MEMBER };
        dir.join(restored).expect("a later epoch");
        assert!(matches!(dir.join(MEMBER), Err(DataDirError::FormerMetadata { .. })));
        dir.remember_metadata(&["h:1".into(), "nonsense".into(), "h:2".into()]).expect("written");
        drop(dir);
        let dir = DataDir::open(&path, "again").expect("again");
        assert_eq!((dir.membership(), dir.metadata()), (Some(restored), vec!["h:1".to_owned(), "h:2".to_owned()]));
    }

    #[test]
    fn foreign_directories_are_refused_untouched() {
        let tmp = tempfile::tempdir().expect("tmp");
        fs::write(tmp.path().join("holiday.jpg"), b"x").expect("write");
        assert!(matches!(DataDir::open(tmp.path(), "s"), Err(DataDirError::Foreign { .. })));
        assert_eq!(fs::read_dir(tmp.path()).expect("list").count(), 1);
    }

    #[test]
    fn other_kinds_and_damage_are_refused() {
        for (text, expected) in [
            ("kind = \"meta\"\nraft_id = 1\n", "belongs to a meta node"),
            ("kind = 7", "damaged"),
            ("name = \"x\"", "damaged"),
            ("kind = \"storage\"\nformat = 9\nnode_uuid = \"\"\nname = \"\"\n", "format 9"),
            ("kind = \"storage\"\nformat = 2\nnode_uuid = \"zz\"\nname = \"\"\n", "damaged"),
        ] {
            let tmp = tempfile::tempdir().expect("tmp");
            fs::write(tmp.path().join(IDENTITY), text).expect("write");
            let error = DataDir::open(tmp.path(), "s").expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_root_of_a_file_system_is_fresh() {
        let tmp = tempfile::tempdir().expect("tmp");
        fs::create_dir(tmp.path().join("lost+found")).expect("mkdir");
        assert!(DataDir::open(tmp.path(), "s").is_ok());
    }
}
