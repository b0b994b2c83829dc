//! What the rest of the process sees of the consensus group.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use dfs_common::{ClusterId, ErrorCode, SessionId};
use dfs_proto::status::RpcError;
use openraft::ServerState;
use tokio::sync::{mpsc, watch};

use super::{
    Step,
    changes::{News, Position},
    core::{Core, Phase},
    handover, members, proposer,
    types::{LogId, MetaNode, RaftId},
};
use crate::fsm::{Command, Outcome, State};

/// A metadata node as the membership names it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Member {
    /// Its id in the consensus group.
    pub raft_id: u64,
    /// Its name, like `meta-1`.
    pub name: String,
    /// `host:port` under which clients and other nodes reach it.
    pub address: String,
}

/// Who leads, as this node knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    /// Grows with every election.
    pub term: u64,
    /// Whether this node leads and may serve: it has applied an entry of its own term, so its state holds everything that was
    /// ever acknowledged. Turns false when another leader is known or no majority has answered for a while.
    pub is_leader: bool,
    /// The leader, if one is known.
    pub leader: Option<Member>,
}

/// Figures of this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// This node.
    pub me: Member,
    /// `leader`, `candidate`, `follower`, `learner`, `joining` or `stopped`.
    pub role: &'static str,
    /// Current term.
    pub term: u64,
    /// Index of the last entry in the log, 0 if there is none.
    pub last_log_index: u64,
    /// Index of the last entry applied.
    pub applied_index: u64,
    /// Index up to which the newest snapshot goes.
    pub snapshot_index: u64,
    /// Index up to which the log was purged.
    pub purged_index: u64,
    /// Bytes that the log takes on disk.
    pub log_disk_bytes: u64,
    /// The leader, if one is known.
    pub leader: Option<Member>,
}

/// A member of the group as this node sees it; the figures of progress are known to the leader only.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberStatus {
    /// Who.
    pub member: Member,
    /// Whether it is the leader.
    pub leader: bool,
    /// Whether it votes.
    pub voter: bool,
    /// Last entry that the leader knows it to have, 0 if unknown.
    pub matched_index: u64,
    /// Entries it is behind the leader's last.
    pub lag: u64,
    /// Whether it answered the leader within the last election timeout.
    pub reachable: bool,
}

/// The consensus group as the rest of the process uses it. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(super) core: Arc<Core>,
}

impl Handle {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Has `command` agreed on and applied, and returns what came out of it.
    ///
    /// # Errors
    /// - `NotLeader` with the leader's address, if known: nothing happened.
    /// - `Unavailable`, `Overloaded`: nothing happened.
    /// - `Indeterminate`: the command may still take effect; repeat it if it is idempotent.
    ///
    /// # Cancel safety
    /// A dropped call may still take effect.
    pub async fn propose(&self, command: Command) -> Result<Outcome, RpcError> {
        proposer::propose(&self.core, command).await
    }

    /// Reads the leader's state linearizably: what `f` sees holds everything that was acknowledged before the call. `f` runs
    /// under the state's read lock on the calling task, so it must be short and must not block; it may run although the result
    /// is then refused.
    ///
    /// # Errors
    /// `NotLeader` with the leader's address, if known; `Unavailable` if no majority confirmed the leadership.
    pub async fn read<R>(&self, f: impl FnOnce(&State) -> R) -> Result<R, RpcError> {
        let core = &self.core;
        core.settled().await;
        let term = core.serving()?;
        let result = core.replica.peek(f);
        // The order matters: a lease that holds now held when the state was read. See the module `lease`.
        if !core.lease.holds() {
            core.lease.renew(core).await?;
        }
        if core.serving()? == term { Ok(result) } else { Err(core.not_leader()) }
    }

    /// Reads this node's own state, however old. For control loops that check again when they propose.
    pub fn peek<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        self.core.replica.peek(f)
    }

    /// The cluster's time as this node would tell it, nanoseconds since the Unix epoch: see the module `clock`.
    #[must_use]
    pub fn now_ns(&self) -> i64 {
        self.core.clock.now_ns(self.core.replica.now_ns())
    }

    /// Who leads, and every change of it.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.core.leadership.subscribe()
    }

    /// Number of the newest event in this node's own state, and every change of it.
    #[must_use]
    pub fn newest_event(&self) -> watch::Receiver<u64> {
        self.core.replica.newest_event()
    }

    /// The latest changes of that which clients keep: what happened behind `position` by others than `session`, at most `limit`
    /// changes. Called within [`Handle::read`] it holds everything that was acknowledged before.
    #[must_use]
    pub fn changes_since(&self, position: Position, session: SessionId, limit: usize) -> News {
        self.core.replica.changes.since(position, session, limit)
    }

    /// Fires with every change that [`Handle::changes_since`] can tell of.
    #[must_use]
    pub fn newest_change(&self) -> watch::Receiver<u64> {
        self.core.replica.changes.newest()
    }

    /// The error that a call to a node that does not lead gets: `NotLeader` with the leader's address, if known.
    #[must_use]
    pub fn not_leader(&self) -> RpcError {
        self.core.not_leader()
    }

    /// Figures of this node.
    #[must_use]
    pub fn status(&self) -> Status {
        let core = &self.core;
        let mut status = Status {
            me: core.settings.me.clone(),
            role: "joining",
            log_disk_bytes: core.log.size_bytes(),
            leader: core.leadership.borrow().leader.clone(),
            ..Status::default()
        };
        let Some(raft) = core.raft.get() else { return status };
        let metrics = raft.metrics();
        let metrics = metrics.borrow();
        status.term = metrics.current_term;
        status.last_log_index = metrics.last_log_index.unwrap_or(0);
        status.applied_index = index(metrics.last_applied);
        status.snapshot_index = index(metrics.snapshot);
        status.purged_index = index(metrics.purged);
        if *core.phase.borrow() == Phase::Member {
            status.role = match metrics.state {
                ServerState::Leader => "leader",
                ServerState::Candidate => "candidate",
                ServerState::Follower => "follower",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "stopped",
            };
        }
        status
    }

    /// All members as this node sees them, ordered by raft id.
    #[must_use]
    pub fn members(&self) -> Vec<MemberStatus> {
        let core = &self.core;
        let Some(raft) = core.raft.get() else { return Vec::new() };
        let metrics = raft.metrics().borrow().clone();
        let me = core.settings.me.raft_id;
        let last = metrics.last_log_index.unwrap_or(0);
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
        let describe = |(id, node): (&RaftId, &MetaNode)| {
            let progress = metrics.replication.as_ref().and_then(|progress| progress.get(id).copied()).flatten();
            let matched_index = if *id == me { last } else { index(progress) };
            let silent = core.peers.silent(*id);
            MemberStatus {
                member: core.peers.member(*id, Some(node)),
                leader: metrics.current_leader == Some(*id),
                voter: voters.contains(id),
                matched_index,
                lag: if metrics.replication.is_some() { last.saturating_sub(matched_index) } else { 0 },
                reachable: *id == me || silent.is_some_and(|silent| silent < core.settings.election_max),
            }
        };
        membership.nodes().map(describe).collect()
    }

    /// Starts to build a snapshot, and returns the index that is applied now.
    ///
    /// # Errors
    /// The node is starting or has stopped.
    pub async fn trigger_snapshot(&self) -> Result<u64, RpcError> {
        let starting = || RpcError::new(ErrorCode::Unavailable, "the node is starting");
        proposer::trigger_snapshot(self.core.raft.get().ok_or_else(starting)?).await?;
        Ok(index(self.core.replica.applied()))
    }

    /// The state of this node as of now, with index and term of the last entry in it. Costs a constant time.
    #[must_use]
    pub fn freeze(&self) -> (State, u64, u64) {
        let (state, applied) = self.core.replica.freeze();
        (state, index(applied), applied.map_or(0, |id| id.leader_id.term))
    }

    /// Makes a node that waits for it a member, see the module `members`.
    ///
    /// # Errors
    /// Why not; the message says what to do.
    pub async fn add_member(
        &self,
        new: Member,
        replaces: Option<&str>,
        steps: &mpsc::Sender<Step>,
    ) -> Result<(), RpcError> {
        members::add(&self.core, new, replaces, steps).await
    }

    /// Takes a member out, and returns the names of the voters that are left.
    ///
    /// # Errors
    /// Why not; the message says what to do. `NotLeader` when the leader itself is to leave: the next one does it.
    pub async fn remove_member(&self, name: &str) -> Result<Vec<String>, RpcError> {
        members::remove(&self.core, name).await
    }

    /// Hands the leadership to the member `to`, or to whoever has most of the log. Returns the new leader's name and how long
    /// nothing was served.
    ///
    /// # Errors
    /// This node does not lead, or the other one cannot.
    pub async fn hand_over(&self, to: Option<&str>) -> Result<(String, Duration), RpcError> {
        self.core.serving()?;
        let members = self.members();
        let find =
            |name: &str| members.iter().find(|found| found.member.name == name).map(|found| found.member.raft_id);
        let heir = to.map(|name| {
            let unknown = || RpcError::new(ErrorCode::NotFound, format!("{name} is no member"));
            find(name).ok_or_else(unknown)
        });
        let (id, pause) = handover::hand_over(&self.core, heir.transpose()?).await?;
        let name = members.into_iter().find(|found| found.member.raft_id == id);
        Ok((name.map(|found| found.member.name).unwrap_or_default(), pause))
    }

    /// Addresses of all voters, for clients and storage nodes.
    #[must_use]
    pub fn voter_addresses(&self) -> Vec<String> {
        let core = &self.core;
        let Some(raft) = core.raft.get() else { return Vec::new() };
        let metrics = raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        let voters = membership.voter_ids().filter_map(|id| Some((id, membership.get_node(&id)?)));
        let me = &core.settings.me;
        voters
            .map(
                |(id, node)| {
                    if id == me.raft_id { me.address.clone() } else { core.peers.member(id, Some(node)).address }
                },
            )
            .collect()
    }

    /// Grows when the metadata is restored from a backup or rescued.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.core.cluster.epoch()
    }

    /// The cluster this node belongs to; `None` while the cluster is being formed.
    #[must_use]
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.core.cluster.get().copied()
    }
}

fn index(position: Option<LogId>) -> u64 {
    position.map_or(0, |id| id.index)
}
