//! Inodes with open handles on this mount, and the one writer that all write handles of an inode share.
//!
//! Lock order: table, then state. The slot (an async lock) is taken before either and may be held across calls to the
//! cluster; table and state never are. Writes, reads and publications hold the slot shared; everything that puts a writer
//! in or takes it out holds it alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant, SystemTime},
};

use dfs_common::{Attr, InodeId, SetAttr, SetTime};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{
    backend::{Backend, VersionReader as _, VersionWriter as _},
    error::Error,
    follow::Version,
    legacy::{Legacies, Legacy, Recorded},
};

/// Locks a mutex whose holders never panic half way through a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> i64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

/// What a handle does with its inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// It may write.
    Write,
    /// It reads.
    Read,
}

/// The writer's place; empty until a handle writes, and again when the last write handle is gone.
pub(crate) type Slot<W> = Option<Arc<W>>;

/// An inode with open handles.
pub(crate) struct OpenInode<B: Backend> {
    pub(crate) ino: InodeId,
    slot: RwLock<Slot<B::Writer>>,
    /// The published version, for handles that may write and read before they wrote.
    published: tokio::sync::Mutex<Option<Arc<B::Reader>>>,
    /// What read handles with cached pages share.
    cached: Mutex<Weak<Version<B::Reader>>>,
    state: Mutex<State<B::Writer>>,
    legacies: Legacies,
}

/// A change of the content that is under way.
pub(crate) struct Changing<'a, B: Backend>(&'a OpenInode<B>);

impl<B: Backend> Drop for Changing<'_, B> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.changing -= 1;
        state.tell_successor(self.0.ino);
    }
}

struct State<W> {
    /// The same as in the slot, for those who must not wait.
    writer: Slot<W>,
    /// Attributes as the cluster last told them.
    attr: Option<Attr>,
    /// When; `None` if a name was removed since, perhaps one of this inode.
    fetched: Option<Instant>,
    /// Time of the last change, which goes into the next publication. Set by writes, and by utimensat(2) between the last
    /// write and close, as `cp -a` does.
    mtime_ns: Option<i64>,
    /// Other attributes that were set on a file that was created here and is not published. Nobody else sees the file, so
    /// they go with its publication and cost no call of their own: `cp -a` sets owner, mode and times of every file.
    deferred: SetAttr,
    /// Whether the cluster lists the file.
    is_published: bool,
    /// Whether this mount created the file and would know if its name went: only then a publication may end the pending
    /// version, which is what keeps a removed file alive for its writer.
    has_known_name: bool,
    /// Whether its only name is known to be gone.
    is_removed: bool,
    /// Bytes were written or cut since the file was created, truncated by open, or last published.
    is_touched: bool,
    /// The last flush came from a process that a signal ended: what it left must not be published when the handle goes.
    was_killed: bool,
    write_handles: usize,
    read_handles: usize,
    /// Changes under way.
    changing: usize,
    /// What a successor of this process is told while there is a writer.
    recorded: Option<Recorded>,
    /// Whether that says that something is unpublished.
    is_recorded_unpublished: bool,
}

/// What the next publication is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Unpublished {
    /// Attributes that go with it; the time of the last change is among them.
    pub(crate) set: SetAttr,
    /// Only created, or truncated by open.
    pub(crate) is_untouched: bool,
    /// Left by a killed process.
    pub(crate) was_killed: bool,
    /// Whether the pending version may end with the publication.
    pub(crate) may_end: bool,
    /// Handles that may write.
    pub(crate) write_handles: usize,
}

impl<B: Backend> OpenInode<B> {
    fn new(ino: InodeId, legacies: Legacies) -> Self {
        Self {
            ino,
            legacies,
            slot: RwLock::new(None),
            published: tokio::sync::Mutex::new(None),
            cached: Mutex::new(Weak::new()),
            state: Mutex::new(State {
                writer: None,
                attr: None,
                fetched: None,
                mtime_ns: None,
                deferred: SetAttr::default(),
                is_published: true,
                has_known_name: false,
                is_removed: false,
                is_touched: false,
                was_killed: false,
                write_handles: 0,
                read_handles: 0,
                changing: 0,
                recorded: None,
                is_recorded_unpublished: false,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<B::Writer>> {
        lock(&self.state)
    }

    /// The writer, which is made if there is none.
    pub(crate) async fn writer(&self, backend: &B) -> Result<RwLockReadGuard<'_, Slot<B::Writer>>, Error> {
        let slot = self.slot.read().await;
        if slot.is_some() {
            return Ok(slot);
        }
        drop(slot);
        let mut slot = self.slot.write().await;
        if slot.is_none() {
            let writer = backend.open_writer(self.ino, false).await?;
            self.install(&mut slot, writer).await?;
        }
        Ok(slot.downgrade())
    }

    /// The cluster knows that the file is open for writing, and keeps it should its name go.
    pub(crate) async fn hold(&self, backend: &B) -> Result<(), Error> {
        let slot = self.writer(backend).await?;
        let writer = slot.as_ref().expect("OpenInode::writer leaves one in the slot");
        Ok(writer.hold().await?)
    }

    /// Whether it is open for writing without the cluster's knowing it: nothing was written yet, or all that was is published.
    fn is_written_unheld(&self) -> bool {
        let state = self.state();
        let is_unheld = |writer: &B::Writer| !writer.is_held() && writer.failure().is_none();
        state.write_handles > 0 && !state.is_removed && state.writer.as_ref().is_none_or(|writer| is_unheld(writer))
    }

    /// The writer if there is one, shared with writes and reads.
    pub(crate) async fn slot(&self) -> RwLockReadGuard<'_, Slot<B::Writer>> {
        self.slot.read().await
    }

    /// The writer's place if nobody has it alone at the moment.
    pub(crate) fn try_slot(&self) -> Option<RwLockReadGuard<'_, Slot<B::Writer>>> {
        self.slot.try_read().ok()
    }

    /// The writer's place, alone.
    pub(crate) async fn slot_mut(&self) -> RwLockWriteGuard<'_, Slot<B::Writer>> {
        self.slot.write().await
    }

    /// Empties the content, for open(O_TRUNC): of the writer in use or of a new one.
    pub(crate) async fn truncate_at_open(&self, backend: &B) -> Result<(), Error> {
        let mut slot = self.slot.write().await;
        if let Some(writer) = slot.as_ref() {
            writer.truncate(0).await?;
        } else {
            let writer = backend.open_writer(self.ino, true).await?;
            self.install(&mut slot, writer).await?;
        }
        let mut state = self.state();
        state.is_touched = false;
        state.was_killed = false;
        state.mtime_ns = Some(now_ns());
        state.tell_successor(self.ino);
        Ok(())
    }

    /// Takes the writer of a file that was just created.
    pub(crate) async fn install_new(&self, writer: B::Writer, attr: Attr) -> Result<(), Error> {
        let mut slot = self.slot.write().await;
        self.install(&mut slot, writer).await?;
        let mut state = self.state();
        state.attr = Some(attr);
        state.fetched = Some(Instant::now());
        state.is_published = false;
        state.has_known_name = true;
        Ok(())
    }

    async fn install(&self, slot: &mut Slot<B::Writer>, writer: B::Writer) -> Result<(), Error> {
        let is_unpublished = writer.is_dirty();
        let recorded = self.legacies.record(Legacy::Changes { ino: self.ino, is_unpublished })?;
        let writer = Arc::new(writer);
        *self.published.lock().await = None;
        let mut state = self.state();
        state.writer = Some(Arc::clone(&writer));
        state.recorded = Some(recorded);
        state.is_recorded_unpublished = is_unpublished;
        drop(state);
        *slot = Some(writer);
        Ok(())
    }

    /// Takes the writer out.
    pub(crate) fn uninstall(&self, slot: &mut Slot<B::Writer>) -> Slot<B::Writer> {
        let mut state = self.state();
        state.writer = None;
        state.is_touched = false;
        state.was_killed = false;
        state.mtime_ns = None;
        // What was deferred is published or lost. Whether a publication whose answer was lost took effect is not known here,
        // so later changes go to the cluster, which knows.
        state.deferred = SetAttr::default();
        state.is_published = true;
        state.recorded = None;
        slot.take()
    }

    /// The published version, opened once. `None` if there is none: a file that was made by mknod and never written.
    pub(crate) async fn published(&self, backend: &B) -> Result<Option<Arc<B::Reader>>, Error> {
        let mut published = self.published.lock().await;
        if published.is_none() {
            *published = open_published(backend, self.ino).await?.map(Arc::new);
            if let Some(reader) = &*published {
                self.refresh(reader.attr(), false);
            }
        }
        Ok(published.clone())
    }

    /// A version for a read handle with cached pages: the one of the handles that are open, if it is that of `reader`.
    pub(crate) fn share(&self, reader: B::Reader) -> Arc<Version<B::Reader>> {
        let mut cached = lock(&self.cached);
        if let Some(version) = cached.upgrade().filter(|version| version.id() == reader.layout().file_id()) {
            return version;
        }
        let version = Arc::new(Version::new(Arc::new(reader), true));
        *cached = Arc::downgrade(&version);
        version
    }

    /// Bytes are being written or cut, for as long as what is given is kept.
    pub(crate) fn change(&self) -> Changing<'_, B> {
        let mut state = self.state();
        state.mtime_ns = Some(now_ns());
        state.is_touched = true;
        state.changing += 1;
        state.tell_successor(self.ino);
        Changing(self)
    }

    /// The attributes of a version that was taken over, of which nothing better is known yet.
    pub(crate) fn inherit(&self, attr: &Attr) {
        self.state().attr.get_or_insert_with(|| attr.clone());
    }

    /// The cluster told new attributes; `mtime_set` if a program has set the time, which the next publication must keep.
    pub(crate) fn refresh(&self, attr: &Attr, mtime_set: bool) {
        let mut state = self.state();
        state.attr = Some(attr.clone());
        state.fetched = Some(Instant::now());
        if mtime_set && state.is_being_changed() {
            state.mtime_ns = Some(attr.mtime_ns);
        }
    }

    /// Keeps a change for the publication of a file that nobody else can see yet, and gives its attributes; `None` if the file
    /// is not such a one. The slot is held alone, so that no publication is under way that would miss the change.
    pub(crate) async fn defer(&self, change: SetAttr) -> Option<Attr> {
        // A published file stays one: no need to wait for a write under way.
        if self.state().is_published {
            return None;
        }
        let _slot = self.slot.write().await;
        let mut state = self.state();
        if state.is_published || !state.is_being_changed() {
            return None;
        }
        let now = now_ns();
        state.attr.as_mut()?.ctime_ns = now;
        let at = |time: SetTime| match time {
            SetTime::Now => now,
            SetTime::At(ns) => ns,
        };
        let deferred = &mut state.deferred;
        deferred.mode = change.mode.or(deferred.mode);
        deferred.uid = change.uid.or(deferred.uid);
        deferred.gid = change.gid.or(deferred.gid);
        deferred.atime = change.atime.map(|time| SetTime::At(at(time))).or(deferred.atime);
        state.mtime_ns = change.mtime.map(at).or(state.mtime_ns);
        state.attr.clone().map(|attr| state.patch(attr))
    }

    /// The name under which this mount created the file is gone, or no longer the only one.
    pub(crate) fn lost_name(&self, is_removed: bool) {
        let mut state = self.state();
        state.has_known_name = false;
        state.is_removed |= is_removed;
    }

    /// What was not published and could still be seen by anybody, if anything.
    pub(crate) fn unpublished(&self, writer: &B::Writer) -> Option<Unpublished> {
        let state = self.state();
        (writer.is_dirty() && !state.is_removed).then_some(Unpublished {
            set: SetAttr { mtime: state.mtime_ns.map(SetTime::At), ..state.deferred },
            is_untouched: !state.is_touched,
            was_killed: state.was_killed,
            may_end: state.has_known_name && state.write_handles == 1,
            write_handles: state.write_handles,
        })
    }

    /// Everything up to now is published.
    pub(crate) fn set_published(&self, attr: Attr) {
        let mut state = self.state();
        state.attr = Some(attr);
        state.fetched = Some(Instant::now());
        state.is_published = true;
        state.deferred = SetAttr::default();
        state.is_touched = false;
        state.was_killed = false;
        state.mtime_ns = None;
        state.tell_successor(self.ino);
    }

    /// A process that a signal ended has closed the file.
    pub(crate) fn set_killed(&self) {
        self.state().was_killed = true;
    }

    /// Whether it is open for writing and its name is known to be gone: nothing of it can be stored, or opened again.
    pub(crate) fn is_written_without_name(&self) -> bool {
        let state = self.state();
        state.write_handles > 0 && (state.is_removed || state.is_being_changed())
    }

    /// Whether there are handles that may write.
    pub(crate) fn is_open_for_writing(&self) -> bool {
        self.state().write_handles > 0
    }

    /// Whether the file is being written here and the cluster does not list it yet.
    pub(crate) fn is_unpublished_writer(&self) -> bool {
        let state = self.state();
        state.writer.is_some() && !state.is_published
    }

    /// Attributes from memory, if there are unpublished changes and they are not older than `age_max`.
    pub(crate) fn live_attr(&self, age_max: Duration) -> Option<Attr> {
        let state = self.state();
        let is_recent = state.is_being_changed() && state.fetched.is_some_and(|at| at.elapsed() <= age_max);
        let attr = state.attr.clone().filter(|_| is_recent)?;
        Some(state.patch(attr))
    }

    /// Attributes as the cluster last told them, however old.
    pub(crate) fn known_attr(&self) -> Option<Attr> {
        self.state().attr.clone()
    }

    /// Attributes from memory, however old.
    pub(crate) fn last_attr(&self) -> Option<Attr> {
        let state = self.state();
        state.attr.clone().map(|attr| state.patch(attr))
    }

    /// `attr` from the cluster with unpublished changes; also whether there are any.
    pub(crate) fn patch(&self, attr: Attr) -> (Attr, bool) {
        let state = self.state();
        (state.patch(attr), state.is_being_changed())
    }

    /// Attributes of an inode that has handles but no name any more.
    pub(crate) fn orphan_attr(&self) -> Option<Attr> {
        self.last_attr().map(|attr| Attr { nlink: 0, ..attr })
    }

    /// Changes the attributes of an inode that has handles but no name any more: only they can see it.
    pub(crate) fn change_orphan(&self, change: impl FnOnce(&mut Attr)) -> Option<Attr> {
        if let Some(attr) = self.state().attr.as_mut() {
            change(attr);
            attr.ctime_ns = now_ns();
        }
        self.orphan_attr()
    }
}

impl<W: super::backend::VersionWriter> State<W> {
    /// Records whether anything is unpublished: also what is only about to be.
    fn tell_successor(&mut self, ino: InodeId) {
        let is_unpublished = self.changing > 0 || self.is_being_changed();
        if let Some(recorded) = self.recorded.as_ref().filter(|_| self.is_recorded_unpublished != is_unpublished) {
            recorded.set(Legacy::Changes { ino, is_unpublished });
            self.is_recorded_unpublished = is_unpublished;
        }
    }

    fn is_being_changed(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.is_dirty())
    }

    fn patch(&self, mut attr: Attr) -> Attr {
        if let Some(writer) = self.writer.as_ref().filter(|writer| writer.is_dirty()) {
            attr.size = writer.size();
            super::apply(&mut attr, self.deferred);
            if let Some(mtime_ns) = self.mtime_ns {
                attr.mtime_ns = mtime_ns;
                attr.ctime_ns = attr.ctime_ns.max(mtime_ns);
            }
        }
        attr
    }
}

/// Opens the published version of `ino`, if there is one.
pub(crate) async fn open_published<B: Backend>(backend: &B, ino: InodeId) -> Result<Option<B::Reader>, Error> {
    match backend.open_reader(ino).await {
        Ok(reader) => Ok(Some(reader)),
        Err(error) => {
            let error = Error::from(error);
            // A file without a version has attributes but no layout.
            let is_empty = error.is_not_found()
                && backend.getattr(ino).await.is_ok_and(|attr| attr.file_id.is_none() && attr.size == 0);
            if is_empty { Ok(None) } else { Err(error) }
        }
    }
}

/// All inodes with open handles.
pub(crate) struct OpenInodes<B: Backend> {
    table: Mutex<HashMap<InodeId, Arc<OpenInode<B>>>>,
    legacies: Legacies,
}

impl<B: Backend> OpenInodes<B> {
    pub(crate) fn new(legacies: Legacies) -> Self {
        Self { table: Mutex::new(HashMap::new()), legacies }
    }

    /// The inode, if it has handles.
    pub(crate) fn get(&self, ino: InodeId) -> Option<Arc<OpenInode<B>>> {
        lock(&self.table).get(&ino).cloned()
    }

    /// One more handle; to be given back by [`OpenInodes::release_read`] or [`OpenInodes::leave`] and
    /// [`OpenInodes::sweep`].
    pub(crate) fn acquire(&self, ino: InodeId, role: Role) -> Arc<OpenInode<B>> {
        let mut table = lock(&self.table);
        let inode = table.entry(ino).or_insert_with(|| Arc::new(OpenInode::new(ino, self.legacies.clone())));
        {
            let mut state = inode.state();
            match role {
                Role::Write => state.write_handles += 1,
                Role::Read => state.read_handles += 1,
            }
        }
        Arc::clone(inode)
    }

    /// A read handle less.
    pub(crate) fn release_read(&self, inode: &Arc<OpenInode<B>>) {
        inode.state().read_handles -= 1;
        self.sweep(inode);
    }

    /// A write handle less; whether it was the last. The caller holds the slot alone, so that a new handle's writes wait
    /// until the old content is settled, and calls [`OpenInodes::sweep`] afterwards.
    pub(crate) fn leave(&self, inode: &OpenInode<B>) -> bool {
        let mut state = inode.state();
        state.write_handles -= 1;
        state.write_handles == 0
    }

    /// Forgets the inode if it has no handles.
    pub(crate) fn sweep(&self, inode: &Arc<OpenInode<B>>) {
        let mut table = lock(&self.table);
        let state = inode.state();
        if state.write_handles == 0
            && state.read_handles == 0
            && table.get(&inode.ino).is_some_and(|current| Arc::ptr_eq(current, inode))
        {
            drop(state);
            table.remove(&inode.ino);
        }
    }

    /// A name was removed or replaced; its inode is not known, so all of them are asked for again.
    pub(crate) fn distrust(&self) {
        for inode in lock(&self.table).values() {
            inode.state().fetched = None;
        }
    }

    /// Those that are open for writing without the cluster's knowing it.
    pub(crate) fn unheld(&self) -> Vec<Arc<OpenInode<B>>> {
        lock(&self.table).values().filter(|inode| inode.is_written_unheld()).cloned().collect()
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<InodeId> {
        lock(&self.table).keys().copied().collect()
    }

    /// How many inodes have handles.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        lock(&self.table).len()
    }
}

/// Attributes of the file a reader was opened on.
pub(crate) fn reader_version<B: Backend>(reader: &B::Reader) -> dfs_common::FileId {
    reader.layout().file_id()
}
