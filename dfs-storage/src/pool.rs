//! Where disk work runs: a bounded number of threads beside the runtime's own.

use std::sync::Arc;

use dfs_common::ErrorCode;
use dfs_proto::status::RpcError;
use tokio::sync::Semaphore;

/// Runs blocking work on tokio's blocking threads, at most so many at once; the rest waits in order. A cloned pool is the
/// same pool.
#[derive(Clone, Debug)]
pub struct DiskPool {
    permits: Arc<Semaphore>,
    threads: usize,
}

impl DiskPool {
    /// A pool of `threads` threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        Self { permits: Arc::new(Semaphore::new(threads)), threads }
    }

    /// The part of its threads that is in use, 0 to 1.
    #[must_use]
    pub fn busy(&self) -> f64 {
        1.0 - self.permits.available_permits() as f64 / self.threads as f64
    }

    /// Runs `work`. A caller that goes away does not stop work that has begun.
    ///
    /// # Errors
    /// The work panicked ([`ErrorCode::Internal`]) or the process is ending ([`ErrorCode::Unavailable`]).
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, RpcError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| ending())?;
        let task = dfs_proto::machine::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        task.await.map_err(|error| {
            if error.is_panic() {
                tracing::error!("disk work panicked: this is a defect of dfs");
                RpcError::new(ErrorCode::Internal, "disk work panicked")
            } else {
                ending()
            }
        })
    }
}

fn ending() -> RpcError {
    RpcError::new(ErrorCode::Unavailable, "the storage node is shutting down")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_frees_its_place() {
        let pool = DiskPool::new(1);
        let error = pool.run(|| panic!("boom")).await.map(|(): ()| ()).expect_err("panicked");
        assert_eq!(error.code, ErrorCode::Internal);
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }
}
