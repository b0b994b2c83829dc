//! `Mutate`: from the wire to an operation of the state machine and back.

use bytes::Bytes;
use dfs_common::{
    ChunkId, FileId, InodeId, SessionId,
    crash::{self, Point},
};
use dfs_proto::{
    convert::{self, id_bytes},
    status::RpcError,
    v1::{self, mutate_request},
};

use super::{Service, invalid};
use crate::fsm::{Command, CommittedChunk, Op, Reply};

/// Copies of one chunk that a request may name.
const REPLICAS_MAX: usize = 16;

impl Service {
    pub(super) async fn handle_mutate(&self, request: v1::MutateRequest) -> Result<v1::MutateResponse, RpcError> {
        if request.seq == 0 {
            return Err(invalid("sequence numbers start at 1"));
        }
        let wire = request.op.ok_or_else(|| invalid("a mutation without an operation that this version knows"))?;
        let op = op(wire)?;
        let ends = match &op {
            Op::AbortFile { file_id } | Op::CommitFile { file_id, done: true, .. } => Some(*file_id),
            _ => None,
        };
        let left = match &op {
            Op::LeaveFile { file_id } => self.raft.peek(|state| state.held_by(*file_id)),
            _ => Vec::new(),
        };
        let applied = match &op {
            Op::Create { .. } => Some(Point::CreateApplied),
            Op::CommitFile { .. } => Some(Point::PublishApplied),
            Op::Restore { .. } => Some(Point::RestoreApplied),
            _ => None,
        };
        let command =
            Command::Mutate { session: SessionId(request.session_id), seq: request.seq, acked: request.acked, op };
        let reply = self.control.apply(command).await?;
        applied.into_iter().for_each(crash::point);
        self.control.left_behind(left);
        if let Some(file) = ends {
            // A leader that was replaced meanwhile need not know: the grace time does the same later.
            let _ = self.control.writer_ended(file);
        }
        Ok(match reply {
            Reply::Mutated { attr, file_id, existed } => v1::MutateResponse {
                attr: attr.as_ref().map(Into::into),
                file_id: file_id.map(|id| id_bytes(id.as_bytes())).unwrap_or_default(),
                existed,
                chunks: Vec::new(),
            },
            Reply::Done
            | Reply::Cluster { .. }
            | Reply::Session { .. }
            | Reply::Node { .. }
            | Reply::Chunks { .. }
            | Reply::TrashDropped { .. } => v1::MutateResponse::default(),
        })
    }
}

/// Checks an operation. Names and paths are checked by the state machine, which has the rules.
fn op(wire: mutate_request::Op) -> Result<Op, RpcError> {
    use mutate_request::Op as Wire;
    Ok(match wire {
        Wire::Create(v1::Create { parent, name, mode, uid, gid, exclusive }) => Op::Create {
            parent: InodeId(parent),
            name: name.into(),
            mode,
            uid,
            gid,
            exclusive,
            file_id: FileId::random(),
        },
        Wire::Mkdir(v1::Mkdir { parent, name, mode, uid, gid }) => {
            Op::Mkdir { parent: InodeId(parent), name: name.into(), mode, uid, gid }
        }
        Wire::Symlink(v1::Symlink { parent, name, target, uid, gid }) => {
            Op::Symlink { parent: InodeId(parent), name: name.into(), target: target.into(), uid, gid }
        }
        Wire::Mknod(node) => mknod(node)?,
        Wire::Link(v1::Link { ino, parent, name }) => {
            Op::Link { ino: InodeId(ino), parent: InodeId(parent), name: name.into() }
        }
        Wire::Unlink(v1::Unlink { parent, name }) => Op::Unlink { parent: InodeId(parent), name: name.into() },
        Wire::Rmdir(v1::Rmdir { parent, name }) => Op::Rmdir { parent: InodeId(parent), name: name.into() },
        Wire::Rename(v1::Rename { parent, name, new_parent, new_name, no_replace, exchange }) => Op::Rename {
            parent: InodeId(parent),
            name: name.into(),
            new_parent: InodeId(new_parent),
            new_name: new_name.into(),
            no_replace,
            exchange,
        },
        Wire::SetAttr(set) => Op::SetAttr { ino: InodeId(set.ino), set: convert::set_attr(&set) },
        Wire::SetXattr(v1::SetXattr { ino, name, value, create, replace }) => {
            Op::SetXattr { ino: InodeId(ino), name: name.into(), value: value.into(), create, replace }
        }
        Wire::RemoveXattr(v1::RemoveXattr { ino, name }) => Op::RemoveXattr { ino: InodeId(ino), name: name.into() },
        Wire::OpenWrite(v1::OpenWrite { ino }) => Op::OpenWrite { ino: InodeId(ino), file_id: FileId::random() },
        Wire::CommitFile(commit) => commit_file(commit)?,
        Wire::AbortFile(v1::AbortFile { file_id, keep_chunks: true }) => {
            Op::LeaveFile { file_id: convert::file_id(&file_id)? }
        }
        Wire::AbortFile(v1::AbortFile { file_id, keep_chunks: false }) => {
            Op::AbortFile { file_id: convert::file_id(&file_id)? }
        }
        Wire::Restore(v1::Restore { file_id, parent, name }) => {
            Op::Restore { file_id: convert::file_id(&file_id)?, parent: InodeId(parent), name: name.into() }
        }
    })
}

fn mknod(node: v1::Mknod) -> Result<Op, RpcError> {
    let v1::Mknod { parent, name, kind, mode, uid, gid, rdev } = node;
    let kind = convert::kind(kind)?;
    let (parent, name, file_id) = (InodeId(parent), name.into(), FileId::random());
    Ok(Op::Mknod { parent, name, kind, mode, uid, gid, rdev, file_id })
}

fn commit_file(commit: v1::CommitFile) -> Result<Op, RpcError> {
    let v1::CommitFile { file_id, size, chunks, set, done } = commit;
    let file_id = convert::file_id(&file_id)?;
    let chunks = chunks.into_iter().map(committed_chunk).collect::<Result<_, _>>()?;
    let set = set.as_ref().map(convert::set_attr).unwrap_or_default();
    Ok(Op::CommitFile { file_id, size, chunks, set, done })
}

fn committed_chunk(wire: v1::CommittedChunk) -> Result<CommittedChunk, RpcError> {
    let v1::CommittedChunk { chunk_id, length, sha256, replicas, slots } = wire;
    let chunk = convert::chunk_id(&chunk_id)?;
    let sha256 = hash(chunk, &sha256)?;
    if replicas.len() > REPLICAS_MAX {
        return Err(invalid(format!("chunk {chunk} names more than {REPLICAS_MAX} copies")));
    }
    Ok(CommittedChunk { chunk, length, sha256, replicas: convert::replicas(&replicas), slots: slots.max(1) })
}

/// A hole may leave its hash out.
fn hash(chunk: ChunkId, sha256: &Bytes) -> Result<[u8; 32], RpcError> {
    if chunk.is_zero() && sha256.is_empty() { Ok([0; 32]) } else { convert::sha256(sha256) }
}
