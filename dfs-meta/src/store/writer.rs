//! The thread that writes the log.
//!
//! All changes go through one bounded queue, so they reach the journal in the order openraft made them. The thread drains
//! what is queued, up to [`DRAIN_MAX`] requests, flushes once for all of them, and only then answers.
//!
//! In a simulation there are no threads: each request is followed by a turn among the blocking work.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use dfs_common::crash::{self, Point};
use dfs_proto::machine;
use openraft::storage::LogFlushed;
use tokio::sync::oneshot;

use super::{
    StoreError,
    journal::Journal,
    mark::{Mark, Reach},
};
use crate::raft::types::{TypeConfig, Vote};

/// Requests that share one flush.
const DRAIN_MAX: usize = 1024;
/// Requests that wait for the thread. openraft waits for each append, so a handful is ever queued.
const QUEUE_MAX: usize = 1024;
/// How often the committed position is put on disk. It only spares a restart the wait for the leader's word on entries it has
/// anyway, and a second record would make each small append write half as much again.
const COMMITTED_INTERVAL: Duration = Duration::from_secs(1);
/// How often the size on disk is asked for.
const SIZE_INTERVAL: Duration = Duration::from_secs(10);

/// A change of the log.
pub(crate) enum Request {
    /// Entries by index. `committed` rides along, since nothing depends on it being recent.
    Append { records: Vec<(u64, Vec<u8>)>, committed: Option<Vec<u8>>, callback: LogFlushed<TypeConfig> },
    /// A vote, and its record.
    Vote { vote: Vote, bytes: Vec<u8>, committed: Option<Vec<u8>>, done: Done },
    /// Entries from this index on are void.
    Truncate { since: u64, done: Done },
    /// Entries up to this index are not needed any more; `bytes` is the record that says so.
    Purge { upto: u64, bytes: Vec<u8>, done: Done },
    /// Ends the thread after a last flush.
    Close { committed: Option<Vec<u8>>, done: Done },
}

/// Where the outcome of a request goes.
pub(crate) type Done = oneshot::Sender<io::Result<()>>;

/// What the thread and the log share.
#[derive(Default)]
pub(crate) struct Progress {
    /// Entries below this index are on disk for good, and need not be cached.
    pub(crate) flushed_next: AtomicU64,
    /// Bytes on disk, as last asked for.
    pub(crate) size_bytes: AtomicU64,
}

/// The sending side of the thread.
pub(crate) struct Writer {
    queue: SyncSender<Request>,
    runs: Runs,
}

/// Where the other side runs.
enum Runs {
    Thread(Option<JoinHandle<()>>),
    Turns(Arc<Mutex<(Thread, Receiver<Request>)>>),
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(disk: Arc<Journal>, mark: Mark, progress: Arc<Progress>) -> Result<Self, StoreError> {
        let (queue, requests) = sync_channel(QUEUE_MAX);
        let path = disk.path().to_owned();
        progress.size_bytes.store(disk.size_bytes(), Ordering::Relaxed);
        let reach = mark.noted();
        let thread = Thread { disk, mark, reach, progress, committed_at: None, failed: None };
        if machine::simulated().is_some() {
            return Ok(Self { queue, runs: Runs::Turns(Arc::new(Mutex::new((thread, requests)))) });
        }
        let thread = Builder::new()
            .name("raft-log".into())
            .spawn(move || thread.run(&requests))
            .map_err(StoreError::io(path))?;
        Ok(Self { queue, runs: Runs::Thread(Some(thread)) })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// The thread is gone, or the queue is full, which means that the disk has stopped answering.
    pub(crate) fn send(&self, request: Request) -> io::Result<()> {
        self.queue.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => io::Error::other("the log's disk does not keep up"),
            TrySendError::Disconnected(_) => io::Error::other("the log is closed"),
        })?;
        if let Runs::Turns(turns) = &self.runs {
            let turns = turns.clone();
            drop(machine::spawn_blocking(move || {
                let (thread, requests) = &mut *turns.lock().unwrap_or_else(PoisonError::into_inner);
                thread.turn(requests);
            }));
        }
        Ok(())
    }
}

impl Drop for Writer {
    /// Without a `Close` before, what is queued is still written and flushed.
    fn drop(&mut self) {
        let (queue, _) = sync_channel(0);
        self.queue = queue;
        if let Runs::Thread(thread) = &mut self.runs
            && let Some(thread) = thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes the log panicked");
        }
    }
}

/// An answer that waits for the flush.
enum Answer {
    Append { next: u64, callback: LogFlushed<TypeConfig> },
    Done(Done),
}

struct Thread {
    disk: Arc<Journal>,
    mark: Mark,
    /// How far the log reaches with what was handed to the journal.
    reach: Reach,
    progress: Arc<Progress>,
    /// When the committed position was last written with an append.
    committed_at: Option<Instant>,
    /// After a failure nothing is written any more: what is on disk is unknown.
    failed: Option<String>,
}

impl Thread {
    fn run(mut self, requests: &Receiver<Request>) {
        let mut open = true;
        while open {
            match requests.recv_timeout(SIZE_INTERVAL) {
                Ok(first) => open = self.round(first, requests),
                Err(RecvTimeoutError::Timeout) => self.note_size(),
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
        }
        if let Err(error) = self.disk.flush() {
            tracing::error!(%error, "the last flush of the log failed");
        }
    }

    /// Handles what is queued.
    fn turn(&mut self, requests: &Receiver<Request>) {
        if let Ok(first) = requests.try_recv() {
            self.round(first, requests);
        }
    }

    /// Handles what is queued, flushes once, answers. `false` when the log is closed.
    fn round(&mut self, first: Request, requests: &Receiver<Request>) -> bool {
        let mut answers = Vec::new();
        let mut open = true;
        let mut result = Ok(());
        for request in std::iter::once(first).chain(requests.try_iter()).take(DRAIN_MAX) {
            open &= !matches!(request, Request::Close { .. });
            let (done, answer) = self.change(request);
            answers.push(answer);
            result = result.and(done);
        }
        let appends = answers.iter().any(|answer| matches!(answer, Answer::Append { .. }));
        let result = result.and_then(|()| self.disk.flush());
        if appends {
            crash::point(Point::LogFlushed);
        }
        // After a failure nobody knows how far the log reaches.
        let result = if self.failed.is_none() { result.and_then(|()| self.mark.note(self.reach)) } else { result };
        self.answer(result, answers);
        open
    }

    fn change(&mut self, request: Request) -> (io::Result<()>, Answer) {
        match request {
            Request::Append { records, committed, callback } => {
                let next = records.last().map_or(0, |(index, _)| index + 1);
                self.reach.next = self.reach.next.max(next);
                let due = self.committed_at.is_none_or(|at| at.elapsed() >= COMMITTED_INTERVAL);
                let committed = committed.filter(|_| due);
                if committed.is_some() {
                    self.committed_at = Some(Instant::now());
                }
                self.committed(committed);
                (self.disk.put_entries(&records), Answer::Append { next, callback })
            }
            Request::Vote { vote, bytes, committed, done } => {
                self.reach.vote = Some(vote);
                self.committed(committed);
                self.disk.put_vote(bytes);
                (Ok(()), Answer::Done(done))
            }
            Request::Truncate { since, done } => {
                self.reach.next = self.reach.next.min(since);
                let lowered = self.mark.lower(since);
                self.disk.truncate(since);
                (lowered, Answer::Done(done))
            }
            Request::Purge { upto, bytes, done } => {
                self.reach.next = self.reach.next.max(upto + 1);
                self.disk.purge(upto, bytes);
                (Ok(()), Answer::Done(done))
            }
            Request::Close { committed, done } => {
                self.committed(committed);
                (Ok(()), Answer::Done(done))
            }
        }
    }

    fn committed(&self, bytes: Option<Vec<u8>>) {
        if let Some(bytes) = bytes {
            self.disk.put_committed(bytes);
        }
    }

    fn answer(&mut self, result: io::Result<()>, answers: Vec<Answer>) {
        if let (Err(error), None) = (&result, &self.failed) {
            tracing::error!(path = %self.disk.path().display(), %error, "the log cannot be written; this node must stop");
            self.failed = Some(error.to_string());
        }
        for answer in answers {
            let result = match &self.failed {
                Some(reason) => Err(io::Error::other(reason.clone())),
                None => Ok(()),
            };
            match answer {
                Answer::Append { next, callback } => {
                    if result.is_ok() {
                        self.progress.flushed_next.store(next, Ordering::Release);
                    }
                    callback.log_io_completed(result);
                }
                // A caller that went away does not need the answer.
                Answer::Done(done) => drop(done.send(result)),
            }
        }
    }

    fn note_size(&self) {
        self.progress.size_bytes.store(self.disk.size_bytes(), Ordering::Relaxed);
    }
}
