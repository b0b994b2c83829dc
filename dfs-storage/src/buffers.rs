//! Buffers of 1 MiB for reads that become [`Bytes`] without a copy and come back when the network is done with them, so that
//! a busy node neither allocates nor touches fresh memory.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dfs_proto::stream::MESSAGE_BYTES;

use crate::budget::Grant;

/// A pool of buffers; at most `free_max` unused ones are kept.
#[derive(Debug)]
pub struct BufferPool {
    free: Mutex<Vec<Box<[u8]>>>,
    free_max: usize,
}

/// A buffer to fill.
#[derive(Debug)]
pub struct Buffer {
    bytes: Option<Box<[u8]>>,
    length: usize,
    pool: Option<Arc<BufferPool>>,
    _held: Held,
}

/// What a buffer keeps alive besides itself: its memory grant and the mark of its stream.
#[derive(Debug)]
pub struct Held {
    /// Bytes of the budget; `None` for the one buffer that every stream may always have.
    pub grant: Option<Grant>,
    /// Counts the stream's buffers by its references.
    pub stream: Arc<()>,
}

impl BufferPool {
    /// A pool that keeps at most `free_max` unused buffers of 1 MiB.
    #[must_use]
    pub fn new(free_max: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), free_max })
    }

    /// A buffer of `length` bytes with any content. Up to 1 MiB comes from the pool if it is more than a quarter of that;
    /// for less a fresh allocation wastes less.
    #[must_use]
    pub fn take(self: &Arc<Self>, length: usize, held: Held) -> Buffer {
        if length > MESSAGE_BYTES || length <= MESSAGE_BYTES / 4 {
            let bytes = Some(vec![0; length].into_boxed_slice());
            return Buffer { bytes, length, pool: None, _held: held };
        }
        let bytes = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = bytes.unwrap_or_else(|| vec![0; MESSAGE_BYTES].into_boxed_slice());
        Buffer { bytes: Some(bytes), length, pool: Some(self.clone()), _held: held }
    }
}

impl Buffer {
    /// The bytes to fill.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes.as_mut().expect("taken only by drop")[..self.length]
    }

    /// The filled buffer, which returns to the pool when the last reference to it is dropped.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes.as_ref().expect("taken only by drop")[..self.length]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let (Some(pool), Some(bytes)) = (self.pool.take(), self.bytes.take()) {
            let mut free = pool.free.lock().unwrap_or_else(PoisonError::into_inner);
            if free.len() < pool.free_max {
                free.push(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_when_the_last_reference_goes() {
        let pool = BufferPool::new(1);
        let held = || Held { grant: None, stream: Arc::default() };
        let mut buffer = pool.take(MESSAGE_BYTES - 5, held());
        buffer.as_mut_slice()[0] = 7;
        let bytes = buffer.freeze();
        let part = bytes.slice(..1);
        drop(bytes);
        assert_eq!(pool.free.lock().expect("lock").len(), 0);
        assert_eq!(part[0], 7);
        drop(part);
        drop(pool.take(10, held()));
        assert_eq!(pool.free.lock().expect("lock").len(), 1);
    }
}
