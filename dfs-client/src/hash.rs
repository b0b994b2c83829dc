//! Checksums off the runtime threads.
//!
//! SHA-256 of a 4 MiB chunk takes about 2 ms. Small inputs are hashed where they are: handing them over costs more.

use std::sync::Arc;

use bytes::Bytes;
use dfs_common::checksum;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

/// Inputs up to this many bytes are hashed at once: 17 us of SHA-256, about what a switch to another thread costs.
const INLINE_BYTES: usize = 32 << 10;

/// Checksums of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) sha256: [u8; 32],
    pub(crate) block_crcs: Vec<u32>,
}

/// Bounds how many chunks are hashed at a time.
#[derive(Debug)]
pub(crate) struct Hashing {
    slots: Arc<Semaphore>,
}

impl Hashing {
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { slots: Arc::new(Semaphore::new(cores.clamp(2, 8))) }
    }

    /// Both checksums of a chunk that enters.
    pub(crate) async fn sums(&self, data: &Bytes) -> Sums {
        let work = |data: &[u8]| Sums { sha256: checksum::sha256(data), block_crcs: checksum::block_crcs(data) };
        if data.len() <= INLINE_BYTES {
            return work(data);
        }
        let data = data.clone();
        self.elsewhere(move || work(&data)).await
    }

    /// SHA-256 of bytes that came in pieces.
    pub(crate) async fn sha256(&self, pieces: &[Bytes]) -> [u8; 32] {
        let work = |pieces: &[Bytes]| {
            let mut hash = Sha256::new();
            pieces.iter().for_each(|piece| hash.update(piece));
            <[u8; 32]>::from(hash.finalize())
        };
        if pieces.iter().map(Bytes::len).sum::<usize>() <= INLINE_BYTES {
            return work(pieces);
        }
        let pieces = pieces.to_vec();
        self.elsewhere(move || work(&pieces)).await
    }

    async fn elsewhere<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let permit = self.slots.clone().acquire_owned().await.expect("never closed");
        let task = dfs_proto::machine::spawn_blocking(move || {
            let out = work();
            drop(permit);
            out
        });
        match task.await {
            Ok(out) => out,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is shutting down: nobody will ask for the outcome.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn inline_and_elsewhere_agree() {
        let hashing = Hashing::new();
        for len in [0, INLINE_BYTES, INLINE_BYTES + 1] {
            let data = Bytes::from(vec![7; len]);
            let sums = hashing.sums(&data).await;
            assert_eq!(sums.sha256, checksum::sha256(&data));
            let half = data.len() / 2;
            assert_eq!(hashing.sha256(&[data.slice(..half), data.slice(half..)]).await, sums.sha256);
        }
    }
}
