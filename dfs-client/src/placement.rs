//! Where new chunks go: placements fetched in batches, so that a small file costs no call of its own.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use dfs_common::{ErrorCode, NodeId, layout::Replicas};
use dfs_proto::{convert, v1};
use tokio::time::Instant;

use crate::{
    Error,
    cluster::{Cluster, metadata},
    nodes::Nodes,
};

/// Placements are used for this long at most; metadata vouches for 10 s, and space and health move on.
const KEEP_MAX: Duration = Duration::from_secs(5);
/// Bounds of a batch.
const BATCH_MIN: u32 = 4;
const BATCH_MAX: u32 = 64;

pub(crate) struct Placements {
    cluster: Arc<Cluster>,
    nodes: Arc<Nodes>,
    pool: Mutex<Pool>,
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Pool {
    ready: VecDeque<Ready>,
    batch: u32,
}

#[derive(Debug)]
struct Ready {
    nodes: Replicas,
    until: Instant,
}

impl Pool {
    /// A placement that is still valid and names no node of `avoid`.
    fn take(&mut self, avoid: &[NodeId]) -> Option<Replicas> {
        let now = Instant::now();
        let before = self.ready.len();
        self.ready.retain(|ready| ready.until > now);
        if self.ready.len() < before {
            // Too many were asked for.
            self.batch = (self.batch / 2).max(BATCH_MIN);
        }
        let at = self.ready.iter().position(|ready| !ready.nodes.iter().any(|node| avoid.contains(node)))?;
        self.ready.remove(at).map(|ready| ready.nodes)
    }
}

impl Placements {
    pub(crate) fn new(cluster: Arc<Cluster>, nodes: Arc<Nodes>) -> Self {
        let pool = Mutex::new(Pool { ready: VecDeque::new(), batch: BATCH_MIN });
        Self { cluster, nodes, pool, fetching: tokio::sync::Mutex::new(()) }
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Its own function, so that the lock is gone when the caller looks at the outcome.
    fn pop(&self, avoid: &[NodeId]) -> Option<Replicas> {
        self.pool().take(avoid)
    }

    /// Nodes for one new chunk, the primary first.
    ///
    /// # Errors
    /// As the cluster: no space, not enough nodes within the deadline.
    pub(crate) async fn take(self: &Arc<Self>) -> Result<Replicas, Error> {
        let avoid = self.nodes.avoid();
        if let Some(nodes) = self.pop(&avoid) {
            self.refill_early();
            return Ok(nodes);
        }
        let _guard = self.fetching.lock().await;
        // Whoever held the lock before may have fetched enough for this one too.
        if let Some(nodes) = self.pop(&avoid) {
            return Ok(nodes);
        }
        self.pool().ready.clear();
        self.fetch(&avoid).await?;
        let taken = self.pop(&avoid).or_else(|| self.pop(&[]));
        taken.ok_or_else(|| Error::new(ErrorCode::NotEnoughNodes, "metadata gave no placement for a new chunk"))
    }

    /// Fetches the next batch while the last quarter of this one is still there.
    fn refill_early(self: &Arc<Self>) {
        let low = {
            let pool = self.pool();
            pool.ready.len() < (pool.batch / 4) as usize
        };
        if !low || self.fetching.try_lock().is_err() {
            return;
        }
        let this = self.clone();
        self.cluster.tasks.spawn(async move {
            let _guard = this.fetching.lock().await;
            let avoid = this.nodes.avoid();
            if let Err(error) = this.fetch(&avoid).await {
                // The writer that needs one asks again and reports it.
                tracing::debug!(%error, "no placements in advance");
            }
        });
    }

    async fn fetch(&self, avoid: &[NodeId]) -> Result<(), Error> {
        let session = self.cluster.session().await?;
        let count = {
            let mut pool = self.pool();
            let count = pool.batch;
            pool.batch = (count * 2).min(BATCH_MAX);
            count
        };
        let request = v1::AllocateChunksRequest {
            session_id: session.id.0,
            count,
            avoid: convert::replicas_to_wire(avoid),
            local_host: self.cluster.options.local_host.clone().unwrap_or_default(),
        };
        let what = || "choosing storage nodes for new chunks".to_owned();
        // A second attempt takes whatever there is: better a node that failed lately than none.
        let attempts = AtomicU32::new(0);
        let allocate = |c, mut q: v1::AllocateChunksRequest| {
            if attempts.fetch_add(1, Ordering::Relaxed) > 0 {
                q.avoid.clear();
            }
            async move { metadata(c).allocate_chunks(q).await }
        };
        let answer = match self.cluster.call(&what, request, allocate).await {
            Ok(answer) => answer,
            Err(error) => {
                if error.code == ErrorCode::SessionExpired {
                    self.cluster.session_lost(&session);
                }
                return Err(error);
            }
        };
        if attempts.into_inner() > 1 {
            self.nodes.forgive();
        }
        let addresses = answer.nodes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        self.nodes.learn(addresses);
        let until = Instant::now() + KEEP_MAX.min(Duration::from_millis(answer.valid_ms));
        let placements = answer.placements.iter().filter(|placement| !placement.nodes.is_empty());
        let ready = placements.map(|placement| Ready { nodes: convert::replicas(&placement.nodes), until });
        self.pool().ready.extend(ready);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(nodes: &[u32], valid: Duration) -> Ready {
        Ready { nodes: nodes.iter().copied().map(NodeId).collect(), until: Instant::now() + valid }
    }

    #[test]
    fn old_placements_and_failed_nodes_are_passed_over() {
        let hour = Duration::from_secs(3600);
        let mut pool = Pool {
            ready: [ready(&[1, 2], Duration::ZERO), ready(&[3, 4], hour), ready(&[1, 4], hour)].into(),
            batch: BATCH_MAX,
        };
        assert_eq!(pool.take(&[NodeId(3)]).expect("one fits").as_slice(), [NodeId(1), NodeId(4)]);
        assert_eq!(pool.batch, BATCH_MAX / 2, "one was too old");
        assert!(pool.take(&[NodeId(3)]).is_none());
        assert!(pool.take(&[]).is_some());
    }
}
