//! How a client behaves.

use std::time::Duration;

use dfs_common::{backoff::Policy, layout::CHUNK_SIZE_DEFAULT};

/// Settings of one client. [`Options::new`] gives the defaults.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Addresses (`host:port`) of metadata nodes; one that answers is enough.
    pub meta: Vec<String>,
    /// Shown to the administrator: host, pid, mount point.
    pub description: String,
    /// Longest time one operation may take, retries included.
    pub deadline: Duration,
    /// Longest time one call may take.
    pub rpc_timeout: Duration,
    /// Longest time a connection may take to be made.
    pub connect_timeout: Duration,
    /// Delays between retries.
    pub retry: Policy,
    /// Most attempts of one operation; `None`: until the deadline.
    pub retry_attempts_max: Option<u32>,
    /// Bytes that write buffers and read windows of all files may take together.
    pub memory_bytes: u64,
    /// Chunks of one file that are uploaded at a time.
    pub parallel_uploads: usize,
    /// Chunks of one file that are downloaded at a time.
    pub parallel_downloads: usize,
    /// Bytes handed to a progress callback, and read from a local file, at a time.
    pub frame_bytes: usize,
    /// Largest read-ahead window of one open file, bytes.
    pub read_ahead_max_bytes: u64,
    /// Name of this host as storage nodes spell it in their addresses: their copies are preferred.
    pub local_host: Option<String>,
}

impl Options {
    /// The defaults, for a cluster with these metadata nodes.
    #[must_use]
    pub fn new(meta: Vec<String>) -> Self {
        Self {
            meta,
            description: format!("pid {}", std::process::id()),
            deadline: Duration::from_secs(30),
            rpc_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            retry: Policy::default(),
            retry_attempts_max: None,
            memory_bytes: 256 << 20,
            parallel_uploads: 4,
            parallel_downloads: 4,
            frame_bytes: 1 << 20,
            read_ahead_max_bytes: 32 << 20,
            local_host: None,
        }
    }
}

/// What the cluster decides for its clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// Copies of each chunk.
    pub replication: u32,
    /// Copies that must be durable before a write is acknowledged.
    pub write_quorum: u32,
}

impl Default for Settings {
    /// What a cluster has if nobody changed it; used until the cluster has answered.
    fn default() -> Self {
        Self { chunk_size: CHUNK_SIZE_DEFAULT, replication: 3, write_quorum: 2 }
    }
}
