//! The types that openraft is instantiated with.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    fsm::{Batch, Outcome},
    store::SnapshotFile,
};

/// Id of a metadata node in the group.
pub(crate) type RaftId = u64;

/// A member as the replicated membership holds it, so that every node knows where the others are.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MetaNode {
    /// Name, like `meta-1`.
    pub(crate) name: String,
    /// `host:port`.
    pub(crate) address: String,
}

impl fmt::Display for MetaNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.address)
    }
}

/// What applying one entry gave: an outcome for each command of its batch.
#[derive(Debug, Default)]
pub(crate) struct Applied(pub(crate) Vec<Outcome>);

// openraft wants its answers to be serializable although it never sends them: outcomes go from the state machine to the
// proposer of the same process.
impl Serialize for Applied {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("outcomes do not leave the process"))
    }
}

impl<'de> Deserialize<'de> for Applied {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("outcomes do not enter the process"))
    }
}

openraft::declare_raft_types!(
    /// The instantiation. A batch is shared, because the log's cache, the state machine and the replication streams hold it
    /// at the same time.
    pub(crate) TypeConfig:
        D = Arc<Batch>,
        R = Applied,
        NodeId = RaftId,
        Node = MetaNode,
        SnapshotData = SnapshotFile,
);

/// An entry of the log.
pub(crate) type Entry = openraft::Entry<TypeConfig>;
/// Position in the log: term, leader, index.
pub(crate) type LogId = openraft::LogId<RaftId>;
/// What a node has promised.
pub(crate) type Vote = openraft::Vote<RaftId>;
/// Membership with the position at which it was agreed on.
pub(crate) type StoredMembership = openraft::StoredMembership<RaftId, MetaNode>;
/// What a snapshot covers.
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, MetaNode>;
/// A failure of the disk that ends the node.
pub(crate) type StorageError = openraft::StorageError<RaftId>;
/// The consensus node.
pub(crate) type Raft = openraft::Raft<TypeConfig>;
