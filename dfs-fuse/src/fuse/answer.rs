//! Running the work of a request and handing its outcome to the reply.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use dfs_client::Dfs;
use fuser::{Errno, Generation, INodeNo, Notifier, ReplyAttr, ReplyEmpty, ReplyEntry, ReplyXattr};
use tokio::runtime::Handle;

use super::convert;
use crate::fs::{Found, Fs, error::Error};

/// How much longer than one cluster operation an answer may take: several operations in a row, or many chunks to store.
const PATIENCE: u32 = 4;

/// The adapter between FUSE and the file system.
pub(crate) struct Adapter {
    pub(super) fs: Arc<Fs<Dfs>>,
    runtime: Handle,
    deadline: Duration,
    pub(super) counters: Arc<Counters>,
    kernel: Kernel,
}

/// The way to tell the kernel something on our own; there once the session is.
#[derive(Clone, Default)]
pub(crate) struct Kernel(Arc<OnceLock<Notifier>>);

impl Kernel {
    /// The session is there.
    pub(crate) fn set(&self, notifier: Notifier) {
        // There is one session, so this is called once.
        let _ = self.0.set(notifier);
    }

    /// Makes the kernel ask for the attributes of `ino` again before it uses them. Its pages stay. This takes no lock that an
    /// operation on the inode could hold, so it may be called from within one.
    pub(super) fn forget_attr(&self, ino: INodeNo) {
        if let Some(notifier) = self.0.get()
            && let Err(error) = notifier.inval_inode(ino, -1, 0)
        {
            tracing::debug!(ino = ino.0, %error, "the kernel keeps its attributes until they expire");
        }
    }
}

/// What happened since the mount began.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    refusals: AtomicU64,
    failures: AtomicU64,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [requests, refusals, failures] =
            [&self.requests, &self.refusals, &self.failures].map(|counter| counter.load(Ordering::Relaxed));
        write!(f, "{requests} requests, {refusals} refused, {failures} failed")
    }
}

impl Counters {
    /// The only place where errors of operations are logged and become an errno.
    pub(super) fn errno(&self, operation: &'static str, ino: u64, error: &Error) -> Errno {
        if error.is_remarkable() {
            self.failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(operation, ino, %error, "operation failed");
        } else {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(operation, ino, %error, errno = error.errno(), "operation refused");
        }
        Errno::from_i32(error.errno())
    }
}

impl Adapter {
    /// An adapter whose answers run on `runtime` and take at most a few times `deadline`.
    pub(crate) fn new(fs: Arc<Fs<Dfs>>, runtime: Handle, deadline: Duration, counters: Arc<Counters>) -> Self {
        Self { fs, runtime, deadline, counters, kernel: Kernel::default() }
    }

    /// The way to tell the kernel something.
    pub(crate) fn kernel(&self) -> Kernel {
        self.kernel.clone()
    }

    /// Runs `work`, which likely has its outcome at hand, and hands it to `reply`.
    pub(super) fn answer<T, W>(
        &self,
        operation: &'static str,
        ino: INodeNo,
        work: W,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut answer = Box::pin(self.answering(operation, ino, work, reply));
        let _runtime = self.runtime.enter();
        let first = catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))));
        match first {
            Ok(poll) if poll.is_pending() => drop(self.runtime.spawn(answer)),
            Ok(_) => {}
            // The reply answers EIO when it is dropped; the mount lives on.
            Err(_) => tracing::error!(operation, ino = ino.0, "an operation panicked"),
        }
    }

    /// The outcome of `work` if it has one and need not wait for anything; else `work` is dropped where it began to wait.
    pub(super) fn at_once<T>(
        &self,
        operation: &'static str,
        ino: INodeNo,
        work: impl Future<Output = Option<Result<T, Error>>>,
    ) -> Option<Result<T, Errno>> {
        let _runtime = self.runtime.enter();
        let work = std::pin::pin!(work);
        let polled = catch_unwind(AssertUnwindSafe(|| work.poll(&mut Context::from_waker(Waker::noop()))));
        let outcome = match polled {
            Ok(Poll::Ready(outcome)) => outcome?.map_err(|error| self.counters.errno(operation, ino.0, &error)),
            Ok(Poll::Pending) => return None,
            Err(_) => {
                tracing::error!(operation, ino = ino.0, "an operation panicked");
                Err(Errno::EIO)
            }
        };
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        Some(outcome)
    }

    /// Runs `work`, which asks the cluster in any case, and hands its outcome to `reply`. Begun on the runtime, all its steps
    /// wake nobody; begun here, each message to the runtime's tasks would wake it.
    pub(super) fn ask<T, W>(
        &self,
        operation: &'static str,
        ino: INodeNo,
        work: W,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        drop(self.runtime.spawn(self.answering(operation, ino, work, reply)));
    }

    fn answering<T, W>(
        &self,
        operation: &'static str,
        ino: INodeNo,
        work: W,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        T: Send + 'static,
        W: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let patience = self.deadline * PATIENCE;
        let counters = Arc::clone(&self.counters);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        async move {
            let outcome = tokio::time::timeout(patience, work).await.unwrap_or(Err(Error::Late(patience)));
            reply(outcome.map_err(|error| counters.errno(operation, ino.0, &error)));
        }
    }

    pub(super) fn entry<W>(&self, operation: &'static str, ino: INodeNo, work: W, reply: ReplyEntry)
    where
        W: Future<Output = Result<Found, Error>> + Send + 'static,
    {
        let entry_ttl = self.fs.entry_ttl();
        self.ask(operation, ino, work, move |outcome| match outcome {
            Ok(found) => {
                reply.entry_with_ttls(&found.ttl, &entry_ttl, &convert::attr(&found.attr), Generation(0));
            }
            Err(errno) => reply.error(errno),
        });
    }

    pub(super) fn empty<W>(&self, operation: &'static str, ino: INodeNo, work: W, reply: ReplyEmpty)
    where
        W: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.ask(operation, ino, work, move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    pub(super) fn attr<W>(&self, operation: &'static str, ino: INodeNo, work: W, reply: ReplyAttr)
    where
        W: Future<Output = Result<Found, Error>> + Send + 'static,
    {
        self.ask(operation, ino, work, move |outcome| match outcome {
            Ok(found) => reply.attr(&found.ttl, &convert::attr(&found.attr)),
            Err(errno) => reply.error(super::of_inode(errno)),
        });
    }

    pub(super) fn xattr<W>(&self, operation: &'static str, ino: INodeNo, size: u32, work: W, reply: ReplyXattr)
    where
        W: Future<Output = Result<Vec<u8>, Error>> + Send + 'static,
    {
        self.ask(operation, ino, work, move |outcome| match outcome {
            Ok(value) => match u32::try_from(value.len()) {
                Ok(length) if size == 0 => reply.size(length),
                Ok(length) if length <= size => reply.data(&value),
                Ok(_) | Err(_) => reply.error(Errno::ERANGE),
            },
            Err(errno) => reply.error(super::of_inode(errno)),
        });
    }
}
