//! fsync(2), fdatasync(2), syncfs(2), sync_file_range(2), and files opened with O_SYNC.

use std::fs;

use anyhow::{Result, ensure};
use dfs_tests::files::{self, CHUNK};
use rustix::fs::{OFlags, fdatasync, fsync};

use super::{file, mounted, open, write_all};

#[test]
fn what_was_synced_is_published_and_the_writer_goes_on() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let mut want = files::noise(1, CHUNK + 100);
    let writer = open(&mount.join("f"), OFlags::CREATE | OFlags::WRONLY)?;
    write_all(&writer, &want, 0)?;
    fsync(&writer)?;
    ensure!(fs::read(other.join("f"))? == want, "after fsync");
    want[10] ^= 1;
    write_all(&writer, &want[10..11], 10)?;
    fdatasync(&writer)?;
    ensure!(fs::read(other.join("f"))? == want, "after fdatasync");
    // Twice without a write between: nothing to do, no error.
    fsync(&writer)?;
    fdatasync(&writer)?;
    drop(writer);
    ensure!(fs::read(other.join("f"))? == want);
    cluster.finish([mount, other])
}

#[test]
fn each_write_with_o_sync_is_published() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    for (name, flag) in [("sync", OFlags::SYNC), ("dsync", OFlags::DSYNC)] {
        let writer = open(&mount.join(name), OFlags::CREATE | OFlags::WRONLY | flag)?;
        write_all(&writer, b"first", 0)?;
        ensure!(fs::read(other.join(name))? == b"first", "{name}");
        write_all(&writer, b" second", 5)?;
        ensure!(fs::read(other.join(name))? == b"first second", "{name}");
        drop(writer);
    }
    cluster.finish([mount, other])
}

#[test]
fn whatever_is_open_can_be_synced() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let reader = open(&path, OFlags::RDONLY)?;
    fsync(&reader)?;
    fdatasync(&reader)?;
    rustix::fs::syncfs(&reader)?;
    // Of a file that is gone as well.
    let writer = open(&path, OFlags::WRONLY)?;
    fs::remove_file(&path)?;
    write_all(&writer, b"y", 0)?;
    fsync(&writer)?;
    drop(writer);
    cluster.finish([mount])
}
