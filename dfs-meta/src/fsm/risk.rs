//! What the next failure would cost: for each storage node, the chunks of files whose only live copy is on it, and those
//! that would have one left without it.
//!
//! The figures are kept with every change of a chunk (see `State::change_chunk`), never counted by a scan. Chunks with three
//! live copies or more, which is nearly all of them nearly always, cost nothing here.

use dfs_common::{NodeId, layout::Replicas};

use super::{
    record::{Chunk, counts_as_live},
    state::State,
};

/// Chunks and their bytes, one copy counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figure {
    /// Chunks.
    pub chunks: u64,
    /// Bytes of these.
    pub bytes: u64,
}

impl Figure {
    pub(super) fn count(&mut self, length: u64, enter: bool) {
        if enter {
            (self.chunks, self.bytes) = (self.chunks.saturating_add(1), self.bytes.saturating_add(length));
        } else {
            (self.chunks, self.bytes) = (self.chunks.saturating_sub(1), self.bytes.saturating_sub(length));
        }
    }
}

/// What the loss of one node would cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Risk {
    /// Chunks of files without a live copy then.
    pub lost: Figure,
    /// Chunks of files with one live copy left then.
    pub endangered: Figure,
}

/// What a chunk means for the nodes that hold its live copies.
pub(super) struct Stake {
    holders: Replicas,
    length: u64,
}

impl State {
    /// The stake of a chunk; `None` if no single failure changes its class. `moved` is a node whose copies begin (`true`) or
    /// cease to count while its state says so already: `after` tells on which side of that moment this is.
    pub(super) fn stake(&self, chunk: &Chunk, moved: Option<(NodeId, bool)>, after: bool) -> Option<Stake> {
        if !chunk.is_published() || !(1..=2).contains(&chunk.live) {
            return None;
        }
        let is_live = |node: &NodeId| match moved {
            Some((moved, more)) if moved == *node => more == after,
            Some(_) | None => self.node(*node).is_some_and(|node| counts_as_live(node.state)),
        };
        let holders: Replicas = chunk.replicas.iter().copied().filter(is_live).collect();
        Some(Stake { holders, length: u64::from(chunk.length) })
    }

    /// Enters a stake into the figures of its holders, or takes it out.
    pub(super) fn count_stake(&mut self, stake: &Stake, enter: bool) {
        for node in &stake.holders {
            let mut risk = self.risks.get(node).copied().unwrap_or_default();
            let figure = if stake.holders.len() == 1 { &mut risk.lost } else { &mut risk.endangered };
            figure.count(stake.length, enter);
            if risk == Risk::default() {
                self.risks.remove(node);
            } else {
                self.risks.insert(*node, risk);
            }
        }
    }

    /// What the loss of a node would cost, beyond what is lost already.
    #[must_use]
    pub fn risk(&self, node: NodeId) -> Risk {
        self.risks.get(&node).copied().unwrap_or_default()
    }
}
