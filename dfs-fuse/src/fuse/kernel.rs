//! The way to tell the kernel something on our own.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
};

use dfs_common::InodeId;
use fuser::{INodeNo, Notifier};

use crate::fs::coherence;

/// `FUSE_NOTIFY_INC_EPOCH` of include/uapi/linux/fuse.h: every name that the kernel has is asked for again. Linux 6.16 and
/// later; fuser 0.18 does not know it.
const NOTIFY_INC_EPOCH: i32 = 8;

/// A running session.
pub(crate) struct Kernel {
    /// The inode that the kernel calls 1.
    root: InodeId,
    notifier: Notifier,
    device: File,
}

impl Kernel {
    /// The session of `notifier` on `device`, whose root is `root`.
    pub(crate) fn new(root: InodeId, notifier: Notifier, device: OwnedFd) -> Self {
        Self { root, notifier, device: device.into() }
    }

    fn number(&self, ino: InodeId) -> INodeNo {
        if ino == self.root { INodeNo::ROOT } else { INodeNo(ino.0) }
    }
}

/// A message to the kernel of its head alone: `struct fuse_out_header` with the code in the place of the error.
pub(crate) fn notification(code: i32) -> [u8; 16] {
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16_u32.to_ne_bytes());
    message[4..8].copy_from_slice(&code.to_ne_bytes());
    message
}

fn say(what: &str, ino: InodeId, outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::debug!(ino = ino.0, %error, "the kernel keeps {what} until they expire");
    }
}

impl coherence::Kernel for Kernel {
    fn forget_attr(&self, ino: InodeId) {
        say("attributes", ino, self.notifier.inval_inode(self.number(ino), -1, 0));
    }

    fn forget_listing(&self, dir: InodeId) {
        // All pages of its, which hold the listing.
        say("a listing", dir, self.notifier.inval_inode(self.number(dir), 0, 0));
    }

    fn forget_entry(&self, parent: InodeId, name: &[u8]) {
        say("a name", parent, self.notifier.inval_entry(self.number(parent), OsStr::from_bytes(name)));
    }

    fn forget_all_entries(&self) -> bool {
        let told = (&self.device).write(&notification(NOTIFY_INC_EPOCH));
        told.inspect_err(|error| tracing::debug!(%error, "the kernel cannot forget all names at once")).is_ok()
    }
}
