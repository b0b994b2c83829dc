//! The slots of a file that is being written: one a chunk.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use dfs_common::{ChunkRef, FileId};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::{buffer::Buffer, store};
use crate::{Error, dfs::Shared};

/// State of one slot.
#[derive(Debug, Default)]
pub(crate) enum Slot {
    /// Never written.
    #[default]
    Hole,
    /// On storage nodes.
    Stored(Box<StoredChunk>),
    /// Being filled.
    Open(Box<OpenChunk>),
    /// On its way.
    Sending(Arc<Upload>),
}

/// A chunk on storage nodes.
#[derive(Clone, Debug)]
pub(crate) struct StoredChunk {
    pub(crate) chunk: ChunkRef,
    /// Whether metadata has recorded it, so that a commit need not name its replicas.
    pub(crate) recorded: bool,
}

/// A chunk that is being filled.
#[derive(Debug)]
pub(crate) struct OpenChunk {
    pub(crate) buffer: Buffer,
    /// When it was written last, in writes of this file: the oldest is sent first when memory is short.
    pub(crate) turn: u64,
}

/// A chunk on its way to the storage nodes.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Gone once the chunk is stored.
    bytes: Mutex<Option<Buffer>>,
    outcome: OnceLock<Result<ChunkRef, Error>>,
    done: Notify,
}

/// Where an upload gets its identity and where it reports.
pub(crate) struct Target {
    pub(crate) shared: Arc<Shared>,
    pub(crate) file_id: FileId,
    pub(crate) attempts: Arc<std::sync::atomic::AtomicU64>,
    /// Set by the first upload that fails.
    pub(crate) failed: Arc<OnceLock<Error>>,
}

impl Upload {
    /// Starts to send `buffer`. The permit bounds how many are sent at a time. `keep`: the bytes are likely to be needed
    /// again, because the chunk is not full.
    pub(crate) fn start(
        target: Target,
        index: u64,
        buffer: Buffer,
        permit: OwnedSemaphorePermit,
        keep: bool,
    ) -> Arc<Self> {
        let upload =
            Arc::new(Self { bytes: Mutex::new(Some(buffer.clone())), outcome: OnceLock::new(), done: Notify::new() });
        let (this, tasks) = (upload.clone(), target.shared.cluster.tasks.clone());
        tasks.spawn(async move {
            let data = buffer.bytes();
            drop(buffer);
            let outcome = store::store(&target.shared, target.file_id, index, &*target.attempts, &data).await;
            drop(data);
            this.settle(&target, outcome, keep);
            drop(permit);
        });
        upload
    }

    /// The outcome is set before the bytes go, so that a reader always finds one of the two.
    fn settle(&self, target: &Target, outcome: Result<ChunkRef, Error>, keep: bool) {
        let outcome = self.outcome.get_or_init(|| outcome);
        match outcome {
            Ok(chunk) => {
                let buffer = self.lock().take();
                if let Some(buffer) = buffer.filter(|_| keep) {
                    target.shared.tails.put(&target.shared.budget, chunk.id, buffer);
                }
            }
            Err(error) => {
                // Memory is given back also then: the writer has failed for good.
                self.lock().take();
                target.failed.get_or_init(|| error.clone());
            }
        }
        self.done.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Buffer>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes, while they are still here.
    pub(crate) fn bytes(&self) -> Option<Bytes> {
        self.lock().as_ref().map(Buffer::bytes)
    }

    /// The outcome, once there is one.
    pub(crate) fn outcome(&self) -> Option<&Result<ChunkRef, Error>> {
        self.outcome.get()
    }

    /// Waits for the outcome.
    pub(crate) async fn wait(&self) -> &Result<ChunkRef, Error> {
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if let Some(outcome) = self.outcome.get() {
                return outcome;
            }
            done.await;
        }
    }
}

/// All slots of a file, with the ones that need work at hand.
///
/// Invariant: `open` and `sending` name exactly the slots in that state.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    /// Index to turn.
    open: BTreeMap<u64, u64>,
    sending: BTreeMap<u64, Arc<Upload>>,
}

impl Slots {
    pub(crate) fn from_stored(chunks: impl IntoIterator<Item = ChunkRef>) -> Self {
        let slot = |chunk: ChunkRef| match chunk.is_hole() {
            true => Slot::Hole,
            false => Slot::Stored(Box::new(StoredChunk { chunk, recorded: true })),
        };
        Self { slots: chunks.into_iter().map(slot).collect(), ..Self::default() }
    }

    pub(crate) fn get(&self, index: u64) -> &Slot {
        usize::try_from(index).ok().and_then(|index| self.slots.get(index)).unwrap_or(&Slot::Hole)
    }

    /// The open chunk in a slot.
    pub(crate) fn open_mut(&mut self, index: u64) -> Option<&mut OpenChunk> {
        match self.slots.get_mut(usize::try_from(index).ok()?)? {
            Slot::Open(open) => Some(open),
            Slot::Hole | Slot::Stored(_) | Slot::Sending(_) => None,
        }
    }

    pub(crate) fn touch(&mut self, index: u64, turn: u64) {
        if let Some(open) = self.open_mut(index) {
            open.turn = turn;
            self.open.insert(index, turn);
        }
    }

    pub(crate) fn set(&mut self, index: u64, slot: Slot) -> Slot {
        let at = usize::try_from(index).expect("the number of chunks is limited");
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, Slot::default);
        }
        self.open.remove(&index);
        self.sending.remove(&index);
        match &slot {
            Slot::Open(open) => drop(self.open.insert(index, open.turn)),
            Slot::Sending(upload) => drop(self.sending.insert(index, upload.clone())),
            Slot::Hole | Slot::Stored(_) => {}
        }
        std::mem::replace(&mut self.slots[at], slot)
    }

    /// Exactly `count` slots.
    pub(crate) fn resize(&mut self, count: u64) {
        let len = usize::try_from(count).expect("the number of chunks is limited");
        self.slots.resize_with(len, Slot::default);
        self.open.split_off(&count);
        self.sending.split_off(&count);
    }

    pub(crate) fn open_count(&self) -> usize {
        self.open.len()
    }

    pub(crate) fn open_indices(&self) -> Vec<u64> {
        self.open.keys().copied().collect()
    }

    /// The open chunk that was written longest ago, `but` this one.
    pub(crate) fn oldest_open(&self, but: Option<u64>) -> Option<u64> {
        let others = self.open.iter().filter(|(index, _)| Some(**index) != but);
        others.min_by_key(|(_, turn)| **turn).map(|(index, _)| *index)
    }

    pub(crate) fn any_sending(&self) -> Option<(u64, Arc<Upload>)> {
        self.sending.first_key_value().map(|(index, upload)| (*index, upload.clone()))
    }

    /// Turns finished uploads into stored chunks.
    pub(crate) fn reap(&mut self) {
        let done: Vec<u64> =
            self.sending.iter().filter(|(_, upload)| upload.outcome().is_some()).map(|(index, _)| *index).collect();
        for index in done {
            if let Some(Ok(chunk)) = self.sending.get(&index).and_then(|upload| upload.outcome()) {
                let chunk = chunk.clone();
                self.set(index, Slot::Stored(Box::new(StoredChunk { chunk, recorded: false })));
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// Metadata has recorded every stored chunk.
    pub(crate) fn recorded(&mut self) {
        for slot in &mut self.slots {
            if let Slot::Stored(stored) = slot {
                stored.recorded = true;
            }
        }
    }
}
