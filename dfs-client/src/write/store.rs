//! One chunk to the write quorum: placement, attempt, and again elsewhere until the deadline.

use std::sync::Arc;

use bytes::Bytes;
use dfs_common::{ChunkId, ChunkRef, ErrorCode, FileId, NodeId, backoff::Backoff};
use dfs_proto::status::RpcError;
use tokio::time::Instant;

use crate::{Error, chunk, dfs::Shared, error::Attempt, hash::Sums};

/// Where new chunk ids of a pending version come from.
pub(crate) trait Attempts {
    /// A number that was never used for this version before.
    fn next(&self) -> u64;
}

impl Attempts for std::sync::atomic::AtomicU64 {
    fn next(&self) -> u64 {
        self.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

/// State of one chunk's attempts.
struct Attempting<'a> {
    shared: &'a Shared,
    deadline: Instant,
    backoff: Backoff,
    attempts_left: u32,
    tried: Vec<Attempt>,
    no_space: bool,
}

/// Stores `data` as chunk `index` of `file_id`. Each attempt has an id of its own, because bytes under an id never change
/// and a lost answer leaves it unknown who holds what.
///
/// # Errors
/// Metadata's (no space, not enough nodes), or that no attempt reached the write quorum within the deadline.
pub(crate) async fn store(
    shared: &Arc<Shared>,
    file_id: FileId,
    index: u64,
    attempts: &(impl Attempts + Sync),
    data: &Bytes,
) -> Result<ChunkRef, Error> {
    let sums = shared.hashing.sums(data).await;
    let options = &shared.options;
    let mut state = Attempting {
        shared,
        deadline: Instant::now() + options.deadline,
        backoff: Backoff::new(options.retry),
        attempts_left: options.retry_attempts_max.unwrap_or(u32::MAX).max(1),
        tried: Vec::new(),
        no_space: false,
    };
    loop {
        let chunk_id = ChunkId::derive(file_id, index, attempts.next());
        let deadline = state.deadline;
        let late = |_| RpcError::new(ErrorCode::TimedOut, "the deadline passed");
        let attempt = tokio::time::timeout_at(deadline, state.attempt(file_id, chunk_id, data, &sums)).await;
        let error = match attempt.map_err(late).unwrap_or_else(|late| Ok(Err(late)))? {
            Ok(replicas) => {
                let length = u32::try_from(data.len()).expect("chunks are shorter than 4 GiB");
                return Ok(ChunkRef { id: chunk_id, length, sha256: sums.sha256, replicas: replicas.into() });
            }
            Err(error) => error,
        };
        state.pause(index, error).await?;
    }
}

impl Attempting<'_> {
    /// The outer error is final.
    async fn attempt(
        &mut self,
        file_id: FileId,
        chunk_id: ChunkId,
        data: &Bytes,
        sums: &Sums,
    ) -> Result<Result<Vec<NodeId>, RpcError>, Error> {
        let placement = self.shared.placements.take().await.map_err(|mut error| {
            error.tried.append(&mut self.tried);
            error
        })?;
        let (cluster_id, settings) = self.shared.known().await?;
        let (Some(primary), others) = (placement.first(), &placement[1..]) else {
            return Ok(Err(RpcError::new(ErrorCode::NotEnoughNodes, "a placement without nodes")));
        };
        let Some(primary) = self.shared.nodes.get(*primary) else {
            return Ok(Err(RpcError::new(ErrorCode::Internal, format!("node {primary} has no address"))));
        };
        let put =
            chunk::Put { cluster_id, file_id, chunk_id, data: data.clone(), sums, write_quorum: settings.write_quorum };
        let rpc_timeout = self.shared.options.rpc_timeout;
        let outcome = chunk::put(&self.shared.nodes, &primary, others, rpc_timeout, put).await;
        Ok(self.judge(&primary, settings.write_quorum, outcome))
    }

    fn judge(
        &mut self,
        primary: &crate::nodes::Node,
        quorum: u32,
        outcome: Result<chunk::Stored, RpcError>,
    ) -> Result<Vec<NodeId>, RpcError> {
        let nodes = &self.shared.nodes;
        match outcome {
            Ok(stored) => {
                for (node, error) in &stored.failed {
                    nodes.failed(*node);
                    tracing::debug!(%node, %error, "a replica was not written");
                    self.no_space |= error.code == ErrorCode::NoSpace;
                }
                if stored.nodes.len() >= quorum as usize {
                    return Ok(stored.nodes);
                }
                let message = format!("{} of {quorum} copies are durable", stored.nodes.len());
                let error = RpcError::new(ErrorCode::Unavailable, message);
                Error::note(&mut self.tried, &primary.address(), &error);
                Err(error)
            }
            Err(error) => {
                nodes.failed(primary.id);
                self.no_space |= error.code == ErrorCode::NoSpace;
                Error::note(&mut self.tried, &primary.address(), &error);
                Err(error)
            }
        }
    }

    /// Waits before the next attempt, or gives up.
    async fn pause(&mut self, index: u64, error: RpcError) -> Result<(), Error> {
        let final_now = matches!(error.code, ErrorCode::WrongCluster | ErrorCode::Incompatible | ErrorCode::TooLarge);
        self.attempts_left -= 1;
        // The first failure is answered at once: another node is likely fine.
        let delay = match self.backoff.attempts() {
            0 => self.backoff.next_delay(&mut rand::rng()) / 20,
            _ => self.backoff.next_delay(&mut rand::rng()),
        };
        if final_now || self.attempts_left == 0 || Instant::now() + delay >= self.deadline {
            let code = match error.code {
                _ if self.no_space => ErrorCode::NoSpace,
                code if final_now => code,
                _ => ErrorCode::Io,
            };
            let message =
                format!("storing chunk {index}: {} (limit {:?})", error.message, self.shared.options.deadline);
            return Err(Error { code, message, tried: std::mem::take(&mut self.tried), is_local: false });
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => Ok(()),
            () = self.shared.cluster.stop.cancelled() => {
                Err(Error::new(ErrorCode::Io, format!("storing chunk {index}: this client is being closed")))
            }
        }
    }
}
