//! Where a reader is and how far ahead it should look. Pure: no bytes, no time, no waiting.
//!
//! Rejected: to guess the window from the speed of the program. It doubles when the reader came too early, halves when
//! memory was refused, which needs no clock.

/// Bytes behind the highest read position that stay at hand: the kernel's read-ahead comes out of order, from two threads.
const BEHIND: u64 = 2 << 20;
/// Bytes a read may skip and still count as going on.
const AHEAD: u64 = 1 << 20;

/// What a read looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pattern {
    /// The first read of a handle, at the start: perhaps the only one.
    First,
    /// Goes on where the reader is.
    Sequential,
    /// Somewhere else.
    Random,
}

#[derive(Debug)]
pub(crate) struct Cursor {
    /// Highest byte read so far in this run.
    next: u64,
    /// Reads that made progress in this run.
    streak: u32,
    /// End of the last read elsewhere; a second one there moves the cursor.
    candidate: Option<u64>,
    window: u64,
    min: u64,
    max: u64,
}

impl Cursor {
    /// A cursor at the start of a file, with windows between `min` and `max` bytes.
    pub(crate) fn new(min: u64, max: u64) -> Self {
        Self { next: 0, streak: 0, candidate: None, window: min, min, max: max.max(min) }
    }

    /// Takes note of a read. `at_hand`: its first byte has been fetched ahead. The flag says that the cursor has moved away
    /// and what was fetched ahead is of no use.
    pub(crate) fn observe(&mut self, offset: u64, end: u64, at_hand: bool) -> (Pattern, bool) {
        if at_hand || near(self.next, offset) {
            if end > self.next {
                self.next = end;
                self.streak = self.streak.saturating_add(1);
            }
            return (if self.streak <= 1 { Pattern::First } else { Pattern::Sequential }, false);
        }
        if self.candidate.is_some_and(|candidate| near(candidate, offset)) {
            *self = Self { next: end, streak: 2, ..Self::new(self.min, self.max) };
            return (Pattern::Sequential, true);
        }
        self.candidate = Some(end);
        (Pattern::Random, false)
    }

    /// Whether bytes should be fetched ahead.
    pub(crate) fn is_streaming(&self) -> bool {
        self.streak >= 2
    }

    /// Bytes to fetch ahead.
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    /// Nothing below this is needed any more.
    pub(crate) fn keep_from(&self) -> u64 {
        self.next.saturating_sub(BEHIND)
    }

    /// The reader had to wait.
    pub(crate) fn starved(&mut self) {
        self.window = self.window.saturating_mul(2).min(self.max);
    }

    /// Memory for more was refused.
    pub(crate) fn refused(&mut self) {
        self.window = (self.window / 2).max(self.min);
    }
}

fn near(next: u64, offset: u64) -> bool {
    offset.saturating_add(BEHIND) >= next && offset <= next.saturating_add(AHEAD)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_sequential_reader_streams_from_the_second_read() {
        let mut cursor = Cursor::new(4 * MIB, 32 * MIB);
        assert_eq!(cursor.observe(0, 100, false), (Pattern::First, false));
        assert!(!cursor.is_streaming());
        assert_eq!(cursor.observe(100, 200, true), (Pattern::Sequential, false));
        assert!(cursor.is_streaming());
    }

    #[test]
    fn out_of_order_and_small_seeks_go_on() {
        let mut cursor = Cursor::new(4 * MIB, 32 * MIB);
        cursor.observe(0, MIB, false);
        for offset in [2 * MIB, MIB, 3 * MIB, 5 * MIB / 2] {
            assert_eq!(cursor.observe(offset, offset + MIB, false), (Pattern::Sequential, false));
        }
        assert_eq!(cursor.keep_from(), 2 * MIB);
    }

    #[test]
    fn one_far_read_is_served_aside_and_two_move_the_cursor() {
        let mut cursor = Cursor::new(4 * MIB, 32 * MIB);
        cursor.observe(0, MIB, false);
        cursor.observe(MIB, 2 * MIB, false);
        assert_eq!(cursor.observe(100 * MIB, 101 * MIB, false), (Pattern::Random, false));
        assert_eq!(cursor.observe(2 * MIB, 3 * MIB, false), (Pattern::Sequential, false), "the old run goes on");
        assert_eq!(cursor.observe(101 * MIB, 102 * MIB, false), (Pattern::Sequential, true));
        assert_eq!(cursor.observe(3 * MIB, 4 * MIB, false), (Pattern::Random, false));
    }

    #[test]
    fn random_reads_never_stream() {
        let mut cursor = Cursor::new(4 * MIB, 32 * MIB);
        let mut at = 50 * MIB;
        for _ in 0..100 {
            assert_eq!(cursor.observe(at, at + 4096, false), (Pattern::Random, false));
            at += 77 * MIB;
        }
        assert!(!cursor.is_streaming());
    }

    #[test]
    fn the_window_stays_within_its_bounds() {
        let mut cursor = Cursor::new(4 * MIB, 32 * MIB);
        (0..10).for_each(|_| cursor.starved());
        assert_eq!(cursor.window(), 32 * MIB);
        (0..10).for_each(|_| cursor.refused());
        assert_eq!(cursor.window(), 4 * MIB);
    }
}
