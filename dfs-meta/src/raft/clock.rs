//! The cluster's time: the leader's wall clock, but it never runs backwards and never stands still.
//!
//! A leader whose clock is behind the last entry of its predecessor goes on from there, at half the speed of a clock, until its
//! own clock has caught up. So what is counted in cluster time (how long something is garbage, or in the trash) grows old under
//! every leader, and one clock that was wrong does not stay in the cluster for ever.

use std::{
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// The clock of one node.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Since when the wall clock has been behind, and the time of the cluster then.
    behind: Mutex<Option<(Instant, i64)>>,
}

impl Clock {
    /// Nanoseconds since the Unix epoch, not before `last_ns`.
    pub(crate) fn now_ns(&self, last_ns: i64) -> i64 {
        self.at(wall_ns(), Instant::now(), last_ns)
    }

    fn at(&self, wall_ns: i64, now: Instant, last_ns: i64) -> i64 {
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        let slow_ns = behind.map(|(since, base_ns)| {
            let passed = now.saturating_duration_since(since) / 2;
            base_ns.saturating_add(i64::try_from(passed.as_nanos()).unwrap_or(i64::MAX))
        });
        let last_ns = slow_ns.map_or(last_ns, |slow_ns| slow_ns.max(last_ns));
        if wall_ns >= last_ns {
            *behind = None;
            return wall_ns;
        }
        behind.get_or_insert((now, last_ns));
        last_ns
    }
}

fn wall_ns() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_clock_that_is_behind_goes_on_slowly_until_it_has_caught_up() {
        let (clock, start) = (Clock::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(clock.at(1000 * SECOND, at(0), 0), 1000 * SECOND);
        // The leader before was 100 s ahead.
        let mut last = 1100 * SECOND;
        for passed in [0, 10, 50, 199] {
            let wall = (1000 + i64::try_from(passed).expect("small")) * SECOND;
            let now = clock.at(wall, at(passed), last);
            assert_eq!(now, 1100 * SECOND + i64::try_from(passed).expect("small") * SECOND / 2);
            last = now;
        }
        assert_eq!(clock.at(1201 * SECOND, at(201), last), 1201 * SECOND, "from then on it is the wall clock again");
        assert_eq!(clock.at(1202 * SECOND, at(202), 0), 1202 * SECOND);
    }

    #[test]
    fn it_never_runs_backwards() {
        let (clock, start) = (Clock::default(), Instant::now());
        let mut last = 0;
        for (step, wall) in [(0, 1000), (1, 900), (2, 901), (3, 2000), (4, 100), (5, 5000)] {
            let now = clock.at(wall * SECOND, start + Duration::from_secs(step), last);
            assert!(now >= last, "step {step}");
            last = now;
        }
    }
}
