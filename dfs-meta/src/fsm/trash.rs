//! Trash: content that lost its last name or was replaced, kept restorable for a while.
//!
//! ```text
//!   current ──removed, replaced──► trash ──expired, emptied, space needed──► garbage ──► gone
//!      ▲                             │
//!      └───────── restored ──────────┘
//! ```
//!
//! What is in the trash keeps its wanted number of copies. Two rules keep programs that write all the time from filling it:
//! - of what one open file publishes, flush by flush, only the state before the opening is kept;
//! - content that was current for less than `YOUNG_S` is kept only while the trash has fewer than `YOUNG_MAX` entries of
//!   the same path.
//!
//! A version that leaves the trash is garbage since it came in, not since it left: nobody can have opened it since.

use std::{ops::Bound, sync::Arc};

use dfs_common::{ErrorCode, FileId, InodeId};

use super::{
    command::{Outcome, Refusal, Reply},
    event::Fact,
    name::Name,
    record::{Body, Inode, Origin, Shared, Trashed},
    state::State,
    version::{Standing, seconds},
};

/// Content that was current for less than this, in seconds, is young: a program that writes a file over and over.
const YOUNG_S: u32 = 10;
/// Entries of one path from which on young content of it is not kept.
const YOUNG_MAX: usize = 8;

/// Place of an entry in the order of paths; of one path the oldest first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cursor {
    /// Path.
    pub path: Arc<[u8]>,
    /// When it came in, nanoseconds.
    pub at_ns: i64,
    /// Version.
    pub id: FileId,
}

impl Cursor {
    /// In front of every entry of a path.
    #[must_use]
    pub fn before(path: &[u8]) -> Self {
        Self { path: path.into(), at_ns: i64::MIN, id: FileId([0; 16]) }
    }
}

/// What comes in and goes out.
impl State {
    pub(super) fn keeps_trash(&self) -> bool {
        self.trash_retention_ns > 0
    }

    /// A current version that is current no more: into the trash if it is worth keeping, else it is garbage.
    pub(super) fn retire_version(&mut self, now_ns: i64, id: FileId, ino: InodeId, inode: &Inode, origin: Origin) {
        let Some(version) = self.versions.get(&id) else { return };
        let was_current_s = seconds(now_ns).saturating_sub(version.published_s);
        if !self.keeps_trash() || (was_current_s < YOUNG_S && self.has_many(&origin.path)) {
            return self.free_version(now_ns, id);
        }
        let entry = Trashed {
            ino,
            parent: origin.parent,
            path: origin.path,
            reason: origin.reason,
            at_ns: now_ns,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            atime_ns: inode.atime_ns,
            mtime_ns: inode.mtime_ns,
            ctime_ns: inode.ctime_ns,
            xattrs: inode.xattrs.clone(),
        };
        self.enter_trash(id, Arc::new(entry));
        self.move_version(id, Standing::Current, Standing::Trashed);
    }

    fn has_many(&self, path: &Arc<[u8]>) -> bool {
        let same = self.trash_by_path.range(Cursor::before(path)..).take_while(|other| other.path == *path);
        same.take(YOUNG_MAX).count() == YOUNG_MAX
    }

    /// The records of an entry; the references of its chunks are the caller's.
    pub(super) fn enter_trash(&mut self, id: FileId, entry: Arc<Trashed>) {
        self.trash_by_age.insert((entry.at_ns, id));
        self.trash_by_path.insert(Cursor { path: Arc::clone(&entry.path), at_ns: entry.at_ns, id });
        self.trash.insert(id, entry);
    }

    fn leave_trash(&mut self, id: FileId) -> Option<Arc<Trashed>> {
        let entry = self.trash.remove(&id)?;
        self.trash_by_age.remove(&(entry.at_ns, id));
        self.trash_by_path.remove(&Cursor { path: Arc::clone(&entry.path), at_ns: entry.at_ns, id });
        Some(entry)
    }

    /// Gives up entries; those that are not there (any more) are skipped.
    pub(super) fn drop_trash(&mut self, ids: &[FileId]) -> Reply {
        let (mut versions, mut bytes) = (0, 0);
        for id in ids {
            let Some(entry) = self.leave_trash(*id) else { continue };
            versions += 1;
            bytes += self.versions.get(id).map_or(0, |version| version.size);
            self.move_version(*id, Standing::Trashed, Standing::Garbage);
            self.garbage.insert(*id, entry.at_ns);
            self.garbage_by_age.insert((entry.at_ns, *id));
        }
        Reply::TrashDropped { versions, bytes }
    }

    pub(super) fn set_trash_retention(&mut self, retention_ns: i64) -> Outcome {
        if retention_ns < 0 {
            return Err(Refusal::new(ErrorCode::InvalidArgument, "the retention of the trash is a time, 0 or more"));
        }
        self.trash_retention_ns = retention_ns;
        Ok(Reply::Done)
    }

    /// Makes an entry a file again, under a free name and with a new inode.
    pub(super) fn restore(&mut self, now_ns: i64, id: FileId, parent: InodeId, name: &[u8]) -> Outcome {
        if !self.trash.contains_key(&id) {
            return Err(Refusal::new(ErrorCode::NotFound, format!("version {id} is not in the trash")));
        }
        self.check_free(parent, name)?;
        let Some(entry) = self.leave_trash(id) else { return Err(ErrorCode::Internal.into()) };
        let ino = InodeId(self.next_ino);
        self.next_ino += 1;
        let inode = Inode {
            body: Body::File { version: Some(id) },
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            names: 1,
            atime_ns: entry.atime_ns,
            mtime_ns: entry.mtime_ns,
            ctime_ns: now_ns,
            generation: 1,
            xattrs: entry.xattrs.clone(),
            place: None,
        };
        self.inodes.insert(ino, Shared::new(inode));
        if let Some(version) = self.versions.get_mut(&id).map(Shared::make_mut) {
            (version.ino, version.published_s) = (ino, seconds(now_ns));
        }
        self.move_version(id, Standing::Trashed, Standing::Current);
        self.insert_dentry(parent, Name::from_slice(name), ino);
        self.entries_changed(now_ns, parent);
        let bytes = self.versions.get(&id).map_or(0, |version| version.size);
        self.event(now_ns, Fact::TrashRestored { name: String::from_utf8_lossy(name).into_owned(), bytes });
        Ok(Reply::Mutated { attr: self.attr(ino), file_id: Some(id), existed: false })
    }
}

/// What is there.
impl State {
    /// How long content stays in the trash, nanoseconds; 0 if nothing is kept.
    #[must_use]
    pub fn trash_retention_ns(&self) -> i64 {
        self.trash_retention_ns
    }

    /// An entry, with the size of its content.
    #[must_use]
    pub fn trashed(&self, id: FileId) -> Option<(&Trashed, u64)> {
        let entry = self.trash.get(&id)?;
        Some((entry, self.versions.get(&id).map_or(0, |version| version.size)))
    }

    /// When entries came in (nanoseconds), oldest first.
    pub fn trash_by_age(&self) -> impl Iterator<Item = (i64, FileId)> + '_ {
        self.trash_by_age.iter().copied()
    }

    /// Entries in the order of paths, behind `after`.
    pub fn trash_after(&self, after: Cursor) -> impl Iterator<Item = &Cursor> + '_ {
        self.trash_by_path.range::<_, Cursor>((Bound::Excluded(after), Bound::Unbounded))
    }
}
