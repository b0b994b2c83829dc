//! One memory budget for the write buffers and read windows of all open files.
//!
//! Invariants: the bytes granted never exceed the budget by more than the forced grants, and a forced grant is made only to
//! a holder that has none (the first buffer of a writer, the part a reader waits for), so nothing can deadlock. When nothing is
//! left, writers that are idle give theirs up, and all others too once the excess is as large as the budget, so that the excess
//! does not grow with the number of open files. A quarter is kept for reads.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Granularity: permits of a semaphore are counted in 32 bits.
const UNIT_BYTES: u64 = 4 << 10;

#[derive(Debug)]
pub(crate) struct Budget {
    total: Arc<Semaphore>,
    /// What writers may have of it.
    writes: Arc<Semaphore>,
    total_units: u32,
    write_units: u32,
    granted: AtomicU64,
    peak: AtomicU64,
}

/// Granted bytes; dropping gives them back.
#[derive(Debug)]
pub(crate) struct Grant {
    budget: Arc<Budget>,
    permits: Vec<OwnedSemaphorePermit>,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        let total_units = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX >> 4).clamp(4, u32::MAX >> 4);
        let write_units = total_units - total_units / 4;
        let semaphore = |units: u32| Arc::new(Semaphore::new(units as usize));
        Arc::new(Self {
            total: semaphore(total_units),
            writes: semaphore(write_units),
            total_units,
            write_units,
            granted: AtomicU64::new(0),
            peak: AtomicU64::new(0),
        })
    }

    /// Bytes granted now, and at most so far.
    pub(crate) fn usage(&self) -> (u64, u64) {
        (self.granted.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed))
    }

    fn grant(self: &Arc<Self>, permits: Vec<OwnedSemaphorePermit>, bytes: u64) -> Grant {
        let granted = self.granted.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(granted, Ordering::Relaxed);
        Grant { budget: self.clone(), permits, bytes }
    }

    /// For a reader, if there is room.
    pub(crate) fn try_read(self: &Arc<Self>, bytes: u64) -> Option<Grant> {
        let permit = self.total.clone().try_acquire_many_owned(units(bytes, self.total_units)).ok()?;
        Some(self.grant(vec![permit], bytes))
    }

    /// For the part a reader cannot do without.
    pub(crate) fn read(self: &Arc<Self>, bytes: u64) -> Grant {
        self.try_read(bytes).unwrap_or_else(|| self.forced(bytes))
    }

    /// For a writer, if there is room.
    pub(crate) fn try_write(self: &Arc<Self>, bytes: u64) -> Option<Grant> {
        let write = self.writes.clone().try_acquire_many_owned(units(bytes, self.write_units)).ok()?;
        let total = self.total.clone().try_acquire_many_owned(units(bytes, self.total_units)).ok()?;
        Some(self.grant(vec![write, total], bytes))
    }

    /// For a writer; waits for room.
    pub(crate) async fn write(self: &Arc<Self>, bytes: u64) -> Grant {
        let write = self.writes.clone().acquire_many_owned(units(bytes, self.write_units)).await;
        let total = self.total.clone().acquire_many_owned(units(bytes, self.total_units)).await;
        let permits = [write, total].into_iter().map(|permit| permit.expect("the semaphores are never closed"));
        self.grant(permits.collect(), bytes)
    }

    /// Whether twice the budget is granted.
    pub(crate) fn is_far_exceeded(&self) -> bool {
        self.granted.load(Ordering::Relaxed) >= 2 * u64::from(self.total_units) * UNIT_BYTES
    }

    /// In excess of the budget.
    pub(crate) fn forced(self: &Arc<Self>, bytes: u64) -> Grant {
        self.grant(vec![], bytes)
    }
}

fn units(bytes: u64, max: u32) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(max).min(max)
}

impl Grant {
    /// Takes `other` into this one.
    pub(crate) fn merge(&mut self, mut other: Self) {
        self.permits.append(&mut other.permits);
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.budget.granted.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn writers_leave_a_quarter_to_readers() {
        let budget = Budget::new(64 << 10);
        let write = budget.try_write(48 << 10).expect("three quarters");
        assert!(budget.try_write(1).is_none());
        let read = budget.try_read(16 << 10).expect("the rest");
        assert!(budget.try_read(1).is_none());
        assert_eq!(budget.usage(), (64 << 10, 64 << 10));
        drop((write, read));
        assert_eq!(budget.usage().0, 0);
    }

    #[tokio::test]
    async fn a_waiting_writer_gets_what_is_given_back() {
        let budget = Budget::new(64 << 10);
        let mut first = budget.write(8 << 10).await;
        first.merge(budget.write(40 << 10).await);
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.write(4 << 10).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.expect("granted");
        // More than everything is capped, not refused for ever.
        drop(budget.write(1 << 40).await);
        assert_eq!(budget.usage().0, 0);
    }
}
