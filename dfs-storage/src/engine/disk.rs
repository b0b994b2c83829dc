//! The engine with one file a chunk.
//!
//! ```text
//! DIR/chunks/xx/0y/<id>.chunk    complete, durable chunks
//! DIR/tmp/<id>-<random>          chunks being written; emptied at start
//! DIR/quarantine/                bad copies, see engine::quarantine
//! ```
//!
//! Lock order: a stripe (by chunk) before the cache of open chunks. A stripe is held over check and rename, over unlink and
//! invalidation, and over opening and caching, so that a chunk can neither be counted twice nor stay cached after its
//! deletion; never over data I/O.

use std::{
    fs::{self, File},
    io,
    num::NonZeroUsize,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dfs_common::{ChunkId, checksum::BLOCK_BYTES, durable};
use lru::LruCache;
use sha2::{Digest as _, Sha256};

use super::{
    ChunkEngine, ChunkFacts, ChunkWriter, EngineError, Finished, Judged, Page, StoredChunk, Usage,
    direct::Buffers,
    footer::{self, FooterError, TRAILER_BYTES},
    listing,
    quarantine::{Quarantine, SetAside},
    shard::Shards,
    space::Space,
    writer::DiskWriter,
};

/// Chunks kept open. A sequential reader touches a chunk once or a few times, a random reader of one file many chunks; 256
/// descriptors are a quarter of the smallest usual limit.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// Bytes first read from the end of a file: the whole footer of chunks up to 8 MiB.
const TAIL_BYTES: usize = 4 * 128 + TRAILER_BYTES;
/// Bytes read at once when a whole chunk is checked.
const VERIFY_BYTES: usize = 1 << 20;
const STRIPES: usize = 64;
/// How often a copy that is exchanged for another one while it is judged is looked at.
const JUDGED_MAX: usize = 3;

/// What the engine and its writers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) tmp: PathBuf,
    pub(super) space: Arc<Space>,
    /// Buffers of writes past the page cache.
    pub(super) direct: Buffers,
    shards: Shards,
    quarantine: Quarantine,
    stripes: [Mutex<()>; STRIPES],
    open: Mutex<LruCache<ChunkId, Arc<DiskChunk>>>,
}

/// Chunks in one data directory.
#[derive(Debug)]
pub struct DiskEngine {
    shared: Arc<Shared>,
}

/// An open chunk file.
#[derive(Debug)]
struct DiskChunk {
    file: File,
    facts: ChunkFacts,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks protect is consistent between any two statements, so a panic elsewhere does no harm.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DiskEngine {
    /// Opens the chunks under `dir`, makes what is missing, drops leftovers of a crash and counts what is there. `capacity`
    /// bounds the bytes of chunks (default: the file system), `reserve` is left free on the file system (default: 1 GiB or
    /// 1 % of the capacity, whichever is smaller).
    ///
    /// # Errors
    /// The directory cannot be made, emptied or read.
    pub fn open(dir: &Path, capacity: Option<u64>, reserve: Option<u64>) -> Result<Self, EngineError> {
        Self::open_shared(dir, capacity, reserve, 1)
    }

    /// The same beside others: `share` data directories are on the same file system, and each has its part of what is free.
    ///
    /// # Errors
    /// As [`DiskEngine::open`].
    pub fn open_shared(
        dir: &Path,
        capacity: Option<u64>,
        reserve: Option<u64>,
        share: u64,
    ) -> Result<Self, EngineError> {
        let (chunks, tmp, quarantine) = (dir.join("chunks"), dir.join("tmp"), dir.join("quarantine"));
        for dir in [&chunks, &tmp, &quarantine] {
            durable::create_dir_all(dir).map_err(|e| EngineError::io("create", dir, e))?;
        }
        empty(&tmp).map_err(|e| EngineError::io("empty", &tmp, e))?;
        let failed = |e| EngineError::io("list", &quarantine, e);
        let quarantine = Quarantine::open(quarantine.clone()).map_err(failed)?;
        let shards = Shards::new(chunks);
        let count = listing::count(&shards)?;
        if count.foreign > 0 {
            tracing::warn!(dir = %shards.root().display(), files = count.foreign, "files that are no chunks are left alone");
        }
        let space = Arc::new(Space::new(dir.into(), capacity, reserve, share));
        space.add(count.bytes, count.chunks);
        let stripes = std::array::from_fn(|_| Mutex::new(()));
        let open = Mutex::new(LruCache::new(OPEN_MAX));
        let direct = Buffers::default();
        Ok(Self { shared: Arc::new(Shared { tmp, space, direct, shards, quarantine, stripes, open }) })
    }

    /// Chunks and their bytes, without asking the disk.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.shared.space.counts()
    }

    /// The ids of the chunks above `after`, at most `limit`, in order. Nothing is opened.
    ///
    /// # Errors
    /// The disk failed.
    pub fn ids(&self, after: Option<ChunkId>, limit: usize) -> Result<Vec<ChunkId>, EngineError> {
        listing::ids(self.shared.shards.root(), after, limit)
    }

    /// Copies in quarantine, and their bytes.
    #[must_use]
    pub fn quarantine_size(&self) -> (u64, u64) {
        self.shared.quarantine.size()
    }

    /// What is in quarantine, the oldest first.
    ///
    /// # Errors
    /// The disk failed.
    pub fn quarantined(&self) -> Result<Vec<SetAside>, EngineError> {
        self.shared.quarantine.list().map_err(|e| EngineError::io("list the quarantine of", &self.shared.tmp, e))
    }

    /// Removes a copy from quarantine for good.
    ///
    /// # Errors
    /// The disk failed.
    pub fn remove_quarantined(&self, copy: &SetAside) -> Result<(), EngineError> {
        self.shared
            .quarantine
            .remove(copy)
            .map_err(|e| EngineError::io("remove from quarantine in", &self.shared.tmp, e))
    }

    fn open_chunk(&self, id: ChunkId) -> Result<Arc<DiskChunk>, EngineError> {
        if let Some(chunk) = lock(&self.shared.open).get(&id) {
            return Ok(chunk.clone());
        }
        let _stripe = self.shared.stripe(id);
        let (file, facts) = open_file(&self.shared.shards.file(id), id)?;
        let chunk = Arc::new(DiskChunk { file, facts });
        lock(&self.shared.open).put(id, chunk.clone());
        Ok(chunk)
    }
}

impl Shared {
    fn stripe(&self, id: ChunkId) -> MutexGuard<'_, ()> {
        lock(&self.stripes[usize::from(id.0[2]) % STRIPES])
    }

    /// Moves a synced temporary file to its place, unless the identical chunk is there.
    pub(super) fn publish(&self, tmp: &Path, facts: &ChunkFacts) -> Result<Finished, EngineError> {
        let path = self.shards.file(facts.id);
        let failed = |e| EngineError::io("publish", &path, e);
        let _stripe = self.stripe(facts.id);
        match open_file(&path, facts.id) {
            Err(EngineError::Missing(_)) => {}
            Ok((_, present)) if present == *facts => {
                // It may come from a process that died between rename and fsync.
                self.shards.sync(facts.id).map_err(failed)?;
                return Ok(Finished::AlreadyThere);
            }
            Ok(_) => return Err(EngineError::Conflict(facts.id)),
            Err(EngineError::Corrupt { reason, .. }) => {
                tracing::warn!(chunk = %facts.id, reason, "a bad copy is in the way of a new one and is set aside");
                self.set_aside(facts.id, &path)?;
            }
            Err(error) => return Err(error),
        }
        self.shards.publish(tmp, facts.id).map_err(failed)?;
        self.space.add(footer::file_bytes(facts.length), 1);
        Ok(Finished::New)
    }

    /// Moves a chunk's file into quarantine, under its stripe.
    fn set_aside(&self, id: ChunkId, path: &Path) -> Result<(), EngineError> {
        let failed = |e| EngineError::io("set aside", path, e);
        lock(&self.open).pop(&id);
        let size = fs::symlink_metadata(path).map_err(failed)?.len();
        self.quarantine.take(path, id, size).map_err(failed)?;
        self.space.remove(size, 1);
        Ok(())
    }

    /// Sets a copy aside that was found bad, if it is still the file with number `inode`. `false` if it is not.
    fn condemn(&self, id: ChunkId, path: &Path, inode: u64) -> Result<bool, EngineError> {
        let _stripe = self.stripe(id);
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.ino() == inode => self.set_aside(id, path).map(|()| true),
            Ok(_) => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(EngineError::io("look at", path, e)),
        }
    }

    /// Unlinks a chunk's file under its stripe.
    fn remove(&self, id: ChunkId, path: &Path) -> Result<(), EngineError> {
        let failed = |e| EngineError::io("remove", path, e);
        lock(&self.open).pop(&id);
        let size = fs::symlink_metadata(path).map_err(failed)?.len();
        fs::remove_file(path).map_err(failed)?;
        self.space.remove(size, 1);
        Ok(())
    }
}

fn empty(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Has the next reading of a file come from the disk. Best effort: pages that are not written out yet stay, and are true.
fn forget_pages(path: &Path) {
    if let Ok(file) = File::open(path) {
        drop_pages(&file);
    }
}

fn drop_pages(file: &File) {
    // SAFETY: the descriptor is open for the whole call, which touches no memory of ours. It is advice: a failure changes nothing.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Opens a chunk's file and checks its footer.
pub(super) fn open_file(path: &Path, id: ChunkId) -> Result<(File, ChunkFacts), EngineError> {
    let failed = |e| EngineError::io("open", path, e);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(EngineError::Missing(id)),
        Err(e) => return Err(failed(e)),
    };
    let facts = read_footer(&file, id).map_err(|error| match error {
        ReadFooterError::Bad(reason) => EngineError::Corrupt { id, reason: reason.to_string() },
        ReadFooterError::Io(error) => EngineError::io("read the footer of", path, error),
    })?;
    Ok((file, facts))
}

#[derive(Debug, thiserror::Error)]
enum ReadFooterError {
    #[error(transparent)]
    Bad(#[from] FooterError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn read_footer(file: &File, id: ChunkId) -> Result<ChunkFacts, ReadFooterError> {
    let size = file.metadata()?.len();
    let tail_bytes = usize::try_from(size.min(TAIL_BYTES as u64)).expect("at most TAIL_BYTES");
    if tail_bytes < TRAILER_BYTES {
        return Err(FooterError::Truncated(size).into());
    }
    let mut tail = vec![0; tail_bytes];
    file.read_exact_at(&mut tail, size - tail_bytes as u64)?;
    let footer_bytes = footer::size_from_trailer(&tail[tail_bytes - TRAILER_BYTES..], size)?;
    if footer_bytes > tail_bytes {
        tail = vec![0; footer_bytes];
        file.read_exact_at(&mut tail, size - footer_bytes as u64)?;
    }
    Ok(footer::decode(&tail[tail.len() - footer_bytes..], id, size)?)
}

impl StoredChunk for DiskChunk {
    fn facts(&self) -> &ChunkFacts {
        &self.facts
    }

    fn read_at(&self, buffer: &mut [u8], offset: u32) -> Result<(), EngineError> {
        let id = self.facts.id;
        self.file.read_exact_at(buffer, offset.into()).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => EngineError::Corrupt { id, reason: "the file is truncated".into() },
            _ => EngineError::Io { action: "read chunk", path: id.to_string().into(), source: error },
        })
    }
}

impl ChunkEngine for DiskEngine {
    fn begin(&self, facts: ChunkFacts) -> Result<Box<dyn ChunkWriter>, EngineError> {
        Ok(Box::new(DiskWriter::create(self.shared.clone(), facts)?))
    }

    fn open(&self, id: ChunkId) -> Result<Arc<dyn StoredChunk>, EngineError> {
        Ok(self.open_chunk(id)?)
    }

    fn contains(&self, id: ChunkId) -> Result<bool, EngineError> {
        let path = self.shared.shards.file(id);
        path.try_exists().map_err(|e| EngineError::io("look for", path, e))
    }

    fn verify(&self, id: ChunkId) -> Result<ChunkFacts, EngineError> {
        let path = self.shared.shards.file(id);
        forget_pages(&path);
        let (file, facts) = open_file(&path, id)?;
        let chunk = DiskChunk { file, facts };
        let facts = &chunk.facts;
        let mut buffer = vec![0; VERIFY_BYTES.min(facts.length as usize).next_multiple_of(BLOCK_BYTES)];
        let (mut sha256, mut offset) = (Sha256::new(), 0);
        while offset < facts.length {
            let part = &mut buffer[..VERIFY_BYTES.min((facts.length - offset) as usize)];
            chunk.read_at(part, offset)?;
            facts
                .check_blocks(offset, part)
                .map_err(|mismatch| EngineError::Corrupt { id, reason: mismatch.to_string() })?;
            sha256.update(&*part);
            offset += u32::try_from(part.len()).expect("at most 1 MiB");
        }
        if <[u8; 32]>::from(sha256.finalize()) != facts.sha256 {
            return Err(EngineError::Corrupt { id, reason: "SHA-256 does not match".into() });
        }
        // What was read only to be checked shall not displace what readers want.
        drop_pages(&chunk.file);
        Ok(chunk.facts)
    }

    fn judge(&self, id: ChunkId, give_up: bool) -> Result<Judged, EngineError> {
        let path = self.shared.shards.file(id);
        for _ in 0..JUDGED_MAX {
            let inode = match fs::symlink_metadata(&path) {
                Ok(meta) => meta.ino(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Judged::Missing),
                Err(e) => return Err(EngineError::io("look at", &path, e)),
            };
            // A second reading tells what is bad on the disk from what was bad on its way.
            let reason = match self.verify(id).or_else(|_| self.verify(id)) {
                Ok(facts) => return Ok(Judged::Whole(facts)),
                Err(EngineError::Missing(_)) => return Ok(Judged::Missing),
                Err(EngineError::Corrupt { reason, .. }) => reason,
                Err(EngineError::Io { source, .. }) if give_up => format!("it cannot be read: {source}"),
                Err(error) => return Err(error),
            };
            if self.shared.condemn(id, &path, inode)? {
                return Ok(Judged::SetAside { reason });
            }
        }
        let error = io::Error::other("it is exchanged again and again");
        Err(EngineError::Io { action: "judge", path, source: error })
    }

    fn delete(&self, id: ChunkId) -> Result<bool, EngineError> {
        let _stripe = self.shared.stripe(id);
        let path = self.shared.shards.file(id);
        match self.shared.remove(id, &path) {
            Ok(()) => Ok(true),
            Err(EngineError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Result<Page, EngineError> {
        listing::page(self.shared.shards.root(), after, limit)
    }

    fn usage(&self) -> Result<Usage, EngineError> {
        self.shared.space.usage().map_err(|e| EngineError::io("ask for free space of", &self.shared.tmp, e))
    }
}
