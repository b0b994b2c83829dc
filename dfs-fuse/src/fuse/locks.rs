//! Requests about locks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dfs_client::Wish;
use dfs_common::lock::{Class, Kind};
use fuser::{FileHandle, INodeNo, LockOwner, ReplyEmpty, Request};

use super::{
    answer::Adapter,
    flights::{Asked, WAIT_FOR_LOCK},
};
use crate::fs::caller;

/// How often a thread that should be asleep in its call is looked at until it is, and the pause between. It needs microseconds
/// for that, unless the machine is very busy.
const LOOKS_MAX: u32 = 50;
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// A range and what is wanted of it, as fcntl(2) says it; flock(2) means all bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Range {
    pub(super) start: u64,
    /// The last byte.
    pub(super) end: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub(super) typ: i32,
    pub(super) pid: u32,
}

impl Range {
    pub(super) fn wish(self, class: Class, owner: LockOwner) -> Wish {
        let kind = if self.typ == libc::F_WRLCK { Kind::Exclusive } else { Kind::Shared };
        Wish { class, owner: owner.0, kind, start: self.start, end: self.end, pid: self.pid }
    }

    /// What such a range most likely comes from.
    fn likely_class(self) -> Class {
        if self.start == 0 && self.end == i64::MAX as u64 { Class::Whole } else { Class::Record }
    }
}

/// Kind of a lock as fcntl(2) tells it.
pub(super) fn typ(kind: Kind) -> i32 {
    match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
    }
}

/// Which call a request comes from.
async fn class_of(pid: u32, range: Range) -> Class {
    for _ in 0..LOOKS_MAX {
        if let Some(class) = caller::locking_call(pid) {
            return class;
        }
        if pid == 0 {
            break;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    range.likely_class()
}

impl Adapter {
    pub(super) fn set_lock(
        &self,
        req: &Request,
        (ino, fh, owner): (INodeNo, FileHandle, LockOwner),
        range: Range,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let fs = Arc::clone(&self.fs);
        if range.typ == libc::F_UNLCK {
            let work = async move {
                // Whoever has the lock next finds what was written under it.
                let published = fs.fsync(fh.0).await;
                // Owners of the two classes are different numbers, so one of these finds nothing.
                for class in [Class::Record, Class::Whole] {
                    fs.unlock(fs.inode(ino.0), range.wish(class, owner)).await;
                }
                published
            };
            return self.empty(Asked::new("unlock", ino, req), work, reply);
        }
        let asked = Asked::new(if sleep { WAIT_FOR_LOCK } else { "setlk" }, ino, req);
        let given_up = Arc::new(AtomicBool::new(false));
        let (back, stop) = (Arc::clone(&self.fs), Arc::clone(&given_up));
        let work = async move {
            let wish = range.wish(class_of(asked.pid, range).await, owner);
            fs.lock(fh.0, fs.inode(ino.0), wish, sleep, &given_up).await.map(|()| wish)
        };
        let give_back = move |wish: Wish| async move { back.unlock(back.inode(ino.0), wish).await };
        self.ask_for(asked, work, give_back, move |outcome| match outcome {
            Ok(_) => reply.ok(),
            Err(errno) => {
                stop.store(true, Ordering::Relaxed);
                reply.error(errno);
            }
        });
    }
}
