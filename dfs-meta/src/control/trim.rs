//! Copies beyond the wanted number: which one goes, and when it may. Pure.
//!
//! ```text
//!   over-replicated chunk (index of the state), its nodes at rest for the grace time
//!     │ the worst-placed copy is chosen
//!     ▼
//!   the nodes of all other copies are asked ── each reads its copy and checks every block ──► confirmed
//!     │ as many as wanted have confirmed within the time
//!     ▼
//!   the copy leaves the record ──► the node is told to delete it, while that many others are alive
//! ```
//!
//! Deleting is the one step that cannot be taken back, so nothing that was remembered counts: neither the record nor an
//! inventory, only what the nodes have read after the decision. All of this is soft. If the leader is lost before the record
//! changed, nothing has happened; if it is lost after, the copy is found by the node's next inventory, counts again, and the
//! next leader begins anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use dfs_common::{ChunkId, NodeId, layout::Replicas, node::NodeState};

use super::placement::{self, Candidate};

/// Chunks in work. Each costs its other nodes a read of it, so more would only make all of them late.
const TRIMS_MAX: usize = 1024;
/// Chunks that a node is asked to confirm by one answer.
const ASK_MAX: usize = 64;
/// Time for the others to confirm. What is not confirmed by then is begun anew, perhaps with another choice.
const CONFIRM_WITHIN: Duration = Duration::from_secs(120);

/// How much a copy is in the way; the one with the most goes. The order of the fields is the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Burden {
    /// Other copies in the same failure domain.
    pub domain_copies: usize,
    /// Bytes of the node's capacity that are used, in thousandths.
    pub fill: u64,
    /// The younger node.
    pub id: NodeId,
}

/// One chunk whose other copies are being confirmed.
#[derive(Clone, Debug)]
struct Trim {
    victim: NodeId,
    others: Replicas,
    confirmed: BTreeSet<NodeId>,
    wanted: usize,
    since: Instant,
}

/// A copy that may go now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The chunk.
    pub chunk: ChunkId,
    /// Whose copy goes.
    pub victim: NodeId,
    /// Who confirmed.
    pub confirmed: Replicas,
}

/// Chunks whose other copies are being confirmed.
#[derive(Debug, Default)]
pub struct Trimmer {
    trims: BTreeMap<ChunkId, Trim>,
    asked: BTreeSet<(NodeId, ChunkId)>,
    /// Where the last round stopped among the over-replicated chunks.
    pub cursor: Option<ChunkId>,
}

/// Whose copy goes: the worst-placed one of those that can go while `wanted` copies on nodes that are surely there, and stay,
/// are left. `None` if there is none. Copies on nodes that are to be emptied do not count, and are left until the node goes: until
/// then they are one more that can be read, and are there again when it stays after all.
#[must_use]
pub fn victim(holders: &[NodeId], candidates: &[Candidate], wanted: usize) -> Option<NodeId> {
    let holders: Vec<&Candidate> = holders.iter().filter_map(|id| placement::find(candidates, *id)).collect();
    let stays = |c: &Candidate| c.state == NodeState::Alive;
    let staying = holders.iter().filter(|c| stays(c)).count();
    let burden = |c: &Candidate| Burden {
        domain_copies: holders.iter().filter(|o| o.id != c.id && stays(o) && o.rack == c.rack).count(),
        fill: c.used_bytes.saturating_mul(1000) / c.capacity_bytes.max(1),
        id: c.id,
    };
    holders
        .iter()
        // A suspect or dead node cannot be told.
        .filter(|c| stays(c) && staying > wanted)
        .map(|c| burden(c))
        .max()
        .map(|burden| burden.id)
}

impl Trimmer {
    /// Whether another chunk may be taken on.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.trims.len() < TRIMS_MAX
    }

    /// Chunks whose other copies are being confirmed.
    #[must_use]
    pub fn active(&self) -> usize {
        self.trims.len()
    }

    /// Looks at an over-replicated chunk and begins to trim it if one of its copies can go: that on `moved_from` if there is one, or
    /// else the worst-placed one.
    pub fn consider(
        &mut self,
        chunk: ChunkId,
        holders: &[NodeId],
        candidates: &[Candidate],
        wanted: usize,
        now: Instant,
        moved_from: Option<NodeId>,
    ) -> bool {
        if self.trims.contains_key(&chunk) || !self.has_room() {
            return false;
        }
        let Some(worst) = victim(holders, candidates, wanted) else { return false };
        let can_go = |id: &NodeId| {
            let is_there = placement::find(candidates, *id).is_some_and(|c| c.state == NodeState::Alive);
            is_there && holders.contains(id)
        };
        let victim = moved_from.filter(can_go).unwrap_or(worst);
        let is_sure = |id: &NodeId| placement::find(candidates, *id).is_some_and(|c| c.state == NodeState::Alive);
        let others: Replicas = holders.iter().copied().filter(|id| *id != victim && is_sure(id)).collect();
        self.asked.extend(others.iter().map(|node| (*node, chunk)));
        self.trims.insert(chunk, Trim { victim, others, confirmed: BTreeSet::new(), wanted, since: now });
        true
    }

    /// What `node` is to confirm. Asked again with every answer until it does.
    #[must_use]
    pub fn asks(&self, node: NodeId) -> Vec<ChunkId> {
        let of_node = (node, ChunkId([0; 32]))..=(node, ChunkId([0xff; 32]));
        self.asked.range(of_node).take(ASK_MAX).map(|(_, chunk)| *chunk).collect()
    }

    /// `node` has read and checked its copies of `chunks`. Returns what may go now; it is forgotten here.
    pub fn confirmed(&mut self, node: NodeId, chunks: &[ChunkId]) -> Vec<Ready> {
        let mut ready = Vec::new();
        for chunk in chunks {
            if !self.asked.remove(&(node, *chunk)) {
                continue;
            }
            let Some(trim) = self.trims.get_mut(chunk) else { continue };
            trim.confirmed.insert(node);
            if trim.confirmed.len() >= trim.wanted
                && let Some(trim) = self.forget(*chunk)
            {
                let confirmed = trim.confirmed.into_iter().collect();
                ready.push(Ready { chunk: *chunk, victim: trim.victim, confirmed });
            }
        }
        ready
    }

    /// A copy of a chunk was lost or is bad: the choice rests on nothing any more.
    pub fn forget_all(&mut self, chunks: &[ChunkId]) {
        for chunk in chunks {
            self.forget(*chunk);
        }
    }

    /// Forgets what took too long, and what rests on a node that is no longer alive.
    pub fn expire(&mut self, candidates: &[Candidate], now: Instant) {
        let is_sure = |id: &NodeId| placement::find(candidates, *id).is_some_and(|c| c.state == NodeState::Alive);
        let over: Vec<ChunkId> = self
            .trims
            .iter()
            .filter(|(_, trim)| {
                now.saturating_duration_since(trim.since) > CONFIRM_WITHIN || !trim.others.iter().all(is_sure)
            })
            .map(|(chunk, _)| *chunk)
            .collect();
        self.forget_all(&over);
    }

    fn forget(&mut self, chunk: ChunkId) -> Option<Trim> {
        let trim = self.trims.remove(&chunk)?;
        for node in &trim.others {
            self.asked.remove(&(*node, chunk));
        }
        Some(trim)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(id: u32, state: NodeState, rack: &str, used: u64) -> Candidate {
        Candidate {
            id: NodeId(id),
            state,
            leaving: state == Draining,
            rack: rack.into(),
            host: String::new(),
            capacity_bytes: 1000,
            used_bytes: used,
            outstanding_bytes: 0,
            active_streams: 0,
            recently_failed: false,
        }
    }

    use NodeState::{Alive, Dead, Draining, Suspect};

    fn ids(ids: &[u32]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn chunk(n: u8) -> ChunkId {
        ChunkId([n; 32])
    }

    #[test]
    fn the_worst_placed_copy_goes() {
        let mut nodes =
            [node(1, Alive, "a", 10), node(2, Alive, "b", 900), node(3, Alive, "c", 10), node(4, Alive, "a", 500)];
        let all = ids(&[1, 2, 3, 4]);
        assert_eq!(victim(&all, &nodes, 3), Some(NodeId(4)), "of the doubled domain, the fuller one");
        nodes[3].rack = "d".into();
        assert_eq!(victim(&all, &nodes, 3), Some(NodeId(2)), "the fullest");
        nodes[2].state = Draining;
        assert_eq!(victim(&all, &nodes, 3), None, "what is on a draining node is none too many");
        assert_eq!(victim(&all, &nodes, 2), Some(NodeId(2)));
        nodes[0].state = Suspect;
        assert_eq!(victim(&all, &nodes, 2), None, "only one would surely be left");
        assert_eq!(victim(&ids(&[2, 3, 4]), &nodes, 2), None);
        nodes[0].state = Dead;
        assert_eq!(victim(&all, &nodes, 1), Some(NodeId(2)));
    }

    #[test]
    fn nothing_goes_before_enough_others_have_confirmed() {
        let nodes = [1, 2, 3, 4].map(|id| node(id, Alive, "", u64::from(id)));
        let now = Instant::now();
        let mut trimmer = Trimmer::default();
        assert!(trimmer.consider(chunk(1), &ids(&[1, 2, 3, 4]), &nodes, 3, now, None));
        assert!(!trimmer.consider(chunk(1), &ids(&[1, 2, 3, 4]), &nodes, 3, now, None), "once");
        assert!(trimmer.asks(NodeId(4)).is_empty(), "the victim is not asked");
        assert_eq!(trimmer.asks(NodeId(1)), [chunk(1)]);
        assert!(trimmer.confirmed(NodeId(4), &[chunk(1)]).is_empty(), "nobody asked it");
        for n in [1, 1, 2] {
            assert!(trimmer.confirmed(NodeId(n), &[chunk(1), chunk(9)]).is_empty());
        }
        let ready = trimmer.confirmed(NodeId(3), &[chunk(1)]);
        let [Ready { victim, confirmed, .. }] = &ready[..] else { panic!("{ready:?}") };
        assert_eq!((*victim, &confirmed[..]), (NodeId(4), &ids(&[1, 2, 3])[..]));
        assert_eq!((trimmer.active(), trimmer.asked.len()), (0, 0));
    }

    #[test]
    fn what_changed_meanwhile_is_begun_anew() {
        let mut nodes = [1, 2, 3, 4].map(|id| node(id, Alive, "", 0));
        let now = Instant::now();
        let mut trimmer = Trimmer::default();
        let all = ids(&[1, 2, 3, 4]);
        assert!(trimmer.consider(chunk(1), &all, &nodes, 3, now, None));
        trimmer.confirmed(NodeId(1), &[chunk(1)]);
        trimmer.expire(&nodes, now + CONFIRM_WITHIN + Duration::from_secs(1));
        assert_eq!(trimmer.active(), 0, "too late");
        assert!(trimmer.consider(chunk(1), &all, &nodes, 3, now, None));
        nodes[1].state = Suspect;
        trimmer.expire(&nodes, now);
        assert_eq!(trimmer.active(), 0, "one of the others may be gone");
        nodes[1].state = Alive;
        assert!(trimmer.consider(chunk(1), &all, &nodes, 3, now, None));
        trimmer.forget_all(&[chunk(1), chunk(2)]);
        assert_eq!((trimmer.active(), trimmer.asked.len()), (0, 0), "a copy was lost");
    }

    proptest! {
        #[test]
        fn never_fewer_than_wanted_sure_copies_are_left(
            states in proptest::collection::vec(0..5u8, 1..7),
            racks in proptest::collection::vec(0..3u8, 7),
            fills in proptest::collection::vec(0..1000u64, 7),
            wanted in 1..4usize,
        ) {
            let nodes: Vec<Candidate> = (0..states.len())
                .map(|i| {
                    let state = [Alive, Alive, Suspect, Dead, Draining][usize::from(states[i])];
                    node(u32::try_from(i).expect("few"), state, &racks[i].to_string(), fills[i])
                })
                .collect();
            let holders: Vec<NodeId> = nodes.iter().map(|n| n.id).collect();
            let sure = |left: &[NodeId]| nodes.iter().filter(|n| n.state == Alive && left.contains(&n.id)).count();
            match victim(&holders, &nodes, wanted) {
                Some(gone) => {
                    let left: Vec<NodeId> = holders.iter().copied().filter(|id| *id != gone).collect();
                    prop_assert!(sure(&left) >= wanted);
                    prop_assert!(nodes.iter().any(|n| n.id == gone && n.state == Alive));
                }
                None => prop_assert!(sure(&holders) <= wanted),
            }
        }
    }
}
