//! A fake metadata cluster: one state, several listeners, one of which leads.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dfs_common::{ErrorCode, FileId};
use dfs_proto::{
    convert::id_bytes,
    status::RpcError,
    transport,
    v1::{
        self,
        admin_service_server::{AdminService, AdminServiceServer},
        metadata_service_server::{MetadataService, MetadataServiceServer},
        mutate_request::Op,
    },
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::lock;

type Answer<T> = Result<Response<T>, Status>;

#[derive(Default)]
pub(crate) struct Meta {
    pub(crate) chunk_size: u32,
    pub(crate) state: Mutex<State>,
    /// Which listener leads.
    pub(crate) leader: AtomicUsize,
    pub(crate) term: AtomicU64,
    pub(crate) lease_ms: AtomicU64,
    /// So many mutations are applied, but their answers get lost.
    pub(crate) lose_answers: AtomicU32,
    /// Mutations are answered this late, milliseconds.
    pub(crate) mutate_delay_ms: AtomicU64,
    /// Nobody leads: followers name no one.
    pub(crate) no_leader: AtomicBool,
    pub(crate) addresses: Mutex<Vec<String>>,
}

#[derive(Default)]
pub(crate) struct State {
    next: u64,
    sessions: BTreeSet<u64>,
    pub(crate) outcomes: HashMap<(u64, u64), Result<v1::MutateResponse, RpcError>>,
    /// Every mutation that was applied.
    pub(crate) applied: Vec<(u64, u64, Op)>,
    pub(crate) acked: u64,
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<(u64, Vec<u8>), u64>,
    pending: HashMap<FileId, (u64, u64)>,
    pub(crate) chunks: HashMap<Bytes, v1::ChunkRef>,
    pub(crate) nodes: Vec<v1::NodeAddress>,
    pub(crate) renewals: Vec<v1::RenewSessionRequest>,
    pub(crate) pinned: BTreeSet<Bytes>,
    pub(crate) reports: Vec<v1::ReportCorruptionRequest>,
    /// Calls by name.
    pub(crate) calls: HashMap<&'static str, u32>,
    pub(crate) allocate_error: Option<ErrorCode>,
    turn: usize,
}

#[derive(Clone)]
struct Inode {
    attr: v1::Attr,
    layout: Option<v1::Layout>,
}

/// One listener.
pub(crate) struct MetaNode {
    pub(crate) address: String,
    stop: CancellationToken,
    frozen: Arc<AtomicBool>,
}

#[derive(Clone)]
struct Service {
    number: usize,
    meta: Arc<Meta>,
    frozen: Arc<AtomicBool>,
}

impl Meta {
    pub(crate) fn new(chunk_size: u32, storage: Vec<v1::NodeAddress>) -> Arc<Self> {
        let root = Inode { attr: attr(1, v1::FileKind::Directory), layout: None };
        let state = State { next: 1, inodes: [(1, root)].into(), nodes: storage, ..State::default() };
        Arc::new(Self {
            chunk_size,
            state: Mutex::new(state),
            term: AtomicU64::new(1),
            lease_ms: AtomicU64::new(60_000),
            ..Self::default()
        })
    }

    pub(crate) fn calls(&self, name: &str) -> u32 {
        lock(&self.state).calls.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn lead(&self, number: usize) {
        self.leader.store(number, Ordering::SeqCst);
        self.term.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends all sessions and what they were writing.
    pub(crate) fn expire_sessions(&self) {
        let mut state = lock(&self.state);
        state.sessions.clear();
        state.pending.clear();
    }

    pub(crate) fn layout(&self, ino: u64) -> Option<v1::Layout> {
        lock(&self.state).inodes.get(&ino).and_then(|inode| inode.layout.clone())
    }

    pub(crate) fn replicated(&self, ino: u64) -> Vec<v1::ChunkRef> {
        match self.layout(ino).and_then(|layout| layout.kind) {
            Some(v1::layout::Kind::Replicated(layout)) => layout.chunks,
            None => vec![],
        }
    }

    pub(crate) fn pending(&self) -> usize {
        lock(&self.state).pending.len()
    }
}

impl MetaNode {
    pub(crate) async fn start(number: usize, meta: Arc<Meta>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        lock(&meta.addresses).push(address.clone());
        let (stop, frozen) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let service = Service { number, meta, frozen: frozen.clone() };
        let server = transport::server()
            .add_service(MetadataServiceServer::new(service.clone()))
            .add_service(AdminServiceServer::new(service));
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                served = server.serve_with_incoming(transport::incoming(listener)) => served.expect("serves"),
                () = stopped.cancelled() => {}
            }
        });
        Self { address, stop, frozen }
    }

    /// Breaks all connections and stops to listen.
    pub(crate) fn kill(&self) {
        self.stop.cancel();
        self.frozen.store(true, Ordering::SeqCst);
    }

    /// Takes calls and does not answer them.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }
}

fn attr(ino: u64, kind: v1::FileKind) -> v1::Attr {
    v1::Attr { ino, kind: kind.into(), mode: 0o644, nlink: 1, ..Default::default() }
}

fn fail<T>(code: ErrorCode) -> Result<T, RpcError> {
    Err(code.into())
}

impl State {
    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn name(&mut self, parent: u64, name: &Bytes, kind: v1::FileKind) -> Result<v1::MutateResponse, RpcError> {
        if self.names.contains_key(&(parent, name.to_vec())) {
            return fail(ErrorCode::AlreadyExists);
        }
        let ino = self.fresh();
        self.names.insert((parent, name.to_vec()), ino);
        let attr = attr(ino, kind);
        self.inodes.insert(ino, Inode { attr: attr.clone(), layout: None });
        Ok(v1::MutateResponse { attr: Some(attr), ..Default::default() })
    }

    fn open_write(&mut self, session: u64, ino: u64) -> Result<v1::MutateResponse, RpcError> {
        let Some(inode) = self.inodes.get(&ino) else { return fail(ErrorCode::NotFound) };
        let attr = Some(inode.attr.clone());
        let file_id = FileId::random();
        self.pending.insert(file_id, (session, ino));
        Ok(v1::MutateResponse { attr, file_id: id_bytes(file_id.as_bytes()), ..Default::default() })
    }

    fn apply(&mut self, session: u64, chunk_size: u32, op: &Op) -> Result<v1::MutateResponse, RpcError> {
        match op {
            Op::Create(create) => {
                if let Some(ino) = self.names.get(&(create.parent, create.name.to_vec())) {
                    if create.exclusive {
                        return fail(ErrorCode::AlreadyExists);
                    }
                    let attr = Some(self.inodes[ino].attr.clone());
                    return Ok(v1::MutateResponse { attr, existed: true, ..Default::default() });
                }
                let made = self.name(create.parent, &create.name, v1::FileKind::File)?;
                let ino = made.attr.as_ref().map_or(0, |attr| attr.ino);
                self.open_write(session, ino)
            }
            Op::Mkdir(mkdir) => self.name(mkdir.parent, &mkdir.name, v1::FileKind::Directory),
            Op::Unlink(unlink) => match self.names.remove(&(unlink.parent, unlink.name.to_vec())) {
                Some(_) => Ok(v1::MutateResponse::default()),
                None => fail(ErrorCode::NotFound),
            },
            Op::OpenWrite(open) => self.open_write(session, open.ino),
            Op::AbortFile(abort) => {
                let id = FileId::from_slice(&abort.file_id).expect("an id");
                self.pending.remove(&id);
                Ok(v1::MutateResponse::default())
            }
            Op::CommitFile(commit) => self.commit(session, chunk_size, commit),
            Op::SetAttr(set) => {
                let Some(inode) = self.inodes.get_mut(&set.ino) else { return fail(ErrorCode::NotFound) };
                inode.attr.mtime_ns = set.mtime_ns.unwrap_or(inode.attr.mtime_ns);
                Ok(v1::MutateResponse { attr: Some(inode.attr.clone()), ..Default::default() })
            }
            _ => fail(ErrorCode::NotSupported),
        }
    }

    fn commit(
        &mut self,
        session: u64,
        chunk_size: u32,
        commit: &v1::CommitFile,
    ) -> Result<v1::MutateResponse, RpcError> {
        let pending = FileId::from_slice(&commit.file_id).expect("an id");
        let Some((owner, ino)) = self.pending.get(&pending).copied() else { return fail(ErrorCode::Stale) };
        assert_eq!(owner, session, "a commit in the session of its pending version");
        let mut chunks = Vec::new();
        for chunk in &commit.chunks {
            if chunk.chunk_id.iter().all(|byte| *byte == 0) {
                assert_eq!(chunk.length, 0, "a hole has no bytes");
                let holes = chunk.slots.max(1) as usize;
                chunks.extend(std::iter::repeat_n(v1::ChunkRef::from(&dfs_common::ChunkRef::HOLE), holes));
                continue;
            }
            let known = self.chunks.entry(chunk.chunk_id.clone()).or_insert_with(|| v1::ChunkRef {
                chunk_id: chunk.chunk_id.clone(),
                length: chunk.length,
                sha256: chunk.sha256.clone(),
                replicas: vec![],
            });
            assert_eq!(
                (known.length, &known.sha256),
                (chunk.length, &chunk.sha256),
                "an id means the same bytes for ever"
            );
            if !chunk.replicas.is_empty() {
                known.replicas.clone_from(&chunk.replicas);
            }
            assert!(!known.replicas.is_empty(), "a chunk nobody has heard of");
            chunks.push(known.clone());
        }
        assert_eq!(chunks.len() as u64, commit.size.div_ceil(chunk_size.into()), "one chunk a slot");
        let file_id = id_bytes(FileId::random().as_bytes());
        let layout = v1::Layout {
            file_id: file_id.clone(),
            size: commit.size,
            chunk_size,
            kind: Some(v1::layout::Kind::Replicated(v1::ReplicatedLayout { chunks, nodes: self.nodes.clone() })),
        };
        let inode = self.inodes.get_mut(&ino).expect("exists");
        inode.attr.size = commit.size;
        inode.attr.file_id = file_id;
        inode.attr.generation += 1;
        inode.attr.mtime_ns = commit.set.and_then(|set| set.mtime_ns).unwrap_or(inode.attr.mtime_ns);
        inode.layout = Some(layout);
        let attr = Some(inode.attr.clone());
        if commit.done {
            self.pending.remove(&pending);
        }
        Ok(v1::MutateResponse { attr, ..Default::default() })
    }
}

impl Service {
    async fn enter(&self, name: &'static str) -> Result<std::sync::MutexGuard<'_, State>, Status> {
        if self.frozen.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        let leader = self.meta.leader.load(Ordering::SeqCst);
        if leader != self.number || self.meta.no_leader.load(Ordering::SeqCst) {
            let hint =
                (!self.meta.no_leader.load(Ordering::SeqCst)).then(|| lock(&self.meta.addresses)[leader].clone());
            return Err(RpcError { leader: hint, ..RpcError::from(ErrorCode::NotLeader) }.into());
        }
        let mut state = lock(&self.meta.state);
        *state.calls.entry(name).or_insert(0) += 1;
        Ok(state)
    }
}

fn unsupported<T>() -> Answer<T> {
    Err(RpcError::from(ErrorCode::NotSupported).into())
}

#[tonic::async_trait]
impl MetadataService for Service {
    async fn open_session(&self, _: Request<v1::OpenSessionRequest>) -> Answer<v1::OpenSessionResponse> {
        let mut state = self.enter("open_session").await?;
        let session_id = state.fresh();
        state.sessions.insert(session_id);
        let settings = v1::ClusterSettings { chunk_size: self.meta.chunk_size, replication: 3, write_quorum: 2 };
        Ok(Response::new(v1::OpenSessionResponse {
            session_id,
            lease_ms: self.meta.lease_ms.load(Ordering::SeqCst),
            cluster_id: id_bytes(&[7; 16]),
            settings: Some(settings),
            meta_addresses: Vec::new(),
        }))
    }

    async fn renew_session(&self, request: Request<v1::RenewSessionRequest>) -> Answer<v1::RenewSessionResponse> {
        let request = request.into_inner();
        let mut state = self.enter("renew_session").await?;
        if !state.sessions.contains(&request.session_id) {
            return Err(RpcError::from(ErrorCode::SessionExpired).into());
        }
        let term = self.meta.term.load(Ordering::SeqCst);
        let need_full = request.leader_term != term && !request.full;
        if request.full {
            state.pinned = request.pins.iter().cloned().collect();
        } else if !need_full {
            state.pinned.extend(request.pins.iter().cloned());
            state.pinned.retain(|id| !request.unpins.contains(id));
        }
        state.renewals.push(request);
        let lease_ms = self.meta.lease_ms.load(Ordering::SeqCst);
        Ok(Response::new(v1::RenewSessionResponse {
            leader_term: term,
            need_full,
            lease_ms,
            meta_addresses: Vec::new(),
        }))
    }

    async fn close_session(&self, request: Request<v1::CloseSessionRequest>) -> Answer<v1::CloseSessionResponse> {
        self.enter("close_session").await?.sessions.remove(&request.into_inner().session_id);
        Ok(Response::new(v1::CloseSessionResponse {}))
    }

    async fn lookup(&self, request: Request<v1::LookupRequest>) -> Answer<v1::AttrResponse> {
        let request = request.into_inner();
        let state = self.enter("lookup").await?;
        let ino = state.names.get(&(request.parent, request.name.to_vec()));
        let attr = ino.map(|ino| state.inodes[ino].attr.clone()).ok_or(RpcError::from(ErrorCode::NotFound))?;
        Ok(Response::new(v1::AttrResponse { attr: Some(attr) }))
    }

    async fn get_attr(&self, request: Request<v1::GetAttrRequest>) -> Answer<v1::AttrResponse> {
        let state = self.enter("get_attr").await?;
        let inode = state.inodes.get(&request.into_inner().ino).ok_or(RpcError::from(ErrorCode::NotFound))?;
        Ok(Response::new(v1::AttrResponse { attr: Some(inode.attr.clone()) }))
    }

    async fn read_dir(&self, _: Request<v1::ReadDirRequest>) -> Answer<v1::ReadDirResponse> {
        unsupported()
    }
    async fn read_link(&self, _: Request<v1::ReadLinkRequest>) -> Answer<v1::ReadLinkResponse> {
        unsupported()
    }
    async fn get_xattr(&self, _: Request<v1::GetXattrRequest>) -> Answer<v1::GetXattrResponse> {
        unsupported()
    }
    async fn list_xattr(&self, _: Request<v1::ListXattrRequest>) -> Answer<v1::ListXattrResponse> {
        unsupported()
    }
    async fn lock(&self, _: Request<v1::LockRequest>) -> Answer<v1::LockResponse> {
        unsupported()
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Answer<v1::WatchResponse> {
        unsupported()
    }
    async fn stat_fs(&self, _: Request<v1::StatFsRequest>) -> Answer<v1::StatFsResponse> {
        unsupported()
    }

    async fn mutate(&self, request: Request<v1::MutateRequest>) -> Answer<v1::MutateResponse> {
        let request = request.into_inner();
        let outcome = {
            let mut state = self.enter("mutate").await?;
            let state = &mut *state;
            if !state.sessions.contains(&request.session_id) {
                return Err(RpcError::from(ErrorCode::SessionExpired).into());
            }
            let key = (request.session_id, request.seq);
            assert!(request.seq > request.acked, "a seq that was acknowledged is not used again");
            state.acked = state.acked.max(request.acked);
            match state.outcomes.get(&key) {
                Some(outcome) => outcome.clone(),
                None => {
                    let op = request.op.expect("an operation");
                    let outcome = state.apply(request.session_id, self.meta.chunk_size, &op);
                    state.applied.push((key.0, key.1, op));
                    state.outcomes.insert(key, outcome.clone());
                    outcome
                }
            }
        };
        tokio::time::sleep(Duration::from_millis(self.meta.mutate_delay_ms.load(Ordering::SeqCst))).await;
        let lose = |left: u32| left.checked_sub(1);
        if self.meta.lose_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose).is_ok() {
            return Err(Status::unavailable("the connection broke"));
        }
        Ok(Response::new(outcome?))
    }

    async fn get_file(&self, request: Request<v1::GetFileRequest>) -> Answer<v1::GetFileResponse> {
        let Some(v1::get_file_request::By::Ino(ino)) = request.into_inner().by else { return unsupported() };
        let state = self.enter("get_file").await?;
        let inode = state.inodes.get(&ino).ok_or(RpcError::from(ErrorCode::NotFound))?.clone();
        let layout = inode.layout.ok_or(RpcError::from(ErrorCode::NotFound))?;
        Ok(Response::new(v1::GetFileResponse { attr: Some(inode.attr), layout: Some(layout) }))
    }

    async fn allocate_chunks(&self, request: Request<v1::AllocateChunksRequest>) -> Answer<v1::AllocateChunksResponse> {
        let request = request.into_inner();
        let mut state = self.enter("allocate_chunks").await?;
        if let Some(code) = state.allocate_error {
            return Err(RpcError::from(code).into());
        }
        let usable: Vec<u32> =
            state.nodes.iter().map(|node| node.node_id).filter(|id| !request.avoid.contains(id)).collect();
        if usable.len() < 2 {
            return Err(RpcError::from(ErrorCode::NotEnoughNodes).into());
        }
        let mut placements = Vec::new();
        for _ in 0..request.count {
            state.turn += 1;
            let nodes = (0..usable.len().min(3)).map(|i| usable[(state.turn + i) % usable.len()]).collect();
            placements.push(v1::Placement { nodes });
        }
        Ok(Response::new(v1::AllocateChunksResponse { placements, nodes: state.nodes.clone(), valid_ms: 10_000 }))
    }

    async fn get_chunk_locations(
        &self,
        request: Request<v1::GetChunkLocationsRequest>,
    ) -> Answer<v1::GetChunkLocationsResponse> {
        let state = self.enter("get_chunk_locations").await?;
        let chunks = request.into_inner().chunk_ids.iter().filter_map(|id| state.chunks.get(id).cloned()).collect();
        Ok(Response::new(v1::GetChunkLocationsResponse { chunks, nodes: state.nodes.clone() }))
    }

    async fn list_files(&self, _: Request<v1::ListFilesRequest>) -> Answer<v1::ListFilesResponse> {
        unsupported()
    }

    async fn report_corruption(
        &self,
        request: Request<v1::ReportCorruptionRequest>,
    ) -> Answer<v1::ReportCorruptionResponse> {
        self.enter("report_corruption").await?.reports.push(request.into_inner());
        Ok(Response::new(v1::ReportCorruptionResponse {}))
    }

    async fn register_node(&self, _: Request<v1::RegisterNodeRequest>) -> Answer<v1::RegisterNodeResponse> {
        unsupported()
    }
    async fn deregister_node(&self, _: Request<v1::DeregisterNodeRequest>) -> Answer<v1::DeregisterNodeResponse> {
        unsupported()
    }
    async fn heartbeat(&self, _: Request<v1::HeartbeatRequest>) -> Answer<v1::HeartbeatResponse> {
        unsupported()
    }
    async fn commit_chunk(&self, _: Request<v1::CommitChunkRequest>) -> Answer<v1::CommitChunkResponse> {
        unsupported()
    }
    async fn report_repair_result(
        &self,
        _: Request<v1::ReportRepairResultRequest>,
    ) -> Answer<v1::ReportRepairResultResponse> {
        unsupported()
    }
}

#[tonic::async_trait]
impl AdminService for Service {
    async fn cluster_status(&self, _: Request<v1::ClusterStatusRequest>) -> Answer<v1::ClusterStatusResponse> {
        let state = self.enter("cluster_status").await?;
        let nodes = state.nodes.iter().map(|node| v1::NodeStatus {
            node_id: node.node_id,
            address: node.address.clone(),
            ..Default::default()
        });
        Ok(Response::new(v1::ClusterStatusResponse { nodes: nodes.collect(), ..Default::default() }))
    }
    async fn meta_status(&self, _: Request<v1::MetaStatusRequest>) -> Answer<v1::MetaStatusResponse> {
        let name = format!("meta-{}", self.number + 1);
        Ok(Response::new(v1::MetaStatusResponse { name, ..Default::default() }))
    }
    async fn trigger_snapshot(&self, _: Request<v1::TriggerSnapshotRequest>) -> Answer<v1::TriggerSnapshotResponse> {
        unsupported()
    }
    async fn list_trash(&self, _: Request<v1::ListTrashRequest>) -> Answer<v1::ListTrashResponse> {
        unsupported()
    }
    async fn empty_trash(&self, _: Request<v1::EmptyTrashRequest>) -> Answer<v1::EmptyTrashResponse> {
        unsupported()
    }
    async fn trash_retention(&self, _: Request<v1::TrashRetentionRequest>) -> Answer<v1::TrashRetentionResponse> {
        unsupported()
    }
    async fn repair_status(&self, _: Request<v1::RepairStatusRequest>) -> Answer<v1::RepairStatusResponse> {
        unsupported()
    }
    async fn repair_queue(&self, _: Request<v1::RepairQueueRequest>) -> Answer<v1::RepairQueueResponse> {
        unsupported()
    }
    async fn repair_now(&self, _: Request<v1::RepairNowRequest>) -> Answer<v1::RepairNowResponse> {
        unsupported()
    }
    async fn set_repair_limits(&self, _: Request<v1::SetRepairLimitsRequest>) -> Answer<v1::SetRepairLimitsResponse> {
        unsupported()
    }
    async fn scrub_status(&self, _: Request<v1::ScrubStatusRequest>) -> Answer<v1::ScrubStatusResponse> {
        unsupported()
    }
    async fn order_scrub(&self, _: Request<v1::OrderScrubRequest>) -> Answer<v1::OrderScrubResponse> {
        unsupported()
    }
    async fn file_users(&self, _: Request<v1::FileUsersRequest>) -> Answer<v1::FileUsersResponse> {
        unsupported()
    }
    async fn list_events(&self, _: Request<v1::ListEventsRequest>) -> Answer<v1::ListEventsResponse> {
        unsupported()
    }
    async fn change_node(&self, _: Request<v1::ChangeNodeRequest>) -> Answer<v1::ChangeNodeResponse> {
        unsupported()
    }
    async fn rebalance(&self, _: Request<v1::RebalanceRequest>) -> Answer<v1::RebalanceResponse> {
        unsupported()
    }
    type AddMetaNodeStream = tokio_stream::Empty<Result<v1::MetaChange, Status>>;
    async fn add_meta_node(&self, _: Request<v1::AddMetaNodeRequest>) -> Answer<Self::AddMetaNodeStream> {
        unsupported()
    }
    async fn remove_meta_node(&self, _: Request<v1::RemoveMetaNodeRequest>) -> Answer<v1::RemoveMetaNodeResponse> {
        unsupported()
    }
    async fn transfer_leader(&self, _: Request<v1::TransferLeaderRequest>) -> Answer<v1::TransferLeaderResponse> {
        unsupported()
    }
    type BackupStream = tokio_stream::Empty<Result<v1::BackupPart, Status>>;
    async fn backup(&self, _: Request<v1::BackupRequest>) -> Answer<Self::BackupStream> {
        unsupported()
    }
    async fn finish_restore(&self, _: Request<v1::FinishRestoreRequest>) -> Answer<v1::FinishRestoreResponse> {
        unsupported()
    }
}
