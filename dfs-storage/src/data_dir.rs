//! The data directory: whose it is, and that only one process uses it.
//!
//! ```text
//! DIR/IDENTITY   TOML: kind, format, cluster, uuid, number and name of the node, epoch of the metadata
//! DIR/METADATA   addresses of the metadata nodes as they were last heard, one a line; only a help to find them again
//! DIR/LOCK       locked while a process uses the directory
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
    name: String,
    membership: Option<Membership>,
    _lock: durable::DirLock,
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    kind: String,
    format: u32,
    node_uuid: String,
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
        let failed = |action| move |source| DataDirError::Io { action, path: path.into(), source };
        durable::create_dir_all(path).map_err(failed("create data directory"))?;
        check_foreign(path)?;
        let lock = durable::lock_dir(path).map_err(failed("lock data directory"))?;
        let lock = lock.ok_or_else(|| DataDirError::Locked { path: path.into() })?;
        let (uuid, membership) = match read_identity(path)? {
            Some((uuid, membership)) => (uuid, membership),
            None => (Uuid::random(), None),
        };
        let dir = Self { path: path.into(), uuid, name: name.into(), membership, _lock: lock };
        dir.stamp(membership)?;
        crash::point(Point::IdentityStamped);
        Ok(dir)
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

fn read_identity(dir: &Path) -> Result<Option<(Uuid, Option<Membership>)>, DataDirError> {
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
    let membership = match (file.cluster_id, file.node_id) {
        (Some(cluster), Some(node)) => {
            let cluster = cluster.parse().map_err(|e| damaged(format!("{e}")))?;
            Some(Membership { cluster, node: NodeId(node), epoch: file.epoch })
        }
        (None, None) => None,
        _ => return Err(damaged("cluster without node or node without cluster".into())),
    };
    Ok(Some((uuid, membership)))
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
