//! The file system, without FUSE: plain asynchronous functions on plain types, so that it can be tested without a mount.
//!
//! Nothing is kept per inode that the kernel has merely looked up: inode numbers are the cluster's own and stay valid for
//! ever, so the kernel's lookup counts and FORGET need no bookkeeping here. What others change is told to the kernel whether
//! it keeps it or not (`coherence`).

pub(crate) mod backend;
pub(crate) mod caller;
pub(crate) mod coherence;
pub(crate) mod dir;
pub(crate) mod error;
pub(crate) mod file;
pub(crate) mod follow;
pub(crate) mod handles;
pub(crate) mod inode;
pub(crate) mod legacy;
pub(crate) mod locks;
pub(crate) mod names;
pub(crate) mod pages;
pub(crate) mod ranges;
pub(crate) mod seen;
pub(crate) mod xattr;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use dfs_client::{NewNode, RenameFlags, StatFs};
use dfs_common::{Attr, FileId, InodeId, SetAttr, SetTime};
use lru::LruCache;

use backend::Backend;
use coherence::{Coherence, Mark, Reached};
use error::Error;
use handles::Handles;
use inode::{OpenInodes, lock, now_ns};
use legacy::Legacies;
use locks::LockOwners;
use names::Names;
use pages::Pages;
use seen::Seen;

/// Checksums of whole files that are remembered.
const SHA256S_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Directories whose listings the kernel may keep. Forgetting one costs a listing, nothing else.
const LISTED_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");
/// Files whose refused writes are remembered, so that a program that tries again and again is logged once.
const REFUSED_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// How long statfs, and stat of the root which `df` does first, may ask before they tell what was known last: `df` must
/// never hang, since monitoring and even login scripts run it.
const DF_DEADLINE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(2) };

/// How long they ask when the last question was in vain not long ago: `df` asks several times.
const DF_DEADLINE_AWAY: Duration = Duration::from_millis(50);
/// How long ago that is.
const DF_AWAY: Duration = Duration::from_secs(10);

/// How this mount behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    /// The inode that is the root of the mount.
    pub(crate) root: InodeId,
    /// Refuse to change the content of a published file.
    pub(crate) write_once: bool,
    /// For how long names and attributes may be out of date.
    pub(crate) cache_ttl: Duration,
}

/// Attributes with the time the kernel may keep them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// The attributes.
    pub(crate) attr: Attr,
    /// How long.
    pub(crate) ttl: Duration,
}

/// A mounted file system.
pub(crate) struct Fs<B: Backend> {
    backend: Arc<B>,
    options: Options,
    coherence: Coherence,
    legacies: Legacies,
    inodes: OpenInodes<B>,
    handles: Handles<file::Handle<B>>,
    dirs: Handles<dir::DirStream>,
    pages: Mutex<Pages>,
    /// Directories of which the kernel may have a listing, and what was known when it began to keep it.
    listed: Mutex<LruCache<InodeId, Mark>>,
    seen: Mutex<Seen>,
    /// Names of files that were created here and are not published.
    pending: Mutex<Names>,
    /// Names of files that were created here and are still open for writing.
    written: Mutex<Names>,
    sha256s: Mutex<LruCache<FileId, [u8; 32]>>,
    /// Files of which a refused write was logged, with `write_once`.
    refused: Mutex<LruCache<InodeId, ()>>,
    space: Mutex<StatFs>,
    root: Mutex<Option<Attr>>,
    lock_owners: Mutex<LockOwners>,
    /// When a question of `df` was last asked in vain; `None` after one that was answered.
    df_in_vain: Mutex<Option<Instant>>,
}

impl<B: Backend> Fs<B> {
    /// A file system on `backend` that records what a successor of this process has to know.
    pub(crate) fn new(backend: B, options: Options, legacies: Legacies) -> Self {
        Self {
            backend: Arc::new(backend),
            options,
            coherence: Coherence::new(options.cache_ttl),
            inodes: OpenInodes::new(legacies.clone()),
            legacies,
            handles: Handles::new(),
            dirs: Handles::new(),
            pages: Mutex::new(Pages::new()),
            listed: Mutex::new(LruCache::new(LISTED_MAX)),
            seen: Mutex::new(Seen::new()),
            pending: Mutex::default(),
            written: Mutex::default(),
            sha256s: Mutex::new(LruCache::new(SHA256S_MAX)),
            refused: Mutex::new(LruCache::new(REFUSED_MAX)),
            space: Mutex::default(),
            root: Mutex::default(),
            lock_owners: Mutex::default(),
            df_in_vain: Mutex::default(),
        }
    }

    /// Most inodes have no writer; the names of those that do show what was written so far.
    fn patched(&self, attr: Attr) -> Attr {
        match self.inodes.get(attr.ino) {
            Some(inode) => inode.patch(attr).0,
            None => attr,
        }
    }

    /// How long the kernel may keep `attr`, asked for at `mark`: not at all while a writer changes it, or while cached handles
    /// of several versions are open, since the kernel has one size an inode.
    pub(crate) fn found(&self, mark: Mark, attr: Attr) -> Found {
        let (attr, has_writer) = match self.inodes.get(attr.ino) {
            Some(inode) => inode.patch(attr),
            None => (attr, false),
        };
        let mut pages = lock(&self.pages);
        pages.tell(attr.ino, attr.file_id.filter(|_| !has_writer));
        let is_passing = has_writer || pages.is_mixed(attr.ino, attr.file_id);
        drop(pages);
        let ttl = if is_passing { Duration::ZERO } else { self.coherence.ttl(mark, &[attr.ino]) };
        Found { attr, ttl }
    }

    /// The inode that the kernel calls `number`: its 1 is the root of the mount, which need not be the cluster's.
    pub(crate) fn inode(&self, number: u64) -> InodeId {
        if number == InodeId::ROOT.0 { self.options.root } else { InodeId(number) }
    }

    /// What this mount knows of changes.
    pub(crate) fn coherence(&self) -> &Coherence {
        &self.coherence
    }

    /// What the kernel may reach without a name.
    fn reached(&self) -> Reached {
        let mut dirs = self.dirs.map(dir::DirStream::ino);
        dirs.push(self.options.root);
        Reached { files: self.inodes.all(), dirs }
    }

    /// The lease is over; whether there was one.
    pub(crate) fn lose_lease(&self) -> bool {
        self.coherence.lose(&self.reached())
    }

    /// Something that the kernel knows of this mount's own doing is not so, or may change without its being told.
    pub(crate) fn doubt(&self) {
        self.coherence.doubt(&self.reached());
    }

    /// The kernel has what a process before this one gave it.
    pub(crate) fn take_over_kernel(&self) {
        self.coherence.take_over(&self.reached());
    }

    /// Finds a name.
    pub(crate) async fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Found, Error> {
        if let Some(found) = self.seen(parent, name) {
            return Ok(found);
        }
        let mark = self.coherence.mark();
        let attr = self.backend.lookup(parent, name).await?;
        Ok(self.found(mark, attr))
    }

    /// Attributes of an inode, as seen through `handle` if one is given.
    pub(crate) async fn getattr(&self, ino: InodeId, handle: Option<u64>) -> Result<Found, Error> {
        if ino == self.options.root {
            return self.getattr_root().await;
        }
        let mark = self.coherence.mark();
        let open = self.inodes.get(ino);
        let live_age_max = self.options.cache_ttl.min(Duration::from_secs(1));
        let attr = match open.as_ref().and_then(|inode| inode.live_attr(live_age_max)) {
            Some(attr) => attr,
            None => match self.backend.getattr(ino).await.map_err(Error::from) {
                Ok(attr) => {
                    if let Some(inode) = &open {
                        inode.refresh(&attr, false);
                    }
                    attr
                }
                Err(error) if error.is_not_found() => {
                    if open.as_ref().is_some_and(|inode| inode.known_attr().is_none()) {
                        self.claim(ino).await;
                    }
                    let attr = open.as_ref().and_then(|inode| inode.orphan_attr()).ok_or(error)?;
                    return Ok(self.of_version(Found { attr, ttl: Duration::ZERO }, handle).await);
                }
                Err(error) => return Err(error),
            },
        };
        Ok(self.of_version(self.found(mark, attr), handle).await)
    }

    async fn getattr_root(&self) -> Result<Found, Error> {
        let mark = self.coherence.mark();
        let asked = self.backend.getattr(self.options.root);
        let known = lock(&self.root).clone();
        let outcome = match known {
            None => asked.await,
            Some(known) => match self.ask_for_df(asked).await {
                Some(outcome) => outcome,
                None => return Ok(Found { attr: known, ttl: Duration::ZERO }),
            },
        };
        let attr = outcome?;
        *lock(&self.root) = Some(attr.clone());
        Ok(self.found(mark, attr))
    }

    /// A cached reader of an older version asks for the size before it reads near the end: it goes on with a version that only
    /// adds to its own, and else gets the size of that.
    async fn of_version(&self, mut found: Found, handle: Option<u64>) -> Found {
        let Some(version) = self.version_of(handle).await else { return found };
        if found.attr.size > version.size() && found.attr.file_id != Some(version.id()) {
            self.follow(found.attr.ino, &version).await;
        }
        let size = version.size();
        if found.attr.size != size {
            lock(&self.pages).tell(found.attr.ino, None);
            found.attr.size = size;
            found.ttl = Duration::ZERO;
        }
        found
    }

    /// Changes attributes and size; `handle` is that of ftruncate(2).
    pub(crate) async fn setattr(
        &self,
        ino: InodeId,
        handle: Option<u64>,
        size: Option<u64>,
        change: SetAttr,
    ) -> Result<Found, Error> {
        if let Some(size) = size {
            self.resize(ino, handle, size).await?;
        }
        if change == SetAttr::default() {
            return self.getattr(ino, None).await;
        }
        let open = self.inodes.get(ino);
        if let Some(inode) = &open
            && let Some(attr) = inode.defer(change).await
        {
            return Ok(self.found(self.coherence.mark(), attr));
        }
        let mark = self.coherence.mark();
        match self.backend.setattr(ino, change).await.map_err(Error::from) {
            Ok(attr) => {
                let found = self.found(mark, attr.clone());
                self.coherence.changed_here(ino);
                if let Some(inode) = &open {
                    inode.refresh(&attr, change.mtime.is_some());
                }
                Ok(found)
            }
            Err(error) if error.is_not_found() => {
                let attr = open.as_ref().and_then(|inode| inode.change_orphan(|attr| apply(attr, change)));
                Ok(Found { attr: attr.ok_or(error)?, ttl: Duration::ZERO })
            }
            Err(error) => Err(error),
        }
    }

    /// Target of a symbolic link.
    pub(crate) async fn readlink(&self, ino: InodeId) -> Result<Vec<u8>, Error> {
        Ok(self.backend.readlink(ino).await?)
    }

    /// Makes a directory.
    pub(crate) async fn mkdir(
        &self,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        owner: (u32, u32),
    ) -> Result<Found, Error> {
        let mark = self.coherence.mark();
        let attr = self.backend.mkdir(parent, name, mode & 0o7777, owner.0, owner.1).await?;
        Ok(self.made(mark, parent, attr))
    }

    /// Makes a symbolic link.
    pub(crate) async fn symlink(
        &self,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
        owner: (u32, u32),
    ) -> Result<Found, Error> {
        let mark = self.coherence.mark();
        let attr = self.backend.symlink(parent, name, target, owner.0, owner.1).await?;
        Ok(self.made(mark, parent, attr))
    }

    /// Makes a pipe, socket, device or empty file.
    pub(crate) async fn mknod(&self, parent: InodeId, name: &[u8], node: NewNode) -> Result<Found, Error> {
        let mark = self.coherence.mark();
        let attr = self.backend.mknod(parent, name, node).await?;
        Ok(self.made(mark, parent, attr))
    }

    /// A new entry of `parent`.
    fn made(&self, mark: Mark, parent: InodeId, attr: Attr) -> Found {
        self.coherence.changed_here(parent);
        self.found(mark, attr)
    }

    /// Gives an inode one more name.
    pub(crate) async fn link(&self, ino: InodeId, parent: InodeId, name: &[u8]) -> Result<Found, Error> {
        let mark = self.coherence.mark();
        let attr = self.backend.link(ino, parent, name).await?;
        // Which of its names go is not followed any more.
        self.inodes.distrust();
        lock(&self.written).settle(ino);
        self.lost_name(Some(ino), false);
        let found = self.made(mark, parent, attr);
        self.coherence.changed_here(ino);
        Ok(found)
    }

    /// A name is about to go, perhaps the last one of a file that is open for writing here: the cluster, which keeps a file for
    /// the writers that it knows of, is told of all of them. They are few, and known from then on.
    async fn hold_written(&self) {
        for inode in self.inodes.unheld() {
            // A failure is not this operation's trouble: whoever writes that file hears of it with the next write.
            match inode.hold(&*self.backend).await {
                Ok(()) => {}
                // Another mount has removed it: there is nothing to ask for again with each name that goes here.
                Err(error) if error.is_not_found() => inode.lost_name(true),
                Err(error) => tracing::debug!(ino = inode.ino.0, %error, "cannot keep a file for its writer"),
            }
        }
    }

    /// Removes a name.
    pub(crate) async fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<(), Error> {
        self.hold_written().await;
        self.backend.unlink(parent, name).await?;
        self.coherence.changed_here(parent);
        self.unsee(parent, name);
        self.inodes.distrust();
        lock(&self.pending).remove(parent, name);
        let removed = lock(&self.written).remove(parent, name);
        self.lost_name(removed, true);
        Ok(())
    }

    /// Removes an empty directory.
    pub(crate) async fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<(), Error> {
        self.backend.rmdir(parent, name).await?;
        self.coherence.changed_here(parent);
        self.unsee(parent, name);
        Ok(())
    }

    /// Renames.
    pub(crate) async fn rename(
        &self,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: RenameFlags,
    ) -> Result<(), Error> {
        if !flags.no_replace && !flags.exchange {
            self.hold_written().await;
        }
        self.backend.rename(from.0, from.1, to.0, to.1, flags).await?;
        for (dir, name) in [from, to] {
            self.coherence.changed_here(dir);
            self.unsee(dir, name);
        }
        self.inodes.distrust();
        lock(&self.pending).rename(from, to, flags.exchange);
        let replaced = lock(&self.written).rename(from, to, flags.exchange);
        self.lost_name(replaced, true);
        Ok(())
    }

    fn lost_name(&self, ino: Option<InodeId>, is_removed: bool) {
        if let Some(inode) = ino.and_then(|ino| self.inodes.get(ino)) {
            inode.lost_name(is_removed);
        }
    }

    /// Space and inodes; what was known last if the cluster does not answer soon.
    pub(crate) async fn statfs(&self) -> StatFs {
        match self.ask_for_df(self.backend.statfs()).await {
            Some(Ok(space)) => {
                *lock(&self.space) = space;
                space
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "statfs answers from memory");
                *lock(&self.space)
            }
            None => *lock(&self.space),
        }
    }

    /// Asks the cluster, but not for long.
    async fn ask_for_df<T>(&self, question: impl Future<Output = T>) -> Option<T> {
        let is_away = lock(&self.df_in_vain).is_some_and(|at| at.elapsed() < DF_AWAY);
        let patience = if is_away { DF_DEADLINE_AWAY } else { DF_DEADLINE };
        let answer = tokio::time::timeout(patience, question).await.ok();
        *lock(&self.df_in_vain) = if answer.is_some() { None } else { Some(Instant::now()) };
        answer
    }
}

/// What a change makes of attributes; the time of the change itself is the caller's.
fn apply(attr: &mut Attr, change: SetAttr) {
    let time = |time: SetTime| match time {
        SetTime::Now => now_ns(),
        SetTime::At(ns) => ns,
    };
    attr.mode = change.mode.unwrap_or(attr.mode);
    attr.uid = change.uid.unwrap_or(attr.uid);
    attr.gid = change.gid.unwrap_or(attr.gid);
    attr.atime_ns = change.atime.map_or(attr.atime_ns, time);
    attr.mtime_ns = change.mtime.map_or(attr.mtime_ns, time);
}
