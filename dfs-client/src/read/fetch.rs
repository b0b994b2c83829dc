//! Verified bytes of one chunk from whichever replica gives them.
//!
//! ```text
//!   best replica ──late──► next one too (hedge) ──► the first verified answer wins
//!        │ failed ──► next one at once
//!        │ corrupt, missing ──► reported in the background, never asked again, next one at once
//!   none left ──► locations are fetched again ──► those that were unreachable are tried until the deadline
//! ```

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use dfs_common::{
    ChunkRef, ClusterId, ErrorCode, NodeId,
    backoff::{Backoff, Policy},
    checksum::BlockVerifier,
};
use dfs_proto::{convert, status::RpcError, v1};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::Instant;

use super::pieces::Pieces;
use crate::{Error, chunk, cluster::metadata, dfs::Shared, error::Attempt, nodes::Node};

/// Longest pause between two rounds over all replicas: a node that returns is found soon.
const ROUND_PAUSE_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// State of one fetch.
struct Fetch<'a> {
    shared: &'a Arc<Shared>,
    cluster_id: ClusterId,
    chunk: &'a ChunkRef,
    index: u64,
    offset: usize,
    len: usize,
    replicas: Vec<NodeId>,
    /// Replicas whose copy is bad or gone.
    bad: Vec<NodeId>,
    /// Replicas that were asked and have not answered.
    silent: Vec<Arc<Node>>,
    tried: Vec<Attempt>,
}

/// Fetches `len` bytes of `chunk` from `offset`, which lies on a block border; so does the end, or it is the chunk's end.
/// The whole chunk is verified by SHA-256, a part of it by the CRCs of its blocks.
///
/// # Errors
/// Every copy is bad or gone (`Io`), or none could be reached within the deadline (`Unavailable`).
pub(crate) async fn fetch(
    shared: &Arc<Shared>,
    chunk: &ChunkRef,
    index: u64,
    offset: usize,
    len: usize,
) -> Result<Pieces, Error> {
    let deadline = Instant::now() + shared.options.deadline;
    let (cluster_id, _) = shared.known().await?;
    let replicas = chunk.replicas.to_vec();
    let mut fetch = Fetch {
        shared,
        cluster_id,
        chunk,
        index,
        offset,
        len,
        replicas,
        bad: Vec::new(),
        silent: Vec::new(),
        tried: Vec::new(),
    };
    let pause = Policy { initial: shared.options.retry.initial, max: ROUND_PAUSE_MAX.min(shared.options.retry.max) };
    let mut backoff = Backoff::new(pause);
    loop {
        match tokio::time::timeout_at(deadline, fetch.round()).await {
            Ok(Some(pieces)) => return Ok(pieces),
            Ok(None) => {}
            Err(_) => return Err(fetch.give_up(ErrorCode::Unavailable, "no replica answered in time")),
        }
        let refreshed = tokio::time::timeout_at(deadline, fetch.refresh()).await.unwrap_or(false);
        let left = fetch.replicas.iter().any(|node| !fetch.bad.contains(node));
        if refreshed && !left {
            return Err(fetch.give_up(ErrorCode::Io, "no good copy is left"));
        }
        let delay = backoff.next_delay(&mut rand::rng());
        if Instant::now() + delay >= deadline || shared.cluster.stop.is_cancelled() {
            return Err(fetch.give_up(ErrorCode::Unavailable, "no replica could be reached"));
        }
        tokio::time::sleep(delay).await;
    }
}

impl Fetch<'_> {
    /// Asks the replicas, the best first, until one gives the true bytes.
    async fn round(&mut self) -> Option<Pieces> {
        let mut queue = self.candidates();
        let mut running = FuturesUnordered::new();
        let hedge_after = self.shared.latencies.hedge_after(self.len);
        let first = queue.pop_front()?;
        let started = Instant::now();
        self.silent = vec![first.clone()];
        running.push(self.attempt(first));
        loop {
            tokio::select! {
                Some((node, outcome)) = running.next() => {
                    self.silent.retain(|other| other.id != node.id);
                    match outcome {
                        Ok((pieces, took)) => {
                            self.shared.latencies.note(self.len, took);
                            // Remember who was overtaken, or it would be asked first again.
                            self.silent.iter().for_each(|slow| slow.overtaken(started.elapsed()));
                            return Some(pieces);
                        }
                        Err(error) => self.failed(&node, &error),
                    }
                    match queue.pop_front() {
                        Some(next) => {
                            self.silent.push(next.clone());
                            running.push(self.attempt(next));
                        }
                        None if running.is_empty() => return None,
                        None => {}
                    }
                }
                () = tokio::time::sleep(hedge_after), if !queue.is_empty() => {
                    if self.shared.latencies.may_hedge()
                        && let Some(next) = queue.pop_front()
                    {
                        self.silent.push(next.clone());
                        running.push(self.attempt(next));
                    }
                }
            }
        }
    }

    fn candidates(&self) -> VecDeque<Arc<Node>> {
        let nodes = self.replicas.iter().filter(|id| !self.bad.contains(id));
        let mut nodes: Vec<_> = nodes.filter_map(|id| self.shared.nodes.get(*id)).collect();
        nodes.sort_by_cached_key(|node| self.shared.nodes.score(node));
        nodes.into()
    }

    fn failed(&mut self, node: &Arc<Node>, error: &RpcError) {
        Error::note(&mut self.tried, &node.address(), error);
        match error.code {
            ErrorCode::Corrupt | ErrorCode::ChunkMissing => {
                self.bad.push(node.id);
                report(self.shared, self.chunk, node.id, error);
            }
            _ => {
                self.shared.nodes.failed(node.id);
                tracing::debug!(node = %node.id, %error, chunk = self.index, "a replica could not be read");
            }
        }
    }

    /// Asks metadata where the chunk is now. Gives whether it answered.
    async fn refresh(&mut self) -> bool {
        let request = v1::GetChunkLocationsRequest { chunk_ids: vec![convert::id_bytes(self.chunk.id.as_bytes())] };
        let what = || format!("finding chunk {}", self.chunk.id);
        let locate = |c, q| async move { metadata(c).get_chunk_locations(q).await };
        let answer = match self.shared.cluster.call(&what, request, locate).await {
            Ok(answer) => answer,
            Err(error) if error.code == ErrorCode::NotFound => {
                self.replicas.clear();
                return true;
            }
            Err(error) => {
                Error::note(&mut self.tried, "metadata", error);
                return false;
            }
        };
        let Ok(addresses) = answer.nodes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>() else {
            return false;
        };
        self.shared.nodes.learn(addresses);
        let found = answer.chunks.into_iter().find(|chunk| *chunk.chunk_id == *self.chunk.id.as_bytes());
        self.replicas = found.map(|chunk| convert::replicas(&chunk.replicas).to_vec()).unwrap_or_default();
        true
    }

    fn give_up(mut self, code: ErrorCode, why: &str) -> Error {
        self.silent.iter().for_each(|node| Error::note(&mut self.tried, &node.address(), "no answer"));
        let message = format!("reading chunk {} ({}): {why}", self.index, self.chunk.id);
        Error { code, message, tried: self.tried, is_local: false }
    }
}

/// Future of one attempt; free of the fetch's own borrow, so that its lists can be changed while it runs.
impl<'a> Fetch<'a> {
    fn attempt(
        &self,
        node: Arc<Node>,
    ) -> impl Future<Output = (Arc<Node>, Result<(Pieces, std::time::Duration), RpcError>)> + use<'a> {
        let (shared, chunk, cluster_id) = (self.shared, self.chunk, self.cluster_id);
        let (offset, len) = (self.offset, self.len);
        async move {
            let outcome = one(shared, chunk, cluster_id, &node, offset, len).await;
            (node, outcome)
        }
    }
}

async fn one(
    shared: &Arc<Shared>,
    chunk: &ChunkRef,
    cluster_id: ClusterId,
    node: &Arc<Node>,
    offset: usize,
    len: usize,
) -> Result<(Pieces, std::time::Duration), RpcError> {
    let range = (u32::try_from(offset).expect("within a chunk"), u32::try_from(len).expect("within a chunk"));
    let timeout = shared.options.rpc_timeout;
    let (got, took) = chunk::get(&shared.nodes, node, cluster_id, chunk.id, range, timeout).await?;
    let corrupt = |what: String| RpcError::new(ErrorCode::Corrupt, what);
    if got.header.chunk_length != chunk.length || *got.header.sha256 != chunk.sha256 {
        return Err(corrupt(format!("the node holds {} other bytes under this id", got.header.chunk_length)));
    }
    let pieces = Pieces::new(got.pieces);
    if offset == 0 && len == chunk.length as usize {
        if shared.hashing.sha256(pieces.as_slice()).await != chunk.sha256 {
            return Err(corrupt("the bytes do not match the SHA-256 of the chunk".into()));
        }
    } else {
        check_blocks(got.header.block_crc32c, pieces.as_slice()).map_err(|error| corrupt(error.to_string()))?;
    }
    Ok((pieces, took))
}

fn check_blocks(crcs: Vec<u32>, pieces: &[Bytes]) -> Result<(), dfs_common::checksum::BlockMismatch> {
    let mut verifier = BlockVerifier::new(crcs);
    pieces.iter().try_for_each(|piece| verifier.update(piece))?;
    verifier.finish()
}

/// Tells metadata of a bad copy, once in a while for each.
fn report(shared: &Arc<Shared>, chunk: &ChunkRef, node: NodeId, error: &RpcError) {
    let key = (chunk.id, node.0);
    let mut reported = shared.reported.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if reported.put(key, ()).is_some() {
        return;
    }
    drop(reported);
    let missing = error.code == ErrorCode::ChunkMissing;
    tracing::warn!(chunk = %chunk.id, %node, %error, "a bad copy was found; another one is read");
    let request = v1::ReportCorruptionRequest {
        chunk_id: convert::id_bytes(chunk.id.as_bytes()),
        node_id: node.0,
        reason: error.message.clone(),
        missing,
    };
    let shared = shared.clone();
    shared.cluster.tasks.clone().spawn(async move {
        let what = || "reporting a bad copy".to_owned();
        let report = |c, q| async move { metadata(c).report_corruption(q).await };
        if let Err(error) = shared.cluster.call(&what, request, report).await {
            // Let a later read report it again.
            tracing::debug!(%error, "not reported");
            shared.reported.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop(&key);
        }
    });
}
