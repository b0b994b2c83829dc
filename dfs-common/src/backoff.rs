//! Exponential backoff with full jitter.
//!
//! Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: a uniform draw from the whole
//! interval spreads retries of many clients best. A tenth of the interval is kept as a floor, so that a lone client does
//! not spin.

use std::time::Duration;

use rand::Rng;

/// Shape of a retry schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Upper bound of the first delay.
    pub initial: Duration,
    /// Upper bound of every delay.
    pub max: Duration,
}

impl Default for Policy {
    /// 100 ms to 5 s.
    fn default() -> Self {
        Self { initial: Duration::from_millis(100), max: Duration::from_secs(5) }
    }
}

/// State of one retry loop.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: Policy,
    attempt: u32,
}

impl Backoff {
    /// A loop that has not failed yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, attempt: 0 }
    }

    /// How many delays were drawn.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempt
    }

    /// The next delay, drawn with `rng`.
    pub fn next_delay<R: Rng + ?Sized>(&mut self, rng: &mut R) -> Duration {
        let ceiling = self.policy.initial.saturating_mul(1 << self.attempt.min(20)).min(self.policy.max);
        self.attempt = self.attempt.saturating_add(1);
        let floor = ceiling / 10;
        floor + (ceiling - floor).mul_f64(rng.random::<f64>())
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn delays_grow_and_stay_within_bounds() {
        let policy = Policy { initial: Duration::from_millis(100), max: Duration::from_secs(1) };
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(policy);
        for attempt in 0..100 {
            let delay = backoff.next_delay(&mut rng);
            let ceiling = (policy.initial * (1 << attempt.min(10))).min(policy.max);
            assert!(delay <= ceiling && delay >= ceiling / 10, "attempt {attempt}: {delay:?}");
        }
    }
}
