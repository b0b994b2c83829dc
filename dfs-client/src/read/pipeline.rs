//! The parts of one open file that are at hand or on their way.
//!
//! Invariant: parts do not overlap, each lies within one chunk, and each starts and ends on a block border of it or at its
//! end.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use dfs_common::{ChunkRef, Layout, checksum::BLOCK_BYTES};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    SMALL_BYTES,
    blocks::fetch_blocks,
    part::{Part, Source},
    window::{Cursor, Pattern},
};
use crate::{
    Error,
    dfs::{Shared, zeros},
};

/// Largest part, bytes: with larger chunks, parts of a chunk are fetched, checked by block CRCs.
const PART_BYTES_MAX: u64 = 4 << 20;
/// What the first read of a handle fetches at least: enough for `head` and `file`, little enough to be quick.
const FIRST_BYTES: u64 = 256 << 10;
/// What a read that cannot wait for a whole chunk fetches at least.
const URGENT_BYTES: u64 = 1 << 20;
/// A reader that is idle for this long gives its window back.
const IDLE_AFTER: Duration = Duration::from_secs(5);
const BLOCK: u64 = BLOCK_BYTES as u64;

pub(crate) struct ReaderCore {
    shared: Arc<Shared>,
    pub(super) layout: Arc<Layout>,
    state: Mutex<State>,
    /// Bounds the parts fetched ahead at a time.
    turns: Arc<Semaphore>,
}

struct State {
    cursor: Cursor,
    parts: BTreeMap<u64, Arc<Part>>,
    used: Instant,
}

impl State {
    fn part_at(&mut self, at: u64) -> Option<Arc<Part>> {
        let (start, part) = self.parts.range(..=at).next_back()?;
        if part.range.end <= at {
            return None;
        }
        if part.has_failed() {
            let start = *start;
            self.parts.remove(&start);
            return None;
        }
        Some(part.clone())
    }

    /// Start of the first part behind `at`.
    fn next_start(&self, at: u64) -> u64 {
        self.parts.range(at..).next().map_or(u64::MAX, |(start, _)| *start)
    }
}

impl ReaderCore {
    pub(crate) fn new(shared: Arc<Shared>, layout: Arc<Layout>) -> Arc<Self> {
        let Layout::Replicated { chunk_size, .. } = &*layout;
        let least = PART_BYTES_MAX.min(u64::from(*chunk_size));
        let state = State {
            cursor: Cursor::new(least, shared.options.read_ahead_max_bytes),
            parts: BTreeMap::new(),
            used: Instant::now(),
        };
        let turns = Arc::new(Semaphore::new(shared.options.parallel_downloads.max(1)));
        let core = Arc::new(Self { shared, layout, state: Mutex::new(state), turns });
        core.shared.register(&core);
        core
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the window back if nobody has read for a while.
    pub(crate) fn prune(&self) {
        let mut state = self.lock();
        if state.used.elapsed() >= IDLE_AFTER {
            state.parts.clear();
        }
    }

    pub(super) async fn read(&self, offset: u64, len: usize) -> Result<Vec<Bytes>, Error> {
        let end = offset.saturating_add(len as u64).min(self.layout.size());
        if offset >= end {
            return Ok(Vec::new());
        }
        let Some(parts) = self.plan(offset, end) else { return self.random(offset, end).await };
        let mut out = Vec::new();
        for part in parts {
            let range = offset.max(part.range.start)..end.min(part.range.end);
            part.read(range, &mut out).await?;
        }
        Ok(out)
    }

    /// The parts that hold the bytes, and those behind them started; `None` for a random read.
    fn plan(&self, offset: u64, end: u64) -> Option<Vec<Arc<Part>>> {
        let mut state = self.lock();
        let state = &mut *state;
        state.used = Instant::now();
        let at_hand = state.part_at(offset).is_some();
        let (pattern, moved) = state.cursor.observe(offset, end, at_hand);
        if moved {
            state.parts.clear();
        }
        if pattern == Pattern::Random {
            return None;
        }
        let keep = state.cursor.keep_from();
        state.parts.retain(|_, part| part.range.end > keep || (part.range.start < end && part.range.end > offset));
        let (mut at, mut starved, mut needed) = (offset, false, Vec::new());
        while at < end {
            let part = state.part_at(at).unwrap_or_else(|| self.urgent(state, at, end, pattern));
            starved |= !part.is_ready();
            at = part.range.end;
            needed.push(part);
        }
        if state.cursor.is_streaming() {
            if starved {
                state.cursor.starved();
            }
            self.look_ahead(state, end);
        }
        Some(needed)
    }

    /// A part that a read waits for.
    fn urgent(&self, state: &mut State, at: u64, end: u64, pattern: Pattern) -> Arc<Part> {
        let (chunk, index, slot) = self.slot(at);
        let within = at - slot.start;
        let free = slot.end.min(state.next_start(at));
        let whole = chunk.length as usize <= SMALL_BYTES
            || (pattern == Pattern::Sequential && within == 0 && slot.end - slot.start <= PART_BYTES_MAX);
        let least = if pattern == Pattern::First { FIRST_BYTES } else { URGENT_BYTES };
        let range = if whole && free == slot.end && state.part_at(slot.start).is_none() {
            slot
        } else {
            let from = within / BLOCK * BLOCK;
            let to = (end.max(at + least) - slot.start).next_multiple_of(BLOCK);
            slot.start + from..free.min(slot.start + to).min(at + PART_BYTES_MAX)
        };
        // The cut at the largest part must be on a block border too.
        let range = match range.end < free {
            true => range.start..range.end - (range.end - self.slot(at).2.start) % BLOCK,
            false => range,
        };
        let grant = self.shared.budget.read(range.end - range.start);
        self.insert(state, range, chunk, index, Some(grant), None)
    }

    /// Starts what lies in the window behind `end`, as far as memory goes.
    fn look_ahead(&self, state: &mut State, end: u64) {
        let target = end.saturating_add(state.cursor.window()).min(self.layout.size());
        let mut at = end;
        while at < target {
            if let Some(part) = state.part_at(at) {
                at = part.range.end;
                continue;
            }
            let (chunk, index, slot) = self.slot(at);
            let from = slot.start + (at - slot.start) / BLOCK * BLOCK;
            let to = slot.end.min(state.next_start(at)).min(from + PART_BYTES_MAX);
            let Some(grant) = self.shared.budget.try_read(to - from) else {
                state.cursor.refused();
                return;
            };
            self.insert(state, from..to, chunk, index, Some(grant), Some(self.turns.clone()));
            at = to;
        }
    }

    fn insert(
        &self,
        state: &mut State,
        range: Range<u64>,
        chunk: &ChunkRef,
        index: u64,
        grant: Option<crate::budget::Grant>,
        turns: Option<Arc<Semaphore>>,
    ) -> Arc<Part> {
        let at = usize::try_from(range.start % self.chunk_size()).expect("chunks are small");
        let len = usize::try_from(range.end - range.start).expect("parts are small");
        // Storage nodes give whole blocks.
        let stored = (at + len).next_multiple_of(BLOCK_BYTES).min(chunk.length as usize);
        let len = stored.saturating_sub(at);
        let source = Source { chunk: chunk.clone(), index, at, len };
        let part = Part::start(&self.shared, range.clone(), source, grant, turns);
        state.parts.insert(range.start, part.clone());
        part
    }

    fn chunk_size(&self) -> u64 {
        let Layout::Replicated { chunk_size, .. } = &*self.layout;
        (*chunk_size).into()
    }

    /// The chunk that holds byte `at` of the file, its number, and the bytes of the file it stands for.
    fn slot(&self, at: u64) -> (&ChunkRef, u64, Range<u64>) {
        let Layout::Replicated { size, chunks, .. } = &*self.layout;
        let index = at / self.chunk_size();
        let start = index * self.chunk_size();
        let chunk = &chunks[usize::try_from(index).expect("checked when the layout came")];
        (chunk, index, start..size.min(&(start + self.chunk_size())).to_owned())
    }

    async fn random(&self, offset: u64, end: u64) -> Result<Vec<Bytes>, Error> {
        let mut stretches = Vec::new();
        let mut at = offset;
        while at < end {
            let (chunk, index, slot) = self.slot(at);
            let to = end.min(slot.end);
            let (from, len) = (at - slot.start, to - at);
            stretches.push((
                chunk,
                index,
                usize::try_from(from).expect("chunks are small"),
                usize::try_from(len).expect("chunks are small"),
            ));
            at = to;
        }
        let fetch = |(chunk, index, from, len): (&ChunkRef, u64, usize, usize)| {
            let (shared, chunk) = (self.shared.clone(), chunk.clone());
            async move {
                let stored = len.min((chunk.length as usize).saturating_sub(from));
                let mut out = match stored {
                    0 => Vec::new(),
                    stored => fetch_blocks(&shared, &chunk, index, from, stored).await?,
                };
                zeros(len - stored, &mut out);
                Ok::<_, Error>(out)
            }
        };
        // Collected, since the compiler cannot prove that a lazy iterator of borrowed chunks may move between threads.
        let fetches: Vec<_> = stretches.into_iter().map(fetch).collect();
        let parallel = self.shared.options.parallel_downloads.max(1);
        let parts: Vec<Vec<Bytes>> = stream::iter(fetches).buffered(parallel).try_collect().await?;
        Ok(parts.into_iter().flatten().collect())
    }
}
