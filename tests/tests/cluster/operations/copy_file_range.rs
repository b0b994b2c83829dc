//! copy_file_range(2). That chunks are shared is shown in `clones`.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
};

use anyhow::{Result, ensure};
use dfs_tests::files::{self, CHUNK};
use rustix::{
    fs::{OFlags, copy_file_range},
    io::Errno,
};

use super::{content, file, mounted, open, refused};

#[test]
fn what_cannot_be_copied() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let (from, to) = (mount.join("from"), mount.join("to"));
    file(&from, &files::noise(1, 100_000))?;
    file(&to, b"old")?;
    let source = open(&from, OFlags::RDONLY)?;
    let target = open(&to, OFlags::RDWR)?;
    let copy = |source: &OwnedFd, target: &OwnedFd, offset: u64, length: usize| {
        copy_file_range(source, Some(&mut { offset }), target, Some(&mut 0), length)
    };
    // Nothing to copy: no error, and nothing changes.
    ensure!(copy(&source, &target, 0, 0)? == 0);
    ensure!(copy(&source, &target, 100_000, 10)? == 0);
    ensure!(copy(&source, &target, 1 << 40, 10)? == 0);
    ensure!(content(&target)? == b"old");
    // No more than there is.
    ensure!(copy(&source, &target, 99_990, 100)? == 10);
    refused(Errno::BADF, copy(&source, &open(&to, OFlags::RDONLY)?, 0, 10))?;
    refused(Errno::BADF, copy(&open(&from, OFlags::WRONLY)?, &target, 0, 10))?;
    refused(Errno::BADF, copy(&source, &open(&to, OFlags::WRONLY | OFlags::APPEND)?, 0, 10))?;
    refused(Errno::ISDIR, copy(&open(mount.path(), OFlags::RDONLY)?, &target, 0, 10))?;
    // A range over itself.
    let both = open(&from, OFlags::RDWR)?;
    refused(Errno::INVAL, copy_file_range(&both, Some(&mut 0), &both, Some(&mut 10), 100))?;
    cluster.finish([mount])
}

#[test]
fn within_one_file_and_over_its_end() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    let mut want = files::noise(2, CHUNK + 1000);
    file(&path, &want)?;
    let both = open(&path, OFlags::RDWR)?;
    let end = want.len() as u64;
    let mut copied = 0;
    while copied < 1000 {
        copied +=
            copy_file_range(&both, Some(&mut (copied as u64)), &both, Some(&mut (end + copied as u64)), 1000 - copied)?;
    }
    want.extend_from_within(..1000);
    ensure!(content(&both)? == want, "before it is closed");
    drop(both);
    ensure!(fs::read(&path)? == want, "after it was closed");
    cluster.finish([mount])
}

#[test]
fn to_and_from_another_file_system() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let here = tempfile::NamedTempFile::new()?;
    let want = files::noise(3, 300_000);
    fs::write(here.path(), &want)?;
    let path = mount.join("f");
    // What the standard library does: in the kernel where it can, by reading and writing where it cannot.
    std::io::copy(&mut File::open(here.path())?, &mut File::create(&path)?)?;
    ensure!(fs::read(&path)? == want);
    let back = tempfile::NamedTempFile::new()?;
    std::io::copy(&mut File::open(&path)?, &mut File::create(back.path())?)?;
    ensure!(fs::read(back.path())? == want);
    cluster.finish([mount])
}
