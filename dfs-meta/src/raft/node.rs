//! Starting and stopping the node.

use std::{
    sync::{Arc, Mutex, OnceLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Handle, Leadership,
    bootstrap::{self, Origin},
    clock::Clock,
    core::{Core, Phase},
    data_dir::{DataDir, DataDirError},
    lease::{self, Lease},
    members,
    peers::{Belonging, Peers},
    proposer,
    service::Service,
    settings::Settings,
    state_machine::Replica,
};
use crate::store::{LogStore, SnapshotDir, StoreError};

/// Each step of stopping gets this long; the process has five seconds in all.
const STOP_STEP: Duration = Duration::from_millis(1200);

/// The node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings make no sense.
    #[error("{0}")]
    Settings(String),
    /// The data directory cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Log or snapshots cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The consensus library refuses.
    #[error("the consensus group cannot start: {0}")]
    Raft(String),
}

/// A running node.
pub struct Node {
    core: Arc<Core>,
    service: Service,
}

impl Node {
    /// Opens the data directory and starts the node. A node with data takes part when this returns; another one goes on
    /// entering the cluster in the background, for which its [`Node::service`] must be served.
    ///
    /// # Errors
    /// The settings or the data directory cannot be used.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        settings.check().map_err(StartError::Settings)?;
        let opening = settings.clone();
        let opened = dfs_proto::machine::spawn_blocking(move || open(&opening)).await;
        let Opened { dir, log, snapshots, replica, origin } = opened.map_err(|e| StartError::Raft(e.to_string()))??;
        let cluster = Arc::new(Belonging::new(dir.cluster(), dir.epoch()));
        let (proposals, queue) = mpsc::channel(proposer::QUEUE_MAX);
        let promised = origin != Origin::Fresh;
        let votes_from = Instant::now() + if promised { settings.vote_silence() } else { Duration::ZERO };
        let core = Arc::new(Core {
            peers: Arc::new(Peers::new(cluster.clone(), &settings.peers)),
            dir: Arc::new(dir),
            cluster,
            log,
            replica,
            clock: Clock::default(),
            raft: OnceLock::new(),
            phase: watch::Sender::new(Phase::Starting),
            lease: Lease::default(),
            confirmed: watch::Sender::new(false),
            leadership: watch::Sender::new(Leadership::default()),
            stands_in: Arc::default(),
            handing_over: watch::Sender::new(false),
            changing: tokio::sync::Mutex::default(),
            look: Notify::new(),
            named: Mutex::default(),
            serving_term: AtomicU64::new(0),
            proposals,
            fatal: watch::Sender::new(None),
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
            settings,
        });
        core.tasks.spawn(proposer::run(core.clone(), queue));
        core.tasks.spawn(lease::keep(core.clone()));
        core.tasks.spawn(members::keep(core.clone()));
        let service = Service::new(core.clone(), snapshots, votes_from);
        let node = Self { core, service };
        if origin == Origin::Established {
            if let Err(error) = bootstrap::resume(&node.core).await {
                node.stop().await;
                return Err(error);
            }
        } else {
            node.core.tasks.spawn(bootstrap::enter(node.core.clone(), origin));
        }
        Ok(node)
    }

    /// What the rest of the process uses.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.core.clone())
    }

    /// What the other metadata nodes use; to be added to the listener.
    #[must_use]
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// Waits until the node cannot go on, and says why.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&self) -> String {
        let mut fatal = self.core.fatal.subscribe();
        // The sender lives as long as the core.
        let failed = fatal.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        failed.unwrap_or_else(|| "the node has stopped".into())
    }

    /// Stops the node: everything acknowledged is on disk when this returns.
    pub async fn stop(&self) {
        let core = &self.core;
        core.cancel.cancel();
        if let Some(raft) = core.raft.get() {
            match tokio::time::timeout(STOP_STEP, raft.shutdown()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the consensus group did not stop cleanly"),
                Err(_) => tracing::warn!("the consensus group did not stop in time"),
            }
        }
        core.tasks.close();
        if tokio::time::timeout(STOP_STEP, core.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not stop in time");
        }
        match tokio::time::timeout(STOP_STEP, core.log.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the log was not closed cleanly"),
            Err(_) => tracing::warn!("the log was not closed in time"),
        }
    }
}

/// What is on disk.
struct Opened {
    dir: DataDir,
    log: LogStore,
    snapshots: Arc<SnapshotDir>,
    replica: Replica,
    origin: Origin,
}

fn open(settings: &Settings) -> Result<Opened, StartError> {
    let dir = DataDir::open(&settings.data_dir, &settings.me)?;
    let log = LogStore::open_with(&dir.path().join("raft"), settings.log_file_bytes)?;
    let path = dir.path().join("snapshots");
    let snapshots = Arc::new(SnapshotDir::open(&path)?);
    let blank = log.is_blank() && snapshots.is_empty()?;
    let replica = Replica::open(snapshots.clone(), &path, log.purged_index())?;
    let origin = Origin::of(&dir, blank);
    tracing::debug!(?origin, last = log.last_index(), applied = ?replica.applied(), "opened the data directory");
    Ok(Opened { dir, log, snapshots, replica, origin })
}
