//! Layouts of versions. They never change, so that all readers of a version share one, and a version that was open lately
//! is opened again without asking.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use dfs_common::{FileId, Layout};
use lru::LruCache;

/// Layouts remembered.
const COUNT_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Layouts of more chunks are not remembered, so that this takes a few MiB at most.
const CHUNKS_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct Layouts {
    known: Mutex<LruCache<FileId, Arc<Layout>>>,
}

impl Default for Layouts {
    fn default() -> Self {
        Self { known: Mutex::new(LruCache::new(COUNT_MAX)) }
    }
}

impl Layouts {
    pub(crate) fn get(&self, file_id: FileId) -> Option<Arc<Layout>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&file_id).cloned()
    }

    pub(crate) fn put(&self, layout: &Arc<Layout>) {
        let Layout::Replicated { chunks, .. } = &**layout;
        if chunks.len() <= CHUNKS_MAX {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).put(layout.file_id(), layout.clone());
        }
    }
}
