//! How a node becomes a member.
//!
//! ```text
//!              no data                              data
//!                 │                                   │
//!        ask all peers: Hello                         │
//!     a majority answers,   somebody knows            │
//!     nobody knows a        a cluster                 │
//!     cluster               │                         │
//!        │                  ▼                         │
//!        │             Joining: fed, no vote          │
//!        │                  │ caught up               │
//!        ▼                  ▼                         ▼
//!     Member  ◄─────────────┴─────────────────────► Member
//! ```
//!
//! **Forming.** The node with the lowest id among the configured peers writes the membership; the others wait for it. A node that
//! was started to be added to a cluster (`--join`) never forms one.
//!
//! **Joining.** A node that is not in the membership waits until it is added (module `members`); it has promised nothing, but
//! takes the same way. A node that lost its data has forgotten two kinds of promises: for whom it voted, and which entries it
//! acknowledged. Its id is still in the membership, so it would count towards majorities. It gets both back in the way of the
//! recovery protocol of Viewstamped Replication (Liskov and Cowling, "Viewstamped Replication Revisited", 2012, section 4.3):
//!
//! 1. As many *other* voters as make a majority tell the highest term they know. Every candidate that it may have voted for
//!    had told one of them. Among them must be the leader of that term, confirmed by a quorum round.
//! 2. It stores that leader's vote, so that it refuses older leaders, and starts to accept entries.
//! 3. It neither votes nor stands for election until it has applied all that the leader had in its log at that time. Whatever
//!    it acknowledged before is contained in that.
//!
//! The data directory says that joining is not complete, so a crash in between starts it again.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use dfs_common::{
    ClusterId,
    crash::{self, Point},
};
use dfs_proto::{
    transport::check_address,
    v1::{HelloRequest, HelloResponse},
};
use futures::future::join_all;
use openraft::{error::InitializeError, error::RaftError, storage::RaftLogStorage};

use super::{
    StartError,
    core::{Core, Phase},
    data_dir::DataDir,
    lease, members,
    network::Network,
    proposer,
    types::{Raft, Vote},
    watcher::{self, Found},
};
use crate::fsm::Command;

/// Pause between two rounds of Hello.
const PAUSE: Duration = Duration::from_millis(200);
/// A Hello is answered from memory, by a leader after a quorum round.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a leader looks whether its cluster still has no id.
const NAMING_PAUSE: Duration = Duration::from_millis(20);
/// Rounds of Hello between two lines in the log that say what is waited for.
const ROUNDS_PER_LINE: u32 = 50;
/// How long catching up is waited for before the leader is asked again how far it is.
const CATCH_UP_ROUND: Duration = Duration::from_secs(5);

/// What the data directory says about the past.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// There is none.
    Fresh,
    /// The node was being fed, or its log is gone.
    Joining,
    /// The node is a member.
    Established,
}

impl Origin {
    /// `blank`: neither log nor vote nor snapshot is there.
    pub(crate) fn of(dir: &DataDir, blank: bool) -> Self {
        match (dir.is_complete(), blank) {
            (true, true) if dir.cluster().is_some() => Self::Joining,
            (_, true) => Self::Fresh,
            (true, false) => Self::Established,
            (false, false) => Self::Joining,
        }
    }
}

/// Starts the consensus node of a member that has data.
pub(crate) async fn resume(core: &Arc<Core>) -> Result<(), StartError> {
    start_raft(core, true).await?;
    core.phase.send_replace(Phase::Member);
    core.tasks.spawn(members::stay(core.clone()));
    core.tasks.spawn(name_cluster(core.clone()));
    Ok(())
}

/// Brings a node without data, or without all of it, into the cluster.
pub(crate) async fn enter(core: Arc<Core>, origin: Origin) {
    let entered = async {
        match origin {
            Origin::Fresh if core.settings.join.is_empty() && form(&core).await? => {}
            Origin::Fresh | Origin::Joining | Origin::Established => join(&core).await?,
        }
        Ok::<_, StartError>(())
    };
    let entered = tokio::select! {
        () = core.cancel.cancelled() => return,
        entered = entered => entered,
    };
    match entered {
        Ok(()) => {
            core.tasks.spawn(members::stay(core.clone()));
            name_cluster(core).await;
        }
        Err(error) => core.fail(error.to_string()),
    }
}

async fn start_raft(core: &Arc<Core>, elect: bool) -> Result<Raft, StartError> {
    let config = core.settings.openraft(elect).validate().map_err(|e| StartError::Settings(e.to_string()))?;
    let vote = core.log.clone().read_vote().await.map_err(|e| StartError::Raft(e.to_string()))?.unwrap_or_default();
    let found = Found { term: vote.leader_id.term, last_index: core.log.last_index().unwrap_or(0) };
    let network = Network::new(core.peers.clone(), core.stands_in.clone());
    let id = core.settings.me.raft_id;
    let raft = Raft::new(id, Arc::new(config), network, core.log.clone(), core.replica.clone()).await;
    let raft = raft.map_err(|e| StartError::Raft(e.to_string()))?;
    let raft = core.raft.get_or_init(|| raft).clone();
    core.tasks.spawn(watcher::run(core.clone(), raft.clone(), found));
    Ok(raft)
}

/// Waits until it is clear whether there is a cluster. `true`: there was none, and this node helped to form it.
async fn form(core: &Arc<Core>) -> Result<bool, StartError> {
    let majority = core.settings.peers.len() / 2 + 1;
    let mut round = 0;
    loop {
        let mut answers = hello_all(core).await;
        if answers.iter().any(|(_, hello)| hello.initialized) {
            return Ok(false);
        }
        answers.retain(|(address, hello)| is_configured(core, address, hello));
        if answers.len() + 1 >= majority {
            break;
        }
        if round % ROUNDS_PER_LINE == 0 {
            let have = answers.len() + 1;
            tracing::info!(have, majority, "waiting for a majority of the metadata nodes to form the cluster");
        }
        round += 1;
        tokio::time::sleep(PAUSE).await;
    }
    stamp(core, |dir| dir.set_complete(true)).await?;
    crash::point(Point::FormStamped);
    let raft = start_raft(core, true).await?;
    core.phase.send_replace(Phase::Member);
    let me = core.settings.me.raft_id;
    if core.settings.peers.iter().all(|peer| peer.raft_id >= me) {
        tracing::info!(members = core.settings.peers.len(), "forming the cluster");
        match raft.initialize(core.initial_members()).await {
            // Another node's membership arrived first.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(error) => return Err(StartError::Raft(error.to_string())),
        }
    }
    Ok(true)
}

/// Whether it is the peer that this node's configuration has at that address.
fn is_configured(core: &Core, address: &str, hello: &HelloResponse) -> bool {
    let Some(peer) = core.settings.peers.iter().find(|peer| peer.address == *address) else { return false };
    let expected = (hello.raft_id, hello.name.as_str()) == (peer.raft_id, peer.name.as_str());
    if !expected {
        tracing::warn!(address, expected = peer.name, found = hello.name, "check --peers");
    }
    expected
}

/// Lets the cluster feed this node, and makes it a full member when it has caught up.
async fn join(core: &Arc<Core>) -> Result<(), StartError> {
    tracing::info!("this node has no data or not all of it: it is filled by the others before it takes part");
    stamp(core, |dir| dir.set_complete(false)).await?;
    crash::point(Point::JoinBegun);
    core.phase.send_replace(Phase::Joining);
    let mut round = 0;
    loop {
        let answers = hello_all(core).await;
        match recovered(core, &answers) {
            Ok(leader) => {
                if catch_up(core, leader).await? {
                    break;
                }
            }
            Err(missing) => {
                if round % ROUNDS_PER_LINE == 0 {
                    tracing::info!("joining waits: {missing}");
                }
                round += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    crash::point(Point::JoinCaughtUp);
    stamp(core, |dir| dir.set_complete(true)).await?;
    if let Some(raft) = core.raft.get() {
        raft.runtime_config().elect(true);
    }
    core.phase.send_replace(Phase::Member);
    tracing::info!("this node has caught up and takes part");
    Ok(())
}

/// Step 1 of joining: the leader's answer, or what is missing.
fn recovered<'a>(core: &Core, answers: &'a [(String, HelloResponse)]) -> Result<&'a HelloResponse, String> {
    let initialized: Vec<_> = answers.iter().map(|(_, hello)| hello).filter(|hello| hello.initialized).collect();
    let term = initialized.iter().map(|hello| hello.term).max().unwrap_or(0);
    if initialized.is_empty() {
        return Err("no member of a cluster answers".into());
    }
    let leader = initialized.iter().find(|hello| hello.leading && hello.term == term);
    let leader = leader.ok_or("there is no leader at the moment")?;
    let voters: Vec<u64> = leader.members.iter().filter(|member| member.voter).map(|member| member.raft_id).collect();
    let needed = voters.len() / 2 + 1;
    let have = initialized.iter().filter(|hello| voters.contains(&hello.raft_id)).count();
    // Who never voted has nothing to remember.
    if leader.member && have < needed {
        return Err(format!("{have} of {needed} other members answer"));
    }
    if leader.cluster_id.is_empty() {
        return Err("the cluster has no id yet".into());
    }
    if !leader.listed {
        let me = &core.settings.me;
        return Err(format!(
            "this node is not a member of the cluster yet; run `dfsctl meta add {} {}`",
            me.name, me.address
        ));
    }
    Ok(leader)
}

/// Steps 2 and 3. `false`: not there yet, and the leader should be asked again.
async fn catch_up(core: &Arc<Core>, leader: &HelloResponse) -> Result<bool, StartError> {
    if let Some(cluster) = ClusterId::from_slice(&leader.cluster_id) {
        adopt_cluster(core, cluster, leader.epoch, &leader.name).await?;
    }
    if core.raft.get().is_none() {
        let fail = |e: super::types::StorageError| StartError::Raft(e.to_string());
        let promised = Vote::new_committed(leader.term, leader.raft_id);
        let mut log = core.log.clone();
        if log.read_vote().await.map_err(fail)?.is_none_or(|vote| vote < promised) {
            log.save_vote(&promised).await.map_err(fail)?;
            crash::point(Point::JoinPromised);
        }
        start_raft(core, false).await?;
    }
    let Some(raft) = core.raft.get() else { return Ok(false) };
    let wait = raft.wait(Some(CATCH_UP_ROUND));
    let target = leader.last_log_index;
    tracing::info!(target, leader = leader.name, "catching up");
    Ok(wait.applied_index_at_least(Some(target), "joining").await.is_ok())
}

async fn adopt_cluster(core: &Arc<Core>, cluster: ClusterId, epoch: u64, witness: &str) -> Result<(), StartError> {
    if core.cluster.get().is_none() {
        core.cluster.set_epoch(epoch);
    }
    let ours = core.cluster.get_or_set(cluster);
    if ours != cluster {
        return Err(core.dir.other_cluster(ours, cluster, witness.to_owned()).into());
    }
    if core.cluster.epoch() != epoch {
        return Err(core.dir.former(epoch, witness.to_owned()).into());
    }
    if core.dir.cluster() != Some(cluster) {
        stamp(core, move |dir| dir.set_cluster(cluster, epoch)).await?;
    }
    Ok(())
}

pub(super) async fn stamp(
    core: &Core,
    f: impl FnOnce(&DataDir) -> Result<(), super::DataDirError> + Send + 'static,
) -> Result<(), StartError> {
    let dir = core.dir.clone();
    let stamped = dfs_proto::machine::spawn_blocking(move || f(&dir)).await;
    stamped.map_err(|e| StartError::Raft(e.to_string()))?.map_err(StartError::DataDir)
}

/// What this node tells the others of itself.
pub(super) fn hello(core: &Core) -> HelloRequest {
    let me = &core.settings.me;
    HelloRequest {
        raft_id: me.raft_id,
        name: me.name.clone(),
        address: me.address.clone(),
        established: *core.phase.borrow() == Phase::Member,
        cluster_id: core.cluster.get().map(|id| bytes::Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default(),
        epoch: core.cluster.epoch(),
        look: false,
    }
}

/// Asks whoever is at a known address; the answers with the address, and members that they name are known from then on.
pub(super) async fn hello_all(core: &Core) -> Vec<(String, HelloResponse)> {
    let asked = core.addresses().into_iter().map(|address| async move {
        let answer = core.peers.at(&address).hello(hello(core), HELLO_TIMEOUT).await.ok()?;
        // An address of this node under another spelling.
        (answer.raft_id != core.settings.me.raft_id).then_some((address, answer))
    });
    let answers: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
    // A follower's list may be old, but one of those on it knows better.
    let named = answers.iter().flat_map(|(_, hello)| &hello.members);
    let mut known = core.named.lock().unwrap_or_else(PoisonError::into_inner);
    known.extend(named.filter(|member| check_address(&member.address).is_ok()).map(|member| member.address.clone()));
    drop(known);
    answers
}

/// As the leader of a cluster without an id, proposes one; the first proposal wins.
async fn name_cluster(core: Arc<Core>) {
    while core.cluster.get().is_none() {
        if let (Some(raft), true) = (core.raft.get(), lease::leading(&core).is_some()) {
            let retention_ns = i64::try_from(core.settings.trash_retention.as_nanos()).unwrap_or(i64::MAX);
            let commands = vec![
                Command::InitCluster { cluster_id: ClusterId::random(), settings: core.settings.cluster },
                Command::SetTrashRetention { retention_ns },
            ];
            let named = tokio::select! {
                () = core.cancel.cancelled() => return,
                named = proposer::name_cluster(&core, raft, commands) => named,
            };
            if let Err(error) = named {
                tracing::info!(error, "naming the cluster is tried again");
            }
        }
        tokio::select! {
            () = core.cancel.cancelled() => return,
            () = tokio::time::sleep(NAMING_PAUSE) => {}
        }
    }
}
