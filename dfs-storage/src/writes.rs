//! Writes in work, by chunk: whether a copy that was just made may stay.
//!
//! The copy of an upload that fails is removed again, but never one that somebody was told is stored: the same chunk may
//! arrive twice at once, as an upload and as a copy from another node, or had been here before. So the last write of a chunk to end
//! decides: a copy made by these writes and acknowledged by none of them is removed. Writers never wait for each other; two
//! nodes that forward the same chunk to each other would wait for ever.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dfs_common::{ChunkId, ErrorCode};
use dfs_proto::status::RpcError;
use tokio::runtime::Handle;

use crate::node::Node;

#[derive(Debug, Default)]
struct Entry {
    marks: usize,
    made: bool,
    acknowledged: bool,
    removing: bool,
}

/// The writes in work.
#[derive(Debug, Default)]
pub struct Writes {
    entries: Mutex<HashMap<ChunkId, Entry>>,
}

/// One write in work.
#[derive(Debug)]
pub struct WriteMark {
    node: Arc<Node>,
    id: ChunkId,
}

impl Writes {
    fn entries(&self) -> MutexGuard<'_, HashMap<ChunkId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteMark {
    /// Begins a write of `id` on `node`.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] while the copy of a failed write is being removed.
    pub fn begin(node: &Arc<Node>, id: ChunkId) -> Result<Self, RpcError> {
        let mut entries = node.writes.entries();
        let entry = entries.entry(id).or_default();
        if entry.removing {
            let message = format!("a failed copy of chunk {id} is being removed");
            return Err(RpcError::new(ErrorCode::Unavailable, message));
        }
        entry.marks += 1;
        Ok(Self { node: node.clone(), id })
    }

    fn set(&self, change: impl FnOnce(&mut Entry)) {
        change(self.node.writes.entries().get_mut(&self.id).expect("an entry lives as long as its marks"));
    }

    /// The chunk was not here before and is now.
    pub fn made(&self) {
        self.set(|entry| entry.made = true);
    }

    /// Somebody is told that the chunk is stored.
    pub fn acknowledged(&self) {
        self.set(|entry| entry.acknowledged = true);
    }
}

impl Drop for WriteMark {
    fn drop(&mut self) {
        let mut entries = self.node.writes.entries();
        let entry = entries.get_mut(&self.id).expect("an entry lives as long as its marks");
        entry.marks -= 1;
        if entry.marks > 0 {
            return;
        }
        // Without a runtime the process is ending; what stays is garbage that the next inventory shows.
        if entry.made && !entry.acknowledged && Handle::try_current().is_ok() {
            entry.removing = true;
            let (node, id) = (self.node.clone(), self.id);
            self.node.tasks.spawn(async move {
                match node.on_disk(move |engine| engine.delete(id)).await {
                    Ok(_) => node.changes.removed(id),
                    Err(error) => tracing::info!(chunk = %id, %error, "a failed upload's copy stays as garbage"),
                }
                node.writes.entries().remove(&id);
            });
        } else {
            entries.remove(&self.id);
        }
    }
}
