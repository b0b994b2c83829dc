//! A stretch of a file that is being fetched or has been.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use dfs_common::ChunkRef;
use tokio::{
    sync::{Notify, Semaphore},
    task::AbortHandle,
};

use super::{fetch::fetch, pieces::Pieces};
use crate::{
    Error,
    budget::Grant,
    dfs::{Shared, zeros},
};

/// Bytes `range` of the file. Dropping the last reference stops the fetch and gives the memory back.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) range: Range<u64>,
    cell: Arc<Cell>,
    task: Option<AbortHandle>,
    _grant: Option<Grant>,
}

#[derive(Debug, Default)]
struct Cell {
    outcome: OnceLock<Result<Pieces, Error>>,
    done: Notify,
}

/// The stored bytes behind a part.
pub(crate) struct Source {
    pub(crate) chunk: ChunkRef,
    pub(crate) index: u64,
    /// First byte within the chunk.
    pub(crate) at: usize,
    /// Bytes the chunk has of this part; the rest are zeros.
    pub(crate) len: usize,
}

impl Part {
    /// Starts to fetch. `turns`: waits for one of these permits first.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        range: Range<u64>,
        source: Source,
        grant: Option<Grant>,
        turns: Option<Arc<Semaphore>>,
    ) -> Arc<Self> {
        let cell = Arc::new(Cell::default());
        if source.len == 0 {
            cell.outcome.get_or_init(|| Ok(Pieces::default()));
            return Arc::new(Self { range, cell, task: None, _grant: grant });
        }
        let (work_shared, work_cell) = (shared.clone(), cell.clone());
        let task = shared.cluster.tasks.spawn(async move {
            let _turn = match turns {
                Some(turns) => turns.acquire_owned().await.ok(),
                None => None,
            };
            let outcome = fetch(&work_shared, &source.chunk, source.index, source.at, source.len).await;
            work_cell.outcome.get_or_init(|| outcome);
            work_cell.done.notify_waiters();
        });
        Arc::new(Self { range, cell, task: Some(task.abort_handle()), _grant: grant })
    }

    /// Whether the outcome is there.
    pub(crate) fn is_ready(&self) -> bool {
        self.cell.outcome.get().is_some()
    }

    /// Whether the fetch has failed.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.cell.outcome.get(), Some(Err(_)))
    }

    /// Adds the bytes `range`, which lie within this part, to `out`.
    ///
    /// # Errors
    /// The fetch failed.
    pub(crate) async fn read(&self, range: Range<u64>, out: &mut Vec<Bytes>) -> Result<(), Error> {
        let pieces = loop {
            let done = self.cell.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if let Some(outcome) = self.cell.outcome.get() {
                break outcome.as_ref().map_err(Clone::clone)?;
            }
            done.await;
        };
        let at = usize::try_from(range.start - self.range.start).expect("parts are small");
        let len = usize::try_from(range.end - range.start).expect("parts are small");
        let stored = len.min(pieces.len().saturating_sub(at));
        pieces.slice(at, stored, out);
        zeros(len - stored, out);
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}
