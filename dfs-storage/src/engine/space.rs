//! How much may still be written.
//!
//! Used bytes and chunks are counted at start and kept in memory, so that asking costs one statvfs. What is being written is
//! reserved, so that many writers at once cannot overshoot together.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::EngineError;

/// Largest default reserve, bytes: enough for logs and directories of any node.
const RESERVE_MAX: u64 = 1 << 30;

/// Space and chunks of an engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Bytes of chunks this node could hold: what it holds and what is available.
    pub capacity_bytes: u64,
    /// Bytes of chunk files.
    pub used_bytes: u64,
    /// Bytes that may still be written.
    pub available_bytes: u64,
    /// Chunks.
    pub chunks: u64,
}

/// Counters and limits of one data directory.
#[derive(Debug)]
pub(super) struct Space {
    dir: PathBuf,
    /// Most bytes of chunks, `None` for the whole file system.
    capacity: Option<u64>,
    /// Bytes of the file system left free, `None` for the default.
    reserve: Option<u64>,
    /// Data directories of this node on the file system.
    share: u64,
    used: AtomicU64,
    chunks: AtomicU64,
    reserved: AtomicU64,
}

impl Space {
    pub(super) fn new(dir: PathBuf, capacity: Option<u64>, reserve: Option<u64>, share: u64) -> Self {
        let share = share.max(1);
        Self {
            dir,
            capacity,
            reserve,
            share,
            used: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
        }
    }

    pub(super) fn add(&self, bytes: u64, chunks: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.chunks.fetch_add(chunks, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: u64, chunks: u64) {
        // Files that a person deleted by hand were counted at start or not at all: never wrap below zero.
        let sub = |value: &AtomicU64, by: u64| {
            let _ = value.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(by)));
        };
        sub(&self.used, bytes);
        sub(&self.chunks, chunks);
    }

    /// Chunks and their bytes.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.chunks.load(Ordering::Relaxed), self.used.load(Ordering::Relaxed))
    }

    pub(super) fn usage(&self) -> io::Result<Usage> {
        let disk = fs4::statvfs(&self.dir)?;
        let used = self.used.load(Ordering::Relaxed);
        let capacity = self.capacity.unwrap_or(disk.total_space());
        let reserve = self.reserve.unwrap_or(RESERVE_MAX.min(capacity / 100));
        let free = (disk.available_space() / self.share).min(capacity.saturating_sub(used)).saturating_sub(reserve);
        Ok(Usage {
            capacity_bytes: used + free,
            used_bytes: used,
            available_bytes: free.saturating_sub(self.reserved.load(Ordering::Relaxed)),
            chunks: self.chunks.load(Ordering::Relaxed),
        })
    }

    /// Sets `bytes` aside for a write.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, EngineError> {
        let usage = self.usage().map_err(|e| EngineError::io("ask for free space of", &self.dir, e))?;
        if usage.available_bytes < bytes {
            return Err(EngineError::NoSpace {
                path: self.dir.clone(),
                wanted: bytes,
                available: usage.available_bytes,
            });
        }
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
        Ok(Reservation { space: self.clone(), bytes })
    }
}

/// Bytes set aside until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_count_until_they_end() {
        let dir = tempfile::tempdir().expect("tmp");
        let space = Arc::new(Space::new(dir.path().into(), Some(1000), Some(100), 1));
        let first = space.reserve(600).expect("fits");
        assert!(matches!(space.reserve(400), Err(EngineError::NoSpace { available: 300, .. })));
        drop(first);
        space.add(500, 1);
        let usage = space.usage().expect("usage");
        assert_eq!((usage.available_bytes, usage.capacity_bytes, usage.chunks), (400, 900, 1));
        space.remove(900, 3);
        assert_eq!(space.usage().expect("usage").used_bytes, 0);
    }
}
