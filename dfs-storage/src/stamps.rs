//! Who this node is, as the stamps in its data directories say.

use std::sync::Arc;

use dfs_common::{
    Uuid,
    crash::{self, Point},
};

use crate::{
    data_dir::{DataDir, DataDirError, Membership},
    disks::Disks,
};

/// The identity of a node, with the disks that keep it.
#[derive(Debug)]
pub struct Stamps {
    uuid: Uuid,
    membership: Option<Membership>,
    disks: Arc<Disks>,
}

impl Stamps {
    /// What was found in the directories of `disks`.
    #[must_use]
    pub fn new(uuid: Uuid, membership: Option<Membership>, disks: Arc<Disks>) -> Self {
        Self { uuid, membership, disks }
    }

    /// The node's identity for ever.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Cluster and number, if the node was registered before.
    #[must_use]
    pub fn membership(&self) -> Option<Membership> {
        self.membership
    }

    /// Takes over what a registration said, and stamps every disk that works. One that cannot be stamped is stamped when it is
    /// back; one at least must be.
    ///
    /// # Errors
    /// It contradicts a stamp, or no stamp can be written.
    pub fn join(&mut self, membership: Membership) -> Result<(), DataDirError> {
        let (mut failure, mut stamped) = (None, false);
        for disk in self.disks.iter() {
            match disk.join(membership) {
                Ok(()) => {
                    stamped |= disk.failure().is_none();
                    crash::point(Point::DirectoryStamped);
                }
                Err(error @ DataDirError::Io { .. }) => {
                    tracing::warn!(%error, "a data directory could not be stamped");
                    failure = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match failure {
            Some(error) if !stamped => Err(error),
            _ => {
                self.membership = Some(membership);
                Ok(())
            }
        }
    }

    /// Metadata nodes as they were last heard.
    #[must_use]
    pub fn metadata(&self) -> Vec<String> {
        self.disks
            .iter()
            .filter_map(|disk| disk.with_dir(DataDir::metadata))
            .find(|known| !known.is_empty())
            .unwrap_or_default()
    }

    /// Remembers the metadata nodes.
    ///
    /// # Errors
    /// A disk failed.
    pub fn remember_metadata(&self, addresses: &[String]) -> Result<(), DataDirError> {
        self.disks.iter().filter_map(|disk| disk.with_dir(|dir| dir.remember_metadata(addresses))).collect()
    }
}
