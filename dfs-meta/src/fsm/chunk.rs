//! Chunks: references, replicas, danger, doom.
//!
//! A chunk has a record exactly while something references it. Every change of a record goes through
//! [`State::change_chunk`], which keeps the figures and the order of danger, and dooms the copies of a chunk that lost its
//! last reference. Doomed copies are forgotten only when their node has confirmed the deletion.

use dfs_common::{ChunkId, ErrorCode, FileId, NodeId};

use super::{
    command::{Outcome, Receipt, Refusal, RepairLimits, Reply, Settings},
    holders::Holders,
    record::{Chunk, Counters, Share},
    state::State,
};

/// How a chunk counts in the figures.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Standing {
    length: u64,
    copies: u64,
    live: u32,
    counted: u32,
    published: bool,
    wanted: bool,
    needed: bool,
    trash: bool,
    garbage: bool,
}

impl Standing {
    fn of(chunk: &Chunk) -> Self {
        Self {
            length: u64::from(chunk.length),
            copies: chunk.replicas.len() as u64,
            live: chunk.live(),
            counted: chunk.counted(),
            published: chunk.is_published(),
            wanted: chunk.is_wanted(),
            needed: chunk.is_needed(),
            trash: chunk.is_trash(),
            garbage: chunk.is_garbage(),
        }
    }

    fn is_short(self, wanted: u32) -> bool {
        self.wanted && self.counted < wanted
    }

    fn is_excessive(self, wanted: u32) -> bool {
        self.published && self.counted > wanted
    }

    /// Enters the chunk into the figures, or takes it out.
    fn count(self, counters: &mut Counters, wanted: u32, enter: bool) {
        let change = |figure: &mut u64, by: u64| {
            *figure = if enter { figure.saturating_add(by) } else { figure.saturating_sub(by) };
        };
        if self.garbage {
            change(&mut counters.garbage_chunks, 1);
            change(&mut counters.garbage_bytes, self.length);
            change(&mut counters.garbage_copies, self.copies);
            change(&mut counters.garbage_copy_bytes, self.length * self.copies);
        }
        if self.trash {
            change(&mut counters.trash_chunks, 1);
            change(&mut counters.trash_bytes, self.length);
            change(&mut counters.trash_copies, self.copies);
            change(&mut counters.trash_copy_bytes, self.length * self.copies);
            match self.live {
                live if live >= wanted => {}
                0 => change(&mut counters.trash_missing, 1),
                live => {
                    change(&mut counters.trash_under_replicated, 1);
                    change(&mut counters.trash_endangered, u64::from(live == 1));
                }
            }
        }
        if self.published {
            change(&mut counters.chunks, 1);
            change(&mut counters.published_bytes, self.length);
            counters.by_live[self.live.min(4) as usize].count(self.length, enter);
            match self.live {
                live if live >= wanted => {
                    change(&mut counters.full, 1);
                    change(&mut counters.over_replicated, u64::from(self.counted > wanted));
                    change(&mut counters.moving, u64::from(self.counted < wanted));
                }
                0 => change(&mut counters.missing, 1),
                live => {
                    change(&mut counters.under_replicated, 1);
                    change(&mut counters.endangered, u64::from(live == 1));
                }
            }
            if self.live > 0 {
                let lacking = u64::from(wanted.saturating_sub(self.counted));
                change(&mut counters.lacking_copies, lacking);
                change(&mut counters.lacking_bytes, lacking * self.length);
            }
        }
    }
}

/// Records.
impl State {
    /// Changes the record of a chunk, if there is one, and everything that follows from it.
    pub(super) fn change_chunk(&mut self, id: ChunkId, change: impl FnOnce(&mut Chunk)) {
        if self.edit_chunk(id, None, change) {
            self.doom(id);
        }
    }

    /// The same for a change that leaves the references as they are: a record that has none yet is left for its caller to
    /// finish. `moved` is a node whose copies counted otherwise before. Says whether it has none.
    fn edit_chunk(&mut self, id: ChunkId, moved: Option<(NodeId, Share)>, change: impl FnOnce(&mut Chunk)) -> bool {
        let wanted = self.settings.replication;
        let stake = self.chunks.get(&id).and_then(|chunk| self.stake(chunk, moved));
        let Some(chunk) = self.chunks.get_mut(&id) else { return false };
        let before = Standing::of(chunk);
        change(chunk);
        let after = Standing::of(chunk);
        let has_none = chunk.refs() == 0;
        if before != after {
            stake.iter().for_each(|stake| self.count_stake(stake, false));
            let stake = self.chunks.get(&id).and_then(|chunk| self.stake(chunk, None));
            stake.iter().for_each(|stake| self.count_stake(stake, true));
            before.count(&mut self.counters, wanted, false);
            after.count(&mut self.counters, wanted, true);
            if before.is_short(wanted) {
                self.endangered.remove(&(before.live, id));
            }
            if after.is_short(wanted) {
                self.endangered.insert((after.live, id));
            }
            match (before.is_excessive(wanted), after.is_excessive(wanted)) {
                (false, true) => drop(self.excessive.insert(id)),
                (true, false) => drop(self.excessive.remove(&id)),
                (false, false) | (true, true) => {}
            }
        }
        has_none
    }

    /// Forgets a chunk without references; its copies are to be deleted.
    fn doom(&mut self, id: ChunkId) {
        let Some(chunk) = self.chunks.remove(&id) else { return };
        for node in chunk.replicas.iter().copied() {
            self.unindex_copy(node, id);
            self.count_on_node(node, chunk.length, false);
            self.add_doomed(node, id, chunk.length);
        }
    }

    /// Forgets a chunk whose last reference was a pending version, and leaves its copies where they are: as copies that no version
    /// lists, they wait for their grace time, in which a resumed upload may list them again.
    pub(super) fn forget_chunk(&mut self, id: ChunkId) {
        // Nothing waits for it any more.
        self.edit_chunk(id, None, |chunk| chunk.held = 0);
        let Some(chunk) = self.chunks.remove(&id) else { return };
        for node in chunk.replicas.iter().copied() {
            self.unindex_copy(node, id);
            self.count_on_node(node, chunk.length, false);
        }
    }

    /// Makes a record if there is none, without a reference yet: the caller adds one. Then adds the replicas.
    pub(super) fn learn_chunk(&mut self, id: ChunkId, length: u32, sha256: [u8; 32], replicas: &[NodeId]) {
        if id.is_zero() {
            return;
        }
        if !self.chunks.contains_key(&id) {
            let replicas = Holders::NONE;
            let chunk =
                Chunk { length, sha256, replicas, live: 0, leaving: 0, published: 0, trashed: 0, garbage: 0, held: 0 };
            self.chunks.insert(id, chunk);
        }
        for node in replicas {
            self.add_replica(id, *node);
        }
    }

    /// Whether a node may be recorded as a holder: it exists and is not about to delete its copy.
    pub(super) fn may_hold(&self, node: NodeId, chunk: ChunkId) -> bool {
        let is_member = self.nodes.get(&node).is_some_and(|node| node.is_member());
        is_member && !self.doomed.contains_key(&(node, chunk))
    }

    fn add_replica(&mut self, id: ChunkId, node: NodeId) {
        if !self.may_hold(node, id) {
            return;
        }
        let Some(chunk) = self.chunks.get(&id) else { return };
        if chunk.replicas.contains(&node) {
            return;
        }
        let length = chunk.length;
        let share = self.share(node);
        self.index_copy(node, id);
        self.count_on_node(node, length, true);
        self.edit_chunk(id, None, |chunk| {
            chunk.replicas.add(node);
            chunk.count_copy(share, true);
        });
    }

    fn remove_replica(&mut self, id: ChunkId, node: NodeId) {
        let Some(chunk) = self.chunks.get(&id) else { return };
        if !chunk.replicas.contains(&node) {
            return;
        }
        let length = chunk.length;
        let share = self.share(node);
        self.unindex_copy(node, id);
        self.count_on_node(node, length, false);
        self.edit_chunk(id, None, |chunk| {
            chunk.replicas.remove(node);
            chunk.count_copy(share, false);
        });
    }

    /// How the copies on a node count.
    pub(super) fn share(&self, node: NodeId) -> Share {
        self.nodes.get(&node).map_or(Share::Lost, |node| node.share())
    }

    /// A copy is to be deleted; `length` is 0 where no record says it.
    pub(super) fn add_doomed(&mut self, node: NodeId, id: ChunkId, length: u32) {
        if self.doomed.contains_key(&(node, id)) {
            return;
        }
        self.doomed.insert((node, id), length);
        let on = self.doomed_on.entry(node).or_default();
        (on.copies, on.bytes) = (on.copies + 1, on.bytes + u64::from(length));
    }

    fn remove_doomed(&mut self, node: NodeId, id: ChunkId) -> bool {
        let Some(length) = self.doomed.remove(&(node, id)) else { return false };
        if let Some(on) = self.doomed_on.get_mut(&node) {
            (on.copies, on.bytes) = (on.copies - 1, on.bytes - u64::from(length));
            if on.copies == 0 {
                self.doomed_on.remove(&node);
            }
        }
        true
    }

    /// The copies of a node count otherwise than before; its record says how.
    pub(super) fn change_share_on(&mut self, node: NodeId, before: Share) {
        let after = self.share(node);
        self.for_chunks_on(node, |state, id| {
            state.edit_chunk(id, Some((node, before)), |chunk| {
                chunk.count_copy(before, false);
                chunk.count_copy(after, true);
            });
        });
    }

    /// Forgets every copy of a node that left for good, doomed ones included.
    pub(super) fn forget_copies_on(&mut self, node: NodeId) {
        let first = (node, ChunkId([0; 32]));
        self.for_chunks_on(node, |state, id| state.remove_replica(id, node));
        let doomed = self.doomed.clone();
        for ((_, id), _) in doomed.range(first..).take_while(|((holder, _), _)| *holder == node) {
            self.remove_doomed(node, *id);
        }
    }

    /// Fixes the settings and counts the chunks by them.
    pub(super) fn set_replication(&mut self, settings: Settings) {
        self.settings = settings;
        self.recount_chunks();
    }

    /// Figures and order of danger from the records.
    pub(super) fn recount_chunks(&mut self) {
        let wanted = self.settings.replication;
        self.counters = Counters::default();
        self.endangered.clear();
        self.excessive.clear();
        self.risks.clear();
        self.rests.clear();
        // A clone costs nothing, and lets the figures change while it is walked.
        for (id, chunk) in &self.chunks.clone() {
            let standing = Standing::of(chunk);
            standing.count(&mut self.counters, wanted, true);
            if standing.is_short(wanted) {
                self.endangered.insert((chunk.live(), *id));
            }
            if standing.is_excessive(wanted) {
                self.excessive.insert(*id);
            }
            self.stake(chunk, None).iter().for_each(|stake| self.count_stake(stake, true));
        }
    }

    /// What the administrator asks for, if it makes sense.
    pub(super) fn set_repair_limits(&mut self, limits: RepairLimits) -> Outcome {
        let RepairLimits { streams_per_node, streams_total, .. } = limits;
        let sane = (1..=RepairLimits::STREAMS_PER_NODE_MAX).contains(&streams_per_node)
            && (1..=RepairLimits::STREAMS_TOTAL_MAX).contains(&streams_total);
        if !sane {
            let message = format!(
                "{streams_per_node} streams of a node and {streams_total} in all: at least 1, at most {} and {}",
                RepairLimits::STREAMS_PER_NODE_MAX,
                RepairLimits::STREAMS_TOTAL_MAX
            );
            return Err(Refusal::new(ErrorCode::InvalidArgument, message));
        }
        self.repair_limits = limits;
        Ok(Reply::Done)
    }
}

/// Reports.
impl State {
    pub(super) fn commit_chunks(&mut self, receipts: &[Receipt]) -> Reply {
        let skipped = receipts.iter().filter(|receipt| !self.commit_chunk(receipt)).map(|receipt| receipt.chunk);
        Reply::Chunks { skipped: skipped.collect() }
    }

    /// Takes a receipt. One that comes before the publication makes a record that the pending version holds.
    fn commit_chunk(&mut self, receipt: &Receipt) -> bool {
        if let Some(chunk) = self.chunks.get(&receipt.chunk) {
            let agrees = (chunk.length, chunk.sha256) == (receipt.length, receipt.sha256);
            if agrees {
                self.learn_chunk(receipt.chunk, receipt.length, receipt.sha256, &receipt.replicas);
            }
            return agrees;
        }
        let Some(pending) = self.pending.get(&receipt.file) else { return false };
        let fits = (1..=pending.chunk_size).contains(&receipt.length) && !receipt.chunk.is_zero();
        if !fits || !receipt.replicas.iter().any(|node| self.may_hold(*node, receipt.chunk)) {
            return false;
        }
        self.learn_chunk(receipt.chunk, receipt.length, receipt.sha256, &receipt.replicas);
        self.change_chunk(receipt.chunk, |chunk| chunk.held += 1);
        if let Some(pending) = self.pending.get_mut(&receipt.file) {
            pending.held.insert(receipt.chunk);
        }
        true
    }

    pub(super) fn replicas_added(&mut self, replicas: &[(ChunkId, NodeId)]) -> Reply {
        let mut skipped = Vec::new();
        for (id, node) in replicas {
            if self.chunks.contains_key(id) {
                self.add_replica(*id, *node);
            } else if !self.doomed.contains_key(&(*node, *id)) {
                skipped.push(*id);
            }
        }
        Reply::Chunks { skipped }
    }

    pub(super) fn replicas_lost(&mut self, node: NodeId, chunks: &[ChunkId]) -> Reply {
        let mut skipped = Vec::new();
        for id in chunks {
            if self.chunks.contains_key(id) {
                self.remove_replica(*id, node);
            } else {
                skipped.push(*id);
            }
        }
        Reply::Chunks { skipped }
    }

    pub(super) fn confirm_deleted(&mut self, node: NodeId, chunks: &[ChunkId]) -> Reply {
        let skipped = chunks.iter().filter(|id| !self.remove_doomed(node, **id)).copied();
        Reply::Chunks { skipped: skipped.collect() }
    }

    /// The proposer saw no reference; this looks again, because a publication may have come in between.
    pub(super) fn doom_unknown(&mut self, node: NodeId, chunks: &[(ChunkId, FileId)]) -> Outcome {
        if !self.nodes.get(&node).is_some_and(|node| node.is_member()) {
            return Err(Refusal::new(ErrorCode::NotFound, format!("node {node} is not registered")));
        }
        if self.restored.is_some() {
            let message = "the metadata was restored: what it does not know is kept until `dfsctl meta restore-finish`";
            return Err(Refusal::new(ErrorCode::NotPermitted, message));
        }
        let mut skipped = Vec::new();
        for (id, file_id) in chunks {
            if self.chunks.contains_key(id) || self.pending.contains_key(file_id) {
                skipped.push(*id);
            } else {
                self.add_doomed(node, *id, 0);
            }
        }
        Ok(Reply::Chunks { skipped })
    }
}
