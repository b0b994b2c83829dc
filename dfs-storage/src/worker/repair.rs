//! Copies chunks to other nodes when metadata asks for it.
//!
//! A job has a lease: what is not done by its end metadata gives to somebody else, so it is dropped here. Few jobs run at
//! once, since each reads and sends a whole chunk beside the clients' work; urgent ones (a chunk with one copy left) have places
//! of their own and never wait behind the others.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use dfs_common::{ChunkId, ErrorCode, NodeId};
use dfs_proto::{
    convert,
    status::RpcError,
    stream::MESSAGE_BYTES,
    v1::{PutChunkHeader, RepairJob, ReportRepairResultRequest},
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::{
    buffers::Held,
    engine::{ChunkFacts, EngineError, StoredChunk},
    node::Node,
    replicate::{self, StallRule},
};

/// Jobs in work and waiting.
const JOBS_MAX: usize = 256;
/// Pieces read ahead of the network.
const READ_AHEAD: usize = 2;
/// Jobs of one kind at once.
pub const STREAMS_DEFAULT: usize = 4;

/// The runner of repair jobs.
#[derive(Clone, Debug)]
pub struct Repairs {
    node: Arc<Node>,
    jobs: Arc<Mutex<HashSet<u64>>>,
    normal: Arc<Semaphore>,
    urgent: Arc<Semaphore>,
}

/// A job with its fields checked.
struct Job {
    id: u64,
    chunk: ChunkId,
    sha256: [u8; 32],
    target: NodeId,
    address: String,
    urgent: bool,
    lease: Duration,
}

impl Job {
    fn parse(wire: &RepairJob) -> Result<Self, RpcError> {
        Ok(Self {
            id: wire.job_id,
            chunk: convert::chunk_id(&wire.chunk_id)?,
            sha256: convert::sha256(&wire.sha256)?,
            target: NodeId(wire.target),
            address: wire.target_address.clone(),
            urgent: wire.urgent,
            lease: Duration::from_millis(wire.lease_ms),
        })
    }
}

/// Forgets a job when it ends, however it ends.
struct Running {
    repairs: Repairs,
    id: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.repairs.jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Repairs {
    /// A runner with `streams` places for normal jobs and as many for urgent ones.
    #[must_use]
    pub fn new(node: Arc<Node>, streams: usize) -> Self {
        let places = || Arc::new(Semaphore::new(streams.max(1)));
        Self { node, jobs: Arc::default(), normal: places(), urgent: places() }
    }

    /// Takes jobs on. One that is in work already, or does not fit, is ignored.
    pub fn submit(&self, jobs: &[RepairJob]) {
        for wire in jobs {
            let job = match Job::parse(wire) {
                Ok(job) => job,
                Err(error) => {
                    tracing::warn!(job = wire.job_id, %error, "metadata sent a malformed repair job");
                    continue;
                }
            };
            let mut running = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            if running.len() >= JOBS_MAX || !running.insert(job.id) {
                continue;
            }
            drop(running);
            let running = Running { repairs: self.clone(), id: job.id };
            let stop = self.node.stop.clone();
            self.node.tasks.spawn(async move {
                stop.run_until_cancelled(running.repairs.execute(&job)).await;
                drop(running);
            });
        }
    }

    async fn execute(&self, job: &Job) {
        let places = if job.urgent { &self.urgent } else { &self.normal };
        let work = async {
            let _place = places.acquire().await.expect("never closed");
            self.copy(job).await
        };
        let result = timeout(job.lease, work)
            .await
            .unwrap_or_else(|_| Err(RpcError::new(ErrorCode::TimedOut, "the job's lease ended")));
        let mut report = ReportRepairResultRequest {
            job_id: job.id,
            node_id: self.node.membership.get().map_or(0, |member| member.node.0),
            chunk_id: convert::id_bytes(job.chunk.as_bytes()),
            target: job.target.0,
            ..ReportRepairResultRequest::default()
        };
        match result {
            Ok(bytes) => (report.ok, report.bytes) = (true, bytes),
            Err(error) => {
                tracing::info!(job = job.id, chunk = %job.chunk, target = %job.target, %error, "a repair failed");
                if error.code == ErrorCode::Indeterminate {
                    self.node.changes.unreachable(job.target);
                }
                (report.code, report.message) = (error.code as u32, error.message);
            }
        }
        self.node.outbox.repaired(report);
    }

    async fn copy(&self, job: &Job) -> Result<u64, RpcError> {
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
        sent?;
        Ok(facts.length.into())
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
