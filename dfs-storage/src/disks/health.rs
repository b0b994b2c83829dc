//! When a disk is taken out, and when it comes back. Pure: the clock comes in.
//!
//! ```text
//!             it is gone, another one, or read-only: two probes in a row
//!   Working ──every probe for TOLERANCE says error ─────────────────────────► Out
//!      ▲      errors go on for SPREAD although probes go well                  │
//!      └────────────── probes go well for STEADY, after the hold ──────────────┘
//! ```
//!
//! One error condemns nothing: a cable that is loose for a moment, a path that fails over and a full queue give errors and pass.
//! What never passes by itself is told apart. A disk that is taken out again and again is held back longer each time.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::data_dir::Trouble;

/// Probes in a row that must find a disk gone.
const GONE_PROBES: u32 = 2;
/// How long every probe may fail. Longer than a path takes to fail over, and than what the simulation calls trouble.
const TOLERANCE: Duration = Duration::from_secs(10);
/// Probes that must fail in that time.
const FAILED_PROBES: u32 = 5;
/// Errors count in windows of this length,
const WINDOW: Duration = Duration::from_secs(10);
/// and so many of the last windows with one are too many for a disk that otherwise works: half of five minutes.
const BAD_WINDOWS: usize = 15;
const WINDOWS: u32 = 30;
/// How long probes must go well before it comes back.
const STEADY: Duration = Duration::from_secs(5);
/// Least time out; doubled each time, up to the most.
const HOLD: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));
/// After so long in use the hold begins at its least again.
const FORGIVEN: Duration = Duration::from_secs(24 * 3600);

/// What is to be done with a disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is to be taken out, for this reason.
    TakeOut(String),
    /// It may come back.
    BringBack,
}

/// What is known of the health of a disk.
#[derive(Debug)]
pub(super) struct Health {
    works: bool,
    since: Instant,
    hold: Duration,
    /// Since when probes have gone well or badly without a break, and how many.
    well_since: Option<Instant>,
    bad_since: Option<Instant>,
    bad_probes: u32,
    gone_probes: u32,
    windows: VecDeque<Instant>,
}

impl Health {
    pub(super) fn new(works: bool, now: Instant) -> Self {
        Self {
            works,
            since: now,
            hold: HOLD.0,
            well_since: None,
            bad_since: None,
            bad_probes: 0,
            gone_probes: 0,
            windows: VecDeque::new(),
        }
    }

    /// Somebody met an error.
    pub(super) fn error(&mut self, now: Instant) {
        if self.windows.back().is_none_or(|start| now.saturating_duration_since(*start) >= WINDOW) {
            self.windows.push_back(now);
        }
        while self.windows.front().is_some_and(|start| now.saturating_duration_since(*start) > WINDOW * WINDOWS) {
            self.windows.pop_front();
        }
    }

    /// A probe said so. Gives what follows, once; the caller does it, and the next probe finds it done.
    pub(super) fn probed(&mut self, probed: Result<(), Trouble>, now: Instant) -> Option<Verdict> {
        match probed {
            Ok(()) | Err(Trouble::Full) => self.went_well(now),
            Err(Trouble::Gone(reason)) => {
                self.gone_probes += 1;
                self.went_badly(now, reason)
            }
            Err(Trouble::Error(reason)) => {
                self.gone_probes = 0;
                self.went_badly(now, reason)
            }
        }
    }

    fn went_well(&mut self, now: Instant) -> Option<Verdict> {
        (self.bad_since, self.bad_probes, self.gone_probes) = (None, 0, 0);
        let well_since = *self.well_since.get_or_insert(now);
        if self.works {
            if now.saturating_duration_since(self.since) >= FORGIVEN {
                self.hold = HOLD.0;
            }
            let too_many = self.windows.len() >= BAD_WINDOWS;
            return too_many.then(|| self.out(now, "it gives errors again and again".into()));
        }
        let is_steady = now.saturating_duration_since(well_since) >= STEADY;
        let is_held = now.saturating_duration_since(self.since) < self.hold;
        (is_steady && !is_held).then(|| {
            (self.works, self.since, self.hold) = (true, now, (self.hold * 2).min(HOLD.1));
            Verdict::BringBack
        })
    }

    fn went_badly(&mut self, now: Instant, reason: String) -> Option<Verdict> {
        self.well_since = None;
        self.bad_probes += 1;
        let bad_since = *self.bad_since.get_or_insert(now);
        if !self.works {
            return None;
        }
        let lasted = now.saturating_duration_since(bad_since) >= TOLERANCE && self.bad_probes >= FAILED_PROBES;
        (self.gone_probes >= GONE_PROBES || lasted).then(|| self.out(now, reason))
    }

    fn out(&mut self, now: Instant, reason: String) -> Verdict {
        (self.works, self.since, self.well_since) = (false, now, None);
        self.windows.clear();
        Verdict::TakeOut(reason)
    }

    /// It could not be brought back after all.
    pub(super) fn stays_out(&mut self, now: Instant) {
        (self.works, self.since, self.well_since) = (false, now, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn error() -> Result<(), Trouble> {
        Err(Trouble::Error("EIO".into()))
    }

    fn gone() -> Result<(), Trouble> {
        Err(Trouble::Gone("read-only".into()))
    }

    #[test]
    fn one_error_condemns_nothing_and_lasting_ones_do() {
        let start = Instant::now();
        let mut health = Health::new(true, start);
        for second in 0..9 {
            health.error(start + SECOND * second);
            assert_eq!(health.probed(error(), start + SECOND * second), None);
        }
        assert_eq!(health.probed(Ok(()), start + SECOND * 9), None, "it has passed");
        let again = start + SECOND * 20;
        let verdicts: Vec<_> = (0..12).map(|second| health.probed(error(), again + SECOND * second)).collect();
        assert_eq!(verdicts.iter().position(Option::is_some), Some(10));
        assert_eq!(verdicts[10], Some(Verdict::TakeOut("EIO".into())));
        assert_eq!(verdicts[11], None, "once");
    }

    #[test]
    fn few_probes_over_a_long_time_are_not_enough() {
        let start = Instant::now();
        let mut health = Health::new(true, start);
        for n in 0..FAILED_PROBES - 1 {
            assert_eq!(health.probed(error(), start + SECOND * 60 * n), None);
        }
    }

    #[test]
    fn what_does_not_pass_by_itself_is_out_at_the_second_look_and_full_is_no_failure() {
        let start = Instant::now();
        let mut health = Health::new(true, start);
        assert_eq!(health.probed(gone(), start), None);
        assert_eq!(health.probed(gone(), start + SECOND), Some(Verdict::TakeOut("read-only".into())));
        let mut health = Health::new(true, start);
        for second in 0..100 {
            assert_eq!(health.probed(Err(Trouble::Full), start + SECOND * second), None);
        }
    }

    #[test]
    fn it_comes_back_when_it_is_steady_and_later_each_time() {
        let start = Instant::now();
        let (mut health, mut now, mut outs) = (Health::new(true, start), start, Vec::new());
        for _ in 0..3 {
            assert_eq!(health.probed(gone(), now), None);
            now += SECOND;
            assert!(matches!(health.probed(gone(), now), Some(Verdict::TakeOut(_))));
            let out = now;
            while health.probed(Ok(()), now) != Some(Verdict::BringBack) {
                now += SECOND;
            }
            outs.push((now - out).as_secs());
            now += SECOND;
        }
        assert_eq!(outs, [5, 10, 20]);
    }

    #[test]
    fn errors_that_go_on_while_probes_go_well_are_too_many_at_some_time() {
        let start = Instant::now();
        let mut health = Health::new(true, start);
        let mut out = None;
        for second in 0..400_u32 {
            let now = start + SECOND * second;
            if second % 10 == 0 {
                health.error(now);
            }
            if health.probed(Ok(()), now).is_some() {
                out = Some(second);
                break;
            }
        }
        assert_eq!(out, Some(140));
        // A few now and then are not.
        let mut health = Health::new(true, start);
        for minute in 0..300_u32 {
            health.error(start + SECOND * 60 * minute);
            assert_eq!(health.probed(Ok(()), start + SECOND * 60 * minute), None);
        }
    }
}
