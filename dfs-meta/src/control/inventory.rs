//! Full inventories of storage nodes, taken in pages and compared with the record. Pure.
//!
//! The inventory is the truth, the record is what should be true. The danger is a page that is older than the record it is
//! compared with: a chunk that was stored after the node listed its disk would look lost. So each request carries a number of
//! its own, the recorded chunks of that range are noted when the request is *made*, and only those can be found missing: they
//! were durable before the node began to list.
//!
//! ```text
//!   leader: note record of (after, ...]  ── request(after, run) ──►  node: list the disk
//!   leader: noted, but not on the page, and still recorded => lost   ◄── page(run) ──┘
//! ```

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use dfs_common::{ChunkId, ErrorCode, FileId, NodeId};
use dfs_proto::status::RpcError;

/// A request for one page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Chunks after this one; `None` from the start.
    pub after: Option<ChunkId>,
    /// Entries at most.
    pub limit: u32,
    /// Echoed by the page.
    pub run: u64,
}

/// A chunk on a node's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The chunk.
    pub chunk: ChunkId,
    /// The version in its footer.
    pub file: FileId,
    /// Its length in bytes.
    pub length: u32,
}

/// A page as a node sent it.
#[derive(Clone, Debug)]
pub struct Page {
    /// Of the request it answers.
    pub run: u64,
    /// Chunks in ascending order.
    pub chunks: Vec<Held>,
    /// Nothing comes after.
    pub last: bool,
}

/// What a page says about the record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Recorded when the page was asked for, and not on it.
    pub missing: Vec<ChunkId>,
    /// On the page.
    pub present: Vec<Held>,
    /// The inventory is complete.
    pub done: bool,
}

#[derive(Debug)]
struct Run {
    after: Option<ChunkId>,
    outstanding: Option<Outstanding>,
}

#[derive(Debug)]
struct Outstanding {
    run: u64,
    expected: BTreeSet<ChunkId>,
    /// The record goes on behind `expected`.
    truncated: bool,
}

/// Inventories that are due or under way.
#[derive(Debug, Default)]
pub struct Inventories {
    counter: u64,
    due: HashMap<NodeId, Instant>,
    runs: HashMap<NodeId, Run>,
}

impl Inventories {
    /// Numbers requests from `first` on, so that two leaders never use the same ones.
    #[must_use]
    pub fn new(first: u64) -> Self {
        Self { counter: first, ..Self::default() }
    }

    /// Wants a full inventory of `node` at `at`, from the start.
    pub fn restart(&mut self, node: NodeId, at: Instant) {
        self.runs.remove(&node);
        self.due.insert(node, at);
    }

    /// Wants one at `at` unless one is wanted or under way already.
    pub fn want(&mut self, node: NodeId, at: Instant) {
        if !self.runs.contains_key(&node) {
            self.due.entry(node).or_insert(at);
        }
    }

    /// The page to ask `node` for now, if any. `recorded` gives the chunks that the record has for the node behind one, in
    /// order, at most `limit`. A request without an answer is repeated as it was: the node may be reading the page.
    pub fn request(
        &mut self,
        node: NodeId,
        now: Instant,
        limit: u32,
        recorded: impl FnOnce(Option<ChunkId>) -> Vec<ChunkId>,
    ) -> Option<Request> {
        if self.due.get(&node).is_some_and(|at| *at <= now) {
            self.due.remove(&node);
            self.runs.insert(node, Run { after: None, outstanding: None });
        }
        let run = self.runs.get_mut(&node)?;
        let after = run.after;
        let outstanding = run.outstanding.get_or_insert_with(|| {
            self.counter += 1;
            let recorded = recorded(after);
            let truncated = recorded.len() >= limit as usize;
            Outstanding { run: self.counter, expected: recorded.into_iter().collect(), truncated }
        });
        Some(Request { after, limit, run: outstanding.run })
    }

    /// Compares a page with what was recorded when it was asked for. `None` for a page nobody waits for: its request was
    /// overtaken by a newer one.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] for a page out of order or without an end; the inventory then starts over with the
    /// next request.
    pub fn page(&mut self, node: NodeId, page: Page, again_at: Instant) -> Result<Option<Findings>, RpcError> {
        let Some(run) = self.runs.get_mut(&node) else { return Ok(None) };
        if run.outstanding.as_ref().is_none_or(|outstanding| outstanding.run != page.run) {
            return Ok(None);
        }
        let Some(Outstanding { mut expected, truncated, .. }) = run.outstanding.take() else { return Ok(None) };
        let after = run.after;
        if !is_ordered(&page, after) {
            self.restart(node, again_at);
            return Err(RpcError::new(
                ErrorCode::InvalidArgument,
                format!("node {node} sent a malformed inventory page"),
            ));
        }
        let page_end = if page.last { None } else { page.chunks.last().map(|held| held.chunk) };
        let record_end = if truncated { expected.last().copied() } else { None };
        let end = match (page_end, record_end) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let within = |chunk: &ChunkId| end.is_none_or(|end| *chunk <= end);
        let present: Vec<_> = page.chunks.into_iter().filter(|held| within(&held.chunk)).collect();
        for held in &present {
            expected.remove(&held.chunk);
        }
        let missing = expected.into_iter().filter(within).collect();
        match end {
            Some(end) => run.after = Some(end),
            None => self.restart(node, again_at),
        }
        Ok(Some(Findings { missing, present, done: end.is_none() }))
    }

    /// Forgets nodes that are no longer registered.
    pub fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.runs.retain(|node, _| keep(*node));
        self.due.retain(|node, _| keep(*node));
    }
}

/// When the `n`-th node's first inventory under a new leader is due: spread over as much time again, so that they do not all
/// list their disks at once.
#[must_use]
pub fn first_due(since: Instant, delay: Duration, node: NodeId) -> Instant {
    since + delay + delay.mul_f64(f64::from(node.0 % 16) / 16.0)
}

fn is_ordered(page: &Page, after: Option<ChunkId>) -> bool {
    let ascending = page.chunks.windows(2).all(|pair| pair[0].chunk < pair[1].chunk);
    let behind = page.chunks.first().is_none_or(|first| after.is_none_or(|after| first.chunk > after));
    ascending && behind && (page.last || !page.chunks.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NODE: NodeId = NodeId(1);

    fn chunk(n: u8) -> ChunkId {
        ChunkId([n; 32])
    }

    fn held(chunk: ChunkId) -> Held {
        Held { chunk, file: FileId([9; 16]), length: 1 }
    }

    fn behind(set: &BTreeSet<u8>, after: Option<ChunkId>, limit: usize) -> Vec<ChunkId> {
        set.iter().map(|n| chunk(*n)).filter(|c| after.is_none_or(|after| *c > after)).take(limit).collect()
    }

    proptest! {
        #[test]
        fn pages_find_exactly_the_differences(
            disk in proptest::collection::btree_set(any::<u8>(), 0..60),
            record in proptest::collection::btree_set(any::<u8>(), 0..60),
            limit in 1..20u32,
            late in proptest::collection::btree_set(any::<u8>(), 0..20),
        ) {
            let now = Instant::now();
            let mut disk = disk;
            let mut record = record;
            let (disk_before, record_before) = (disk.clone(), record.clone());
            let mut inventories = Inventories::new(7 << 32);
            inventories.want(NODE, now);
            let (mut missing, mut present) = (BTreeSet::new(), BTreeSet::new());
            let mut late = late.into_iter();
            for round in 0.. {
                prop_assert!(round < 200, "ends");
                let ask = |inventories: &mut Inventories| {
                    inventories.request(NODE, now, limit, |after| behind(&record, after, limit as usize))
                };
                let Some(request) = ask(&mut inventories) else { break };
                let again = ask(&mut inventories);
                prop_assert_eq!(again.as_ref(), Some(&request), "repeated until it is answered");
                let listed = behind(&disk, request.after, limit as usize);
                let last = listed.len() < limit as usize;
                // Stored, and recorded, after the node has listed its disk.
                if let Some(n) = late.next() {
                    disk.insert(n);
                    record.insert(n);
                }
                let chunks = listed.into_iter().map(held).collect();
                let page = Page { run: request.run, chunks, last };
                let stale = Page { run: request.run - 1, chunks: vec![], last: true };
                prop_assert_eq!(inventories.page(NODE, stale, now), Ok(None));
                let later = now + Duration::from_secs(1);
                let findings = inventories.page(NODE, page, later).expect("well formed").expect("expected");
                missing.extend(findings.missing.iter().map(|c| c.0[0]));
                present.extend(findings.present.iter().map(|held| held.chunk.0[0]));
                if findings.done {
                    break;
                }
            }
            for n in &missing {
                prop_assert!(record_before.contains(n) && !disk_before.contains(n), "{n} is not lost");
            }
            for n in record_before.difference(&disk) {
                prop_assert!(missing.contains(n), "{n} was lost");
            }
            for n in &disk_before {
                prop_assert!(present.contains(n), "{n} was there");
            }
        }
    }

    fn asked(inventories: &mut Inventories, now: Instant, recorded: &[ChunkId]) -> Option<Request> {
        inventories.request(NODE, now, 10, |_| recorded.to_vec())
    }

    #[test]
    fn malformed_pages_are_refused() {
        let now = Instant::now();
        let h = |n| held(chunk(n));
        for (chunks, last) in [(vec![h(2), h(1)], true), (vec![], false), (vec![h(7)], false)] {
            let mut inventories = Inventories::new(0);
            inventories.want(NODE, now);
            let run = asked(&mut inventories, now, &[]).expect("due").run;
            let first = Page { run, chunks: vec![h(7)], last: false };
            let findings = inventories.page(NODE, first, now).expect("well formed");
            assert!(findings.is_some_and(|findings| !findings.done));
            let run = asked(&mut inventories, now, &[]).expect("under way").run;
            assert!(inventories.page(NODE, Page { run, chunks, last }, now).is_err());
            assert_eq!(asked(&mut inventories, now, &[]).expect("starts over").after, None);
        }
    }

    #[test]
    fn a_restart_forgets_the_run_under_way() {
        let now = Instant::now();
        let mut inventories = Inventories::new(0);
        inventories.want(NODE, now);
        let run = asked(&mut inventories, now, &[chunk(1)]).expect("due").run;
        inventories.restart(NODE, now);
        let page = Page { run, chunks: vec![], last: true };
        assert_eq!(inventories.page(NODE, page, now), Ok(None));
        assert!(asked(&mut inventories, now, &[]).is_some_and(|request| request.after.is_none()));
    }
}
