//! What travels in the Raft log, and what comes out of applying it.
//!
//! Everything here is encoded with postcard, where an enum variant is its position: variants and fields are only ever
//! appended, never moved or removed. An entry that an older process wrote must mean the same to a newer one.

use dfs_common::{
    Attr, ChunkId, ClusterId, ErrorCode, FileId, FileKind, InodeId, NodeId, SessionId, SetAttr, Uuid,
    layout::{CHUNK_SIZE_DEFAULT, Replicas},
    node::Health,
};
use serde::{Deserialize, Serialize};

use super::{admin::Action, event::Fact, rebalance::RebalanceChange};

/// One Raft entry: commands that the leader gathered, with the time and the random bits they are applied with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Batch {
    /// The leader's clock, nanoseconds since the Unix epoch.
    pub now_ns: i64,
    /// Random bits for commands that need some. Identifiers do not: whoever proposes a command draws them.
    pub entropy: u64,
    /// Applied in order.
    pub commands: Vec<Command>,
}

/// What a cluster is set up with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Bytes that a chunk of a new file covers.
    pub chunk_size: u32,
    /// Copies wanted of each chunk.
    pub replication: u32,
    /// Copies that must be durable before a chunk can be published.
    pub write_quorum: u32,
}

impl Default for Settings {
    /// Chunks of 4 MiB, three copies, two before a write is acknowledged.
    fn default() -> Self {
        Self { chunk_size: CHUNK_SIZE_DEFAULT, replication: 3, write_quorum: 2 }
    }
}

/// Limits of repair that an administrator changes while everything runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RepairLimits {
    /// Copies that one storage node sends at once, each of 4 MiB; smaller ones share a stream. What is endangered has as
    /// many of its own.
    pub streams_per_node: u32,
    /// The same over all nodes.
    pub streams_total: u32,
    /// Bytes a second over all nodes; 0 for no limit. What is endangered is outside of it.
    pub bytes_per_s: u64,
}

impl RepairLimits {
    /// Most streams of a node: each costs memory for a chunk at both ends.
    pub const STREAMS_PER_NODE_MAX: u32 = 64;
    /// Most streams in all.
    pub const STREAMS_TOTAL_MAX: u32 = 65_536;
}

impl Default for RepairLimits {
    /// As fast as disks and networks allow: until it is done, the next failure costs more than the load does.
    fn default() -> Self {
        Self { streams_per_node: 4, streams_total: 1024, bytes_per_s: 0 }
    }
}

/// A change of the state.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Names the cluster and fixes its settings. The first one wins; later ones change nothing. [`Reply::Cluster`].
    InitCluster {
        /// Identifies the cluster for ever.
        cluster_id: ClusterId,
        /// Its settings.
        settings: Settings,
    },
    /// A client process begins. Twice with the same `client_id` is one session. [`Reply::Session`].
    OpenSession {
        /// Drawn by the client.
        client_id: Uuid,
        /// Host, pid, mount point: for the administrator.
        description: String,
    },
    /// A client is done. A session that is gone already is a success.
    CloseSession {
        /// Which.
        session: SessionId,
    },
    /// Leases ran out.
    ExpireSessions {
        /// Which; those that are gone already are skipped.
        sessions: Vec<SessionId>,
    },
    /// A client changes the tree, exactly once a sequence number. [`Reply::Mutated`].
    Mutate {
        /// Who.
        session: SessionId,
        /// 1, 2, 3 ... of this session.
        seq: u64,
        /// Every `seq` up to here was answered and will not be repeated.
        acked: u64,
        /// What.
        op: Op,
    },
    /// A storage node starts. [`Reply::Node`].
    RegisterNode {
        /// Kept in its data directory.
        uuid: Uuid,
        /// Its name.
        name: String,
        /// `host:port` of its listener.
        address: String,
        /// Failure domain; may be empty.
        rack: String,
        /// Bytes it may use.
        capacity_bytes: u64,
        /// Random number of this process start.
        incarnation: u64,
    },
    /// A storage node stops in good order: it becomes suspect at once, and dead only when it stays away.
    DeregisterNode {
        /// Which.
        node: NodeId,
        /// Of the process that stops; another one is refused with `Stale`.
        incarnation: u64,
    },
    /// The failure detector decides. Refused with `Stale` unless the node's health is `from`.
    SetNodeHealth {
        /// Which.
        node: NodeId,
        /// New health.
        health: Health,
        /// What the decision was made on.
        from: Health,
    },
    /// Primaries report finished uploads. [`Reply::Chunks`] with those that no pending or published version knows.
    CommitChunks {
        /// What was stored.
        receipts: Vec<Receipt>,
    },
    /// Nodes turned out to hold chunks. [`Reply::Chunks`] with those that nothing references.
    ReplicasAdded {
        /// Chunk and holder.
        replicas: Vec<(ChunkId, NodeId)>,
    },
    /// A node turned out not to hold chunks, or to hold bad copies. [`Reply::Chunks`] with those that nothing references.
    ReplicasLost {
        /// Which node.
        node: NodeId,
        /// Which chunks.
        chunks: Vec<ChunkId>,
    },
    /// Garbage versions that nobody reads any more. Those that are not garbage are skipped.
    ReleaseVersions {
        /// Which.
        file_ids: Vec<FileId>,
    },
    /// A node deleted doomed chunks.
    ConfirmDeleted {
        /// Which node.
        node: NodeId,
        /// Which chunks; those that were not doomed there are skipped.
        chunks: Vec<ChunkId>,
    },
    /// A node holds chunks that nothing references: delete them there. [`Reply::Chunks`] with those that were refused,
    /// because a version lists them or their file is still being written.
    DoomUnknown {
        /// Which node.
        node: NodeId,
        /// Chunk and the file id in its footer.
        chunks: Vec<(ChunkId, FileId)>,
    },
    /// How long content that was removed or replaced stays in the trash.
    SetTrashRetention {
        /// Nanoseconds; 0 keeps nothing from now on. What is in the trash already is left to its planner.
        retention_ns: i64,
    },
    /// Gives up content in the trash. [`Reply::TrashDropped`].
    DropTrash {
        /// Which; those that are not in the trash are skipped.
        file_ids: Vec<FileId>,
    },
    /// An administrator changes the limits of repair.
    SetRepairLimits {
        /// The new ones.
        limits: RepairLimits,
    },
    /// The leader saw what belongs into the event log.
    RecordEvents {
        /// In order.
        facts: Vec<Fact>,
    },
    /// An administrator has looked at what a restore or rescue lost: unknown chunks may be deleted again.
    FinishRestore,
    /// An administrator decides about a storage node, or the leader finds that such a decision has come to its end.
    Administer {
        /// Which.
        node: NodeId,
        /// What.
        action: Action,
    },
    /// An administrator begins or ends a rebalance, or the leader finds that it has come to its end.
    Rebalance {
        /// What.
        change: RebalanceChange,
    },
}

/// A chunk that is durable on some nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// Identifier.
    pub chunk: ChunkId,
    /// Bytes.
    pub length: u32,
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
    /// Nodes that hold it.
    pub replicas: Replicas,
    /// Pending version it was written for.
    pub file: FileId,
}

/// A chunk of a version that is published.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommittedChunk {
    /// Identifier; all zeros for a hole.
    pub chunk: ChunkId,
    /// Bytes; 0 only in a hole.
    pub length: u32,
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
    /// Nodes that acknowledged it; empty for a chunk that the state knows already.
    pub replicas: Replicas,
    /// Slots in a row that it stands for, at least 1; more than 1 only for a hole. A sparse file of a TiB would otherwise be a
    /// command of many MB, and its way through the log would hold up everybody.
    pub slots: u32,
}

/// What a client does to the tree. Names are bytes as programs gave them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Op {
    /// Reserves a name and makes a pending version.
    Create {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Fail with `AlreadyExists` if anybody published or reserved the name.
        exclusive: bool,
        /// Drawn for the pending version.
        file_id: FileId,
    },
    /// Makes a directory.
    Mkdir {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Makes a symbolic link.
    Symlink {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
        /// Where it points.
        target: Vec<u8>,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Makes a pipe, socket or device node, or an empty file.
    Mknod {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
        /// What to make; a directory or a symbolic link is refused.
        kind: FileKind,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Device number.
        rdev: u32,
        /// Version of an empty regular file; unused for the other kinds.
        file_id: FileId,
    },
    /// Gives an inode one more name.
    Link {
        /// Inode.
        ino: InodeId,
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Removes a name of anything but a directory.
    Unlink {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Removes an empty directory.
    Rmdir {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Moves a name.
    Rename {
        /// Directory.
        parent: InodeId,
        /// Name in it.
        name: Vec<u8>,
        /// Directory it goes to.
        new_parent: InodeId,
        /// Name there.
        new_name: Vec<u8>,
        /// Fail with `AlreadyExists` rather than replace.
        no_replace: bool,
        /// Swap the two.
        exchange: bool,
    },
    /// Changes attributes.
    SetAttr {
        /// Inode.
        ino: InodeId,
        /// What.
        set: SetAttr,
    },
    /// Sets an extended attribute.
    SetXattr {
        /// Inode.
        ino: InodeId,
        /// Name.
        name: Vec<u8>,
        /// Value.
        value: Vec<u8>,
        /// Fail with `AlreadyExists` if it is there.
        create: bool,
        /// Fail with `NoAttribute` if it is not there.
        replace: bool,
    },
    /// Removes an extended attribute.
    RemoveXattr {
        /// Inode.
        ino: InodeId,
        /// Name.
        name: Vec<u8>,
    },
    /// Makes a pending version of an existing file.
    OpenWrite {
        /// Inode.
        ino: InodeId,
        /// Drawn for the pending version.
        file_id: FileId,
    },
    /// Publishes the content of a pending version, which stays pending unless `done`.
    CommitFile {
        /// The pending version.
        file_id: FileId,
        /// Size of the file in bytes.
        size: u64,
        /// One for each slot, in order.
        chunks: Vec<CommittedChunk>,
        /// Attributes that become visible with it; the modification time is the leader's clock if none is given.
        set: SetAttr,
        /// The writer ends.
        done: bool,
    },
    /// Drops a pending version. One that is gone already is a success.
    AbortFile {
        /// The pending version.
        file_id: FileId,
    },
    /// Makes content in the trash a file again.
    Restore {
        /// The version.
        file_id: FileId,
        /// Directory.
        parent: InodeId,
        /// Name in it; it must be free.
        name: Vec<u8>,
    },
    /// Drops a pending version whose chunks another one may list soon: they wait for the grace time of unknown chunks.
    LeaveFile {
        /// The pending version.
        file_id: FileId,
    },
}

/// What a command came to.
pub type Outcome = Result<Reply, Refusal>;

/// A command that had its effect.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// Of `InitCluster`: the cluster as it is now.
    Cluster {
        /// The first one that was given.
        cluster_id: ClusterId,
    },
    /// Of `OpenSession`.
    Session {
        /// Its number.
        session: SessionId,
    },
    /// Of `RegisterNode`.
    Node {
        /// Its number.
        node: NodeId,
        /// Whether the number was given just now.
        created: bool,
    },
    /// Of `Mutate`.
    Mutated {
        /// Inode made or changed, as it is after the operation; of an `Unlink` with the names that are left.
        attr: Option<Attr>,
        /// Pending version made, or version published.
        file_id: Option<FileId>,
        /// `Create` without `exclusive`: the name was there already.
        existed: bool,
    },
    /// Of the commands about chunks: those that the command did not apply to.
    Chunks {
        /// In the order of the command.
        skipped: Vec<ChunkId>,
    },
    /// Of `DropTrash`.
    TrashDropped {
        /// Entries given up.
        versions: u64,
        /// Bytes of their content. Less comes free where other files share it.
        bytes: u64,
    },
}

/// A command that was refused and changed nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Why.
    #[serde(with = "code_number")]
    pub code: ErrorCode,
    /// What was refused, on what.
    pub message: String,
}

impl Refusal {
    /// A refusal with what was refused.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self::new(code, code.to_string())
    }
}

/// The wire number instead of the variant's position: the numbers are fixed, the order of the variants is not.
mod code_number {
    use dfs_common::ErrorCode;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(code: &ErrorCode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(*code as u32)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ErrorCode, D::Error> {
        let number = u32::deserialize(deserializer)?;
        ErrorCode::from_wire(number).ok_or_else(|| D::Error::custom(format!("unknown error code {number}")))
    }
}
