//! What commands change of that which clients keep: entries of directories, and attributes.

use dfs_common::InodeId;

use super::{name::Name, state::State};

/// Something that whoever keeps a copy of it must ask for again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A name appeared, went, or names something else. The attributes of its directory are told on their own.
    Entry {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Name,
    },
    /// Attributes of an inode, its content among them, or the inode is gone.
    Inode(InodeId),
}

impl State {
    pub(super) fn entry_changed(&mut self, parent: InodeId, name: &Name) {
        self.changes.push(Change::Entry { parent, name: name.clone() });
    }

    /// What nobody but its writer can see needs not be told.
    pub(super) fn inode_changed(&mut self, ino: InodeId) {
        if !self.unpublished.contains_key(&ino) && self.changes.last() != Some(&Change::Inode(ino)) {
            self.changes.push(Change::Inode(ino));
        }
    }
}
