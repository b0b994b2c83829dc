//! What changed on this node's disk since metadata last acknowledged it.
//!
//! ```text
//! open  ──take──►  sent (number n)  ──acknowledged(n)──►  forgotten
//!   ▲                  └─ sent again, unchanged, until then
//!   └─ every change; the latest one of a chunk wins
//! ```
//!
//! Bounded: when more changes wait than a full inventory is worth, all are dropped and the node registers again under a new
//! incarnation, upon which metadata asks for the inventory. The disk is the truth, this is only its news.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dfs_common::{ChunkId, NodeId, Uuid, disk::DiskNotice};
use tokio::sync::Notify;

use crate::engine::{Held, Page};

/// Changes that may wait: about 10 MB of memory, and a full inventory costs little more than so many differences.
const OPEN_MAX: usize = 100_000;
/// Changes sent in one heartbeat: half a megabyte, far below the size limit of a message.
const DIFFERENCE_MAX: usize = 8192;
/// Notices of disks that may wait: metadata is away for a long time, and the oldest ones are news no more.
const NOTICES_MAX: usize = 256;
/// Peers remembered as unreachable.
const UNREACHABLE_MAX: usize = 1024;

/// A bad copy that was set aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadCopy {
    /// The chunk.
    pub id: ChunkId,
    /// The disk it was on.
    pub disk: Uuid,
    /// Its data directory.
    pub path: String,
    /// What was wrong.
    pub reason: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Change {
    Added(Held),
    Removed,
    Deleted,
    SetAside(Arc<BadCopy>),
}

/// One numbered difference.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// Its number; grows by one with every new difference.
    pub seq: u64,
    /// Chunks stored.
    pub added: Vec<Held>,
    /// Chunks found missing or removed by others than metadata.
    pub removed: Vec<ChunkId>,
    /// Deletions that metadata asked for and that are done.
    pub deleted: Vec<ChunkId>,
    /// Bad copies that were set aside.
    pub set_aside: Vec<Arc<BadCopy>>,
    /// What happened to disks.
    pub notices: Vec<DiskNotice>,
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.removed.is_empty()
            && self.deleted.is_empty()
            && self.set_aside.is_empty()
            && self.notices.is_empty()
    }
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<ChunkId, Change>,
    sent: Difference,
    unreachable: BTreeSet<NodeId>,
    /// Copies that were read and found whole, for metadata that asked.
    confirmed: Vec<ChunkId>,
    overflowed: bool,
    notices: Vec<DiskNotice>,
    /// The inventory is to be taken at once.
    inventory_due: bool,
    /// Everything since a page of the inventory began to be read, while one is.
    watched: Option<BTreeMap<ChunkId, Change>>,
}

/// The news of this node. A cloned value is the same news.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
}

impl Changes {
    /// No news yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, id: ChunkId, change: Change) {
        let mut state = self.state();
        if let Some(watched) = &mut state.watched {
            watched.insert(id, change.clone());
        }
        // A reader that finds the place of a bad copy empty knows less than who emptied it.
        if change != Change::Removed || !matches!(state.open.get(&id), Some(Change::SetAside(_))) {
            state.open.insert(id, change);
        }
        if state.open.len() > OPEN_MAX {
            state.open.clear();
            state.watched = None;
            state.overflowed = true;
        }
    }

    /// A chunk was stored.
    pub fn added(&self, held: Held) {
        self.note(held.id, Change::Added(held));
    }

    /// A chunk is gone or was never here.
    pub fn removed(&self, id: ChunkId) {
        self.note(id, Change::Removed);
    }

    /// A deletion that metadata asked for is done; metadata hears of it at once.
    pub fn deleted(&self, ids: &[ChunkId]) {
        for id in ids {
            self.note(*id, Change::Deleted);
        }
        self.wake.notify_one();
    }

    /// A bad copy was set aside; metadata hears of it at once.
    pub fn set_aside(&self, copy: BadCopy) {
        self.note(copy.id, Change::SetAside(Arc::new(copy)));
        self.wake.notify_one();
    }

    /// Something happened to a disk; metadata hears of it at once.
    pub fn notice(&self, notice: DiskNotice) {
        let mut state = self.state();
        if state.notices.len() >= NOTICES_MAX {
            state.notices.remove(0);
        }
        state.notices.push(notice);
        drop(state);
        self.wake.notify_one();
    }

    /// The inventory changed in a way that no difference tells; metadata hears of it at once.
    pub fn want_inventory(&self) {
        self.state().inventory_due = true;
        self.wake.notify_one();
    }

    /// An inventory that a failed heartbeat would have asked for; the next one does.
    pub fn keep_inventory_due(&self) {
        self.state().inventory_due = true;
    }

    /// Whether an inventory was wanted since the last call.
    #[must_use]
    pub fn take_inventory_due(&self) -> bool {
        mem::take(&mut self.state().inventory_due)
    }

    /// A peer could not be reached; metadata hears of it at once. `false` if that is no news since the last heartbeat.
    pub fn unreachable(&self, node: NodeId) -> bool {
        let mut state = self.state();
        let news = state.unreachable.len() < UNREACHABLE_MAX && state.unreachable.insert(node);
        drop(state);
        if news {
            self.wake.notify_one();
        }
        news
    }

    /// A peer that a failed heartbeat would have named; the next one does.
    pub fn keep_unreachable(&self, node: NodeId) {
        self.state().unreachable.insert(node);
    }

    /// Copies that metadata asked to confirm were read and found whole; it hears of it at once.
    pub fn confirmed(&self, ids: Vec<ChunkId>) {
        self.state().confirmed.extend(ids);
        self.wake.notify_one();
    }

    /// The copies confirmed since the last call.
    #[must_use]
    pub fn take_confirmed(&self) -> Vec<ChunkId> {
        mem::take(&mut self.state().confirmed)
    }

    /// Asks for a heartbeat at once.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until a heartbeat is wanted at once.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The difference to send now: the unacknowledged one, or a new one of the oldest open changes.
    #[must_use]
    pub fn difference(&self) -> Difference {
        let mut state = self.state();
        if state.sent.is_empty() && !(state.open.is_empty() && state.notices.is_empty()) {
            let notices = mem::take(&mut state.notices);
            let mut difference = Difference { seq: state.sent.seq + 1, notices, ..Difference::default() };
            let rest = match state.open.keys().nth(DIFFERENCE_MAX).copied() {
                Some(id) => state.open.split_off(&id),
                None => BTreeMap::new(),
            };
            for (id, change) in mem::replace(&mut state.open, rest) {
                match change {
                    Change::Added(held) => difference.added.push(held),
                    Change::Removed => difference.removed.push(id),
                    Change::Deleted => difference.deleted.push(id),
                    Change::SetAside(copy) => difference.set_aside.push(copy),
                }
            }
            state.sent = difference;
        }
        state.sent.clone()
    }

    /// Metadata has taken over the difference with this number.
    pub fn acknowledged(&self, seq: u64) {
        let mut state = self.state();
        if seq == state.sent.seq && !state.sent.is_empty() {
            state.sent = Difference { seq, ..Difference::default() };
            if state.open.len() > DIFFERENCE_MAX || !state.notices.is_empty() {
                drop(state);
                self.wake.notify_one();
            }
        }
    }

    /// A page of the inventory begins to be read.
    pub fn watch(&self) {
        self.state().watched = Some(BTreeMap::new());
    }

    /// Makes the page that was read since [`Changes::watch`] agree with what changed meanwhile. Call it after the difference
    /// of the same heartbeat was taken: metadata may apply the two in any order then.
    pub fn adjust(&self, page: &mut Page, after: Option<ChunkId>) {
        let state = self.state();
        let Some(watched) = &state.watched else { return };
        let end = if page.last { None } else { page.chunks.last().map(|held| held.id) };
        page.chunks.retain(|held| !watched.contains_key(&held.id));
        let in_range = |id: ChunkId| after.is_none_or(|after| id > after) && end.is_none_or(|end| id <= end);
        page.chunks.extend(watched.iter().filter_map(|(id, change)| match change {
            Change::Added(held) if in_range(*id) => Some(*held),
            Change::Added(_) | Change::Removed | Change::Deleted | Change::SetAside(_) => None,
        }));
        page.chunks.sort_unstable_by_key(|held| held.id);
    }

    /// The peers found unreachable since the last call.
    #[must_use]
    pub fn take_unreachable(&self) -> Vec<NodeId> {
        mem::take(&mut self.state().unreachable).into_iter().collect()
    }

    /// Whether changes were dropped since the last call, so that only a full inventory can tell the truth.
    #[must_use]
    pub fn take_overflow(&self) -> bool {
        mem::take(&mut self.state().overflowed)
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::FileId;

    use super::*;

    fn held(n: u8) -> Held {
        Held { id: ChunkId([n; 32]), file_id: FileId([0; 16]), length: 1 }
    }

    #[test]
    fn a_difference_is_repeated_until_it_is_acknowledged() {
        let changes = Changes::new();
        assert_eq!(changes.difference(), Difference::default());
        changes.added(held(1));
        let first = changes.difference();
        assert_eq!((first.seq, &first.added[..]), (1, &[held(1)][..]));
        changes.added(held(2));
        changes.removed(held(1).id);
        assert_eq!(changes.difference(), first);
        changes.acknowledged(0);
        assert_eq!(changes.difference(), first);
        changes.acknowledged(1);
        let second = changes.difference();
        assert_eq!((second.seq, &second.added[..], &second.removed[..]), (2, &[held(2)][..], &[held(1).id][..]));
        changes.acknowledged(2);
        assert_eq!(changes.difference(), Difference { seq: 2, ..Difference::default() });
    }

    #[test]
    fn the_latest_change_of_a_chunk_wins() {
        let changes = Changes::new();
        changes.added(held(1));
        changes.deleted(&[held(1).id]);
        changes.removed(held(2).id);
        changes.added(held(2));
        let difference = changes.difference();
        assert_eq!(
            (difference.added, difference.removed, difference.deleted),
            (vec![held(2)], vec![], vec![held(1).id])
        );
    }

    #[test]
    fn a_copy_that_was_set_aside_is_not_only_missing() {
        let changes = Changes::new();
        let copy = BadCopy { id: held(1).id, disk: Uuid([1; 16]), path: "/d".into(), reason: "bad".into() };
        changes.set_aside(copy.clone());
        changes.removed(copy.id);
        let difference = changes.difference();
        assert_eq!((difference.set_aside, difference.removed), (vec![Arc::new(copy)], vec![]));
    }

    #[test]
    fn memory_is_bounded_by_a_full_inventory() {
        let changes = Changes::new();
        for n in 0..=OPEN_MAX as u64 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            changes.removed(ChunkId(id));
        }
        assert!(changes.take_overflow() && !changes.take_overflow());
        assert_eq!(changes.difference().removed.len(), 0);
    }

    #[test]
    fn many_changes_go_in_parts() {
        let changes = Changes::new();
        for n in 0..=DIFFERENCE_MAX as u64 {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            changes.removed(ChunkId(id));
        }
        let first = changes.difference();
        assert_eq!(first.removed.len(), DIFFERENCE_MAX);
        changes.acknowledged(first.seq);
        assert_eq!(changes.difference().removed.len(), 1);
    }

    #[test]
    fn a_page_agrees_with_what_changed_while_it_was_read() {
        let changes = Changes::new();
        changes.watch();
        for n in [1, 5, 7] {
            changes.added(held(n));
        }
        changes.removed(held(4).id);
        changes.acknowledged(changes.difference().seq);
        let mut page = Page { chunks: vec![held(2), held(4), held(5), held(6)], damaged: vec![], last: false };
        changes.adjust(&mut page, Some(held(1).id));
        assert_eq!(page.chunks, [held(2), held(5), held(6)]);
        page.last = true;
        changes.adjust(&mut page, None);
        assert_eq!(page.chunks, [held(1), held(2), held(5), held(6), held(7)]);
    }
}
