//! When a fetch is slow enough to ask another replica too.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// Fetches up to this many bytes count as small.
const SMALL_BYTES: usize = 256 << 10;
/// Latencies remembered of each class.
const REMEMBERED: usize = 64;
/// No hedge before this: below it the second request costs more than it saves.
const HEDGE_MIN: Duration = Duration::from_millis(50);
/// Hedge at the latest, whatever was measured.
const HEDGE_MAX: Duration = Duration::from_secs(2);
/// Multiple of the 95th percentile.
const FACTOR: u32 = 4;
/// A hedge costs this many fetches: at most one request in ten is a hedge, so that an overloaded cluster is not loaded
/// twice.
const HEDGE_COST: u32 = 10;
/// Hedges that may be saved up.
const HEDGES_SAVED: u32 = 16;

/// Recent latencies of fetches from storage nodes.
#[derive(Debug)]
pub(crate) struct Latencies {
    small: Mutex<Ring>,
    large: Mutex<Ring>,
    credit: AtomicU32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { small: Mutex::default(), large: Mutex::default(), credit: AtomicU32::new(HEDGES_SAVED * HEDGE_COST) }
    }
}

#[derive(Debug, Default)]
struct Ring {
    last: Vec<Duration>,
    at: usize,
    p95: Duration,
}

impl Latencies {
    fn ring(&self, bytes: usize) -> std::sync::MutexGuard<'_, Ring> {
        let ring = if bytes <= SMALL_BYTES { &self.small } else { &self.large };
        ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A fetch of `bytes` took this long.
    pub(crate) fn note(&self, bytes: usize, took: Duration) {
        let _ = self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |credit| {
            (credit < HEDGES_SAVED * HEDGE_COST).then_some(credit + 1)
        });
        self.ring(bytes).note(took);
    }

    /// How long to wait for an answer before another replica is asked too.
    pub(crate) fn hedge_after(&self, bytes: usize) -> Duration {
        (self.ring(bytes).p95 * FACTOR).clamp(HEDGE_MIN, HEDGE_MAX)
    }

    /// Whether a hedge may be sent now.
    pub(crate) fn may_hedge(&self) -> bool {
        let spend = |credit: u32| credit.checked_sub(HEDGE_COST);
        self.credit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend).is_ok()
    }
}

impl Ring {
    fn note(&mut self, took: Duration) {
        if self.last.len() < REMEMBERED {
            self.last.push(took);
        } else {
            self.last[self.at] = took;
        }
        self.at = (self.at + 1) % REMEMBERED;
        // Sorting 64 numbers for each fetch would be waste; every eighth is enough.
        if self.at.is_multiple_of(8) {
            let mut sorted = self.last.clone();
            sorted.sort_unstable();
            self.p95 = sorted[(sorted.len() * 95 / 100).min(sorted.len() - 1)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_follows_the_slow_tail_and_hedges_are_rationed() {
        let latencies = Latencies::default();
        assert_eq!(latencies.hedge_after(1), HEDGE_MIN);
        (0..64).for_each(|_| latencies.note(1, Duration::from_millis(100)));
        assert_eq!(latencies.hedge_after(1), Duration::from_millis(400));
        assert_eq!(latencies.hedge_after(1 << 20), HEDGE_MIN, "another class");
        assert_eq!((0..1000).filter(|_| latencies.may_hedge()).count(), HEDGES_SAVED as usize);
        (0..10).for_each(|_| latencies.note(1, Duration::from_millis(1)));
        assert!(latencies.may_hedge() && !latencies.may_hedge());
    }
}
