//! Turns openraft's metrics into what the rest of the process wants to know: who leads, and whether this node may serve.
//!
//! A node may serve when it leads, has applied an entry of its own term, knows which cluster it serves, and a majority has
//! confirmed it lately. openraft
//! writes an entry at the start of each term. A leader that restarts may go on in its old term without a new one; then the log
//! it found at its start must have been applied too, because any of it may have been acknowledged.

use std::sync::{Arc, atomic::Ordering};

use openraft::{RaftMetrics, ServerState};

use super::{
    Leadership, Member,
    core::Core,
    proposer,
    types::{MetaNode, Raft, RaftId},
};
use crate::{fsm::State, store::LogStore};

/// Term and last entry of a log that the process found at its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    pub(crate) term: u64,
    pub(crate) last_index: u64,
}

/// What a log that has too many bytes needs: publications of large files are entries of megabytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cut {
    /// A snapshot: most of the log is newer than the last one.
    Snapshot,
    /// Removal of the entries that are kept behind the snapshot for followers that were away: those get the snapshot then.
    Purge,
}

impl Cut {
    /// `snapshot` is the index up to which there is one.
    fn due(log: &LogStore, snapshot: u64, bytes_max: u64) -> Option<Self> {
        if log.live_bytes() <= bytes_max {
            return None;
        }
        let is_recent = log.bytes_after(snapshot) <= bytes_max / 2;
        Some(if is_recent { Self::Purge } else { Self::Snapshot })
    }
}

/// What decides about leadership.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    term: u64,
    leads: bool,
    ready: bool,
    confirmed: bool,
    leader: Option<RaftId>,
}

impl Seen {
    fn of(core: &Core, metrics: &RaftMetrics<RaftId, MetaNode>, found: Found, confirmed: bool) -> Self {
        let term = metrics.current_term;
        let leads = metrics.state == ServerState::Leader;
        let complete = metrics.last_applied.is_some_and(|applied| {
            let of_this_term = applied.leader_id.term == term;
            of_this_term && (term != found.term || applied.index >= found.last_index)
        });
        let ready = complete && core.cluster.get().is_some();
        Self { term, leads, ready, confirmed, leader: metrics.current_leader }
    }

    fn serves(self) -> bool {
        self.leads && self.ready && self.confirmed
    }
}

/// Watches until the node stops.
pub(crate) async fn run(core: Arc<Core>, raft: Raft, found: Found) {
    let mut metrics = raft.metrics();
    let mut confirmed = core.confirmed.subscribe();
    let mut last = Seen::default();
    // What was asked for last, and at which snapshot: once is enough.
    let mut asked = None;
    loop {
        learn_cluster(&core).await;
        let (seen, failure, snapshot) = {
            let metrics = metrics.borrow_and_update();
            let failure = metrics.running_state.as_ref().err().map(ToString::to_string);
            let snapshot = metrics.snapshot.map_or(0, |id| id.index);
            (Seen::of(&core, &metrics, found, *confirmed.borrow_and_update()), failure, snapshot)
        };
        if let Some(failure) = failure {
            if !core.cancel.is_cancelled() {
                core.fail(format!("the consensus group has stopped: {failure}"));
            }
            return;
        }
        if seen != last {
            publish(&core, &raft, seen, last);
            last = seen;
        }
        if let Some(cut) = Cut::due(&core.log, snapshot, core.settings.log_bytes_max)
            && asked != Some((cut, snapshot))
        {
            asked = Some((cut, snapshot));
            // Each fails only when the node is stopping.
            match cut {
                Cut::Snapshot => drop(proposer::trigger_snapshot(&raft).await),
                Cut::Purge => drop(raft.trigger().purge_log(snapshot).await),
            }
        }
        let changed = tokio::select! {
            () = core.cancel.cancelled() => return,
            changed = metrics.changed() => changed,
            changed = confirmed.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn publish(core: &Core, raft: &Raft, seen: Seen, last: Seen) {
    core.serving_term.store(if seen.serves() { seen.term } else { 0 }, Ordering::Release);
    let leader = seen.leader.map(|id| member(core, raft, id));
    if seen.leader != last.leader || seen.term != last.term {
        let name = leader.as_ref().map_or("none", |leader| &leader.name);
        tracing::info!(term = seen.term, leader = name, "metadata leader");
    }
    if seen.serves() != last.serves() {
        tracing::info!(term = seen.term, serving = seen.serves(), "this node serves as the leader");
        let (agreed, configured) = (core.replica.peek(State::settings), core.settings.cluster);
        if seen.serves() && agreed != configured {
            let why =
                "replication, write quorum and chunk size are fixed when a cluster is formed; the options are ignored";
            tracing::warn!(?agreed, ?configured, "{why}");
        }
    }
    let now = Leadership { term: seen.term, is_leader: seen.serves(), leader };
    core.leadership.send_if_modified(|was| *was != now && std::mem::replace(was, now.clone()) != now);
}

fn member(core: &Core, raft: &Raft, id: RaftId) -> Member {
    let metrics = raft.metrics();
    let node = metrics.borrow().membership_config.membership().get_node(&id).cloned();
    core.peers.member(id, node.as_ref())
}

/// Stamps the data directory once the cluster has agreed on its id.
async fn learn_cluster(core: &Arc<Core>) {
    if core.cluster.get().is_some() {
        return;
    }
    let Some(cluster) = core.replica.cluster_id() else { return };
    let known = core.cluster.get_or_set(cluster);
    tracing::info!(%cluster, "this node belongs to a cluster");
    let (dir, epoch) = (core.dir.clone(), core.cluster.epoch());
    let stamped = dfs_proto::machine::spawn_blocking(move || dir.set_cluster(known, epoch)).await;
    if let Err(error) = stamped.map_err(|e| e.to_string()).and_then(|done| done.map_err(|e| e.to_string())) {
        core.fail(error);
    }
}
