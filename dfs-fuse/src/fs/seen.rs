//! Entries of listings that the kernel has not asked for yet.
//!
//! Programs that walk a tree (`find`, `du`, `rm -r`, `rsync`) read a whole directory and then look at each name, in another order.
//! The kernel asks for attributes with a listing only of programs that do both in turn, so each name would be a question to
//! the cluster. Under the lease ([`super::coherence`]) a page of a listing is therefore fetched with attributes in any case, and
//! a name that is asked for soon afterwards is answered from here, once. It is as good as what the kernel itself keeps: a
//! name that is told to have changed is dropped, an inode that has changed since is asked for.
//!
//! A file with several names is not kept: when one of them goes, which inode that was is not told.

use std::num::NonZeroUsize;

use dfs_client::DirEntry;
use dfs_common::{Attr, FileKind, InodeId};
use lru::LruCache;

use super::{Found, Fs, backend::Backend, coherence::Mark, inode::lock};

/// Entries that are kept, of 200 to 400 bytes. Listings ask for attributes up to this one.
const SEEN_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// The entries, by directory and name.
pub(crate) struct Seen(LruCache<(InodeId, Vec<u8>), (Attr, Mark)>);

impl Seen {
    pub(crate) fn new() -> Self {
        Self(LruCache::new(SEEN_MAX))
    }
}

impl<B: Backend> Fs<B> {
    /// Whether entry `index` of a listing is worth its attributes although the kernel has not asked for them.
    pub(super) fn wants_seen(&self, index: u64) -> bool {
        index < SEEN_MAX.get() as u64 && self.coherence().is_leased()
    }

    /// Keeps entries of `dir` that were asked for at `mark` and given to the kernel without attributes.
    pub(super) fn see(&self, dir: InodeId, entries: &[DirEntry], mark: Mark) {
        let mut seen = lock(&self.seen);
        // Under the lock: a name that is told to have changed is dropped either from the page or from here.
        if !self.coherence().is_leased() || self.coherence().has_changed(mark, &[dir]) {
            return;
        }
        let is_sure = |attr: &&Attr| attr.kind == FileKind::Directory || attr.nlink == 1;
        // What is open here may be there for this mount only.
        for entry in entries.iter().filter(|entry| self.inodes.get(entry.ino).is_none()) {
            if let Some(attr) = entry.attr.as_ref().filter(is_sure) {
                seen.0.put((dir, entry.name.clone()), (attr.clone(), mark));
            }
        }
    }

    /// What a name is, if a listing has told it and nothing has changed since.
    pub(crate) fn seen(&self, parent: InodeId, name: &[u8]) -> Option<Found> {
        let (attr, mark) = lock(&self.seen).0.pop(&(parent, name.to_vec()))?;
        let is_good = self.coherence().is_leased() && !self.coherence().has_changed(mark, &[attr.ino]);
        is_good.then(|| self.found(mark, attr))
    }

    /// A name has changed. To be called after the directory counts as changed.
    pub(crate) fn unsee(&self, parent: InodeId, name: &[u8]) {
        lock(&self.seen).0.pop(&(parent, name.to_vec()));
    }
}
