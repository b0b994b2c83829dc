//! Memory from other writers: an open chunk of a file that nobody writes to at the moment is sent before its time. It is loaded
//! back when it is written again, so this is done only when memory is short.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{Core, slot::Upload};

/// A writer that was not written to for this long is idle. Others are left alone until memory is exceeded by as much again: with
/// more streams than memory has chunks for, each would load back what the next one had sent.
const IDLE: Duration = Duration::from_secs(1);

/// All writers of a mount.
#[derive(Debug)]
pub(crate) struct Writers {
    begun: Instant,
    all: Mutex<Vec<Weak<Core>>>,
}

impl Writers {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), all: Mutex::default() }
    }

    pub(super) fn add(&self, core: &Arc<Core>) {
        self.note_use(core);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == all.capacity() {
            all.retain(|core| core.strong_count() > 0);
        }
        all.push(Arc::downgrade(core));
    }

    /// `core` is being written to.
    pub(super) fn note_use(&self, core: &Core) {
        core.used_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Those that were not written to for `least`, longest first.
    fn unused(&self, least: Duration) -> Vec<Arc<Core>> {
        let before = self.now_ms().saturating_sub(u64::try_from(least.as_millis()).unwrap_or(u64::MAX));
        let used = |core: &Arc<Core>| core.used_ms.load(Ordering::Relaxed);
        let mut found: Vec<_> = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).filter(|core| used(core) <= before).collect()
        };
        found.sort_by_cached_key(used);
        found
    }
}

impl Core {
    /// Sends an open chunk of another writer, and gives an upload of that writer, after which there is more memory. `None` if all
    /// that have memory are being used.
    pub(super) async fn spill(&self) -> Option<Arc<Upload>> {
        let shared = self.shared();
        let least = if shared.budget.is_far_exceeded() { Duration::ZERO } else { IDLE };
        for other in shared.writers.unused(least) {
            // A locked state, as our own, is one that is being used.
            let Ok(mut state) = other.state.try_lock() else { continue };
            if other.check().is_err() {
                continue;
            }
            state.slots.reap();
            if state.slots.any_sending().is_none() {
                let Some(index) = state.slots.oldest_open(None) else { continue };
                if let Err(error) = other.send(&mut state, index).await {
                    other.fail(error);
                    continue;
                }
            }
            if let Some((_, upload)) = state.slots.any_sending() {
                return Some(upload);
            }
        }
        None
    }
}
