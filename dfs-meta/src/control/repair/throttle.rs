//! A token bucket over the bytes of planned jobs.
//!
//! A job may be planned while the bucket is not empty and then takes all its bytes, so the bucket may go below zero by one
//! chunk: that keeps the long-run rate exact whatever the chunks' sizes are.

use std::time::{Duration, Instant};

/// What may be saved up: the planner looks twice a second at least.
const BURST: Duration = Duration::from_secs(1);

/// The bucket.
#[derive(Debug)]
pub(super) struct Throttle {
    bytes_per_s: u64,
    tokens: f64,
    at: Instant,
}

impl Throttle {
    /// No limit, until [`Throttle::refill`] sets one.
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes_per_s: 0, tokens: 0.0, at: now }
    }

    /// Time has passed, and the rate may be another one; 0 is no limit.
    pub(super) fn refill(&mut self, bytes_per_s: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let rate = self.bytes_per_s as f64;
        if self.bytes_per_s != bytes_per_s {
            // What was saved or owed at the old rate says nothing about the new one.
            (self.bytes_per_s, self.tokens) = (bytes_per_s, 0.0);
        } else {
            self.tokens = (self.tokens + rate * passed).min(rate * BURST.as_secs_f64());
        }
        self.at = now;
    }

    /// Whether nothing may be planned now.
    pub(super) fn is_used_up(&self) -> bool {
        self.bytes_per_s > 0 && self.tokens <= 0.0
    }

    /// A job was planned.
    pub(super) fn spend(&mut self, length: u32) {
        if self.bytes_per_s > 0 {
            self.tokens -= f64::from(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_rate_holds_whatever_the_sizes(
            rate in 1_000..100_000_000u64,
            lengths in proptest::collection::vec(1..4_194_304u32, 1..50),
            step_ms in 1..500u64,
        ) {
            let start = Instant::now();
            let mut throttle = Throttle::new(start);
            let (mut now, mut spent, mut lengths) = (start, 0u64, lengths.into_iter().cycle());
            throttle.refill(rate, now);
            for _ in 0..400 {
                now += Duration::from_millis(step_ms);
                throttle.refill(rate, now);
                for _ in 0..10_000 {
                    if throttle.is_used_up() {
                        break;
                    }
                    let length = lengths.next().expect("a cycle");
                    throttle.spend(length);
                    spent += u64::from(length);
                }
            }
            let allowed = rate as f64 * (now - start).as_secs_f64();
            prop_assert!(spent as f64 <= allowed + 4_194_304.0, "{spent} of {allowed}");
            prop_assert!(spent as f64 >= (allowed - rate as f64).min(4e6), "{spent} of {allowed}");
        }
    }

    #[test]
    fn a_new_rate_is_in_force_at_once_and_none_is_no_limit() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        assert!(!throttle.is_used_up());
        throttle.refill(10, start);
        assert!(throttle.is_used_up());
        throttle.refill(10, start + Duration::from_secs(1));
        assert!(!throttle.is_used_up());
        throttle.spend(1_000_000);
        throttle.refill(10, start + Duration::from_secs(60));
        assert!(throttle.is_used_up());
        throttle.refill(0, start + Duration::from_secs(60));
        assert!(!throttle.is_used_up());
    }
}
