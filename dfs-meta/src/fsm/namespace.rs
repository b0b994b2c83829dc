//! Names: making, linking and removing them, and who sees which.
//!
//! A name is *published* (a dentry, seen by all) or *reserved* (seen by one session, for an inode of which nothing was
//! published). Both can exist at once when somebody else published the name after it was reserved: the session sees its
//! reservation, the others the published one, and the publication replaces it. Operations that demand a free name (exclusive
//! create, mkdir, symlink, mknod, link) count the reservations of everybody, so that of two mounts one wins.

use dfs_common::{ErrorCode, FileId, FileKind, InodeId, SessionId, name};
use smallvec::SmallVec;

use super::{
    command::{Outcome, Refusal, Reply},
    name::{EntryRef, Name},
    record::{Body, Inode, Origin, Reason, Shared, Unpublished, Version},
    state::State,
    version::seconds,
};

/// Most names of one inode, as on ext4.
const LINK_MAX: u32 = 65_000;

/// A new entry.
pub(super) struct New<'a> {
    pub(super) parent: InodeId,
    pub(super) name: &'a [u8],
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What a session finds under a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    /// Its own, unpublished.
    Reserved(InodeId),
    /// What all see.
    Published(InodeId),
}

impl Entry {
    pub(super) fn ino(self) -> InodeId {
        match self {
            Self::Reserved(ino) | Self::Published(ino) => ino,
        }
    }
}

/// Who sees what.
impl State {
    pub(super) fn published(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        self.dentries.get(&EntryRef(parent, name)).copied()
    }

    pub(super) fn resolve(&self, session: Option<SessionId>, parent: InodeId, name: &[u8]) -> Option<Entry> {
        let own = session.and_then(|session| self.reservations.get(&(parent, Name::from_slice(name), session)));
        match own {
            Some(ino) => Some(Entry::Reserved(*ino)),
            None => self.published(parent, name).map(Entry::Published),
        }
    }

    /// Checks that a new entry can be made and that nobody has published or reserved its name.
    pub(super) fn check_free(&self, parent: InodeId, name: &[u8]) -> Result<(), Refusal> {
        self.check_new(parent, name)?;
        if self.is_taken(parent, name) {
            return Err(Self::refuse_name(ErrorCode::AlreadyExists, parent, name));
        }
        Ok(())
    }

    /// Whether anybody published or reserved the name.
    pub(super) fn is_taken(&self, parent: InodeId, name: &[u8]) -> bool {
        let key = (parent, Name::from_slice(name), SessionId(0));
        let reserved = self.reservations.range(key..).next();
        self.published(parent, name).is_some()
            || reserved.is_some_and(|((p, n, _), _)| *p == parent && n.as_slice() == name)
    }

    pub(super) fn check_new(&self, parent: InodeId, name: &[u8]) -> Result<(), Refusal> {
        name::check(name)
            .and_then(|()| self.directory(parent))
            .map_err(|code| Self::refuse_name(code, parent, name))?;
        Ok(())
    }

    /// Whether a directory has published entries, or entries that any session reserved: a writer whose directory went away
    /// could not publish what it was told is written.
    pub(super) fn is_occupied(&self, ino: InodeId) -> bool {
        let reserved = self.reservations.range((ino, Name::from_slice(b""), SessionId(0))..).next();
        self.names_after(ino, b"").next().is_some() || reserved.is_some_and(|((parent, _, _), _)| *parent == ino)
    }
}

/// Making entries.
impl State {
    /// A new inode with the rights of `new`, below a directory whose setgid bit is inherited.
    fn make_inode(&mut self, now_ns: i64, new: &New<'_>, body: Body) -> InodeId {
        let inherited =
            self.inodes.get(&new.parent).filter(|parent| parent.mode & 0o2000 != 0).map(|parent| parent.gid);
        let is_directory = matches!(body, Body::Directory { .. });
        let setgid = if inherited.is_some() && is_directory { 0o2000 } else { 0 };
        let ino = InodeId(self.next_ino);
        self.next_ino += 1;
        let inode = Inode {
            body,
            mode: new.mode & 0o7777 | setgid,
            uid: new.uid,
            gid: inherited.unwrap_or(new.gid),
            names: 1,
            atime_ns: now_ns,
            mtime_ns: now_ns,
            ctime_ns: now_ns,
            generation: 1,
            xattrs: None,
            place: None,
        };
        self.inodes.insert(ino, Shared::new(inode));
        ino
    }

    /// A published entry of a name that is free.
    fn make(&mut self, now_ns: i64, new: &New<'_>, body: Body) -> Result<InodeId, Refusal> {
        self.check_free(new.parent, new.name)?;
        let ino = self.make_inode(now_ns, new, body);
        self.insert_dentry(new.parent, Name::from_slice(new.name), ino);
        self.entries_changed(now_ns, new.parent);
        Ok(ino)
    }

    /// A directory's entries changed.
    pub(super) fn entries_changed(&mut self, now_ns: i64, ino: InodeId) {
        self.touch(ino, |inode| (inode.mtime_ns, inode.ctime_ns) = (now_ns, now_ns));
    }

    pub(super) fn change_subdirs(&mut self, ino: InodeId, change: i32) {
        if let Some(Inode { body: Body::Directory { subdirs, .. }, .. }) = self.inode_mut(ino) {
            *subdirs = subdirs.saturating_add_signed(change);
        }
    }

    pub(super) fn create(
        &mut self,
        now_ns: i64,
        session: SessionId,
        new: &New<'_>,
        exclusive: bool,
        file_id: FileId,
    ) -> Outcome {
        self.check_new(new.parent, new.name)?;
        if exclusive {
            self.check_free(new.parent, new.name)?;
        }
        if let Some(entry) = self.resolve(Some(session), new.parent, new.name) {
            let attr = self.attr(entry.ino());
            if attr.as_ref().is_some_and(|attr| attr.kind == FileKind::Directory) {
                return Err(Self::refuse_name(ErrorCode::IsDirectory, new.parent, new.name));
            }
            return Ok(Reply::Mutated { attr, file_id: None, existed: true });
        }
        self.check_fresh(file_id)?;
        let ino = self.make_inode(now_ns, new, Body::File { version: None });
        let name = Name::from_slice(new.name);
        self.reservations.insert((new.parent, name.clone(), session), ino);
        self.unpublished.insert(ino, Unpublished { session, names: vec![(new.parent, name)] });
        self.add_pending(now_ns, session, ino, file_id);
        self.entries_changed(now_ns, new.parent);
        Ok(Reply::Mutated { attr: self.attr(ino), file_id: Some(file_id), existed: false })
    }

    pub(super) fn mkdir(&mut self, now_ns: i64, new: &New<'_>) -> Outcome {
        let ino = self.make(now_ns, new, Body::Directory { parent: new.parent, subdirs: 0 })?;
        self.change_subdirs(new.parent, 1);
        Ok(self.mutated(ino))
    }

    pub(super) fn symlink(&mut self, now_ns: i64, new: &New<'_>, target: &[u8]) -> Outcome {
        if target.len() >= name::PATH_MAX {
            return Err(Self::refuse_name(ErrorCode::NameTooLong, new.parent, new.name));
        }
        if target.is_empty() || target.contains(&0) {
            return Err(Self::refuse_name(ErrorCode::InvalidArgument, new.parent, new.name));
        }
        let ino = self.make(now_ns, new, Body::Symlink { target: target.into() })?;
        Ok(self.mutated(ino))
    }

    pub(super) fn mknod(&mut self, now_ns: i64, new: &New<'_>, kind: FileKind, rdev: u32, file_id: FileId) -> Outcome {
        let body = match kind {
            FileKind::Fifo | FileKind::Socket => Body::Special { kind, rdev: 0 },
            FileKind::CharDevice | FileKind::BlockDevice => Body::Special { kind, rdev },
            FileKind::File => {
                self.check_fresh(file_id)?;
                Body::File { version: Some(file_id) }
            }
            FileKind::Directory | FileKind::Symlink => {
                return Err(Self::refuse_name(ErrorCode::InvalidArgument, new.parent, new.name));
            }
        };
        let ino = self.make(now_ns, new, body)?;
        if kind == FileKind::File {
            let (chunk_size, published_s) = (self.settings.chunk_size, seconds(now_ns));
            let version = Version { ino, size: 0, chunk_size, published_s, chunks: SmallVec::new() };
            self.versions.insert(file_id, Shared::new(version));
        }
        Ok(self.mutated(ino))
    }

    pub(super) fn link(
        &mut self,
        now_ns: i64,
        session: SessionId,
        ino: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Outcome {
        let inode = self.visible(Some(session), ino).map_err(|code| Self::refuse_ino(code, ino))?;
        if matches!(inode.body, Body::Directory { .. }) {
            return Err(Self::refuse_ino(ErrorCode::NotPermitted, ino));
        }
        match inode.names {
            0 => return Err(Self::refuse_ino(ErrorCode::NotFound, ino)),
            LINK_MAX.. => return Err(Self::refuse_ino(ErrorCode::TooManyLinks, ino)),
            1..LINK_MAX => self.check_free(parent, name)?,
        }
        let name = Name::from_slice(name);
        if let Some(unpublished) = self.unpublished.get_mut(&ino) {
            unpublished.names.push((parent, name.clone()));
            self.reservations.insert((parent, name, session), ino);
        } else {
            self.insert_dentry(parent, name, ino);
        }
        self.touch(ino, |inode| {
            inode.names += 1;
            inode.ctime_ns = now_ns;
        });
        self.entries_changed(now_ns, parent);
        Ok(self.mutated(ino))
    }
}

/// Removing entries.
impl State {
    pub(super) fn unlink(&mut self, now_ns: i64, session: SessionId, parent: InodeId, name: &[u8]) -> Outcome {
        let refuse = |code| Self::refuse_name(code, parent, name);
        self.check_new(parent, name)?;
        let entry = self.resolve(Some(session), parent, name).ok_or_else(|| refuse(ErrorCode::NotFound))?;
        let mut left = self.attr(entry.ino()).ok_or_else(|| refuse(ErrorCode::NotFound))?;
        if left.kind == FileKind::Directory {
            return Err(refuse(ErrorCode::IsDirectory));
        }
        match entry {
            Entry::Reserved(ino) => self.drop_reservation(now_ns, session, ino, parent, name),
            Entry::Published(_) => self.drop_dentry(now_ns, parent, name, Reason::Removed),
        }
        self.entries_changed(now_ns, parent);
        left.nlink = left.nlink.saturating_sub(1);
        left.ctime_ns = now_ns;
        left.generation += 1;
        Ok(Reply::Mutated { attr: Some(left), file_id: None, existed: false })
    }

    pub(super) fn rmdir(&mut self, now_ns: i64, session: SessionId, parent: InodeId, name: &[u8]) -> Outcome {
        let refuse = |code| Self::refuse_name(code, parent, name);
        self.check_new(parent, name)?;
        let entry = self.resolve(Some(session), parent, name).ok_or_else(|| refuse(ErrorCode::NotFound))?;
        self.directory(entry.ino()).map_err(refuse)?;
        if self.is_occupied(entry.ino()) {
            return Err(refuse(ErrorCode::NotEmpty));
        }
        self.drop_dentry(now_ns, parent, name, Reason::Removed);
        self.entries_changed(now_ns, parent);
        Ok(Reply::Done)
    }

    /// Removes a published name and, with its last name, the inode. A directory must be empty.
    pub(super) fn drop_dentry(&mut self, now_ns: i64, parent: InodeId, name: &[u8], reason: Reason) {
        let Some((ino, _)) = self.remove_dentry(parent, name) else { return };
        if self.directory(ino).is_ok() {
            self.change_subdirs(parent, -1);
        }
        let is_last = self.inodes.get(&ino).is_some_and(|inode| inode.names == 1);
        if is_last && self.keeps_trash() && self.current_version(ino).is_some() {
            let path = self.path_of_entry(parent, name);
            self.orphans.insert(ino, Origin { parent, path, reason });
        }
        self.drop_name(now_ns, ino);
    }

    /// Removes a reserved name; the inode stays while it is being written.
    pub(super) fn drop_reservation(
        &mut self,
        now_ns: i64,
        session: SessionId,
        ino: InodeId,
        parent: InodeId,
        name: &[u8],
    ) {
        self.reservations.remove(&(parent, Name::from_slice(name), session));
        if let Some(unpublished) = self.unpublished.get_mut(&ino) {
            unpublished.names.retain(|(p, n)| (*p, n.as_slice()) != (parent, name));
        }
        self.drop_name(now_ns, ino);
    }

    fn drop_name(&mut self, now_ns: i64, ino: InodeId) {
        self.touch(ino, |inode| {
            inode.names = inode.names.saturating_sub(1);
            inode.ctime_ns = now_ns;
        });
        self.reap(now_ns, ino);
    }

    /// Removes an inode that nothing names and nobody writes, or that never was published and nobody writes any more. Its
    /// content goes into the trash or becomes garbage, so that those who read it go on.
    pub(super) fn reap(&mut self, now_ns: i64, ino: InodeId) {
        let Some(inode) = self.inodes.get(&ino) else { return };
        let is_written = self.pending_by_ino.range((ino, FileId([0; 16]))..).next().is_some_and(|(i, _)| *i == ino);
        if is_written || (inode.names > 0 && !self.unpublished.contains_key(&ino)) {
            return;
        }
        let version = match inode.body {
            Body::File { version } => version,
            Body::Directory { .. } | Body::Symlink { .. } | Body::Special { .. } => None,
        };
        if let Some(unpublished) = self.unpublished.remove(&ino) {
            for (parent, name) in unpublished.names {
                // Who reserved the name has seen it: under the name, and in listings, which are kept for as long as the
                // directory's time stays.
                self.entry_changed(parent, &name);
                self.reservations.remove(&(parent, name, unpublished.session));
                self.entries_changed(now_ns, parent);
            }
        }
        self.inode_changed(ino);
        let origin = self.orphans.remove(&ino);
        let Some(inode) = self.inodes.remove(&ino) else { return };
        match (version, origin) {
            (Some(version), Some(origin)) => self.retire_version(now_ns, version, ino, &inode, origin),
            (Some(version), None) => self.free_version(now_ns, version),
            (None, _) => {}
        }
    }

    /// Turns the reserved names of an inode into published ones. What was published there meanwhile is replaced.
    ///
    /// # Errors
    /// `NotFound` if every directory it was to appear in is gone; `IsDirectory` if a directory took its name.
    pub(super) fn check_publishable(&self, ino: InodeId) -> Result<(), Refusal> {
        let Some(unpublished) = self.unpublished.get(&ino) else { return Ok(()) };
        let mut gone = None;
        for (parent, name) in &unpublished.names {
            if self.published(*parent, name).is_some_and(|ino| self.directory(ino).is_ok()) {
                return Err(Self::refuse_name(ErrorCode::IsDirectory, *parent, name));
            }
            if self.directory(*parent).is_err() {
                gone = Some(Self::refuse_name(ErrorCode::NotFound, *parent, name));
            }
        }
        match gone {
            Some(refusal) if unpublished.names.iter().all(|(parent, _)| self.directory(*parent).is_err()) => {
                Err(refusal)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// As checked by [`State::check_publishable`].
    pub(super) fn publish_names(&mut self, now_ns: i64, ino: InodeId) {
        let Some(mut unpublished) = self.unpublished.remove(&ino) else { return };
        unpublished.names.sort();
        let mut names = 0;
        for (parent, name) in unpublished.names {
            self.reservations.remove(&(parent, name.clone(), unpublished.session));
            if self.directory(parent).is_ok() {
                self.drop_dentry(now_ns, parent, &name, Reason::Replaced);
                self.insert_dentry(parent, name, ino);
                self.entries_changed(now_ns, parent);
                names += 1;
            }
        }
        self.touch(ino, |inode| inode.names = names);
    }
}
