//! Names of entries, and which entries an inode has: the way back from an inode to its path.
//!
//! An inode with one published name knows it (`Inode::place`); the names of one with several are in `State::links`. Both are
//! indexes of `State::dentries`, changed only here, together with it.

use std::{cmp::Ordering, fmt, ops::Deref, sync::Arc};

use dfs_common::InodeId;
use equivalent::{Comparable, Equivalent};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use triomphe::ThinArc;

use super::{
    record::{Body, Inode},
    state::State,
};

/// Longest path that is spelled out in bytes. Renaming makes trees deeper than any path that a program can give; of such a
/// path the end is kept.
const PATH_MAX: usize = 4 * dfs_common::name::PATH_MAX;

/// Name of an entry: one pointer wide, shared by the directory and the inode that it names.
#[derive(Clone, PartialEq, Eq)]
pub struct Name(ThinArc<(), u8>);

impl Name {
    /// Of these bytes.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Self {
        Self(ThinArc::from_header_and_slice((), bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0.slice
    }
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.escape_ascii())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a name")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Name, E> {
                Ok(Name::from_slice(bytes))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// Key of a dentry.
pub(super) type Entry = (InodeId, Name);

/// The same key for a look-up, without an allocation.
#[derive(PartialEq, Eq)]
pub(super) struct EntryRef<'a>(pub(super) InodeId, pub(super) &'a [u8]);

impl Equivalent<Entry> for EntryRef<'_> {
    fn equivalent(&self, key: &Entry) -> bool {
        self.0 == key.0 && self.1 == key.1.as_slice()
    }
}

impl Comparable<Entry> for EntryRef<'_> {
    fn compare(&self, key: &Entry) -> Ordering {
        self.0.cmp(&key.0).then_with(|| self.1.cmp(key.1.as_slice()))
    }
}

/// Entries.
impl State {
    /// Enters a name that is free.
    pub(super) fn insert_dentry(&mut self, parent: InodeId, name: Name, ino: InodeId) {
        self.entry_changed(parent, &name);
        let before = self.dentries.insert((parent, name.clone()), ino);
        assert!(before.is_none(), "{name:?} in directory {parent} is taken by inode {before:?}");
        let Some(inode) = self.inode_mut(ino) else { return };
        match inode.place.take() {
            Some((p, n)) => {
                self.links.insert((ino, p, n));
                self.links.insert((ino, parent, name));
            }
            None if self.has_links(ino) => drop(self.links.insert((ino, parent, name))),
            None => self.set_place(ino, Some((parent, name))),
        }
    }

    /// Takes a name out and says what it named.
    pub(super) fn remove_dentry(&mut self, parent: InodeId, name: &[u8]) -> Option<(InodeId, Name)> {
        let ((_, name), ino) = self.dentries.remove_with_key(&EntryRef(parent, name))?;
        self.entry_changed(parent, &name);
        if self.inodes.get(&ino).is_some_and(|inode| inode.place.is_some()) {
            self.set_place(ino, None);
        } else if self.links.remove(&(ino, parent, name.clone())).is_some() {
            let mut left = self.places(ino);
            if let (Some((parent, name)), None) = (left.next(), left.next()) {
                self.links.remove(&(ino, parent, name.clone()));
                self.set_place(ino, Some((parent, name)));
            }
        }
        Some((ino, name))
    }

    fn set_place(&mut self, ino: InodeId, place: Option<Entry>) {
        if let Some(inode) = self.inode_mut(ino) {
            inode.place = place;
        }
    }

    fn has_links(&self, ino: InodeId) -> bool {
        self.places_listed(ino).next().is_some()
    }

    fn places_listed(&self, ino: InodeId) -> impl Iterator<Item = &(InodeId, InodeId, Name)> + '_ {
        let first = (ino, InodeId(0), Name::from_slice(b""));
        self.links.range(first..).take_while(move |(i, _, _)| *i == ino)
    }

    /// Published names of an inode, in order of directory and name.
    pub(super) fn places(&self, ino: InodeId) -> impl Iterator<Item = Entry> + use<> {
        let one = self.inodes.get(&ino).and_then(|inode| inode.place.clone());
        // Few inodes have several names, and few names they are.
        let several: Vec<Entry> = match one {
            Some(_) => Vec::new(),
            None => self.places_listed(ino).map(|(_, parent, name)| (*parent, name.clone())).collect(),
        };
        one.into_iter().chain(several)
    }

    /// Path from the root to a name in a directory; the end of it if it is longer than any path that a program can give.
    pub(super) fn path_of_entry(&self, parent: InodeId, name: &[u8]) -> Arc<[u8]> {
        let mut parts = vec![name];
        let (mut at, mut length) = (parent, name.len() + 1);
        while at != InodeId::ROOT {
            let Some(Inode { body: Body::Directory { .. }, place: Some((above, name)), .. }) =
                self.inodes.get(&at).map(AsRef::as_ref)
            else {
                break;
            };
            length += name.len() + 1;
            if length > PATH_MAX {
                parts.push(b"...");
                break;
            }
            parts.push(name.as_slice());
            at = *above;
        }
        let mut path = Vec::with_capacity(length);
        for part in parts.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(part);
        }
        path.into()
    }

    /// Path of an inode by its first published name; `None` without one.
    #[must_use]
    pub fn path_of(&self, ino: InodeId) -> Option<Arc<[u8]>> {
        let (parent, name) = self.places(ino).next()?;
        Some(self.path_of_entry(parent, &name))
    }
}
