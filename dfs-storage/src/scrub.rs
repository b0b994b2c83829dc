//! The scrub of a disk: every chunk on it is read in full and checked, again and again.
//!
//! ```text
//!   Waiting ──time of the next pass, or `start`──► Running: one chunk, a pause, the next, in the order of ids ──end──► Waiting
//!                                                     │ ▲
//!                                                `pause` `resume`
//! ```
//!
//! How far a pass has come is kept in the file `SCRUB` of the data directory (see [`checkpoint`]), so a restart goes on from
//! there: at most `SAVE_CHUNKS` chunks are read twice. How long the pauses are `pace` says. The reading itself runs on the
//! disk pool like everything else that waits for disks; a bad copy is set aside by the engine and reported by the node.

pub mod checkpoint;
mod pace;
mod run;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dfs_common::{
    ChunkId,
    disk::{ScrubReport, ScrubState, ScrubVerb},
};
use tokio::{sync::Notify, time::Instant};

use crate::{disks::Disk, node::Node};
use checkpoint::{Checkpoint, Pass};
use pace::Pace;

/// Chunks after which a pass is noted on disk: a quarter of a GiB, which is read again in seconds.
const SAVE_CHUNKS: u64 = 64;
/// Time after which it is.
const SAVE_AFTER: Duration = Duration::from_secs(10);

/// When and how a node scrubs its disks.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// From the start of a pass to the start of the next one; `None`: only when it is ordered.
    pub interval: Option<Duration>,
    /// Pauses are so many times as long as what is between them.
    pub tranquility: f64,
}

/// The scrub of one disk.
#[derive(Debug)]
pub struct Scrub {
    disk: Arc<Disk>,
    settings: Settings,
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug)]
struct State {
    checkpoint: Checkpoint,
    pace: Pace,
    /// Not written since the last change that matters.
    unsaved: bool,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Next {
    /// Nothing for so long, unless an order comes.
    Rest(Duration),
    /// Go on behind this chunk.
    Read(Option<ChunkId>),
}

/// Longest rest: the wall clock may be set, and only this long is trusted.
const REST_MAX: Duration = Duration::from_secs(60);

impl Scrub {
    /// The scrub of `disk`, as it was left. Reads the checkpoint, so it blocks.
    #[must_use]
    pub fn open(disk: Arc<Disk>, settings: Settings) -> Self {
        let checkpoint = load(&disk, settings);
        let state = State { checkpoint, pace: Pace::new(settings.tranquility), unsaved: true };
        Self { disk, settings, state: Mutex::new(state), wake: Notify::new() }
    }

    /// The disk is back: how its scrub was left stands there. Blocks.
    pub fn reload(&self) {
        self.state().checkpoint = load(&self.disk, self.settings);
        self.wake.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk.
    #[must_use]
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Carries an order out. What it changes is on disk a moment later.
    pub fn order(&self, verb: ScrubVerb) {
        {
            let mut state = self.state();
            match verb {
                ScrubVerb::Start => state.begin(unix_now_ns()),
                ScrubVerb::Pause => state.checkpoint.paused = true,
                ScrubVerb::Resume => state.checkpoint.paused = false,
            }
            state.unsaved = true;
        }
        tracing::info!(disk = %self.disk.path().display(), ?verb, "order about the scrub");
        self.wake.notify_one();
    }

    /// A bad copy on this disk was set aside, whoever found it.
    pub fn note_bad(&self) {
        if let Some(pass) = &mut self.state().checkpoint.pass {
            pass.bad += 1;
        }
    }

    /// How it stands.
    #[must_use]
    pub fn report(&self) -> ScrubReport {
        let state = self.state();
        let Checkpoint { paused, next_ns, pass, last } = &state.checkpoint;
        let pass = pass.unwrap_or_default();
        let running = state.checkpoint.pass.is_some();
        let scrub_state = match (paused, running, self.settings.interval) {
            (true, ..) => ScrubState::Paused,
            (false, true, _) => ScrubState::Running,
            (false, false, Some(_)) => ScrubState::Waiting,
            (false, false, None) => ScrubState::Off,
        };
        let rate = if scrub_state == ScrubState::Running { state.pace.rate(Instant::now()) } else { None };
        ScrubReport {
            state: scrub_state,
            started_ns: pass.started_ns,
            chunks: pass.chunks,
            bytes: pass.bytes,
            bad: pass.bad,
            done: if running { pass.done() } else { 0.0 },
            bytes_per_s: rate.map_or(0.0, |rate| rate.bytes_per_s),
            eta_ms: rate
                .and_then(|rate| rate.eta(pass.done()))
                .map(|eta| u64::try_from(eta.as_millis()).unwrap_or(u64::MAX)),
            next_ns: if self.settings.interval.is_some() && !running { *next_ns } else { 0 },
            last: *last,
        }
    }

    /// Since when a chunk on this disk is known to be whole at the latest; 0 if no pass has come to it.
    #[must_use]
    pub fn verified_ns(&self, id: ChunkId) -> i64 {
        let state = self.state();
        let now = state.checkpoint.pass.filter(|pass| pass.cursor.is_some_and(|cursor| id <= cursor));
        now.map(|pass| pass.started_ns).or(state.checkpoint.last.map(|pass| pass.started_ns)).unwrap_or(0)
    }

    fn next(&self, now_ns: i64) -> Next {
        let mut state = self.state();
        if state.checkpoint.paused || self.disk.failure().is_some() {
            return Next::Rest(REST_MAX);
        }
        if let Some(pass) = state.checkpoint.pass {
            return Next::Read(pass.cursor);
        }
        if self.settings.interval.is_none() {
            return Next::Rest(REST_MAX);
        }
        let wait = state.checkpoint.next_ns.saturating_sub(now_ns);
        if wait > 0 {
            return Next::Rest(Duration::from_nanos(wait.unsigned_abs()).min(REST_MAX));
        }
        state.begin(now_ns);
        Next::Read(None)
    }

    /// When the pass should be done; `None` if nothing depends on it.
    fn deadline_ns(&self, pass: Pass) -> Option<i64> {
        self.settings.interval.map(|interval| pass.started_ns.saturating_add(nanos(interval)))
    }

    /// Starts to scrub, as a task of the node.
    pub fn start(self: &Arc<Self>, node: &Arc<Node>) {
        let (scrub, node) = (self.clone(), node.clone());
        node.tasks.clone().spawn(async move {
            node.stop.clone().run_until_cancelled(run::run(&scrub, &node)).await;
            // What was verified since the last note need not be read again.
            run::save(&scrub, &node).await;
        });
    }
}

/// How the scrub of a disk was left.
fn load(disk: &Disk, settings: Settings) -> Checkpoint {
    let now_ns = unix_now_ns();
    let mut checkpoint = Checkpoint::load(disk.path()).unwrap_or_else(|| {
        // Every copy on a new disk was verified when it was written. Nodes that were started together part ways here.
        let half = settings.interval.unwrap_or_default() / 2;
        let spread = f64::from(disk.id().as_bytes()[0]) / 256.0;
        Checkpoint { next_ns: now_ns.saturating_add(nanos(half + half.mul_f64(spread))), ..Checkpoint::default() }
    });
    if let Some(interval) = settings.interval {
        // The interval may have been made shorter, and the clock may have been wrong.
        checkpoint.next_ns = checkpoint.next_ns.min(now_ns.saturating_add(nanos(interval)));
    }
    checkpoint
}

impl State {
    fn begin(&mut self, now_ns: i64) {
        self.checkpoint.pass = Some(Pass { started_ns: now_ns, ..Pass::default() });
        self.checkpoint.paused = false;
        self.pace.forget_rate();
        self.unsaved = true;
    }
}

fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}

/// The wall clock, nanoseconds since the Unix epoch: passes are counted in days and over restarts.
fn unix_now_ns() -> i64 {
    nanos(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
}
