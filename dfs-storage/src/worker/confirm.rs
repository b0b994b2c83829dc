//! Reads and checks copies whose siblings elsewhere are to be deleted, and tells metadata which are whole.
//!
//! One chunk at a time: nothing that waits for it is urgent, and reads of clients share the disk. A copy that is missing or bad
//! is reported as one, and not confirmed. Metadata asks again for what it has not heard of, so nothing here must last.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dfs_common::ChunkId;
use tokio::sync::mpsc;

use crate::node::Node;

/// Chunks that may wait; metadata asks for 64 at once.
const QUEUE: usize = 256;
/// Chunks whose outcomes are told together.
const BATCH: usize = 16;

/// The queue of copies to confirm.
#[derive(Clone, Debug)]
pub struct Confirms {
    queue: mpsc::Sender<ChunkId>,
    queued: Arc<Mutex<HashSet<ChunkId>>>,
}

impl Confirms {
    /// Starts the worker; it ends with the node.
    #[must_use]
    pub fn start(node: &Arc<Node>) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let confirms = Self { queue, queued: Arc::default() };
        let (node, task) = (node.clone(), confirms.clone());
        node.tasks.clone().spawn(async move {
            node.stop.clone().run_until_cancelled(task.work(waiting, &node)).await;
        });
        confirms
    }

    fn queued(&self) -> MutexGuard<'_, HashSet<ChunkId>> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues chunks. One that waits already, or does not fit, is ignored.
    pub fn submit(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let mut queued = self.queued();
        for id in ids {
            if queued.insert(id) && self.queue.try_send(id).is_err() {
                queued.remove(&id);
                return;
            }
        }
    }

    async fn work(self, mut waiting: mpsc::Receiver<ChunkId>, node: &Node) {
        let mut ids = Vec::with_capacity(BATCH);
        while waiting.recv_many(&mut ids, BATCH).await > 0 {
            let mut whole = Vec::with_capacity(BATCH);
            for id in &ids {
                let id = *id;
                match node.on_disk(move |engine| engine.verify(id)).await {
                    Ok(_) => whole.push(id),
                    Err(error) => {
                        tracing::info!(chunk = %id, %error, "a copy cannot be confirmed");
                        node.note_bad_copy(id, &error);
                    }
                }
            }
            {
                let mut queued = self.queued();
                queued.retain(|id| !ids.contains(id));
            }
            ids.clear();
            node.changes.confirmed(whole);
        }
    }
}
