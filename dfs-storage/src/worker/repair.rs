//! Copies chunks to other nodes when metadata asks for it.
//!
//! A job has a lease: what is not done by its end metadata gives to somebody else, so it is dropped here. Few jobs run at
//! once, since each reads and sends a whole chunk beside the clients' work; urgent ones (a chunk with one copy left) have places
//! of their own and never wait behind the others.
//!
//! Metadata says with every heartbeat how many streams there may be, and hands out more jobs than these can do at once, so that
//! a stream never waits for the next heartbeat. Small chunks share a stream: their time goes into waiting for syncs, not into
//! bytes.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use dfs_common::{
    ChunkId, ErrorCode, NodeId,
    crash::{self, Point},
};
use dfs_proto::{
    convert,
    status::RpcError,
    stream::MESSAGE_BYTES,
    v1::{PutChunkHeader, RepairJob, RepairOutcome},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::{
    buffers::Held,
    engine::{ChunkFacts, EngineError, StoredChunk},
    node::Node,
    replicate::{self, StallRule},
};

/// Jobs in work and waiting, of both kinds together: metadata gives a node at most 512 of each.
const JOBS_MAX: usize = 2048;
/// Parts of a stream. A chunk of 4 MiB takes all of them, one of up to 256 KiB takes one.
const STREAM_PARTS: u32 = 16;
/// Bytes for which a job takes one part.
const PART_BYTES: u32 = 256 << 10;
/// Pieces read ahead of the network.
const READ_AHEAD: usize = 2;
/// Streams of one kind until metadata says how many.
const STREAMS_DEFAULT: u32 = 4;

/// The runner of repair jobs.
#[derive(Clone, Debug)]
pub struct Repairs {
    node: Arc<Node>,
    /// Streams that this node never exceeds, whatever metadata says.
    streams_max: u32,
    queue: Arc<Mutex<Queue>>,
}

/// Jobs in work and waiting. Index 0: normal ones, 1: urgent ones.
#[derive(Debug, Default)]
struct Queue {
    known: HashSet<u64>,
    waiting: [VecDeque<Job>; 2],
    /// Parts of streams that the jobs in work have.
    parts: [u32; 2],
    streams: u32,
}

impl Queue {
    /// Takes a job on, unless it is here already or does not fit.
    fn push(&mut self, job: Job) {
        if self.known.len() < JOBS_MAX && self.known.insert(job.id) {
            self.waiting[usize::from(job.urgent)].push_back(job);
        }
    }

    /// The next job that may start. A job that is larger than all streams starts alone.
    fn next(&mut self) -> Option<Job> {
        let room = self.streams.max(1) * STREAM_PARTS;
        let kind = [1, 0].into_iter().find(|kind| {
            let parts = self.parts[*kind];
            self.waiting[*kind].front().is_some_and(|job| parts == 0 || parts + job.parts() <= room)
        })?;
        let job = self.waiting[kind].pop_front()?;
        self.parts[kind] += job.parts();
        Some(job)
    }

    fn done(&mut self, job: &Job) {
        self.known.remove(&job.id);
        self.parts[usize::from(job.urgent)] -= job.parts();
    }
}

/// A job with its fields checked.
#[derive(Debug)]
struct Job {
    id: u64,
    chunk: ChunkId,
    length: u32,
    sha256: [u8; 32],
    target: NodeId,
    address: String,
    urgent: bool,
    /// End of the lease.
    until: Instant,
}

impl Job {
    fn parse(wire: &RepairJob) -> Result<Self, RpcError> {
        Ok(Self {
            id: wire.job_id,
            chunk: convert::chunk_id(&wire.chunk_id)?,
            length: wire.length,
            sha256: convert::sha256(&wire.sha256)?,
            target: NodeId(wire.target),
            address: wire.target_address.clone(),
            urgent: wire.urgent,
            until: Instant::now() + Duration::from_millis(wire.lease_ms),
        })
    }

    fn parts(&self) -> u32 {
        (self.length / PART_BYTES).clamp(1, STREAM_PARTS)
    }
}

/// A job in work: makes room for the next when it ends, however it ends.
struct Running {
    repairs: Repairs,
    job: Job,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.repairs.queue().done(&self.job);
        if !self.repairs.node.stop.is_cancelled() {
            self.repairs.start_more();
        }
    }
}

impl Repairs {
    /// A runner of at most `streams_max` streams for normal jobs and as many for urgent ones.
    #[must_use]
    pub fn new(node: Arc<Node>, streams_max: u32) -> Self {
        let streams_max = streams_max.max(1);
        let queue = Queue { streams: STREAMS_DEFAULT.min(streams_max), ..Queue::default() };
        Self { node, streams_max, queue: Arc::new(Mutex::new(queue)) }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes jobs on, and the number of streams; 0 leaves it. A job that is in work already, or does not fit, is ignored.
    pub fn submit(&self, jobs: &[RepairJob], streams: u32) {
        let mut queue = self.queue();
        if streams > 0 {
            queue.streams = streams.min(self.streams_max);
        }
        for wire in jobs {
            match Job::parse(wire) {
                Ok(job) => queue.push(job),
                Err(error) => tracing::warn!(job = wire.job_id, %error, "metadata sent a malformed repair job"),
            }
        }
        drop(queue);
        self.start_more();
    }

    fn start_more(&self) {
        loop {
            let Some(job) = self.queue().next() else { return };
            let running = Running { repairs: self.clone(), job };
            let stop = self.node.stop.clone();
            self.node.tasks.spawn(async move {
                stop.run_until_cancelled(running.repairs.execute(&running.job)).await;
                drop(running);
            });
        }
    }

    async fn execute(&self, job: &Job) {
        let result = timeout_at(job.until, self.copy(job))
            .await
            .unwrap_or_else(|_| Err(RpcError::new(ErrorCode::TimedOut, "the job's lease ended")));
        let mut outcome = RepairOutcome {
            job_id: job.id,
            chunk_id: convert::id_bytes(job.chunk.as_bytes()),
            target: job.target.0,
            ..RepairOutcome::default()
        };
        if let Err(error) = result {
            tracing::info!(job = job.id, chunk = %job.chunk, target = %job.target, %error, "a repair failed");
            if error.code == ErrorCode::Indeterminate {
                self.node.changes.unreachable(job.target);
            }
            (outcome.code, outcome.message) = (error.code as u32, error.message);
        } else {
            crash::point(Point::RepairCopied);
        }
        self.node.outbox.repaired(outcome);
    }

    async fn copy(&self, job: &Job) -> Result<(), RpcError> {
        let member = self.node.member()?;
        let id = job.chunk;
        let chunk = self
            .node
            .on_disk(move |engine| engine.open(id))
            .await
            .inspect_err(|error| self.node.note_bad_copy(id, error))?;
        let facts = chunk.facts().clone();
        if facts.sha256 != job.sha256 {
            let error = RpcError::new(ErrorCode::Corrupt, format!("the copy of chunk {id} here has another SHA-256"));
            self.node.note_bad_copy(id, &error);
            return Err(error);
        }
        let _mark = self.node.stream_mark();
        let channel = self.node.peers.channel(&job.address)?;
        let (queue, batches) = mpsc::channel(READ_AHEAD);
        let header = header(&facts, member.cluster.as_bytes(), job.target);
        let rule = StallRule { patience: self.node.limits.stall, contended: None };
        let read = async {
            let read = self.read(chunk, &queue).await;
            // Ends the copy if reading failed: the target then knows that bytes are missing.
            drop(queue);
            read
        };
        let (read, sent) = tokio::join!(read, replicate::send(channel, header, batches, rule));
        read?;
        sent
    }

    /// Reads the chunk block by block, each checked, so that a bad copy is never spread and is known to be ours.
    async fn read(&self, chunk: Arc<dyn StoredChunk>, queue: &mpsc::Sender<Vec<Bytes>>) -> Result<(), RpcError> {
        let length = chunk.facts().length;
        let (mut offset, stream) = (0, Arc::new(()));
        while offset < length {
            let part = (length - offset).min(MESSAGE_BYTES as u32);
            let mut buffer = self.node.buffers.take(part as usize, Held { grant: None, stream: stream.clone() });
            let source = chunk.clone();
            let filled = self.node.on_disk(move |_| {
                source.read_at(buffer.as_mut_slice(), offset)?;
                let facts = source.facts();
                facts
                    .check_blocks(offset, buffer.as_ref())
                    .map_err(|mismatch| EngineError::Corrupt { id: facts.id, reason: mismatch.to_string() })?;
                Ok(buffer)
            });
            let buffer = filled.await.inspect_err(|error| self.node.note_bad_copy(chunk.facts().id, error))?;
            if queue.send(vec![buffer.freeze()]).await.is_err() {
                return Ok(()); // the other side has refused, and says why
            }
            self.node.counters.bytes_read.fetch_add(part.into(), Ordering::Relaxed);
            offset += part;
        }
        Ok(())
    }
}

fn header(facts: &ChunkFacts, cluster_id: &[u8], target: NodeId) -> PutChunkHeader {
    PutChunkHeader {
        cluster_id: convert::id_bytes(cluster_id),
        chunk_id: convert::id_bytes(facts.id.as_bytes()),
        file_id: convert::id_bytes(facts.file_id.as_bytes()),
        length: facts.length,
        sha256: convert::id_bytes(&facts.sha256),
        block_crc32c: facts.block_crcs.clone(),
        forward: vec![],
        write_quorum: 1,
        capability: Bytes::new(),
        node_id: target.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: u64, length: u32, urgent: bool) -> Job {
        Job {
            id,
            chunk: ChunkId([0; 32]),
            length,
            sha256: [0; 32],
            target: NodeId(1),
            address: String::new(),
            urgent,
            until: Instant::now(),
        }
    }

    fn start_all(queue: &mut Queue) -> Vec<Job> {
        std::iter::from_fn(|| queue.next()).collect()
    }

    #[test]
    fn small_chunks_share_a_stream_and_urgent_ones_have_their_own() {
        let mut queue = Queue { streams: 2, ..Queue::default() };
        (0..3).for_each(|id| queue.push(job(id, 4 << 20, false)));
        queue.push(job(0, 4 << 20, false));
        queue.push(job(50, 64 << 20, true));
        let mut running = start_all(&mut queue);
        assert_eq!(running.iter().map(|job| job.id).collect::<Vec<_>>(), [50, 0, 1]);
        (100..200).for_each(|id| queue.push(job(id, 4096, false)));
        assert!(queue.next().is_none(), "the third large one is next, and does not fit");
        queue.done(&running.remove(1));
        queue.done(&running.remove(1));
        assert_eq!(start_all(&mut queue).len(), 1 + 16, "a large one and a stream of small ones");
    }

    #[test]
    fn the_number_of_streams_changes_while_jobs_run() {
        let mut queue = Queue { streams: 4, ..Queue::default() };
        (0..8).for_each(|id| queue.push(job(id, 4 << 20, false)));
        let mut running = start_all(&mut queue);
        assert_eq!(running.len(), 4);
        queue.streams = 1;
        queue.done(&running.remove(0));
        assert!(queue.next().is_none());
        running.drain(..).for_each(|job| queue.done(&job));
        assert_eq!(start_all(&mut queue).len(), 1);
        queue.streams = 3;
        assert_eq!(start_all(&mut queue).len(), 2);
        assert_eq!(queue.known.len(), 4, "what is done is forgotten");
    }
}
