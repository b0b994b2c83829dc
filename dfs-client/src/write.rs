//! Writing a new version of a file.
//!
//! ```text
//!   write_at ──► open chunk (buffer) ──full──► sending ──quorum──► stored ──publish──► recorded
//!                    ▲   ▲                        │                   │
//!                    │   └──────── copied ────────┘ rewritten         │ rewritten: loaded back, verified
//!                    └────────────────────────────────────────────────┘
//! ```
//!
//! Invariants: bytes are copied once, into the buffer; a chunk that was sent is never changed, a rewrite becomes a new
//! chunk; the first failure of an upload or commit fails the writer for good. Lock: `Core::state` is held while an
//! operation runs, also over waits: operations of one file are ordered.

mod buffer;
mod fill;
mod publish;
mod ranges;
mod slot;
mod spill;
mod store;
mod view;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use dfs_common::{
    Attr, ErrorCode, FileId, InodeId, Layout, SetAttr,
    layout::{CHUNKS_MAX, chunk_count},
};
use tokio::sync::{Mutex, MutexGuard, Semaphore};

pub(crate) use buffer::{BufferPool, TailCache};
pub(crate) use publish::{abandon, end_pending};
pub(crate) use spill::Writers;
pub(crate) use store::store;

use crate::{
    Error, Reader, Seek,
    cluster::{Pin, Session},
    dfs::Shared,
};
use ranges::Sources;
use slot::Slots;

/// A version of a file that is being written. All write handles of one inode share one.
///
/// Dropping it without [`Writer::finish`] or [`Writer::abort`] ends the pending version too.
pub struct Writer {
    core: Arc<Core>,
}

pub(crate) struct Core {
    shared: Arc<Shared>,
    session: Arc<Session>,
    ino: InodeId,
    chunk_size: u64,
    state: Mutex<State>,
    size: AtomicU64,
    dirty: AtomicBool,
    /// Whether there is a pending version, for those who must not wait.
    is_pending: AtomicBool,
    failed: Arc<OnceLock<Error>>,
    attempts: Arc<AtomicU64>,
    /// Bounds the chunks in flight.
    uploads: Arc<Semaphore>,
    /// When it was written to last, see [`Writers`].
    used_ms: AtomicU64,
}

struct State {
    slots: Slots,
    /// Counts writes, to know which open chunk is the oldest.
    turn: u64,
    /// The pending version; `None` after it was ended.
    pending: Option<FileId>,
    /// Attributes as of the last publication or opening.
    attr: Attr,
    /// Whether the published content is what `slots` held when `dirty` was cleared last.
    published: bool,
    /// Keeps the version that the stored chunks came from.
    _base: Option<Pin>,
    /// Keeps the versions that chunks were taken over from.
    sources: Sources,
}

/// What a writer starts from.
pub(crate) struct Start {
    pub(crate) session: Arc<Session>,
    pub(crate) file_id: FileId,
    pub(crate) attr: Attr,
    pub(crate) base: Option<(Layout, Pin)>,
    /// Whether the content it starts from is what is published.
    pub(crate) published: bool,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, cluster_chunk_size: u32, start: Start) -> Self {
        let (mut chunk_size, mut size, mut slots, mut pin) = (cluster_chunk_size, 0, Slots::default(), None);
        if let Some((Layout::Replicated { size: s, chunk_size: c, chunks, .. }, base)) = start.base {
            (chunk_size, size, slots, pin) = (c, s, Slots::from_stored(chunks), Some(base));
        }
        let uploads = Arc::new(Semaphore::new(shared.options.parallel_uploads.max(1)));
        let state = State {
            slots,
            turn: 0,
            pending: Some(start.file_id),
            attr: start.attr.clone(),
            published: start.published,
            _base: pin,
            sources: Sources::default(),
        };
        let core = Core {
            shared,
            session: start.session,
            ino: start.attr.ino,
            chunk_size: chunk_size.into(),
            state: Mutex::new(state),
            size: AtomicU64::new(size),
            dirty: AtomicBool::new(!start.published),
            is_pending: AtomicBool::new(true),
            failed: Arc::default(),
            attempts: Arc::default(),
            uploads,
            used_ms: AtomicU64::new(0),
        };
        core.shared.cluster.will.began(core.ino, start.file_id);
        let core = Arc::new(core);
        core.shared.writers.add(&core);
        Self { core }
    }

    /// The file.
    #[must_use]
    pub fn ino(&self) -> InodeId {
        self.core.ino
    }

    /// Writes `data` at `offset`; waits while the memory budget is used up or too many chunks are on their way.
    ///
    /// # Errors
    /// The writer has failed; the same error is repeated for ever. `TooLarge` leaves it as it was.
    pub async fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let core = &self.core;
        let end = core.check_size(offset.checked_add(data.len() as u64))?;
        let mut state = core.lock().await?;
        if data.is_empty() {
            return Ok(());
        }
        core.dirty.store(true, Ordering::Release);
        core.shared.writers.note_use(core);
        state.slots.reap();
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (index, within) = (at / core.chunk_size, at % core.chunk_size);
            let room = usize::try_from(core.chunk_size - within).expect("chunks are small");
            let (piece, behind) = rest.split_at(rest.len().min(room));
            let within = usize::try_from(within).expect("chunks are small");
            core.fill(&mut state, index, within, piece).await.map_err(|error| core.fail(error))?;
            at += piece.len() as u64;
            rest = behind;
        }
        core.size.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }

    /// Bytes from `offset` as written so far, published or not; fewer than `len` only at the end.
    ///
    /// # Errors
    /// The writer has failed, or stored bytes cannot be read back.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Vec<Bytes>, Error> {
        self.core.view(offset, len).await
    }

    /// Cuts or extends the content to `size` bytes.
    ///
    /// # Errors
    /// As [`Writer::write_at`].
    pub async fn truncate(&self, size: u64) -> Result<(), Error> {
        let core = &self.core;
        core.check_size(Some(size))?;
        let mut state = core.lock().await?;
        if size == self.size() {
            return Ok(());
        }
        core.dirty.store(true, Ordering::Release);
        core.cut(&mut state, size).await.map_err(|error| core.fail(error))
    }

    /// Takes over content of a published version without moving its bytes: both files list the same chunks. Gives how many of
    /// the `len` bytes from `from_offset` are at `offset` now, counted from the start: whole chunks, and the short last one if it
    /// becomes the end of this file too. 0 if nothing can be shared, because the offsets do not lie on borders of chunks or the
    /// files have chunks of different sizes; then read and write.
    ///
    /// # Errors
    /// As [`Writer::write_at`].
    pub async fn share_from(&self, from: &Reader, from_offset: u64, offset: u64, len: u64) -> Result<u64, Error> {
        self.core.share(from.layout(), from_offset, offset, len).await
    }

    /// Makes `len` bytes from `offset` read as zeros; chunks that are covered whole take no space any more. The size stays.
    ///
    /// # Errors
    /// As [`Writer::write_at`].
    pub async fn zero_range(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.core.zero(offset, len).await
    }

    /// Where data or a hole begins at or behind `offset`; `None` if nothing of the kind follows. Holes are found by whole chunks.
    ///
    /// # Errors
    /// The writer has failed.
    pub async fn seek(&self, offset: u64, what: Seek) -> Result<Option<u64>, Error> {
        self.core.seek(offset, what).await
    }

    /// Size of the content as written so far, bytes. Never waits.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.core.size.load(Ordering::Acquire)
    }

    /// Bytes of a chunk of this file.
    #[must_use]
    pub fn chunk_size(&self) -> u64 {
        self.core.chunk_size
    }

    /// Whether something changed since the last publication. Never waits.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.core.dirty.load(Ordering::Acquire)
    }

    /// Why the writer failed, if it did. Never waits.
    #[must_use]
    pub fn failure(&self) -> Option<Error> {
        self.core.failed.get().cloned()
    }

    /// Makes everything written so far durable and visible to all; the writer stays open. With nothing to publish it gives
    /// the attributes of the last publication. `set` becomes visible with the content; without a modification time in it the
    /// leader's clock gives one.
    ///
    /// # Errors
    /// The writer has failed: a chunk could not be stored, the commit was refused, or the session has ended.
    pub async fn publish(&self, set: SetAttr) -> Result<Attr, Error> {
        self.core.publish(set, false).await
    }

    /// [`Writer::publish`] and [`Writer::finish`] in one call to the metadata leader. A later write is still possible: it
    /// opens a new pending version by itself, at the cost of one more call.
    ///
    /// # Errors
    /// As [`Writer::publish`].
    pub async fn publish_and_finish(&self, set: SetAttr) -> Result<Attr, Error> {
        self.core.publish(set, true).await
    }

    /// Whether the cluster knows of the pending version, and so keeps the file for this writer should its name go. Not after
    /// [`Writer::publish_and_finish`], until something written later is sent. Never waits.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.core.is_pending.load(Ordering::Acquire)
    }

    /// Has the cluster know of a pending version, if it does not.
    ///
    /// # Errors
    /// The writer has failed; `NotFound` if the file is gone already.
    pub async fn hold(&self) -> Result<(), Error> {
        let mut state = self.core.lock().await?;
        self.core.pending(&mut state).await.map(drop)
    }

    /// Ends the pending version; what was published stays, unpublished changes are lost. The cluster is told in the
    /// background; if that fails the end of the session does the same.
    pub async fn finish(&self) {
        let mut state = self.core.state.lock().await;
        self.core.end(&mut state);
    }

    /// Drops what was not published and ends the pending version; later operations fail with `Stale`. A created file that
    /// was never published vanishes.
    pub async fn abort(&self) {
        let mut state = self.core.state.lock().await;
        let stale = || Error::new(ErrorCode::Stale, format!("writing inode {}: the writer was aborted", self.core.ino));
        self.core.failed.get_or_init(stale);
        self.core.dirty.store(false, Ordering::Release);
        state.slots = Slots::default();
        self.core.end(&mut state);
    }
}

impl Core {
    /// The state, if the writer has not failed.
    async fn lock(&self) -> Result<MutexGuard<'_, State>, Error> {
        self.check()?;
        let state = self.state.lock().await;
        self.check()?;
        Ok(state)
    }

    fn check(&self) -> Result<(), Error> {
        if self.session.is_lost() {
            self.failed.get_or_init(|| {
                let message =
                    format!("writing inode {}: the session has ended, its unpublished bytes are lost", self.ino);
                Error::new(ErrorCode::Io, message)
            });
        }
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Fails the writer, for good; the first error wins.
    fn fail(&self, error: Error) -> Error {
        self.failed.get_or_init(|| error.context(&format!("writing inode {}", self.ino))).clone()
    }

    fn check_size(&self, size: Option<u64>) -> Result<u64, Error> {
        let fits = |size: &u64| chunk_count(*size, u32::try_from(self.chunk_size).unwrap_or(u32::MAX)) <= CHUNKS_MAX;
        size.filter(fits).ok_or_else(|| {
            let limit = CHUNKS_MAX * self.chunk_size;
            Error::new(ErrorCode::TooLarge, format!("inode {}: a file has at most {limit} bytes", self.ino))
        })
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some(file_id) = self.state.get_mut().pending.take() {
            publish::abandon(&self.shared, &self.session, self.ino, file_id);
        }
    }
}
