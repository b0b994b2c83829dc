//! One data directory: in use, or taken out.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use dfs_common::Uuid;
use tokio::{sync::Notify, time::Instant};

use super::health::{Health, Verdict};
use crate::{
    data_dir::{Claim, DataDir, DataDirError, Membership, Trouble},
    engine::{ChunkEngine as _, ChunkFacts, ChunkWriter, EngineError, Finished, StoredChunk, disk::DiskEngine},
};

/// What bounds the space of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Most bytes of chunks; `None`: the file system.
    pub capacity: Option<u64>,
    /// Bytes of the file system left free; `None`: the default.
    pub reserve: Option<u64>,
    /// Data directories of the node on the same file system, which share what is free.
    pub share: u64,
}

/// One data directory.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    limits: Limits,
    state: RwLock<State>,
    health: Mutex<Health>,
    /// An error was met: it should be looked at soon.
    trouble: Notify,
}

#[derive(Debug)]
struct State {
    /// Of the directory, or drawn for one that could not be read yet.
    id: Uuid,
    known: bool,
    works: Result<Arc<Working>, String>,
    /// Chunks when it was taken out.
    lost: u64,
}

/// What is there while a disk works. Who uses it at the moment it is taken out keeps it until done.
#[derive(Debug)]
struct Working {
    dir: Mutex<DataDir>,
    engine: DiskEngine,
}

impl Disk {
    /// Takes a directory into use. Counts its chunks, so it blocks.
    ///
    /// # Errors
    /// Why its chunks cannot be used; only errors of the disk itself.
    fn start(dir: DataDir, limits: Limits) -> Result<Working, EngineError> {
        let engine = DiskEngine::open_shared(dir.path(), limits.capacity, limits.reserve, limits.share)?;
        Ok(Working { dir: Mutex::new(dir), engine })
    }

    /// The disk in `path`: `dir`, or why it cannot be used.
    #[must_use]
    pub fn open(path: PathBuf, dir: Result<DataDir, DataDirError>, limits: Limits) -> Self {
        let (id, known) = dir.as_ref().map_or_else(|_| (Uuid::random(), false), |dir| (dir.disk(), true));
        let works = dir
            .map_err(|error| error.to_string())
            .and_then(|dir| Self::start(dir, limits).map_err(|error| error.to_string()));
        if let Err(reason) = &works {
            tracing::error!(disk = %path.display(), reason, "a data directory cannot be used; the others are");
        }
        let state = State { id, known, works: works.map(Arc::new), lost: 0 };
        let health = Mutex::new(Health::new(state.works.is_ok(), Instant::now()));
        Self { path, limits, state: RwLock::new(state), health, trouble: Notify::new() }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn working(&self) -> Result<Arc<Working>, EngineError> {
        let failed = |reason: &String| EngineError::DiskFailed { path: self.path.clone(), reason: reason.clone() };
        self.state().works.as_ref().map(Arc::clone).map_err(failed)
    }

    /// Kept in the directory; of one that could not be read yet another one for now.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.state().id
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why it was taken out; `None` while it works.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.state().works.as_ref().err().cloned()
    }

    /// Chunks that were on it when it was taken out.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.state().lost
    }

    /// Uses its chunks. An error of the disk is remembered.
    ///
    /// # Errors
    /// Those of `work`, and [`EngineError::DiskFailed`] if it was taken out.
    pub fn with<T>(&self, work: impl FnOnce(&DiskEngine) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let working = self.working()?;
        self.watch(work(&working.engine))
    }

    /// Remembers an error of the disk.
    fn watch<T>(&self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(EngineError::Io { .. }) = &result {
            self.health().error(Instant::now());
            self.trouble.notify_one();
        }
        result
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until an error was met.
    pub async fn troubled(&self) {
        self.trouble.notified().await;
    }

    /// Begins to write a chunk on it.
    ///
    /// # Errors
    /// As [`crate::engine::ChunkEngine::begin`].
    pub(super) fn begin(self: &Arc<Self>, facts: ChunkFacts) -> Result<Box<dyn ChunkWriter>, EngineError> {
        let writer = self.with(|engine| engine.begin(facts))?;
        Ok(Box::new(Watched { inner: writer, disk: self.clone() }))
    }

    /// Opens a chunk on it.
    ///
    /// # Errors
    /// As [`crate::engine::ChunkEngine::open`].
    pub(super) fn open_chunk(self: &Arc<Self>, id: dfs_common::ChunkId) -> Result<Arc<dyn StoredChunk>, EngineError> {
        let chunk = self.with(|engine| engine.open(id))?;
        Ok(Arc::new(Watched { inner: chunk, disk: self.clone() }))
    }

    /// Looks whether it works, with `write` also by writing to it, or whether it works again. Blocks.
    ///
    /// # Errors
    /// What is wrong.
    pub fn probe(&self, node: Uuid, write: bool) -> Result<(), Trouble> {
        match self.working() {
            Ok(working) => working.dir.lock().unwrap_or_else(PoisonError::into_inner).probe(write),
            // Nothing is locked or written before it is known to be the one.
            Err(_) => self.is_there(node),
        }
    }

    fn is_there(&self, node: Uuid) -> Result<(), Trouble> {
        let claim = Claim::take_present(&self.path).map_err(|error| Trouble::Error(error.to_string()))?;
        let Some(stamp) = &claim.stamp else {
            let text = "it is empty now: start the node again to use it as a new disk";
            return Err(Trouble::Gone(text.into()));
        };
        let state = self.state();
        let is_same = stamp.uuid == node && (!state.known || stamp.disk == Some(state.id));
        if is_same { Ok(()) } else { Err(Trouble::Gone("another disk is in its place".into())) }
    }

    /// What a probe said, and what follows from it.
    pub fn judge(&self, probed: Result<(), Trouble>) -> Option<Verdict> {
        self.health().probed(probed, Instant::now())
    }

    /// It could not be brought back after all.
    pub fn stays_out(&self) {
        self.health().stays_out(Instant::now());
    }

    /// Takes it out: whoever comes from now on does not find its chunks.
    pub fn take_out(&self, reason: &str) {
        let mut state = self.state_mut();
        if let Ok(working) = &state.works {
            state.lost = working.engine.counts().0;
            state.works = Err(reason.to_owned());
        }
    }

    /// Takes it into use again, as one of `node`. Counts its chunks, so it blocks.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn bring_back(&self, node: Uuid, name: &str, membership: Option<Membership>) -> Result<(), String> {
        self.is_there(node).map_err(|trouble| format!("{trouble:?}"))?;
        let dir = Claim::take_present(&self.path).and_then(|claim| claim.into_dir(node, name, membership));
        let dir = dir.map_err(|error| error.to_string())?;
        let id = dir.disk();
        let working = Self::start(dir, self.limits).map_err(|error| error.to_string())?;
        let mut state = self.state_mut();
        (state.id, state.known, state.works) = (id, true, Ok(Arc::new(working)));
        Ok(())
    }

    /// Takes over what a registration said, if the disk works.
    ///
    /// # Errors
    /// It contradicts the stamp, or the stamp cannot be written.
    pub fn join(&self, membership: Membership) -> Result<(), DataDirError> {
        let Ok(working) = self.working() else { return Ok(()) };
        let joined = working.dir.lock().unwrap_or_else(PoisonError::into_inner).join(membership);
        if let Err(DataDirError::Io { .. }) = joined {
            self.trouble.notify_one();
        }
        joined
    }

    /// Runs `use_it` on the directory, if it works.
    pub fn with_dir<T>(&self, use_it: impl FnOnce(&DataDir) -> T) -> Option<T> {
        let working = self.working().ok()?;
        let dir = working.dir.lock().unwrap_or_else(PoisonError::into_inner);
        Some(use_it(&dir))
    }
}

/// Something on a disk whose errors are the disk's.
struct Watched<T> {
    inner: T,
    disk: Arc<Disk>,
}

impl ChunkWriter for Watched<Box<dyn ChunkWriter>> {
    fn append(&mut self, pieces: &[Bytes]) -> Result<(), EngineError> {
        self.disk.watch(self.inner.append(pieces))
    }

    fn finish(self: Box<Self>) -> Result<Finished, EngineError> {
        let Self { inner, disk } = *self;
        disk.watch(inner.finish())
    }
}

impl StoredChunk for Watched<Arc<dyn StoredChunk>> {
    fn facts(&self) -> &ChunkFacts {
        self.inner.facts()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u32) -> Result<(), EngineError> {
        self.disk.watch(self.inner.read_at(buffer, offset))
    }
}
