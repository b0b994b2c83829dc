//! fallocate(2).

use std::fs;

use anyhow::{Result, ensure};
use dfs_tests::files::{self, CHUNK};
use rustix::{
    fs::{FallocateFlags, OFlags, fallocate},
    io::Errno,
};

use super::{content, file, mounted, open, refused};

const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(KEEP);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;

#[test]
fn ranges_of_every_kind() -> Result<()> {
    let (cluster, mut mount) = mounted()?;
    let path = mount.join("f");
    let length = CHUNK + 5000;
    let mut want = files::noise(1, length);
    file(&path, &want)?;
    let both = open(&path, OFlags::RDWR)?;
    let size = || fs::metadata(&path).map(|attr| usize::try_from(attr.len()).expect("small"));
    // Within the file, and beyond its end with the size kept: nothing changes.
    fallocate(&both, FallocateFlags::empty(), 0, 100)?;
    fallocate(&both, KEEP, length as u64, CHUNK as u64)?;
    fallocate(&both, PUNCH, length as u64 + 10, CHUNK as u64)?;
    ensure!(size()? == length && content(&both)? == want);
    // Longer.
    fallocate(&both, FallocateFlags::empty(), length as u64 - 10, 1010)?;
    want.resize(length + 1000, 0);
    ensure!(size()? == want.len() && content(&both)? == want);
    // A hole over the border of two chunks and over the end: no longer than before.
    fallocate(&both, PUNCH, CHUNK as u64 - 100, 200)?;
    want[CHUNK - 100..CHUNK + 100].fill(0);
    fallocate(&both, PUNCH, want.len() as u64 - 1500, 1 << 30)?;
    let end = want.len();
    want[end - 1500..].fill(0);
    ensure!(size()? == want.len() && content(&both)? == want);
    // Zeros within, and over the end with the size kept or not.
    fallocate(&both, ZERO, 10, 20)?;
    want[10..30].fill(0);
    fallocate(&both, ZERO | KEEP, want.len() as u64 - 5, 50)?;
    fallocate(&both, ZERO, want.len() as u64 - 5, 50)?;
    want.resize(want.len() + 45, 0);
    ensure!(size()? == want.len() && content(&both)? == want);
    drop(both);
    mount.remount()?;
    ensure!(fs::read(&path)? == want);
    cluster.finish([mount])
}

#[test]
fn what_is_refused() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"content")?;
    let both = open(&path, OFlags::RDWR)?;
    refused(Errno::INVAL, fallocate(&both, FallocateFlags::empty(), 0, 0))?;
    refused(Errno::FBIG, fallocate(&both, FallocateFlags::empty(), i64::MAX as u64, 2))?;
    for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        refused(Errno::OPNOTSUPP, fallocate(&both, mode, 0, 4096))?;
    }
    // A hole changes no size: the kernel wants that said.
    refused(Errno::OPNOTSUPP, fallocate(&both, FallocateFlags::PUNCH_HOLE, 0, 10))?;
    refused(Errno::BADF, fallocate(open(&path, OFlags::RDONLY)?, FallocateFlags::empty(), 0, 10))?;
    ensure!(content(&both)? == b"content");
    cluster.finish([mount])
}
