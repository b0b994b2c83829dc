//! A connection to one cluster.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use dfs_common::{ChunkId, ClusterId, ErrorCode};
use lru::LruCache;

use crate::{
    Error, Estate, Options, Settings,
    budget::Budget,
    cluster::Cluster,
    hash::Hashing,
    nodes::Nodes,
    placement::Placements,
    read::{BlockCache, Latencies, Layouts, ReaderCore},
    write::{BufferPool, TailCache, Writers},
};

/// How often idle readers are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(2);
/// Longest time [`Dfs::close`] waits for background tasks.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// One cluster connection with one session; cheap to clone, all clones share everything.
#[derive(Clone)]
pub struct Dfs {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) placements: Arc<Placements>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) hashing: Hashing,
    pub(crate) buffers: Arc<BufferPool>,
    pub(crate) tails: TailCache,
    pub(crate) blocks: BlockCache,
    pub(crate) latencies: Latencies,
    pub(crate) readers: Mutex<Vec<Weak<ReaderCore>>>,
    pub(crate) writers: Writers,
    pub(crate) layouts: Layouts,
    /// Corruption reports sent lately, so that a bad copy that is read again and again is reported once.
    pub(crate) reported: Mutex<LruCache<(ChunkId, u32), ()>>,
}

/// How the memory option is divided: what is kept for speed is small and fixed, the rest is the budget.
struct Division {
    idle_buffers: u64,
    tails: u64,
    blocks: u64,
    budget: u64,
}

fn divide(memory: u64) -> Division {
    let (idle_buffers, tails, blocks) = (memory / 8, memory / 16, memory / 16);
    Division { idle_buffers, tails, blocks, budget: memory - idle_buffers - tails - blocks }
}

impl Dfs {
    /// Finds the leader, opens a session and starts to renew it.
    ///
    /// # Errors
    /// No metadata node answered within the deadline, or the options are unusable.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let dfs = Self::connect_admin(options).await?;
        dfs.open_session().await?;
        Ok(dfs)
    }

    /// Opens the session, if there is none.
    ///
    /// # Errors
    /// No metadata node answered within the deadline.
    pub async fn open_session(&self) -> Result<(), Error> {
        self.shared.cluster.session().await.map(drop)
    }

    /// A connection without a session, for an administrator's questions: nothing is sent yet. The first operation that
    /// needs a session (a mutation, opening a file) opens one.
    ///
    /// # Errors
    /// The options are unusable.
    #[expect(clippy::unused_async, reason = "symmetric with connect; it spawns, so it must run on a runtime")]
    pub async fn connect_admin(options: Options) -> Result<Self, Error> {
        Self::with_estate(options, None)
    }

    /// A connection that goes on with what another process of this machine has left, and leaves what it has to the next one.
    /// Nothing is sent yet: the first operation that needs a session opens it.
    ///
    /// # Errors
    /// The options are unusable.
    #[expect(clippy::unused_async, reason = "it spawns, so it must run on a runtime")]
    pub async fn inherit(options: Options, estate: Estate) -> Result<Self, Error> {
        Self::with_estate(options, Some(estate))
    }

    fn with_estate(options: Options, estate: Option<Estate>) -> Result<Self, Error> {
        let cluster = Cluster::new(options.clone(), estate)?;
        let nodes = Arc::new(Nodes::new(options.connect_timeout, options.local_host.clone()));
        let division = divide(options.memory_bytes);
        let shared = Arc::new(Shared {
            placements: Arc::new(Placements::new(cluster.clone(), nodes.clone())),
            budget: Budget::new(division.budget),
            hashing: Hashing::new(),
            buffers: BufferPool::new(division.idle_buffers),
            tails: TailCache::new(division.tails),
            blocks: BlockCache::new(division.blocks),
            latencies: Latencies::default(),
            readers: Mutex::default(),
            writers: Writers::new(),
            layouts: Layouts::default(),
            reported: Mutex::new(LruCache::new(std::num::NonZeroUsize::new(1024).expect("not zero"))),
            options,
            cluster,
            nodes,
        });
        shared.cluster.tasks.spawn(prune(Arc::downgrade(&shared), shared.cluster.stop.clone()));
        Ok(Self { shared })
    }

    /// Ends the session and every background task. Unpublished writes are lost. Takes at most about five seconds.
    pub async fn close(&self) {
        let cluster = &self.shared.cluster;
        cluster.close_session().await;
        cluster.stop.cancel();
        cluster.tasks.close();
        if tokio::time::timeout(CLOSE_MAX, cluster.tasks.wait()).await.is_err() {
            tracing::info!(tasks = cluster.tasks.len(), "background tasks are left to the end of the process");
        }
    }

    /// What the cluster decides; defaults before a session was opened.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.shared.cluster.sessions.known().map(|known| known.settings).unwrap_or_default()
    }

    /// The cluster's identity; zero before a session was opened.
    #[must_use]
    pub fn cluster_id(&self) -> ClusterId {
        self.shared.cluster.sessions.known().map_or(ClusterId([0; 16]), |known| known.cluster_id)
    }

    /// The options this connection was made with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Bytes of the memory budget that are granted to buffers and windows now, and the most so far.
    #[must_use]
    pub fn memory_usage(&self) -> (u64, u64) {
        self.shared.budget.usage()
    }
}

impl Shared {
    /// Identity of the cluster and its settings, which every chunk transfer needs.
    pub(crate) async fn known(&self) -> Result<(ClusterId, Settings), Error> {
        if let Some(known) = self.cluster.sessions.known() {
            return Ok((known.cluster_id, known.settings));
        }
        self.cluster.session().await?;
        let known = self.cluster.sessions.known();
        known
            .map(|k| (k.cluster_id, k.settings))
            .ok_or_else(|| Error::from(dfs_proto::status::RpcError::from(ErrorCode::Internal)))
    }

    pub(crate) fn register(&self, reader: &Arc<ReaderCore>) {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(reader));
    }
}

/// Gives back the windows of readers that nobody reads from.
async fn prune(shared: Weak<Shared>, stop: tokio_util::sync::CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PRUNE_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
        let Some(shared) = shared.upgrade() else { return };
        shared.readers.lock().unwrap_or_else(PoisonError::into_inner).retain(|reader| {
            let reader = reader.upgrade();
            reader.inspect(|reader| reader.prune()).is_some()
        });
    }
}

/// Zeros for holes, without allocating.
pub(crate) fn zeros(mut len: usize, out: &mut Vec<Bytes>) {
    static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
    while len > 0 {
        let take = len.min(ZEROS.len());
        out.push(Bytes::from_static(&ZEROS[..take]));
        len -= take;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.cluster.stop.cancel();
    }
}
