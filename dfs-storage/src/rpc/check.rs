//! What every request must satisfy before anything is done for it.

use std::collections::BTreeSet;

use dfs_common::{ChunkId, ErrorCode, NodeId, checksum, layout::CHUNK_SIZE_MAX};
use dfs_proto::{convert, status::RpcError, v1::PutChunkHeader};

use crate::{engine::ChunkFacts, node::Node};

/// Other replicas that one upload may name.
const FORWARD_MAX: usize = 15;

fn refused(code: ErrorCode, message: impl Into<String>) -> RpcError {
    RpcError::new(code, message)
}

/// The request is for this cluster and this node.
pub(super) fn addressee(node: &Node, cluster_id: &[u8], node_id: u32) -> Result<(), RpcError> {
    let ours = node.member()?;
    if cluster_id != ours.cluster.as_bytes() {
        return Err(refused(ErrorCode::WrongCluster, format!("{} belongs to cluster {}", node.name, ours.cluster)));
    }
    if node_id != ours.node.0 {
        return Err(refused(
            ErrorCode::WrongNode,
            format!("this is node {} ({}), the request is for node {node_id}", ours.node, node.name),
        ));
    }
    Ok(())
}

/// The id of a chunk, which is never zero: that is a hole.
pub(super) fn chunk_id(bytes: &[u8]) -> Result<ChunkId, RpcError> {
    let id = convert::chunk_id(bytes)?;
    if id.is_zero() {
        return Err(refused(ErrorCode::InvalidArgument, "a hole is not stored anywhere"));
    }
    Ok(id)
}

/// The header of a chunk that is to be stored here.
pub(super) fn put_header(node: &Node, header: &PutChunkHeader) -> Result<ChunkFacts, RpcError> {
    addressee(node, &header.cluster_id, header.node_id)?;
    if header.length == 0 || header.length > CHUNK_SIZE_MAX {
        return Err(refused(
            ErrorCode::InvalidArgument,
            format!("a chunk has 1 to {CHUNK_SIZE_MAX} bytes, not {}", header.length),
        ));
    }
    let blocks = checksum::block_count(header.length.into());
    if header.block_crc32c.len() != blocks {
        return Err(refused(
            ErrorCode::InvalidArgument,
            format!("{} block checksums came for {blocks} blocks", header.block_crc32c.len()),
        ));
    }
    Ok(ChunkFacts {
        id: chunk_id(&header.chunk_id)?,
        file_id: convert::file_id(&header.file_id)?,
        length: header.length,
        sha256: convert::sha256(&header.sha256)?,
        block_crcs: header.block_crc32c.clone(),
    })
}

/// The other replicas of an upload and the number of copies it needs.
pub(super) fn forwards(this: NodeId, header: &PutChunkHeader) -> Result<usize, RpcError> {
    let mut nodes = BTreeSet::from([this.0]);
    if header.forward.len() > FORWARD_MAX {
        return Err(refused(ErrorCode::InvalidArgument, format!("more than {FORWARD_MAX} other replicas")));
    }
    if let Some(twice) = header.forward.iter().find(|to| !nodes.insert(to.node_id)) {
        return Err(refused(ErrorCode::InvalidArgument, format!("node {} is named twice", twice.node_id)));
    }
    let quorum = header.write_quorum as usize;
    if quorum == 0 {
        return Err(refused(ErrorCode::InvalidArgument, "a write quorum of 0"));
    }
    if quorum > nodes.len() {
        return Err(refused(
            ErrorCode::NotEnoughNodes,
            format!("a write quorum of {quorum} with {} nodes", nodes.len()),
        ));
    }
    Ok(quorum)
}
