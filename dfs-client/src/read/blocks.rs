//! Random reads: verified 64 KiB blocks, a few of them kept.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Bytes, BytesMut};
use dfs_common::{ChunkId, ChunkRef, checksum::BLOCK_BYTES};
use lru::LruCache;

use super::{SMALL_BYTES, fetch::fetch, pieces::Pieces};
use crate::{Error, dfs::Shared};

/// Longer stretches are not kept: they would push out everything else.
const KEEP_BLOCKS_MAX: usize = 8;

/// Blocks of all files, the least recently used ones dropped first.
#[derive(Debug)]
pub(crate) struct BlockCache {
    blocks: Mutex<LruCache<(ChunkId, u32), Bytes>>,
}

impl BlockCache {
    pub(crate) fn new(bytes_max: u64) -> Self {
        let count = usize::try_from(bytes_max).unwrap_or(usize::MAX) / BLOCK_BYTES;
        Self { blocks: Mutex::new(LruCache::new(NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN))) }
    }

    fn get(&self, id: ChunkId, block: usize) -> Option<Bytes> {
        let block = u32::try_from(block).ok()?;
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner).get(&(id, block)).cloned()
    }

    /// Copies the blocks: a piece from the socket may keep much more memory alive than it shows.
    fn put(&self, id: ChunkId, first: usize, pieces: &Pieces) {
        let count = pieces.len().div_ceil(BLOCK_BYTES);
        for i in 0..count {
            let mut block = BytesMut::with_capacity(BLOCK_BYTES);
            let mut parts = Vec::new();
            pieces.slice(i * BLOCK_BYTES, BLOCK_BYTES.min(pieces.len() - i * BLOCK_BYTES), &mut parts);
            parts.iter().for_each(|part| block.extend_from_slice(part));
            let Ok(number) = u32::try_from(first + i) else { return };
            self.blocks.lock().unwrap_or_else(PoisonError::into_inner).put((id, number), block.freeze());
        }
    }
}

/// `len` verified bytes of a chunk from `at`; all of them lie within the chunk.
///
/// # Errors
/// No replica gave the true bytes within the deadline.
pub(crate) async fn fetch_blocks(
    shared: &Arc<Shared>,
    chunk: &ChunkRef,
    index: u64,
    at: usize,
    len: usize,
) -> Result<Vec<Bytes>, Error> {
    let chunk_len = chunk.length as usize;
    let (mut first, mut behind) = (at / BLOCK_BYTES, (at + len).div_ceil(BLOCK_BYTES));
    let mut out = Vec::new();
    // What is kept at the front and at the back need not be fetched.
    let slice = |block: &Bytes, number: usize, out: &mut Vec<Bytes>| {
        let start = at.saturating_sub(number * BLOCK_BYTES);
        let end = (at + len - number * BLOCK_BYTES).min(block.len());
        out.push(block.slice(start..end));
    };
    while first < behind
        && let Some(block) = shared.blocks.get(chunk.id, first)
    {
        slice(&block, first, &mut out);
        first += 1;
    }
    let mut tail = Vec::new();
    while first < behind
        && let Some(block) = shared.blocks.get(chunk.id, behind - 1)
    {
        behind -= 1;
        tail.push((behind, block));
    }
    if first < behind {
        // A small chunk is fetched whole: one call, checked by SHA-256.
        let (from, to) = match chunk_len <= SMALL_BYTES {
            true => (0, chunk_len),
            false => (first * BLOCK_BYTES, (behind * BLOCK_BYTES).min(chunk_len)),
        };
        let _grant = shared.budget.read((to - from) as u64);
        let pieces = fetch(shared, chunk, index, from, to - from).await?;
        if to - from <= KEEP_BLOCKS_MAX * BLOCK_BYTES {
            shared.blocks.put(chunk.id, from / BLOCK_BYTES, &pieces);
        }
        let start = at.max(first * BLOCK_BYTES);
        let end = (at + len).min(behind * BLOCK_BYTES);
        pieces.slice(start - from, end - start, &mut out);
    }
    for (number, block) in tail.iter().rev() {
        slice(block, *number, &mut out);
    }
    Ok(out)
}

/// All bytes of a chunk, verified by SHA-256.
///
/// # Errors
/// As [`fetch_blocks`].
pub(crate) async fn fetch_whole(shared: &Arc<Shared>, chunk: &ChunkRef, index: u64) -> Result<Vec<Bytes>, Error> {
    let _grant = shared.budget.read(chunk.length.into());
    Ok(fetch(shared, chunk, index, 0, chunk.length as usize).await?.into_inner())
}
