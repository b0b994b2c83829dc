//! A metadata node in this process, and what tests say to it.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use bytes::Bytes;
use dfs_common::{ChunkId, ErrorCode, FileId, InodeId};
use dfs_proto::{
    convert::id_bytes,
    status::RpcError,
    transport,
    v1::{
        self, admin_service_client::AdminServiceClient, metadata_service_client::MetadataServiceClient, mutate_request,
    },
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, transport::Channel};

use crate::{
    control::{self, RepairSettings, Settings},
    fsm,
    raft::{self, Member, Node},
};

pub(super) const CHUNK_SIZE: u32 = 64 << 10;

/// Timings that let a test see what takes minutes in practice.
pub(super) fn quick() -> Settings {
    Settings {
        tick: Duration::from_millis(20),
        heartbeat: Duration::from_millis(200),
        suspect: Duration::from_millis(700),
        dead: Duration::from_millis(1500),
        session_lease: Duration::from_secs(60),
        renewal: Duration::from_millis(50),
        gc_grace: Duration::from_millis(50),
        unknown_grace: Duration::from_millis(300),
        trim_grace: Duration::from_millis(50),
        repair: RepairSettings {
            fresh: Duration::from_millis(100),
            lease: Duration::from_millis(400),
            backoff: Duration::from_millis(50),
            ..RepairSettings::default()
        },
        ..Settings::default()
    }
}

/// A metadata node that serves.
pub(super) struct Cluster {
    node: Node,
    address: SocketAddr,
    cancel: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    dir: PathBuf,
    _temp: tempfile::TempDir,
}

impl Cluster {
    pub(super) async fn start(settings: Settings) -> Self {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = temp.path().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let me = Member { raft_id: 1, name: "meta-1".into(), address: address.to_string() };
        let node = Node::start(raft::Settings {
            me: me.clone(),
            peers: vec![me],
            join: Vec::new(),
            data_dir: dir.clone(),
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(800),
            snapshot_threshold: 8192,
            log_keep: 1000,
            log_file_bytes: crate::store::journal::FILE_BYTES,
            log_bytes_max: raft::LOG_BYTES_MAX,
            trash_retention: std::time::Duration::ZERO,
            cluster: fsm::Settings { chunk_size: CHUNK_SIZE, replication: 3, write_quorum: 2 },
        })
        .await
        .expect("starts");
        let cancel = CancellationToken::new();
        let control = control::Handle::new(node.handle(), settings);
        let router = super::super::add(&mut transport::server(), node.handle(), control.clone());
        let stop = cancel.clone();
        let serve = tokio::spawn(async move {
            let incoming = transport::incoming(listener);
            router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await.expect("serves");
        });
        let tasks = vec![serve, tokio::spawn(control::run(control, cancel.clone()))];
        let cluster = Self { node, address, cancel, tasks, dir, _temp: temp };
        let handle = cluster.node.handle();
        for _ in 0..1000 {
            if handle.read(|state| state.cluster_id().is_some()).await == Ok(true) {
                return cluster;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the cluster is not formed: {:?}", handle.status());
    }

    pub(super) fn channel(&self) -> Channel {
        transport::connect(&self.address.to_string(), Duration::from_secs(1)).expect("an address")
    }

    pub(super) fn meta(&self) -> MetadataServiceClient<Channel> {
        MetadataServiceClient::new(self.channel())
    }

    pub(super) fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel())
    }

    pub(super) async fn status(&self) -> v1::ClusterStatusResponse {
        let mut admin = AdminServiceClient::new(self.channel());
        admin.cluster_status(v1::ClusterStatusRequest {}).await.expect("answers").into_inner()
    }

    /// Waits until a storage node has a state.
    pub(super) async fn until_node(&self, id: u32, state: v1::NodeState) {
        for _ in 0..500 {
            let nodes = self.status().await.nodes;
            if nodes.iter().any(|node| node.node_id == id && node.state == state as i32) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("node {id} is never {state:?}: {:?}", self.status().await);
    }

    pub(super) async fn meta_status(&self) -> v1::MetaStatusResponse {
        let mut admin = AdminServiceClient::new(self.channel());
        admin.meta_status(v1::MetaStatusRequest {}).await.expect("answers").into_inner()
    }

    pub(super) async fn stop(self) {
        self.cancel.cancel();
        for task in self.tasks {
            tokio::time::timeout(Duration::from_secs(5), task).await.expect("ends in time").expect("ends well");
        }
        self.node.stop().await;
        assert!(self.dir.exists());
    }
}

/// The domain error of a call that must fail.
pub(super) fn code<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> ErrorCode {
    RpcError::from(result.expect_err("is refused")).code
}

/// A client of the cluster.
pub(super) struct Client {
    pub(super) meta: MetadataServiceClient<Channel>,
    pub(super) session: u64,
    seq: u64,
}

impl Client {
    pub(super) async fn open(cluster: &Cluster, id: u8) -> Self {
        let mut meta = cluster.meta();
        let request = v1::OpenSessionRequest { client_id: vec![id; 16].into(), description: format!("test {id}") };
        let session = meta.open_session(request).await.expect("opens").into_inner().session_id;
        Self { meta, session, seq: 0 }
    }

    pub(super) async fn send(&mut self, seq: u64, op: mutate_request::Op) -> Result<v1::MutateResponse, RpcError> {
        let request = v1::MutateRequest { session_id: self.session, seq, acked: 0, op: Some(op) };
        self.meta.mutate(request).await.map(Response::into_inner).map_err(RpcError::from)
    }

    pub(super) async fn mutate(&mut self, op: mutate_request::Op) -> Result<v1::MutateResponse, RpcError> {
        self.seq += 1;
        self.send(self.seq, op).await
    }

    pub(super) async fn create(&mut self, name: &str) -> FileId {
        let response = self.mutate(create(name)).await.expect("creates");
        FileId::from_slice(&response.file_id).expect("16 bytes")
    }

    /// Publishes a file of one chunk that `replicas` hold.
    pub(super) async fn commit(&mut self, file: FileId, chunk: ChunkId, replicas: &[u32]) {
        let chunk = v1::CommittedChunk {
            chunk_id: id_bytes(chunk.as_bytes()),
            length: 100,
            sha256: vec![1; 32].into(),
            replicas: replicas.to_vec(),
            slots: 1,
        };
        let commit = v1::CommitFile {
            file_id: id_bytes(file.as_bytes()),
            size: 100,
            chunks: vec![chunk],
            set: None,
            done: true,
        };
        self.mutate(mutate_request::Op::CommitFile(commit)).await.expect("publishes");
    }

    pub(super) async fn lookup(&mut self, name: &str) -> Result<v1::Attr, ErrorCode> {
        let request =
            v1::LookupRequest { parent: InodeId::ROOT.0, name: name.to_owned().into(), session_id: self.session };
        let found = self.meta.lookup(request).await.map_err(|status| RpcError::from(status).code)?;
        Ok(found.into_inner().attr.expect("an entry has attributes"))
    }

    pub(super) async fn renew(&mut self, full: bool, pins: &[FileId], unpins: &[FileId]) -> v1::RenewSessionResponse {
        let ids = |list: &[FileId]| list.iter().map(|id| id_bytes(id.as_bytes())).collect::<Vec<Bytes>>();
        let request = v1::RenewSessionRequest {
            session_id: self.session,
            full,
            pins: ids(pins),
            unpins: ids(unpins),
            leader_term: 0,
            locks: vec![],
        };
        self.meta.renew_session(request).await.expect("renews").into_inner()
    }
}

pub(super) fn create(name: &str) -> mutate_request::Op {
    let (parent, name) = (InodeId::ROOT.0, name.to_owned().into());
    mutate_request::Op::Create(v1::Create { parent, name, mode: 0o644, uid: 0, gid: 0, exclusive: true })
}

pub(super) fn unlink(name: &str) -> mutate_request::Op {
    mutate_request::Op::Unlink(v1::Unlink { parent: InodeId::ROOT.0, name: name.to_owned().into() })
}
