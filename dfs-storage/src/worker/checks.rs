//! Copies that must be read in full: because metadata asks whether they are whole, or because somebody could not read them.
//!
//! ```text
//!   metadata asks (a sibling is to be deleted; a client has reported a bad copy) ──┐
//!   a read for a client, a repair or an inventory failed, a scrub met an error ────┴─► queue ─► read in full
//!                                                                                                │
//!                            whole: confirmed    missing: reported    bad: set aside, reported ◄─┤
//!                                             unreadable: again after a while, for half a minute ┘ then set aside
//! ```
//!
//! One chunk at a time: nothing that waits for it is urgent, and reads of clients share the disk. Nobody's word is taken for a
//! bad copy, a client's even less than a failed read of our own: what counts is what this finds. An error of the disk is no
//! verdict either, it may pass. Metadata asks again for what it has not heard of, so nothing here must last.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dfs_common::ChunkId;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{
    disks::Disk,
    engine::{ChunkEngine as _, EngineError, Held, Judged},
    node::Node,
};

/// Chunks that may wait; metadata asks for 64 at once.
const QUEUE_MAX: usize = 4096;
/// Copies found whole that are told together.
const BATCH: usize = 16;
/// First pause after an error of the disk; doubled each time.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Pauses before a copy that cannot be read is given up: 1, 2, 4, 8 and 16 seconds.
const PAUSES: u32 = 5;

/// Why a copy is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Case {
    /// It could not be read, so metadata may have heard that it is lost.
    suspect: bool,
    /// Times that the disk failed meanwhile.
    failures: u32,
}

#[derive(Debug, Default)]
struct Queue {
    cases: HashMap<ChunkId, Case>,
    now: VecDeque<ChunkId>,
    later: Vec<(Instant, ChunkId)>,
}

impl Queue {
    fn push(&mut self, id: ChunkId, suspect: bool) -> bool {
        if let Some(case) = self.cases.get_mut(&id) {
            case.suspect |= suspect;
            return false;
        }
        if self.cases.len() >= QUEUE_MAX {
            return false;
        }
        self.cases.insert(id, Case { suspect, failures: 0 });
        self.now.push_back(id);
        true
    }

    /// The next one to look at, or when there is one.
    fn next(&mut self, now: Instant) -> Result<(ChunkId, Case), Option<Instant>> {
        let due = self.later.iter().position(|(at, _)| *at <= now);
        let id = due.map(|at| self.later.swap_remove(at).1).or_else(|| self.now.pop_front());
        match id {
            Some(id) => Ok((id, self.cases.get(&id).copied().unwrap_or_default())),
            None => Err(self.later.iter().map(|(at, _)| *at).min()),
        }
    }

    /// The disk failed; whether the copy is to be given up at the next failure is the case's to say.
    fn put_off(&mut self, id: ChunkId, now: Instant) {
        let case = self.cases.entry(id).or_default();
        let pause = AGAIN_AFTER * 2_u32.pow(case.failures.min(PAUSES));
        case.failures += 1;
        self.later.push((now + pause, id));
    }
}

/// The queue of copies to look at. A cloned value is the same queue.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    queue: Arc<Mutex<Queue>>,
    pushed: Arc<Notify>,
}

impl Checks {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Metadata asks for these. One that waits already, or does not fit, is ignored.
    pub fn submit(&self, ids: impl IntoIterator<Item = ChunkId>) {
        let mut queue = self.queue();
        for id in ids {
            queue.push(id, false);
        }
        drop(queue);
        self.pushed.notify_one();
    }

    /// A copy here could not be read.
    pub fn suspect(&self, id: ChunkId) {
        if self.queue().push(id, true) {
            self.pushed.notify_one();
        }
    }

    /// Starts the worker; it ends with the node.
    pub fn start(&self, node: &Arc<Node>) {
        let (node, checks) = (node.clone(), self.clone());
        node.tasks.clone().spawn(async move {
            node.stop.clone().run_until_cancelled(checks.work(&node)).await;
        });
    }

    async fn work(self, node: &Node) {
        let mut whole = Vec::new();
        loop {
            let next = self.queue().next(Instant::now());
            if next.is_err() || whole.len() >= BATCH {
                let told = std::mem::take(&mut whole);
                if !told.is_empty() {
                    node.changes.confirmed(told);
                }
            }
            match next {
                Ok((id, case)) => {
                    if self.check(node, id, case).await {
                        whole.push(id);
                    }
                }
                Err(None) => self.pushed.notified().await,
                Err(Some(at)) => tokio::select! {
                    () = sleep(at.saturating_duration_since(Instant::now())) => {}
                    () = self.pushed.notified() => {}
                },
            }
        }
    }

    /// Looks at one copy. Gives whether it is whole.
    async fn check(&self, node: &Node, id: ChunkId, case: Case) -> bool {
        let give_up = case.failures >= PAUSES;
        let disks = node.disks.clone();
        let judged = node.disk.run(move || judge(&disks, id, give_up)).await;
        let failure = match judged {
            Ok(Ok((_, Judged::Whole(facts)))) => {
                self.queue().cases.remove(&id);
                if case.suspect {
                    node.changes.added(Held { id, file_id: facts.file_id, length: facts.length });
                }
                return true;
            }
            Ok(Ok((Some(disk), Judged::SetAside { reason }))) => {
                node.copy_set_aside(&disk, id, reason);
                self.queue().cases.remove(&id);
                return false;
            }
            Ok(Ok((_, Judged::Missing | Judged::SetAside { .. }))) => {
                node.changes.removed(id);
                node.changes.wake();
                self.queue().cases.remove(&id);
                return false;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if give_up {
            tracing::error!(chunk = %id, error = failure, "a copy can neither be read nor set aside");
            self.queue().cases.remove(&id);
        } else {
            tracing::warn!(chunk = %id, error = failure, "a copy cannot be read; it is looked at again");
            self.queue().put_off(id, Instant::now());
        }
        false
    }
}

/// Judges the copy here, with the disk that it is on.
fn judge(disks: &crate::disks::Disks, id: ChunkId, give_up: bool) -> Result<(Option<Arc<Disk>>, Judged), EngineError> {
    match disks.holder(id)?.cloned() {
        Some(disk) => disk.with(|engine| engine.judge(id, give_up)).map(|judged| (Some(disk), judged)),
        None => Ok((None, Judged::Missing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_looked_at_for_half_a_minute() {
        let (mut queue, id) = (Queue::default(), ChunkId([1; 32]));
        let start = Instant::now();
        let mut now = start;
        assert!(queue.push(id, false) && !queue.push(id, true));
        let (got, case) = queue.next(now).expect("due");
        assert_eq!((got, case), (id, Case { suspect: true, failures: 0 }));
        let mut looks = 1;
        loop {
            queue.put_off(id, now);
            let at = queue.next(now).expect_err("not yet").expect("later");
            assert_eq!(queue.next(at), Ok((id, Case { suspect: true, failures: looks })));
            (now, looks) = (at, looks + 1);
            if looks > PAUSES {
                break;
            }
        }
        assert_eq!((now - start).as_secs(), 31);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut queue = Queue::default();
        let id = |n: u32| ChunkId(std::array::from_fn(|at| n.to_be_bytes()[at % 4]));
        let taken = (0..2 * QUEUE_MAX as u32).filter(|n| queue.push(id(*n), false)).count();
        assert_eq!(taken, QUEUE_MAX);
    }
}
