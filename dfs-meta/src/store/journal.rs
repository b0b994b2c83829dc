//! The records of the log on disk: files that are only appended to.
//!
//! ```text
//! journal-0000000007   sealed: nothing behind its last record            removed once all of its entries are purged
//! journal-0000000008   sealed                                            oldest first, each for good before the next
//! journal-0000000009   head, vote, committed, purged │ records │ zeros   appended to
//! ```
//!
//! A flush writes what was put since the last one behind the last record and ends with fdatasync. The file is filled with zeros
//! ahead of the records, so that most flushes change neither its size nor its extents: they cost the blocks of the records and no
//! commit of the file system's journal. A file that has reached [`FILE_BYTES`] is cut behind its last record and synced,
//! then the next one appears whole under its name. It begins with everything but the entries, so an older one is needed
//! for nothing else.
//!
//! What does not match its checksum in a sealed file is damage, and refused. In the last file it ends the log: a crash may
//! have cut the last write short, or parts of it may be on disk behind a part that is not. So it is cut off before the first
//! write. Whether it was acknowledged [`super::mark`] knows, and nothing is cut off before that was asked.
//!
//! The thread in [`super::writer`] makes all changes; anyone reads.

mod record;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dfs_common::{
    crash::{self, Point},
    durable,
};
use record::{HEAD_BYTES, Kind, Records, file_head, head, push};

use super::{StoreError, codec};
use crate::raft::types::{Entry, LogId, Vote};

/// A file that is longer is followed by another one. Bounds what a purged log still holds, and what is read at once at the start.
pub(crate) const FILE_BYTES: u64 = 16 << 20;
/// Zeros that are written at a time: a flush that takes long, once in some thousand.
const FILL_BYTES: usize = 512 << 10;

const PREFIX: &str = "journal-";

/// The open files.
pub(crate) struct Journal {
    root: PathBuf,
    file_bytes: u64,
    index: Mutex<Index>,
    tail: Mutex<Tail>,
}

/// Where everything is. Never locked during a write.
#[derive(Default)]
struct Index {
    entries: BTreeMap<u64, Place>,
    /// The files by their number; the last one is appended to.
    files: BTreeMap<u64, Arc<File>>,
    /// Bytes in the sealed ones.
    sealed_bytes: BTreeMap<u64, u64>,
}

/// Where the value of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    file: u64,
    at: u64,
    length: u32,
}

/// The end of the journal; for the writer.
struct Tail {
    number: u64,
    file: Arc<File>,
    /// Behind the last record in the file.
    end: u64,
    /// Length of the file; zeros behind `end`, unless it is `torn`.
    filled: u64,
    /// Behind `end` is what a crash has left.
    torn: bool,
    /// What the next flush writes.
    unwritten: Vec<u8>,
    /// There are entries in it.
    has_entries: bool,
    singles: Singles,
    /// Entries were purged since files were last looked at.
    purged: bool,
}

/// The last record of each other kind, encoded.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
struct Singles {
    vote: Option<Vec<u8>>,
    committed: Option<Vec<u8>>,
    purged: Option<(u64, Vec<u8>)>,
}

/// What is in the journal besides the entries' payload.
#[derive(Default)]
pub(crate) struct Contents {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    /// Position and encoded size in bytes of each entry, in order.
    pub(crate) entries: Vec<(LogId, u32)>,
}

impl Journal {
    /// Opens the files in `root` and reads and checks everything. A file of `file_bytes` is followed by another one.
    pub(crate) fn open(root: &Path, file_bytes: u64) -> Result<(Self, Contents), StoreError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull => StoreError::Full { path: root.to_owned() },
            _ => StoreError::io(root)(error),
        };
        durable::create_dir_all(root).map_err(failed)?;
        let mut numbers = numbers(root)?;
        if numbers.is_empty() {
            let path = path_of(root, 1);
            durable::write_file(&path, &file_head(1)).map_err(failed)?;
            numbers.push(1);
        }
        // A process that was killed may have named or removed one and not synced that: from here on the names count.
        durable::sync_dir(root).map_err(failed)?;
        if let Some(gap) = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
            let (path, reason) = (path_of(root, gap[0] + 1), "the file is missing".to_owned());
            return Err(StoreError::Open { path, reason });
        }
        let (index, ids, singles) = (Index::default(), BTreeMap::new(), Singles::default());
        let mut replay = Replay { root, index, ids, singles };
        let mut tail = None;
        for (at, number) in numbers.iter().enumerate() {
            tail = Some(replay.file(*number, at + 1 == numbers.len())?);
        }
        let tail = tail.expect("there is a file");
        let contents = replay.contents()?;
        let index = Mutex::new(replay.index);
        Ok((Self { root: root.to_owned(), file_bytes, index, tail: Mutex::new(tail) }, contents))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Every change is complete before it can panic.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries with an index in `from..to` that were flushed; those that are missing are left out.
    pub(crate) fn read(&self, from: u64, to: u64) -> Result<Vec<Entry>, StoreError> {
        let places: Vec<(u64, Place, Arc<File>)> = {
            let index = self.index();
            let file = |number| index.files.get(&number).expect("a file with entries is open").clone();
            index.entries.range(from..to).map(|(entry, place)| (*entry, *place, file(place.file))).collect()
        };
        let read = |(index, place, file): (u64, Place, Arc<File>)| {
            let path = path_of(&self.root, place.file);
            let mut bytes = vec![0; HEAD_BYTES + place.length as usize];
            file.read_exact_at(&mut bytes, place.at - HEAD_BYTES as u64).map_err(StoreError::io(&path))?;
            let (found, value) = bytes.split_at(HEAD_BYTES);
            if head(place.file, Kind::Entry, index, place.length, value) != found {
                return Err(corrupt(&path, &format!("entry {index}"), &"its checksum does not match"));
            }
            codec::decode(value).map_err(|e| corrupt(&path, &format!("entry {index}"), &e))
        };
        places.into_iter().map(read).collect()
    }

    /// Puts encoded entries in place; durable after [`Journal::flush`], as every change.
    pub(crate) fn put_entries(&self, records: &[(u64, Vec<u8>)]) -> io::Result<()> {
        let (tail, index) = (&mut *self.tail(), &mut *self.index());
        for (entry, value) in records {
            let length = u32::try_from(value.len()).map_err(io::Error::other)?;
            let at = tail.end + (tail.unwritten.len() + HEAD_BYTES) as u64;
            push(&mut tail.unwritten, tail.number, Kind::Entry, *entry, value);
            index.entries.insert(*entry, Place { file: tail.number, at, length });
        }
        tail.has_entries |= !records.is_empty();
        Ok(())
    }

    /// Entries from `since` on are void.
    pub(crate) fn truncate(&self, since: u64) {
        let tail = &mut *self.tail();
        push(&mut tail.unwritten, tail.number, Kind::Truncated, since, &[]);
        self.index().entries.split_off(&since);
    }

    /// Entries up to `upto` are not needed; `record` says so.
    pub(crate) fn purge(&self, upto: u64, record: Vec<u8>) {
        let tail = &mut *self.tail();
        push(&mut tail.unwritten, tail.number, Kind::Purged, upto, &record);
        tail.singles.purged = Some((upto, record));
        tail.purged = true;
        let index = &mut *self.index();
        index.entries = index.entries.split_off(&(upto.saturating_add(1)));
    }

    /// Puts the vote in place.
    pub(crate) fn put_vote(&self, record: Vec<u8>) {
        let tail = &mut *self.tail();
        push(&mut tail.unwritten, tail.number, Kind::Vote, 0, &record);
        tail.singles.vote = Some(record);
    }

    /// Puts the committed position in place.
    pub(crate) fn put_committed(&self, record: Vec<u8>) {
        let tail = &mut *self.tail();
        push(&mut tail.unwritten, tail.number, Kind::Committed, 0, &record);
        tail.singles.committed = Some(record);
    }

    /// Makes every change so far durable.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let tail = &mut *self.tail();
        if !tail.unwritten.is_empty() {
            tail.write(self.file_bytes)?;
            if std::mem::take(&mut tail.has_entries) {
                crash::point(Point::LogWritten);
            }
            tail.file.sync_data()?;
        }
        if tail.end >= self.file_bytes {
            self.begin_file(tail)?;
        }
        if std::mem::take(&mut tail.purged) {
            self.remove_purged(tail.number);
        }
        Ok(())
    }

    /// Seals the last file and begins another one.
    fn begin_file(&self, tail: &mut Tail) -> io::Result<()> {
        tail.file.set_len(tail.end)?;
        tail.filled = tail.end;
        tail.file.sync_all()?;
        crash::point(Point::LogSealed);
        let number = tail.number + 1;
        let path = path_of(&self.root, number);
        let bytes = tail.singles.first_bytes(number);
        match durable::write_file(&path, &bytes) {
            // The present one can be longer. The next entry may find no room for itself, which is when it counts. Once the next one
            // has its name, though, nothing may be written to the present one any more.
            Err(error) if error.kind() == io::ErrorKind::StorageFull && !path.try_exists()? => {
                tracing::warn!(path = %path.display(), %error, "no room for the next part of the log");
                return Ok(());
            }
            outcome => outcome?,
        }
        let file = Arc::new(OpenOptions::new().read(true).write(true).open(&path)?);
        let mut index = self.index();
        index.sealed_bytes.insert(tail.number, tail.end);
        index.files.insert(number, file.clone());
        (tail.number, tail.file) = (number, file);
        (tail.end, tail.filled) = (bytes.len() as u64, bytes.len() as u64);
        Ok(())
    }

    /// Removes the files whose entries are all purged. Only costs space if it fails, and is tried again after the next purge.
    fn remove_purged(&self, last: u64) {
        loop {
            let oldest = {
                let index = self.index();
                let needed = index.entries.first_key_value().map_or(last, |(_, place)| place.file);
                index.files.keys().next().copied().filter(|oldest| *oldest < needed.min(last))
            };
            let Some(oldest) = oldest else { return };
            let path = path_of(&self.root, oldest);
            // One after the other, so that what a crash leaves has no gap.
            if let Err(error) = fs::remove_file(&path).and_then(|()| durable::sync_dir(&self.root)) {
                tracing::warn!(path = %path.display(), %error, "a purged part of the log cannot be removed now");
                return;
            }
            let mut index = self.index();
            index.files.remove(&oldest);
            index.sealed_bytes.remove(&oldest);
            drop(index);
            crash::point(Point::LogShortened);
        }
    }

    /// Bytes on disk.
    pub(crate) fn size_bytes(&self) -> u64 {
        let filled = self.tail().filled;
        self.index().sealed_bytes.values().sum::<u64>() + filled
    }

    /// Where it is, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }
}

impl Tail {
    /// Writes what was put behind the last record.
    fn write(&mut self, file_bytes: u64) -> io::Result<()> {
        if self.torn {
            // For good before anything follows: otherwise a later start could take records behind it for its continuation.
            self.file.set_len(self.end)?;
            self.file.sync_all()?;
            (self.filled, self.torn) = (self.end, false);
        }
        self.file.write_all_at(&self.unwritten, self.end)?;
        self.end += self.unwritten.len() as u64;
        self.unwritten.clear();
        // A large entry does not stay in memory twice.
        self.unwritten.shrink_to(FILL_BYTES);
        if self.end > self.filled {
            self.filled = self.end;
            let room = usize::try_from(file_bytes.saturating_sub(self.end)).unwrap_or(FILL_BYTES);
            let zeros = vec![0; FILL_BYTES.min(room)];
            match self.file.write_all_at(&zeros, self.end) {
                Ok(()) => self.filled += zeros.len() as u64,
                // There was room for the records.
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Singles {
    /// What the file `number` begins with.
    fn first_bytes(&self, number: u64) -> Vec<u8> {
        let mut bytes = file_head(number).to_vec();
        let mut put = |kind, index, record: Option<&Vec<u8>>| {
            record.into_iter().for_each(|record| push(&mut bytes, number, kind, index, record));
        };
        put(Kind::Vote, 0, self.vote.as_ref());
        put(Kind::Committed, 0, self.committed.as_ref());
        put(Kind::Purged, self.purged.as_ref().map_or(0, |(upto, _)| *upto), self.purged.as_ref().map(|(_, r)| r));
        bytes
    }
}

/// Reads the files one after the other.
struct Replay<'a> {
    root: &'a Path,
    index: Index,
    ids: BTreeMap<u64, LogId>,
    singles: Singles,
}

impl Replay<'_> {
    /// Takes the records of a file. The last one's end is where the journal goes on.
    fn file(&mut self, number: u64, is_last: bool) -> Result<Tail, StoreError> {
        let path = path_of(self.root, number);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(StoreError::io(&path))?;
        let file = Arc::new(file);
        let bytes = fs::read(&path).map_err(StoreError::io(&path))?;
        let Some(mut records) = Records::of(&bytes, number) else {
            return Err(corrupt(&path, "its first bytes", &"they are not those of this file"));
        };
        for found in &mut records {
            match found.kind {
                Kind::Entry => {
                    let what = format!("entry {}", found.index);
                    let id: LogId = codec::decode_prefix(found.value).map_err(|e| corrupt(&path, &what, &e))?;
                    if id.index != found.index {
                        return Err(corrupt(&path, &what, &format!("it holds entry {}", id.index)));
                    }
                    let length = u32::try_from(found.value.len()).map_err(|e| corrupt(&path, &what, &e))?;
                    let place = Place { file: number, at: found.at as u64, length };
                    self.index.entries.insert(found.index, place);
                    self.ids.insert(found.index, id);
                }
                Kind::Truncated => {
                    self.index.entries.split_off(&found.index);
                    self.ids.split_off(&found.index);
                }
                Kind::Vote => self.singles.vote = Some(found.value.to_vec()),
                Kind::Committed => self.singles.committed = Some(found.value.to_vec()),
                Kind::Purged => {
                    self.singles.purged = Some((found.index, found.value.to_vec()));
                    let behind = found.index.saturating_add(1);
                    self.index.entries = self.index.entries.split_off(&behind);
                    self.ids = self.ids.split_off(&behind);
                }
            }
        }
        let (end, length) = (records.end, bytes.len() as u64);
        if !is_last && end != bytes.len() {
            return Err(corrupt(&path, &format!("byte {end}"), &"what stands there is no record"));
        }
        let torn = bytes[end..].iter().any(|byte| *byte != 0);
        if torn {
            tracing::info!(path = %path.display(), byte = end, "the last write to the log was cut short");
        }
        if is_last {
            // A process that was killed may have written this and not synced it: from here on it counts as flushed.
            file.sync_data().map_err(StoreError::io(&path))?;
        } else {
            self.index.sealed_bytes.insert(number, length);
        }
        self.index.files.insert(number, file.clone());
        Ok(Tail {
            number,
            file,
            end: end as u64,
            filled: length,
            torn,
            unwritten: Vec::new(),
            has_entries: false,
            singles: self.singles.clone(),
            // A crash may have come between a purge and the removal of files.
            purged: true,
        })
    }

    fn contents(&self) -> Result<Contents, StoreError> {
        let (root, singles) = (self.root, &self.singles);
        let purged = singles.purged.as_ref().map(|(_, record)| record);
        let sizes = self.index.entries.iter().map(|(index, place)| (self.ids[index], place.length));
        Ok(Contents {
            vote: decoded(root, "the vote", singles.vote.as_ref())?,
            committed: decoded(root, "the committed position", singles.committed.as_ref())?,
            purged: decoded(root, "the purged position", purged)?,
            entries: sizes.collect(),
        })
    }
}

fn decoded<T: serde::de::DeserializeOwned>(
    root: &Path,
    what: &str,
    record: Option<&Vec<u8>>,
) -> Result<Option<T>, StoreError> {
    record.map(|bytes| codec::decode(bytes).map_err(|e| corrupt(root, what, &e))).transpose()
}

fn corrupt(path: &Path, record: &str, reason: &dyn ToString) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), record: record.to_owned(), reason: reason.to_string() }
}

fn path_of(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{PREFIX}{number:010}"))
}

/// Numbers of the files in `root`, in order. What a crash has left of a file that was to appear is removed.
fn numbers(root: &Path) -> Result<Vec<u64>, StoreError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(root).map_err(StoreError::io(root))? {
        let entry = entry.map_err(StoreError::io(root))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "CURRENT" || name.starts_with("log-") {
            return Err(StoreError::Earlier { path: entry.path() });
        }
        let Some(number) = name.strip_prefix(PREFIX) else { continue };
        if number.ends_with(".tmp") {
            fs::remove_file(entry.path()).map_err(StoreError::io(entry.path()))?;
        } else if let Ok(number) = number.parse() {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests;
