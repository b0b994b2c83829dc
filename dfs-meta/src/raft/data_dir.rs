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
    /// The node was taken out of the cluster.
    #[error(
        "data directory {path} belongs to metadata node {name:?}, which was removed from its cluster: it must not come back \
         with what it knew then. To make this machine a member again, move the directory away, start the node with --join, \
         and run `dfsctl meta add {name} HOST:PORT`"
    )]
    Removed {
        /// The directory.
        path: PathBuf,
        /// The node.
        name: String,
    },
    /// A restore or a rescue was cut short.
    #[error(
        "data directory {path}: `dfs-meta {step}` was interrupted before it was done. Run it again with the same arguments"
    )]
    Unfinished {
        /// The directory.
        path: PathBuf,
        /// `restore` or `rescue`.
        step: String,
    },
    /// It belongs to the metadata that was given up when the cluster was restored or rescued.
    #[error(
        "data directory {path} is of the metadata that was replaced when the cluster was restored or rescued (epoch \
         {ours}; {witness} is of epoch {theirs}). Move it away, start the node with --join, and run `dfsctl meta add`"
    )]
    Former {
        /// The directory.
        path: PathBuf,
        /// Its epoch.
        ours: u64,
        /// That of the cluster.
        theirs: u64,
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
    /// Grows when the metadata is restored from a backup or rescued; nodes of different epochs have nothing in common.
    #[serde(default)]
    epoch: u64,
    /// The node was taken out of the cluster.
    #[serde(default)]
    removed: bool,
    /// `restore` or `rescue` while one of them is at work in this directory; else empty.
    #[serde(default)]
    unfinished: String,
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
        let dir = Self::take(path, me)?;
        let identity = dir.identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if identity.removed {
            return Err(DataDirError::Removed { path: path.to_owned(), name: identity.name });
        }
        if !identity.unfinished.is_empty() {
            return Err(DataDirError::Unfinished { path: path.to_owned(), step: identity.unfinished });
        }
        Ok(dir)
    }

    /// Name and id of the node that a directory belongs to; `None` if it is nobody's.
    pub(crate) fn owner(path: &Path) -> Result<Option<(String, u64)>, DataDirError> {
        let stamp = path.join(IDENTITY);
        match fs::read_to_string(&stamp) {
            Ok(text) => parse(path, &stamp, &text).map(|identity| Some((identity.name, identity.raft_id))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DataDirError::Io { path: stamp, source }),
        }
    }

    /// As [`DataDir::open`], whatever the stamp says about the past.
    pub(crate) fn take(path: &Path, me: &Member) -> Result<Self, DataDirError> {
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
            epoch: 0,
            removed: false,
            unfinished: String::new(),
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

    /// The epoch it is stamped with.
    pub(crate) fn epoch(&self) -> u64 {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).epoch
    }

    /// Stamps it with the cluster. Blocks on the disk.
    pub(crate) fn set_cluster(&self, cluster: ClusterId, epoch: u64) -> Result<(), DataDirError> {
        self.change(|identity| (identity.cluster, identity.epoch) = (cluster.to_string(), epoch))
    }

    /// Stamps it as that of a node that was removed: no process uses it again. Blocks on the disk.
    pub(crate) fn set_removed(&self) -> Result<(), DataDirError> {
        self.change(|identity| identity.removed = true)
    }

    /// Notes that `step` is at work here, or that nothing is. Blocks on the disk.
    pub(crate) fn set_unfinished(&self, step: &str) -> Result<(), DataDirError> {
        self.change(|identity| step.clone_into(&mut identity.unfinished))
    }

    /// What is at work here, if anything.
    pub(crate) fn unfinished(&self) -> String {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).unfinished.clone()
    }

    /// Last step of a restore or rescue: the directory is that of a full member of `cluster` in its new epoch. Blocks on the disk.
    pub(crate) fn found_anew(&self, cluster: ClusterId, epoch: u64) -> Result<(), DataDirError> {
        self.change(|identity| {
            (identity.cluster, identity.epoch) = (cluster.to_string(), epoch);
            (identity.complete, identity.removed) = (true, false);
            identity.unfinished.clear();
        })
    }

    /// The mistake when the cluster has gone on in a later epoch, as `witness` says.
    pub(crate) fn former(&self, theirs: u64, witness: String) -> DataDirError {
        DataDirError::Former { path: self.path.clone(), ours: self.epoch(), theirs, witness }
    }

    /// The mistake when the cluster has no such member any more.
    pub(crate) fn removed(&self) -> DataDirError {
        let name = self.identity.lock().unwrap_or_else(PoisonError::into_inner).name.clone();
        DataDirError::Removed { path: self.path.clone(), name }
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
        dir.set_cluster(cluster, 7).unwrap();
        dir.set_complete(true).unwrap();
        drop(dir);
        let dir = DataDir::open(&path, &me("meta-1")).unwrap();
        assert_eq!((dir.cluster(), dir.is_complete(), dir.epoch()), (Some(cluster), true, 7));
        drop(dir);
        assert!(matches!(DataDir::open(&path, &me("meta-2")), Err(DataDirError::OtherNode { .. })));
    }

    #[test]
    fn a_removed_node_and_an_unfinished_restore_do_not_start() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(tmp.path(), &me("meta-1")).unwrap();
        dir.set_unfinished("restore").unwrap();
        drop(dir);
        let error = DataDir::open(tmp.path(), &me("meta-1")).unwrap_err();
        assert!(matches!(&error, DataDirError::Unfinished { step, .. } if step == "restore"), "{error}");
        let dir = DataDir::take(tmp.path(), &me("meta-1")).unwrap();
        dir.found_anew(ClusterId::random(), 3).unwrap();
        drop(dir);
        let dir = DataDir::open(tmp.path(), &me("meta-1")).unwrap();
        dir.set_removed().unwrap();
        drop(dir);
        let error = DataDir::open(tmp.path(), &me("meta-1")).unwrap_err().to_string();
        assert!(error.contains("removed") && error.contains("--join"), "{error}");
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
