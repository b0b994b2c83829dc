//! Single events that storage nodes and clients report: finished uploads, finished repairs, bad copies.

use std::collections::BTreeSet;

use dfs_common::{
    ChunkId, ErrorCode, NodeId,
    crash::{self, Point},
};
use dfs_proto::status::RpcError;

use super::{Handle, repair::Cause, unix_now_ns};
use crate::fsm::{Command, Fact, Receipt, Reply};

/// Outcome of a repair job as its source reports it.
#[derive(Clone, Debug)]
pub struct RepairResult {
    /// Number of the job.
    pub job: u64,
    /// The chunk.
    pub chunk: ChunkId,
    /// Where it was sent.
    pub target: NodeId,
    /// Why it failed, or `None`.
    pub failure: Option<Cause>,
}

/// A copy that a reader could not use.
#[derive(Clone, Debug)]
pub struct BadCopy {
    /// The chunk.
    pub chunk: ChunkId,
    /// Where.
    pub node: NodeId,
    /// What was wrong.
    pub reason: String,
    /// It is not there at all.
    pub missing: bool,
}

impl Handle {
    /// Primaries report finished uploads.
    ///
    /// # Errors
    /// What [`crate::raft::Handle::propose`] says.
    pub async fn commit_chunks(&self, receipts: Vec<Receipt>) -> Result<(), RpcError> {
        if receipts.is_empty() {
            return Ok(());
        }
        let (holders, files): (Vec<_>, Vec<_>) =
            receipts.iter().map(|r| ((r.chunk, r.replicas.clone()), (r.chunk, r.file))).unzip();
        let Reply::Chunks { skipped } = self.apply(Command::CommitChunks { receipts }).await? else {
            return Ok(());
        };
        // Their version is neither pending nor published: left behind by a writer that gave up.
        self.lead(|soft, now| {
            for ((chunk, replicas), (_, file)) in holders.iter().zip(&files).filter(|((c, _), _)| skipped.contains(c)) {
                replicas.iter().for_each(|node| soft.unknown.note(*node, *chunk, *file, now));
            }
        })
    }

    /// Repair jobs of `source` ended. All copies that were made are one command.
    ///
    /// # Errors
    /// What [`crate::raft::Handle::propose`] says; the jobs' lease then has them done again.
    pub async fn repair_results(&self, source: NodeId, results: Vec<RepairResult>) -> Result<(), RpcError> {
        // Also for jobs that this leader does not know: the copies are there. What was made for a chunk that nobody
        // references any more is found by the inventory.
        let replicas: Vec<_> = results.iter().filter(|r| r.failure.is_none()).map(|r| (r.chunk, r.target)).collect();
        if !replicas.is_empty() {
            // Moves are recorded when the other copy has gone.
            let moved = self.lead(|soft, _| {
                let is_move = |id: u64| soft.planner.job(id).is_some_and(|job| job.moving);
                let moved = results.iter().filter(|result| is_move(result.job));
                moved.map(|result| result.chunk).collect::<BTreeSet<ChunkId>>()
            })?;
            let before: Vec<(u32, u64)> = self.inner.raft.peek(|state| {
                let record =
                    |(chunk, _): &(ChunkId, NodeId)| state.chunk(*chunk).map(|c| (c.live(), u64::from(c.length)));
                replicas.iter().filter(|(chunk, _)| !moved.contains(chunk)).filter_map(record).collect()
            });
            crash::point(Point::RepairHeard);
            self.apply(Command::ReplicasAdded { replicas }).await?;
            let now_ns = unix_now_ns();
            for (live, bytes) in before {
                self.record_event(Fact::RepairProgress { live, chunks: 1, bytes, from_ns: now_ns, to_ns: now_ns });
            }
        }
        for RepairResult { chunk, target, failure, .. } in &results {
            match failure {
                None => {}
                Some(Cause { code: ErrorCode::ChunkMissing, .. }) => {
                    let recorded = |c: &crate::fsm::Chunk| c.replicas.contains(&source);
                    if self.inner.raft.peek(|state| state.chunk(*chunk).is_some_and(recorded)) {
                        self.lose(source, vec![*chunk], "it has nothing to copy for a repair").await?;
                    }
                }
                Some(Cause { code, message }) => {
                    tracing::info!(%chunk, %source, %target, %code, message, "repair failed, it is tried again");
                    let (chunk, target, reason) = (*chunk, *target, format!("{code}: {message}"));
                    self.record_event(Fact::RepairFailed { chunk, source, target, reason, failures: 1 });
                }
            }
        }
        self.lead(|soft, now| {
            for result in &results {
                soft.planner.finish(result.job, result.failure.as_ref(), now);
            }
        })?;
        self.inner.finished.notify_one();
        Ok(())
    }

    /// Somebody could not use a copy. Its node is asked to read it in full; only what the node then says changes the record.
    ///
    /// # Errors
    /// What [`crate::raft::Handle::read`] says.
    pub async fn bad_copy(&self, bad: BadCopy) -> Result<(), RpcError> {
        let BadCopy { chunk, node, reason, missing } = bad;
        let is_recorded = |c: &crate::fsm::Chunk| c.replicas.contains(&node);
        // What is not recorded was reported before, or by somebody with an old layout.
        if self.inner.raft.read(|state| state.chunk(chunk).is_some_and(is_recorded)).await? {
            let is_news = self.lead(|soft, now| soft.checks.report(node, chunk, &reason, now))?;
            if is_news {
                tracing::info!(%chunk, %node, reason, missing, "a copy was reported as bad; its node is asked");
            }
        }
        Ok(())
    }
}
