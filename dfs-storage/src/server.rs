//! Puts a storage node together, runs it and ends it.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use dfs_common::{Uuid, backoff::Policy};
use dfs_proto::{
    status::RpcError,
    transport::{self, Listener},
    v1::DeregisterNodeRequest,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    config::Config,
    data_dir::{DataDirError, Membership},
    data_dirs::DataDirs,
    disks::{Disk, Limits as DiskLimits},
    heartbeat::{Fatal, Heartbeat, Presentation},
    meta_client::MetaClient,
    node::{Limits, Node},
    outbox::Outbox,
    pool::DiskPool,
    rpc,
    scrub::{self, Scrub},
    stamps::Stamps,
    worker::{deletes::Deletes, disks, quarantine, repair::Repairs},
};

/// Time for requests in work when the process is asked to end.
const DRAIN: Duration = Duration::from_secs(3);

/// Time to tell metadata that this node stops. Metadata may be stopping too.
const GOODBYE: Duration = Duration::from_millis(500);

/// Why a node cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The chunks in them.
    #[error("no data directory can be used: {0}")]
    NoDisk(String),
    /// The listen address.
    #[error("cannot listen on {address}: {source}; is another process using it? choose another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A metadata address.
    #[error(transparent)]
    Meta(RpcError),
    /// Metadata refuses the node.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    /// The listener failed.
    #[error("the listener failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// A running node.
#[derive(Debug)]
pub struct Server {
    node: Arc<Node>,
    meta: Arc<MetaClient>,
    address: SocketAddr,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    heartbeat: JoinHandle<Option<Fatal>>,
}

impl Server {
    /// Starts a node: reserves its address, takes its data directory, counts its chunks, listens, and begins to register with metadata. Blocks while
    /// chunks are counted, so call it before the runtime has other work.
    ///
    /// # Errors
    /// What keeps it from starting.
    pub async fn start(config: &Config) -> Result<Self, ServerError> {
        let backoff = Policy { initial: config.backoff_initial.0, max: config.backoff_max.0 };
        let meta = MetaClient::new(config.meta.clone(), config.rpc_timeout.0, backoff).map_err(ServerError::Meta)?;
        let failed = |source| ServerError::Listen { address: config.listen, source };
        // The port comes first: a second process with the same settings must not touch anything.
        // It listens only when it can serve, so that nobody waits for it while chunks are counted.
        let reserved = transport::reserve(config.listen).map_err(failed)?;
        let Opened { uuid, membership, scrubs } = {
            let config = config.clone();
            dfs_proto::machine::spawn_blocking(move || open(&config)).await.expect("opening does not panic")?
        };
        let listener = reserved.listen().await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (outbox, queues) = Outbox::new();
        let limits = Limits {
            stall: config.stall_timeout.0,
            stall_contended: (config.stall_timeout.0 / 5).max(Duration::from_millis(1)),
            verify_reads: config.verify_reads,
            ..Limits::default()
        };
        let disk = DiskPool::new(config.blocking_threads.into());
        let memory = usize::try_from(config.memory.0).expect("64-bit machines only");
        let node = Arc::new(Node::new(config.name.clone(), scrubs, disk, memory, limits, outbox));
        let stamps = Stamps::new(uuid, membership, node.disks.clone());
        let remembered = stamps.metadata();
        if !remembered.is_empty() {
            meta.learn(&remembered);
        }
        if let Some(membership) = membership {
            let _ = node.membership.set(membership);
        }
        let meta = Arc::new(meta);
        queues.run(&node, &meta);
        let presentation = Presentation { address: advertised(config, address), rack: config.rack.clone() };
        let deletes = Deletes::start(&node);
        let repairs = Repairs::new(node.clone(), config.repair_streams.into());
        node.checks.start(&node);
        for scrub in &node.scrubs {
            scrub.start(&node);
            disks::start(&node, scrub, uuid);
        }
        let limits = quarantine::Limits { keep: config.quarantine_keep.0, bytes: config.quarantine_size.0 };
        quarantine::start(&node, &meta, limits);
        let heartbeat = Heartbeat::new(node.clone(), meta.clone(), stamps, presentation, deletes, repairs);
        tracing::info!(name = %config.name, %address, disks = config.data_dir.len(), first = %config.data_dir[0].display(), "storage node serves");
        Ok(Self { serving: serve(&node, listener), heartbeat: beat(&node, heartbeat), node, meta, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its rooms share.
    #[must_use]
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Returns when the node cannot go on.
    ///
    /// # Errors
    /// Why: always, since it does not end by itself.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn failed(&mut self) -> ServerError {
        tokio::select! {
            fatal = &mut self.heartbeat => match fatal {
                Ok(Some(fatal)) => fatal.into(),
                Ok(None) | Err(_) => std::future::pending().await,
            },
            served = &mut self.serving => match served {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) | Err(_) => std::future::pending().await,
            },
        }
    }

    /// Ends the node: no new requests, those in work get a few seconds.
    pub async fn stop(self) {
        let deadline = Instant::now() + DRAIN;
        self.node.stop.cancel();
        self.node.tasks.close();
        self.say_goodbye().await;
        let mut serving = self.serving;
        // A handle that has ended may have been taken by `failed` and must not be polled again.
        if !serving.is_finished() && timeout_at(deadline, &mut serving).await.is_err() {
            tracing::info!("some requests did not end in time and are cut off");
            serving.abort();
        }
        let _ = timeout_at(deadline, self.node.tasks.wait()).await;
        // Not later than a moment after the drain: it is cancelled and waits for nothing.
        if !self.heartbeat.is_finished() {
            let _ = timeout(Duration::from_millis(200), self.heartbeat).await;
        }
    }
}

impl Server {
    /// Tells metadata, so that readers and writers turn to other nodes at once. Best effort: silence says the same, later.
    async fn say_goodbye(&self) {
        let incarnation = self.node.incarnation.load(Ordering::Relaxed);
        let Some(member) = self.node.membership.get().filter(|_| incarnation != 0) else { return };
        let request = DeregisterNodeRequest { node_id: member.node.0, incarnation };
        let told = self.meta.call(GOODBYE, |mut client| async move { client.deregister_node(request).await }).await;
        if let Err(error) = told {
            tracing::debug!(%error, "metadata was not told that this node stops");
        }
    }
}

/// What the data directories hold.
struct Opened {
    uuid: Uuid,
    membership: Option<Membership>,
    scrubs: Vec<Arc<Scrub>>,
}

fn open(config: &Config) -> Result<Opened, ServerError> {
    let DataDirs { uuid, membership, dirs, .. } = DataDirs::open(&config.data_dir, &config.name)?;
    let interval = config.scrub_interval.0;
    let settings = scrub::Settings {
        interval: (!interval.is_zero()).then_some(interval),
        tranquility: f64::from(config.scrub_tranquility),
    };
    let devices: Vec<Option<u64>> = dirs.iter().map(|(path, _)| Some(std::fs::metadata(path).ok()?.dev())).collect();
    let (capacity, reserve) = (config.capacity.map(|size| size.0), config.reserve.map(|size| size.0));
    let mut scrubs = Vec::with_capacity(dirs.len());
    for ((path, dir), device) in dirs.into_iter().zip(&devices) {
        let share = devices.iter().filter(|other| other.is_some() && *other == device).count() as u64;
        let disk = Disk::open(path, dir, DiskLimits { capacity, reserve, share });
        scrubs.push(Arc::new(Scrub::open(Arc::new(disk), settings)));
    }
    match scrubs.iter().find_map(|scrub| scrub.disk().failure()) {
        Some(reason) if scrubs.iter().all(|scrub| scrub.disk().failure().is_some()) => Err(ServerError::NoDisk(reason)),
        _ => Ok(Opened { uuid, membership, scrubs }),
    }
}

/// With `--listen ...:0` the system chose the port.
fn advertised(config: &Config, address: SocketAddr) -> String {
    match (&config.advertise, config.listen.port()) {
        (None, 0) => address.to_string(),
        _ => config.advertised(),
    }
}

fn serve(node: &Arc<Node>, listener: Listener) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let stop = node.stop.clone();
    let server = transport::server()
        .add_service(rpc::Storage::new(node.clone()))
        .add_service(rpc::Replication::new(node.clone()));
    tokio::spawn(server.serve_with_incoming_shutdown(transport::incoming(listener), stop.cancelled_owned()))
}

fn beat(node: &Arc<Node>, heartbeat: Heartbeat) -> JoinHandle<Option<Fatal>> {
    let stop = node.stop.clone();
    tokio::spawn(async move {
        match stop.run_until_cancelled(heartbeat.run()).await {
            Some(Err(fatal)) => Some(fatal),
            Some(Ok(never)) => match never {},
            None => None,
        }
    })
}
