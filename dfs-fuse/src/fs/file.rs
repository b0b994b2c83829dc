//! Open files: create, open, read, write, truncate, flush, fsync, release.
//!
//! The state machine of a write handle stands in `docs/architecture.md`. Two decisions are made here:
//!
//! - A flush of the only write handle of a file created here publishes *and ends* the pending version, one call instead of
//!   two for the many small files of a `cp -a`. Should a duplicate descriptor write later, the writer starts a new one by
//!   itself.
//! - A flush of a file that was only created or truncated so far, while the closing process itself holds another
//!   descriptor of it, is the close of a duplicate in a shell's `> file`: publishing waits, so that a command killed later
//!   leaves nothing. Release publishes it at the latest.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use dfs_client::NewFile;
use dfs_common::{
    Attr, FileId, FileKind, InodeId, SetAttr,
    crash::{self, Point},
};

use super::{
    Fs,
    backend::{Backend, VersionReader as _, VersionWriter},
    caller::{self, Closing},
    error::Error,
    follow::Version,
    inode::{OpenInode, Role, Unpublished, lock, open_published, reader_version},
    legacy::{Last, Legacy, Recorded},
    pages::Caching,
};

/// An open file.
pub(crate) enum Handle<B: Backend> {
    /// Opened for reading.
    Read {
        inode: Arc<OpenInode<B>>,
        /// The version; unset while a file that was never published is read through its writer.
        version: OnceLock<Arc<Version<B::Reader>>>,
        /// Whether the kernel was told to drop its pages and has not read since.
        is_unconfirmed: AtomicBool,
        /// The version that it had in the process before, as long as it is not opened again.
        inherited: Option<Inherited<B>>,
        number: u64,
        recorded: Recorded,
    },
    /// Opened for writing, perhaps also for reading.
    Write {
        inode: Arc<OpenInode<B>>,
        /// Every write goes to the end.
        is_append: bool,
        /// There for its drop.
        _recorded: Recorded,
    },
    /// Bytes that were written through it are lost, since the process that had them ended: nothing can be done but close it.
    Lost {
        inode: Arc<OpenInode<B>>,
        may_write: bool,
        /// There for its drop.
        _recorded: Recorded,
    },
}

/// A version that a process before this one had open.
pub(crate) struct Inherited<B: Backend> {
    /// What is known of its file if that has no name any more.
    pub(super) last: Attr,
    pub(super) version: FileId,
    pub(super) is_cached: bool,
    /// There for its drop.
    pub(super) _pin: B::Pin,
}

impl<B: Backend> Handle<B> {
    pub(super) fn inode(&self) -> &Arc<OpenInode<B>> {
        match self {
            Self::Read { inode, .. } | Self::Write { inode, .. } | Self::Lost { inode, .. } => inode,
        }
    }
}

/// A file that was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Opened {
    /// Its handle.
    pub(crate) handle: u64,
    /// What the kernel may do with pages.
    pub(crate) caching: Caching,
    /// Whether the size that the kernel was told last is that of the version opened.
    pub(crate) is_size_told: bool,
    /// Whether close must send FLUSH.
    pub(crate) wants_flush: bool,
}

/// What open(2) was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OpenMode {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) append: bool,
    pub(crate) truncate: bool,
    pub(crate) exclusive: bool,
}

impl OpenMode {
    /// From the flags of open(2).
    pub(crate) fn from_flags(flags: i32) -> Self {
        Self {
            read: flags & libc::O_ACCMODE != libc::O_WRONLY,
            write: flags & libc::O_ACCMODE != libc::O_RDONLY,
            append: flags & libc::O_APPEND != 0,
            truncate: flags & libc::O_TRUNC != 0,
            exclusive: flags & libc::O_EXCL != 0,
        }
    }
}

/// A mode after a write by somebody who may not set such bits. Set-group-id without the right to execute means something else
/// (mandatory locks) and stays.
fn without_set_id(mode: u32) -> u32 {
    let both = libc::S_ISGID | libc::S_IXGRP;
    let group = if mode & both == both { libc::S_ISGID } else { 0 };
    mode & !(libc::S_ISUID | group)
}

impl<B: Backend> Fs<B> {
    /// Creates and opens a file.
    pub(crate) async fn create(
        &self,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        owner: (u32, u32),
        open: OpenMode,
    ) -> Result<(Attr, Opened), Error> {
        let file = NewFile { mode: mode & 0o7777, uid: owner.0, gid: owner.1, exclusive: open.exclusive };
        let created = self.backend.create(parent, name, file).await?;
        let ino = created.attr.ino;
        if created.existed {
            if created.attr.kind != FileKind::File {
                // The kernel thought the name was free. ESTALE makes it look again.
                return Err(Error::refused(libc::ESTALE, "the name was taken meanwhile by something that is no file"));
            }
            let opened = self.open(ino, open).await?;
            return Ok((self.patched(created.attr), opened));
        }
        let writer = self.backend.open_new_writer(&created).await?;
        let inode = self.inodes.acquire(ino, Role::Write);
        let prepared = inode.install_new(writer, created.attr.clone()).await;
        let handle = match prepared.and_then(|()| self.write_handle(&inode, open.append)) {
            Ok(handle) => handle,
            Err(error) => {
                inode.set_killed();
                self.release_write(&inode).await;
                return Err(error);
            }
        };
        self.coherence.changed_here(parent);
        lock(&self.pending).insert(parent, name, ino);
        lock(&self.written).insert(parent, name, ino);
        Ok((created.attr, Opened { handle, caching: Caching::Bypass, is_size_told: false, wants_flush: true }))
    }

    /// Opens a file.
    pub(crate) async fn open(&self, ino: InodeId, mode: OpenMode) -> Result<Opened, Error> {
        if mode.write || mode.truncate { self.open_write(ino, mode).await } else { self.open_read(ino).await }
    }

    /// With `write_once`: whether the content of `ino` may still be changed by somebody who did not create it.
    async fn check_unpublished(&self, ino: InodeId) -> Result<(), Error> {
        if !self.options.write_once || self.inodes.get(ino).is_some_and(|inode| inode.is_unpublished_writer()) {
            return Ok(());
        }
        if self.backend.getattr(ino).await?.file_id.is_none() {
            return Ok(());
        }
        if lock(&self.refused).put(ino, ()).is_none() {
            tracing::warn!(
                ino = ino.0,
                "a write to a published file was refused with EPERM, since this mount has -o write_once; write a new file and \
                 rename it over the old one, or mount without write_once"
            );
        }
        Err(Error::refused(libc::EPERM, "the file is published, and the mount has write_once"))
    }

    async fn open_write(&self, ino: InodeId, mode: OpenMode) -> Result<Opened, Error> {
        self.check_unpublished(ino).await?;
        let inode = self.inodes.acquire(ino, Role::Write);
        lock(&self.pages).soil(ino);
        let prepared = match mode {
            OpenMode { truncate: true, .. } => inode.truncate_at_open(&self.backend).await,
            // Opened now, so that it can be read also when the name goes.
            OpenMode { read: true, .. } if inode.slot().await.is_none() => {
                inode.published(&self.backend).await.map(drop)
            }
            OpenMode { .. } => Ok(()),
        };
        match prepared.and_then(|()| self.write_handle(&inode, mode.append)) {
            Ok(handle) => Ok(Opened { handle, caching: Caching::Bypass, is_size_told: false, wants_flush: true }),
            Err(error) => {
                self.release_write(&inode).await;
                Err(error)
            }
        }
    }

    fn write_handle(&self, inode: &Arc<OpenInode<B>>, is_append: bool) -> Result<u64, Error> {
        let handle = self.handles.number();
        let _recorded = self.legacies.record(Legacy::Write { handle, ino: inode.ino, is_append })?;
        self.handles.insert(handle, Handle::Write { inode: Arc::clone(inode), is_append, _recorded });
        crash::point(Point::HandleRecorded);
        Ok(handle)
    }

    async fn open_read(&self, ino: InodeId) -> Result<Opened, Error> {
        let inode = self.inodes.acquire(ino, Role::Read);
        let opened = self.open_version(&inode).await;
        if opened.is_err() {
            self.inodes.release_read(&inode);
        }
        opened
    }

    async fn open_version(&self, inode: &Arc<OpenInode<B>>) -> Result<Opened, Error> {
        let reader =
            if inode.is_unpublished_writer() { None } else { open_published(&*self.backend, inode.ino).await? };
        let (mut caching, mut version, mut is_size_told) = (Caching::Bypass, None, false);
        if let Some(reader) = reader {
            inode.refresh(reader.attr(), false);
            let id = reader_version::<B>(&reader);
            let mut pages = lock(&self.pages);
            caching = pages.open(inode.ino, id);
            is_size_told = pages.is_told(inode.ino, id);
            // Under the lock of the pages, so that no reader goes on with another version in between.
            version = Some(match caching {
                Caching::Bypass => Arc::new(Version::new(Arc::new(reader), false)),
                Caching::Keep | Caching::Fresh => inode.share(reader),
            });
        }
        let handle = self.handles.number();
        let legacy = Legacy::Read {
            handle,
            ino: inode.ino,
            version: version.as_ref().map(|version| version.id()),
            is_cached: caching != Caching::Bypass,
            last: inode.known_attr().as_ref().map(Last::of).unwrap_or_default(),
        };
        let recorded = match self.legacies.record(legacy) {
            Ok(recorded) => recorded,
            Err(error) => {
                if let Some(version) = version.filter(|version| version.is_cached()) {
                    lock(&self.pages).close(inode.ino, version.id());
                }
                return Err(error);
            }
        };
        let read = Handle::Read {
            inode: Arc::clone(inode),
            version: version.map_or_else(OnceLock::new, OnceLock::from),
            is_unconfirmed: AtomicBool::new(caching == Caching::Fresh),
            inherited: None,
            number: handle,
            recorded,
        };
        self.handles.insert(handle, read);
        crash::point(Point::HandleRecorded);
        Ok(Opened { handle, caching, is_size_told, wants_flush: false })
    }

    /// Reads.
    pub(crate) async fn read(&self, handle: u64, offset: u64, len: usize) -> Result<Vec<Bytes>, Error> {
        let handle = self.file(handle)?;
        if let Handle::Read { inode, is_unconfirmed, .. } = &*handle
            && let Some(version) = self.version(&handle).await?
        {
            if version.is_cached() && is_unconfirmed.swap(false, Ordering::Relaxed) {
                let mut pages = lock(&self.pages);
                pages.confirm(inode.ino, version.id());
            }
            let size = version.size();
            let is_longer = |known: &Attr| known.size > size && known.file_id != Some(version.id());
            // Behind the end of the version: the kernel knows of a longer one, or, without cached pages, knows nothing.
            if offset.saturating_add(len as u64) > size
                && (inode.known_attr().as_ref().is_some_and(is_longer) || !version.is_cached() && offset >= size)
            {
                self.follow(inode.ino, &version).await;
            }
            return Ok(version.reader().read_at(offset, len).await?);
        }
        let inode = handle.inode();
        if let Some(writer) = inode.slot().await.as_ref() {
            return Ok(writer.read_at(offset, len).await?);
        }
        let Some(published) = inode.published(&self.backend).await? else { return Ok(Vec::new()) };
        if let Handle::Read { version, .. } = &*handle {
            // From now on this handle keeps its version. A race between two reads is won by either.
            let version = version.get_or_init(|| Arc::new(Version::new(published, false)));
            handle.record_version();
            return Ok(version.reader().read_at(offset, len).await?);
        }
        Ok(published.read_at(offset, len).await?)
    }

    /// [`Fs::write`] to a writer that is there, if the bytes lie in one chunk; `None` if they do not. May be dropped half way and
    /// done again by `write`: the same bytes go to the same place. (Opening a writer is a call that must not be left half way,
    /// and a write over the end of a chunk would send that chunk and then want it back.)
    pub(crate) async fn write_at_once(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        from_cache: bool,
    ) -> Option<Result<(), Error>> {
        let handle = self.file(handle).ok()?;
        let Handle::Write { inode, is_append, .. } = &*handle else { return None };
        let slot = inode.try_slot()?;
        let writer = slot.as_ref()?;
        let offset = if *is_append && !from_cache { writer.size() } else { offset };
        if offset % writer.chunk_size() + data.len() as u64 > writer.chunk_size() {
            return None;
        }
        let _changing = inode.change();
        Some(writer.write_at(offset, data).await.map_err(Error::from))
    }

    /// Writes; `from_cache` if the bytes come from a memory mapping, whose offset counts also in append mode.
    pub(crate) async fn write(&self, handle: u64, offset: u64, data: &[u8], from_cache: bool) -> Result<(), Error> {
        let handle = self.file(handle)?;
        let Handle::Write { inode, is_append, .. } = &*handle else {
            return Err(Error::refused(libc::EBADF, "the handle was opened for reading"));
        };
        let slot = inode.writer(&self.backend).await?;
        let writer = slot.as_ref().expect("OpenInode::writer leaves one in the slot");
        let offset = if *is_append && !from_cache { writer.size() } else { offset };
        let _changing = inode.change();
        Ok(writer.write_at(offset, data).await?)
    }

    /// Whether a file is known to have no bits that a write takes away.
    pub(crate) fn is_plain(&self, handle: u64) -> bool {
        let mode = self.handles.get(handle).ok().and_then(|handle| handle.inode().last_attr()).map(|attr| attr.mode);
        mode.is_some_and(|mode| without_set_id(mode) == mode)
    }

    /// Takes the set-user-id and set-group-id bits of a program away, since its content changes; whether there were any.
    pub(crate) async fn drop_set_id(&self, handle: u64) -> Result<bool, Error> {
        let inode = Arc::clone(self.handles.get(handle)?.inode());
        let mode = self.getattr(inode.ino, None).await?.attr.mode;
        let plain = without_set_id(mode);
        if plain != mode {
            self.setattr(inode.ino, None, None, SetAttr { mode: Some(plain), ..SetAttr::default() }).await?;
        }
        Ok(plain != mode)
    }

    /// Sets the size, by a handle or by path. By path nobody flushes afterwards, so it is published here, unless somebody
    /// is writing the file and will publish it.
    pub(crate) async fn resize(&self, ino: InodeId, handle: Option<u64>, size: u64) -> Result<(), Error> {
        let by_writer = handle.and_then(|handle| self.handles.get(handle).ok());
        if !by_writer.is_some_and(|handle| matches!(*handle, Handle::Write { .. })) {
            self.check_unpublished(ino).await?;
        }
        let inode = self.inodes.acquire(ino, Role::Write);
        let outcome = self.resize_open(&inode, size).await;
        self.release_write(&inode).await;
        outcome
    }

    async fn resize_open(&self, inode: &OpenInode<B>, size: u64) -> Result<(), Error> {
        let slot = inode.writer(&self.backend).await?;
        let writer = slot.as_ref().expect("OpenInode::writer leaves one in the slot");
        let changing = inode.change();
        writer.truncate(size).await?;
        drop(changing);
        match inode.unpublished(writer) {
            Some(unpublished) if unpublished.write_handles == 1 => {
                drop(slot);
                self.publish(inode, true).await
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A descriptor is being closed by thread `pid`.
    pub(crate) async fn flush(&self, handle: u64, pid: u32) -> Result<(), Error> {
        let handle = self.file(handle)?;
        let Handle::Write { inode, .. } = &*handle else { return Ok(()) };
        let Some(unpublished) = self.unpublished(inode).await? else { return Ok(()) };
        match caller::closing(pid) {
            Closing::Killed(signal) => {
                tracing::debug!(ino = inode.ino.0, pid, signal, "the writer was killed: nothing is published");
                inode.set_killed();
                Ok(())
            }
            Closing::Explicitly if unpublished.is_untouched && caller::holds_another(pid, inode.ino) => Ok(()),
            // A child that exits also flushes what it inherited; its parent may well go on writing.
            Closing::Explicitly if unpublished.may_end => self.publish(inode, true).await,
            Closing::Explicitly | Closing::AtExit => self.publish(inode, false).await,
        }
    }

    /// Makes everything written so far durable.
    pub(crate) async fn fsync(&self, handle: u64) -> Result<(), Error> {
        let handle = self.file(handle)?;
        let Handle::Write { inode, .. } = &*handle else { return Ok(()) };
        if self.unpublished(inode).await?.is_some() { self.publish(inode, false).await } else { Ok(()) }
    }

    /// A handle is gone; what was locked through it is given up before.
    pub(crate) async fn release(&self, handle: u64) {
        let Some(handle) = self.handles.remove(handle) else { return };
        match &*handle {
            Handle::Read { inode, version, inherited, .. } => {
                let inherited = inherited.as_ref().filter(|inherited| inherited.is_cached).map(|it| it.version);
                let mut pages = lock(&self.pages);
                let cached = match version.get() {
                    Some(version) => version.is_cached().then(|| version.id()),
                    None => inherited,
                };
                if let Some(cached) = cached {
                    pages.close(inode.ino, cached);
                }
                drop(pages);
                self.inodes.release_read(inode);
            }
            Handle::Lost { inode, may_write: false, .. } => self.inodes.release_read(inode),
            Handle::Write { inode, .. } | Handle::Lost { inode, .. } => self.release_write(inode).await,
        }
    }

    /// A handle that nobody will use: whoever asked for it was killed, or was told of an error. Nothing of it is published.
    pub(crate) async fn unclaimed(&self, handle: u64) {
        if let Ok(Handle::Write { inode, .. }) = self.handles.get(handle).as_deref() {
            inode.set_killed();
        }
        // Nobody has locked anything through it.
        self.release(handle).await;
    }

    /// What is not published, or the error that the writer has failed with.
    async fn unpublished(&self, inode: &OpenInode<B>) -> Result<Option<Unpublished>, Error> {
        match inode.slot().await.as_ref() {
            None => Ok(None),
            Some(writer) => match writer.failure() {
                Some(error) => Err(error.into()),
                None => Ok(inode.unpublished(writer)),
            },
        }
    }

    async fn publish(&self, inode: &OpenInode<B>, end: bool) -> Result<(), Error> {
        let slot = inode.slot().await;
        let Some(writer) = slot.as_ref() else { return Ok(()) };
        let Some(unpublished) = inode.unpublished(writer) else { return Ok(()) };
        let outcome = match end {
            true => writer.publish_and_finish(unpublished.set).await,
            false => writer.publish(unpublished.set).await,
        };
        self.published(inode, outcome)
    }

    /// Publishes all that is not, as fsync(2) would, for a process that takes the mount over.
    pub(crate) async fn publish_all(&self) -> Result<(), Error> {
        for ino in self.inodes.all() {
            let Some(inode) = self.inodes.get(ino) else { continue };
            if self.unpublished(&inode).await?.is_some() {
                self.publish(&inode, false).await?;
            }
            if inode.is_written_without_name() || inode.is_open_for_writing() && self.is_gone(ino).await? {
                return Err(Error::refused(
                    libc::EBUSY,
                    "a file without a name is open for writing, which goes with this process",
                ));
            }
        }
        Ok(())
    }

    /// Whether no name leads to `ino` any more.
    async fn is_gone(&self, ino: InodeId) -> Result<bool, Error> {
        match self.backend.getattr(ino).await.map_err(Error::from) {
            Ok(attr) => Ok(attr.nlink == 0),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn published(&self, inode: &OpenInode<B>, outcome: Result<Attr, dfs_client::Error>) -> Result<(), Error> {
        match outcome.map_err(Error::from) {
            Ok(attr) => {
                inode.set_published(attr);
                lock(&self.pending).settle(inode.ino);
                // The cluster has set times of which the kernel does not know.
                self.coherence.attr_changed_here(inode.ino);
                Ok(())
            }
            // The file was removed while it was open: nobody can ever see what was written, as on a local disk.
            Err(error) if error.is_not_found() => {
                tracing::debug!(ino = inode.ino.0, %error, "a removed file is not published");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn release_write(&self, inode: &Arc<OpenInode<B>>) {
        let mut slot = inode.slot_mut().await;
        lock(&self.pages).soil(inode.ino);
        if self.inodes.leave(inode)
            && let Some(writer) = slot.clone()
        {
            self.settle(inode, &*writer).await;
            inode.uninstall(&mut slot);
            lock(&self.pending).settle(inode.ino);
            lock(&self.written).settle(inode.ino);
        }
        drop(slot);
        self.inodes.sweep(inode);
    }

    /// The last write handle is gone: ends the pending version.
    async fn settle(&self, inode: &OpenInode<B>, writer: &B::Writer) {
        let unpublished = inode.unpublished(writer);
        match unpublished {
            _ if writer.failure().is_some() => self.give_up(writer).await,
            // Also of a removed file, whose changes nobody can see.
            None => writer.finish().await,
            Some(left) if left.was_killed => self.give_up(writer).await,
            // Memory mappings are written back after the last close.
            Some(left) => {
                if let Err(error) = self.published(inode, writer.publish_and_finish(left.set).await) {
                    tracing::warn!(ino = inode.ino.0, %error, "changes made after the last close are lost");
                    self.give_up(writer).await;
                }
            }
        }
    }

    /// Nothing more is published. A name that was created for it is gone, and the kernel knows it.
    async fn give_up(&self, writer: &B::Writer) {
        writer.abort().await;
        self.doubt();
    }

    /// An open file that can be used.
    pub(crate) fn file(&self, handle: u64) -> Result<Arc<Handle<B>>, Error> {
        let handle = self.handles.get(handle)?;
        match *handle {
            Handle::Lost { .. } => {
                Err(Error::refused(libc::EIO, "what was written was lost when the process that served the mount ended"))
            }
            Handle::Read { .. } | Handle::Write { .. } => Ok(handle),
        }
    }
}
