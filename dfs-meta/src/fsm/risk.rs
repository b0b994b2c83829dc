//! What the next failure would cost: for each storage node, the chunks of files whose only live copy is on it, and those
//! that would have one left without it. A copy on a node that is to be emptied is as good as any here. And what still rests on
//! such a node: chunks that have too few copies elsewhere.
//!
//! The figures are kept with every change of a chunk (see `State::change_chunk`), never counted by a scan. Chunks with three
//! live copies or more, which is nearly all of them nearly always, cost nothing here.

use dfs_common::{NodeId, layout::Replicas};

use super::{
    record::{Chunk, Share},
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
    /// Who holds it, if one failure changes its class.
    holders: Replicas,
    /// Who cannot go yet because of it.
    leavers: Replicas,
    length: u64,
}

impl State {
    /// The stake of a chunk; `None` if no single failure changes its class and nobody waits for it. `moved` is a node whose copies
    /// counted otherwise before, on which side of that moment this is.
    pub(super) fn stake(&self, chunk: &Chunk, moved: Option<(NodeId, Share)>) -> Option<Stake> {
        let is_at_stake = chunk.is_published() && (1..=2).contains(&chunk.live());
        let is_awaited = chunk.leaving > 0 && chunk.is_needed() && chunk.counted() < self.settings.replication;
        if !is_at_stake && !is_awaited {
            return None;
        }
        let share = |node: &NodeId| match moved {
            Some((moved, before)) if moved == *node => before,
            Some(_) | None => self.share(*node),
        };
        let those = |wanted: bool, of: &dyn Fn(Share) -> bool| -> Replicas {
            chunk.replicas.iter().copied().filter(|node| wanted && of(share(node))).collect()
        };
        let holders = those(is_at_stake, &|share| share != Share::Lost);
        let leavers = those(is_awaited, &|share| share == Share::Leaving);
        Some(Stake { holders, leavers, length: u64::from(chunk.length) })
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
        for node in &stake.leavers {
            let mut rests = self.rests.get(node).copied().unwrap_or_default();
            rests.count(stake.length, enter);
            if rests == Figure::default() {
                self.rests.remove(node);
            } else {
                self.rests.insert(*node, rests);
            }
        }
    }

    /// Chunks on a node that is to be emptied that have too few copies elsewhere: while there are any, it cannot go.
    #[must_use]
    pub fn rests(&self, node: NodeId) -> Figure {
        self.rests.get(&node).copied().unwrap_or_default()
    }

    /// What the loss of a node would cost, beyond what is lost already.
    #[must_use]
    pub fn risk(&self, node: NodeId) -> Risk {
        self.risks.get(&node).copied().unwrap_or_default()
    }
}
