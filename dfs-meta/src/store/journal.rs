//! The log's database as one plain file that is only appended to. It stands in for sled in a simulation, where everything
//! runs on one thread: sled has threads of its own. Everything above it is the same code.
//!
//! A record is kind (u8), index (u64), length of the value (u32), CRC32C of these and the value (u32), value; all little
//! endian. The last record of a kind and index counts. A record that is cut off or does not match its checksum ends the file:
//! it was never flushed.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use dfs_common::{checksum::crc32c, durable};

use super::{Database, StoreError, codec, disk::Contents};
use crate::raft::types::{Entry, LogId};

const NAME: &str = "journal";
const HEAD_BYTES: usize = 17;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
enum Kind {
    Entry = 1,
    Removed = 2,
    Vote = 3,
    Committed = 4,
    Purged = 5,
}

/// The open file.
pub(crate) struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    unwritten: Vec<u8>,
    values: BTreeMap<(Kind, u64), Vec<u8>>,
}

impl Journal {
    /// Opens the file in `root`, cutting off what was not flushed.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        durable::create_dir_all(root).map_err(StoreError::io(root))?;
        let path = root.join(NAME);
        let opened = || {
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error),
            };
            let (values, good) = replay(&bytes);
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.set_len(good as u64)?;
            file.sync_all()?;
            durable::sync_dir(root)?;
            Ok(Inner { file, unwritten: Vec::new(), values })
        };
        let inner = Mutex::new(opened().map_err(StoreError::io(&path))?);
        Ok(Self { path, inner })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, kind: Kind, index: u64, value: Vec<u8>) -> io::Result<()> {
        let inner = &mut *self.inner();
        inner.unwritten.extend_from_slice(&head(kind, index, &value)?);
        inner.unwritten.extend_from_slice(&value);
        match kind {
            Kind::Removed => drop(inner.values.remove(&(Kind::Entry, index))),
            Kind::Entry | Kind::Vote | Kind::Committed | Kind::Purged => {
                drop(inner.values.insert((kind, index), value))
            }
        }
        Ok(())
    }

    fn single<T: serde::de::DeserializeOwned>(&self, kind: Kind) -> Result<Option<T>, StoreError> {
        let inner = self.inner();
        let value = inner.values.get(&(kind, 0));
        value.map(|bytes| codec::decode(bytes).map_err(|e| self.corrupt(format!("{kind:?}"), &e))).transpose()
    }

    fn corrupt(&self, record: String, reason: &dyn ToString) -> StoreError {
        StoreError::Corrupt { path: self.path.clone(), record, reason: reason.to_string() }
    }
}

fn head(kind: Kind, index: u64, value: &[u8]) -> io::Result<[u8; HEAD_BYTES]> {
    let length = u32::try_from(value.len()).map_err(io::Error::other)?;
    let mut head = [0; HEAD_BYTES];
    head[0] = kind as u8;
    head[1..9].copy_from_slice(&index.to_le_bytes());
    head[9..13].copy_from_slice(&length.to_le_bytes());
    let sum = crc32c(&[&head[..13], value].concat());
    head[13..].copy_from_slice(&sum.to_le_bytes());
    Ok(head)
}

/// What the records say, and how many bytes of them are good.
fn replay(bytes: &[u8]) -> (BTreeMap<(Kind, u64), Vec<u8>>, usize) {
    let mut values = BTreeMap::new();
    let mut good = 0;
    while let Some(found) = bytes.get(good..good + HEAD_BYTES) {
        let index = u64::from_le_bytes(*found[1..].first_chunk().expect("longer"));
        let length = u32::from_le_bytes(*found[9..].first_chunk().expect("longer")) as usize;
        let kinds = [Kind::Entry, Kind::Removed, Kind::Vote, Kind::Committed, Kind::Purged];
        let kind = kinds.into_iter().find(|kind| *kind as u8 == found[0]);
        let start = good + HEAD_BYTES;
        let (Some(kind), Some(value)) = (kind, bytes.get(start..start + length)) else { break };
        if head(kind, index, value).ok().as_ref().map(<[u8; HEAD_BYTES]>::as_slice) != Some(found) {
            break;
        }
        match kind {
            Kind::Removed => drop(values.remove(&(Kind::Entry, index))),
            Kind::Entry | Kind::Vote | Kind::Committed | Kind::Purged => {
                drop(values.insert((kind, index), value.to_vec()))
            }
        }
        good = start + length;
    }
    (values, good)
}

impl Database for Journal {
    fn contents(&self) -> Result<Contents, StoreError> {
        let mut contents = Contents {
            vote: self.single(Kind::Vote)?,
            committed: self.single(Kind::Committed)?,
            purged: self.single(Kind::Purged)?,
            entries: Vec::new(),
        };
        for ((_, index), value) in self.inner().values.range((Kind::Entry, 0)..=(Kind::Entry, u64::MAX)) {
            let id: LogId = codec::decode_prefix(value).map_err(|e| self.corrupt(format!("entry {index}"), &e))?;
            let size = u32::try_from(value.len()).map_err(|e| self.corrupt(format!("entry {index}"), &e))?;
            contents.entries.push((id, size));
        }
        Ok(contents)
    }

    fn read(&self, from: u64, to: u64) -> Result<Vec<Entry>, StoreError> {
        let inner = self.inner();
        let range = inner.values.range((Kind::Entry, from)..(Kind::Entry, to));
        range
            .map(|((_, index), value)| codec::decode(value).map_err(|e| self.corrupt(format!("entry {index}"), &e)))
            .collect()
    }

    fn put_entries(&self, records: Vec<(u64, Vec<u8>)>) -> io::Result<()> {
        records.into_iter().try_for_each(|(index, bytes)| self.put(Kind::Entry, index, bytes))
    }

    fn remove_entries(&self, from: u64, to: u64, limit: usize, from_the_end: bool) -> io::Result<bool> {
        let indexes: Vec<u64> = {
            let inner = self.inner();
            let range = inner.values.range((Kind::Entry, from)..=(Kind::Entry, to)).map(|((_, index), _)| *index);
            if from_the_end { range.rev().take(limit).collect() } else { range.take(limit).collect() }
        };
        let more = indexes.len() == limit;
        indexes.into_iter().try_for_each(|index| self.put(Kind::Removed, index, Vec::new()))?;
        Ok(more)
    }

    fn put_vote(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.put(Kind::Vote, 0, bytes)
    }

    fn put_committed(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.put(Kind::Committed, 0, bytes)
    }

    fn put_purged(&self, bytes: Vec<u8>) -> io::Result<()> {
        self.put(Kind::Purged, 0, bytes)
    }

    fn flush(&self) -> io::Result<()> {
        let inner = &mut *self.inner();
        inner.file.write_all(&inner.unwritten)?;
        inner.unwritten.clear();
        inner.file.sync_data()
    }

    fn size_bytes(&self) -> u64 {
        self.inner().file.metadata().map_or(0, |meta| meta.len())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_found_again_and_a_torn_end_is_cut_off() {
        let tmp = tempfile::tempdir().unwrap();
        let journal = Journal::open(tmp.path()).unwrap();
        journal.put(Kind::Entry, 1, vec![1; 10]).unwrap();
        journal.put(Kind::Entry, 2, vec![2; 10]).unwrap();
        journal.put(Kind::Removed, 2, Vec::new()).unwrap();
        journal.flush().unwrap();
        let values = journal.inner().values.clone();
        journal.put(Kind::Vote, 0, vec![3; 100]).unwrap();
        journal.flush().unwrap();
        let length = journal.size_bytes();
        journal.inner().file.set_len(length - 1).unwrap();
        drop(journal);
        let journal = Journal::open(tmp.path()).unwrap();
        assert_eq!(journal.inner().values, values);
        assert_eq!(journal.size_bytes(), length - 100 - HEAD_BYTES as u64);
    }
}
