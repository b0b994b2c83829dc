//! The client against fake metadata and storage nodes: real gRPC on loopback, faults on command.

mod cluster;
mod meta;
mod model;
mod read;
mod storage;
mod transfer;
mod write;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dfs_client::{Dfs, Options};

use crate::{
    meta::{Meta, MetaNode},
    storage::Storage,
};

/// Chunk size of the fake cluster, bytes: small, so that files have many chunks.
pub(crate) const CHUNK: u32 = 64 << 10;

/// A fake cluster.
pub(crate) struct Cluster {
    pub(crate) meta: Arc<Meta>,
    pub(crate) metas: Vec<MetaNode>,
    pub(crate) storage: Vec<Storage>,
}

impl Cluster {
    pub(crate) async fn start(metas: usize, storage: u32) -> Self {
        Self::with_chunk_size(metas, storage, CHUNK).await
    }

    pub(crate) async fn with_chunk_size(metas: usize, storage: u32, chunk_size: u32) -> Self {
        let registry = storage::Registry::default();
        let mut nodes = Vec::new();
        for id in 1..=storage {
            nodes.push(Storage::start(id, registry.clone()).await);
        }
        let meta = Meta::new(chunk_size, nodes.iter().map(|node| node.address()).collect());
        let mut listening = Vec::new();
        for number in 0..metas {
            listening.push(MetaNode::start(number, meta.clone()).await);
        }
        Self { meta, metas: listening, storage: nodes }
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            deadline: Duration::from_secs(5),
            rpc_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_millis(500),
            ..Options::new(self.metas.iter().map(|meta| meta.address.clone()).collect())
        }
    }

    pub(crate) async fn connect(&self) -> Dfs {
        Dfs::connect(self.options()).await.expect("connects")
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}
