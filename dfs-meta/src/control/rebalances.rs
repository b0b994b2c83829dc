//! Runs the rebalance while the replicated state says that it goes on, and tells how far it is.

use std::time::Instant;

use dfs_common::{ChunkId, NodeId, node::NodeState};
use dfs_proto::status::RpcError;

use super::{
    Handle,
    placement::Candidate,
    rebalance::{Fill, Fills, Move, destination},
    repair::progress::Rate,
    runner,
    soft::Soft,
    unix_now_ns,
};
use crate::fsm::{Command, Fact, Node, Rebalance, RebalanceChange, State};

/// Chunks looked at in one round.
const WINDOW: usize = 2048;

/// How evenly the nodes are filled.
#[derive(Clone, Debug, Default)]
pub struct Balance {
    /// The rebalance that runs, or the last one.
    pub rebalance: Rebalance,
    /// The nodes in service, with whether each is within the tolerance.
    pub nodes: Vec<(Fill, bool)>,
    /// Moves under way.
    pub active: u64,
    /// How fast copies for them are made.
    pub rate: Rate,
}

/// What the search for moves looks at.
#[derive(Clone, Copy)]
struct Search<'a> {
    state: &'a State,
    candidates: &'a [Candidate],
    now: Instant,
}

/// What a round came to.
enum Round {
    GoesOn,
    Even,
    Stuck,
}

impl Handle {
    /// Begins a rebalance (`Some(true)`), ends it (`Some(false)`), or leaves it as it is; says how it is then.
    ///
    /// # Errors
    /// What [`crate::raft::Handle::read`] and [`crate::raft::Handle::propose`] say.
    pub async fn rebalance(&self, run: Option<bool>) -> Result<Balance, RpcError> {
        match run {
            Some(true) => self.change_rebalance(RebalanceChange::Start).await?,
            Some(false) => self.change_rebalance(end("an administrator ended it")).await?,
            None => self.inner.raft.read(|_| ()).await?,
        }
        self.lead(|soft, now| {
            self.inner.raft.peek(|state| {
                let fills = fills(soft, state);
                Balance {
                    rebalance: state.rebalance(),
                    nodes: fills.nodes().iter().map(|fill| (*fill, fills.is_even(fill))).collect(),
                    active: soft.rebalancer.active() as u64,
                    rate: soft.planner.move_progress().rate(now),
                }
            })
        })
    }

    async fn change_rebalance(&self, change: RebalanceChange) -> Result<(), RpcError> {
        self.apply(Command::Rebalance { change }).await?;
        self.inner.finished.notify_one();
        Ok(())
    }

    /// Ends moves that are over, and ends the rebalance when nothing is left to move.
    pub(super) async fn rebalance_round(&self) -> Result<(), RpcError> {
        if let Some(why) = self.plan_moves()? {
            tracing::info!(why, "the rebalance has ended");
            self.change_rebalance(end(why)).await?;
        }
        Ok(())
    }

    /// Settles moves and plans more, unless repairs have work. Returns why the rebalance is over, if it is: empty if the nodes are even.
    pub(super) fn plan_moves(&self) -> Result<Option<&'static str>, RpcError> {
        let window = self.settings().placement_valid;
        let round = self.lead(|soft, now| {
            let nodes: Vec<Node> = self.inner.raft.peek(|state| state.nodes().cloned().collect());
            let candidates = soft.candidates(&nodes, window, now);
            self.inner.raft.peek(|state| {
                self.settle_moves(soft, state);
                if !state.rebalance().running || soft.planner.is_repairing() {
                    return Round::GoesOn;
                }
                let mut fills = fills(soft, state);
                if fills.are_even() && soft.rebalancer.active() == 0 {
                    return Round::Even;
                }
                // What an earlier leader has copied goes first: nobody here knows where from.
                if state.counters().over_replicated > soft.rebalancer.active() as u64 {
                    return Round::GoesOn;
                }
                self.begin_moves(soft, Search { state, candidates: &candidates, now }, &mut fills);
                let is_stuck = fills.givers().iter().all(|giver| soft.rebalancer.exhausted.contains(giver));
                if is_stuck && soft.rebalancer.active() == 0 { Round::Stuck } else { Round::GoesOn }
            })
        })?;
        self.inner.planned.notify_waiters();
        Ok(match round {
            Round::GoesOn => None,
            Round::Even => Some(""),
            Round::Stuck => Some("no chunk can move without leaving fewer copies apart, or where there is no room"),
        })
    }

    /// Forgets moves whose copy has gone, or cannot be made any more, and records those that are done.
    fn settle_moves(&self, soft: &mut Soft, state: &State) {
        let Soft { rebalancer, planner, .. } = soft;
        let holds = |chunk: ChunkId, node: NodeId| state.chunk(chunk).is_some_and(|c| c.replicas.contains(&node));
        let is_copied = |chunk: ChunkId, moved: Move| holds(chunk, moved.to);
        let is_too_many = |chunk: ChunkId| {
            state.chunk(chunk).is_some_and(|c| c.is_published() && c.counted() > state.settings().replication)
        };
        let goes_on = |chunk: ChunkId, moved: Move| {
            let is_copying = planner.job_of(chunk).is_some_and(|job| job.moving);
            is_copying || (is_copied(chunk, moved) && holds(chunk, moved.from) && is_too_many(chunk))
        };
        let done = rebalancer.settle(goes_on, |chunk, moved| is_copied(chunk, moved) && !holds(chunk, moved.from));
        let now_ns = unix_now_ns();
        for moved in done {
            let bytes = u64::from(moved.length);
            self.record_event(Fact::RebalanceProgress { chunks: 1, bytes, from_ns: now_ns, to_ns: now_ns });
        }
    }

    fn begin_moves(&self, soft: &mut Soft, search: Search<'_>, fills: &mut Fills) {
        let mut left = WINDOW;
        for giver in fills.givers() {
            if soft.rebalancer.exhausted.contains(&giver) {
                continue;
            }
            let start = soft.rebalancer.cursors.remove(&giver);
            let (mut last, mut looked) = (start, 0);
            for chunk in search.state.chunks_on(giver, start).take(left) {
                if !soft.rebalancer.has_room() || !soft.planner.can_move(fills.nodes().len()) {
                    if let Some(last) = last {
                        soft.rebalancer.cursors.insert(giver, last);
                    }
                    return;
                }
                self.begin_move(soft, search, fills, giver, chunk);
                (last, looked) = (Some(chunk), looked + 1);
            }
            if looked < left {
                // The end of its chunks; from their start on in this search none could move.
                if start.is_none() {
                    soft.rebalancer.exhausted.insert(giver);
                }
            } else if let Some(last) = last {
                soft.rebalancer.cursors.insert(giver, last);
            }
            left -= looked;
            if left == 0 {
                return;
            }
        }
    }

    fn begin_move(&self, soft: &mut Soft, search: Search<'_>, fills: &mut Fills, from: NodeId, id: ChunkId) {
        let Search { state, candidates, now } = search;
        let Some(chunk) = state.chunk(id) else { return };
        let wanted = self.wanted(state);
        // Only what is published can be trimmed afterwards, and only what has its copies, none of them leaving, can spare one.
        let is_whole = chunk.counted() as usize == wanted.replication && chunk.live() == chunk.counted();
        if !chunk.is_published() || !is_whole || soft.is_evicted(id, &chunk.replicas) {
            return;
        }
        let length = chunk.length;
        let reserve = wanted.reserve_bytes;
        let Some(to) = destination(&chunk.replicas, length, from, fills, candidates, reserve) else { return };
        let Some(need) = runner::need(state, id) else { return };
        let Soft { planner, rng, .. } = soft;
        if planner.plan_move(&need, to, candidates, wanted, now, rng) {
            let moved = Move { length, from, to };
            soft.rebalancer.begin(id, moved);
            fills.shift(moved);
        }
    }
}

fn end(why: &str) -> RebalanceChange {
    RebalanceChange::End { why: why.to_owned() }
}

/// How full the nodes in service are when every move under way is done.
fn fills(soft: &Soft, state: &State) -> Fills {
    let fill = |node: &Node| Fill {
        node: node.id,
        bytes: node.chunk_bytes,
        capacity_bytes: soft.reports.get(&node.id).map_or(node.capacity_bytes, |report| report.capacity_bytes),
    };
    let nodes = state.nodes().filter(|node| node.state() == NodeState::Alive).map(fill);
    let holds = |node: NodeId, chunk: ChunkId| state.chunk(chunk).is_some_and(|c| c.replicas.contains(&node));
    soft.rebalancer.fills(nodes, state.settings().chunk_size, holds)
}
