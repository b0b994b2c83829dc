//! How fast copies are made, over a sliding window, and how long the rest will take. Pure.
//!
//! A small chunk costs more than its bytes: opening, syncing and naming a file, an answer, a record. So the time that is left
//! is judged by *effort*: the bytes and a fixed amount for each chunk.
//!
//! A repair gets up to speed in its first moments: connections, the first jobs of each node, the memory that has to be found. So
//! a young one is judged by the later part of what it has done, and goes on a little faster than that.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// What is looked back at. Long enough to even out the bursts of results, short enough to follow a changed limit.
const WINDOW: Duration = Duration::from_secs(10);
/// The same for a young repair, at least.
const WINDOW_MIN: Duration = Duration::from_millis(300);
/// Results by which the later part of a young repair can be judged; with fewer of them all of it counts.
const RECENT_MIN: usize = 4;
/// Results within this time are counted together.
const STEP: Duration = Duration::from_millis(20);
/// Without a result for this long the repair has stopped, and the next one is measured afresh.
const IDLE: Duration = Duration::from_secs(5);
/// What the rest of a repair that has just begun is made faster than what was, as measured over repairs of one to four seconds. Less
/// with its age, nothing once it is older than [`WINDOW`].
const GAIN: f64 = 0.15;
/// Bytes that could be copied in the time that a chunk costs beside its bytes.
const CHUNK_EFFORT_BYTES: u64 = 128 << 10;

#[derive(Clone, Copy, Debug)]
struct Step {
    at: Instant,
    chunks: u64,
    bytes: u64,
}

/// Results of the last moments.
#[derive(Debug, Default)]
pub struct Progress {
    /// When the present repair began.
    began: Option<Instant>,
    last: Option<Instant>,
    steps: VecDeque<Step>,
    /// Since it began.
    made: Made,
    /// Something was made since it began and its end was not told yet.
    untold: bool,
}

/// What a repair has made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Copies.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// From the first job to the last result.
    pub took: Duration,
}

/// How fast it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Copies a second.
    pub chunks_per_s: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
}

impl Progress {
    /// A job was planned: if none was under way, a repair begins.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) > IDLE) {
            (self.began, self.last) = (Some(now), Some(now));
            (self.made, self.untold) = (Made::default(), false);
            self.steps.clear();
        }
    }

    /// A copy was made.
    pub(super) fn note(&mut self, bytes: u32, now: Instant) {
        self.begin(now);
        self.last = Some(now);
        self.untold = true;
        self.made.chunks += 1;
        self.made.bytes += u64::from(bytes);
        self.made.took = now.saturating_duration_since(self.began.unwrap_or(now));
        match self.steps.back_mut() {
            Some(step) if now.saturating_duration_since(step.at) < STEP => {
                step.chunks += 1;
                step.bytes += u64::from(bytes);
            }
            _ => self.steps.push_back(Step { at: now, chunks: 1, bytes: bytes.into() }),
        }
        while self.steps.front().is_some_and(|step| now.saturating_duration_since(step.at) > WINDOW) {
            self.steps.pop_front();
        }
    }

    /// Nothing lacks any more: what the repair that has ended so made, once.
    pub(in crate::control) fn end(&mut self) -> Option<Made> {
        let ended = std::mem::take(&mut self.untold).then_some(self.made);
        if ended.is_some() {
            (self.began, self.last) = (None, None);
        }
        ended
    }

    /// The rate over the window, from its first result on: before that the jobs were on their way to their nodes. Nothing when
    /// the repair has stopped.
    #[must_use]
    pub fn rate(&self, now: Instant) -> Rate {
        let (Some(began), Some(last)) = (self.began, self.last) else { return Rate::default() };
        if now.saturating_duration_since(last) > IDLE {
            return Rate::default();
        }
        let age = now.saturating_duration_since(began);
        let within = |window| self.steps.iter().filter(move |step| now.saturating_duration_since(step.at) <= window);
        let recent = (age * 3 / 5).clamp(WINDOW_MIN, WINDOW);
        let window = if within(recent).count() >= RECENT_MIN { recent } else { WINDOW };
        let mut steps = within(window).peekable();
        let (first, count) = (steps.peek().map(|step| step.at), steps.clone().count());
        // What the first result tells took from before it, so it does not count, as soon as there are enough others to go by.
        let since = began.max(now.checked_sub(window).unwrap_or(began));
        let (skipped, from) = if count > 2 { (1, first.unwrap_or(since)) } else { (0, since) };
        let (chunks, bytes) =
            steps.skip(skipped).fold((0, 0), |(chunks, bytes), step| (chunks + step.chunks, bytes + step.bytes));
        let span = now.saturating_duration_since(from).min(window).max(STEP).as_secs_f64();
        Rate { chunks_per_s: chunks as f64 / span, bytes_per_s: bytes as f64 / span }
    }

    /// Time until `chunks` copies of `bytes` together are made at the present rate; `None` while nothing moves.
    #[must_use]
    pub fn eta(&self, chunks: u64, bytes: u64, now: Instant) -> Option<Duration> {
        if chunks == 0 {
            return Some(Duration::ZERO);
        }
        let rate = self.rate(now);
        let age = now.saturating_duration_since(self.began.unwrap_or(now));
        let gain = 1.0 + GAIN * (1.0 - age.min(WINDOW).div_duration_f64(WINDOW));
        let per_s = (rate.bytes_per_s + rate.chunks_per_s * CHUNK_EFFORT_BYTES as f64) * gain;
        let left = bytes as f64 + chunks as f64 * CHUNK_EFFORT_BYTES as f64;
        // A century is as good as never, and a duration has an end.
        (per_s > 0.0).then(|| Duration::from_secs_f64((left / per_s).min(3e9)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Copies `chunks` one after the other, each in the time that its effort takes, in bursts as results come in.
    fn replay(lengths: &[u32], bytes_per_s: f64) {
        let start = Instant::now();
        let mut progress = Progress::default();
        progress.begin(start);
        let effort = |length: u32| f64::from(length) + CHUNK_EFFORT_BYTES as f64;
        let total: f64 = lengths.iter().map(|l| effort(*l)).sum::<f64>() / bytes_per_s;
        let end = start + Duration::from_secs_f64(total);
        let mut at = 0.0;
        for (i, length) in lengths.iter().enumerate() {
            at += effort(*length) / bytes_per_s;
            // Results are told in batches of 20 ms.
            let now = start + Duration::from_secs_f64((at / 0.02).ceil() * 0.02);
            progress.note(*length, now);
            if at > total / 2.0 && at < total * 0.95 {
                let left = &lengths[i + 1..];
                let eta = progress.eta(left.len() as u64, left.iter().map(|l| u64::from(*l)).sum(), now);
                let (eta, real) = (eta.expect("it moves").as_secs_f64(), (end - now.min(end)).as_secs_f64());
                assert!((eta - real).abs() <= real * 0.3 + 0.05, "{eta} s told, {real} s left, at {at} of {total}");
            }
        }
    }

    #[test]
    fn from_the_middle_on_the_rest_is_told_within_a_third() {
        replay(&[4 << 20; 180], 800e6);
        replay(&[16 << 10; 20_000], 400e6);
        let mixed: Vec<u32> = (0..300u32).map(|i| if i % 3 == 0 { 4 << 20 } else { 8 << 10 }).collect();
        replay(&mixed, 50e6);
        replay(&[4 << 20; 500], 40e6);
    }

    #[test]
    fn the_time_that_jobs_take_to_reach_their_nodes_does_not_count() {
        let start = Instant::now();
        let mut progress = Progress::default();
        progress.begin(start);
        // Half a second passes before the first of 100 copies is made, then one comes every 10 ms.
        let at = |copies: u64| start + Duration::from_millis(500 + 10 * copies);
        (0..50).for_each(|copy| progress.note(4 << 20, at(copy)));
        let eta = progress.eta(50, 50 * (4 << 20), at(49)).expect("it moves").as_secs_f64();
        assert!((0.4..0.6).contains(&eta), "{eta} s for what takes half a second");
    }

    #[test]
    fn a_slow_start_does_not_count_once_half_is_done() {
        let start = Instant::now();
        let mut progress = Progress::default();
        progress.begin(start);
        // 20 copies in the first 0.4 s, and 172 in 0.8 s then.
        let at = |copy: u64| {
            start + Duration::from_millis(if copy < 20 { copy * 20 } else { 400 + (copy - 20) * 800 / 172 })
        };
        let end = at(192);
        for copy in 0..192 {
            let now = at(copy);
            progress.note(4 << 20, now);
            if (96..170).contains(&copy) {
                let left = 191 - copy;
                let eta = progress.eta(left, left * (4 << 20), now).expect("it moves").as_secs_f64();
                let real = (end - now).as_secs_f64();
                assert!((eta - real).abs() <= real * 0.3, "{eta} s told, {real} s left after {copy} copies");
            }
        }
    }

    #[test]
    fn a_slow_repair_has_a_rate_between_two_results() {
        let start = Instant::now();
        let mut progress = Progress::default();
        progress.begin(start);
        // A copy every 4 s, as a limit of 1 MiB/s makes it, looked at four times a second.
        for quarter in 1..200_u64 {
            let now = start + Duration::from_millis(250 * quarter);
            if quarter % 16 == 0 {
                progress.note(4 << 20, now);
            }
            if quarter > 16 {
                let rate = progress.rate(now).chunks_per_s;
                assert!((0.1..0.6).contains(&rate), "{rate} copies a second after {} ms", 250 * quarter);
                assert!(progress.eta(10, 10 * (4 << 20), now).is_some());
            }
        }
    }

    #[test]
    fn the_end_is_told_once() {
        let start = Instant::now();
        let mut progress = Progress::default();
        assert_eq!(progress.end(), None);
        progress.begin(start);
        assert_eq!(progress.end(), None, "nothing was made");
        progress.note(5, start + Duration::from_secs(1));
        progress.note(7, start + Duration::from_secs(2));
        assert_eq!(progress.end(), Some(Made { chunks: 2, bytes: 12, took: Duration::from_secs(2) }));
        assert_eq!(progress.end(), None);
        progress.note(1, start + Duration::from_secs(3));
        assert_eq!(progress.end().map(|made| made.chunks), Some(1));
    }

    #[test]
    fn nothing_is_told_of_what_does_not_move() {
        let start = Instant::now();
        let mut progress = Progress::default();
        assert_eq!(progress.eta(1, 1, start), None);
        assert_eq!(progress.eta(0, 0, start), Some(Duration::ZERO));
        progress.begin(start);
        progress.note(1 << 20, start + Duration::from_secs(1));
        assert!(progress.eta(1, 1, start + Duration::from_secs(2)).is_some());
        assert_eq!(progress.eta(1, 1, start + Duration::from_secs(8)), None);
        assert_eq!(progress.rate(start + Duration::from_secs(8)), Rate::default());
    }
}
