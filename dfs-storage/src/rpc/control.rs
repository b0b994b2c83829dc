//! The small calls: delete, verify, stat, status.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use dfs_common::ErrorCode;
use dfs_proto::{
    convert,
    status::RpcError,
    v1::{self, storage_service_server::StorageService},
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::check;
use crate::node::Node;

/// Chunks asked for in one call.
const STAT_MAX: usize = 4096;

/// The generated service's implementation.
#[derive(Debug)]
pub(super) struct Control {
    node: Arc<Node>,
}

impl Control {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    async fn delete(&self, request: v1::DeleteChunkRequest) -> Result<v1::DeleteChunkResponse, RpcError> {
        check::addressee(&self.node, &request.cluster_id, request.node_id)?;
        let id = check::chunk_id(&request.chunk_id)?;
        let existed = self.node.on_disk(move |engine| engine.delete(id)).await?;
        if existed {
            self.node.changes.removed(id);
        }
        Ok(v1::DeleteChunkResponse { existed })
    }

    async fn verify(&self, request: v1::VerifyChunkRequest) -> Result<v1::VerifyChunkResponse, RpcError> {
        check::addressee(&self.node, &request.cluster_id, request.node_id)?;
        let id = check::chunk_id(&request.chunk_id)?;
        let facts = self
            .node
            .on_disk(move |engine| engine.verify(id))
            .await
            .inspect_err(|error| self.node.note_bad_copy(id, error))?;
        Ok(v1::VerifyChunkResponse { length: facts.length, sha256: Bytes::copy_from_slice(&facts.sha256) })
    }

    async fn stat(&self, request: v1::StatChunksRequest) -> Result<v1::StatChunksResponse, RpcError> {
        if request.chunk_ids.len() > STAT_MAX {
            return Err(RpcError::new(ErrorCode::InvalidArgument, format!("more than {STAT_MAX} chunks")));
        }
        let ids = request.chunk_ids.iter().map(|id| convert::chunk_id(id)).collect::<Result<Vec<_>, _>>()?;
        let node = self.node.clone();
        let found =
            self.node.on_disk(move |_| ids.into_iter().map(|id| node.find(id)).collect::<Result<Vec<_>, _>>()).await?;
        let (present, verified_ns) = found.into_iter().map(|found| (found.is_some(), found.unwrap_or(0))).unzip();
        Ok(v1::StatChunksResponse { present, verified_ns })
    }

    async fn status(&self) -> Result<v1::NodeStatusResponse, RpcError> {
        let usage = self.node.on_disk(|engine| engine.usage()).await?;
        let member = self.node.membership.get();
        Ok(v1::NodeStatusResponse {
            node_id: member.map_or(0, |member| member.node.0),
            cluster_id: member.map(|member| Bytes::copy_from_slice(member.cluster.as_bytes())).unwrap_or_default(),
            name: self.node.name.clone(),
            capacity_bytes: usage.capacity_bytes,
            used_bytes: usage.used_bytes,
            chunk_count: usage.chunks,
            bytes_written: self.node.counters.bytes_written.load(Ordering::Relaxed),
            bytes_read: self.node.counters.bytes_read.load(Ordering::Relaxed),
        })
    }
}

fn answer<T>(result: Result<T, RpcError>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(Status::from)
}

/// Calls that carry bytes are answered before the generated server is asked.
fn taken_before() -> Status {
    RpcError::new(ErrorCode::Internal, "a call with chunk bytes reached the wrong handler").into()
}

#[tonic::async_trait]
impl StorageService for Control {
    type GetChunkStream = Pin<Box<dyn Stream<Item = Result<v1::GetChunkResponse, Status>> + Send>>;

    async fn put_chunk(
        &self,
        _: Request<Streaming<v1::PutChunkRequest>>,
    ) -> Result<Response<v1::PutChunkResponse>, Status> {
        Err(taken_before())
    }

    async fn get_chunk(&self, _: Request<v1::GetChunkRequest>) -> Result<Response<Self::GetChunkStream>, Status> {
        Err(taken_before())
    }

    async fn delete_chunk(
        &self,
        request: Request<v1::DeleteChunkRequest>,
    ) -> Result<Response<v1::DeleteChunkResponse>, Status> {
        answer(self.delete(request.into_inner()).await)
    }

    async fn verify_chunk(
        &self,
        request: Request<v1::VerifyChunkRequest>,
    ) -> Result<Response<v1::VerifyChunkResponse>, Status> {
        answer(self.verify(request.into_inner()).await)
    }

    async fn stat_chunks(
        &self,
        request: Request<v1::StatChunksRequest>,
    ) -> Result<Response<v1::StatChunksResponse>, Status> {
        answer(self.stat(request.into_inner()).await)
    }

    async fn node_status(&self, _: Request<v1::NodeStatusRequest>) -> Result<Response<v1::NodeStatusResponse>, Status> {
        answer(self.status().await)
    }
}
