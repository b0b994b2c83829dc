//! Where new copies go. Pure: candidates and random bits come in.
//!
//! The policy is the derived order of [`Score`]: the candidate with the smallest one is taken. What was handed out and does
//! not yet show in a node's report is counted through [`Outstanding`], so that a burst of small files goes round all nodes
//! instead of hitting the one that was emptiest at its last heartbeat.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use dfs_common::{ErrorCode, NodeId, layout::Replicas, node::NodeState};
use dfs_proto::status::RpcError;
use rand::Rng;

/// Steps of the fill level. Nodes whose fill differs by less than one of a thousand are equally good and take turns.
const FILL_STEPS: u128 = 1000;

/// A storage node as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub id: NodeId,
    /// Health and admin state in one word.
    pub state: NodeState,
    /// It is to be emptied: its copies serve, and are not among those that are wanted.
    pub leaving: bool,
    /// Failure domain.
    pub rack: String,
    /// Host part of its address.
    pub host: String,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes it holds as it last reported.
    pub used_bytes: u64,
    /// Bytes placed on it lately.
    pub outstanding_bytes: u64,
    /// Streams it is serving as it last reported.
    pub active_streams: u32,
    /// Someone failed to reach it a moment ago, or it falls out again and again.
    pub recently_failed: bool,
}

impl Candidate {
    /// Whether a copy of `bytes` fits and `reserve` stays free. What is outstanding does not count: it is an upper bound,
    /// far too high with small files, and the node itself refuses what does not fit.
    #[must_use]
    pub fn has_room(&self, bytes: u64, reserve: u64) -> bool {
        self.capacity_bytes.saturating_sub(self.used_bytes).saturating_sub(reserve) >= bytes
    }
}

/// The candidate of a number; candidates are in the order of their numbers.
#[must_use]
pub fn find(candidates: &[Candidate], id: NodeId) -> Option<&Candidate> {
    candidates.binary_search_by_key(&id, |candidate| candidate.id).ok().map(|at| &candidates[at])
}

/// How good a candidate is for the next copy; the smallest wins. The order of the fields is the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Not the host that the writer runs on, where that was asked for.
    pub remote: bool,
    /// Copies that its failure domain already has.
    pub domain_copies: usize,
    /// Someone failed to reach it a moment ago, or it falls out again and again.
    pub recently_failed: bool,
    /// Fill level in steps, outstanding bytes included.
    pub fill: u64,
    /// Outstanding bytes and streams: takes turns among equally full nodes.
    pub load: u64,
    /// Random.
    pub tie: u32,
}

/// What placements must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Wanted copies.
    pub replication: usize,
    /// Copies without which a write cannot succeed.
    pub write_quorum: usize,
    /// Bytes of one copy.
    pub chunk_bytes: u64,
    /// Bytes that stay free on every node.
    pub reserve_bytes: u64,
    /// Nodes that just failed the caller.
    pub avoid: &'a [NodeId],
    /// Host to prefer for the first copy; empty for none.
    pub local_host: &'a str,
}

/// Makes `count` placements of new chunks. They are as long as live nodes allow, at least the write quorum. Updates the
/// candidates' outstanding bytes.
///
/// # Errors
/// [`ErrorCode::NotEnoughNodes`] with fewer live nodes than the write quorum, [`ErrorCode::NoSpace`] if there are enough but
/// too few of them have room.
pub fn place<R: Rng>(
    candidates: &mut [Candidate],
    rules: Rules<'_>,
    count: usize,
    rng: &mut R,
) -> Result<Vec<Replicas>, RpcError> {
    let eligible = eligible(candidates, rules)?;
    let mut placements = Vec::with_capacity(count);
    for _ in 0..count {
        let mut chosen: Vec<usize> = Vec::with_capacity(rules.replication);
        while chosen.len() < rules.replication {
            let local = if chosen.is_empty() { rules.local_host } else { "" };
            let best =
                eligible.iter().copied().filter(|i| !chosen.contains(i)).min_by_key(|i| {
                    score(&candidates[*i], chosen.iter().map(|c| &candidates[*c]), local, rng.random())
                });
            let Some(best) = best else { break };
            chosen.push(best);
        }
        for i in &chosen {
            candidates[*i].outstanding_bytes += rules.chunk_bytes;
        }
        placements.push(chosen.into_iter().map(|i| candidates[i].id).collect());
    }
    Ok(placements)
}

/// The best target of one more copy of a chunk that `holders` have; `allowed` may rule candidates out.
pub fn target<'a, R: Rng>(
    candidates: &'a [Candidate],
    holders: &[NodeId],
    bytes: u64,
    reserve: u64,
    allowed: &dyn Fn(NodeId) -> bool,
    rng: &mut R,
) -> Option<&'a Candidate> {
    let is_holder = |candidate: &&Candidate| holders.contains(&candidate.id);
    candidates
        .iter()
        .filter(|c| c.state == NodeState::Alive && !is_holder(c) && c.has_room(bytes, reserve) && allowed(c.id))
        .min_by_key(|c| {
            let living = candidates.iter().filter(is_holder).filter(|h| h.state != NodeState::Dead && !h.leaving);
            score(c, living, "", rng.random())
        })
}

/// Scores `candidate` given the nodes that have or will have a copy.
fn score<'a>(candidate: &Candidate, others: impl Iterator<Item = &'a Candidate>, local: &str, tie: u32) -> Score {
    let bytes = u128::from(candidate.used_bytes) + u128::from(candidate.outstanding_bytes);
    let fill = bytes * FILL_STEPS / u128::from(candidate.capacity_bytes.max(1));
    Score {
        remote: !local.is_empty() && candidate.host != local,
        domain_copies: others.filter(|other| other.rack == candidate.rack).count(),
        recently_failed: candidate.recently_failed,
        fill: u64::try_from(fill).unwrap_or(u64::MAX),
        // A stream counts as one large chunk's worth of waiting bytes.
        load: candidate.outstanding_bytes.saturating_add(u64::from(candidate.active_streams) << 20),
        tie,
    }
}

fn eligible(candidates: &[Candidate], rules: Rules<'_>) -> Result<Vec<usize>, RpcError> {
    let live = |c: &Candidate| c.state == NodeState::Alive;
    let fits = |c: &Candidate| c.has_room(rules.chunk_bytes, rules.reserve_bytes);
    let alive = candidates.iter().filter(|c| live(c)).count();
    if alive < rules.write_quorum {
        return Err(RpcError::new(
            ErrorCode::NotEnoughNodes,
            format!(
                "{alive} of {} storage nodes are alive, but a write needs {} of them",
                candidates.len(),
                rules.write_quorum
            ),
        ));
    }
    let usable: Vec<usize> = (0..candidates.len()).filter(|i| live(&candidates[*i]) && fits(&candidates[*i])).collect();
    if usable.len() < rules.write_quorum {
        return Err(RpcError::new(
            ErrorCode::NoSpace,
            format!(
                "{} of {alive} live storage nodes have room for a chunk of {} bytes, but a write needs {}",
                usable.len(),
                rules.chunk_bytes,
                rules.write_quorum
            ),
        ));
    }
    let wanted: Vec<usize> = usable.iter().copied().filter(|i| !rules.avoid.contains(&candidates[*i].id)).collect();
    Ok(if wanted.len() < rules.write_quorum { usable } else { wanted })
}

/// Bytes placed on nodes lately, which their reports do not show yet.
#[derive(Debug, Default)]
pub struct Outstanding {
    /// Per node, by the second they were placed in.
    placed: BTreeMap<NodeId, VecDeque<(Instant, u64)>>,
}

impl Outstanding {
    /// Notes `bytes` placed on `node`.
    pub fn add(&mut self, node: NodeId, bytes: u64, now: Instant) {
        let placed = self.placed.entry(node).or_default();
        match placed.back_mut() {
            Some((at, sum)) if now.saturating_duration_since(*at) < Duration::from_secs(1) => *sum += bytes,
            _ => placed.push_back((now, bytes)),
        }
    }

    /// Bytes placed on `node` within `window`.
    pub fn bytes(&mut self, node: NodeId, window: Duration, now: Instant) -> u64 {
        let Some(placed) = self.placed.get_mut(&node) else { return 0 };
        while placed.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > window) {
            placed.pop_front();
        }
        placed.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const CHUNK: u64 = 4 << 20;

    fn node(id: u32, rack: &str) -> Candidate {
        Candidate {
            id: NodeId(id),
            state: NodeState::Alive,
            leaving: false,
            rack: rack.into(),
            host: format!("h{id}"),
            capacity_bytes: 100 << 30,
            used_bytes: 0,
            outstanding_bytes: 0,
            active_streams: 0,
            recently_failed: false,
        }
    }

    fn rules() -> Rules<'static> {
        Rules { replication: 3, write_quorum: 2, chunk_bytes: CHUNK, reserve_bytes: 0, avoid: &[], local_host: "" }
    }

    fn rng() -> StdRng {
        StdRng::seed_from_u64(7)
    }

    #[test]
    fn small_files_spread_evenly_over_equal_nodes() {
        let mut nodes: Vec<_> = (1..=4).map(|i| node(i, "r")).collect();
        let mut counts: HashMap<NodeId, usize> = HashMap::new();
        for placement in place(&mut nodes, rules(), 256, &mut rng()).expect("room") {
            placement.iter().for_each(|n| *counts.entry(*n).or_default() += 1);
        }
        assert!(counts.values().all(|c| (190..=194).contains(c)), "{counts:?}");
    }

    #[test]
    fn the_emptiest_node_is_in_every_placement() {
        let mut nodes: Vec<_> = (1..=5).map(|i| Candidate { used_bytes: 10 << 30, ..node(i, "r") }).collect();
        nodes[3].used_bytes = 0;
        let placements = place(&mut nodes, rules(), 20, &mut rng()).expect("room");
        assert!(placements.iter().all(|p| p.contains(&NodeId(4))));
    }

    #[test]
    fn fewer_nodes_give_shorter_placements_down_to_the_quorum() {
        let mut nodes = vec![node(1, "r"), node(2, "r"), Candidate { state: NodeState::Suspect, ..node(3, "r") }];
        assert_eq!(place(&mut nodes, rules(), 1, &mut rng()).expect("two live")[0].len(), 2);
        nodes[0].state = NodeState::Dead;
        let error = place(&mut nodes, rules(), 1, &mut rng()).expect_err("one live");
        assert_eq!(error.code, ErrorCode::NotEnoughNodes);
        assert_eq!(error.message, "1 of 3 storage nodes are alive, but a write needs 2 of them");
    }

    #[test]
    fn full_disks_are_no_space() {
        let mut nodes: Vec<_> =
            (1..=3).map(|i| Candidate { used_bytes: (100 << 30) - CHUNK + 1, ..node(i, "r") }).collect();
        assert_eq!(place(&mut nodes, rules(), 1, &mut rng()).expect_err("full").code, ErrorCode::NoSpace);
        nodes[0].used_bytes = 0;
        nodes[1].used_bytes = 0;
        let placements = place(&mut nodes, rules(), 1, &mut rng()).expect("two have room");
        assert!(!placements[0].contains(&NodeId(3)));
    }

    #[test]
    fn avoided_nodes_are_used_only_when_nothing_else_makes_a_quorum() {
        let mut nodes: Vec<_> = (1..=4).map(|i| node(i, "r")).collect();
        let avoid = [NodeId(1), NodeId(2)];
        let placements = place(&mut nodes, Rules { avoid: &avoid, ..rules() }, 8, &mut rng()).expect("two left");
        assert!(placements.iter().all(|p| p.iter().all(|n| !avoid.contains(n)) && p.len() == 2));
        let avoid = [NodeId(1), NodeId(2), NodeId(3)];
        let placements = place(&mut nodes, Rules { avoid: &avoid, ..rules() }, 1, &mut rng()).expect("falls back");
        assert_eq!(placements[0].len(), 3);
    }

    #[test]
    fn the_writer_gets_its_own_host_first() {
        let mut nodes: Vec<_> = (1..=4).map(|i| Candidate { used_bytes: u64::from(i) << 30, ..node(i, "r") }).collect();
        let placements = place(&mut nodes, Rules { local_host: "h4", ..rules() }, 5, &mut rng()).expect("room");
        assert!(placements.iter().all(|p| p[0] == NodeId(4)));
    }

    #[test]
    fn a_repair_target_is_no_holder_and_prefers_a_new_rack() {
        let nodes = vec![node(1, "a"), node(2, "b"), node(3, "a"), Candidate { used_bytes: 50 << 30, ..node(4, "c") }];
        let holders = [NodeId(1), NodeId(2)];
        let best = target(&nodes, &holders, CHUNK, 0, &|_| true, &mut rng()).expect("two candidates");
        assert_eq!(best.id, NodeId(4));
        let best = target(&nodes, &holders, CHUNK, 0, &|n| n != NodeId(4), &mut rng()).expect("one candidate");
        assert_eq!(best.id, NodeId(3));
    }

    #[test]
    fn outstanding_bytes_fade() {
        let t0 = Instant::now();
        let mut outstanding = Outstanding::default();
        outstanding.add(NodeId(1), 5, t0);
        outstanding.add(NodeId(1), 6, t0 + Duration::from_secs(5));
        let window = Duration::from_secs(10);
        assert_eq!(outstanding.bytes(NodeId(1), window, t0 + Duration::from_secs(6)), 11);
        assert_eq!(outstanding.bytes(NodeId(1), window, t0 + Duration::from_secs(12)), 6);
        assert_eq!(outstanding.bytes(NodeId(2), window, t0), 0);
    }

    fn any_node(id: u32) -> impl Strategy<Value = Candidate> {
        (0..4u8, 0..120u64, 0..4u8, any::<bool>()).prop_map(move |(rack, used, state, recently_failed)| Candidate {
            state: if state == 0 { NodeState::Suspect } else { NodeState::Alive },
            used_bytes: used << 30,
            recently_failed,
            ..node(id, &format!("rack-{rack}"))
        })
    }

    proptest! {
        #[test]
        fn copies_are_on_distinct_usable_nodes_in_as_many_racks_as_there_are(
            nodes in (1..9u32).prop_flat_map(|n| (1..=n).map(any_node).collect::<Vec<_>>()),
            avoid in proptest::collection::vec((1..9u32).prop_map(NodeId), 0..4),
            count in 1..20usize,
            seed in any::<u64>(),
        ) {
            let mut nodes = nodes;
            let before = nodes.clone();
            let rules = Rules { avoid: &avoid, ..rules() };
            let usable: Vec<_> =
                before.iter().filter(|n| n.state == NodeState::Alive && n.has_room(CHUNK, 0)).collect();
            match place(&mut nodes, rules, count, &mut StdRng::seed_from_u64(seed)) {
                Err(_) => prop_assert!(usable.len() < 2),
                Ok(placements) => {
                    prop_assert_eq!(placements.len(), count);
                    let wanted = usable.iter().filter(|n| !avoid.contains(&n.id)).count();
                    let pool: Vec<_> =
                        usable.iter().filter(|n| wanted < 2 || !avoid.contains(&n.id)).collect();
                    let racks: BTreeSet<_> = pool.iter().map(|n| &n.rack).collect();
                    for placement in placements {
                        let distinct: BTreeSet<_> = placement.iter().collect();
                        prop_assert_eq!(distinct.len(), placement.len());
                        prop_assert_eq!(placement.len(), pool.len().min(3));
                        let chosen: Vec<_> = pool.iter().filter(|n| placement.contains(&n.id)).collect();
                        prop_assert_eq!(chosen.len(), placement.len(), "only usable nodes");
                        let used: BTreeSet<_> = chosen.iter().map(|n| &n.rack).collect();
                        prop_assert_eq!(used.len(), racks.len().min(placement.len()));
                    }
                }
            }
        }
    }
}
