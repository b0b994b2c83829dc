//! close(2).

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Result, ensure};
use rustix::fs::OFlags;

use super::{file, mounted, open, write_all};

#[test]
fn each_close_publishes_what_was_written_so_far() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let path = mount.join("f");
    let first = open(&path, OFlags::CREATE | OFlags::WRONLY)?;
    for round in 0..3_u8 {
        write_all(&first, &[round], u64::from(round))?;
        drop(rustix::io::dup(&first)?);
        let want: Vec<u8> = (0..=round).collect();
        ensure!(fs::read(other.join("f"))? == want, "round {round}");
    }
    drop(first);
    cluster.finish([mount, other])
}

#[test]
fn closing_what_was_not_written_changes_nothing() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"content")?;
    let before = fs::metadata(&path)?;
    for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::APPEND] {
        let handle = open(&path, flags)?;
        if flags != OFlags::RDONLY {
            rustix::io::pwrite(&handle, b"", 3)?;
        }
        drop(handle);
        let after = fs::metadata(&path)?;
        ensure!(
            (before.mtime_nsec(), before.ctime_nsec(), before.len())
                == (after.mtime_nsec(), after.ctime_nsec(), after.len()),
            "{flags:?}: {before:?} and {after:?}"
        );
    }
    ensure!(fs::read(&path)? == b"content");
    cluster.finish([mount])
}

#[test]
fn two_writers_on_one_mount_share_what_they_write() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"........")?;
    let (one, two) = (open(&path, OFlags::RDWR)?, open(&path, OFlags::RDWR)?);
    write_all(&one, b"ab", 0)?;
    write_all(&two, b"cd", 4)?;
    ensure!(super::content(&one)? == b"ab..cd..");
    drop(one);
    ensure!(fs::read(&path)? == b"ab..cd..");
    write_all(&two, b"ef", 6)?;
    drop(two);
    ensure!(fs::read(&path)? == b"ab..cdef");
    cluster.finish([mount])
}
