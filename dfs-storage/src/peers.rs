//! Connections to other storage nodes, one each, shared by all copies to it.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use dfs_common::ErrorCode;
use dfs_proto::{status::RpcError, transport};
use lru::LruCache;
use tonic::transport::Channel;

/// Time for a connection to a peer: far below what a client waits for its answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections kept. A node talks to every other node of its cluster sooner or later.
const PEERS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// The connections.
#[derive(Debug)]
pub struct Peers {
    channels: Mutex<LruCache<String, Channel>>,
}

impl Default for Peers {
    fn default() -> Self {
        Self { channels: Mutex::new(LruCache::new(PEERS_MAX)) }
    }
}

impl Peers {
    /// The channel to `address`; it connects at first use.
    ///
    /// # Errors
    /// The address is malformed.
    pub fn channel(&self, address: &str) -> Result<Channel, RpcError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = transport::connect(address, CONNECT_TIMEOUT)
            .map_err(|e| RpcError::new(ErrorCode::InvalidArgument, e.to_string()))?;
        channels.put(address.to_owned(), channel.clone());
        Ok(channel)
    }
}
