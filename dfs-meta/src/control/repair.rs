//! The repair planner: which chunk is copied from where to where. Pure: clock, needs and candidates come in.
//!
//! ```text
//!   need (from the replicated state, fewest copies first)
//!     │ plan: source and target chosen, within the limits
//!     ▼
//!   queued ──► issued with a heartbeat answer of the source ──► result ──► forgotten; the state records the copy
//!     │             │ no result within the lease                  │ failed
//!     └─────────────┴────────────► forgotten, pause for ◄─────────┘
//!                                  that chunk and node
//! ```
//!
//! The planner holds no list of work to do, only the bounded set of jobs that are under way: what needs repair is derived
//! again from the state in every round, so nothing is lost when a job, its answer or the leader is lost.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use dfs_common::{ChunkId, ErrorCode, NodeId, node::NodeState};
use rand::Rng;

use super::{
    placement::{self, Candidate},
    settings::RepairSettings,
};
use crate::fsm::record::counts_as_live;

/// Pauses remembered. Beyond it the one that ends first is forgotten.
const PAUSES_MAX: usize = 16_384;

/// A chunk that may lack copies, as the state has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The chunk.
    pub chunk: ChunkId,
    /// Its length in bytes.
    pub length: u32,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// Recorded holders.
    pub holders: Vec<NodeId>,
}

/// One copy to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Number, unique over all leaders: the term in the upper half.
    pub id: u64,
    /// The chunk.
    pub chunk: ChunkId,
    /// Its length in bytes.
    pub length: u32,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// Who sends.
    pub source: NodeId,
    /// Who receives.
    pub target: NodeId,
    /// Only one live copy is left.
    pub urgent: bool,
    /// Whether the source has been told; before that the job waits for its heartbeat.
    pub issued: bool,
    /// When it was planned or issued.
    since: Instant,
}

#[derive(Clone, Debug)]
struct Pause {
    until: Instant,
    failures: u32,
}

/// Why a chunk is not being repaired at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A job was planned.
    Planned,
    /// It has enough copies.
    Enough,
    /// A job for it is under way.
    InWork,
    /// Its last copy is usually on its way.
    Fresh,
    /// No live node holds it.
    NoSource,
    /// No node can take a copy.
    NoTarget,
    /// All jobs, or all of its sources' jobs, are taken.
    Busy,
}

/// Jobs under way and what was learned from failed ones.
#[derive(Debug)]
pub struct Planner {
    settings: RepairSettings,
    term: u64,
    counter: u32,
    jobs: BTreeMap<u64, Job>,
    by_chunk: HashMap<ChunkId, u64>,
    first_seen: HashMap<ChunkId, (Instant, Instant)>,
    pauses: HashMap<(ChunkId, NodeId), Pause>,
}

impl Planner {
    /// A planner of the leader of `term` with nothing under way.
    #[must_use]
    pub fn new(settings: RepairSettings, term: u64) -> Self {
        Self {
            settings,
            term,
            counter: 0,
            jobs: BTreeMap::new(),
            by_chunk: HashMap::new(),
            first_seen: HashMap::new(),
            pauses: HashMap::new(),
        }
    }

    /// Jobs under way.
    #[must_use]
    pub fn active(&self) -> usize {
        self.jobs.len()
    }

    /// Whether another job fits.
    #[must_use]
    pub fn has_capacity(&self) -> bool {
        self.jobs.len() < self.settings.total
    }

    /// Forgets jobs whose lease ended and those whose source or target is no longer alive, so that they are planned anew.
    /// Returns what timed out, for the log.
    pub fn expire(&mut self, now: Instant, candidates: &[Candidate]) -> Vec<Job> {
        let alive = |node: NodeId| candidates.iter().any(|c| c.id == node && c.state == NodeState::Alive);
        let usable =
            |job: &Job| alive(job.target) && candidates.iter().any(|c| c.id == job.source && can_send(c.state));
        let gone: Vec<(u64, bool)> = self
            .jobs
            .values()
            .filter_map(|job| {
                let late = now.saturating_duration_since(job.since) > self.settings.lease;
                (late || !usable(job)).then_some((job.id, late && job.issued))
            })
            .collect();
        let mut late = Vec::new();
        for (id, timed_out) in gone {
            let Some(job) = self.remove(id) else { continue };
            if timed_out {
                self.pause(job.chunk, job.target, now);
                self.pause(job.chunk, job.source, now);
                late.push(job);
            }
        }
        self.pauses.retain(|_, pause| pause.until + self.settings.backoff_max > now);
        let forget = self.settings.fresh * 12;
        self.first_seen.retain(|_, (_, last)| now.saturating_duration_since(*last) <= forget);
        late
    }

    /// Looks at one chunk and plans a job for it if it needs one and the limits allow it.
    pub fn consider<R: Rng>(
        &mut self,
        need: &Need,
        candidates: &[Candidate],
        replication: usize,
        reserve_bytes: u64,
        now: Instant,
        rng: &mut R,
    ) -> Verdict {
        if self.by_chunk.contains_key(&need.chunk) {
            return Verdict::InWork;
        }
        let holders: Vec<&Candidate> = candidates.iter().filter(|c| need.holders.contains(&c.id)).collect();
        let sources: Vec<&Candidate> = holders.iter().copied().filter(|c| can_send(c.state)).collect();
        let urgent = sources.len() == 1 && replication > 1;
        let copies = holders.iter().filter(|c| counts_as_live(c.state)).count();
        if sources.is_empty() {
            return Verdict::NoSource;
        }
        // Suspects count as copies, for they mostly come back; but not when all but one are suspect.
        if copies >= replication && !(urgent && sources.len() < holders.len()) {
            return Verdict::Enough;
        }
        let nobody_lost = copies == need.holders.len();
        if nobody_lost && copies == sources.len() && self.is_fresh(need.chunk, now) {
            return Verdict::Fresh;
        }
        if !self.has_capacity() {
            return Verdict::Busy;
        }
        let Some(source) = self.source(need.chunk, &sources, now, rng) else { return Verdict::Busy };
        let allowed = |node: NodeId| {
            self.count(|job| job.target == node) < self.settings.per_target && !self.is_paused(need.chunk, node, now)
        };
        let bytes = u64::from(need.length);
        let Some(target) = placement::target(candidates, &need.holders, bytes, reserve_bytes, allowed, rng) else {
            return Verdict::NoTarget;
        };
        let target = target.id;
        self.insert(need, source, target, urgent, now);
        Verdict::Planned
    }

    /// The jobs that wait for `source`, now issued to it. Those that `still_wanted` denies are forgotten: a late report
    /// brought the copy.
    pub fn issue(&mut self, source: NodeId, now: Instant, still_wanted: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut waiting: Vec<(bool, u64)> =
            self.jobs.values().filter(|j| j.source == source && !j.issued).map(|j| (!j.urgent, j.id)).collect();
        waiting.sort_unstable();
        let mut issued = Vec::new();
        for (_, id) in waiting {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if still_wanted(job) {
                job.issued = true;
                job.since = now;
                issued.push(job.clone());
            } else {
                self.remove(id);
            }
        }
        issued
    }

    /// The result of a job. `None` for a job that is no longer known.
    pub fn finish(&mut self, id: u64, failure: Option<ErrorCode>, now: Instant) -> Option<Job> {
        let job = self.remove(id)?;
        if failure.is_some() {
            self.pause(job.chunk, job.target, now);
            self.pause(job.chunk, job.source, now);
        } else {
            self.pauses.remove(&(job.chunk, job.target));
        }
        Some(job)
    }

    /// A bad copy of `chunk` lies on `node`: no new one goes there for a long time, or until it is known to be deleted.
    pub fn distrust(&mut self, chunk: ChunkId, node: NodeId, now: Instant) {
        self.pause(chunk, node, now);
        if let Some(pause) = self.pauses.get_mut(&(chunk, node)) {
            pause.until = now + self.settings.backoff_max;
        }
    }

    /// What spoke against `node` for `chunk` is gone.
    pub fn trust(&mut self, chunk: ChunkId, node: NodeId) {
        self.pauses.remove(&(chunk, node));
    }

    /// The jobs under way.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    fn insert(&mut self, need: &Need, source: NodeId, target: NodeId, urgent: bool, now: Instant) {
        self.counter = self.counter.wrapping_add(1);
        let id = (self.term << 32) | u64::from(self.counter);
        let Need { chunk, length, sha256, .. } = *need;
        self.jobs.insert(id, Job { id, chunk, length, sha256, source, target, urgent, issued: false, since: now });
        self.by_chunk.insert(chunk, id);
        self.first_seen.remove(&chunk);
    }

    fn remove(&mut self, id: u64) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        self.by_chunk.remove(&job.chunk);
        Some(job)
    }

    fn count(&self, which: impl Fn(&Job) -> bool) -> usize {
        self.jobs.values().filter(|job| which(job)).count()
    }

    /// The source with the fewest jobs; one that failed for this chunk a moment ago only if there is no other.
    fn source<R: Rng>(&self, chunk: ChunkId, sources: &[&Candidate], now: Instant, rng: &mut R) -> Option<NodeId> {
        sources
            .iter()
            .map(|c| {
                (self.is_paused(chunk, c.id, now), self.count(|job| job.source == c.id), rng.random::<u32>(), c.id)
            })
            .filter(|(_, jobs, ..)| *jobs < self.settings.per_source)
            .min()
            .map(|(.., id)| id)
    }

    fn is_fresh(&mut self, chunk: ChunkId, now: Instant) -> bool {
        let (first, last) = self.first_seen.entry(chunk).or_insert((now, now));
        *last = now;
        now.saturating_duration_since(*first) < self.settings.fresh
    }

    fn is_paused(&self, chunk: ChunkId, node: NodeId, now: Instant) -> bool {
        self.pauses.get(&(chunk, node)).is_some_and(|pause| pause.until > now)
    }

    fn pause(&mut self, chunk: ChunkId, node: NodeId, now: Instant) {
        if self.pauses.len() >= PAUSES_MAX
            && let Some(key) = self.pauses.iter().min_by_key(|(_, pause)| pause.until).map(|(key, _)| *key)
        {
            self.pauses.remove(&key);
        }
        let pause = self.pauses.entry((chunk, node)).or_insert(Pause { until: now, failures: 0 });
        let wait: Duration = self.settings.backoff.saturating_mul(1 << pause.failures.min(16));
        pause.failures += 1;
        pause.until = now + wait.min(self.settings.backoff_max);
    }
}

/// Whether a node in this state can be told to send.
fn can_send(state: NodeState) -> bool {
    match state {
        NodeState::Alive | NodeState::Draining => true,
        NodeState::Suspect | NodeState::Dead | NodeState::Decommissioned => false,
    }
}

#[cfg(test)]
#[path = "repair/tests.rs"]
mod tests;
