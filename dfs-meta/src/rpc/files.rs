//! Layouts, placements, locations and reports about bad copies.

use dfs_common::{ChunkRef, ErrorCode, InodeId, Layout, NodeId, SessionId, layout::Replicas, node::NodeState};
use dfs_proto::{
    convert::{self, layout_to_wire, replicas_to_wire},
    status::RpcError,
    v1::{self, get_file_request::By},
};

use super::{Service, addresses, invalid, namespace::of_inode, session::millis};
use crate::{
    control::reports::BadCopy,
    fsm::{FileLayout, State},
};

/// Placements of one call.
const PLACEMENTS_MAX: u32 = 256;
/// Nodes that a client may ask to avoid.
const AVOID_MAX: usize = 256;
/// Chunks whose locations one call gives.
const LOCATIONS_MAX: usize = 4096;
/// Longest reason of a report that is logged, characters.
const REASON_MAX: usize = 512;

impl Service {
    pub(super) async fn handle_get_file(&self, request: v1::GetFileRequest) -> Result<v1::GetFileResponse, RpcError> {
        let by = request.by.ok_or_else(|| invalid("a file is named by its inode or its version"))?;
        match by {
            By::Ino(ino) => {
                let ino = InodeId(ino);
                let found = self.raft.read(|state| state.layout(ino).map(|file| file_to_wire(state, file))).await?;
                found.map_err(|code| of_inode(code, ino))
            }
            By::FileId(id) => {
                let id = convert::file_id(&id)?;
                let found = self.raft.read(|state| state.layout_of(id).map(|file| file_to_wire(state, file))).await?;
                found.map_err(|code| RpcError::new(code, format!("version {id}: {code}")))
            }
        }
    }

    pub(super) async fn handle_allocate_chunks(
        &self,
        request: v1::AllocateChunksRequest,
    ) -> Result<v1::AllocateChunksResponse, RpcError> {
        if request.count > PLACEMENTS_MAX || request.avoid.len() > AVOID_MAX {
            return Err(invalid(format!("at most {PLACEMENTS_MAX} placements, avoiding {AVOID_MAX} nodes")));
        }
        let avoid = convert::replicas(&request.avoid);
        let session = SessionId(request.session_id);
        let placements = self.control.allocate(session, request.count as usize, &avoid, &request.local_host).await?;
        let nodes = self.raft.peek(|state| addresses(state, placements.iter().flatten().copied()));
        Ok(v1::AllocateChunksResponse {
            placements: placements.iter().map(|p| v1::Placement { nodes: replicas_to_wire(p) }).collect(),
            nodes: nodes.iter().map(Into::into).collect(),
            valid_ms: millis(self.control.settings().placement_valid),
        })
    }

    pub(super) async fn handle_get_chunk_locations(
        &self,
        request: v1::GetChunkLocationsRequest,
    ) -> Result<v1::GetChunkLocationsResponse, RpcError> {
        if request.chunk_ids.len() > LOCATIONS_MAX {
            return Err(invalid(format!("locations of at most {LOCATIONS_MAX} chunks in one call")));
        }
        let ids = request.chunk_ids.iter().map(|id| convert::chunk_id(id)).collect::<Result<Vec<_>, _>>()?;
        self.raft
            .read(|state| {
                let chunks: Vec<ChunkRef> = ids
                    .iter()
                    .filter_map(|id| state.chunk_ref(*id))
                    .map(|mut chunk| {
                        live_first(state, &mut chunk.replicas);
                        chunk
                    })
                    .collect();
                let nodes = addresses(state, chunks.iter().flat_map(|chunk| chunk.replicas.iter().copied()));
                v1::GetChunkLocationsResponse {
                    chunks: chunks.iter().map(Into::into).collect(),
                    nodes: nodes.iter().map(Into::into).collect(),
                }
            })
            .await
    }

    pub(super) async fn handle_report_corruption(
        &self,
        request: v1::ReportCorruptionRequest,
    ) -> Result<v1::ReportCorruptionResponse, RpcError> {
        let chunk = convert::chunk_id(&request.chunk_id)?;
        let reason = request.reason.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect();
        let bad = BadCopy { chunk, node: NodeId(request.node_id), reason, missing: request.missing };
        self.control.bad_copy(bad).await?;
        Ok(v1::ReportCorruptionResponse {})
    }
}

fn file_to_wire(state: &State, file: FileLayout) -> v1::GetFileResponse {
    let FileLayout { attr, mut layout } = file;
    let Layout::Replicated { chunks, .. } = &mut layout;
    for chunk in chunks.iter_mut() {
        live_first(state, &mut chunk.replicas);
    }
    let nodes = addresses(state, chunks.iter().flat_map(|chunk| chunk.replicas.iter().copied()));
    v1::GetFileResponse { attr: attr.as_ref().map(Into::into), layout: Some(layout_to_wire(&layout, &nodes)) }
}

/// Readers try copies in this order.
fn live_first(state: &State, replicas: &mut Replicas) {
    let rank = |id: &NodeId| state.node(*id).map_or(NodeState::Decommissioned, |node| node.state());
    replicas.sort_by_key(|id| match rank(id) {
        NodeState::Alive => 0,
        NodeState::Draining | NodeState::Maintenance => 1,
        NodeState::Suspect => 2,
        NodeState::Dead => 3,
        NodeState::Decommissioned => 4,
    });
}

/// An error about a path.
pub(super) fn of_path(code: ErrorCode, path: &[u8]) -> RpcError {
    RpcError::new(code, format!("\"{}\": {code}", path.escape_ascii()))
}
