//! Wire messages to domain types and back. What comes from the wire is checked here and nowhere else.

pub mod disk;

use bytes::Bytes;
use dfs_common::{
    Attr, ChunkId, ChunkRef, ErrorCode, FileId, FileKind, InodeId, Layout, NodeId, SessionId, SetAttr, SetTime,
    layout::Replicas,
    lock::{Class, Kind, Lock, Owner},
    node::NodeState,
};

use crate::{status::RpcError, v1};

fn malformed(what: &str) -> RpcError {
    RpcError::new(ErrorCode::InvalidArgument, format!("malformed {what}"))
}

/// Bytes of an identifier as they travel.
#[must_use]
pub fn id_bytes(id: &[u8]) -> Bytes {
    Bytes::copy_from_slice(id)
}

/// # Errors
/// Not 32 bytes.
pub fn chunk_id(bytes: &[u8]) -> Result<ChunkId, RpcError> {
    ChunkId::from_slice(bytes).ok_or_else(|| malformed("chunk id"))
}

/// # Errors
/// Not 16 bytes.
pub fn file_id(bytes: &[u8]) -> Result<FileId, RpcError> {
    FileId::from_slice(bytes).ok_or_else(|| malformed("file id"))
}

/// # Errors
/// Not 32 bytes.
pub fn sha256(bytes: &[u8]) -> Result<[u8; 32], RpcError> {
    bytes.try_into().map_err(|_| malformed("SHA-256"))
}

/// # Errors
/// Not 16 bytes.
pub fn cluster_id(bytes: &[u8]) -> Result<dfs_common::ClusterId, RpcError> {
    dfs_common::ClusterId::from_slice(bytes).ok_or_else(|| malformed("cluster id"))
}

/// What is wanted of a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockAction {
    /// Take it, or tell what stands in the way.
    Take,
    /// Take it, and wait a moment for what stands in the way.
    Wait,
    /// Tell what stands in the way.
    Test,
    /// Give it up.
    GiveUp,
}

/// # Errors
/// Nothing is wanted.
pub fn lock_action(wire: i32) -> Result<LockAction, RpcError> {
    match v1::LockAction::try_from(wire) {
        Ok(v1::LockAction::Take) => Ok(LockAction::Take),
        Ok(v1::LockAction::Wait) => Ok(LockAction::Wait),
        Ok(v1::LockAction::Test) => Ok(LockAction::Test),
        Ok(v1::LockAction::GiveUp) => Ok(LockAction::GiveUp),
        Ok(v1::LockAction::Unspecified) | Err(_) => Err(malformed("action on a lock")),
    }
}

/// Action on a lock to the wire.
#[must_use]
pub fn lock_action_to_wire(action: LockAction) -> v1::LockAction {
    match action {
        LockAction::Take => v1::LockAction::Take,
        LockAction::Wait => v1::LockAction::Wait,
        LockAction::Test => v1::LockAction::Test,
        LockAction::GiveUp => v1::LockAction::GiveUp,
    }
}

/// A lock of a session, and its file.
///
/// # Errors
/// It ends before it starts.
pub fn lock(session: SessionId, wire: &v1::FileLock) -> Result<(InodeId, Lock), RpcError> {
    if wire.start > wire.end {
        return Err(malformed("range of a lock"));
    }
    let class = if wire.record { Class::Record } else { Class::Whole };
    let kind = if wire.exclusive { Kind::Exclusive } else { Kind::Shared };
    let owner = Owner { session, number: wire.owner };
    Ok((InodeId(wire.ino), Lock { class, owner, kind, start: wire.start, end: wire.end, pid: wire.pid }))
}

/// Lock to the wire.
#[must_use]
pub fn lock_to_wire(ino: InodeId, lock: &Lock) -> v1::FileLock {
    v1::FileLock {
        ino: ino.0,
        record: lock.class == Class::Record,
        owner: lock.owner.number,
        exclusive: lock.kind == Kind::Exclusive,
        start: lock.start,
        end: lock.end,
        pid: lock.pid,
    }
}

/// Kind to the wire.
#[must_use]
pub fn kind_to_wire(kind: FileKind) -> v1::FileKind {
    match kind {
        FileKind::File => v1::FileKind::File,
        FileKind::Directory => v1::FileKind::Directory,
        FileKind::Symlink => v1::FileKind::Symlink,
        FileKind::Fifo => v1::FileKind::Fifo,
        FileKind::Socket => v1::FileKind::Socket,
        FileKind::CharDevice => v1::FileKind::CharDevice,
        FileKind::BlockDevice => v1::FileKind::BlockDevice,
    }
}

/// # Errors
/// Unknown or unspecified.
pub fn kind(number: i32) -> Result<FileKind, RpcError> {
    match v1::FileKind::try_from(number) {
        Ok(v1::FileKind::File) => Ok(FileKind::File),
        Ok(v1::FileKind::Directory) => Ok(FileKind::Directory),
        Ok(v1::FileKind::Symlink) => Ok(FileKind::Symlink),
        Ok(v1::FileKind::Fifo) => Ok(FileKind::Fifo),
        Ok(v1::FileKind::Socket) => Ok(FileKind::Socket),
        Ok(v1::FileKind::CharDevice) => Ok(FileKind::CharDevice),
        Ok(v1::FileKind::BlockDevice) => Ok(FileKind::BlockDevice),
        Ok(v1::FileKind::Unspecified) | Err(_) => Err(malformed("file kind")),
    }
}

/// Node state to the wire.
#[must_use]
pub fn state_to_wire(state: NodeState) -> v1::NodeState {
    match state {
        NodeState::Alive => v1::NodeState::Alive,
        NodeState::Suspect => v1::NodeState::Suspect,
        NodeState::Dead => v1::NodeState::Dead,
        NodeState::Draining => v1::NodeState::Draining,
        NodeState::Decommissioned => v1::NodeState::Decommissioned,
        NodeState::Maintenance => v1::NodeState::Maintenance,
    }
}

/// # Errors
/// Unknown or unspecified.
pub fn state(number: i32) -> Result<NodeState, RpcError> {
    match v1::NodeState::try_from(number) {
        Ok(v1::NodeState::Alive) => Ok(NodeState::Alive),
        Ok(v1::NodeState::Suspect) => Ok(NodeState::Suspect),
        Ok(v1::NodeState::Dead) => Ok(NodeState::Dead),
        Ok(v1::NodeState::Draining) => Ok(NodeState::Draining),
        Ok(v1::NodeState::Decommissioned) => Ok(NodeState::Decommissioned),
        Ok(v1::NodeState::Maintenance) => Ok(NodeState::Maintenance),
        Ok(v1::NodeState::Unspecified) | Err(_) => Err(malformed("node state")),
    }
}

impl From<&Attr> for v1::Attr {
    fn from(attr: &Attr) -> Self {
        Self {
            ino: attr.ino.0,
            kind: kind_to_wire(attr.kind).into(),
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            nlink: attr.nlink,
            atime_ns: attr.atime_ns,
            mtime_ns: attr.mtime_ns,
            ctime_ns: attr.ctime_ns,
            rdev: attr.rdev,
            generation: attr.generation,
            file_id: attr.file_id.map(|id| id_bytes(id.as_bytes())).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Attr> for Attr {
    type Error = RpcError;

    fn try_from(wire: v1::Attr) -> Result<Self, RpcError> {
        Ok(Self {
            ino: InodeId(wire.ino),
            kind: kind(wire.kind)?,
            mode: wire.mode,
            uid: wire.uid,
            gid: wire.gid,
            size: wire.size,
            nlink: wire.nlink,
            atime_ns: wire.atime_ns,
            mtime_ns: wire.mtime_ns,
            ctime_ns: wire.ctime_ns,
            rdev: wire.rdev,
            generation: wire.generation,
            file_id: if wire.file_id.is_empty() { None } else { Some(file_id(&wire.file_id)?) },
        })
    }
}

/// Node numbers to the wire.
#[must_use]
pub fn replicas_to_wire(replicas: &[NodeId]) -> Vec<u32> {
    replicas.iter().map(|node| node.0).collect()
}

/// Node numbers from the wire.
#[must_use]
pub fn replicas(wire: &[u32]) -> Replicas {
    wire.iter().copied().map(NodeId).collect()
}

impl From<&ChunkRef> for v1::ChunkRef {
    fn from(chunk: &ChunkRef) -> Self {
        Self {
            chunk_id: id_bytes(chunk.id.as_bytes()),
            length: chunk.length,
            sha256: id_bytes(&chunk.sha256),
            replicas: replicas_to_wire(&chunk.replicas),
        }
    }
}

impl TryFrom<v1::ChunkRef> for ChunkRef {
    type Error = RpcError;

    fn try_from(wire: v1::ChunkRef) -> Result<Self, RpcError> {
        Ok(Self {
            id: chunk_id(&wire.chunk_id)?,
            length: wire.length,
            sha256: sha256(&wire.sha256)?,
            replicas: replicas(&wire.replicas),
        })
    }
}

/// A storage node as clients and other nodes reach it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeAddress {
    /// Its number.
    pub id: NodeId,
    /// `host:port`.
    pub address: String,
    /// Its name.
    pub name: String,
    /// Its state when the answer was made.
    pub state: NodeState,
}

impl TryFrom<v1::NodeAddress> for NodeAddress {
    type Error = RpcError;

    fn try_from(wire: v1::NodeAddress) -> Result<Self, RpcError> {
        Ok(Self { id: NodeId(wire.node_id), state: state(wire.state)?, address: wire.address, name: wire.name })
    }
}

impl From<&NodeAddress> for v1::NodeAddress {
    fn from(node: &NodeAddress) -> Self {
        Self {
            node_id: node.id.0,
            address: node.address.clone(),
            name: node.name.clone(),
            state: state_to_wire(node.state).into(),
        }
    }
}

/// A layout to the wire, with the addresses of the nodes in it.
#[must_use]
pub fn layout_to_wire(layout: &Layout, nodes: &[NodeAddress]) -> v1::Layout {
    match layout {
        Layout::Replicated { file_id, size, chunk_size, chunks } => v1::Layout {
            file_id: id_bytes(file_id.as_bytes()),
            size: *size,
            chunk_size: *chunk_size,
            kind: Some(v1::layout::Kind::Replicated(v1::ReplicatedLayout {
                chunks: chunks.iter().map(Into::into).collect(),
                nodes: nodes.iter().map(Into::into).collect(),
            })),
        },
    }
}

/// A layout from the wire, with the addresses of its nodes.
///
/// # Errors
/// A malformed part, or a layout of a kind this process does not know.
pub fn layout(wire: v1::Layout) -> Result<(Layout, Vec<NodeAddress>), RpcError> {
    let Some(v1::layout::Kind::Replicated(replicated)) = wire.kind else {
        return Err(RpcError::new(ErrorCode::Incompatible, "the file has a layout that this version does not know"));
    };
    if wire.chunk_size == 0 {
        return Err(malformed("layout: chunk size 0"));
    }
    let chunks = replicated.chunks.into_iter().map(ChunkRef::try_from).collect::<Result<Vec<_>, _>>()?;
    if chunks.iter().any(|chunk| chunk.is_hole() != (chunk.length == 0) || chunk.length > wire.chunk_size)
        || chunks.len() as u64 != dfs_common::layout::chunk_count(wire.size, wire.chunk_size)
    {
        return Err(malformed("layout: chunks do not fit the size"));
    }
    let nodes = replicated.nodes.into_iter().map(NodeAddress::try_from).collect::<Result<_, _>>()?;
    let layout =
        Layout::Replicated { file_id: file_id(&wire.file_id)?, size: wire.size, chunk_size: wire.chunk_size, chunks };
    Ok((layout, nodes))
}

/// Attributes to change, from the wire.
#[must_use]
pub fn set_attr(wire: &v1::SetAttr) -> SetAttr {
    let time = |now: bool, at: Option<i64>| if now { Some(SetTime::Now) } else { at.map(SetTime::At) };
    SetAttr {
        mode: wire.mode,
        uid: wire.uid,
        gid: wire.gid,
        atime: time(wire.atime_now, wire.atime_ns),
        mtime: time(wire.mtime_now, wire.mtime_ns),
    }
}

/// Attributes of `ino` to change, to the wire.
#[must_use]
pub fn set_attr_to_wire(ino: InodeId, set: &SetAttr) -> v1::SetAttr {
    let at = |time: Option<SetTime>| match time {
        Some(SetTime::At(ns)) => (Some(ns), false),
        Some(SetTime::Now) => (None, true),
        None => (None, false),
    };
    let ((atime_ns, atime_now), (mtime_ns, mtime_now)) = (at(set.atime), at(set.mtime));
    v1::SetAttr { ino: ino.0, mode: set.mode, uid: set.uid, gid: set.gid, atime_ns, mtime_ns, atime_now, mtime_now }
}
