//! Rebalance: which chunk moves from where to where, until all nodes are about equally full. Pure: the fill of the nodes and their
//! chunks come in.
//!
//! ```text
//!   nodes in service, their recorded bytes, what is on its way
//!     │ fullest above the mean, emptiest below it, one of them outside of the tolerance
//!     ▼
//!   a chunk of the full node that the empty one may hold ──► copied as by a repair ──► one too many ──► trimmed on the full node
//! ```
//!
//! A move makes a copy and nothing else: what goes is decided by the trimmer, after the others have confirmed theirs. So a
//! rebalance that is interrupted at any moment leaves a copy too many at worst. The bytes are those of the records, not of the
//! nodes' reports: they change with each move, and with nothing that is only on its way out.

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::{ChunkId, NodeId, node::NodeState};

use super::placement::{self, Candidate};

/// Largest distance from the mean fill, in thousandths of it.
const TOLERANCE: u128 = 100;
/// Moves under way, from the plan to the trim. Bounds memory, and what is held twice meanwhile.
const MOVES_MAX: usize = 256;

/// A chunk on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Bytes.
    pub length: u32,
    /// Whose copy is to go.
    pub from: NodeId,
    /// Who gets one.
    pub to: NodeId,
}

/// How full a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Which.
    pub node: NodeId,
    /// Bytes of its recorded copies, moves under way included as if they were done.
    pub bytes: u64,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
}

/// Nodes in service and how full they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fills {
    nodes: Vec<Fill>,
    bytes: u128,
    capacity: u128,
    /// Bytes that do not matter on the smallest node: less cannot be moved.
    grain: u128,
    /// Capacity of the smallest node.
    smallest: u128,
}

impl Fills {
    /// `grain` is the length of a chunk.
    #[must_use]
    pub fn new(nodes: Vec<Fill>, grain: u32) -> Self {
        let nodes: Vec<Fill> = nodes.into_iter().filter(|node| node.capacity_bytes > 0).collect();
        let bytes = nodes.iter().map(|node| u128::from(node.bytes)).sum();
        let capacity = nodes.iter().map(|node| u128::from(node.capacity_bytes)).sum();
        let smallest = nodes.iter().map(|node| u128::from(node.capacity_bytes)).min().unwrap_or(1);
        Self { nodes, bytes, capacity, grain: grain.into(), smallest }
    }

    /// The nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Fill] {
        &self.nodes
    }

    /// Bytes that a node would hold at the mean fill.
    fn share(&self, node: &Fill) -> u128 {
        self.bytes * u128::from(node.capacity_bytes) / self.capacity.max(1)
    }

    /// Bytes above (positive) or below the mean fill.
    fn excess(&self, node: &Fill) -> i128 {
        i128::from(node.bytes) - i128::try_from(self.share(node)).unwrap_or(i128::MAX)
    }

    /// Whether a node is within the tolerance.
    #[must_use]
    pub fn is_even(&self, node: &Fill) -> bool {
        // Chunks are what moves: a node may be off by one, and a larger one by as much of its capacity.
        let allowed =
            (self.share(node) * TOLERANCE / 1000).max(self.grain * u128::from(node.capacity_bytes) / self.smallest);
        self.excess(node).unsigned_abs() <= allowed
    }

    /// Whether all nodes are.
    #[must_use]
    pub fn are_even(&self) -> bool {
        self.nodes.iter().all(|node| self.is_even(node))
    }

    /// Excess in billionths of the capacity, to compare nodes of different sizes.
    fn level(&self, node: &Fill) -> i128 {
        self.excess(node).saturating_mul(1_000_000_000) / i128::from(node.capacity_bytes.max(1))
    }

    /// Nodes that may give, the fullest first.
    #[must_use]
    pub fn givers(&self) -> Vec<NodeId> {
        let mut givers: Vec<&Fill> = self.nodes.iter().filter(|node| self.excess(node) > 0).collect();
        givers.sort_by_key(|node| (std::cmp::Reverse(self.level(node)), node.node));
        givers.into_iter().map(|node| node.node).collect()
    }

    /// Nodes below the mean that `length` bytes of `from` may go to, the emptiest first: one of both is outside of the tolerance, and the move lessens
    /// the sum of the squared excesses over the capacities. That sum falls with each move, so the moves end.
    #[must_use]
    pub fn takers(&self, from: NodeId, length: u32) -> Vec<NodeId> {
        let Some(giver) = self.find(from) else { return Vec::new() };
        let length = i128::from(length);
        let given = 2 * self.excess(giver) - length;
        let takes = |node: &&Fill| {
            let taken = 2 * self.excess(node) + length;
            let lessens =
                given.saturating_mul(node.capacity_bytes.into()) > taken.saturating_mul(giver.capacity_bytes.into());
            let is_below = self.excess(node) < 0;
            node.node != from && is_below && lessens && !(self.is_even(giver) && self.is_even(node))
        };
        let mut takers: Vec<&Fill> = self.nodes.iter().filter(takes).collect();
        takers.sort_by_key(|node| (self.level(node), node.node));
        takers.into_iter().map(|node| node.node).collect()
    }

    /// A move was planned.
    pub fn shift(&mut self, moved: Move) {
        for node in &mut self.nodes {
            if node.node == moved.from {
                node.bytes = node.bytes.saturating_sub(moved.length.into());
            } else if node.node == moved.to {
                node.bytes = node.bytes.saturating_add(moved.length.into());
            }
        }
    }

    fn find(&self, node: NodeId) -> Option<&Fill> {
        self.nodes.iter().find(|fill| fill.node == node)
    }
}

/// Moves under way, and where the search for more has come to.
#[derive(Debug, Default)]
pub struct Rebalancer {
    moves: BTreeMap<ChunkId, Move>,
    /// Where the last round stopped among the chunks of each giver.
    pub cursors: BTreeMap<NodeId, ChunkId>,
    /// Givers of which no chunk can go anywhere, as far as the last moves have left things.
    pub exhausted: BTreeSet<NodeId>,
}

impl Rebalancer {
    /// Moves under way.
    #[must_use]
    pub fn active(&self) -> usize {
        self.moves.len()
    }

    /// Whether another move may begin.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.moves.len() < MOVES_MAX
    }

    /// The move of a chunk.
    #[must_use]
    pub fn of(&self, chunk: ChunkId) -> Option<Move> {
        self.moves.get(&chunk).copied()
    }

    /// A move begins.
    pub fn begin(&mut self, chunk: ChunkId, moved: Move) {
        self.moves.insert(chunk, moved);
        self.exhausted.clear();
    }

    /// Forgets moves that are over: those that `goes_on` denies. Returns those that `is_done` affirms of them.
    pub fn settle(
        &mut self,
        goes_on: impl Fn(ChunkId, Move) -> bool,
        is_done: impl Fn(ChunkId, Move) -> bool,
    ) -> Vec<Move> {
        let over: Vec<(ChunkId, Move)> =
            self.moves.iter().map(|(chunk, moved)| (*chunk, *moved)).filter(|(c, m)| !goes_on(*c, *m)).collect();
        for (chunk, _) in &over {
            self.moves.remove(chunk);
        }
        if !over.is_empty() {
            self.exhausted.clear();
        }
        over.into_iter().filter(|(chunk, moved)| is_done(*chunk, *moved)).map(|(_, moved)| moved).collect()
    }

    /// How full the nodes in service are, with every move under way done. `holds` says whether a node has a chunk already.
    #[must_use]
    pub fn fills(
        &self,
        nodes: impl Iterator<Item = Fill>,
        grain: u32,
        holds: impl Fn(NodeId, ChunkId) -> bool,
    ) -> Fills {
        let mut fills: Vec<Fill> = nodes.collect();
        for (chunk, moved) in &self.moves {
            for fill in &mut fills {
                let length = u64::from(moved.length);
                if fill.node == moved.from && holds(moved.from, *chunk) {
                    fill.bytes = fill.bytes.saturating_sub(length);
                }
                if fill.node == moved.to && !holds(moved.to, *chunk) {
                    fill.bytes = fill.bytes.saturating_add(length);
                }
            }
        }
        Fills::new(fills, grain)
    }
}

/// Where a chunk of `from` goes: to the emptiest node that has no copy, has room, and is in a failure domain with no more other
/// copies than `from` is in. `None` if there is none, or not all holders are surely there.
#[must_use]
pub fn destination(
    holders: &[NodeId],
    length: u32,
    from: NodeId,
    fills: &Fills,
    candidates: &[Candidate],
    reserve: u64,
) -> Option<NodeId> {
    let sure = |id: NodeId| placement::find(candidates, id).filter(|c| c.state == NodeState::Alive);
    let others = holders.iter().filter(|id| **id != from).map(|id| sure(*id)).collect::<Option<Vec<_>>>()?;
    let giver = sure(from)?;
    let crowd = |of: &Candidate| others.iter().filter(|other| other.rack == of.rack).count();
    let fits = |taker: &&Candidate| {
        !holders.contains(&taker.id)
            && !taker.recently_failed
            && taker.has_room(length.into(), reserve)
            && crowd(taker) <= crowd(giver)
    };
    fills.takers(from, length).into_iter().filter_map(sure).find(fits).map(|taker| taker.id)
}

#[cfg(test)]
#[path = "rebalance/tests.rs"]
mod tests;
