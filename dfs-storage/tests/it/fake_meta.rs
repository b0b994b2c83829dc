//! A metadata server that does what a test tells it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use dfs_common::ErrorCode;
use dfs_proto::{
    convert::id_bytes,
    status::RpcError,
    transport,
    v1::{self, metadata_service_server::MetadataService, metadata_service_server::MetadataServiceServer},
};
use tonic::{Request, Response, Status};

use crate::harness::CLUSTER;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) registrations: Vec<v1::RegisterNodeRequest>,
    pub(crate) goodbyes: Vec<v1::DeregisterNodeRequest>,
    pub(crate) heartbeats: Vec<v1::HeartbeatRequest>,
    pub(crate) receipts: Vec<v1::ChunkReceipt>,
    pub(crate) repairs: Vec<v1::RepairOutcome>,
    /// Chunks that something references and no live node holds.
    pub(crate) lost: Vec<bytes::Bytes>,
    /// Given out with the next heartbeats, one each.
    pub(crate) answers: VecDeque<v1::HeartbeatResponse>,
    /// Heartbeats to fail.
    pub(crate) fail: usize,
    pub(crate) cluster: Option<[u8; 16]>,
    /// Another node is the leader.
    pub(crate) leader: Option<String>,
    pub(crate) heartbeat_ms: u64,
}

#[derive(Clone, Default)]
pub(crate) struct FakeMeta {
    pub(crate) state: Arc<Mutex<State>>,
}

impl State {
    /// Whether some heartbeat said that a bad copy of this chunk was set aside.
    pub(crate) fn was_told_of(&self, id: &[u8]) -> bool {
        self.heartbeats.iter().flat_map(|beat| &beat.quarantined).any(|copy| copy.chunk_id == *id)
    }
}

impl FakeMeta {
    pub(crate) async fn start() -> (Self, SocketAddr) {
        let meta = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let server = transport::server().add_service(MetadataServiceServer::new(meta.clone()));
        tokio::spawn(server.serve_with_incoming(transport::incoming(listener)));
        (meta, address)
    }

    pub(crate) fn with<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        use_it(&mut self.state.lock().expect("lock"))
    }

    fn led(&self) -> Result<std::sync::MutexGuard<'_, State>, Status> {
        let state = self.state.lock().expect("lock");
        match &state.leader {
            Some(leader) => Err(RpcError {
                code: ErrorCode::NotLeader,
                message: "ask the leader".into(),
                leader: Some(leader.clone()),
            }
            .into()),
            None => Ok(state),
        }
    }
}

macro_rules! unused {
    ($($name:ident($request:ident) -> $response:ident;)*) => {
        #[tonic::async_trait]
        impl MetadataService for FakeMeta {
            $(async fn $name(&self, _: Request<v1::$request>) -> Result<Response<v1::$response>, Status> {
                Err(Status::unimplemented("not in this test"))
            })*

            async fn register_node(
                &self,
                request: Request<v1::RegisterNodeRequest>,
            ) -> Result<Response<v1::RegisterNodeResponse>, Status> {
                let mut state = self.led()?;
                let request = request.into_inner();
                let cluster = state.cluster.unwrap_or(CLUSTER.0);
                if !request.cluster_id.is_empty() && request.cluster_id != cluster[..] {
                    return Err(RpcError::new(ErrorCode::WrongCluster, "another cluster").into());
                }
                state.registrations.push(request);
                Ok(Response::new(v1::RegisterNodeResponse {
                    node_id: 1,
                    cluster_id: id_bytes(&cluster),
                    heartbeat_ms: state.heartbeat_ms,
                    settings: None,
                    inventory_wanted: true,
                    ..Default::default()
                }))
            }

            async fn heartbeat(
                &self,
                request: Request<v1::HeartbeatRequest>,
            ) -> Result<Response<v1::HeartbeatResponse>, Status> {
                let mut state = self.led()?;
                let request = request.into_inner();
                let acked_seq = request.inventory_seq;
                state.heartbeats.push(request);
                if state.fail > 0 {
                    state.fail -= 1;
                    return Err(RpcError::new(ErrorCode::Internal, "told to fail").into());
                }
                let mut answer = state.answers.pop_front().unwrap_or_default();
                answer.acked_seq = acked_seq;
                Ok(Response::new(answer))
            }

            async fn deregister_node(
                &self,
                request: Request<v1::DeregisterNodeRequest>,
            ) -> Result<Response<v1::DeregisterNodeResponse>, Status> {
                self.led()?.goodbyes.push(request.into_inner());
                Ok(Response::new(Default::default()))
            }

            async fn commit_chunk(
                &self,
                request: Request<v1::CommitChunkRequest>,
            ) -> Result<Response<v1::CommitChunkResponse>, Status> {
                self.led()?.receipts.extend(request.into_inner().receipts);
                Ok(Response::new(Default::default()))
            }

            async fn report_repair_result(
                &self,
                request: Request<v1::ReportRepairResultRequest>,
            ) -> Result<Response<v1::ReportRepairResultResponse>, Status> {
                self.led()?.repairs.extend(request.into_inner().outcomes);
                Ok(Response::new(Default::default()))
            }

            async fn get_chunk_locations(
                &self,
                request: Request<v1::GetChunkLocationsRequest>,
            ) -> Result<Response<v1::GetChunkLocationsResponse>, Status> {
                let state = self.led()?;
                let lost = request.into_inner().chunk_ids.into_iter().filter(|id| state.lost.contains(id));
                let chunks = lost.map(|chunk_id| v1::ChunkRef { chunk_id, ..Default::default() }).collect();
                Ok(Response::new(v1::GetChunkLocationsResponse { chunks, nodes: vec![] }))
            }
        }
    };
}

unused! {
    open_session(OpenSessionRequest) -> OpenSessionResponse;
    renew_session(RenewSessionRequest) -> RenewSessionResponse;
    close_session(CloseSessionRequest) -> CloseSessionResponse;
    lookup(LookupRequest) -> AttrResponse;
    get_attr(GetAttrRequest) -> AttrResponse;
    read_dir(ReadDirRequest) -> ReadDirResponse;
    read_link(ReadLinkRequest) -> ReadLinkResponse;
    get_xattr(GetXattrRequest) -> GetXattrResponse;
    list_xattr(ListXattrRequest) -> ListXattrResponse;
    lock(LockRequest) -> LockResponse;
    stat_fs(StatFsRequest) -> StatFsResponse;
    watch(WatchRequest) -> WatchResponse;
    mutate(MutateRequest) -> MutateResponse;
    get_file(GetFileRequest) -> GetFileResponse;
    allocate_chunks(AllocateChunksRequest) -> AllocateChunksResponse;
    report_corruption(ReportCorruptionRequest) -> ReportCorruptionResponse;
    list_files(ListFilesRequest) -> ListFilesResponse;
}
