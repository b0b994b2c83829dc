//! The last close of an open file: what only it kept alive ends.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    files::{self, CHUNK},
    wait,
};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::{content, file, mounted, open};

#[test]
fn a_removed_file_is_readable_until_then_and_gives_its_space_back() -> Result<()> {
    let mut cluster = dfs_tests::Cluster::builder().meta_flag("--trash-retention", "0").start()?;
    let mount = cluster.mount()?;
    let path = mount.join("f");
    let want = files::noise(1, 2 * CHUNK);
    file(&path, &want)?;
    let chunks = || -> Result<u64> { cluster.status()?["chunks"]["total"].as_u64().context("a count of chunks") };
    ensure!(chunks()? == 2);
    let reader = open(&path, OFlags::RDONLY)?;
    let second = rustix::io::dup(&reader)?;
    fs::remove_file(&path)?;
    drop(reader);
    ensure!(content(&second)? == want, "one descriptor is left");
    drop(second);
    wait::until("the chunks are given up", Duration::from_secs(60), || chunks().is_ok_and(|count| count == 0))?;
    cluster.finish([mount])
}

#[test]
fn a_lock_of_the_open_file_ends_with_its_last_descriptor() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let (first, rival) = (open(&path, OFlags::RDWR)?, open(&path, OFlags::RDWR)?);
    flock(&first, FlockOperation::NonBlockingLockExclusive)?;
    let second = rustix::io::dup(&first)?;
    drop(first);
    super::refused(rustix::io::Errno::WOULDBLOCK, flock(&rival, FlockOperation::NonBlockingLockExclusive))?;
    drop(second);
    // The kernel releases in the background.
    wait::until("the lock is free", Duration::from_secs(10), || {
        flock(&rival, FlockOperation::NonBlockingLockExclusive).is_ok()
    })?;
    drop(rival);
    cluster.finish([mount])
}
