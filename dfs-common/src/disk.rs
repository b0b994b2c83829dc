//! A data directory of a storage node (a disk, for short) as its node describes it.
//!
//! Times are nanoseconds since the Unix epoch, by the clock of the node.

use crate::Uuid;

/// How a disk is, as its node last said.
#[derive(Clone, PartialEq, Debug)]
pub struct DiskReport {
    /// Kept in the directory.
    pub id: Uuid,
    /// The directory.
    pub path: String,
    /// Why it was taken out; `None` while it works.
    pub failure: Option<String>,
    /// Bytes of chunks it could hold.
    pub capacity_bytes: u64,
    /// Bytes of chunk files.
    pub used_bytes: u64,
    /// Chunks.
    pub chunk_count: u64,
    /// Bad copies that were set aside on it, and their bytes.
    pub quarantined: (u64, u64),
    /// How its scrub stands.
    pub scrub: ScrubReport,
}

/// What a scrub does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ScrubState {
    /// No pass is planned.
    #[default]
    Off,
    /// Waits for the time of the next pass.
    Waiting,
    /// A pass is under way.
    Running,
    /// An administrator has paused it.
    Paused,
}

/// How the scrub of a disk stands.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct ScrubReport {
    /// What it does.
    pub state: ScrubState,
    /// When the pass that is under way began; 0 if none is.
    pub started_ns: i64,
    /// Chunks verified in it.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bad copies found in it.
    pub bad: u64,
    /// The part that is behind it, 0 to 1.
    pub done: f64,
    /// Over the last minute, pauses included.
    pub bytes_per_s: f64,
    /// Milliseconds until the pass ends, if that can be told.
    pub eta_ms: Option<u64>,
    /// When the next pass begins; 0 if none is planned.
    pub next_ns: i64,
    /// The last full pass.
    pub last: Option<ScrubPass>,
}

/// A full pass of a scrub.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubPass {
    /// When it began.
    pub started_ns: i64,
    /// When it ended.
    pub ended_ns: i64,
    /// Chunks verified.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bad copies found.
    pub bad: u64,
}

/// What an administrator orders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScrubVerb {
    /// Begin a full pass now, also if one is under way or paused.
    Start,
    /// Stand still until resumed.
    Pause,
    /// Go on.
    Resume,
}

/// An order to a node, for all its disks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubOrder {
    /// Grows with every order; a node carries each out once.
    pub number: u64,
    /// What.
    pub verb: ScrubVerb,
}

/// Something that happened to a disk and that is told once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskNotice {
    /// Kept in the directory.
    pub id: Uuid,
    /// The directory.
    pub path: String,
    /// What.
    pub what: DiskEvent,
}

/// What happened to a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskEvent {
    /// It was taken out.
    Failed {
        /// Why.
        reason: String,
        /// Chunks that were on it.
        copies: u64,
    },
    /// It works again.
    Returned,
    /// A pass of the scrub ended.
    Pass(ScrubPass),
}
