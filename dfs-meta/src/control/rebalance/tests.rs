//! Tests of the rebalance planner on simulated nodes.

use proptest::prelude::*;

use super::*;

const LENGTH: u32 = 4 << 20;

fn candidate(id: u32, rack: &str) -> Candidate {
    Candidate {
        id: NodeId(id),
        state: NodeState::Alive,
        leaving: false,
        rack: rack.into(),
        host: String::new(),
        capacity_bytes: 1 << 40,
        used_bytes: 0,
        outstanding_bytes: 0,
        active_streams: 0,
        recently_failed: false,
    }
}

fn fill(id: u32, chunks: u64, capacity: u64) -> Fill {
    Fill { node: NodeId(id), bytes: chunks * u64::from(LENGTH), capacity_bytes: capacity * u64::from(LENGTH) }
}

fn ids(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

#[test]
fn the_fullest_gives_to_the_emptiest() {
    let fills = Fills::new(vec![fill(1, 90, 1000), fill(2, 100, 1000), fill(3, 80, 1000), fill(4, 0, 1000)], LENGTH);
    assert!(!fills.are_even());
    assert_eq!(fills.givers(), ids(&[2, 1, 3]));
    assert_eq!(fills.takers(NodeId(2), LENGTH), ids(&[4]));
    let even = Fills::new(vec![fill(1, 100, 1000), fill(2, 109, 1000), fill(3, 91, 1000)], LENGTH);
    assert!(even.are_even() && even.takers(NodeId(2), LENGTH).is_empty(), "within a tenth nothing moves");
}

#[test]
fn fill_is_relative_to_capacity() {
    let fills = Fills::new(vec![fill(1, 100, 1000), fill(2, 200, 2000), fill(3, 50, 500)], LENGTH);
    assert!(fills.are_even());
    let fills = Fills::new(vec![fill(1, 100, 1000), fill(2, 100, 2000)], LENGTH);
    assert_eq!((fills.givers(), fills.takers(NodeId(1), LENGTH)), (ids(&[1]), ids(&[2])));
}

#[test]
fn one_chunk_more_or_less_is_even() {
    let fills = Fills::new(vec![fill(1, 2, 1000), fill(2, 1, 1000), fill(3, 1, 1000)], LENGTH);
    assert!(fills.are_even());
    assert!(Fills::new(Vec::new(), LENGTH).are_even());
}

#[test]
fn a_move_keeps_failure_domains_apart() {
    let fills = Fills::new(vec![fill(1, 9, 100), fill(2, 9, 100), fill(3, 0, 100), fill(4, 1, 100)], LENGTH);
    let mut nodes = [candidate(1, "a"), candidate(2, "b"), candidate(3, "b"), candidate(4, "c")];
    let holders = ids(&[1, 2]);
    let to = |nodes: &[Candidate], from| destination(&holders, LENGTH, NodeId(from), &fills, nodes, 0);
    assert_eq!(to(&nodes, 1), Some(NodeId(4)), "node 3 is in the domain of the other copy");
    assert_eq!(to(&nodes, 2), Some(NodeId(3)), "in its own domain nothing gets worse");
    nodes[3].recently_failed = true;
    assert_eq!(to(&nodes, 1), None);
    nodes[3].recently_failed = false;
    nodes[1].state = NodeState::Suspect;
    assert_eq!(to(&nodes, 1), None, "nothing moves while a holder is in doubt");
}

#[test]
fn moves_under_way_count_as_done() {
    let mut rebalancer = Rebalancer::default();
    let chunk = ChunkId([1; 32]);
    let moved = Move { length: LENGTH, from: NodeId(1), to: NodeId(2) };
    rebalancer.exhausted.insert(NodeId(1));
    rebalancer.begin(chunk, moved);
    assert!(rebalancer.exhausted.is_empty());
    let nodes = || [fill(1, 5, 100), fill(2, 3, 100)].into_iter();
    let bytes = |fills: Fills| fills.nodes().iter().map(|node| node.bytes / u64::from(LENGTH)).collect::<Vec<_>>();
    assert_eq!(bytes(rebalancer.fills(nodes(), LENGTH, |node, _| node == NodeId(1))), [4, 4], "not copied yet");
    assert_eq!(bytes(rebalancer.fills(nodes(), LENGTH, |_, _| true)), [4, 3], "copied, not trimmed yet");
    assert_eq!(bytes(rebalancer.fills(nodes(), LENGTH, |node, _| node == NodeId(2))), [5, 3], "trimmed");
    assert!(rebalancer.settle(|_, _| true, |_, _| true).is_empty());
    assert_eq!(rebalancer.settle(|_, _| false, |_, _| true), [moved]);
    assert_eq!(rebalancer.active(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Every move brings the cluster closer to even, the moves end, and then all nodes that can be are within the tolerance.
    #[test]
    fn any_cluster_becomes_even_and_then_rests(
        sizes in proptest::collection::vec((0..400u64, 500..2000u64), 2..8),
    ) {
        let nodes: Vec<Fill> = (1..).zip(&sizes).map(|(id, (chunks, capacity))| fill(id, *chunks, *capacity)).collect();
        let total: u64 = nodes.iter().map(|node| node.bytes).sum();
        let mut fills = Fills::new(nodes, LENGTH);
        let distance = |fills: &Fills| {
            let of = |node: &Fill| (fills.excess(node) as f64).powi(2) / node.capacity_bytes as f64;
            fills.nodes().iter().map(of).sum::<f64>()
        };
        let mut moves = 0;
        loop {
            let found = fills.givers().into_iter().find_map(|from| {
                Some(Move { length: LENGTH, from, to: *fills.takers(from, LENGTH).first()? })
            });
            let Some(moved) = found else { break };
            let before = distance(&fills);
            fills.shift(moved);
            prop_assert!(distance(&fills) < before);
            moves += 1;
            prop_assert!(moves <= 8 * 400, "it goes on and on");
        }
        prop_assert!(fills.are_even(), "{fills:?}");
        prop_assert_eq!(fills.nodes().iter().map(|node| node.bytes).sum::<u64>(), total, "nothing is lost on the way");
    }
}
