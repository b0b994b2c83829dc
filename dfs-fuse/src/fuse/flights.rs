//! Operations that are under way and wait for something: who asked for them, since when, and how to end them early.
//!
//! A program that waits for the answer to a FUSE request cannot even be killed before the answer is there, and fuser does
//! not hand on FUSE_INTERRUPT. So the programs that have waited for a moment are looked at: for one that has been killed the
//! answer is given at once. The work itself goes on in the background until its own deadline, since it may have reached the
//! cluster already; what it brings is given back.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fuser::{INodeNo, Request};
use tokio::{sync::oneshot, task::spawn_blocking, time::sleep};

use crate::fs::{
    caller::{self, Pending},
    error::Error,
    inode::lock,
};

/// How often waiting programs are looked at: below what a person notices after Ctrl-C.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How much longer than one call to the cluster an operation that moves bytes may take: many chunks to store or to fetch.
const BYTES_PATIENCE: u32 = 4;
/// What the deadline of an operation leaves to the client's own, whose error says more.
const GRACE: Duration = Duration::from_secs(1);

/// The one operation that has no deadline, and that any signal ends.
pub(super) const WAIT_FOR_LOCK: &str = "setlkw";
/// A write to the end, wherever that is.
pub(super) const APPEND: &str = "append";
/// Longer than any machine runs.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What was asked for, and by whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(super) operation: &'static str,
    pub(super) ino: INodeNo,
    /// The thread that waits; 0 if it cannot be known.
    pub(super) pid: u32,
    /// Whether a process before this one was asked for it as well.
    pub(super) is_resent: bool,
}

/// `FUSE_UNIQUE_RESEND` of include/uapi/linux/fuse.h.
const RESENT: u64 = 1 << 63;

impl Asked {
    pub(super) fn new(operation: &'static str, ino: INodeNo, req: &Request) -> Self {
        Self { operation, ino, pid: req.pid(), is_resent: req.unique().0 & RESENT != 0 }
    }

    /// Whether its work goes on when nobody waits for it any more. That of a listing holds the reply, and changes nothing.
    pub(super) fn goes_on(&self) -> bool {
        !matches!(self.operation, "readdir" | "readdirplus")
    }

    /// Whether it changes names or attributes.
    pub(super) fn changes(&self) -> bool {
        matches!(
            self.operation,
            "mknod" | "mkdir" | "unlink" | "rmdir" | "symlink" | "rename" | "link" | "create" | "open" | "setattr"
        )
    }

    /// Whether it may be done twice as well as once.
    pub(super) fn can_be_repeated(&self) -> bool {
        !matches!(
            self.operation,
            "mknod"
                | "mkdir"
                | "unlink"
                | "rmdir"
                | "symlink"
                | "rename"
                | "link"
                | "create"
                | "setxattr"
                | "removexattr"
                | APPEND
        )
    }

    /// How long it may take, given the deadline of one call to the cluster.
    pub(super) fn patience(&self, deadline: Duration) -> Duration {
        match self.operation {
            "read" | "write" | APPEND | "flush" | "fsync" | "release" | "setattr" | "fallocate" | "copy_file_range"
            | "getxattr" | "lseek" => deadline * BYTES_PATIENCE,
            WAIT_FOR_LOCK => FOR_EVER,
            _ => deadline + GRACE,
        }
    }
}

/// Why an operation ended before its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    /// The program that waits was killed.
    Killed,
    /// It waits for a lock, and got a signal.
    Interrupted,
    /// An administrator ended it.
    Aborted,
}

impl Ending {
    pub(super) fn error(self) -> Error {
        match self {
            Self::Killed => Error::refused(libc::EINTR, "the program was killed"),
            Self::Interrupted => Error::refused(libc::EINTR, "the program got a signal"),
            Self::Aborted => Error::refused(libc::EIO, "ended by an administrator"),
        }
    }
}

struct Flight {
    asked: Asked,
    begun: Instant,
    end: oneshot::Sender<Ending>,
}

/// An operation as an administrator sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Waiting {
    pub(crate) operation: &'static str,
    pub(crate) ino: u64,
    pub(crate) pid: u32,
    pub(crate) age: Duration,
}

/// All operations that wait.
#[derive(Default)]
pub(crate) struct Flights {
    next: AtomicU64,
    table: Mutex<BTreeMap<u64, Flight>>,
}

/// One operation's place among them; dropping gives it up.
pub(super) struct Place {
    flights: Arc<Flights>,
    number: u64,
    told: oneshot::Receiver<Ending>,
}

impl Place {
    /// Waits until somebody ends the operation.
    pub(super) async fn ended(&mut self) -> Ending {
        // The sender is dropped unused only together with this place.
        (&mut self.told).await.unwrap_or(Ending::Aborted)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.flights.table).remove(&self.number);
    }
}

impl Flights {
    pub(super) fn begin(self: &Arc<Self>, asked: Asked) -> Place {
        let (end, told) = oneshot::channel();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.table).insert(number, Flight { asked, begun: Instant::now(), end });
        Place { flights: Arc::clone(self), number, told }
    }

    fn end(&self, number: u64, why: Ending) {
        if let Some(flight) = lock(&self.table).remove(&number) {
            // It may have its outcome just now.
            let _ = flight.end.send(why);
        }
    }

    /// Ends all that wait; how many there were.
    pub(crate) fn abort(&self) -> usize {
        let all = std::mem::take(&mut *lock(&self.table));
        let count = all.len();
        for flight in all.into_values() {
            let _ = flight.end.send(Ending::Aborted);
        }
        count
    }

    /// What waits, the oldest first.
    pub(crate) fn waiting(&self) -> Vec<Waiting> {
        let table = lock(&self.table);
        let list = table.values().map(|Flight { asked, begun, .. }| Waiting {
            operation: asked.operation,
            ino: asked.ino.0,
            pid: asked.pid,
            age: begun.elapsed(),
        });
        list.collect()
    }

    fn suspects(&self) -> Vec<(u64, Asked)> {
        let table = lock(&self.table);
        let old = table.iter().filter(|(_, flight)| flight.asked.pid != 0 && flight.begun.elapsed() >= LOOK_INTERVAL);
        old.map(|(number, flight)| (*number, flight.asked)).collect()
    }
}

/// Ends the operations of killed programs for as long as there are `flights`.
pub(crate) async fn watch(flights: Weak<Flights>) {
    loop {
        sleep(LOOK_INTERVAL).await;
        let Some(flights) = flights.upgrade() else { return };
        let suspects = flights.suspects();
        if suspects.is_empty() {
            continue;
        }
        let look = spawn_blocking(move || {
            let doomed = suspects.into_iter().filter_map(|(number, asked)| match caller::pending(asked.pid) {
                Pending::Kill => Some((number, Ending::Killed)),
                Pending::Signal if asked.operation == WAIT_FOR_LOCK => Some((number, Ending::Interrupted)),
                Pending::Signal | Pending::Nothing => None,
            });
            doomed.collect::<Vec<_>>()
        });
        let Ok(doomed) = look.await else { return };
        doomed.into_iter().for_each(|(number, why)| flights.end(number, why));
    }
}
