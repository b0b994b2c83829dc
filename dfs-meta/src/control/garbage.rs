//! What may be deleted: versions that nobody references and nobody reads, and chunks that no version ever listed. Pure.
//!
//! Both wait. A released version costs a reader its data, and a deleted unknown chunk may have been a write under way, so
//! the planner asks for more certainty than the normal case needs: age, no pin, and a leader that has heard all pins.

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use dfs_common::{ChunkId, FileId, NodeId, node::NodeState};
use lru::LruCache;

use super::placement::Candidate;

/// Unknown chunks remembered. What does not fit is found again by the next full inventory.
const UNKNOWN_MAX: usize = 200_000;
/// Ended pending versions remembered. What a forgotten one left waits for the grace time, as what a dead writer left.
const ENDED_MAX: NonZeroUsize = NonZeroUsize::new(1 << 16).expect("not zero");
/// First pause before an unknown chunk is looked up again; doubled each time up to [`RECHECK_MAX`]. A chunk is unknown for a
/// moment whenever a node reports it before the writer publishes.
const RECHECK_FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const RECHECK_MAX: Duration = Duration::from_secs(60);

/// When a leader may release a version.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// Age in garbage a version must have.
    pub grace: Duration,
    /// How long this leader leads.
    pub led_for: Duration,
    /// How long it must have led: two renewal intervals, so that the pins of all clients were heard.
    pub settle: Duration,
    /// Every live session sent its full set of pins to this leader.
    pub all_pins_heard: bool,
}

/// Garbage past its grace time that waits for those who have it open, as the last look found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// How many versions.
    pub versions: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// When the oldest of them was removed or replaced, and which it is.
    pub oldest: Option<(i64, FileId)>,
}

impl Pinned {
    /// One more, in the order of age.
    pub fn add(&mut self, since_ns: i64, file: FileId, bytes: u64) {
        self.versions += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.oldest.get_or_insert((since_ns, file));
    }
}

/// The versions among `garbage` (with the leader's clock in nanoseconds when each became garbage) that may be released now,
/// at most `limit`, oldest first as given. Stops at the first one that is too young.
pub fn releasable(
    garbage: impl Iterator<Item = (i64, FileId)>,
    gate: Gate,
    now_ns: i64,
    mut is_pinned: impl FnMut(i64, FileId) -> bool,
    limit: usize,
) -> Vec<FileId> {
    if gate.led_for < gate.settle || !gate.all_pins_heard {
        return Vec::new();
    }
    let grace = i64::try_from(gate.grace.as_nanos()).unwrap_or(i64::MAX);
    let oldest_kept = now_ns.saturating_sub(grace);
    garbage
        .take_while(|(since, _)| *since <= oldest_kept)
        .filter(|(since, file)| !is_pinned(*since, *file))
        .map(|(_, file)| file)
        .take(limit)
        .collect()
}

/// The entries among `trash` (with when each came in, nanoseconds) that were kept for `retention_ns`, at most `limit`, oldest
/// first as given.
pub fn expired(
    trash: impl Iterator<Item = (i64, FileId)>,
    retention_ns: i64,
    now_ns: i64,
    limit: usize,
) -> Vec<FileId> {
    let oldest_kept = now_ns.saturating_sub(retention_ns);
    trash.take_while(|(since, _)| *since <= oldest_kept).map(|(_, file)| file).take(limit).collect()
}

/// Bytes of copies that must come free so that new chunks find room on enough nodes: what the emptiest `replication` nodes
/// that take new copies lack of `spare` of their capacity, in thousandths. 0 if that many nodes are not there: then it is not
/// the trash that is in the way.
#[must_use]
pub fn shortage(candidates: &[Candidate], replication: usize, spare: u64, reserve: u64) -> u64 {
    let mut lacks: Vec<u64> = candidates
        .iter()
        .filter(|c| matches!(c.state, NodeState::Alive | NodeState::Suspect | NodeState::Maintenance) && !c.leaving)
        .map(|c| {
            let wanted = reserve.saturating_add(c.capacity_bytes / 1000 * spare);
            wanted.saturating_sub(c.capacity_bytes.saturating_sub(c.used_bytes))
        })
        .collect();
    lacks.sort_unstable();
    lacks.into_iter().take(replication).sum()
}

#[derive(Clone, Debug)]
struct Unknown {
    file: FileId,
    first_seen: Instant,
    next: Instant,
    pause: Duration,
}

/// Chunks on disks that the state does not know, with when they were first seen.
#[derive(Debug)]
pub struct UnknownChunks {
    chunks: HashMap<(NodeId, ChunkId), Unknown>,
    due: BTreeSet<(Instant, NodeId, ChunkId)>,
    dropped: u64,
    /// Pending versions that their own writers have ended lately.
    ended: LruCache<FileId, ()>,
}

impl Default for UnknownChunks {
    fn default() -> Self {
        Self { chunks: HashMap::new(), due: BTreeSet::new(), dropped: 0, ended: LruCache::new(ENDED_MAX) }
    }
}

/// An unknown chunk that is due to be looked up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Where it is.
    pub node: NodeId,
    /// The chunk.
    pub chunk: ChunkId,
    /// The version in its footer.
    pub file: FileId,
    /// Unknown for longer than the grace time, or left by a writer that has ended its pending version and so can never
    /// list it.
    pub overdue: bool,
}

impl UnknownChunks {
    /// `node` reported a chunk that the state does not know.
    pub fn note(&mut self, node: NodeId, chunk: ChunkId, file: FileId, now: Instant) {
        if self.chunks.contains_key(&(node, chunk)) {
            return;
        }
        if self.chunks.len() >= UNKNOWN_MAX {
            self.dropped += 1;
            return;
        }
        let next = now + RECHECK_FIRST;
        self.chunks.insert((node, chunk), Unknown { file, first_seen: now, next, pause: RECHECK_FIRST });
        self.due.insert((next, node, chunk));
    }

    /// The writer of a pending version has ended it.
    pub fn ended(&mut self, file: FileId) {
        self.ended.put(file, ());
    }

    /// The chunk is no longer there, or no longer unknown.
    pub fn forget(&mut self, node: NodeId, chunk: ChunkId) {
        if let Some(unknown) = self.chunks.remove(&(node, chunk)) {
            self.due.remove(&(unknown.next, node, chunk));
        }
    }

    /// Nothing that was heard of `node` counts any more.
    pub fn forget_node(&mut self, node: NodeId) {
        self.chunks.retain(|(of, _), _| *of != node);
        self.due.retain(|(_, of, _)| *of != node);
    }

    /// Up to `limit` chunks that are due to be looked up; each is due again later until it is forgotten.
    pub fn take_due(&mut self, grace: Duration, limit: usize, now: Instant) -> Vec<Due> {
        let mut taken = Vec::new();
        while taken.len() < limit {
            let Some((at, node, chunk)) = self.due.first().copied() else { break };
            if at > now {
                break;
            }
            self.due.pop_first();
            let Some(unknown) = self.chunks.get_mut(&(node, chunk)) else { continue };
            let age = now.saturating_duration_since(unknown.first_seen);
            unknown.pause = (unknown.pause * 2).min(RECHECK_MAX);
            unknown.next = now + unknown.pause;
            self.due.insert((unknown.next, node, chunk));
            let overdue = age >= grace || self.ended.contains(&unknown.file);
            taken.push(Due { node, chunk, file: unknown.file, overdue });
        }
        taken
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many did not fit since this leader began.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_NS: i64 = 1_000_000_000;

    fn gate() -> Gate {
        Gate {
            grace: Duration::from_secs(60),
            led_for: Duration::from_secs(100),
            settle: Duration::from_secs(20),
            all_pins_heard: true,
        }
    }

    fn file(n: u8) -> FileId {
        FileId([n; 16])
    }

    #[test]
    fn a_leader_that_may_not_know_all_pins_releases_nothing() {
        let garbage = || [(0, file(1))].into_iter();
        let now = 1000 * SECOND_NS;
        let release = |gate| releasable(garbage(), gate, now, |_, _| false, 10).len();
        assert_eq!(release(gate()), 1);
        assert_eq!(release(Gate { led_for: Duration::from_secs(19), ..gate() }), 0);
        assert_eq!(release(Gate { all_pins_heard: false, ..gate() }), 0);
    }

    fn candidate(n: u32, capacity_bytes: u64, used_bytes: u64) -> Candidate {
        Candidate {
            id: NodeId(n),
            state: NodeState::Alive,
            leaving: false,
            rack: String::new(),
            host: String::new(),
            capacity_bytes,
            used_bytes,
            outstanding_bytes: 0,
            active_streams: 0,
            recently_failed: false,
        }
    }

    #[test]
    fn a_shortage_is_what_the_emptiest_nodes_lack() {
        let nodes =
            [candidate(1, 1000, 500), candidate(2, 1000, 990), candidate(3, 1000, 960), candidate(4, 1000, 999)];
        assert_eq!(shortage(&nodes, 1, 50, 0), 0);
        assert_eq!(shortage(&nodes, 2, 50, 0), 10);
        assert_eq!(shortage(&nodes, 3, 50, 0), 50);
        assert_eq!(shortage(&nodes, 3, 50, 10), 70);
        let dead = nodes.map(|node| Candidate { state: NodeState::Dead, ..node });
        assert_eq!(shortage(&dead, 3, 50, 0), 0);
    }

    #[test]
    fn the_trash_expires_oldest_first() {
        let trash = || [(10, file(1)), (20, file(2)), (30, file(3))].into_iter();
        assert_eq!(expired(trash(), 100, 120, 10), [file(1), file(2)]);
        assert_eq!(expired(trash(), 100, 130, 1), [file(1)]);
        assert_eq!(expired(trash(), 100, 100, 10), []);
        assert_eq!(expired(trash(), 0, 25, 10), [file(1), file(2)]);
    }

    proptest! {
        #[test]
        fn what_is_released_is_old_and_not_pinned(
            ages in proptest::collection::vec(0..200i64, 0..40),
            pinned in proptest::collection::hash_set(0..40u8, 0..20),
            limit in 0..50usize,
        ) {
            let now = 1_000_000 * SECOND_NS;
            let mut garbage: Vec<(i64, FileId)> =
                (0u8..).zip(&ages).map(|(n, age)| (now - age * SECOND_NS, file(n))).collect();
            garbage.sort();
            let is_pinned = |f: FileId| pinned.contains(&f.0[0]);
            let released = releasable(garbage.iter().copied(), gate(), now, |_, f| is_pinned(f), limit);
            let may: Vec<FileId> = garbage
                .iter()
                .filter(|(since, f)| now - since >= 60 * SECOND_NS && !is_pinned(*f))
                .map(|(_, f)| *f)
                .take(limit)
                .collect();
            prop_assert_eq!(released, may);
        }
    }

    #[test]
    fn unknown_chunks_are_looked_up_again_less_and_less_often() {
        let t0 = Instant::now();
        let grace = Duration::from_secs(600);
        let mut unknown = UnknownChunks::default();
        let (node, chunk) = (NodeId(1), ChunkId([1; 32]));
        unknown.note(node, chunk, file(1), t0);
        unknown.note(node, chunk, file(1), t0 + Duration::from_secs(500));
        let mut lookups = 0;
        for second in 0..600 {
            for due in unknown.take_due(grace, 10, t0 + Duration::from_secs(second)) {
                assert!(!due.overdue, "at {second}");
                lookups += 1;
            }
        }
        assert!((10..20).contains(&lookups), "{lookups}");
        let due = unknown.take_due(grace, 10, t0 + Duration::from_secs(661));
        assert_eq!(due, [Due { node, chunk, file: file(1), overdue: true }]);
        unknown.ended(file(2));
        unknown.note(node, ChunkId([9; 32]), file(2), t0);
        let due = unknown.take_due(grace, 10, t0 + Duration::from_secs(1));
        assert!(due.iter().any(|due| due.file == file(2) && due.overdue), "its writer has ended: {due:?}");
        unknown.forget(node, ChunkId([9; 32]));
        unknown.forget(node, chunk);
        assert!(unknown.is_empty() && unknown.due.is_empty());
        unknown.note(node, chunk, file(1), t0);
        unknown.note(NodeId(2), chunk, file(1), t0);
        unknown.forget_node(node);
        assert_eq!((unknown.len(), unknown.due.len()), (1, 1), "what another node has is kept");
    }
}
