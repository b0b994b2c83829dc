//! Locks of files: flock(2) and fcntl(2), shared with the other mounts through the metadata leader.
//!
//! The kernel keeps none itself: it hands on every request, and says when a file is closed. What was locked through a handle
//! is given up when the handle goes, which covers programs that end; record locks also at each close (FLUSH) by their owner,
//! as POSIX wants it.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
};

use dfs_client::Wish;
use dfs_common::{
    ErrorCode, InodeId,
    lock::{Class, Kind, Lock},
};

use super::{Fs, backend::Backend, error::Error, inode::lock};

/// Last byte of a whole file, as the kernel says it.
const END: u64 = i64::MAX as u64;

/// Whose locks are to be given up when something is closed. A lock that was given up meanwhile may still be here.
#[derive(Debug, Default)]
pub(crate) struct LockOwners {
    by_handle: HashMap<u64, HashSet<(InodeId, Class, u64)>>,
    records: HashSet<(InodeId, u64)>,
    /// Taken through handles of a process before this one: the kernel says whose they are when the last of them is closed.
    inherited: HashSet<(InodeId, u64)>,
}

/// All that an owner may have of a class.
fn everything(class: Class, owner: u64) -> Wish {
    Wish { class, owner, kind: Kind::Shared, start: 0, end: END, pid: 0 }
}

impl<B: Backend> Fs<B> {
    /// Takes a lock through `handle`. With `wait` it waits until the lock is free, or `given_up` says that nobody wants it any
    /// more.
    pub(crate) async fn lock(
        &self,
        handle: u64,
        ino: InodeId,
        wish: Wish,
        wait: bool,
        given_up: &AtomicBool,
    ) -> Result<(), Error> {
        {
            // Before the lock is there, so that it cannot be forgotten.
            let mut owners = lock(&self.lock_owners);
            owners.by_handle.entry(handle).or_default().insert((ino, wish.class, wish.owner));
            if wish.class == Class::Record {
                owners.records.insert((ino, wish.owner));
            }
        }
        loop {
            match self.backend.take_lock(ino, wish, wait).await {
                Ok(None) => return Ok(()),
                Ok(Some(_)) if !wait => return Err(Error::refused(libc::EAGAIN, "somebody else has the lock")),
                Ok(Some(_)) => {}
                // A new leader waits for what all clients hold: somebody who waits anyway waits for that, too.
                Err(error) if wait && error.code == ErrorCode::Overloaded => {}
                Err(error) => return Err(error.into()),
            }
            if given_up.load(Ordering::Relaxed) {
                return Err(Error::refused(libc::EINTR, "nobody waits for the lock any more"));
            }
        }
    }

    /// A lock that stands in the way of `wish`.
    pub(crate) async fn test_lock(&self, ino: InodeId, wish: Wish) -> Result<Option<Lock>, Error> {
        Ok(self.backend.test_lock(ino, wish).await?)
    }

    /// Gives up what the owner of `wish` has in its range.
    pub(crate) async fn unlock(&self, ino: InodeId, wish: Wish) {
        self.backend.give_up_lock(ino, wish).await;
    }

    /// A process closes a file: its record locks on it are gone, whichever descriptor they were made through.
    pub(crate) async fn unlock_records(&self, ino: InodeId, owner: u64) {
        if lock(&self.lock_owners).records.remove(&(ino, owner)) {
            self.unlock(ino, everything(Class::Record, owner)).await;
        }
    }

    /// Takes over locks that the process before this one held.
    pub(crate) fn inherit_locks(&self, held: &[(InodeId, Class, u64)]) {
        let mut owners = lock(&self.lock_owners);
        for &(ino, class, owner) in held {
            match class {
                Class::Record => owners.records.insert((ino, owner)),
                Class::Whole => owners.inherited.insert((ino, owner)),
            };
        }
    }

    /// A handle of `ino` goes, and what was locked through it; `owner` is the kernel's number for what flock(2) locked.
    pub(crate) async fn unlock_handle(&self, handle: u64, ino: InodeId, owner: Option<u64>) {
        if let Some(owner) = owner.filter(|owner| lock(&self.lock_owners).inherited.remove(&(ino, *owner))) {
            self.unlock(ino, everything(Class::Whole, owner)).await;
        }
        let owned = lock(&self.lock_owners).by_handle.remove(&handle).unwrap_or_default();
        for (ino, class, owner) in owned {
            match class {
                Class::Whole => self.unlock(ino, everything(class, owner)).await,
                Class::Record => self.unlock_records(ino, owner).await,
            }
        }
    }
}
