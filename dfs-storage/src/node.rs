//! What all rooms of a storage node share.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use dfs_common::{
    ChunkId, ErrorCode,
    crash::{self, Point},
};
use dfs_proto::status::RpcError;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    budget::Budgets,
    buffers::BufferPool,
    changes::{BadCopy, Changes},
    data_dir::Membership,
    disks::{Disk, Disks},
    engine::{ChunkEngine, EngineError},
    outbox::Outbox,
    peers::Peers,
    pool::DiskPool,
    scrub::Scrub,
    worker::checks::Checks,
    writes::Writes,
};

/// Unused read buffers kept, bytes are this many MiB.
const BUFFERS_KEPT: usize = 16;

/// Limits of the transfer of chunks.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A peer or client that makes no progress for this long is given up.
    pub stall: Duration,
    /// The same while others wait for the memory it holds.
    pub stall_contended: Duration,
    /// An upload is answered within this time after its last byte came.
    pub answer: Duration,
    /// Whether the node checks block checksums of what it sends; the reader does in any case.
    pub verify_reads: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            stall: Duration::from_secs(10),
            stall_contended: Duration::from_secs(2),
            answer: Duration::from_secs(30),
            verify_reads: false,
        }
    }
}

/// Figures since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of chunks stored.
    pub bytes_written: AtomicU64,
    /// Bytes of chunks sent to readers and to other nodes.
    pub bytes_read: AtomicU64,
    /// Chunk streams in work.
    pub streams: AtomicU32,
}

/// Counts a stream while it lives.
#[derive(Debug)]
pub struct StreamMark(Arc<Node>);

impl Drop for StreamMark {
    fn drop(&mut self) {
        self.0.counters.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A running storage node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Set at the first registration, or at start from the data directory.
    pub membership: OnceLock<Membership>,
    /// Number of the current registration; 0 before the first.
    pub incarnation: AtomicU64,
    /// The chunks.
    pub engine: Arc<dyn ChunkEngine>,
    /// The same, disk by disk.
    pub disks: Arc<Disks>,
    /// The scrub of each disk, in the same order.
    pub scrubs: Vec<Arc<Scrub>>,
    /// Copies to be read in full.
    pub checks: Checks,
    /// A copy came into quarantine.
    pub quarantined: Notify,
    /// Where engine calls run.
    pub disk: DiskPool,
    /// Memory.
    pub budgets: Budgets,
    /// Buffers of reads.
    pub buffers: Arc<BufferPool>,
    /// Connections to other nodes.
    pub peers: Peers,
    /// News for the heartbeat.
    pub changes: Changes,
    /// Reports to metadata.
    pub outbox: Outbox,
    /// Figures.
    pub counters: Counters,
    /// Limits.
    pub limits: Limits,
    /// Every task that outlives its request.
    pub tasks: TaskTracker,
    /// Cancelled at shutdown.
    pub stop: CancellationToken,
    /// Writes in work.
    pub writes: Writes,
}

impl Node {
    /// A node over the disks of `scrubs`.
    #[must_use]
    pub fn new(
        name: String,
        scrubs: Vec<Arc<Scrub>>,
        disk: DiskPool,
        memory: usize,
        limits: Limits,
        outbox: Outbox,
    ) -> Self {
        let disks = Arc::new(Disks::new(scrubs.iter().map(|scrub| scrub.disk().clone()).collect()));
        Self {
            name,
            membership: OnceLock::new(),
            incarnation: AtomicU64::new(0),
            engine: disks.clone(),
            disks,
            scrubs,
            checks: Checks::default(),
            quarantined: Notify::new(),
            disk,
            budgets: Budgets::new(memory),
            buffers: BufferPool::new(BUFFERS_KEPT),
            peers: Peers::default(),
            changes: Changes::new(),
            outbox,
            counters: Counters::default(),
            limits,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            writes: Writes::default(),
        }
    }

    /// Cluster and number.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] before the first registration.
    pub fn member(&self) -> Result<Membership, RpcError> {
        self.membership.get().copied().ok_or_else(|| {
            RpcError::new(ErrorCode::Unavailable, format!("{} is not registered with metadata yet", self.name))
        })
    }

    /// Runs engine work on the disk pool.
    ///
    /// # Errors
    /// The engine's, in wire terms.
    pub async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn ChunkEngine) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, RpcError> {
        let engine = self.engine.clone();
        self.disk.run(move || work(engine.as_ref())).await?.map_err(|error| self.wire_error(error))
    }

    /// An engine error in wire terms. A disk that fails is logged here, since it is this node's matter.
    #[must_use]
    pub fn wire_error(&self, error: EngineError) -> RpcError {
        if let EngineError::Io { .. } = error {
            tracing::error!(%error, "the disk failed");
        }
        RpcError::new(error.code(), format!("{}: {error}", self.name))
    }

    /// Whether a chunk is here, good or bad, and since when it is known to be whole (see [`Scrub::verified_ns`]). Blocks.
    ///
    /// # Errors
    /// The disk failed.
    pub fn find(&self, id: ChunkId) -> Result<Option<i64>, EngineError> {
        let Some(disk) = self.disks.holder(id)? else { return Ok(None) };
        let scrub = self.scrubs.iter().find(|scrub| scrub.disk().id() == disk.id());
        Ok(Some(scrub.map_or(0, |scrub| scrub.verified_ns(id))))
    }

    /// Notes what a failed read says about the copy here: metadata must know that it is gone, and one that may be bad is read in
    /// full.
    pub fn note_bad_copy(&self, id: ChunkId, error: &RpcError) {
        match error.code {
            ErrorCode::ChunkMissing => self.changes.removed(id),
            ErrorCode::Corrupt | ErrorCode::Io => {
                tracing::warn!(chunk = %id, %error, "a copy on this node cannot be read; it is verified");
                self.checks.suspect(id);
            }
            _ => {}
        }
    }

    /// A bad copy was set aside: metadata hears of it at once, and has it replaced.
    pub fn copy_set_aside(&self, disk: &Disk, id: ChunkId, reason: String) {
        crash::point(Point::CopySetAside);
        let path = disk.path().display().to_string();
        tracing::warn!(chunk = %id, disk = path, reason, "a corrupt copy was set aside; it is reported for repair");
        if let Some(scrub) = self.scrubs.iter().find(|scrub| scrub.disk().id() == disk.id()) {
            scrub.note_bad();
        }
        self.changes.set_aside(BadCopy { id, disk: disk.id(), path, reason });
        self.quarantined.notify_one();
    }

    /// Counts a stream until the mark is dropped.
    #[must_use]
    pub fn stream_mark(self: &Arc<Self>) -> StreamMark {
        self.counters.streams.fetch_add(1, Ordering::Relaxed);
        StreamMark(self.clone())
    }
}
