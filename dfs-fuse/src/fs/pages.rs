//! Which version the kernel's cached pages of an inode belong to.
//!
//! The kernel has one page cache an inode, dfs has versions. So pages belong to one version at a time: a read handle of that
//! version keeps them, the first handle of another version makes the kernel drop them, and while cached handles of one
//! version are open, handles of another one bypass the cache.
//!
//! A handle that makes the kernel drop pages proves only with its first READ that the kernel has done so. Until then nobody
//! else may keep pages, else a second opener could keep what the first one was about to drop.

use std::{collections::HashMap, num::NonZeroUsize};

use dfs_common::{FileId, InodeId};
use lru::LruCache;

/// Inodes whose owner is remembered. Forgetting one costs a dropped cache at the next open, nothing else.
const OWNERS_MAX: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// How a read handle is to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Caching {
    /// Through the page cache, keeping what is in it.
    Keep,
    /// Through the page cache, after the kernel has dropped what is in it.
    Fresh,
    /// Around the page cache.
    Bypass,
}

/// The page cache of all inodes, as far as we know it.
#[derive(Debug)]
pub(crate) struct Pages {
    /// The version with open cached handles, and how many.
    open: HashMap<InodeId, (FileId, usize)>,
    /// The version whose pages the kernel may hold.
    owner: LruCache<InodeId, FileId>,
    /// The version whose size the kernel was told last. Answers may overtake each other on their way, but the kernel ignores
    /// attributes from a request that is older than those it has.
    told: LruCache<InodeId, FileId>,
}

impl Pages {
    /// Nothing cached.
    pub(crate) fn new() -> Self {
        Self { open: HashMap::new(), owner: LruCache::new(OWNERS_MAX), told: LruCache::new(OWNERS_MAX) }
    }

    /// A read handle of `version` is being opened. Unless the answer is [`Caching::Bypass`] it must be closed by
    /// [`Pages::close`].
    pub(crate) fn open(&mut self, ino: InodeId, version: FileId) -> Caching {
        let (current, count) = self.open.entry(ino).or_insert((version, 0));
        if *current != version {
            return Caching::Bypass;
        }
        *count += 1;
        if self.owner.get(&ino) == Some(&version) { Caching::Keep } else { Caching::Fresh }
    }

    /// The kernel reads through a handle that was opened [`Caching::Fresh`].
    pub(crate) fn confirm(&mut self, ino: InodeId, version: FileId) {
        if self.open.get(&ino).is_some_and(|(current, _)| *current == version) {
            self.owner.put(ino, version);
        }
    }

    /// A cached handle was released.
    pub(crate) fn close(&mut self, ino: InodeId, version: FileId) {
        if let Some((current, count)) = self.open.get_mut(&ino)
            && *current == version
        {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&ino);
            }
        }
    }

    /// The cached handles of `old` go on with `new`. What the kernel has of the last page ends with `old`; it drops all pages
    /// when it is told the new size.
    pub(crate) fn follow(&mut self, ino: InodeId, old: FileId, new: FileId) {
        if let Some((current, _)) = self.open.get_mut(&ino)
            && *current == old
        {
            *current = new;
            self.owner.pop(&ino);
        }
    }

    /// A write handle may have put unpublished bytes into the cache (by mmap).
    pub(crate) fn soil(&mut self, ino: InodeId) {
        self.owner.pop(&ino);
    }

    /// The kernel is being told the size of `version`; of `None`, one that is no published version's.
    pub(crate) fn tell(&mut self, ino: InodeId, version: Option<FileId>) {
        match version {
            Some(version) => drop(self.told.put(ino, version)),
            None => drop(self.told.pop(&ino)),
        }
    }

    /// Whether the size that the kernel was told last is that of `version`.
    pub(crate) fn is_told(&self, ino: InodeId, version: FileId) -> bool {
        self.told.peek(&ino) == Some(&version)
    }

    /// Whether cached handles of another version than `current` are open. The kernel has one size an inode, so its
    /// attributes must not be cached then: each asker gets the size that is true for him.
    pub(crate) fn is_mixed(&self, ino: InodeId, current: Option<FileId>) -> bool {
        self.open.get(&ino).is_some_and(|(version, _)| Some(*version) != current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: InodeId = InodeId(7);
    const ONE: FileId = FileId([1; 16]);
    const TWO: FileId = FileId([2; 16]);

    #[test]
    fn pages_are_kept_only_once_the_kernel_has_read_through_a_handle() {
        let mut pages = Pages::new();
        assert_eq!(pages.open(INO, ONE), Caching::Fresh);
        assert_eq!(pages.open(INO, ONE), Caching::Fresh, "the first opener's drop may still be under way");
        pages.confirm(INO, ONE);
        assert_eq!(pages.open(INO, ONE), Caching::Keep);
        for _ in 0..3 {
            pages.close(INO, ONE);
        }
        assert_eq!(pages.open(INO, ONE), Caching::Keep, "pages outlive handles");
    }

    #[test]
    fn another_version_bypasses_while_the_first_is_open_and_drops_it_afterwards() {
        let mut pages = Pages::new();
        pages.open(INO, ONE);
        pages.confirm(INO, ONE);
        assert_eq!(pages.open(INO, TWO), Caching::Bypass);
        assert!(pages.is_mixed(INO, Some(TWO)) && !pages.is_mixed(INO, Some(ONE)));
        pages.close(INO, ONE);
        assert_eq!(pages.open(INO, TWO), Caching::Fresh);
        pages.confirm(INO, ONE);
        assert_eq!(pages.open(INO, TWO), Caching::Fresh, "a late confirmation of the old version does not count");
    }

    #[test]
    fn readers_that_go_on_with_another_version_own_the_pages_of_that_one() {
        let mut pages = Pages::new();
        pages.open(INO, ONE);
        pages.confirm(INO, ONE);
        pages.follow(INO, ONE, TWO);
        assert_eq!(pages.open(INO, TWO), Caching::Fresh, "what is cached may end with the old version");
        pages.close(INO, TWO);
        pages.close(INO, TWO);
        pages.follow(INO, ONE, TWO);
        assert!(!pages.is_mixed(INO, Some(ONE)), "nobody has it open");
    }

    #[test]
    fn the_size_told_last_counts() {
        let mut pages = Pages::new();
        assert!(!pages.is_told(INO, ONE));
        pages.tell(INO, Some(ONE));
        assert!(pages.is_told(INO, ONE) && !pages.is_told(INO, TWO));
        pages.tell(INO, None);
        assert!(!pages.is_told(INO, ONE), "that of unpublished bytes");
    }

    #[test]
    fn writers_soil_the_cache() {
        let mut pages = Pages::new();
        pages.open(INO, ONE);
        pages.confirm(INO, ONE);
        pages.soil(INO);
        assert_eq!(pages.open(INO, ONE), Caching::Fresh);
    }
}
