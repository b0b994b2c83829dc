//! A group of nodes in this process, each with its own directory and listener.

use std::{path::PathBuf, time::Duration};

use dfs_common::{ErrorCode, SessionId, Uuid};
use dfs_proto::{status::RpcError, transport};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    fsm::{self, Command, Reply},
    raft::{DataDirError, Handle, LOG_BYTES_MAX, Member, Node, Settings, StartError, StoreError},
};

/// Nothing in these tests takes this long.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// One node.
pub(super) struct Running {
    pub(super) node: Node,
    pub(super) handle: Handle,
    cancel: CancellationToken,
    serving: JoinHandle<()>,
}

/// The group.
pub(super) struct Group {
    dir: tempfile::TempDir,
    peers: Vec<Member>,
    snapshot_threshold: u64,
    log_bytes_max: u64,
    pub(super) nodes: Vec<Option<Running>>,
}

impl Group {
    /// A started group of `count` nodes.
    pub(super) async fn start(count: u64) -> Self {
        Self::start_with(count, 8192).await
    }

    pub(super) async fn start_with(count: u64, snapshot_threshold: u64) -> Self {
        Self::start_limited(count, snapshot_threshold, LOG_BYTES_MAX).await
    }

    pub(super) async fn start_limited(count: u64, snapshot_threshold: u64, log_bytes_max: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut listeners = Vec::new();
        let mut peers = Vec::new();
        for id in 1..=count {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            peers.push(Member { raft_id: id, name: format!("meta-{id}"), address });
            listeners.push(listener);
        }
        let mut group = Self { dir, peers, snapshot_threshold, log_bytes_max, nodes: Vec::new() };
        for (at, listener) in listeners.into_iter().enumerate() {
            let running = group.run(at, listener).await;
            group.nodes.push(Some(running));
        }
        group
    }

    pub(super) fn path(&self, at: usize) -> PathBuf {
        self.dir.path().join(&self.peers[at].name)
    }

    pub(super) fn settings(&self, at: usize) -> Settings {
        Settings {
            me: self.peers[at].clone(),
            peers: self.peers.clone(),
            join: Vec::new(),
            data_dir: self.path(at),
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(800),
            snapshot_threshold: self.snapshot_threshold,
            log_keep: 1000,
            log_file_bytes: crate::store::journal::FILE_BYTES,
            log_bytes_max: self.log_bytes_max,
            trash_retention: std::time::Duration::ZERO,
            cluster: fsm::Settings::default(),
        }
    }

    async fn run(&self, at: usize, listener: TcpListener) -> Running {
        let node = timeout(LIMIT, async {
            loop {
                match Node::start(self.settings(at)).await {
                    Ok(node) => break node,
                    // Calls of the node that was stopped may still be ending; in a process of its own they would be gone.
                    Err(
                        StartError::DataDir(DataDirError::Locked { .. }) | StartError::Store(StoreError::Open { .. }),
                    ) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let node = node.await.expect("the old one is gone");
        let cancel = CancellationToken::new();
        let router = transport::server().add_service(node.service().into_server());
        let stop = cancel.clone().cancelled_owned();
        let serving = tokio::spawn(async move {
            // Connections would outlive a server that is merely dropped.
            router.serve_with_incoming_shutdown(transport::incoming(listener), stop).await.unwrap();
        });
        Running { handle: node.handle(), node, cancel, serving }
    }

    /// Stops a node; its listener goes first, as when a process dies.
    pub(super) async fn stop(&mut self, at: usize) {
        let running = self.nodes[at].take().expect("runs");
        running.cancel.cancel();
        timeout(LIMIT, running.serving).await.expect("connections end").unwrap();
        running.node.stop().await;
    }

    /// Starts a stopped node again.
    pub(super) async fn restart(&mut self, at: usize) {
        let listener = timeout(LIMIT, async {
            loop {
                match TcpListener::bind(&self.peers[at].address).await {
                    Ok(listener) => break listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let listener = listener.await.unwrap();
        self.nodes[at] = Some(self.run(at, listener).await);
    }

    /// Stops what runs.
    pub(super) async fn end(mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].is_some() {
                self.stop(at).await;
            }
        }
    }

    pub(super) fn handle(&self, at: usize) -> &Handle {
        &self.nodes[at].as_ref().expect("runs").handle
    }

    /// Position of the node that serves as the leader, once one does.
    pub(super) async fn leader(&self) -> usize {
        let waits = self.nodes.iter().enumerate().filter_map(|(at, node)| {
            let mut leadership = node.as_ref()?.handle.leadership();
            Some(Box::pin(async move {
                leadership.wait_for(|now| now.is_leader).await.unwrap();
                at
            }))
        });
        timeout(LIMIT, futures::future::select_all(waits)).await.expect("no leader").0
    }

    /// Waits until the node at `at` has applied `index`.
    pub(super) async fn applied(&self, at: usize, index: u64) {
        let handle = self.handle(at).clone();
        let raft = timeout(LIMIT, async {
            while handle.core.raft.get().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            handle.core.raft.get().unwrap().clone()
        });
        let raft = raft.await.expect("starts");
        raft.wait(Some(LIMIT)).applied_index_at_least(Some(index), "test").await.unwrap();
    }

    /// Opens a session at the leader, wherever it is, as a client would.
    pub(super) async fn open_session(&self) -> SessionId {
        timeout(LIMIT, async {
            let client_id = Uuid::random();
            loop {
                let leader = self.leader().await;
                match open_session(self.handle(leader), client_id, "test").await {
                    Ok(session) => break session,
                    Err(error) => assert!(error.code.is_retryable(), "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("no session")
    }
}

/// Opens one session.
pub(super) async fn open_session(handle: &Handle, client_id: Uuid, description: &str) -> Result<SessionId, RpcError> {
    let outcome = handle.propose(Command::OpenSession { client_id, description: description.into() }).await?;
    match outcome {
        Ok(Reply::Session { session, .. }) => Ok(session),
        other => Err(RpcError::new(ErrorCode::Internal, format!("{other:?}"))),
    }
}
