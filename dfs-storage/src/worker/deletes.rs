//! Deletes the chunks that metadata has doomed, and confirms each with the next heartbeat.
//!
//! Metadata repeats what is not confirmed, so a chunk that is queued already is not queued twice, and one that could not be
//! deleted is simply forgotten until it is asked for again.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dfs_common::{
    ChunkId,
    crash::{self, Point},
};
use tokio::sync::mpsc;

use crate::{engine::ChunkEngine, node::Node};

/// Chunks that may wait.
const QUEUE: usize = 65_536;
/// Chunks deleted by one piece of disk work, so that deletions share the disk threads with everything else.
const BATCH: usize = 64;

/// The queue of chunks to delete.
#[derive(Clone, Debug)]
pub struct Deletes {
    queue: mpsc::Sender<ChunkId>,
    queued: Arc<Mutex<HashSet<ChunkId>>>,
}

impl Deletes {
    /// Starts the worker; it ends with the node.
    #[must_use]
    pub fn start(node: &Arc<Node>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let deletes = Self { queue, queued: Arc::default() };
        let (node, task) = (node.clone(), deletes.clone());
        node.tasks.clone().spawn(async move {
            node.stop.clone().run_until_cancelled(task.work(waiting, node)).await;
        });
        deletes
    }

    fn queued(&self) -> MutexGuard<'_, HashSet<ChunkId>> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues chunks.
    pub fn submit(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let mut queued = self.queued();
        for id in ids {
            if queued.insert(id) && self.queue.try_send(id).is_err() {
                queued.remove(&id);
                return;
            }
        }
    }

    async fn work(self, mut waiting: mpsc::Receiver<ChunkId>, node: Arc<Node>) {
        let mut ids = Vec::with_capacity(BATCH);
        while waiting.recv_many(&mut ids, BATCH).await > 0 {
            let batch = std::mem::take(&mut ids);
            let engine = node.engine.clone();
            let asked = batch.clone();
            match node.disk.run(move || delete_all(engine.as_ref(), asked)).await {
                Ok(done) => {
                    crash::point(Point::ChunksDeleted);
                    node.changes.deleted(&done);
                }
                Err(error) => tracing::warn!(%error, "chunks could not be deleted; metadata asks again"),
            }
            let mut queued = self.queued();
            for id in &batch {
                queued.remove(id);
            }
        }
    }
}

fn delete_all(engine: &dyn ChunkEngine, ids: Vec<ChunkId>) -> Vec<ChunkId> {
    let mut done = Vec::with_capacity(ids.len());
    for id in ids {
        match engine.delete(id) {
            Ok(_) => done.push(id),
            Err(error) => tracing::warn!(chunk = %id, %error, "a chunk could not be deleted; metadata asks again"),
        }
    }
    done
}
