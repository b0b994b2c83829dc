//! Sequence numbers of a session's mutations.
//!
//! Invariant: a number is given out once and is in `open` until its outcome is known or was given up; `acked` is the
//! highest number below every open one, so the leader may forget outcomes up to it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

/// Largest distance between the oldest open number and a new one, so that one stuck mutation does not make the leader
/// remember outcomes without bound.
const SPAN_MAX: u64 = 4096;

#[derive(Debug, Default)]
pub(crate) struct Seqs {
    state: Mutex<State>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    open: BTreeSet<u64>,
}

impl State {
    fn acked(&self) -> u64 {
        self.open.first().map_or(self.last, |first| first - 1)
    }
}

/// An open number; dropping it closes the number.
#[derive(Debug)]
pub(crate) struct Seq {
    pub(crate) number: u64,
    seqs: Arc<Seqs>,
}

impl Seqs {
    /// Numbers above `last`.
    pub(crate) fn after(last: u64) -> Self {
        Self { state: Mutex::new(State { last, open: BTreeSet::new() }), moved: Notify::new() }
    }

    /// The next number; waits while too many lie between it and the oldest open one.
    pub(crate) async fn next(self: &Arc<Self>) -> Seq {
        loop {
            let moved = self.moved.notified();
            if let Some(number) = self.try_next() {
                return Seq { number, seqs: self.clone() };
            }
            moved.await;
        }
    }

    fn try_next(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last - state.acked() >= SPAN_MAX {
            return None;
        }
        state.last += 1;
        let number = state.last;
        state.open.insert(number);
        Some(number)
    }

    /// Every number up to this one is closed.
    pub(crate) fn acked(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).acked()
    }
}

impl Drop for Seq {
    fn drop(&mut self) {
        self.seqs.state.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&self.number);
        self.seqs.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn acked_is_below_every_open_number() {
        let seqs = Arc::new(Seqs::default());
        let (one, two, three) = (seqs.next().await, seqs.next().await, seqs.next().await);
        assert_eq!((one.number, two.number, three.number, seqs.acked()), (1, 2, 3, 0));
        drop(two);
        assert_eq!(seqs.acked(), 0);
        drop(one);
        assert_eq!(seqs.acked(), 2);
        drop(three);
        assert_eq!(seqs.acked(), 3);
        assert_eq!(seqs.next().await.number, 4);
    }

    #[tokio::test]
    async fn the_span_is_bounded() {
        let seqs = Arc::new(Seqs::default());
        let stuck = seqs.next().await;
        for _ in 1..SPAN_MAX {
            drop(seqs.next().await);
        }
        assert!(seqs.try_next().is_none());
        drop(stuck);
        assert_eq!(seqs.next().await.number, SPAN_MAX + 1);
    }
}
