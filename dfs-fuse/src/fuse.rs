//! FUSE requests: decode, call the file system, reply.
//!
//! Request threads never wait. The future of an answer is polled once where the request came in, since many answers are
//! there already (a chunk in the read-ahead window, room in a write buffer, attributes of an open file), and given to the
//! runtime if it has to wait for anything. Every answer has a deadline, and comes at once when the program that waits for it
//! is killed (`flights`).

mod answer;
mod convert;
mod flights;
mod gate;
mod kernel;
mod lease;
mod locks;

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use dfs_client::{NewNode, RenameFlags, Seek};
use dfs_common::{SetAttr, lock::Class};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

pub(crate) use answer::{Adapter, Counters};
use flights::{APPEND, Asked};
pub(crate) use flights::{Flights, Waiting};
pub(crate) use gate::Gate;
pub(crate) use kernel::{Kernel, notification};
pub(crate) use lease::keep as keep_lease;

use crate::fs::{
    Found,
    error::Error,
    file::{OpenMode, Opened},
    pages::Caching,
    ranges::Allocate,
    xattr::SetMode,
};

/// Largest write request, bytes. More gains nothing, the kernel's default of 128 KiB costs a fifth of the throughput.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Bytes of one answer to copy_file_range(2), whose size has 32 bits. A multiple of every chunk size, so that the next call of
/// a long copy starts on a border of a chunk again.
const COPY_BYTES_MAX: u64 = 2 << 30;
/// Requests the kernel may have under way that no program waits for: read-ahead of many files, releases.
const BACKGROUND_MAX: u16 = 128;

fn name(name: &OsStr) -> Vec<u8> {
    name.as_bytes().to_vec()
}

/// The error of an operation on an inode. One that is gone may have been replaced by name (an editor that saves, seen from
/// another mount): ESTALE makes the kernel look the name up again, ENOENT would go straight to the program.
fn of_inode(errno: Errno) -> Errno {
    if errno.code() == libc::ENOENT { Errno::ESTALE } else { errno }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not asked for: SETXATTR_EXT and HANDLE_KILLPRIV_V2, which fuser 0.18 gets wrong, and WRITEBACK_CACHE, which would
        // hide errors of writes from the programs that made them.
        for flag in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ] {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel does not offer this");
            }
        }
        if !self.has_local_locks {
            for flag in [InitFlags::FUSE_POSIX_LOCKS, InitFlags::FUSE_FLOCK_LOCKS] {
                if config.add_capabilities(flag).is_err() {
                    tracing::warn!(?flag, "the kernel does not hand on locks: they hold within this mount only");
                }
            }
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEntry) {
        let (fs, entry) = (Arc::clone(&self.fs), name(entry));
        if let Some(found) = fs.seen(fs.inode(parent.0), &entry) {
            return self.answer(Asked::new("lookup", parent, req), async { Ok(found) }, move |outcome| match outcome {
                Ok(found) => answer::reply_entry(&fs, &found, reply),
                Err(errno) => reply.error(errno),
            });
        }
        let work = async move {
            match fs.lookup(fs.inode(parent.0), &entry).await {
                Err(error) if error.errno() == libc::ENOENT && fs.coherence().negative_ttl().is_some() => Ok(None),
                found => found.map(Some),
            }
        };
        let fs = Arc::clone(&self.fs);
        self.ask(Asked::new("lookup", parent, req), work, move |outcome| match outcome {
            Ok(Some(found)) => answer::reply_entry(&fs, &found, reply),
            // Inode 0: there is no such name, and the kernel may remember that.
            Ok(None) => match fs.coherence().negative_ttl() {
                Some(ttl) => reply.entry_with_ttls(&Duration::ZERO, &ttl, &convert::nothing(), Generation(0)),
                None => reply.error(Errno::ENOENT),
            },
            Err(errno) => reply.error(errno),
        });
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let fs = Arc::clone(&self.fs);
        let work = async move { fs.getattr(fs.inode(ino.0), fh.map(|fh| fh.0)).await };
        self.answer(Asked::new("getattr", ino, req), work, |outcome| match outcome {
            Ok(found) => reply.attr(&found.ttl, &convert::attr(&found.attr)),
            Err(errno) => reply.error(of_inode(errno)),
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let fs = Arc::clone(&self.fs);
        self.attr(
            Asked::new("setattr", ino, req),
            async move { fs.setattr(fs.inode(ino.0), fh.map(|fh| fh.0), size, change).await },
            reply,
        );
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = Arc::clone(&self.fs);
        self.ask(Asked::new("readlink", ino, req), async move { fs.readlink(fs.inode(ino.0)).await }, |outcome| {
            match outcome {
                Ok(target) => reply.data(&target),
                Err(errno) => reply.error(of_inode(errno)),
            }
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (fs, entry) = (Arc::clone(&self.fs), name(entry));
        let kind = convert::node_kind(mode);
        let (uid, gid) = (req.uid(), req.gid());
        let work = async move {
            let kind = kind.ok_or_else(|| Error::refused(libc::EINVAL, "mknod of an unknown kind"))?;
            fs.mknod(fs.inode(parent.0), &entry, NewNode { kind, mode: mode & 0o7777, uid, gid, rdev }).await
        };
        self.entry(Asked::new("mknod", parent, req), work, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, entry: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (fs, entry, owner) = (Arc::clone(&self.fs), name(entry), (req.uid(), req.gid()));
        self.entry(
            Asked::new("mkdir", parent, req),
            async move { fs.mkdir(fs.inode(parent.0), &entry, mode, owner).await },
            reply,
        );
    }

    fn unlink(&self, req: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let (fs, entry) = (Arc::clone(&self.fs), name(entry));
        self.empty(
            Asked::new("unlink", parent, req),
            async move { fs.unlink(fs.inode(parent.0), &entry).await },
            reply,
        );
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, entry: &OsStr, reply: ReplyEmpty) {
        let (fs, entry) = (Arc::clone(&self.fs), name(entry));
        self.empty(Asked::new("rmdir", parent, req), async move { fs.rmdir(fs.inode(parent.0), &entry).await }, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link: &OsStr, target: &Path, reply: ReplyEntry) {
        let (fs, link, owner) = (Arc::clone(&self.fs), name(link), (req.uid(), req.gid()));
        let target = name(target.as_os_str());
        self.entry(
            Asked::new("symlink", parent, req),
            async move { fs.symlink(fs.inode(parent.0), &link, &target, owner).await },
            reply,
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        entry: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (fs, from, to) = (Arc::clone(&self.fs), name(entry), name(newname));
        let work = async move {
            if flags.contains(fuser::RenameFlags::RENAME_WHITEOUT) {
                return Err(Error::refused(libc::EINVAL, "whiteouts are for overlay file systems"));
            }
            let flags = RenameFlags {
                no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
                exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
            };
            fs.rename((fs.inode(parent.0), &from), (fs.inode(newparent.0), &to), flags).await
        };
        self.empty(Asked::new("rename", parent, req), work, reply);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (fs, entry) = (Arc::clone(&self.fs), name(newname));
        self.entry(
            Asked::new("link", ino, req),
            async move { fs.link(fs.inode(ino.0), fs.inode(newparent.0), &entry).await },
            reply,
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let fs = Arc::clone(&self.fs);
        let work = async move { fs.open(fs.inode(ino.0), OpenMode::from_flags(flags.0)).await };
        let (back, told) = (Arc::clone(&self.fs), Arc::clone(&self.fs));
        let give_back = move |opened: Opened| async move { back.unclaimed(opened.handle).await };
        self.ask_for(Asked::new("open", ino, req), work, give_back, move |outcome| match outcome {
            Ok(opened) => {
                // The size that the kernel remembers may be of the version before, and would cut this one off.
                if opened.caching != Caching::Keep && !opened.is_size_told {
                    told.coherence().attr_changed_here(told.inode(ino.0));
                }
                reply.opened(FileHandle(opened.handle), convert::fopen_flags(opened));
            }
            Err(errno) => reply.error(of_inode(errno)),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        entry: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (fs, entry, owner) = (Arc::clone(&self.fs), name(entry), (req.uid(), req.gid()));
        let work = async move {
            let mark = fs.coherence().mark();
            let (attr, opened) =
                fs.create(fs.inode(parent.0), &entry, mode, owner, OpenMode::from_flags(flags)).await?;
            Ok::<(Found, Opened), Error>((fs.found(mark, attr), opened))
        };
        // The kernel gives one time for name and attributes here; those of a file being written must not be kept.
        let back = Arc::clone(&self.fs);
        let give_back = move |(_, opened): (Found, Opened)| async move { back.unclaimed(opened.handle).await };
        self.ask_for(Asked::new("create", parent, req), work, give_back, |outcome| match outcome {
            Ok((found, opened)) => reply.created(
                &found.ttl,
                &convert::attr(&found.attr),
                Generation(0),
                FileHandle(opened.handle),
                convert::fopen_flags(opened),
            ),
            Err(errno) => reply.error(errno),
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let fs = Arc::clone(&self.fs);
        let work = async move { fs.read(fh.0, offset, size as usize).await };
        self.answer(Asked::new("read", ino, req), work, |outcome| match outcome {
            Ok(pieces) => match pieces.as_slice() {
                [] => reply.data(&[]),
                [whole] => reply.data(whole),
                pieces => reply.data(&pieces.concat()),
            },
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let length = u32::try_from(data.len()).expect("the kernel sends at most WRITE_BYTES_MAX");
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        // By anybody but root: takes set-user-id bits away.
        let drops_bits = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) && !self.fs.is_plain(fh.0);
        // Copied straight from the request where there is room for it, which is nearly always. A write that has to wait begins
        // anew with a copy of its own: it puts the same bytes in the same place.
        let work = self.fs.write_at_once(fh.0, offset, data, from_cache);
        let is_append = flags.0 & libc::O_APPEND != 0 && !from_cache;
        // With O_SYNC or O_DSYNC (a part of it) a write that has returned is durable. The kernel leaves that to us where it does
        // not cache.
        let is_synced = flags.0 & libc::O_DSYNC != 0 && !from_cache;
        let asked = Asked::new(if is_append { APPEND } else { "write" }, ino, req);
        match self.at_once(asked, async { if drops_bits || is_synced || asked.is_resent { None } else { work.await } })
        {
            Some(Ok(())) => reply.written(length),
            Some(Err(errno)) => reply.error(errno),
            None => {
                let (fs, data) = (Arc::clone(&self.fs), data.to_vec());
                let work = async move {
                    if drops_bits && fs.drop_set_id(fh.0).await? {
                        fs.coherence().attr_changed_here(fs.inode(ino.0));
                    }
                    fs.write(fh.0, offset, &data, from_cache).await?;
                    if is_synced { fs.fsync(fh.0).await } else { Ok(()) }
                };
                self.ask(asked, work, move |outcome| match outcome {
                    Ok(()) => reply.written(length),
                    Err(errno) => reply.error(errno),
                });
            }
        }
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        let (fs, pid) = (Arc::clone(&self.fs), req.pid());
        let work = async move {
            // What was written under a lock is there before the lock is free.
            let flushed = fs.flush(fh.0, pid).await;
            fs.unlock_records(fs.inode(ino.0), lock_owner.0).await;
            flushed
        };
        self.answer(Asked::new("flush", ino, req), work, |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        // There is no such question about flock.
        let range = locks::Range { start, end, typ, pid };
        let (fs, wish) = (Arc::clone(&self.fs), range.wish(Class::Record, lock_owner));
        let work = async move { fs.test_lock(fs.inode(ino.0), wish).await };
        self.ask(Asked::new("getlk", ino, req), work, move |outcome| match outcome {
            Ok(Some(found)) => reply.locked(found.start, found.end, locks::typ(found.kind), found.pid),
            Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
            Err(errno) => reply.error(errno),
        });
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        self.set_lock(req, (ino, fh, lock_owner), locks::Range { start, end, typ, pid }, sleep, reply);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let fs = Arc::clone(&self.fs);
        self.empty(Asked::new("fsync", ino, req), async move { fs.fsync(fh.0).await }, reply);
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let fs = Arc::clone(&self.fs);
        let work = async move {
            fs.unlock_handle(fh.0, fs.inode(ino.0), lock_owner.map(|owner| owner.0)).await;
            fs.release(fh.0).await;
            Ok(())
        };
        self.empty(Asked::new("release", ino, req), work, reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let (handle, listing) = self.fs.opendir(self.fs.inode(ino.0));
        reply.opened(FileHandle(handle), convert::listing_flags(listing));
    }

    fn readdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let fs = Arc::clone(&self.fs);
        let work = async move {
            let outcome = fs
                .readdir((fs.inode(ino.0), fh.0), offset, false, |entry| {
                    let name = OsStr::from_bytes(entry.name);
                    reply.add(INodeNo(entry.ino.0), entry.next, convert::kind(entry.kind), name)
                })
                .await;
            Ok((outcome, reply))
        };
        let (counters, asked) = (Arc::clone(&self.counters), Asked::new("readdir", ino, req));
        self.answer(asked, work, move |outcome| match outcome {
            Ok((Ok(()), reply)) => reply.ok(),
            Ok((Err(error), reply)) => reply.error(counters.errno(asked, &error)),
            // The deadline: the reply went with the work and has answered EIO.
            Err(_) => {}
        });
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let fs = Arc::clone(&self.fs);
        let work = async move {
            let outcome = fs
                .readdir((fs.inode(ino.0), fh.0), offset, true, |entry| {
                    // An unpublished file that ended just now has no attributes and no name any more.
                    let Some(found) = entry.attr else { return false };
                    let name = OsStr::from_bytes(entry.name);
                    let attr = convert::attr(&found.attr);
                    reply.add(INodeNo(entry.ino.0), entry.next, name, &found.ttl, &attr, Generation(0))
                })
                .await;
            Ok((outcome, reply))
        };
        let (counters, asked) = (Arc::clone(&self.counters), Asked::new("readdirplus", ino, req));
        self.answer(asked, work, move |outcome| match outcome {
            Ok((Ok(()), reply)) => reply.ok(),
            Ok((Err(error), reply)) => reply.error(counters.errno(asked, &error)),
            Err(_) => {}
        });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.fs.releasedir(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Every change of the namespace is durable before it is answered.
        reply.ok();
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let fs = Arc::clone(&self.fs);
        self.ask(Asked::new("statfs", ino, req), async move { Ok(fs.statfs().await) }, |outcome| match outcome {
            Ok(space) => convert::reply_statfs(&space, reply),
            Err(errno) => reply.error(errno),
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        key: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (fs, key, value) = (Arc::clone(&self.fs), name(key), value.to_vec());
        let mode = SetMode { create: flags & libc::XATTR_CREATE != 0, replace: flags & libc::XATTR_REPLACE != 0 };
        self.empty(
            Asked::new("setxattr", ino, req),
            async move { fs.setxattr(fs.inode(ino.0), &key, &value, mode).await },
            reply,
        );
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, key: &OsStr, size: u32, reply: ReplyXattr) {
        let (fs, key) = (Arc::clone(&self.fs), name(key));
        self.xattr(
            Asked::new("getxattr", ino, req),
            size,
            async move { fs.getxattr(fs.inode(ino.0), &key).await },
            reply,
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (fs, is_root) = (Arc::clone(&self.fs), req.uid() == 0);
        let work = async move { fs.listxattr(fs.inode(ino.0), is_root).await };
        self.xattr(Asked::new("listxattr", ino, req), size, work, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, key: &OsStr, reply: ReplyEmpty) {
        let (fs, key) = (Arc::clone(&self.fs), name(key));
        self.empty(
            Asked::new("removexattr", ino, req),
            async move { fs.removexattr(fs.inode(ino.0), &key).await },
            reply,
        );
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // With default_permissions the kernel decides and does not ask. Without, only the user who mounted gets here.
        reply.ok();
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let fs = Arc::clone(&self.fs);
        let work = async move {
            let what = Allocate::from_mode(mode).ok_or_else(|| {
                Error::refused(libc::EOPNOTSUPP, "files cannot be collapsed or opened up in the middle")
            })?;
            fs.allocate(fh.0, offset, length, what).await
        };
        self.empty(Asked::new("fallocate", ino, req), work, reply);
    }

    fn lseek(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let fs = Arc::clone(&self.fs);
        let work = async move {
            let what = match whence {
                libc::SEEK_DATA => Seek::Data,
                libc::SEEK_HOLE => Seek::Hole,
                _ => return Err(Error::refused(libc::EINVAL, "the kernel seeks by itself")),
            };
            let offset = u64::try_from(offset).map_err(|_| Error::refused(libc::ENXIO, "before the start"))?;
            fs.seek(fh.0, offset, what).await
        };
        self.ask(Asked::new("lseek", ino, req), work, |outcome| match outcome {
            Ok(at) => reply.offset(i64::try_from(at).expect("files are shorter than 2^63 bytes")),
            Err(errno) => reply.error(errno),
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let fs = Arc::clone(&self.fs);
        let len = len.min(COPY_BYTES_MAX);
        let work = async move { fs.copy_range((fh_in.0, offset_in), (fh_out.0, offset_out), len).await };
        self.ask(Asked::new("copy_file_range", ino_in, req), work, |outcome| match outcome {
            Ok(copied) => reply.written(u32::try_from(copied).expect("at most COPY_BYTES_MAX")),
            Err(errno) => reply.error(errno),
        });
    }
}
