//! What the parts of the node share.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dfs_common::ErrorCode;
use dfs_proto::status::RpcError;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Leadership,
    clock::Clock,
    data_dir::DataDir,
    lease::Lease,
    peers::{Cluster, Peers},
    proposer::Proposal,
    settings::Settings,
    state_machine::Replica,
    types::{MetaNode, Raft, RaftId},
};
use crate::store::LogStore;

/// A call waits this long at most for a handover of the leadership to end; handovers end much sooner.
const HANDOVER_WAIT: Duration = Duration::from_secs(2);

/// How far the node has got in becoming a full member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// It does not know yet whether there is a cluster; it answers nothing but Hello.
    Starting,
    /// It was wiped, or is new to a cluster that exists: it is fed, but has no say until it has what it may have
    /// acknowledged before.
    Joining,
    /// It is a full member.
    Member,
}

/// The shared parts.
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) dir: Arc<DataDir>,
    pub(crate) cluster: Cluster,
    pub(crate) peers: Arc<Peers>,
    pub(crate) log: LogStore,
    pub(crate) replica: Replica,
    pub(crate) clock: Clock,
    /// Set once the node knows how it starts.
    pub(crate) raft: OnceLock<Raft>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) lease: Lease,
    /// Whether the lease held recently.
    pub(crate) confirmed: watch::Sender<bool>,
    pub(crate) leadership: watch::Sender<Leadership>,
    /// The term in which this node stands for election because the leader before asked it to, 0 if none: its vote requests say
    /// so. See the module `handover`.
    pub(crate) stands_in: Arc<AtomicU64>,
    /// Whether this node is handing its leadership over: calls wait until it is clear who leads.
    pub(crate) handing_over: watch::Sender<bool>,
    /// Held while the membership is changed: one change at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// Somebody says that the membership has changed.
    pub(crate) look: Notify,
    /// Addresses of members that others named, besides those of the own configuration.
    pub(crate) named: Mutex<BTreeSet<String>>,
    /// The term in which this node may serve, 0 if it may not.
    pub(crate) serving_term: AtomicU64,
    pub(crate) proposals: mpsc::Sender<Proposal>,
    /// Why the node must stop.
    pub(crate) fatal: watch::Sender<Option<String>>,
    pub(crate) cancel: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Core {
    /// The error for a call that only the leader answers.
    pub(crate) fn not_leader(&self) -> RpcError {
        let leadership = self.leadership.borrow();
        if leadership.is_leader {
            // It leads as far as it knows, but could not confirm it.
            return RpcError::new(ErrorCode::Unavailable, "the leader is being replaced");
        }
        let leader = leadership.leader.as_ref().filter(|leader| leader.raft_id != self.settings.me.raft_id);
        let mut error = RpcError::from(ErrorCode::NotLeader);
        error.leader = leader.map(|leader| leader.address.clone());
        error
    }

    /// The term in which this node may serve now.
    ///
    /// # Errors
    /// What the caller is answered if it may not.
    pub(crate) fn serving(&self) -> Result<u64, RpcError> {
        match self.serving_term.load(Ordering::Acquire) {
            0 if self.leads() => Err(RpcError::new(ErrorCode::Unavailable, "the leader is not ready yet")),
            0 => Err(self.not_leader()),
            term => Ok(term),
        }
    }

    /// Waits while the leadership is being handed over: the caller then learns of the new leader, instead of an error.
    pub(crate) async fn settled(&self) {
        if *self.handing_over.borrow() {
            let mut changes = self.handing_over.subscribe();
            // Afterwards the call is answered by what holds then, whichever way the wait ended.
            drop(tokio::time::timeout(HANDOVER_WAIT, changes.wait_for(|now| !now)).await);
        }
    }

    /// Every address at which a metadata node may be, except this one's own.
    pub(crate) fn addresses(&self) -> BTreeSet<String> {
        let settings = &self.settings;
        let mut all = self.named.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.extend(settings.peers.iter().map(|peer| peer.address.clone()));
        all.extend(settings.join.iter().cloned());
        if let Some(raft) = self.raft.get() {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            let members = metrics.membership_config.nodes().filter(|(id, _)| **id != settings.me.raft_id);
            all.extend(members.map(|(id, node)| self.peers.member(*id, Some(node)).address));
        }
        all.remove(&settings.me.address);
        all
    }

    /// Whether this node is the leader as far as it knows, ready or not.
    fn leads(&self) -> bool {
        self.leadership.borrow().leader.as_ref().is_some_and(|leader| leader.raft_id == self.settings.me.raft_id)
    }

    /// Ends the node, with a message for the person who runs it.
    pub(crate) fn fail(&self, message: String) {
        self.fatal.send_if_modified(|fatal| fatal.is_none() && fatal.replace(message).is_none());
    }

    /// All members in openraft's form.
    pub(crate) fn initial_members(&self) -> std::collections::BTreeMap<RaftId, MetaNode> {
        let node = |peer: &super::Member| MetaNode { name: peer.name.clone(), address: peer.address.clone() };
        self.settings.peers.iter().map(|peer| (peer.raft_id, node(peer))).collect()
    }
}
