//! The log's database: the only module that names sled.
//!
//! Four trees: entries by index, and one record each of vote, committed and purged position. All writes come from the thread
//! in [`super::writer`]; reads come from anywhere. One database is open per process, because two can deadlock in flush.
//!
//! Sled's own flush hands the bytes to the disk (`sync_file_range`), but neither makes the disk write its cache nor commits
//! the size and extents of a file that grows: after a power failure the last entries could be gone. So [`Disk::flush`] ends
//! with fdatasync of the same file. Large values, and pages that several of them share, are files of their own in `blobs/`, which
//! sled does not sync at all: that is done here, too, before the file that refers to them.
//!
//! At start sled writes what it has found to a file of its own, aside and then renamed. One that a crash or a full disk has left
//! half written it takes for its newest one at the next start, and finds the database damaged: [`remove_half_written`].
//!
//! Sled reuses the space of removed records but never shrinks its file. When the directory is larger than
//! [`REBUILD_BYTES_MIN`] and [`REBUILD_FACTOR`] times the live bytes at start, the live records go through a plain file into a
//! database in the next generation's directory, which becomes the current one by replacing `CURRENT`. A crash at any point
//! leaves the old generation current; directories that are not current are removed at the next start.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use dfs_common::durable;

use super::{
    Database, StoreError,
    codec::{self, CodecError},
};
use crate::raft::types::{Entry, LogId, Vote};

/// Page cache of the database, bytes. The log's tail is cached decoded (see [`super::log`]), so this only serves followers
/// that lag and restarts.
const CACHE_BYTES: u64 = 32 << 20;
/// A smaller directory is never rebuilt: it is what a healthy log takes.
pub(crate) const REBUILD_BYTES_MIN: u64 = 256 << 20;
/// A directory is rebuilt when it is this many times larger than its live records.
pub(crate) const REBUILD_FACTOR: u64 = 4;

/// How long a database that was dropped may stay locked.
const LET_GO: Duration = Duration::from_secs(2);

const CURRENT: &str = "CURRENT";
const SINGLE: &[u8] = b"";

/// The open database.
pub(crate) struct Disk {
    db: sled::Db,
    entries: sled::Tree,
    vote: sled::Tree,
    committed: sled::Tree,
    purged: sled::Tree,
    path: PathBuf,
    /// The file of the database, to sync it.
    file: File,
    /// Files of large values that are on disk for good.
    synced_blobs: Mutex<HashSet<OsString>>,
}

/// What is in the database besides the entries' payload.
#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// Position and encoded size in bytes of each entry, in order.
    pub(crate) entries: Vec<(LogId, u32)>,
}

impl Disk {
    /// Opens the current generation under `root`, rebuilding it when it has outgrown its contents.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, REBUILD_BYTES_MIN)
    }

    pub(crate) fn open_with(root: &Path, rebuild_bytes_min: u64) -> Result<Self, StoreError> {
        durable::create_dir_all(root).map_err(StoreError::io(root))?;
        let name = current(root)?;
        remove_others(root, &name)?;
        let disk = Self::open_generation(root.join(&name))?;
        let (size, live) = (disk.size_bytes(), disk.live_bytes()?);
        if size <= rebuild_bytes_min || size / REBUILD_FACTOR <= live {
            return Ok(disk);
        }
        let next = generation_after(&name);
        tracing::info!(size, live, from = name, to = next, "rebuilding the log's database to give disk space back");
        disk.rebuild(root, &next)
    }

    fn open_generation(path: PathBuf) -> Result<Self, StoreError> {
        let fail = |reason: sled::Error| match reason {
            sled::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => {
                StoreError::Full { path: path.clone() }
            }
            reason => StoreError::Open { path: path.clone(), reason: reason.to_string() },
        };
        let config = sled::Config::new()
            .path(&path)
            .cache_capacity(CACHE_BYTES)
            // Flushes are made by the writer thread, when an answer depends on them.
            .flush_every_ms(None);
        remove_half_written(&path).map_err(StoreError::io(&path))?;
        let begun = Instant::now();
        let db = loop {
            match config.open() {
                // A database that this process has just dropped is let go by sled's threads a moment later. Another process
                // cannot have it: the data directory is locked.
                Err(error) if error.to_string().contains("acquire lock") && begun.elapsed() < LET_GO => {
                    thread::sleep(Duration::from_millis(5));
                }
                outcome => break outcome.map_err(fail)?,
            }
        };
        let tree = |name: &str| db.open_tree(name).map_err(fail);
        let (entries, vote, committed, purged) = (tree("entries")?, tree("vote")?, tree("committed")?, tree("purged")?);
        let file = path.join("db");
        let file = File::open(&file).map_err(StoreError::io(file))?;
        // The directory's own entries: everything below may be new.
        durable::sync_dir(&path).map_err(StoreError::io(&path))?;
        Ok(Self { db, entries, vote, committed, purged, path, file, synced_blobs: Mutex::default() })
    }

    /// Syncs the files of large values that are new. There are few: sled removes them with the pages that refer to them.
    fn sync_blobs(&self) -> io::Result<()> {
        let dir = self.path.join("blobs");
        let mut synced = self.synced_blobs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut present = HashSet::new();
        let mut is_new = false;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if !synced.contains(&entry.file_name()) {
                match File::open(entry.path()) {
                    Ok(file) => file.sync_all()?,
                    // Removed meanwhile: nothing refers to it any more.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                is_new = true;
            }
            present.insert(entry.file_name());
        }
        *synced = present;
        if is_new { durable::sync_dir(&dir) } else { Ok(()) }
    }

    fn single<T: serde::de::DeserializeOwned>(&self, tree: &sled::Tree, name: &str) -> Result<Option<T>, StoreError> {
        let value = tree.get(SINGLE).map_err(|e| self.corrupt(name, &e))?;
        value.map(|bytes| codec::decode(&bytes).map_err(|e: CodecError| self.corrupt(name, &e))).transpose()
    }

    fn index_of(&self, key: &[u8]) -> Result<u64, StoreError> {
        key.try_into().map(u64::from_be_bytes).map_err(|_| self.corrupt("an entry", &"its key is not an index"))
    }

    fn corrupt(&self, record: &str, reason: &dyn ToString) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), record: record.to_owned(), reason: reason.to_string() }
    }

    fn trees(&self) -> [&sled::Tree; 4] {
        [&self.entries, &self.vote, &self.committed, &self.purged]
    }

    fn live_bytes(&self) -> Result<u64, StoreError> {
        let mut live = 0;
        for tree in self.trees() {
            for record in tree.iter() {
                let (key, value) = record.map_err(|e| self.corrupt("a record", &e))?;
                live += (key.len() + value.len()) as u64;
            }
        }
        Ok(live)
    }

    /// Copies the live records into generation `next` and makes it the current one.
    fn rebuild(self, root: &Path, next: &str) -> Result<Self, StoreError> {
        let copy = root.join("rebuild.tmp");
        self.dump(&copy)?;
        let old = self.path.clone();
        drop(self);
        let fresh = Self::open_generation(root.join(next))?;
        fresh.load(&copy).and_then(|()| fresh.flush()).map_err(StoreError::io(&copy))?;
        durable::sync_dir(root).map_err(StoreError::io(root))?;
        durable::write_file(&root.join(CURRENT), next.as_bytes()).map_err(StoreError::io(root))?;
        fs::remove_file(&copy).map_err(StoreError::io(&copy))?;
        fs::remove_dir_all(&old).map_err(StoreError::io(&old))?;
        Ok(fresh)
    }

    /// Writes all records to a plain file: tree number, key length, value length, key, value.
    fn dump(&self, path: &Path) -> Result<(), StoreError> {
        let mut file = BufWriter::new(File::create(path).map_err(StoreError::io(path))?);
        for (number, tree) in (0u8..).zip(self.trees()) {
            for record in tree.iter() {
                let (key, value) = record.map_err(|e| self.corrupt("a record", &e))?;
                let lengths = [key.len(), value.len()].map(|len| (len as u64).to_le_bytes());
                let write = |file: &mut BufWriter<File>| {
                    file.write_all(&[number])?;
                    file.write_all(lengths.as_flattened())?;
                    file.write_all(&key)?;
                    file.write_all(&value)
                };
                write(&mut file).map_err(StoreError::io(path))?;
            }
        }
        file.flush().map_err(StoreError::io(path))
    }

    fn load(&self, path: &Path) -> io::Result<()> {
        let mut file = BufReader::new(File::open(path)?);
        let mut head = [0; 17];
        loop {
            match file.read_exact(&mut head) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(e) => return Err(e),
            }
            let length = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
            let mut take = |len: u64| {
                let mut bytes = Vec::new();
                (&mut file).take(len).read_to_end(&mut bytes).map(|_| bytes)
            };
            let (key, value) = (take(length(1))?, take(length(9))?);
            self.trees()[usize::from(head[0] & 3)].insert(key, value).map_err(to_io)?;
        }
    }
}

impl Database for Disk {
    fn contents(&self) -> Result<Contents, StoreError> {
        let mut contents = Contents {
            vote: self.single(&self.vote, "vote")?,
            committed: self.single(&self.committed, "committed")?,
            purged: self.single(&self.purged, "purged")?,
            entries: Vec::new(),
        };
        for record in self.entries.iter() {
            let (key, value) = record.map_err(|e| self.corrupt("an entry", &e))?;
            let index = self.index_of(&key)?;
            let what = format!("entry {index}");
            let log_id: LogId = codec::decode_prefix(&value).map_err(|e| self.corrupt(&what, &e))?;
            if log_id.index != index {
                return Err(self.corrupt(&what, &format!("it holds entry {}", log_id.index)));
            }
            let size = u32::try_from(value.len()).map_err(|e| self.corrupt(&what, &e))?;
            contents.entries.push((log_id, size));
        }
        Ok(contents)
    }

    fn read(&self, from: u64, to: u64) -> Result<Vec<Entry>, StoreError> {
        let range = self.entries.range(from.to_be_bytes()..to.to_be_bytes());
        range
            .map(|record| {
                let (key, value) = record.map_err(|e| self.corrupt("an entry", &e))?;
                let index = self.index_of(&key)?;
                codec::decode(&value).map_err(|e| self.corrupt(&format!("entry {index}"), &e))
            })
            .collect()
    }

    fn put_entries(&self, records: Vec<(u64, Vec<u8>)>) -> io::Result<()> {
        let mut batch = sled::Batch::default();
        // A batch of one costs sled two more writes than the plain insert.
        if let [(_, _)] = &records[..] {
            return records.into_iter().try_for_each(|(index, bytes)| {
                self.entries.insert(index.to_be_bytes(), bytes).map(drop).map_err(to_io)
            });
        }
        for (index, bytes) in records {
            batch.insert(&index.to_be_bytes(), bytes);
        }
        self.entries.apply_batch(batch).map_err(to_io)
    }

    fn remove_entries(&self, from: u64, to: u64, limit: usize, from_the_end: bool) -> io::Result<bool> {
        let range = self.entries.range(from.to_be_bytes()..=to.to_be_bytes()).keys();
        let keys: Vec<sled::IVec> = if from_the_end {
            range.rev().take(limit).collect::<Result<_, _>>().map_err(to_io)?
        } else {
            range.take(limit).collect::<Result<_, _>>().map_err(to_io)?
        };
        let more = keys.len() == limit;
        for key in keys {
            self.entries.remove(key).map_err(to_io)?;
        }
        Ok(more)
    }

    fn put_vote(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.vote.insert(SINGLE, bytes).map(drop).map_err(to_io)
    }

    fn put_committed(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.committed.insert(SINGLE, bytes).map(drop).map_err(to_io)
    }

    fn put_purged(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.purged.insert(SINGLE, bytes).map(drop).map_err(to_io)
    }

    fn flush(&self) -> io::Result<()> {
        self.db.flush().map_err(to_io)?;
        self.sync_blobs()?;
        self.file.sync_data()
    }

    fn size_bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Name of the generation in use; the first one is made current.
fn current(root: &Path) -> Result<String, StoreError> {
    let path = root.join(CURRENT);
    match fs::read_to_string(&path) {
        Ok(name) if is_generation(&name) => Ok(name),
        Ok(name) => Err(StoreError::Open { path, reason: format!("{name:?} is not the name of a log directory") }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Written before the first log is made: a log without it has lost it, and which of several counts is unknown.
            for entry in fs::read_dir(root).map_err(StoreError::io(root))? {
                let found = entry.map_err(StoreError::io(root))?.file_name().to_string_lossy().into_owned();
                if is_generation(&found) {
                    let reason = format!("the file is missing, though {found} is there");
                    return Err(StoreError::Open { path, reason });
                }
            }
            let name = "log-0001";
            durable::write_file(&path, name.as_bytes()).map_err(StoreError::io(&path))?;
            Ok(name.to_owned())
        }
        Err(source) => Err(StoreError::Io { path, source }),
    }
}

fn is_generation(name: &str) -> bool {
    name.strip_prefix("log-").is_some_and(|number| number.len() >= 4 && number.bytes().all(|b| b.is_ascii_digit()))
}

fn generation_after(name: &str) -> String {
    let number: u64 = name.trim_start_matches("log-").parse().unwrap_or(0);
    format!("log-{:04}", number + 1)
}

/// Removes what a crash during a rebuild left behind.
fn remove_others(root: &Path, current: &str) -> Result<(), StoreError> {
    for entry in fs::read_dir(root).map_err(StoreError::io(root))? {
        let entry = entry.map_err(StoreError::io(root))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".tmp") {
            fs::remove_file(entry.path()).map_err(StoreError::io(entry.path()))?;
        } else if is_generation(&name) && name != current {
            fs::remove_dir_all(entry.path()).map_err(StoreError::io(entry.path()))?;
        }
    }
    Ok(())
}

/// Removes the files that sled was writing when it was interrupted; what they were to replace is still there.
fn remove_half_written(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            tracing::info!(name, "removing what an interrupted start has left");
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn to_io(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(e) => e,
        other => io::Error::other(other.to_string()),
    }
}
