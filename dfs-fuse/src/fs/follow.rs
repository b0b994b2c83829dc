//! The versions that readers have, and readers that go on with a file which has only grown, as `tail -f` expects.
//!
//! An open file keeps its version, whatever becomes of its path. But a version that begins with all of what the reader has, and
//! adds to it, shows him nothing that he has read already in another way. So a reader who asks for the size of his file, or
//! reads at its end, goes on with such a version. Whole chunks are the same when their ids are; of the last one, which an
//! append stores anew, the bytes are compared.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use dfs_common::{ErrorCode, FileId, InodeId, Layout};

use super::{
    Fs,
    backend::{Backend, Outcome, VersionReader},
    error::Error,
    file::Handle,
    inode::{lock, open_published},
    legacy::{Last, Legacy},
};

/// The version that read handles have. Those whose pages the kernel caches share one, since they share the pages.
pub(crate) struct Version<R> {
    reader: RwLock<Arc<R>>,
    /// Whether the kernel caches pages.
    is_cached: bool,
    /// A version that was looked at and does not go on from this one.
    unrelated: Mutex<Option<FileId>>,
    following: tokio::sync::Mutex<()>,
}

impl<R: VersionReader> Version<R> {
    pub(crate) fn new(reader: Arc<R>, is_cached: bool) -> Self {
        Self {
            reader: RwLock::new(reader),
            is_cached,
            unrelated: Mutex::default(),
            following: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn reader(&self) -> Arc<R> {
        Arc::clone(&self.reader.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn id(&self) -> FileId {
        self.reader().layout().file_id()
    }

    pub(crate) fn size(&self) -> u64 {
        self.reader().layout().size()
    }

    pub(crate) fn is_cached(&self) -> bool {
        self.is_cached
    }
}

impl<B: Backend> Fs<B> {
    /// Lets the readers of `version` go on with the current one, if that only adds to it. They stay with what they have when
    /// that cannot be found out.
    pub(crate) async fn follow(&self, ino: InodeId, version: &Version<B::Reader>) {
        let _alone = version.following.lock().await;
        let old = version.reader();
        let new = match open_published(&*self.backend, ino).await {
            Ok(Some(new)) => new,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(ino = ino.0, %error, "a reader stays with its version");
                return;
            }
        };
        let (old_id, new_id) = (old.layout().file_id(), new.layout().file_id());
        if old_id == new_id || *lock(&version.unrelated) == Some(new_id) {
            return;
        }
        match continues(&*old, &new).await {
            Ok(true) => {
                let mut pages = lock(&self.pages);
                if version.is_cached {
                    pages.follow(ino, old_id, new_id);
                }
                *version.reader.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                drop(pages);
                self.record_followed(version);
            }
            Ok(false) => *lock(&version.unrelated) = Some(new_id),
            Err(error) => tracing::debug!(ino = ino.0, %error, "a reader stays with its version"),
        }
    }
}

impl<B: Backend> Handle<B> {
    /// Tells a successor of this process which version a read handle has now.
    pub(super) fn record_version(&self) {
        if let Self::Read { inode, version, number, recorded, .. } = self
            && let Some(version) = version.get()
        {
            let (version, is_cached) = (Some(version.id()), version.is_cached());
            let last = inode.known_attr().as_ref().map(Last::of).unwrap_or_default();
            recorded.set(Legacy::Read { handle: *number, ino: inode.ino, version, is_cached, last });
        }
    }
}

impl<B: Backend> Fs<B> {
    /// The version that a read handle has.
    pub(crate) async fn version_of(&self, handle: Option<u64>) -> Option<Arc<Version<B::Reader>>> {
        self.version(&*self.file(handle?).ok()?).await.ok()?
    }

    /// Opens the versions again that a process before this one had open of an inode, since they know more of it than its name
    /// does when that is gone.
    pub(super) async fn claim(&self, ino: InodeId) {
        for handle in self.handles.all().into_iter().filter(|handle| handle.inode().ino == ino) {
            if let Err(error) = self.version(&handle).await {
                tracing::debug!(%ino, %error, "a version cannot be opened again");
            }
        }
    }

    /// The version that a read handle has; opened again if a process before this one had it open.
    pub(crate) async fn version(&self, handle: &Handle<B>) -> Result<Option<Arc<Version<B::Reader>>>, Error> {
        let Handle::Read { inode, version, inherited, .. } = handle else { return Ok(None) };
        let (None, Some(inherited)) = (version.get(), inherited) else { return Ok(version.get().cloned()) };
        let reader =
            self.backend.open_version(inherited.version, inherited.last.clone()).await.map_err(
                |error| match error.code {
                    ErrorCode::NotFound | ErrorCode::Stale => {
                        Error::refused(libc::EIO, "the version that was open is gone")
                    }
                    _ => error.into(),
                },
            )?;
        inode.inherit(reader.attr());
        // Two may come here at once: one of them is first, and what the other one opened is closed again.
        let opened = match inherited.is_cached {
            true => inode.share(reader),
            false => Arc::new(Version::new(Arc::new(reader), false)),
        };
        Ok(Some(Arc::clone(version.get_or_init(|| opened))))
    }

    fn record_followed(&self, followed: &Version<B::Reader>) {
        for handle in self.handles.all() {
            if let Handle::Read { version, .. } = &*handle
                && version.get().is_some_and(|version| std::ptr::eq(&**version, followed))
            {
                handle.record_version();
            }
        }
    }
}

/// Whether `new` begins with all bytes of `old`.
async fn continues<R: VersionReader>(old: &R, new: &R) -> Outcome<bool> {
    let Layout::Replicated { size, chunk_size, chunks, .. } = old.layout();
    let Layout::Replicated { size: new_size, chunk_size: new_chunk_size, chunks: new_chunks, .. } = new.layout();
    if new_size < size || chunk_size != new_chunk_size {
        return Ok(false);
    }
    let chunk_size = u64::from(*chunk_size);
    let (whole, rest) = (size / chunk_size, size % chunk_size);
    let slots = usize::try_from(whole).unwrap_or(usize::MAX);
    let ids = |chunks: &[dfs_common::ChunkRef]| chunks.iter().take(slots).map(|chunk| chunk.id).collect::<Vec<_>>();
    if ids(chunks) != ids(new_chunks) {
        return Ok(false);
    }
    if let (Some(last), Some(new_last)) = (chunks.get(slots), new_chunks.get(slots))
        && last.id == new_last.id
    {
        return Ok(true);
    }
    let length = usize::try_from(rest).unwrap_or(usize::MAX);
    let (start, mut at) = (whole * chunk_size, 0);
    while at < length {
        let offset = start + at as u64;
        let bytes = old.read_at(offset, length - at).await?.concat();
        let same = new.read_at(offset, bytes.len()).await?.concat();
        if bytes.is_empty() || bytes != same {
            return Ok(false);
        }
        at += bytes.len();
    }
    Ok(true)
}
