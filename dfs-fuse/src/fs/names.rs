//! Names of files that this mount has created and is still writing.
//!
//! The cluster lists published names only; a program on this mount expects to see in a listing what it just created, as
//! `ls` beside a running `cp`. So directory pages are merged with the unpublished ones of these names. The published ones
//! are kept to notice when an open file loses its name.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
};

use dfs_common::InodeId;

/// Names by directory and by inode. One name an inode: more hard links of an unpublished file are not listed.
#[derive(Debug, Default)]
pub(crate) struct Names {
    by_parent: HashMap<InodeId, BTreeMap<Vec<u8>, InodeId>>,
    by_ino: HashMap<InodeId, (InodeId, Vec<u8>)>,
}

impl Names {
    /// `ino` was created as `name`.
    pub(crate) fn insert(&mut self, parent: InodeId, name: &[u8], ino: InodeId) {
        self.by_parent.entry(parent).or_default().insert(name.to_vec(), ino);
        self.by_ino.insert(ino, (parent, name.to_vec()));
    }

    /// `ino` is published, or no longer open.
    pub(crate) fn settle(&mut self, ino: InodeId) {
        if let Some((parent, name)) = self.by_ino.remove(&ino) {
            self.forget_name(parent, &name);
        }
    }

    /// A name was removed or replaced; gives the unpublished inode that had it.
    pub(crate) fn remove(&mut self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        let ino = self.forget_name(parent, name)?;
        self.by_ino.remove(&ino);
        Some(ino)
    }

    /// A name was renamed over another one, or, with `exchange`, both were swapped. Gives the inode that lost its name.
    pub(crate) fn rename(&mut self, from: (InodeId, &[u8]), to: (InodeId, &[u8]), exchange: bool) -> Option<InodeId> {
        let moved = self.remove(from.0, from.1);
        let replaced = self.remove(to.0, to.1);
        if let Some(ino) = moved {
            self.insert(to.0, to.1, ino);
        }
        if !exchange {
            return replaced;
        }
        if let Some(ino) = replaced {
            self.insert(from.0, from.1, ino);
        }
        None
    }

    /// Unpublished names of `parent` behind `after` and up to `last` (`None`: to the end), in byte order.
    pub(crate) fn between(&self, parent: InodeId, after: &[u8], last: Option<&[u8]>) -> Vec<(Vec<u8>, InodeId)> {
        let Some(names) = self.by_parent.get(&parent) else { return Vec::new() };
        let lower = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
        let upper = last.map_or(Bound::Unbounded, Bound::Included);
        if last.is_some_and(|last| last <= after) {
            return Vec::new();
        }
        names.range::<[u8], _>((lower, upper)).map(|(name, ino)| (name.clone(), *ino)).collect()
    }

    /// Whether a directory has any.
    pub(crate) fn are_in(&self, parent: InodeId) -> bool {
        self.by_parent.contains_key(&parent)
    }

    fn forget_name(&mut self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        let names = self.by_parent.get_mut(&parent)?;
        let ino = names.remove(name);
        if names.is_empty() {
            self.by_parent.remove(&parent);
        }
        ino
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: InodeId = InodeId(1);

    fn names(pending: &Names, after: &[u8], last: Option<&[u8]>) -> Vec<Vec<u8>> {
        pending.between(DIR, after, last).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn names_between_two_others() {
        let mut pending = Names::default();
        for (name, ino) in [(&b"a"[..], 2), (b"c", 3), (b"e", 4)] {
            pending.insert(DIR, name, InodeId(ino));
        }
        assert_eq!(names(&pending, b"", None), [b"a", b"c", b"e"]);
        assert_eq!(names(&pending, b"a", Some(b"c")), [b"c"]);
        assert_eq!(names(&pending, b"c", None), [b"e"]);
        assert_eq!(names(&pending, b"e", Some(b"e")), [] as [Vec<u8>; 0]);
        pending.settle(InodeId(3));
        assert_eq!(names(&pending, b"", None), [b"a", b"e"]);
    }

    #[test]
    fn renames_move_replace_and_swap() {
        let mut pending = Names::default();
        pending.insert(DIR, b"a", InodeId(2));
        pending.insert(DIR, b"b", InodeId(3));
        assert_eq!(pending.rename((DIR, b"a"), (DIR, b"b"), true), None);
        assert_eq!(pending.between(DIR, b"", None), [(b"a".to_vec(), InodeId(3)), (b"b".to_vec(), InodeId(2))]);
        assert_eq!(pending.rename((DIR, b"a"), (DIR, b"b"), false), Some(InodeId(2)));
        assert_eq!(pending.between(DIR, b"", None), [(b"b".to_vec(), InodeId(3))]);
        assert_eq!(pending.remove(DIR, b"b"), Some(InodeId(3)));
        assert!(pending.by_ino.is_empty() && pending.by_parent.is_empty());
    }
}
