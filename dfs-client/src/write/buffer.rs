//! Memory that holds the bytes of one chunk while it is written, and the pool that keeps such memory warm.
//!
//! First-touch page faults cost more than the copy into the buffer, so buffers of full size are used again. A buffer of a
//! small file grows in steps: a 4 KiB file costs 4 KiB.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dfs_common::ChunkId;
use lru::LruCache;

use crate::budget::{Budget, Grant};

/// Steps in which a buffer grows, bytes; above the last one it gets the whole chunk size.
const STEPS: [usize; 4] = [4 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Idle memory of earlier buffers.
#[derive(Debug)]
pub(crate) struct BufferPool {
    idle: Mutex<Vec<Vec<u8>>>,
    bytes_max: u64,
}

impl BufferPool {
    pub(crate) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default(), bytes_max })
    }

    fn take(&self, capacity: usize) -> Vec<u8> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        match idle.iter().rposition(|vec| vec.capacity() >= capacity) {
            // Small buffers must not use up the big ones.
            Some(at) if idle[at].capacity() <= capacity.saturating_mul(2) => idle.swap_remove(at),
            _ => {
                drop(idle);
                Vec::with_capacity(capacity)
            }
        }
    }

    fn give(&self, mut vec: Vec<u8>) {
        vec.clear();
        // Small memory comes warm from the allocator anyway.
        if vec.capacity() <= STEPS[2] {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = idle.iter().map(Vec::capacity).sum();
        if (kept + vec.capacity()) as u64 <= self.bytes_max {
            idle.push(vec);
        }
    }
}

/// The bytes of a chunk that is being written, under a grant of the budget.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bytes: Vec<u8>,
    grant: Grant,
    pool: Arc<BufferPool>,
}

/// How much memory a buffer that must hold `len` bytes gets.
pub(crate) fn step(len: usize, chunk_size: usize) -> usize {
    STEPS.into_iter().find(|step| *step >= len).unwrap_or(chunk_size).min(chunk_size)
}

impl Buffer {
    /// An empty buffer for at least `capacity` bytes, which `grant` covers.
    pub(crate) fn new(pool: &Arc<BufferPool>, capacity: usize, grant: Grant) -> Self {
        Self { inner: Arc::new(Inner { bytes: pool.take(capacity), grant, pool: pool.clone() }) }
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.bytes.len()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.inner.bytes.capacity()
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.inner.bytes
    }

    /// The bytes for a reader or a transfer, without a copy; the buffer cannot be changed while they live.
    pub(crate) fn bytes(&self) -> Bytes {
        Bytes::from_owner(Shared(self.inner.clone()))
    }

    /// Whether nobody else looks at the bytes.
    pub(crate) fn is_unique(&self) -> bool {
        Arc::strong_count(&self.inner) == 1
    }

    /// Makes room for `len` bytes; `grant` covers what is added.
    pub(crate) fn grow(&mut self, capacity: usize, grant: Option<Grant>) {
        let Some(inner) = Arc::get_mut(&mut self.inner) else { return };
        if let Some(grant) = grant {
            inner.grant.merge(grant);
        }
        if inner.bytes.capacity() >= capacity {
            return;
        }
        let mut larger = inner.pool.take(capacity);
        larger.extend_from_slice(&inner.bytes);
        let smaller = std::mem::replace(&mut inner.bytes, larger);
        inner.pool.give(smaller);
    }

    /// Writes `data` at `at`; what lies between the end and `at` becomes zeros. Gives false if somebody else still looks
    /// at the bytes.
    pub(crate) fn write(&mut self, at: usize, data: &[u8]) -> bool {
        let Some(inner) = Arc::get_mut(&mut self.inner) else { return false };
        let bytes = &mut inner.bytes;
        if bytes.len() < at {
            bytes.resize(at, 0);
        }
        let overlap = data.len().min(bytes.len() - at);
        bytes[at..at + overlap].copy_from_slice(&data[..overlap]);
        bytes.extend_from_slice(&data[overlap..]);
        true
    }

    /// Cuts to `len` bytes. Gives false if somebody else still looks at the bytes.
    pub(crate) fn cut(&mut self, len: usize) -> bool {
        let Some(inner) = Arc::get_mut(&mut self.inner) else { return false };
        inner.bytes.truncate(len);
        true
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.bytes));
    }
}

struct Shared(Arc<Inner>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// Last chunks of files that were published while they were partly filled, so that the next append need not read them
/// back. Lost under pressure; then they are loaded.
#[derive(Debug)]
pub(crate) struct TailCache {
    state: Mutex<Tails>,
    bytes_max: u64,
}

#[derive(Debug)]
struct Tails {
    map: LruCache<ChunkId, Buffer>,
    bytes: u64,
}

impl TailCache {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { state: Mutex::new(Tails { map: LruCache::unbounded(), bytes: 0 }), bytes_max }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tails> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the bytes of a stored chunk. Its memory is moved from the budget to this cache's own share.
    pub(crate) fn put(&self, budget: &Arc<Budget>, id: ChunkId, mut buffer: Buffer) {
        let Some(inner) = Arc::get_mut(&mut buffer.inner) else { return };
        inner.grant = budget.forced(0);
        let size = buffer.capacity() as u64;
        let mut tails = self.lock();
        tails.bytes += size;
        tails.map.put(id, buffer);
        let mut evicted = Vec::new();
        while tails.bytes > self.bytes_max {
            let Some((_, old)) = tails.map.pop_lru() else { break };
            tails.bytes -= old.capacity() as u64;
            evicted.push(old);
        }
        drop(tails);
    }

    /// Takes the bytes of a chunk out, if they are here; their memory must be covered by `grant`.
    pub(crate) fn take(&self, id: ChunkId, grant: impl FnOnce(u64) -> Option<Grant>) -> Option<Buffer> {
        let mut tails = self.lock();
        let size = tails.map.peek(&id)?.capacity() as u64;
        let grant = grant(size)?;
        let mut buffer = tails.map.pop(&id)?;
        tails.bytes -= size;
        Arc::get_mut(&mut buffer.inner)?.grant = grant;
        Some(buffer)
    }

    /// `len` bytes of a chunk from `at`, if they are here.
    pub(crate) fn peek(&self, id: ChunkId, at: usize, len: usize) -> Option<Bytes> {
        self.lock().map.get(&id).map(|buffer| Bytes::copy_from_slice(&buffer.as_slice()[at..at + len]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_fill_gaps_and_respect_lookers() {
        let budget = Budget::new(1 << 20);
        let pool = BufferPool::new(8 << 20);
        let mut buffer = Buffer::new(&pool, 4096, budget.forced(4096));
        assert!(buffer.write(2, b"abc"));
        assert!(buffer.write(4, b"XY"));
        assert_eq!(buffer.as_slice(), b"\0\0abXY");
        let looker = buffer.bytes();
        assert!(!buffer.write(0, b"z") && !buffer.is_unique());
        drop(looker);
        assert!(buffer.write(0, b"z") && buffer.cut(1));
        assert_eq!(buffer.as_slice(), b"z");
        buffer.grow(1 << 20, Some(budget.forced((1 << 20) - 4096)));
        assert_eq!((buffer.as_slice(), budget.usage().0), (&b"z"[..], 1 << 20));
        drop(buffer);
        assert_eq!(budget.usage().0, 0);
        assert_eq!(pool.idle.lock().expect("lock").len(), 1, "big memory is kept");
        assert!(pool.take(4096).capacity() < 1 << 20, "a small file does not take it");
        assert_eq!(pool.take(1 << 20).capacity(), 1 << 20);
    }

    #[test]
    fn tails_are_bounded_and_leave_the_budget() {
        let budget = Budget::new(1 << 20);
        let pool = BufferPool::new(0);
        let tails = TailCache::new(8192);
        let id = |n| ChunkId([n; 32]);
        for n in 0..3 {
            let mut buffer = Buffer::new(&pool, 4096, budget.forced(4096));
            assert!(buffer.write(0, &[n]));
            tails.put(&budget, id(n), buffer);
        }
        assert_eq!(budget.usage().0, 0);
        assert!(tails.peek(id(0), 0, 1).is_none());
        let back = tails.take(id(2), |bytes| budget.try_write(bytes)).expect("still there");
        assert_eq!((back.as_slice(), budget.usage().0), (&[2][..], 4096));
        assert!(tails.take(id(1), |_| None).is_none(), "no memory, no buffer");
    }

    #[test]
    fn steps() {
        assert_eq!(step(1, 4 << 20), 4096);
        assert_eq!(step(4097, 4 << 20), 64 << 10);
        assert_eq!(step((1 << 20) + 1, 4 << 20), 4 << 20);
        assert_eq!(step(100_000, 64 << 10), 64 << 10);
    }
}
