//! How many bytes may be in memory: of uploads, of copies from other nodes, of reads.
//!
//! Uploads and copies have budgets of their own because an upload here waits for a copy elsewhere: were both taken from one,
//! two nodes could wait for each other for ever. A copy waits only for its own disk, so it always ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use dfs_common::ErrorCode;
use dfs_proto::status::RpcError;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// How long a request waits for memory before it is refused.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Requests that may wait for memory, so that what the transport has taken over for them stays bounded too.
const WAITING_MAX: usize = 64;

/// A budget in bytes.
#[derive(Debug)]
pub struct Budget {
    permits: Arc<Semaphore>,
    total: usize,
    waiting: AtomicUsize,
    wait_max: Duration,
}

/// Bytes taken from a budget until it is dropped.
#[derive(Debug)]
pub struct Grant {
    _permit: OwnedSemaphorePermit,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Budget {
    /// A budget of `total` bytes.
    #[must_use]
    pub fn new(total: usize) -> Self {
        let total = total.clamp(1, u32::MAX as usize);
        Self { permits: Arc::new(Semaphore::new(total)), total, waiting: AtomicUsize::new(0), wait_max: WAIT_MAX }
    }

    /// Takes `bytes`; waits in order while they are not there. One request larger than the whole budget takes all of it.
    ///
    /// # Errors
    /// [`ErrorCode::Overloaded`] when too many wait already or it took too long.
    pub async fn take(&self, bytes: usize) -> Result<Grant, RpcError> {
        if let Some(grant) = self.try_take(bytes) {
            return Ok(grant);
        }
        let overloaded = || RpcError::new(ErrorCode::Overloaded, "no memory for this request within the deadline");
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(overloaded());
        }
        let _waiting = Waiting(&self.waiting);
        let permit = timeout(self.wait_max, self.permits.clone().acquire_many_owned(self.clamped(bytes))).await;
        permit.ok().and_then(Result::ok).map(|permit| Grant { _permit: permit }).ok_or_else(overloaded)
    }

    /// Takes `bytes` if they are there now.
    #[must_use]
    pub fn try_take(&self, bytes: usize) -> Option<Grant> {
        let permit = self.permits.clone().try_acquire_many_owned(self.clamped(bytes)).ok()?;
        Some(Grant { _permit: permit })
    }

    /// Whether somebody waits: then who holds bytes without progress must give them back sooner.
    #[must_use]
    pub fn contended(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    fn clamped(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.total)).expect("the total fits 32 bits")
    }
}

/// The budgets of a node.
#[derive(Debug)]
pub struct Budgets {
    /// Chunks that clients upload here.
    pub uploads: Budget,
    /// Chunks that other nodes copy here.
    pub copies: Budget,
    /// Chunks that are read here.
    pub reads: Budget,
}

impl Budgets {
    /// Divides `total` bytes: three eighths each for uploads and copies, the rest for reads.
    #[must_use]
    pub fn new(total: usize) -> Self {
        let part = total / 8 * 3;
        Self { uploads: Budget::new(part), copies: Budget::new(part), reads: Budget::new(total - 2 * part) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_in_order_and_gives_up() {
        let budget = Arc::new(Budget { wait_max: Duration::from_millis(200), ..Budget::new(10) });
        let first = budget.take(8).await.expect("free");
        let waiter = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(100).await }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(budget.contended());
        assert!(budget.try_take(3).is_none());
        drop(first);
        let all = waiter.await.expect("joins").expect("granted");
        let error = budget.take(1).await.expect_err("nothing left");
        assert_eq!(error.code, ErrorCode::Overloaded);
        drop(all);
        assert!(!budget.contended() && budget.try_take(10).is_some());
    }
}
