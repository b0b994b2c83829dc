//! Chunk bytes to and from storage nodes: one call each, no retries (those belong to `write` and `read`).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use dfs_common::{ChunkId, ClusterId, ErrorCode, FileId, NodeId};
use dfs_proto::{
    convert,
    status::RpcError,
    stream::{self, Item},
    v1,
};

use crate::{
    hash::Sums,
    nodes::{Node, Nodes},
};

/// Slowest transfer that is waited for, bytes/s, on top of the call's timeout.
const SLOWEST_BYTES_PER_S: u64 = 1 << 20;

/// A chunk to store.
pub(crate) struct Put<'a> {
    pub(crate) cluster_id: ClusterId,
    pub(crate) file_id: FileId,
    pub(crate) chunk_id: ChunkId,
    pub(crate) data: Bytes,
    pub(crate) sums: &'a Sums,
    pub(crate) write_quorum: u32,
}

/// What became of a chunk that was sent.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Nodes that hold it durably.
    pub(crate) nodes: Vec<NodeId>,
    /// Nodes that failed to take it.
    pub(crate) failed: Vec<(NodeId, RpcError)>,
}

/// Bytes of a chunk as they came.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) header: v1::GetChunkHeader,
    pub(crate) pieces: Vec<Bytes>,
}

fn limit(rpc_timeout: Duration, bytes: u64) -> Duration {
    rpc_timeout + Duration::from_millis(bytes * 1000 / SLOWEST_BYTES_PER_S)
}

async fn within<T>(timeout: Duration, work: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    let late = |_| RpcError::new(ErrorCode::TimedOut, format!("no answer within {timeout:?}"));
    tokio::time::timeout(timeout, work).await.map_err(late)?
}

/// Sends a chunk to the first of `placement`, which forwards it to the others.
///
/// # Errors
/// The primary's, or the connection's to it.
pub(crate) async fn put(
    nodes: &Nodes,
    primary: &Arc<Node>,
    others: &[NodeId],
    rpc_timeout: Duration,
    put: Put<'_>,
) -> Result<Stored, RpcError> {
    let (mut channel, _) = nodes.channel(primary)?;
    let forward = |id: &NodeId| nodes.address(*id).map(|at| v1::ForwardTo { node_id: id.0, address: at.to_string() });
    let length = u32::try_from(put.data.len()).expect("chunks are shorter than 4 GiB");
    let header = v1::PutChunkHeader {
        cluster_id: convert::id_bytes(put.cluster_id.as_bytes()),
        chunk_id: convert::id_bytes(put.chunk_id.as_bytes()),
        file_id: convert::id_bytes(put.file_id.as_bytes()),
        length,
        sha256: convert::id_bytes(&put.sums.sha256),
        block_crc32c: put.sums.block_crcs.clone(),
        forward: others.iter().filter_map(forward).collect(),
        write_quorum: put.write_quorum,
        capability: Bytes::new(),
        node_id: primary.id.0,
    };
    let in_flight = primary.start();
    let body = stream::whole_body(&header, put.data);
    let request = stream::request("/dfs.v1.StorageService/PutChunk", body);
    let answer: v1::PutChunkResponse = within(limit(rpc_timeout, length.into()), async {
        let mut reader = stream::MessageReader::new(stream::call(&mut channel, request).await?);
        stream::read_message(&mut reader)
            .await?
            .ok_or_else(|| RpcError::new(ErrorCode::Indeterminate, "the node ended the call without an answer"))
    })
    .await?;
    in_flight.done();
    let failure = |f: v1::ReplicaFailure| {
        let code = ErrorCode::from_wire(f.code).unwrap_or(ErrorCode::Internal);
        (NodeId(f.node_id), RpcError::new(code, f.message))
    };
    Ok(Stored {
        nodes: answer.stored.into_iter().map(NodeId).collect(),
        failed: answer.failed.into_iter().map(failure).collect(),
    })
}

/// Fetches `length` bytes of a chunk from `offset` (both on 64 KiB borders, but for the chunk's end), unverified.
///
/// # Errors
/// The node's, the connection's, or bytes that do not follow their header.
pub(crate) async fn get(
    nodes: &Nodes,
    node: &Arc<Node>,
    cluster_id: ClusterId,
    chunk_id: ChunkId,
    (offset, length): (u32, u32),
    rpc_timeout: Duration,
) -> Result<(Got, Duration), RpcError> {
    let (mut channel, _) = nodes.channel(node)?;
    let request = v1::GetChunkRequest {
        chunk_id: convert::id_bytes(chunk_id.as_bytes()),
        offset,
        length,
        capability: Bytes::new(),
        node_id: node.id.0,
        cluster_id: convert::id_bytes(cluster_id.as_bytes()),
    };
    let in_flight = node.start();
    let request = stream::request("/dfs.v1.StorageService/GetChunk", stream::message_body(&request));
    let got = within(limit(rpc_timeout, length.into()), async {
        let mut reader = stream::Reader::<v1::GetChunkHeader>::new(stream::call(&mut channel, request).await?);
        let header = reader.header().await?;
        if header.offset != offset || header.length != length {
            let message =
                format!("asked for {length} bytes at {offset}, the node sends {} at {}", header.length, header.offset);
            // Not a bad copy, but a node that speaks otherwise.
            return Err(RpcError::new(ErrorCode::Incompatible, message));
        }
        let (mut pieces, mut received) = (Vec::new(), 0u64);
        while let Some(item) = reader.next().await? {
            let Item::Data(piece) = item else {
                return Err(RpcError::new(ErrorCode::Incompatible, "a second header in a chunk stream"));
            };
            received += piece.len() as u64;
            if received > u64::from(length) {
                return Err(RpcError::new(ErrorCode::Incompatible, "more bytes than announced"));
            }
            pieces.push(piece);
        }
        if received < u64::from(length) {
            return Err(RpcError::new(ErrorCode::Indeterminate, "the stream ended early"));
        }
        Ok(Got { header, pieces })
    })
    .await?;
    Ok((got, in_flight.done()))
}
