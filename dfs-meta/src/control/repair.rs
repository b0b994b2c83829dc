//! The repair planner: which chunk is copied from where to where. Pure: clock, needs and candidates come in.
//!
//! ```text
//!   need (from the replicated state, fewest copies first)
//!     │ plan: source and target chosen, within the limits
//!     ▼
//!   queued ──► issued with a heartbeat answer of the source ──► result ──► forgotten; the state records the copy
//!     │             │ no result within the lease                  │ failed
//!     └─────────────┴────────────► forgotten, pause for ◄─────────┘
//!                                  that chunk and node, the cause is kept
//! ```
//!
//! The planner holds no list of work to do, only the bounded set of jobs that are under way: what needs repair is derived
//! again from the state in every round, so nothing is lost when a job, its answer or the leader is lost.
//!
//! A source gets more jobs than it works on at once, bounded in bytes and number, so that it never waits for the next
//! heartbeat; how many it works on at once it is told with each answer. What is endangered (one copy left) has room and
//! streams of its own and passes the throttle by.

mod load;
pub mod progress;
mod throttle;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use dfs_common::{ChunkId, ErrorCode, NodeId, layout::Replicas, node::NodeState};
use rand::Rng;

use self::{load::Loads, progress::Progress, throttle::Throttle};
use super::{
    placement::{self, Candidate},
    settings::RepairSettings,
};
use crate::fsm::RepairLimits;

/// Pauses remembered. Beyond it the one that ends first is forgotten.
const PAUSES_MAX: usize = 16_384;
/// Chunks remembered with the moment they were first seen to lack copies. Beyond it a chunk is taken for an old one.
const FIRST_SEEN_MAX: usize = 65_536;
/// Moves of a rebalance have one in so many of the streams and of the bytes a second that repairs have.
const MOVE_SHARE: u32 = 4;
/// Longest cause of a failure that is kept, characters.
const CAUSE_MAX: usize = 200;
/// How much of what is ordered is made, as measured over whole repairs of a second and more.
const ORDERED_MADE_PERCENT: u64 = 25;

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
    pub holders: Replicas,
}

/// What is wanted of every chunk.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Copies.
    pub replication: usize,
    /// Bytes that stay free on every target.
    pub reserve_bytes: u64,
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
    /// Copies that counted when it was planned.
    pub copies: usize,
    /// Only one live copy is left.
    pub urgent: bool,
    /// Nothing lacks: a rebalance wants one more, so that another one can go.
    pub moving: bool,
    /// Whether the source has been told; before that the job waits for its heartbeat.
    pub issued: bool,
    /// When it was planned or issued.
    since: Instant,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Kind.
    pub code: ErrorCode,
    /// In the words of the node that reported it.
    pub message: String,
}

#[derive(Clone, Debug)]
struct Pause {
    until: Instant,
    failures: u32,
    last: Instant,
    cause: Cause,
}

/// A failure that still holds a chunk back from a node.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The chunk.
    pub chunk: ChunkId,
    /// The node that sent or received.
    pub node: NodeId,
    /// How often in a row.
    pub failures: u32,
    /// Time since the last one.
    pub ago: Duration,
    /// Time until the pair is tried again.
    pub again_in: Duration,
    /// Why the last one failed.
    pub cause: Cause,
}

/// Why a chunk is not being repaired at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A job was planned, or could be.
    Planned,
    /// It has enough copies.
    Enough,
    /// A job for it is under way.
    InWork,
    /// Its last copy is usually on its way.
    Fresh,
    /// No live node holds it.
    NoSource,
    /// No live node without a copy has room.
    NoTarget,
    /// Every possible target failed for it a moment ago.
    Paused,
    /// All its sources, or all its targets, have as many jobs as they may have.
    Busy,
    /// The limit of bytes a second is used up.
    Throttled,
}

/// Where a copy could go now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Route {
    source: NodeId,
    target: NodeId,
    copies: usize,
    urgent: bool,
    moving: bool,
}

/// Jobs under way and what was learned from failed ones.
#[derive(Debug)]
pub struct Planner {
    settings: RepairSettings,
    limits: RepairLimits,
    term: u64,
    counter: u32,
    jobs: BTreeMap<u64, Job>,
    /// Those of them that move.
    moving: usize,
    by_chunk: HashMap<ChunkId, u64>,
    loads: Loads,
    throttle: Throttle,
    /// Of moves: a share of the limit.
    move_throttle: Throttle,
    move_progress: Progress,
    first_seen: HashMap<ChunkId, (Instant, Instant)>,
    pauses: BTreeMap<(ChunkId, NodeId), Pause>,
    progress: Progress,
}

impl Planner {
    /// A planner of the leader of `term` with nothing under way.
    #[must_use]
    pub fn new(settings: RepairSettings, term: u64, now: Instant) -> Self {
        Self {
            loads: Loads::new(settings.queue_jobs, settings.queue_bytes),
            settings,
            limits: RepairLimits::default(),
            term,
            counter: 0,
            jobs: BTreeMap::new(),
            moving: 0,
            by_chunk: HashMap::new(),
            throttle: Throttle::new(now),
            move_throttle: Throttle::new(now),
            move_progress: Progress::default(),
            first_seen: HashMap::new(),
            pauses: BTreeMap::new(),
            progress: Progress::default(),
        }
    }

    /// Takes over the limits that are in force, and the time that has passed.
    pub fn begin_round(&mut self, limits: RepairLimits, now: Instant) {
        self.limits = limits;
        self.throttle.refill(limits.bytes_per_s, now);
        // A limit stays one, however small: 0 would be none.
        let share = limits.bytes_per_s.div_ceil(MOVE_SHARE.into());
        self.move_throttle.refill(share, now);
    }

    /// Jobs under way.
    #[must_use]
    pub fn active(&self) -> usize {
        self.jobs.len()
    }

    /// How fast copies are made.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// How fast chunks are moved.
    #[must_use]
    pub fn move_progress(&self) -> &Progress {
        &self.move_progress
    }

    /// Whether copies are being made that are lacking.
    #[must_use]
    pub fn is_repairing(&self) -> bool {
        self.jobs.len() > self.moving
    }

    /// Whether another move fits into the share of the limits that moves have.
    #[must_use]
    pub fn can_move(&self, nodes: usize) -> bool {
        let streams = usize::try_from(self.limits.streams_per_node).unwrap_or(usize::MAX).saturating_mul(nodes);
        let streams = streams.min(usize::try_from(self.limits.streams_total).unwrap_or(usize::MAX));
        self.moving < (streams / MOVE_SHARE as usize).max(1) && !self.move_throttle.is_used_up() && self.has_capacity()
    }

    /// The job of a number, while it is under way.
    #[must_use]
    pub fn job(&self, id: u64) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// Plans a copy for a chunk that lacks none, on `target`. `false` if no source can send it now, or a pause is in the way.
    pub fn plan_move<R: Rng>(
        &mut self,
        need: &Need,
        target: NodeId,
        candidates: &[Candidate],
        wanted: Wanted,
        now: Instant,
        rng: &mut R,
    ) -> bool {
        let standing = Standing::of(need, candidates, wanted);
        let is_free = self.loads.can_receive(target, false) && !self.is_paused(need.chunk, target, now);
        if self.is_in_work(need.chunk) || !is_free {
            return false;
        }
        let Some(source) = self.source(need.chunk, &standing, now, rng) else { return false };
        self.move_throttle.spend(need.length);
        self.insert(need, Route { source, target, copies: standing.copies, urgent: false, moving: true }, now);
        true
    }

    /// Nothing lacks a copy that could be made: what the repair that has ended so made, once.
    pub fn end_of_repair(&mut self) -> Option<progress::Made> {
        if self.is_repairing() { None } else { self.progress.end() }
    }

    /// Whether another job fits.
    #[must_use]
    pub fn has_capacity(&self) -> bool {
        self.jobs.len() < self.settings.total
    }

    /// Whether a job for `chunk` is under way.
    #[must_use]
    pub fn is_in_work(&self, chunk: ChunkId) -> bool {
        self.by_chunk.contains_key(&chunk)
    }

    /// The job for `chunk` that is under way.
    #[must_use]
    pub fn job_of(&self, chunk: ChunkId) -> Option<&Job> {
        self.by_chunk.get(&chunk).and_then(|id| self.jobs.get(id))
    }

    /// Whether `source` has jobs, issued or not.
    #[must_use]
    pub fn has_jobs(&self, source: NodeId) -> bool {
        self.loads.has_jobs(source)
    }

    /// Jobs that `source` may work on at once, of each kind: its share of all.
    #[must_use]
    pub fn streams(&self) -> u32 {
        let sources = u32::try_from(self.loads.sources().max(1)).unwrap_or(u32::MAX);
        (self.limits.streams_total / sources).clamp(1, self.limits.streams_per_node)
    }

    /// Forgets jobs whose lease ended and those whose source or target is no longer alive, so that they are planned anew.
    /// Returns what timed out, for the log.
    pub fn expire(&mut self, now: Instant, candidates: &[Candidate]) -> Vec<Job> {
        let alive = |node: NodeId| placement::find(candidates, node).is_some_and(|c| c.state == NodeState::Alive);
        let usable =
            |job: &Job| alive(job.target) && placement::find(candidates, job.source).is_some_and(|c| can_send(c.state));
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
                let message = format!("no result within {:?}", self.settings.lease);
                let cause = Cause { code: ErrorCode::TimedOut, message };
                self.loads.shrink(job.source, job.length);
                self.pause(job.chunk, job.target, &cause, now);
                self.pause(job.chunk, job.source, &cause, now);
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
        candidates: &mut [Candidate],
        wanted: Wanted,
        now: Instant,
        rng: &mut R,
    ) -> Verdict {
        match self.route(need, candidates, wanted, now, rng) {
            Ok(route) => {
                if !route.urgent {
                    self.throttle.spend(need.length);
                }
                if let Ok(at) = candidates.binary_search_by_key(&route.target, |c| c.id) {
                    candidates[at].outstanding_bytes += u64::from(need.length);
                }
                self.insert(need, route, now);
                Verdict::Planned
            }
            Err(Verdict::InWork) => {
                self.hasten(need, candidates, wanted);
                Verdict::InWork
            }
            Err(Verdict::Fresh) => {
                self.note_lacking(need.chunk, now, now);
                Verdict::Fresh
            }
            Err(verdict) => verdict,
        }
    }

    /// Why a chunk waits, without planning anything.
    pub fn explain<R: Rng>(
        &self,
        need: &Need,
        candidates: &[Candidate],
        wanted: Wanted,
        now: Instant,
        rng: &mut R,
    ) -> Verdict {
        self.route(need, candidates, wanted, now, rng).err().unwrap_or(Verdict::Planned)
    }

    /// What last went wrong with `chunk`.
    #[must_use]
    pub fn failure(&self, chunk: ChunkId, now: Instant) -> Option<Failure> {
        let of_chunk = self.pauses.range((chunk, NodeId(0))..=(chunk, NodeId(u32::MAX)));
        of_chunk.max_by_key(|(_, pause)| pause.last).map(|(key, pause)| failure(*key, pause, now))
    }

    /// What holds chunks back, the latest first.
    #[must_use]
    pub fn failures(&self, limit: usize, now: Instant) -> Vec<Failure> {
        let mut all: Vec<_> = self.pauses.iter().filter(|(_, pause)| pause.until > now).collect();
        all.sort_unstable_by_key(|(key, pause)| (std::cmp::Reverse(pause.last), **key));
        all.into_iter().take(limit).map(|(key, pause)| failure(*key, pause, now)).collect()
    }

    /// Forgets what speaks against repairing `chunks` (all of them without any named) at once, but for nodes with a bad
    /// copy that is not deleted yet, which `keep` tells.
    pub fn forgive(&mut self, chunks: &[ChunkId], now: Instant, keep: impl Fn(ChunkId, NodeId) -> bool) -> usize {
        let before = self.pauses.len();
        let is_meant = |chunk: &ChunkId| chunks.is_empty() || chunks.contains(chunk);
        self.pauses.retain(|(chunk, node), _| !is_meant(chunk) || keep(*chunk, *node));
        for chunk in chunks {
            self.note_lacking(*chunk, now.checked_sub(self.settings.fresh).unwrap_or(now), now);
        }
        before - self.pauses.len()
    }

    /// A copy of each chunk was lost: they are not young ones whose last copy is on its way.
    pub fn lost(&mut self, chunks: &[ChunkId], now: Instant) {
        let Some(long_ago) = now.checked_sub(self.settings.fresh) else { return };
        for chunk in chunks {
            self.note_lacking(*chunk, long_ago, now);
        }
    }

    /// The jobs that wait for `source`, now issued to it. Those that `still_wanted` denies are forgotten: a late report
    /// brought the copy.
    pub fn issue(&mut self, source: NodeId, now: Instant, still_wanted: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut issued = Vec::new();
        for id in self.loads.take_waiting(source) {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if still_wanted(job) {
                job.issued = true;
                job.since = now;
                issued.push(job.clone());
            } else {
                self.remove(id);
            }
        }
        issued.sort_by_key(|job| (!job.urgent, job.id));
        issued
    }

    /// The result of a job. `None` for a job that is no longer known.
    pub fn finish(&mut self, id: u64, failure: Option<&Cause>, now: Instant) -> Option<Job> {
        let job = self.remove(id)?;
        if let Some(cause) = failure {
            self.pause(job.chunk, job.target, cause, now);
            self.pause(job.chunk, job.source, cause, now);
        } else {
            self.loads.grow(job.source, job.length);
            let progress = if job.moving { &mut self.move_progress } else { &mut self.progress };
            progress.note(job.length, now);
            self.pauses.remove(&(job.chunk, job.target));
        }
        Some(job)
    }

    /// A bad copy of `chunk` lies on `node`: no new one goes there for a long time, or until it is known to be deleted.
    pub fn distrust(&mut self, chunk: ChunkId, node: NodeId, reason: &str, now: Instant) {
        self.pause(chunk, node, &Cause { code: ErrorCode::Corrupt, message: reason.to_owned() }, now);
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

    /// Copies, and their bytes, that are made of those that were ordered and not told to be done. What waits at its source is not
    /// begun, what is being copied is half made, and what waits to be synced, told and recorded is made: on the average of whole
    /// repairs a quarter (`ORDERED_MADE_PERCENT`). Near the end of a repair that is most of what is left.
    #[must_use]
    pub fn part_made(&self) -> (u64, u64) {
        let ordered = self.jobs.values().filter(|job| job.issued && !job.moving);
        let (chunks, bytes) = ordered.fold((0, 0), |(chunks, bytes), job| (chunks + 1, bytes + u64::from(job.length)));
        (chunks * ORDERED_MADE_PERCENT / 100, bytes * ORDERED_MADE_PERCENT / 100)
    }

    /// Chooses source and target, or says why not.
    fn route<R: Rng>(
        &self,
        need: &Need,
        candidates: &[Candidate],
        wanted: Wanted,
        now: Instant,
        rng: &mut R,
    ) -> Result<Route, Verdict> {
        if self.is_in_work(need.chunk) {
            return Err(Verdict::InWork);
        }
        let standing = Standing::of(need, candidates, wanted);
        if standing.sources.is_empty() {
            return Err(Verdict::NoSource);
        }
        if standing.is_enough(wanted) {
            return Err(Verdict::Enough);
        }
        let Standing { copies, urgent, .. } = standing;
        let nobody_lost = copies == need.holders.len() && copies == standing.sources.len();
        if nobody_lost && self.is_fresh(need.chunk, now) {
            return Err(Verdict::Fresh);
        }
        if !urgent && self.throttle.is_used_up() {
            return Err(Verdict::Throttled);
        }
        if !urgent && !self.has_capacity() {
            return Err(Verdict::Busy);
        }
        let source = self.source(need.chunk, &standing, now, rng).ok_or(Verdict::Busy)?;
        let bytes = u64::from(need.length);
        let mut find = |allowed: &dyn Fn(NodeId) -> bool| {
            placement::target(candidates, &need.holders, bytes, wanted.reserve_bytes, allowed, rng).map(|c| c.id)
        };
        let is_free = |node: NodeId| self.loads.can_receive(node, urgent);
        let target = find(&|node| is_free(node) && !self.is_paused(need.chunk, node, now)).ok_or_else(|| {
            match (find(&is_free), find(&|_| true)) {
                (Some(_), _) => Verdict::Paused,
                (None, Some(_)) => Verdict::Busy,
                (None, None) => Verdict::NoTarget,
            }
        })?;
        Ok(Route { source, target, copies, urgent, moving: false })
    }

    /// A chunk that became endangered while its job waits is urgent from now on.
    fn hasten(&mut self, need: &Need, candidates: &[Candidate], wanted: Wanted) {
        let Some(id) = self.by_chunk.get(&need.chunk) else { return };
        let Some(job) = self.jobs.get_mut(id).filter(|job| !job.urgent && !job.issued) else { return };
        if Standing::of(need, candidates, wanted).urgent {
            self.loads.remove(job);
            job.urgent = true;
            self.loads.add(job);
        }
    }

    fn insert(&mut self, need: &Need, route: Route, now: Instant) {
        self.counter = self.counter.wrapping_add(1);
        let id = (self.term << 32) | u64::from(self.counter);
        let Need { chunk, length, sha256, .. } = *need;
        let Route { source, target, copies, urgent, moving } = route;
        let job = Job { id, chunk, length, sha256, source, target, copies, urgent, moving, issued: false, since: now };
        self.loads.add(&job);
        self.jobs.insert(id, job);
        self.by_chunk.insert(chunk, id);
        self.first_seen.remove(&chunk);
        self.moving += usize::from(moving);
        let progress = if moving { &mut self.move_progress } else { &mut self.progress };
        progress.begin(now);
    }

    fn remove(&mut self, id: u64) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        self.by_chunk.remove(&job.chunk);
        self.moving -= usize::from(job.moving);
        self.loads.remove(&job);
        Some(job)
    }

    /// The source with the least to send; one that failed for this chunk a moment ago only if there is no other. While all
    /// streams are given out no further node becomes a source, but for what is urgent.
    fn source<R: Rng>(&self, chunk: ChunkId, standing: &Standing<'_>, now: Instant, rng: &mut R) -> Option<NodeId> {
        let urgent = standing.urgent;
        let no_more = !urgent && self.loads.sources() >= self.limits.streams_total as usize;
        standing
            .sources
            .iter()
            .filter(|c| self.loads.can_send(c.id, urgent) && (!no_more || self.loads.has_jobs(c.id)))
            .map(|c| (self.is_paused(chunk, c.id, now), self.loads.sending(c.id), rng.random::<u32>(), c.id))
            .min()
            .map(|(.., id)| id)
    }

    fn is_fresh(&self, chunk: ChunkId, now: Instant) -> bool {
        match self.first_seen.get(&chunk) {
            Some((first, _)) => now.saturating_duration_since(*first) < self.settings.fresh,
            None => self.first_seen.len() < FIRST_SEEN_MAX,
        }
    }

    fn note_lacking(&mut self, chunk: ChunkId, since: Instant, now: Instant) {
        if self.first_seen.len() < FIRST_SEEN_MAX || self.first_seen.contains_key(&chunk) {
            let (first, last) = self.first_seen.entry(chunk).or_insert((since, now));
            (*first, *last) = ((*first).min(since), now);
        }
    }

    fn is_paused(&self, chunk: ChunkId, node: NodeId, now: Instant) -> bool {
        self.pauses.get(&(chunk, node)).is_some_and(|pause| pause.until > now)
    }

    fn pause(&mut self, chunk: ChunkId, node: NodeId, cause: &Cause, now: Instant) {
        if self.pauses.len() >= PAUSES_MAX
            && let Some(key) = self.pauses.iter().min_by_key(|(_, pause)| pause.until).map(|(key, _)| *key)
        {
            self.pauses.remove(&key);
        }
        let cause = Cause { code: cause.code, message: cause.message.chars().take(CAUSE_MAX).collect() };
        let fresh = || Pause { until: now, failures: 0, last: now, cause: cause.clone() };
        let pause = self.pauses.entry((chunk, node)).or_insert_with(fresh);
        let wait: Duration = self.settings.backoff.saturating_mul(1 << pause.failures.min(16));
        pause.failures += 1;
        pause.until = now + wait.min(self.settings.backoff_max);
        (pause.last, pause.cause) = (now, cause);
    }
}

fn failure((chunk, node): (ChunkId, NodeId), pause: &Pause, now: Instant) -> Failure {
    Failure {
        chunk,
        node,
        failures: pause.failures,
        ago: now.saturating_duration_since(pause.last),
        again_in: pause.until.saturating_duration_since(now),
        cause: pause.cause.clone(),
    }
}

/// How a chunk stands.
struct Standing<'a> {
    /// Holders that can be told to send.
    sources: Vec<&'a Candidate>,
    /// Copies that count: those on nodes that are to be emptied do not.
    copies: usize,
    /// One of them surely serves, and more are wanted.
    urgent: bool,
}

impl<'a> Standing<'a> {
    fn of(need: &Need, candidates: &'a [Candidate], wanted: Wanted) -> Self {
        let holders = || need.holders.iter().filter_map(|id| placement::find(candidates, *id));
        let sources: Vec<&Candidate> = holders().filter(|c| can_send(c.state)).collect();
        let counts = |c: &&Candidate| !c.leaving && !matches!(c.state, NodeState::Dead | NodeState::Decommissioned);
        let copies = holders().filter(counts).count();
        let urgent = sources.len() == 1 && wanted.replication > 1;
        Self { sources, copies, urgent }
    }

    /// Suspects count as copies, for they mostly come back; but not when all but one are suspect.
    fn is_enough(&self, wanted: Wanted) -> bool {
        self.copies >= wanted.replication && !(self.urgent && self.sources.len() < self.copies)
    }
}

/// Whether a node in this state can be told to send.
fn can_send(state: NodeState) -> bool {
    match state {
        NodeState::Alive | NodeState::Draining | NodeState::Maintenance => true,
        NodeState::Suspect | NodeState::Dead | NodeState::Decommissioned => false,
    }
}

#[cfg(test)]
#[path = "repair/tests.rs"]
mod tests;
