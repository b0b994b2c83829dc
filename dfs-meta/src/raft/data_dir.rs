//! The data directory: whose it is, and that only one process uses it.
//!
//! ```text
//! DIR/IDENTITY                 TOML, see below
//! DIR/LOCK                     locked while a process uses the directory
//! DIR/raft, DIR/snapshots      see the module store
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use dfs_common::{ClusterId, durable};
use serde::{Deserialize, Serialize};

use super::Member;

const IDENTITY: &str = "IDENTITY";
const KIND: &str = "metadata";
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
    #[error("data directory {path} belongs to a {kind} node of dfs: give the metadata node its own --data-dir")]
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
    /// It belongs to another node.
    #[error(
        "data directory {path} belongs to metadata node {ours:?} (raft id {ours_id}), this one is {theirs:?} (raft id \
         {theirs_id}): check --name and --data-dir"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Name it is stamped with.
        ours: String,
        /// Id it is stamped with.
        ours_id: u64,
        /// Name of this process.
        theirs: String,
        /// Id of this process.
        theirs_id: u64,
    },
    /// It belongs to another cluster.
    #[error(
        "data directory {path} belongs to cluster {ours}, but {witness} is of cluster {theirs}: check --peers, or give the \
         right --data-dir"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster it is stamped with.
        ours: ClusterId,
        /// The cluster that was found.
        theirs: ClusterId,
        /// Who said so.
        witness: String,
    },
    /// The stamp is unreadable.
    #[error(
        "{path} is damaged: {reason}. Restore it, or move the data directory away so that this node is filled again"
    )]
    Damaged {
        /// The stamp.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The disk failed.
    #[error("data directory {path}: {source}")]
    Io {
        /// What was accessed.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
}

/// The stamp.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Identity {
    kind: String,
    format: u32,
    name: String,
    raft_id: u64,
    /// Hexadecimal; empty until the cluster is known.
    #[serde(default)]
    cluster: String,
    /// Whether the node is a full member: it has never promised anything that is not in this directory.
    #[serde(default)]
    complete: bool,
}

/// The locked directory.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    identity: Mutex<Identity>,
    _lock: durable::DirLock,
}

impl DataDir {
    /// Takes the directory for `me`, making and stamping it if it is new. Blocks on the disk.
    pub(crate) fn open(path: &Path, me: &Member) -> Result<Self, DataDirError> {
        let io = |source| DataDirError::Io { path: path.to_owned(), source };
        durable::create_dir_all(path).map_err(io)?;
        // The stamp is looked at before the lock file is made in somebody else's directory.
        let stamp = path.join(IDENTITY);
        let found = match fs::read_to_string(&stamp) {
            Ok(text) => Some(parse(path, &stamp, &text)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                check_empty(path)?;
                None
            }
            Err(e) => return Err(io(e)),
        };
        let Some(lock) = durable::lock_dir(path).map_err(io)? else {
            return Err(DataDirError::Locked { path: path.to_owned() });
        };
        let fresh = Identity {
            kind: KIND.into(),
            format: FORMAT,
            name: me.name.clone(),
            raft_id: me.raft_id,
            cluster: String::new(),
            complete: false,
        };
        let is_new = found.is_none();
        let identity = found.unwrap_or(fresh);
        if (identity.name.as_str(), identity.raft_id) != (me.name.as_str(), me.raft_id) {
            return Err(DataDirError::OtherNode {
                path: path.to_owned(),
                ours: identity.name,
                ours_id: identity.raft_id,
                theirs: me.name.clone(),
                theirs_id: me.raft_id,
            });
        }
        let dir = Self { path: path.to_owned(), identity: Mutex::new(identity), _lock: lock };
        if is_new {
            dir.change(|_| {})?;
        }
        Ok(dir)
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The cluster it is stamped with.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).cluster.parse().ok()
    }

    /// Whether the node is a full member.
    pub(crate) fn is_complete(&self) -> bool {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).complete
    }

    /// Stamps it with the cluster. Blocks on the disk.
    pub(crate) fn set_cluster(&self, cluster: ClusterId) -> Result<(), DataDirError> {
        self.change(|identity| identity.cluster = cluster.to_string())
    }

    /// Stamps it as that of a full member, or not. Blocks on the disk.
    pub(crate) fn set_complete(&self, complete: bool) -> Result<(), DataDirError> {
        self.change(|identity| identity.complete = complete)
    }

    /// The mistake when `witness` is of another cluster.
    pub(crate) fn other_cluster(&self, ours: ClusterId, theirs: ClusterId, witness: String) -> DataDirError {
        DataDirError::OtherCluster { path: self.path.clone(), ours, theirs, witness }
    }

    fn change(&self, f: impl FnOnce(&mut Identity)) -> Result<(), DataDirError> {
        let stamp = self.path.join(IDENTITY);
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut identity);
        let text = toml::to_string(&*identity)
            .map_err(|e| DataDirError::Damaged { path: stamp.clone(), reason: e.to_string() })?;
        durable::write_file(&stamp, text.as_bytes()).map_err(|source| DataDirError::Io { path: stamp, source })
    }
}

fn parse(path: &Path, stamp: &Path, text: &str) -> Result<Identity, DataDirError> {
    /// What stamps of every kind and format have.
    #[derive(Deserialize)]
    struct Kind {
        kind: String,
        format: u32,
    }
    let damaged = |e: toml::de::Error| DataDirError::Damaged { path: stamp.to_owned(), reason: e.message().to_owned() };
    let Kind { kind, format } = toml::from_str(text).map_err(damaged)?;
    if kind != KIND {
        return Err(DataDirError::OtherKind { path: path.to_owned(), kind });
    }
    if format != FORMAT {
        return Err(DataDirError::Format { path: path.to_owned(), format });
    }
    let identity: Identity = toml::from_str(text).map_err(damaged)?;
    if !identity.cluster.is_empty()
        && let Err(e) = identity.cluster.parse::<ClusterId>()
    {
        return Err(DataDirError::Damaged { path: stamp.to_owned(), reason: e.to_string() });
    }
    Ok(identity)
}

fn check_empty(path: &Path) -> Result<(), DataDirError> {
    let io = |source| DataDirError::Io { path: path.to_owned(), source };
    for entry in fs::read_dir(path).map_err(io)? {
        let found = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        if !HARMLESS.contains(&found.as_str()) {
            return Err(DataDirError::Foreign { path: path.to_owned(), found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me(name: &str) -> Member {
        Member { raft_id: 1, name: name.into(), address: "127.0.0.1:1".into() }
    }

    #[test]
    fn a_directory_is_taken_once_and_remembers() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("a/b");
        let dir = DataDir::open(&path, &me("meta-1")).unwrap();
        assert!(matches!(DataDir::open(&path, &me("meta-1")), Err(DataDirError::Locked { .. })));
        let cluster = ClusterId::random();
        dir.set_cluster(cluster).unwrap();
        dir.set_complete(true).unwrap();
        drop(dir);
        let dir = DataDir::open(&path, &me("meta-1")).unwrap();
        assert_eq!((dir.cluster(), dir.is_complete()), (Some(cluster), true));
        drop(dir);
        assert!(matches!(DataDir::open(&path, &me("meta-2")), Err(DataDirError::OtherNode { .. })));
    }

    #[test]
    fn directories_of_others_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        fs::write(tmp.path().join("thesis.tex"), "x").unwrap();
        assert!(matches!(DataDir::open(tmp.path(), &me("meta-1")), Err(DataDirError::Foreign { .. })));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "nothing was left behind");
        for (text, want) in [
            ("kind = \"storage\"\nformat = 1\nuuid = \"\"", "storage node"),
            ("kind = \"metadata\"\nformat = 9", "another version"),
            ("kind = 7", "damaged"),
            ("kind = \"metadata\"\nformat = 2\nname = \"meta-1\"\nraft_id = 1\ncluster = \"zz\"", "damaged"),
        ] {
            fs::write(tmp.path().join(IDENTITY), text).unwrap();
            let error = DataDir::open(tmp.path(), &me("meta-1")).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
