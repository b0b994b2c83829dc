//! Tests of the repair planner with a simulated clock and cluster.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
use rand::{Rng as _, SeedableRng, rngs::StdRng};

use super::*;

const LENGTH: u32 = 4 << 20;

fn node(id: u32, state: NodeState) -> Candidate {
    Candidate {
        id: NodeId(id),
        state,
        leaving: state == NodeState::Draining,
        rack: String::new(),
        host: String::new(),
        capacity_bytes: 1 << 40,
        used_bytes: 0,
        outstanding_bytes: 0,
        active_streams: 0,
        recently_failed: false,
    }
}

fn chunk(n: u8) -> ChunkId {
    ChunkId([n; 32])
}

fn need(n: u8, holders: &[u32]) -> Need {
    Need { chunk: chunk(n), length: LENGTH, sha256: [0; 32], holders: holders.iter().copied().map(NodeId).collect() }
}

const WANTED: Wanted = Wanted { replication: 3, reserve_bytes: 0 };

fn cause(code: ErrorCode) -> Cause {
    Cause { code, message: format!("because of {code}") }
}

/// Four large chunks are as much as a node may have to send.
fn settings() -> RepairSettings {
    RepairSettings { queue_bytes: 4 * u64::from(LENGTH), ..RepairSettings::default() }
}

struct Bench {
    planner: Planner,
    nodes: Vec<Candidate>,
    now: Instant,
    rng: StdRng,
}

impl Bench {
    fn new(states: &[NodeState]) -> Self {
        let nodes = (1..).zip(states).map(|(id, state)| node(id, *state)).collect();
        let now = Instant::now();
        let planner = Planner::new(settings(), 3, now);
        Self { planner, nodes, now, rng: StdRng::seed_from_u64(5) }
    }

    fn consider(&mut self, need: &Need) -> Verdict {
        self.planner.consider(need, &mut self.nodes, WANTED, self.now, &mut self.rng)
    }

    fn limit(&mut self, limits: RepairLimits) {
        self.planner.begin_round(limits, self.now);
    }

    fn pass(&mut self, seconds: u64) -> Vec<Job> {
        self.now += Duration::from_secs(seconds);
        self.planner.expire(self.now, &self.nodes)
    }
}

use NodeState::{Alive, Dead, Draining, Maintenance, Suspect};

#[test]
fn a_copy_on_a_dead_node_is_replaced_at_once() {
    let mut bench = Bench::new(&[Alive, Alive, Dead, Alive]);
    assert_eq!(bench.consider(&need(1, &[1, 2, 3])), Verdict::Planned);
    let job = bench.planner.jobs().next().expect("planned").clone();
    assert_eq!((job.target, job.urgent), (NodeId(4), false));
    assert!([NodeId(1), NodeId(2)].contains(&job.source));
    assert_eq!(job.id >> 32, 3, "the term fences results of older leaders");
    assert_eq!(bench.consider(&need(1, &[1, 2, 3])), Verdict::InWork);
}

#[test]
fn a_suspect_is_not_replaced_unless_one_live_copy_is_left() {
    let mut bench = Bench::new(&[Alive, Alive, Suspect, Suspect, Alive]);
    assert_eq!(bench.consider(&need(1, &[1, 2, 3])), Verdict::Enough);
    assert_eq!(bench.consider(&need(2, &[1, 3, 4])), Verdict::Planned);
    assert!(bench.planner.jobs().all(|job| job.urgent && job.source == NodeId(1)));
    assert_eq!(bench.consider(&need(3, &[3, 4])), Verdict::NoSource);
}

#[test]
fn copies_on_draining_nodes_are_sources_and_wanted_elsewhere() {
    let mut bench = Bench::new(&[Draining, Alive, Alive, Alive, Maintenance]);
    assert_eq!(bench.consider(&need(1, &[1, 2, 3])), Verdict::Planned, "three are there, and one of them leaves");
    let job = bench.planner.jobs().next().expect("planned").clone();
    assert_eq!((job.target, job.copies, job.urgent), (NodeId(4), 2, false));
    assert_eq!(bench.consider(&need(2, &[1, 2, 3, 4])), Verdict::Enough);
    assert_eq!(bench.consider(&need(3, &[1])), Verdict::Planned);
    let last = bench.planner.job_of(chunk(3)).expect("planned").clone();
    assert_eq!((last.source, last.urgent), (NodeId(1), true), "it is the only one that surely serves");
    assert_eq!(bench.consider(&need(4, &[2, 3, 5])), Verdict::Enough, "maintenance alone takes nothing away");
    // It falls silent: its copies leave all the same.
    bench.nodes[0].state = Suspect;
    assert_eq!(bench.consider(&need(5, &[1, 2, 3])), Verdict::Planned);
}

#[test]
fn a_silent_node_in_maintenance_is_replaced_only_where_one_other_copy_is_left() {
    // Maintenance keeps it suspect.
    let mut bench = Bench::new(&[Suspect, Alive, Alive, Dead, Alive]);
    assert_eq!(bench.consider(&need(1, &[1, 2, 3])), Verdict::Enough);
    assert_eq!(bench.consider(&need(2, &[1, 2, 4])), Verdict::Planned);
    assert!(bench.planner.job_of(chunk(2)).is_some_and(|job| job.urgent), "one copy surely serves");
}

#[test]
fn a_fresh_chunk_gets_time_for_its_late_copy() {
    let mut bench = Bench::new(&[Alive; 4]);
    assert_eq!(bench.consider(&need(1, &[1, 2])), Verdict::Fresh);
    bench.pass(4);
    assert_eq!(bench.consider(&need(1, &[1, 2])), Verdict::Fresh);
    bench.pass(1);
    assert_eq!(bench.consider(&need(1, &[1, 2])), Verdict::Planned);
}

#[test]
fn a_quarter_of_what_is_ordered_counts_as_made() {
    let mut bench = Bench::new(&[Alive, Alive, Dead, Alive]);
    for n in 0..4 {
        assert_eq!(bench.consider(&need(n, &[1, 3])), Verdict::Planned);
    }
    assert_eq!(bench.planner.part_made(), (0, 0), "nobody was told of it yet");
    let issued = bench.planner.issue(NodeId(1), bench.now, |_| true);
    assert_eq!(issued.len(), 4);
    assert_eq!(bench.planner.part_made(), (1, u64::from(LENGTH)));
    for job in issued {
        assert!(bench.planner.finish(job.id, None, bench.now).is_some());
    }
    assert_eq!(bench.planner.part_made(), (0, 0), "what is told is counted elsewhere");
}

#[test]
fn a_source_and_a_target_have_only_so_much_to_do() {
    let mut bench = Bench::new(&[Alive, Alive, Dead, Alive]);
    for n in 0..8 {
        assert_eq!(bench.consider(&need(n, &[1, 2, 3])), Verdict::Planned);
    }
    assert_eq!(bench.planner.loads.sending(NodeId(1)), bench.planner.loads.sending(NodeId(2)), "spread over both");
    assert_eq!(bench.consider(&need(9, &[1, 2, 3])), Verdict::Busy);
    bench.nodes[3].capacity_bytes = 0;
    bench.planner.jobs().map(|job| job.id).collect::<Vec<_>>().into_iter().for_each(|id| {
        bench.planner.finish(id, None, bench.now);
    });
    assert_eq!(bench.consider(&need(9, &[1, 2, 3])), Verdict::NoTarget, "the only other node is full");
    assert_eq!((bench.planner.active(), bench.planner.loads.sources()), (0, 0));
}

#[test]
fn endangered_chunks_pass_by_what_holds_the_others_back() {
    let mut bench = Bench::new(&[Alive, Alive, Dead, Alive, Dead]);
    bench.limit(RepairLimits { bytes_per_s: 1000, ..RepairLimits::default() });
    assert_eq!(bench.consider(&need(1, &[1, 2, 3])), Verdict::Throttled);
    for n in 10..14 {
        assert_eq!(bench.consider(&need(n, &[1, 3, 5])), Verdict::Planned);
    }
    assert!(bench.planner.jobs().all(|job| job.urgent && job.copies == 1));
    assert_eq!(bench.consider(&need(14, &[1, 3, 5])), Verdict::Busy, "bounded, too");
    bench.limit(RepairLimits::default());
    assert_eq!(bench.consider(&need(1, &[1, 2, 3])), Verdict::Planned, "what is urgent does not take its room");
    // Its job still waits for a heartbeat when the chunk loses another copy.
    assert_eq!(bench.consider(&need(2, &[1, 2, 3])), Verdict::Planned);
    bench.nodes[1].state = Dead;
    assert_eq!(bench.consider(&need(2, &[1, 2, 3])), Verdict::InWork);
    assert!(bench.planner.job_of(chunk(2)).is_some_and(|job| job.urgent));
    let order: Vec<bool> = bench.planner.issue(NodeId(1), bench.now, |_| true).iter().map(|job| job.urgent).collect();
    assert!(order.is_sorted_by(|a, b| a >= b) && order[0], "{order:?}");
}

#[test]
fn limits_are_in_force_from_the_next_round_on() {
    let mut bench = Bench::new(&[Alive, Alive, Dead, Alive]);
    assert_eq!(bench.planner.streams(), 4);
    bench.limit(RepairLimits { streams_per_node: 6, streams_total: 1, bytes_per_s: u64::from(LENGTH) });
    assert_eq!(bench.consider(&need(1, &[1, 2, 3])), Verdict::Throttled, "nothing is saved up at first");
    bench.pass(1);
    bench.limit(RepairLimits { streams_per_node: 6, streams_total: 1, bytes_per_s: u64::from(LENGTH) });
    assert_eq!(bench.consider(&need(1, &[1, 2, 3])), Verdict::Planned);
    assert_eq!(bench.consider(&need(2, &[1, 2, 3])), Verdict::Throttled);
    bench.limit(RepairLimits { streams_per_node: 6, streams_total: 1, bytes_per_s: 0 });
    for n in 2..5 {
        assert_eq!(bench.consider(&need(n, &[1, 2, 3])), Verdict::Planned);
    }
    assert_eq!(bench.planner.loads.sources(), 1, "one stream, one source");
    assert_eq!(bench.planner.streams(), 1);
    bench.limit(RepairLimits { streams_per_node: 6, streams_total: 12, bytes_per_s: 0 });
    assert_eq!(bench.consider(&need(6, &[1, 2, 3])), Verdict::Planned);
    assert_eq!(bench.planner.streams(), 6);
}

#[test]
fn a_source_that_is_late_gets_less_at_once_until_it_is_in_time_again() {
    let mut bench = Bench::new(&[Alive, Dead, Alive]);
    let plan = |bench: &mut Bench| (0..9).filter(|n| bench.consider(&need(*n, &[1, 2])) == Verdict::Planned).count();
    assert_eq!(plan(&mut bench), 4);
    bench.planner.issue(NodeId(1), bench.now, |_| true);
    assert_eq!(bench.pass(31).len(), 4);
    bench.pass(400);
    assert_eq!(plan(&mut bench), 1);
    for planned in [2, 3, 4, 4] {
        let ids: Vec<u64> = bench.planner.jobs().map(|job| job.id).collect();
        bench.planner.finish(ids[0], None, bench.now);
        for id in &ids[1..] {
            bench.planner.remove(*id);
        }
        assert_eq!(plan(&mut bench), planned);
    }
}

#[test]
fn causes_are_kept_until_they_are_forgiven() {
    let mut bench = Bench::new(&[Alive, Dead, Alive]);
    let need = need(1, &[1, 2]);
    bench.consider(&need);
    let id = bench.planner.job_of(chunk(1)).expect("planned").id;
    bench.planner.finish(id, Some(&cause(ErrorCode::NoSpace)), bench.now);
    assert_eq!(bench.consider(&need), Verdict::Paused);
    let failure = bench.planner.failure(chunk(1), bench.now).expect("kept");
    assert_eq!((failure.failures, failure.cause), (1, cause(ErrorCode::NoSpace)));
    assert_eq!(bench.planner.failures(10, bench.now).len(), 2, "for the source and the target");
    bench.planner.distrust(chunk(1), NodeId(3), "bad", bench.now);
    assert_eq!(bench.planner.forgive(&[], bench.now, |_, node| node == NodeId(3)), 1);
    assert_eq!(bench.consider(&need), Verdict::Paused, "a bad copy is still there");
    assert_eq!(bench.planner.forgive(&[chunk(1)], bench.now, |_, _| false), 1);
    assert_eq!(bench.consider(&need), Verdict::Planned);
}

#[test]
fn a_chunk_that_lost_a_copy_is_not_taken_for_a_fresh_one() {
    let mut bench = Bench::new(&[Alive; 4]);
    bench.now += Duration::from_secs(100);
    bench.planner.lost(&[chunk(1)], bench.now);
    assert_eq!(bench.consider(&need(1, &[1, 2])), Verdict::Planned);
    assert_eq!(bench.consider(&need(2, &[1, 2])), Verdict::Fresh);
}

#[test]
fn a_lost_job_is_issued_again_and_a_failed_target_gets_a_pause() {
    let mut bench = Bench::new(&[Alive, Dead, Alive]);
    let need = need(1, &[1, 2]);
    bench.consider(&need);
    assert_eq!(bench.planner.issue(NodeId(1), bench.now, |_| true).len(), 1);
    assert!(bench.planner.issue(NodeId(1), bench.now, |_| true).is_empty(), "issued once");
    assert!(bench.pass(30).is_empty());
    assert_eq!(bench.pass(1).len(), 1, "its lease ended");
    assert_eq!(bench.consider(&need), Verdict::Paused, "the only target has a pause");
    bench.pass(5);
    assert_eq!(bench.consider(&need), Verdict::Planned);
    let id = bench.planner.jobs().next().expect("planned").id;
    assert!(bench.planner.finish(id, Some(&cause(ErrorCode::NoSpace)), bench.now).is_some());
    bench.pass(6);
    assert_eq!(bench.consider(&need), Verdict::Paused, "the second pause is longer");
    bench.pass(5);
    assert_eq!(bench.consider(&need), Verdict::Planned);
}

#[test]
fn jobs_of_a_node_that_died_are_planned_anew_at_once() {
    let mut bench = Bench::new(&[Alive, Alive, Dead, Alive, Alive]);
    let need = need(1, &[1, 2, 3]);
    bench.consider(&need);
    let target = bench.planner.jobs().next().expect("planned").target;
    bench.nodes[target.0 as usize - 1].state = Suspect;
    assert!(bench.pass(0).is_empty(), "nothing timed out");
    assert_eq!(bench.consider(&need), Verdict::Planned);
    assert_ne!(bench.planner.jobs().next().expect("planned").target, target);
}

#[test]
fn a_late_report_cancels_a_job_that_waits() {
    let mut bench = Bench::new(&[Alive, Dead, Alive]);
    bench.consider(&need(1, &[1, 2]));
    assert!(bench.planner.issue(NodeId(1), bench.now, |_| false).is_empty());
    assert_eq!(bench.planner.active(), 0);
}

/// A cluster in which nodes die, answers are lost and jobs fail, until the trouble ends.
struct Simulation {
    bench: Bench,
    chunks: BTreeMap<ChunkId, BTreeSet<NodeId>>,
}

impl Simulation {
    fn new(nodes: u32, chunks: u8, rng: &mut StdRng) -> Self {
        let mut bench = Bench::new(&vec![Alive; nodes as usize]);
        bench.rng = StdRng::seed_from_u64(rng.random());
        let chunks = (0..chunks)
            .map(|n| {
                let rules = placement::Rules {
                    replication: 3,
                    write_quorum: 2,
                    chunk_bytes: u64::from(LENGTH),
                    reserve_bytes: 0,
                    avoid: &[],
                    local_host: "",
                };
                let placed = placement::place(&mut bench.nodes, rules, 1, rng).expect("room");
                (chunk(n), placed[0].iter().copied().collect())
            })
            .collect();
        Self { bench, chunks }
    }

    fn tick(&mut self, trouble: bool, rng: &mut StdRng) {
        self.bench.pass(1);
        let mut needs: Vec<Need> = self
            .chunks
            .iter()
            .map(|(id, holders)| Need {
                chunk: *id,
                length: LENGTH,
                sha256: [0; 32],
                holders: holders.iter().copied().collect(),
            })
            .collect();
        needs.sort_by_key(|need| need.holders.len());
        for need in &needs {
            self.bench.consider(need);
        }
        let bytes_max = settings().queue_bytes;
        for node in &self.bench.nodes {
            let bytes = |which: &dyn Fn(&&Job) -> bool| {
                self.bench.planner.jobs().filter(which).map(|job| u64::from(job.length)).sum::<u64>()
            };
            assert!(bytes(&|j| j.source == node.id && !j.urgent) <= bytes_max);
            assert!(bytes(&|j| j.source == node.id) <= bytes_max * 2);
            assert!(bytes(&|j| j.target == node.id) <= bytes_max * 4);
            assert_eq!(bytes(&|j| j.source == node.id), self.bench.planner.loads.sending(node.id));
        }
        let alive: Vec<NodeId> = self.bench.nodes.iter().filter(|n| n.state == Alive).map(|n| n.id).collect();
        for source in alive {
            for job in self.bench.planner.issue(source, self.bench.now, |_| true) {
                assert!(
                    self.chunks[&job.chunk].contains(&job.source) && !self.chunks[&job.chunk].contains(&job.target)
                );
                self.run(&job, trouble, rng);
            }
        }
    }

    fn run(&mut self, job: &Job, trouble: bool, rng: &mut StdRng) {
        match if trouble { rng.random_range(0..4) } else { 0 } {
            0 => {
                self.chunks.get_mut(&job.chunk).expect("known").insert(job.target);
                self.bench.planner.finish(job.id, None, self.bench.now);
            }
            1 => {
                self.bench.planner.finish(job.id, Some(&cause(ErrorCode::Unavailable)), self.bench.now);
            }
            2 => {
                // Copied, but the answer is lost.
                self.chunks.get_mut(&job.chunk).expect("known").insert(job.target);
            }
            _ => {}
        }
    }

    fn live_copies(&self, holders: &BTreeSet<NodeId>) -> usize {
        self.bench.nodes.iter().filter(|n| n.state == Alive && holders.contains(&n.id)).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_chunk_with_a_live_copy_is_whole_in_the_end(seed in any::<u64>(), chunks in 1..60u8) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut simulation = Simulation::new(6, chunks, &mut rng);
        let victim = rng.random_range(0..6usize);
        simulation.bench.nodes[victim].state = Dead;
        for _ in 0..120 {
            simulation.tick(true, &mut rng);
        }
        simulation.bench.nodes[(victim + 1) % 6].state = Dead;
        for _ in 0..1200 {
            simulation.tick(false, &mut rng);
        }
        for (id, holders) in &simulation.chunks {
            prop_assert!(simulation.live_copies(holders) >= 3, "{id}: {holders:?}");
        }
        prop_assert_eq!(simulation.bench.planner.active(), 0, "nothing is left over");
    }
}
