//! The latest changes of that which clients keep, in the order in which they were applied, for those who watch.
//!
//! Every node keeps them as it applies, so that a new leader can go on where it is asked to. They are numbered within an
//! epoch, which is a random number: it begins when the process starts and ends when entries are skipped (a snapshot is
//! installed). Who asks with another epoch, or for changes that are not kept any more, is told to forget everything.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use dfs_common::SessionId;
use tokio::sync::watch;

use crate::fsm::Change;

/// Changes that are kept. One takes about 50 bytes and its name.
const KEPT_MAX: usize = 65_536;

/// Up to where somebody has been told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Random; 0 for who knows nothing yet.
    pub epoch: u64,
    /// How many changes of the epoch came before.
    pub number: u64,
}

/// What happened behind a position.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// Where to go on.
    pub position: Position,
    /// Some changes are not known any more: everything that is kept may be out of date.
    pub is_reset: bool,
    /// What changed, without what the asking session did itself.
    pub changes: Vec<Change>,
    /// Whether that was all.
    pub is_complete: bool,
}

#[derive(Default)]
struct Ring {
    epoch: u64,
    /// Number of the first one that is kept.
    first: u64,
    kept: VecDeque<(Option<SessionId>, Change)>,
}

impl Ring {
    fn end(&self) -> u64 {
        self.first + self.kept.len() as u64
    }
}

/// The changes of this node.
pub(crate) struct Changes {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

impl Changes {
    pub(crate) fn new() -> Self {
        let ring = Ring { epoch: random_epoch(), ..Ring::default() };
        Self { ring: Mutex::new(ring), newest: watch::Sender::new(0) }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up changes. Called under the lock of the state, so that who reads the state finds them here.
    pub(crate) fn append(&self, changes: impl IntoIterator<Item = (Option<SessionId>, Change)>) {
        let mut ring = self.ring();
        let before = ring.end();
        ring.kept.extend(changes);
        let excess = ring.kept.len().saturating_sub(KEPT_MAX);
        ring.kept.drain(..excess);
        ring.first += excess as u64;
        let end = ring.end();
        drop(ring);
        if end != before {
            self.newest.send_replace(end);
        }
    }

    /// Entries were skipped.
    pub(crate) fn restart(&self) {
        *self.ring() = Ring { epoch: random_epoch(), ..Ring::default() };
        self.newest.send_replace(0);
    }

    /// At most `limit` changes behind `position` that others than `session` made.
    pub(crate) fn since(&self, position: Position, session: SessionId, limit: usize) -> News {
        let ring = self.ring();
        let end = Position { epoch: ring.epoch, number: ring.end() };
        if position.epoch != ring.epoch || !(ring.first..=end.number).contains(&position.number) {
            return News { position: end, is_reset: true, changes: Vec::new(), is_complete: true };
        }
        let skip = usize::try_from(position.number - ring.first).expect("no more than are kept");
        let mut news = News { position: end, is_complete: true, ..News::default() };
        for (at, (origin, change)) in ring.kept.iter().enumerate().skip(skip) {
            if *origin == Some(session) {
                continue;
            }
            if news.changes.len() == limit {
                news.position.number = ring.first + at as u64;
                news.is_complete = false;
                break;
            }
            news.changes.push(change.clone());
        }
        news
    }

    /// Fires with every change.
    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

fn random_epoch() -> u64 {
    rand::random::<u64>().max(1)
}

#[cfg(test)]
mod tests {
    use dfs_common::InodeId;

    use super::*;

    const ME: SessionId = SessionId(7);

    fn change(session: u64, ino: u64) -> (Option<SessionId>, Change) {
        (Some(SessionId(session)), Change::Inode(InodeId(ino)))
    }

    fn inodes(news: &News) -> Vec<u64> {
        let ino = |change: &Change| match change {
            Change::Inode(ino) => ino.0,
            Change::Entry { .. } => 0,
        };
        news.changes.iter().map(ino).collect()
    }

    #[test]
    fn each_change_by_others_is_told_once_in_order() {
        let changes = Changes::new();
        let start = changes.since(Position::default(), ME, 10);
        assert!(start.is_reset && start.is_complete, "who knows nothing may keep nothing from before");
        changes.append([change(1, 10), change(7, 11), change(2, 12), change(2, 13)]);
        let first = changes.since(start.position, ME, 2);
        assert_eq!((inodes(&first), first.is_complete), (vec![10, 12], false));
        let second = changes.since(first.position, ME, 2);
        assert_eq!((inodes(&second), second.is_complete), (vec![13], true));
        let third = changes.since(second.position, ME, 2);
        assert_eq!((inodes(&third), third.position, third.is_reset), (vec![], second.position, false));
    }

    #[test]
    fn who_is_too_far_behind_is_told_so() {
        let changes = Changes::new();
        let start = changes.since(Position::default(), ME, 10).position;
        changes.append((0..KEPT_MAX as u64).map(|ino| change(1, ino)));
        assert_eq!(changes.since(start, ME, usize::MAX).changes.len(), KEPT_MAX);
        changes.append([change(1, 1)]);
        assert!(changes.since(start, ME, 10).is_reset);
        let now = changes.since(start, ME, 10).position;
        assert!(!changes.since(now, ME, 10).is_reset);
        changes.restart();
        assert!(changes.since(now, ME, 10).is_reset, "what a snapshot brought is not known one by one");
    }

    #[test]
    fn a_position_from_the_future_is_not_believed() {
        let changes = Changes::new();
        let now = changes.since(Position::default(), ME, 10).position;
        assert!(changes.since(Position { number: now.number + 1, ..now }, ME, 10).is_reset);
    }
}
