//! Running the work of a request and handing its outcome to the reply.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use dfs_client::{Dfs, mounts::Trouble};
use fuser::{Errno, Generation, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use super::{
    convert,
    flights::{Asked, Flights, WAIT_FOR_LOCK, watch},
    gate::Gate,
};
use crate::fs::{Found, Fs, error::Error, inode::lock};

/// The adapter between FUSE and the file system; clones share everything.
#[derive(Clone)]
pub(crate) struct Adapter {
    pub(super) fs: Arc<Fs<Dfs>>,
    runtime: Handle,
    deadline: Duration,
    pub(super) counters: Arc<Counters>,
    flights: Arc<Flights>,
    gate: Arc<Gate>,
    /// Whether the kernel keeps locks itself.
    pub(super) has_local_locks: bool,
    /// Whether what the kernel asks again was surely not begun by the process before.
    pub(super) may_repeat: bool,
}

/// What happened since the mount began.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    refusals: AtomicU64,
    failures: AtomicU64,
    last_error: Mutex<Option<Trouble>>,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (requests, refusals, failures) = self.counts();
        write!(f, "{requests} requests, {refusals} refused, {failures} failed")
    }
}

impl Counters {
    /// Operations so far: all, refused, failed.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.requests), count(&self.refusals), count(&self.failures))
    }

    /// The last operation that failed.
    pub(crate) fn last_error(&self) -> Option<Trouble> {
        lock(&self.last_error).clone()
    }

    /// The only place where errors of operations are logged and become an errno.
    pub(super) fn errno(&self, asked: Asked, error: &Error) -> Errno {
        let (operation, ino) = (asked.operation, asked.ino.0);
        if error.is_remarkable() {
            self.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(operation, ino, %error, "operation failed");
            let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let trouble = Trouble { operation: operation.to_owned(), ino, text: error.to_string(), at_s: at.as_secs() };
            *lock(&self.last_error) = Some(trouble);
        } else {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(operation, ino, %error, errno = error.errno(), "operation refused");
        }
        Errno::from_i32(error.errno())
    }
}

pub(super) fn reply_entry(fs: &Fs<Dfs>, found: &Found, reply: ReplyEntry) {
    let entry_ttl = fs.coherence().entry_ttl();
    reply.entry_with_ttls(&found.ttl, &entry_ttl, &convert::attr(&found.attr), Generation(0));
}

/// Whether an operation failed that may yet have its effect.
pub(super) fn is_uncertain<T>(outcome: &Result<T, Error>) -> bool {
    outcome.as_ref().is_err_and(|error| error.errno() == libc::EIO)
}

/// Why the kernel's second question for the same thing may not be answered by doing it.
const TWICE: &str = "the process that was asked before has died: whether it was done is not known";

/// What is given back when nothing has to be.
async fn forget<T>(_: T) {}

impl Adapter {
    /// An adapter whose answers run on `runtime` and take at most a few times `deadline`.
    pub(crate) fn new(fs: Arc<Fs<Dfs>>, runtime: Handle, deadline: Duration, counters: Arc<Counters>) -> Self {
        let flights = Arc::default();
        runtime.spawn(watch(Arc::downgrade(&flights)));
        let gate = Arc::default();
        Self { fs, runtime, deadline, counters, flights, gate, has_local_locks: false, may_repeat: false }
    }

    /// The process before ended in good order, so that all that it was asked and did not answer can be done.
    pub(crate) fn repeat_everything(&mut self) {
        self.may_repeat = true;
    }

    /// Lets the kernel keep locks itself, or not.
    pub(crate) fn set_local_locks(&mut self, are_local: bool) {
        self.has_local_locks = are_local;
    }

    /// What every operation passes.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// The operations that wait.
    pub(crate) fn flights(&self) -> Arc<Flights> {
        Arc::clone(&self.flights)
    }

    /// Runs `work`, which likely has its outcome at hand, and hands it to `reply`.
    pub(super) fn answer<T, W>(&self, asked: Asked, work: W, reply: impl FnOnce(Result<T, Errno>) + Send + 'static)
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut answer = Box::pin(self.answering(asked, work, forget, reply));
        let _runtime = self.runtime.enter();
        let first = catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))));
        match first {
            Ok(poll) if poll.is_pending() => drop(self.runtime.spawn(answer)),
            Ok(_) => {}
            // The reply answers EIO when it is dropped; the mount lives on.
            Err(_) => tracing::error!(asked.operation, ino = asked.ino.0, "an operation panicked"),
        }
    }

    /// The outcome of `work` if it has one and need not wait for anything; else `work` is dropped where it began to wait.
    pub(super) fn at_once<T>(
        &self,
        asked: Asked,
        work: impl Future<Output = Option<Result<T, Error>>>,
    ) -> Option<Result<T, Errno>> {
        let _inside = self.gate.try_enter()?;
        let _runtime = self.runtime.enter();
        let work = std::pin::pin!(work);
        let polled = catch_unwind(AssertUnwindSafe(|| work.poll(&mut Context::from_waker(Waker::noop()))));
        let outcome = match polled {
            Ok(Poll::Ready(outcome)) => outcome?.map_err(|error| self.counters.errno(asked, &error)),
            Ok(Poll::Pending) => return None,
            Err(_) => {
                tracing::error!(asked.operation, ino = asked.ino.0, "an operation panicked");
                Err(Errno::EIO)
            }
        };
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        Some(outcome)
    }

    /// Runs `work`, which asks the cluster in any case, and hands its outcome to `reply`. Begun on the runtime, all its steps
    /// wake nobody; begun here, each message to the runtime's tasks would wake it.
    pub(super) fn ask<T, W>(&self, asked: Asked, work: W, reply: impl FnOnce(Result<T, Errno>) + Send + 'static)
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        self.ask_for(asked, work, forget, reply);
    }

    /// As [`Self::ask`]; an outcome that nobody waits for any more is given to `give_back`.
    pub(super) fn ask_for<T, W, G, B>(
        &self,
        asked: Asked,
        work: W,
        give_back: G,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
        G: FnOnce(T) -> B + Send + 'static,
        B: Future<Output = ()> + Send + 'static,
    {
        drop(self.runtime.spawn(self.answering(asked, work, give_back, reply)));
    }

    fn answering<T, W, G, B>(
        &self,
        asked: Asked,
        work: W,
        give_back: G,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
        G: FnOnce(T) -> B + Send + 'static,
        B: Future<Output = ()> + Send + 'static,
    {
        let patience = asked.patience(self.deadline);
        let (counters, flights, fs) = (Arc::clone(&self.counters), Arc::clone(&self.flights), Arc::clone(&self.fs));
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let gate = Arc::clone(&self.gate);
        let is_uncertain_already = asked.is_resent && !asked.can_be_repeated() && !self.may_repeat;
        async move {
            // Who waits for a lock may do so for ever, and goes on waiting in the next process.
            let _inside = if asked.operation == WAIT_FOR_LOCK { None } else { Some(gate.enter().await) };
            if is_uncertain_already {
                fs.doubt();
                return reply(Err(counters.errno(asked, &Error::refused(libc::EIO, TWICE))));
            }
            let mut work = std::pin::pin!(work);
            // Most have their outcome without waiting, and need no place among those that wait.
            let outcome = match poll_fn(|context| Poll::Ready(work.as_mut().poll(context))).await {
                Poll::Ready(outcome) => Ok(outcome),
                Poll::Pending => {
                    let mut place = flights.begin(asked);
                    tokio::select! {
                        biased;
                        outcome = work.as_mut() => Ok(outcome),
                        why = place.ended() => Err(why.error()),
                        () = sleep(patience) => Err(Error::Late(patience)),
                    }
                }
            };
            if asked.changes() && outcome.as_ref().map_or_else(|_| true, is_uncertain) {
                fs.doubt();
            }
            match outcome {
                Ok(outcome) => reply(outcome.map_err(|error| counters.errno(asked, &error))),
                Err(error) => {
                    reply(Err(counters.errno(asked, &error)));
                    if asked.goes_on()
                        && let Ok(Ok(unclaimed)) = timeout(patience, work).await
                    {
                        give_back(unclaimed).await;
                    }
                }
            }
        }
    }

    pub(super) fn entry<W>(&self, asked: Asked, work: W, reply: ReplyEntry)
    where
        W: Future<Output = Result<Found, Error>> + Send + 'static,
    {
        let fs = Arc::clone(&self.fs);
        self.ask(asked, work, move |outcome| match outcome {
            Ok(found) => reply_entry(&fs, &found, reply),
            Err(errno) => reply.error(errno),
        });
    }

    pub(super) fn empty<W>(&self, asked: Asked, work: W, reply: ReplyEmpty)
    where
        W: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.ask(asked, work, move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    pub(super) fn attr<W>(&self, asked: Asked, work: W, reply: ReplyAttr)
    where
        W: Future<Output = Result<Found, Error>> + Send + 'static,
    {
        self.ask(asked, work, move |outcome| match outcome {
            Ok(found) => reply.attr(&found.ttl, &convert::attr(&found.attr)),
            Err(errno) => reply.error(super::of_inode(errno)),
        });
    }

    pub(super) fn xattr<W>(&self, asked: Asked, size: u32, work: W, reply: ReplyXattr)
    where
        W: Future<Output = Result<Vec<u8>, Error>> + Send + 'static,
    {
        self.ask(asked, work, move |outcome| match outcome {
            Ok(value) => match u32::try_from(value.len()) {
                Ok(length) if size == 0 => reply.size(length),
                Ok(length) if length <= size => reply.data(&value),
                Ok(_) | Err(_) => reply.error(Errno::ERANGE),
            },
            Err(errno) => reply.error(super::of_inode(errno)),
        });
    }
}
