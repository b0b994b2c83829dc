//! Making the data directory of the first node of a cluster that goes on from an older state: restored from a backup, or rescued
//! from the one member that is left. Done by a program of its own while no node runs on the directory.
//!
//! ```text
//! stamp: unfinished ── snapshot with this node as the only member ── log: vote, purged ── stamp: member, new epoch
//! ```
//!
//! | death between | what happens |
//! |---|---|
//! | stamp "unfinished" and snapshot, snapshot and log, log and last stamp | no node starts on the directory; the same command again starts over (restore) or goes on from what is there (rescue) |
//!
//! The new epoch keeps every node of the former cluster out: they and this one refuse each other's messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use dfs_common::{
    ClusterId,
    backup::{self, BackupError},
    crash::{self, Point},
};
use openraft::{
    CommittedLeaderId, Membership,
    storage::{RaftLogReader as _, RaftLogStorage as _, RaftStateMachine as _},
};

use super::{
    DataDirError, Member, StartError,
    data_dir::DataDir,
    state_machine::Replica,
    types::{LogId, MetaNode, SnapshotMeta, StoredMembership, Vote},
};
use crate::{
    fsm::{Restored, SnapshotError, State},
    store::{Head, LogStore, SnapshotDir, StoreError},
};

/// The directory was not made.
#[derive(Debug, thiserror::Error)]
pub enum AnewError {
    /// The backup.
    #[error("{path}: {source}")]
    Backup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BackupError,
    },
    /// The state in the backup.
    #[error("{path}: {source}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SnapshotError,
    },
    /// The directory is in use for something.
    #[error(
        "data directory {path} has data of a metadata node already: a restore never overwrites any. Give a new directory"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Nothing can be rescued from it.
    #[error("data directory {path} holds no metadata of a cluster: there is nothing to rescue")]
    Nothing {
        /// The directory.
        path: PathBuf,
    },
    /// The directory or what is in it.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The disk.
    #[error("{path}: {source}")]
    Io {
        /// What was accessed.
        path: PathBuf,
        /// How it failed.
        source: std::io::Error,
    },
}

impl From<DataDirError> for AnewError {
    fn from(error: DataDirError) -> Self {
        Self::Start(error.into())
    }
}

impl From<StoreError> for AnewError {
    fn from(error: StoreError) -> Self {
        Self::Start(error.into())
    }
}

fn raft(error: impl ToString) -> AnewError {
    AnewError::Start(StartError::Raft(error.to_string()))
}

/// What a directory was made from.
struct Origin {
    state: State,
    last: LogId,
    now_ns: i64,
    cluster: ClusterId,
    epoch: u64,
}

/// Makes the data directory of `me` from the backup at `from`. Returns what the backup says of itself and the new epoch.
///
/// # Errors
/// The backup is damaged, or the directory has data.
pub async fn restore(from: &Path, data_dir: &Path, me: &Member) -> Result<(backup::Head, u64), AnewError> {
    let bad = |source: BackupError| AnewError::Backup { path: from.to_owned(), source };
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| AnewError::Io { path, source }
    };
    // All of it is checked before anything is made.
    let (head, _) = backup::verify(fs::File::open(from).map_err(io(from))?).map_err(bad)?;
    let mut file = std::io::BufReader::new(fs::File::open(from).map_err(io(from))?);
    backup::skip_head(&mut file).map_err(bad)?;
    let state = State::read_snapshot(&mut file).map_err(|source| AnewError::State { path: from.to_owned(), source })?;
    let cluster = state.cluster_id().ok_or_else(|| bad(BackupError::Damaged("it names no cluster")))?;
    let is_new = !data_dir.join("IDENTITY").exists();
    let dir = DataDir::take(data_dir, me)?;
    if !is_new && dir.unfinished() != "restore" {
        return Err(AnewError::NotEmpty { path: data_dir.to_owned() });
    }
    dir.set_unfinished("restore")?;
    for part in ["raft", "snapshots"].map(|part| data_dir.join(part)) {
        if part.exists() {
            fs::remove_dir_all(&part).map_err(io(&part))?;
        }
    }
    let last = LogId::new(CommittedLeaderId::new(head.last_term, me.raft_id), head.last_index);
    let origin = Origin { state, last, now_ns: head.created_ns, cluster, epoch: head.epoch };
    let restored = Restored { as_of_ns: head.created_ns, done_ns: unix_now_ns(), rescued: false };
    let epoch = found(&dir, me, origin, restored).await?;
    Ok((head, epoch))
}

/// What is left in a data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remains {
    /// The node it belongs to, at the address that the membership has for it.
    pub me: Member,
    /// The cluster.
    pub cluster: ClusterId,
    /// The voters that it knew, itself included.
    pub voters: Vec<String>,
    /// Last entry of the log.
    pub last_index: u64,
    /// Its term.
    pub last_term: u64,
    /// Entry up to which a majority is known to have agreed.
    pub committed_index: u64,
    /// The leader's time in the last entry that changed something, nanoseconds since the Unix epoch.
    pub last_ns: i64,
    /// Whether the node was a full member; else it may have forgotten what it had acknowledged.
    pub complete: bool,
    /// Things with a name.
    pub inodes: u64,
    /// Chunks of files.
    pub chunks: u64,
}

/// What a rescue from `data_dir` would go on from. Changes nothing but what every start does.
///
/// # Errors
/// The directory cannot be read.
pub async fn remains(data_dir: &Path) -> Result<Remains, AnewError> {
    let dir = take(data_dir)?;
    let (remains, _, log) = look(&dir).await?;
    log.close().await.map_err(raft)?;
    Ok(remains)
}

/// Makes the node whose directory this is the only member of its cluster, in a new epoch, which is returned. `address` is where it will
/// be reached.
///
/// # Errors
/// The directory cannot be read or written.
pub async fn rescue(data_dir: &Path, address: Option<&str>) -> Result<u64, AnewError> {
    let dir = take(data_dir)?;
    let (remains, origin, log) = look(&dir).await?;
    log.close().await.map_err(raft)?;
    drop(log);
    let mut me = remains.me;
    if let Some(address) = address {
        address.clone_into(&mut me.address);
    }
    let restored = Restored { as_of_ns: remains.last_ns, done_ns: unix_now_ns(), rescued: true };
    dir.set_unfinished("rescue")?;
    found(&dir, &me, origin, restored).await
}

fn take(data_dir: &Path) -> Result<DataDir, AnewError> {
    let (name, raft_id) = DataDir::owner(data_dir)?.ok_or_else(|| nothing(data_dir))?;
    let me = Member { raft_id, name, address: String::new() };
    Ok(DataDir::take(data_dir, &me)?)
}

fn nothing(path: &Path) -> AnewError {
    AnewError::Nothing { path: path.to_owned() }
}

/// Replays the whole log, agreed on or not: an entry that was not may have been, and then it was acknowledged.
async fn look(dir: &DataDir) -> Result<(Remains, Origin, LogStore), AnewError> {
    let mut log = LogStore::open(&dir.path().join("raft"))?;
    let path = dir.path().join("snapshots");
    let snapshots = Arc::new(SnapshotDir::open(&path)?);
    let mut replica = Replica::open(snapshots, &path, log.purged_index())?;
    let next = replica.applied().map_or(0, |id| id.index + 1);
    let end = log.last_index().map_or(next, |last| last + 1);
    let entries = if next < end { log.try_get_log_entries(next..end).await.map_err(raft)? } else { Vec::new() };
    replica.apply(entries).await.map_err(raft)?;
    let (last, membership) = replica.applied_state().await.map_err(raft)?;
    let (state, _) = replica.freeze();
    let (Some(last), Some(cluster)) = (last, state.cluster_id()) else { return Err(nothing(dir.path())) };
    let committed = log.read_committed().await.map_err(raft)?;
    let (name, raft_id) = DataDir::owner(dir.path())?.ok_or_else(|| nothing(dir.path()))?;
    let members = membership.membership();
    let address = members.get_node(&raft_id).map(|node| node.address.clone()).unwrap_or_default();
    let counters = state.counters();
    let remains = Remains {
        me: Member { raft_id, name, address },
        cluster,
        voters: members.voter_ids().filter_map(|id| Some(members.get_node(&id)?.name.clone())).collect(),
        last_index: last.index,
        last_term: last.leader_id.term,
        committed_index: committed.map_or(0, |id| id.index).max(next.saturating_sub(1)),
        last_ns: replica.now_ns(),
        complete: dir.is_complete(),
        inodes: counters.inodes,
        chunks: counters.chunks,
    };
    let origin = Origin { state, last, now_ns: replica.now_ns(), cluster, epoch: dir.epoch() };
    Ok((remains, origin, log))
}

/// The steps that both have in common.
async fn found(dir: &DataDir, me: &Member, origin: Origin, restored: Restored) -> Result<u64, AnewError> {
    let Origin { mut state, last, now_ns, cluster, epoch } = origin;
    crash::point(Point::AnewBegun);
    state.go_on_from(last.index, restored);
    let node = MetaNode { name: me.name.clone(), address: me.address.clone() };
    let membership = Membership::new(vec![BTreeSet::from([me.raft_id])], BTreeMap::from([(me.raft_id, node)]));
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), membership),
        snapshot_id: format!("{}-anew", last.index),
    };
    let snapshots = SnapshotDir::open(&dir.path().join("snapshots"))?;
    snapshots.write(&Head { meta, now_ns: now_ns.max(restored.done_ns) }, &state)?;
    crash::point(Point::AnewSnapshot);
    let mut log = LogStore::open(&dir.path().join("raft"))?;
    let voted = log.read_vote().await.map_err(raft)?.map_or(0, |vote| vote.leader_id.term);
    log.save_vote(&Vote::new(voted.max(last.leader_id.term) + 1, me.raft_id)).await.map_err(raft)?;
    crash::point(Point::AnewVoted);
    log.purge(last).await.map_err(raft)?;
    log.close().await.map_err(raft)?;
    crash::point(Point::AnewPurged);
    // By the clock, so that of two restores from one backup the later one wins.
    let by_clock = u64::try_from(restored.done_ns / 1_000_000).unwrap_or(0);
    let epoch = by_clock.max(epoch + 1);
    dir.found_anew(cluster, epoch)?;
    Ok(epoch)
}

fn unix_now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
