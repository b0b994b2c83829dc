//! PutChunk: this node is the primary of an upload.
//!
//! ```text
//!            ┌──────────── Receiving ────────────┐  all bytes came   ┌────────────┐ quorum durable ┌──────────┐
//!  header ──►│ bytes go to the disk and to every │──────────────────►│ Collecting │───────────────►│ answered │─► late copies:
//!            │ replica as they come              │                   └────────────┘                └──────────┘   CommitChunk
//!            └───────────────────────────────────┘                         │      (and a moment for the others)
//!               │ client gone, bad bytes      │ too few copies possible    │ the same, or too late
//!               ▼                             ▼                            ▼
//!           every taker drops it          own copy removed, error names every node
//! ```
//!
//! The takers (own disk and replicas) are tasks of their own: a client that goes away after its last byte does not stop them.
//! Copies of a failed upload on other nodes are unknown to metadata and go with their next inventory.

use std::{collections::BTreeSet, fmt::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use dfs_common::{
    ErrorCode, NodeId,
    crash::{self, Point},
};
use dfs_proto::{
    status::RpcError,
    stream::{self, Reader},
    v1::{ChunkReceipt, ForwardTo, PutChunkHeader, PutChunkResponse, ReplicaFailure},
};
use http::Response;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tonic::{body::Body, transport::Channel};

use super::check;
use crate::{
    budget::Grant,
    engine::ChunkFacts,
    ingest::{self, Batch, Feed, queue_length},
    node::{Node, StreamMark},
    replicate::{self, StallRule},
    writes::WriteMark,
};

/// A quorum is enough, but a copy that ends as soon after it as the quorum took, and within this time, is part of the answer:
/// reported later it costs a call and an entry of metadata's log, and the chunk looks short of a copy until then.
const STRAGGLER_MAX: Duration = Duration::from_millis(20);

pub(super) async fn put_chunk(node: Arc<Node>, body: Body) -> Response<Body> {
    match handle(&node, body).await {
        Ok(response) => stream::unary_response(&response),
        Err(error) => {
            tracing::debug!(%error, "an upload failed");
            stream::error_response(error)
        }
    }
}

async fn handle(node: &Arc<Node>, body: Body) -> Result<PutChunkResponse, RpcError> {
    let mut reader = Reader::<PutChunkHeader>::new(body);
    let header = timeout(node.limits.stall, reader.header())
        .await
        .map_err(|_| RpcError::new(ErrorCode::TimedOut, "the header of an upload did not come"))??;
    let facts = check::put_header(node, &header)?;
    let quorum = check::forwards(node.member()?.node, &header)?;
    let channels = header.forward.iter().map(|to| node.peers.channel(&to.address)).collect::<Result<Vec<_>, _>>()?;
    let held = Arc::new(Holding {
        _grant: node.budgets.uploads.take(facts.length as usize).await?,
        _mark: node.stream_mark(),
    });
    let (upload, queues) = Upload::start(node, facts, quorum, header, channels, &held)?;
    upload.run(&mut reader, queues).await
}

/// What an upload keeps from others until its last taker is done.
struct Holding {
    _grant: Grant,
    _mark: StreamMark,
}

/// How one copy ended.
struct Outcome {
    node: NodeId,
    result: Result<(), RpcError>,
}

struct Upload {
    node: Arc<Node>,
    facts: ChunkFacts,
    quorum: usize,
    outcomes: mpsc::Receiver<Outcome>,
    pending: BTreeSet<NodeId>,
    stored: Vec<NodeId>,
    failed: Vec<(NodeId, RpcError)>,
    /// Shared with the writer of the own copy; without an acknowledgement the copy goes when both are done.
    mark: Arc<WriteMark>,
}

impl Upload {
    /// Starts a taker for every copy.
    fn start(
        node: &Arc<Node>,
        facts: ChunkFacts,
        quorum: usize,
        header: PutChunkHeader,
        channels: Vec<Channel>,
        held: &Arc<Holding>,
    ) -> Result<(Self, Vec<mpsc::Sender<Batch>>), RpcError> {
        let own = node.member()?.node;
        let mark = Arc::new(WriteMark::begin(node, facts.id)?);
        let (outcome, outcomes) = mpsc::channel(1 + channels.len());
        let mut queues = Vec::with_capacity(1 + channels.len());
        let mut pending = BTreeSet::from([own]);
        let mut queue = || {
            let (tx, rx) = mpsc::channel(queue_length(facts.length));
            queues.push(tx);
            rx
        };
        let local = queue();
        node.tasks.spawn({
            let (node, facts, outcome, held) = (node.clone(), facts.clone(), outcome.clone(), held.clone());
            let mark = mark.clone();
            async move {
                let result = ingest::write_local(&node, facts, local, &mark).await.map(drop);
                if result.is_ok() {
                    crash::point(Point::PrimaryStored);
                }
                let _ = outcome.send(Outcome { node: own, result }).await;
                drop(held);
            }
        });
        for (to, channel) in header.forward.iter().zip(channels) {
            pending.insert(NodeId(to.node_id));
            let header = PutChunkHeader { forward: vec![], write_quorum: 1, node_id: to.node_id, ..header.clone() };
            let copy = forward(node.clone(), to.clone(), channel, header, queue());
            let (outcome, held) = (outcome.clone(), held.clone());
            node.tasks.spawn(async move {
                let _ = outcome.send(copy.await).await;
                drop(held);
            });
        }
        let (stored, failed) = (vec![], vec![]);
        let upload = Self { node: node.clone(), facts, quorum, outcomes, pending, stored, failed, mark };
        Ok((upload, queues))
    }

    /// Reads the bytes, waits for the quorum and answers.
    async fn run(
        mut self,
        reader: &mut Reader<PutChunkHeader>,
        queues: Vec<mpsc::Sender<Batch>>,
    ) -> Result<PutChunkResponse, RpcError> {
        let since = Instant::now();
        self.receive(reader, queues).await?;
        self.collect(since).await?;
        crash::point(Point::QuorumStored);
        self.mark.acknowledged();
        Ok(self.answer())
    }

    async fn receive(
        &mut self,
        reader: &mut Reader<PutChunkHeader>,
        queues: Vec<mpsc::Sender<Batch>>,
    ) -> Result<(), RpcError> {
        let feed = pass_on(Feed::new(reader, self.facts.length, self.node.limits.stall), queues);
        let mut feed = std::pin::pin!(feed);
        loop {
            tokio::select! {
                biased;
                Some(outcome) = self.outcomes.recv() => {
                    self.note(outcome);
                    if self.is_hopeless() {
                        return Err(self.failure());
                    }
                }
                fed = &mut feed => return fed,
            }
        }
    }

    async fn collect(&mut self, since: Instant) -> Result<(), RpcError> {
        let deadline = Instant::now() + self.node.limits.answer;
        while self.stored.len() < self.quorum {
            if self.is_hopeless() {
                return Err(self.failure());
            }
            match timeout_at(deadline, self.outcomes.recv()).await {
                Ok(Some(outcome)) => self.note(outcome),
                Ok(None) | Err(_) => return Err(self.failure()),
            }
        }
        let moment = Instant::now() + since.elapsed().min(STRAGGLER_MAX);
        while !self.pending.is_empty()
            && let Ok(Some(outcome)) = timeout_at(moment, self.outcomes.recv()).await
        {
            self.note(outcome);
        }
        Ok(())
    }

    fn note(&mut self, outcome: Outcome) {
        self.pending.remove(&outcome.node);
        match outcome.result {
            Ok(()) => self.stored.push(outcome.node),
            Err(error) => self.failed.push((outcome.node, error)),
        }
    }

    fn is_hopeless(&self) -> bool {
        self.stored.len() + self.pending.len() < self.quorum
    }

    /// Why the quorum cannot be reached: the cause that all failed copies share, else a list.
    fn failure(&self) -> RpcError {
        let mut message = format!("only {} of {} copies of chunk {}", self.stored.len(), self.quorum, self.facts.id);
        for (node, error) in &self.failed {
            let _ = write!(message, "; node {node}: {error}");
        }
        for node in &self.pending {
            let _ = write!(message, "; node {node}: no answer yet");
        }
        let mut codes = self.failed.iter().map(|(_, error)| error.code);
        let shared = codes.next().filter(|code| codes.all(|other| other == *code) && self.is_hopeless());
        let code = match shared {
            Some(code @ (ErrorCode::NoSpace | ErrorCode::Corrupt | ErrorCode::AlreadyExists)) => code,
            _ => ErrorCode::Unavailable,
        };
        RpcError::new(code, message)
    }

    fn answer(self) -> PutChunkResponse {
        let response = PutChunkResponse {
            stored: self.stored.iter().map(|node| node.0).collect(),
            failed: self
                .failed
                .iter()
                .map(|(node, error)| ReplicaFailure {
                    node_id: node.0,
                    code: error.code as u32,
                    message: error.message.clone(),
                })
                .collect(),
            pending: self.pending.iter().map(|node| node.0).collect(),
        };
        if !self.pending.is_empty() {
            let node = self.node.clone();
            node.tasks.spawn(self.report_late());
        }
        response
    }

    /// Tells metadata of copies that end after the answer.
    async fn report_late(mut self) {
        while let Some(Outcome { node, result }) = self.outcomes.recv().await {
            match result {
                Ok(()) => {
                    crash::point(Point::LateCopyStored);
                    self.node.outbox.receipt(self.receipt(node));
                }
                Err(error) => {
                    tracing::info!(chunk = %self.facts.id, %node, %error, "a late copy failed; repair makes it");
                }
            }
        }
    }
}

impl Upload {
    fn receipt(&self, node: NodeId) -> ChunkReceipt {
        ChunkReceipt {
            chunk_id: Bytes::copy_from_slice(self.facts.id.as_bytes()),
            length: self.facts.length,
            sha256: Bytes::copy_from_slice(&self.facts.sha256),
            replicas: vec![node.0],
            file_id: Bytes::copy_from_slice(self.facts.file_id.as_bytes()),
        }
    }
}

/// Puts the batches into every taker's queue until the stream ends.
async fn pass_on(mut feed: Feed<'_>, queues: Vec<mpsc::Sender<Batch>>) -> Result<(), RpcError> {
    while let Some(batch) = feed.next().await? {
        // A queue takes the whole chunk, so the only failure is a taker that has ended; its outcome says why.
        for queue in &queues {
            let _ = queue.try_send(batch.clone());
        }
    }
    Ok(())
}

/// Sends the copy to another node as it comes in `queue`.
async fn forward(
    node: Arc<Node>,
    to: ForwardTo,
    channel: Channel,
    header: PutChunkHeader,
    queue: mpsc::Receiver<Batch>,
) -> Outcome {
    let rule = StallRule {
        patience: node.limits.stall,
        contended: Some((&node.budgets.uploads, node.limits.stall_contended)),
    };
    let target = NodeId(to.node_id);
    let result = replicate::send(channel, header, queue, rule).await.map_err(|error| {
        if error.code == ErrorCode::Indeterminate && node.changes.unreachable(target) {
            tracing::info!(node = %target, address = %to.address, %error, "a storage node is unreachable");
        }
        RpcError::new(error.code, format!("{}: {}", to.address, error.message))
    });
    Outcome { node: target, result }
}
