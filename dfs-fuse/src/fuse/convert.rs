//! Domain types to FUSE types.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_client::StatFs;
use dfs_common::{Attr, FileKind, SetTime};
use fuser::{FileAttr, FileType, FopenFlags, INodeNo, ReplyStatfs, TimeOrNow};

use crate::fs::{dir::Listing, file::Opened, pages::Caching};

/// Preferred size of reads and writes that stat(2) tells, bytes. What cp takes anyway; also makes stdio buffers large
/// enough that a program which writes line by line does not pay a round trip for each 4 KiB.
const BLOCK_BYTES: u32 = 128 << 10;
/// Unit of the figures of statfs(2), bytes.
const SPACE_UNIT_BYTES: u64 = 4096;
/// Inodes still free, as statfs(2) tells it: there is no limit, but 0 would stop programs that look.
const INODES_FREE: u64 = 1 << 32;

/// Kind of an inode.
pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// Kind from the mode that mknod(2) was given.
pub(super) fn node_kind(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        libc::S_IFREG | 0 => Some(FileKind::File),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// A time to set.
///
/// The kernel says -1.5 s as -2 s and 0.5 s. fuser 0.18.0 (`system_time_from_time`, marked there as to be done) makes
/// 2.5 s before the epoch of it, which is put right here.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    let nanoseconds = |distance: Duration| i64::try_from(distance.as_nanos()).unwrap_or(i64::MAX);
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(match time.duration_since(UNIX_EPOCH) {
            Ok(after) => nanoseconds(after),
            Err(before) => {
                let distance = before.duration();
                let part = i64::from(distance.subsec_nanos());
                part - nanoseconds(Duration::from_secs(distance.as_secs()))
            }
        }),
    }
}

/// Attributes.
pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: if attr.kind == FileKind::File { attr.size.div_ceil(512) } else { 0 },
        atime: system_time(attr.atime_ns),
        mtime: system_time(attr.mtime_ns),
        ctime: system_time(attr.ctime_ns),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).expect("twelve bits"),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// Attributes of a name that does not exist: the kernel looks at the inode number 0 only.
pub(super) fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// How the kernel is to treat an open file.
pub(super) fn fopen_flags(opened: Opened) -> FopenFlags {
    let pages = match opened.caching {
        Caching::Keep => FopenFlags::FOPEN_KEEP_CACHE,
        Caching::Fresh => FopenFlags::empty(),
        Caching::Bypass => FopenFlags::FOPEN_DIRECT_IO,
    };
    if opened.wants_flush { pages } else { pages | FopenFlags::FOPEN_NOFLUSH }
}

/// How the kernel is to treat an open directory.
pub(super) fn listing_flags(listing: Listing) -> FopenFlags {
    match listing {
        Listing::Keep => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        Listing::Fresh => FopenFlags::FOPEN_CACHE_DIR,
        // Without the first flag the second changes nothing but that the listing of somebody else stays.
        Listing::Bypass => FopenFlags::FOPEN_KEEP_CACHE,
    }
}

/// Space as a user can use it: one copy counted.
pub(super) fn reply_statfs(space: &StatFs, reply: ReplyStatfs) {
    let copies = u64::from(space.replication.max(1));
    let units = |bytes: u64| bytes / copies / SPACE_UNIT_BYTES;
    let unit = u32::try_from(SPACE_UNIT_BYTES).expect("small");
    let free = units(space.capacity_bytes.saturating_sub(space.used_bytes));
    let available = units(space.available_bytes).min(free);
    let inodes = space.inodes.saturating_add(INODES_FREE);
    reply.statfs(units(space.capacity_bytes), free, available, inodes, INODES_FREE, unit, 255, unit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_after_the_epoch_round_trip() {
        for ns in [0, 1, 1_700_000_000_123_456_789, i64::MAX] {
            assert_eq!(set_time(TimeOrNow::SpecificTime(system_time(ns))), SetTime::At(ns));
        }
    }

    #[test]
    fn times_before_the_epoch_are_put_right() {
        // As fuser hands over -2 s + 0.5 s.
        let wrong = UNIX_EPOCH - Duration::new(2, 500_000_000);
        assert_eq!(set_time(TimeOrNow::SpecificTime(wrong)), SetTime::At(-1_500_000_000));
        let whole = UNIX_EPOCH - Duration::new(7, 0);
        assert_eq!(set_time(TimeOrNow::SpecificTime(whole)), SetTime::At(-7_000_000_000));
        let far = UNIX_EPOCH - Duration::new(u64::MAX >> 1, 0);
        assert_eq!(set_time(TimeOrNow::SpecificTime(far)), SetTime::At(-i64::MAX));
    }

    #[test]
    fn kinds_of_nodes() {
        assert_eq!(node_kind(libc::S_IFREG | 0o644), Some(FileKind::File));
        assert_eq!(node_kind(0o644), Some(FileKind::File));
        assert_eq!(node_kind(libc::S_IFIFO), Some(FileKind::Fifo));
        assert_eq!(node_kind(libc::S_IFDIR), None);
    }
}
