//! openraft's log on top of the journal, with the tail of the log decoded in memory.
//!
//! Applying an entry and sending it to followers both read it back; from the tail that costs a reference count. The tail holds
//! every entry that is not flushed yet, and flushed ones up to [`TAIL_BYTES_MAX`]. Positions and sizes of all entries are in
//! memory too: a purged log is short.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use dfs_common::crash::{self, Point};
use openraft::{
    LogState, OptionalSend, RaftLogReader, StorageIOError,
    storage::{LogFlushed, RaftLogStorage},
};
use tokio::sync::oneshot;

use super::{
    StoreError, codec,
    journal::{self, Journal},
    mark::{Mark, Reach},
    writer::{Done, Progress, Request, Writer},
};
use crate::raft::types::{Entry, LogId, StorageError, TypeConfig, Vote};

/// Encoded bytes of the entries kept decoded in memory.
const TAIL_BYTES_MAX: u64 = 32 << 20;
/// Entries kept decoded in memory.
const TAIL_ENTRIES_MAX: usize = 4096;
/// Encoded bytes of the entries that go into one message to a follower, unless a single one is larger.
const MESSAGE_BYTES_MAX: u64 = 2 << 20;

/// The log. Clones share one log.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    disk: Arc<Journal>,
    progress: Arc<Progress>,
    view: Mutex<View>,
    writer: Writer,
}

/// The log as openraft sees it: what was appended is here at once, on disk a little later.
#[derive(Default)]
struct View {
    vote: Option<Vote>,
    committed: Option<LogId>,
    /// Whether `committed` changed since it was last handed to the writer.
    committed_dirty: bool,
    purged: Option<LogId>,
    /// Last entry, or `purged` if there is none.
    last: Option<LogId>,
    /// Position and encoded size of each entry.
    entries: BTreeMap<u64, (LogId, u32)>,
    /// Sum of the sizes.
    live_bytes: u64,
    /// Every entry with an index of at least `tail_from` is here.
    tail: BTreeMap<u64, Entry>,
    tail_from: u64,
    tail_bytes: u64,
}

impl LogStore {
    /// Opens the log in `root`. Blocks on the disk.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, journal::FILE_BYTES)
    }

    /// The same with files of about so many bytes.
    pub(crate) fn open_with(root: &Path, file_bytes: u64) -> Result<Self, StoreError> {
        let (disk, contents) = Journal::open(root, file_bytes)?;
        let disk = Arc::new(disk);
        let mark = Mark::open(root)?;
        let purged_next = contents.purged.map_or(0, |id| id.index + 1);
        let mut view =
            View { vote: contents.vote, committed: contents.committed, purged: contents.purged, ..View::default() };
        view.last = view.purged;
        for (id, size) in contents.entries.into_iter().filter(|(id, _)| id.index >= purged_next) {
            let next = view.entries.last_key_value().map_or(purged_next, |(last, _)| last + 1);
            if next != id.index {
                let (record, reason) = (format!("entry {next}"), "it is missing".to_owned());
                return Err(StoreError::Corrupt { path: disk.path().to_owned(), record, reason });
            }
            view.last = Some(id);
            view.live_bytes += u64::from(size);
            view.entries.insert(id.index, (id, size));
        }
        view.tail_from = view.last.map_or(0, |id| id.index + 1);
        mark.check(Reach { next: view.tail_from, vote: view.vote }, disk.path())?;
        let progress = Arc::new(Progress::default());
        progress.flushed_next.store(view.tail_from, Ordering::Relaxed);
        let writer = Writer::start(disk.clone(), mark, progress.clone())?;
        Ok(Self { shared: Arc::new(Shared { disk, progress, view: Mutex::new(view), writer }) })
    }

    /// Whether nothing was ever stored.
    pub(crate) fn is_blank(&self) -> bool {
        let view = self.view();
        view.vote.is_none() && view.last.is_none() && view.committed.is_none()
    }

    /// Index of the last entry.
    pub(crate) fn last_index(&self) -> Option<u64> {
        self.view().last.map(|id| id.index)
    }

    /// Index up to which the log was purged.
    pub(crate) fn purged_index(&self) -> Option<u64> {
        self.view().purged.map(|id| id.index)
    }

    /// Encoded bytes of all entries.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.view().live_bytes
    }

    /// Encoded bytes of the entries behind `index`.
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        self.view().entries.range(index.saturating_add(1)..).map(|(_, (_, size))| u64::from(*size)).sum()
    }

    /// Bytes on disk, at most some seconds old.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.shared.progress.size_bytes.load(Ordering::Relaxed)
    }

    /// Writes what is queued, flushes, and ends the writer.
    pub(crate) async fn close(&self) -> io::Result<()> {
        let committed = self.committed_record()?;
        self.request(|done| Request::Close { committed, done }).await
    }

    fn view(&self) -> MutexGuard<'_, View> {
        // Every change of the view is complete before it can panic.
        self.shared.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The committed position, if it is newer than what was written.
    fn committed_record(&self) -> io::Result<Option<Vec<u8>>> {
        let mut view = self.view();
        if !std::mem::take(&mut view.committed_dirty) {
            return Ok(None);
        }
        view.committed.map(|id| codec::encode(&id).map_err(io::Error::other)).transpose()
    }

    async fn request(&self, make: impl FnOnce(Done) -> Request) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.shared.writer.send(make(done))?;
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the log is closed")))
    }

    /// Entries with an index in `from..to`.
    async fn read(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let (old_to, mut recent) = {
            let view = self.view();
            let split = view.tail_from.clamp(from, to.max(from));
            (split, view.tail.range(split..to.max(split)).map(|(_, entry)| entry.clone()).collect())
        };
        if from >= old_to {
            return Ok(recent);
        }
        let disk = self.shared.disk.clone();
        let old =
            dfs_proto::machine::spawn_blocking(move || disk.read(from, old_to)).await.map_err(io::Error::other)??;
        // What was purged may still be there.
        let purged = self.purged_index();
        let mut entries: Vec<Entry> = old.into_iter().filter(|entry| Some(entry.log_id.index) > purged).collect();
        entries.append(&mut recent);
        Ok(entries)
    }
}

impl View {
    fn push(&mut self, entry: Entry, size: u32) {
        let id = entry.log_id;
        self.last = self.last.max(Some(id));
        self.live_bytes += u64::from(size);
        self.tail_bytes += u64::from(size);
        self.entries.insert(id.index, (id, size));
        self.tail.insert(id.index, entry);
    }

    /// Forgets the oldest of the tail while it is too large; only what is flushed can be read back.
    fn trim(&mut self, flushed_next: u64) {
        while self.tail_bytes > TAIL_BYTES_MAX || self.tail.len() > TAIL_ENTRIES_MAX {
            let Some(first) = self.tail.first_entry().filter(|first| *first.key() < flushed_next) else { return };
            let index = *first.key();
            first.remove();
            self.tail_bytes -= self.entries.get(&index).map_or(0, |(_, size)| u64::from(*size));
            self.tail_from = index + 1;
        }
    }

    fn recount(&mut self) {
        self.live_bytes = self.entries.values().map(|(_, size)| u64::from(*size)).sum();
        self.tail_bytes = self.entries.range(self.tail_from..).map(|(_, (_, size))| u64::from(*size)).sum();
    }

    fn truncate(&mut self, since: u64) {
        self.entries.split_off(&since);
        self.tail.split_off(&since);
        self.tail_from = self.tail_from.min(since);
        self.last = self.entries.last_key_value().map(|(_, (id, _))| *id).or(self.purged);
        self.recount();
    }

    fn purge(&mut self, upto: LogId) {
        self.purged = self.purged.max(Some(upto));
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.tail = self.tail.split_off(&(upto.index + 1));
        self.tail_from = self.tail_from.max(upto.index + 1);
        self.last = self.last.max(self.purged);
        self.recount();
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to).await.map_err(|e| StorageIOError::read_logs(&e).into())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let end = {
            let view = self.view();
            let mut bytes = 0;
            let mut sizes = view.entries.range(start..end).map(|(index, (_, size))| (*index, u64::from(*size)));
            let over = sizes.find(|(index, size)| {
                bytes += size;
                bytes > MESSAGE_BYTES_MAX && *index > start
            });
            over.map_or(end, |(index, _)| index)
        };
        self.try_get_log_entries(start..end).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let view = self.view();
        Ok(LogState { last_purged_log_id: view.purged, last_log_id: view.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let save = async {
            let bytes = codec::encode(vote).map_err(io::Error::other)?;
            let committed = self.committed_record()?;
            self.request(|done| Request::Vote { vote: *vote, bytes, committed, done }).await
        };
        save.await.map_err(|e| StorageIOError::write_vote(&e))?;
        crash::point(Point::VoteSaved);
        self.view().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.view().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // Written with the next append: it only saves work at the next start.
        let mut view = self.view();
        view.committed = committed;
        view.committed_dirty = true;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        // After a crash the record may be ahead of the log if a truncation followed it.
        let view = self.view();
        Ok(view.committed.min(view.last))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let append = || {
            let mut records = Vec::new();
            let mut decoded = Vec::new();
            for entry in entries {
                let bytes = codec::encode(&entry).map_err(io::Error::other)?;
                let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
                records.push((entry.log_id.index, bytes));
                decoded.push((entry, size));
            }
            let mut view = self.view();
            for (entry, size) in decoded {
                view.push(entry, size);
            }
            view.trim(self.shared.progress.flushed_next.load(Ordering::Acquire));
            drop(view);
            let committed = self.committed_record()?;
            self.shared.writer.send(Request::Append { records, committed, callback })
        };
        append().map_err(|e: io::Error| StorageIOError::write_logs(&e).into())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.view().truncate(log_id.index);
        let truncated = self.request(|done| Request::Truncate { since: log_id.index, done }).await;
        self.shared.progress.flushed_next.fetch_min(log_id.index, Ordering::AcqRel);
        truncated.map_err(|e| StorageIOError::write_logs(&e).into())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.view().purge(log_id);
        let purge = async {
            let bytes = codec::encode(&log_id).map_err(io::Error::other)?;
            self.request(|done| Request::Purge { upto: log_id.index, bytes, done }).await
        };
        purge.await.map_err(|e| StorageIOError::write_logs(&e))?;
        crash::point(Point::LogPurged);
        Ok(())
    }
}
