//! The disks (data directories) of a node as one store of chunks.
//!
//! A chunk lives on one disk: the one with most room, measured against its size, when it was written. Which one that is is not
//! remembered but looked up, by asking each disk for the file: the disks are the truth, and a look-up is a system call a disk.
//!
//! Every call goes to the disks that work. The inventory is that of all of them together.

mod disk;
mod health;

use std::{cmp::Reverse, sync::Arc};

use dfs_common::ChunkId;

pub use disk::{Disk, Limits};
pub use health::Verdict;

use crate::engine::{ChunkEngine, ChunkFacts, ChunkWriter, EngineError, Judged, Page, StoredChunk, Usage};

/// All disks of a node.
#[derive(Debug)]
pub struct Disks {
    disks: Vec<Arc<Disk>>,
}

impl Disks {
    /// A node with these disks, at least one.
    #[must_use]
    pub fn new(disks: Vec<Arc<Disk>>) -> Self {
        assert!(!disks.is_empty(), "a node has a disk");
        Self { disks }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.iter()
    }

    /// Those that work.
    fn working(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.iter().filter(|disk| disk.failure().is_none())
    }

    /// Whether one of them works.
    #[must_use]
    pub fn any_works(&self) -> bool {
        self.working().next().is_some()
    }

    /// The disk that has a chunk.
    ///
    /// # Errors
    /// A disk that might have it cannot be asked, or none works.
    pub fn holder(&self, id: ChunkId) -> Result<Option<&Arc<Disk>>, EngineError> {
        self.first(|disk| Ok(disk.with(|engine| engine.contains(id))?.then_some(disk)))
    }

    /// The first answer of a disk; an error only if no other disk has one.
    fn first<'a, T>(
        &'a self,
        ask: impl Fn(&'a Arc<Disk>) -> Result<Option<T>, EngineError>,
    ) -> Result<Option<T>, EngineError> {
        let (mut failure, mut asked) = (None, false);
        for disk in self.working() {
            asked = true;
            match ask(disk) {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) => Err(error),
            None if asked => Ok(None),
            None => Err(EngineError::NoDisk),
        }
    }

    /// The same for what says that a chunk is missing by an error.
    fn found<'a, T>(
        &'a self,
        id: ChunkId,
        ask: impl Fn(&'a Arc<Disk>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let asked = self.first(|disk| match ask(disk) {
            Err(EngineError::Missing(_)) => Ok(None),
            answer => answer.map(Some),
        });
        asked?.ok_or(EngineError::Missing(id))
    }

    /// Begins to write on the disk with most room, or the next one if that cannot.
    fn begin_on_best(&self, facts: &ChunkFacts) -> Result<Box<dyn ChunkWriter>, EngineError> {
        let mut ranked: Vec<(u64, &Arc<Disk>)> = Vec::with_capacity(self.disks.len());
        let mut failure = None;
        for disk in self.working() {
            match disk.with(ChunkEngine::usage) {
                Ok(usage) => ranked.push((room(usage), disk)),
                Err(error) => failure = Some(error),
            }
        }
        ranked.sort_by_key(|(room, _)| Reverse(*room));
        for (_, disk) in ranked {
            match disk.begin(facts.clone()) {
                Ok(writer) => return Ok(writer),
                // The cause that a person can mend is that of the disk that was first choice.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or(EngineError::NoDisk))
    }
}

/// Available bytes in millionths of the capacity.
fn room(usage: Usage) -> u64 {
    let millionths = u128::from(usage.available_bytes) * 1_000_000 / u128::from(usage.capacity_bytes.max(1));
    u64::try_from(millionths).unwrap_or(u64::MAX)
}

impl ChunkEngine for Disks {
    fn begin(&self, facts: ChunkFacts) -> Result<Box<dyn ChunkWriter>, EngineError> {
        // A second copy beside the first would be of no use.
        match self.holder(facts.id) {
            Ok(Some(disk)) => disk.begin(facts),
            Ok(None) => self.begin_on_best(&facts),
            Err(error) => {
                tracing::debug!(chunk = %facts.id, %error, "a disk cannot say whether it has the chunk");
                self.begin_on_best(&facts)
            }
        }
    }

    fn open(&self, id: ChunkId) -> Result<Arc<dyn StoredChunk>, EngineError> {
        self.found(id, |disk| disk.open_chunk(id))
    }

    fn contains(&self, id: ChunkId) -> Result<bool, EngineError> {
        Ok(self.holder(id)?.is_some())
    }

    fn verify(&self, id: ChunkId) -> Result<ChunkFacts, EngineError> {
        self.found(id, |disk| disk.with(|engine| engine.verify(id)))
    }

    fn judge(&self, id: ChunkId, give_up: bool) -> Result<Judged, EngineError> {
        let judged = self.first(|disk| match disk.with(|engine| engine.judge(id, give_up))? {
            Judged::Missing => Ok(None),
            judged => Ok(Some(judged)),
        });
        Ok(judged?.unwrap_or(Judged::Missing))
    }

    fn delete(&self, id: ChunkId) -> Result<bool, EngineError> {
        let mut existed = false;
        // From every disk: two that wrote it at the same moment may both have it.
        for disk in self.working() {
            existed |= disk.with(|engine| engine.delete(id))?;
        }
        Ok(existed)
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Result<Page, EngineError> {
        // Without any disk that works there are no chunks here, and metadata should know.
        let pages = self.working().map(|disk| disk.with(|engine| engine.list(after, limit)));
        Ok(merge(pages.collect::<Result<_, _>>()?, limit))
    }

    fn usage(&self) -> Result<Usage, EngineError> {
        self.working().try_fold(Usage::default(), |sum, disk| {
            let usage = disk.with(ChunkEngine::usage)?;
            Ok(Usage {
                capacity_bytes: sum.capacity_bytes + usage.capacity_bytes,
                used_bytes: sum.used_bytes + usage.used_bytes,
                available_bytes: sum.available_bytes + usage.available_bytes,
                chunks: sum.chunks + usage.chunks,
            })
        })
    }
}

/// Pages of the same range of ids from several disks as one. It ends where the first of them ends that is not the last.
fn merge(pages: Vec<Page>, limit: usize) -> Page {
    let end = pages.iter().filter(|page| !page.last).filter_map(|page| page.chunks.last()).map(|held| held.id).min();
    let mut merged = Page { last: pages.iter().all(|page| page.last), ..Page::default() };
    for page in pages {
        merged.chunks.extend(page.chunks);
        page.damaged.into_iter().for_each(|id| merged.damaged(id));
    }
    merged.chunks.sort_unstable_by_key(|held| held.id);
    merged.chunks.dedup_by_key(|held| held.id);
    if let Some(end) = end {
        merged.chunks.retain(|held| held.id <= end);
    }
    if merged.chunks.len() > limit {
        merged.chunks.truncate(limit);
        merged.last = false;
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use dfs_common::FileId;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::Held;

    fn page(ids: &BTreeSet<u8>, after: Option<u8>, limit: usize) -> Page {
        let held = |n: &u8| Held { id: ChunkId([*n; 32]), file_id: FileId([0; 16]), length: 1 };
        let rest: Vec<_> = ids.iter().filter(|n| after.is_none_or(|after| **n > after)).map(held).collect();
        Page { last: rest.len() <= limit, chunks: rest.into_iter().take(limit).collect(), damaged: vec![] }
    }

    proptest! {
        #[test]
        fn merged_pages_list_every_chunk_once(
            disks in proptest::collection::vec(proptest::collection::btree_set(any::<u8>(), 0..40), 1..4),
            limit in 1..12usize,
        ) {
            let (mut after, mut seen) = (None, Vec::new());
            for round in 0.. {
                prop_assert!(round < 200, "ends");
                let merged = merge(disks.iter().map(|ids| page(ids, after, limit)).collect(), limit);
                prop_assert!(merged.last || !merged.chunks.is_empty());
                seen.extend(merged.chunks.iter().map(|held| held.id.0[0]));
                after = merged.chunks.last().map(|held| held.id.0[0]).or(after);
                if merged.last {
                    break;
                }
            }
            let all: BTreeSet<u8> = disks.iter().flatten().copied().collect();
            prop_assert_eq!(seen, all.into_iter().collect::<Vec<_>>());
        }
    }
}
