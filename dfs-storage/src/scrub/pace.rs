//! How long a scrub pauses, and how fast it is. Pure: the clock comes in.
//!
//! After Garage's tranquilizer: a pause is so many times as long as an average step, so that the scrub takes a fixed part of what
//! the disk can do, whatever disk that is. Two things change it. While others use the disk the pauses are longer; and when the
//! time left does not suffice for what is left the pauses are shorter, down to none.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Weight of the newest step in the average: an eighth.
const WEIGHT: f64 = 0.125;
/// Pauses are this many times as long when every thread of the disk pool is busy.
const YIELD: f64 = 8.0;
/// The part of the time left that is planned with. The rest is for what comes in between.
const PLANNED: f64 = 0.8;
/// Longest pause: what is ordered, and the report, should not be older.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// The span that the rate is of.
const RATE_SPAN: Duration = Duration::from_secs(60);
/// Least time between two samples of it.
const SAMPLE_GAP: Duration = Duration::from_millis(500);

/// What a pass has left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// Chunks, estimated.
    pub(super) chunks: f64,
    /// Time; `None` if nothing depends on it.
    pub(super) time: Option<Duration>,
}

/// How fast a pass gets on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Rate {
    pub(super) bytes_per_s: f64,
    /// Part of the whole.
    pub(super) done_per_s: f64,
}

impl Rate {
    /// Time until a pass that has `done` is through.
    pub(super) fn eta(&self, done: f64) -> Option<Duration> {
        let seconds = (1.0 - done) / self.done_per_s;
        (self.done_per_s > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
    }
}

#[derive(Debug)]
pub(super) struct Pace {
    tranquility: f64,
    /// Seconds.
    average: Option<f64>,
    samples: VecDeque<(Instant, u64, f64)>,
}

impl Pace {
    pub(super) fn new(tranquility: f64) -> Self {
        Self { tranquility, average: None, samples: VecDeque::new() }
    }

    /// A step took so long.
    pub(super) fn step(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.average = Some(self.average.map_or(took, |average| average + (took - average) * WEIGHT));
    }

    /// How long to pause now; `busy` is the part of the disk's threads that others use, 0 to 1.
    pub(super) fn pause(&self, busy: f64, left: Left) -> Duration {
        let average = self.average.unwrap_or(0.0);
        let wanted = average * self.tranquility * (1.0 + (YIELD - 1.0) * busy.clamp(0.0, 1.0));
        let allowed = left
            .time
            .map_or(f64::INFINITY, |time| (time.as_secs_f64() * PLANNED / left.chunks.max(1.0) - average).max(0.0));
        Duration::try_from_secs_f64(wanted.min(allowed)).unwrap_or(PAUSE_MAX).min(PAUSE_MAX)
    }

    /// The pass has come so far.
    pub(super) fn sample(&mut self, now: Instant, bytes: u64, done: f64) {
        let is_new = self.samples.back().is_none_or(|(at, ..)| now.saturating_duration_since(*at) >= SAMPLE_GAP);
        if is_new {
            self.samples.push_back((now, bytes, done));
        }
        while self.samples.len() > 2
            && self.samples.front().is_some_and(|(at, ..)| now.saturating_duration_since(*at) > RATE_SPAN)
        {
            self.samples.pop_front();
        }
    }

    pub(super) fn forget_rate(&mut self) {
        self.samples.clear();
    }

    /// The rate over the last minute; `None` until there is one.
    pub(super) fn rate(&self, now: Instant) -> Option<Rate> {
        let (from, from_bytes, from_done) = self.samples.front()?;
        let (_, bytes, done) = self.samples.back()?;
        // To this moment, so that a scrub that stands still is seen to.
        let seconds = now.saturating_duration_since(*from).as_secs_f64();
        let bytes = bytes.saturating_sub(*from_bytes);
        (bytes > 0 && seconds > 0.0)
            .then(|| Rate { bytes_per_s: bytes as f64 / seconds, done_per_s: (done - from_done) / seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const FREE: Left = Left { chunks: 1000.0, time: None };

    fn paced(step: Duration) -> Pace {
        let mut pace = Pace::new(4.0);
        (0..50).for_each(|_| pace.step(step));
        pace
    }

    #[test]
    fn pauses_are_in_proportion_to_the_steps_and_longer_beside_others() {
        assert_eq!(Pace::new(4.0).pause(0.0, FREE), Duration::ZERO, "nothing is known yet");
        let pace = paced(10 * MS);
        assert_eq!(pace.pause(0.0, FREE).as_millis(), 40);
        assert_eq!(pace.pause(1.0, FREE).as_millis(), 320);
        assert!(pace.pause(0.5, FREE) > pace.pause(0.25, FREE));
        assert_eq!(paced(Duration::from_secs(100)).pause(0.0, FREE), PAUSE_MAX);
    }

    #[test]
    fn the_deadline_shortens_pauses_down_to_none() {
        let pace = paced(10 * MS);
        let left = |seconds| Left { chunks: 1000.0, time: Some(Duration::from_secs(seconds)) };
        assert_eq!(pace.pause(0.0, left(1000)).as_millis(), 40, "time enough");
        assert_eq!(pace.pause(1.0, left(25)).as_millis(), 10, "20 ms for each, also beside others");
        assert_eq!(pace.pause(0.0, left(10)), Duration::ZERO);
        assert_eq!(pace.pause(0.0, left(0)), Duration::ZERO, "overdue");
    }

    /// A whole pass with its pauses is done within its time, whatever others do, if the disk can do it at all.
    #[test]
    fn a_pass_ends_in_time() {
        for (busy, chunks, seconds) in [(0.0, 1000, 1000), (1.0, 1000, 100), (1.0, 100, 2), (0.5, 5000, 90)] {
            let (mut pace, mut left) = (Pace::new(4.0), Duration::from_secs(seconds));
            for n in 0..chunks {
                pace.step(10 * MS);
                let rest = Left { chunks: f64::from(chunks - n), time: Some(left) };
                left = left.checked_sub(10 * MS + pace.pause(busy, rest)).expect("in time");
            }
        }
    }

    #[test]
    fn the_rate_is_of_the_last_minute_and_tells_the_end() {
        let (t0, mut pace) = (Instant::now(), Pace::new(4.0));
        assert_eq!(pace.rate(t0), None);
        for second in 0..200_u32 {
            let factor = if second < 100 { 1 } else { 10 };
            let bytes = u64::from(second.min(100) + second.saturating_sub(100) * factor);
            pace.sample(t0 + Duration::from_secs(second.into()), bytes, bytes as f64 / 2000.0);
        }
        let rate = pace.rate(t0 + Duration::from_secs(199)).expect("there");
        assert!((rate.bytes_per_s - 10.0).abs() < 0.5, "{rate:?}");
        let eta = rate.eta(0.5).expect("told").as_secs();
        assert!((98..=102).contains(&eta), "{eta}");
        let still = pace.rate(t0 + Duration::from_secs(400)).expect("there");
        assert!(still.bytes_per_s < 3.0, "it stands still: {still:?}");
    }
}
