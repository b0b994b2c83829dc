//! Walks over the chunk directories: the count at start and the pages of the inventory.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use dfs_common::ChunkId;

use super::{EngineError, Held, Page, disk, shard, shard::Shards};

/// Threads that count at start. stat on a cold disk waits, so more than cores help; a spinning disk gains nothing beyond.
const SCAN_THREADS: usize = 4;

/// How often a footer is read before it is taken for unreadable.
const OPENED_MAX: usize = 4;

/// What is on the disk.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) bytes: u64,
    pub(super) chunks: u64,
    pub(super) foreign: u64,
}

/// Counts all chunks by name and size; footers are not read.
pub(super) fn count(shards: &Shards) -> Result<Count, EngineError> {
    let root = shards.root();
    shard::sync_file_system(root).map_err(|e| EngineError::io("sync", root, e))?;
    let tops = shard::subdirs(root).map_err(|e| EngineError::io("list", root, e))?;
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut count = Count::default();
        while let Some(top) = tops.get(next.fetch_add(1, Ordering::Relaxed)) {
            count_top(shards, *top, &mut count)?;
        }
        Ok(count)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..SCAN_THREADS).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().try_fold(Count::default(), |sum, thread| {
            let part: Result<Count, EngineError> = thread.join().expect("counting does not panic");
            let part = part?;
            Ok(Count {
                bytes: sum.bytes + part.bytes,
                chunks: sum.chunks + part.chunks,
                foreign: sum.foreign + part.foreign,
            })
        })
    })
}

fn count_top(shards: &Shards, top: u8, count: &mut Count) -> Result<(), EngineError> {
    let dir = shards.root().join(format!("{top:02x}"));
    for leaf in shard::subdirs(&dir).map_err(|e| EngineError::io("list", &dir, e))? {
        let dir = shard::leaf_dir(shards.root(), top, leaf);
        let failed = |e| EngineError::io("list", &dir, e);
        for entry in shard::read_dir(&dir).map_err(failed)?.into_iter().flatten() {
            let entry = entry.map_err(failed)?;
            if shard::chunk_of(&entry.file_name(), top, leaf).is_some() {
                count.bytes += entry.metadata().map_err(failed)?.len();
                count.chunks += 1;
            } else {
                count.foreign += 1;
            }
        }
        shards.mark_durable(top, leaf);
    }
    Ok(())
}

/// One page of the inventory.
pub(super) fn page(root: &Path, after: Option<ChunkId>, limit: usize) -> Result<Page, EngineError> {
    let mut page = Page::default();
    let from = after.map_or([0, 0], |id| [id.0[0], shard::leaf_of(id)]);
    for top in shard::subdirs(root).map_err(|e| EngineError::io("list", root, e))? {
        if top < from[0] {
            continue;
        }
        let dir = root.join(format!("{top:02x}"));
        for leaf in shard::subdirs(&dir).map_err(|e| EngineError::io("list", &dir, e))? {
            if [top, leaf] < from {
                continue;
            }
            let dir = shard::leaf_dir(root, top, leaf);
            let ids = ids_after(&dir, top, leaf, after).map_err(|e| EngineError::io("list", &dir, e))?;
            for id in ids {
                if page.chunks.len() >= limit {
                    return Ok(page);
                }
                add(&mut page, &dir, id)?;
            }
        }
    }
    page.last = true;
    Ok(page)
}

/// The ids of the chunks above `after`, at most `limit`.
pub(super) fn ids(root: &Path, after: Option<ChunkId>, limit: usize) -> Result<Vec<ChunkId>, EngineError> {
    let mut found = Vec::new();
    let from = after.map_or([0, 0], |id| [id.0[0], shard::leaf_of(id)]);
    for top in shard::subdirs(root).map_err(|e| EngineError::io("list", root, e))? {
        let dir = root.join(format!("{top:02x}"));
        if top < from[0] {
            continue;
        }
        for leaf in shard::subdirs(&dir).map_err(|e| EngineError::io("list", &dir, e))? {
            if [top, leaf] < from {
                continue;
            }
            let dir = shard::leaf_dir(root, top, leaf);
            found.extend(ids_after(&dir, top, leaf, after).map_err(|e| EngineError::io("list", &dir, e))?);
            if found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
        }
    }
    Ok(found)
}

fn ids_after(dir: &Path, top: u8, leaf: u8, after: Option<ChunkId>) -> io::Result<Vec<ChunkId>> {
    let mut ids = Vec::new();
    for entry in shard::read_dir(dir)?.into_iter().flatten() {
        ids.extend(shard::chunk_of(&entry?.file_name(), top, leaf).filter(|id| after.is_none_or(|after| *id > after)));
    }
    ids.sort_unstable();
    Ok(ids)
}

fn add(page: &mut Page, dir: &Path, id: ChunkId) -> Result<(), EngineError> {
    let path = dir.join(format!("{id}.chunk"));
    let open = || disk::open_file(&path, id);
    // What cannot be opened is missing on the page, and a copy counts as lost then: a passing error must not do that.
    let opened = (1..OPENED_MAX).fold(open(), |opened, _| match opened {
        Err(EngineError::Io { .. }) => open(),
        done => done,
    });
    match opened {
        Ok((_, facts)) => page.chunks.push(Held { id, file_id: facts.file_id, length: facts.length }),
        Err(EngineError::Missing(_)) => {} // deleted since the directory was read
        Err(EngineError::Corrupt { .. }) => page.damaged(id),
        // One unreadable sector must not hide all other chunks; anything else (no descriptors, no memory) may pass.
        Err(EngineError::Io { source, .. }) if matches!(source.raw_os_error(), Some(libc::EIO | libc::EISDIR)) => {
            page.damaged(id);
        }
        Err(error) => return Err(error),
    }
    Ok(())
}
