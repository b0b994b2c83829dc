//! write(2), pwrite(2), writev(2).

use std::{fs, io::IoSlice};

use anyhow::{Result, ensure};
use dfs_tests::files::{self, CHUNK};
use rustix::{
    fs::{OFlags, fstat, stat},
    io::{Errno, pwrite, pwritev, write},
};

use super::{content, file, mounted, open, refused, write_all};

#[test]
fn around_the_borders_of_chunks() -> Result<()> {
    let (cluster, mut mount) = mounted()?;
    let mut want = vec![0; 3 * CHUNK];
    let path = mount.join("f");
    let writer = open(&path, OFlags::CREATE | OFlags::RDWR)?;
    for (seed, offset, length) in [
        (1, CHUNK - 1, 2),
        (2, 0, 1),
        (3, 2 * CHUNK - 5000, 10_000),
        (4, 3 * CHUNK - 1, 1),
        (5, CHUNK, CHUNK),
        (6, 17, 100),
    ] {
        let bytes = files::noise(seed, length);
        write_all(&writer, &bytes, offset as u64)?;
        want[offset..offset + length].copy_from_slice(&bytes);
    }
    ensure!(content(&writer)? == want, "before the close");
    drop(writer);
    mount.remount()?;
    ensure!(fs::read(&path)? == want, "after it");
    cluster.finish([mount])
}

#[test]
fn appending_ignores_the_offset() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"one ")?;
    let (first, second) =
        (open(&path, OFlags::WRONLY | OFlags::APPEND)?, open(&path, OFlags::WRONLY | OFlags::APPEND)?);
    for (at, text) in [(&first, "two "), (&second, "three "), (&first, "four")] {
        ensure!(write(at, text.as_bytes())? == text.len());
    }
    // Linux: with O_APPEND pwrite appends as well.
    pwrite(&second, b"!", 0)?;
    drop((first, second));
    ensure!(fs::read(&path)? == b"one two three four!");
    cluster.finish([mount])
}

#[test]
fn what_cannot_be_written_and_what_changes_nothing() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"content")?;
    refused(Errno::BADF, pwrite(open(&path, OFlags::RDONLY)?, b"x", 0))?;
    let writer = open(&path, OFlags::RDWR)?;
    refused(Errno::INVAL, pwrite(&writer, b"x", 1 << 63))?;
    refused(Errno::FBIG, pwrite(&writer, b"x", i64::MAX as u64 - 10))?;
    let before = fstat(&writer)?;
    ensure!(pwrite(&writer, b"", 100)? == 0 && fstat(&writer)?.st_size == 7);
    ensure!(fstat(&writer)?.st_mtime_nsec == before.st_mtime_nsec);
    drop(writer);
    ensure!(fs::read(&path)? == b"content" && stat(&path)?.st_mtime_nsec == before.st_mtime_nsec);
    cluster.finish([mount])
}

#[test]
fn with_rwf_dsync_one_write_is_durable() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let writer = open(&mount.join("f"), OFlags::CREATE | OFlags::WRONLY)?;
    rustix::io::pwritev2(&writer, &[IoSlice::new(b"first")], 0, rustix::io::ReadWriteFlags::DSYNC)?;
    ensure!(fs::read(other.join("f"))? == b"first");
    write_all(&writer, b"second", 0)?;
    ensure!(fs::read(other.join("f"))? == b"first", "the next one is not");
    drop(writer);
    ensure!(fs::read(other.join("f"))? == b"second");
    cluster.finish([mount, other])
}

#[test]
fn pieces_are_written_in_their_order_and_gaps_are_zeros() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    let writer = open(&path, OFlags::CREATE | OFlags::WRONLY)?;
    let pieces = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde")];
    ensure!(pwritev(&writer, &pieces, 3)? == 5);
    write_all(&writer, b"far", CHUNK as u64 + 10)?;
    drop(writer);
    let mut want = vec![0; CHUNK + 13];
    want[3..8].copy_from_slice(b"abcde");
    want[CHUNK + 10..].copy_from_slice(b"far");
    ensure!(fs::read(&path)? == want);
    cluster.finish([mount])
}
