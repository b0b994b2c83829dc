//! read(2), pread(2), readv(2).

use std::{io::IoSliceMut, os::fd::OwnedFd};

use anyhow::{Result, ensure};
use dfs_tests::files::{self, CHUNK};
use rustix::{
    fs::{OFlags, ftruncate},
    io::{Errno, pread, preadv},
};

use super::{content, file, mounted, open, refused, write_all};

#[test]
fn at_the_end_over_it_and_far_behind_it() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    let want = files::noise(1, CHUNK + 1000);
    file(&path, &want)?;
    let end = want.len() as u64;
    for flags in [OFlags::RDONLY, OFlags::RDWR] {
        let handle = open(&path, flags)?;
        let mut room = [0xEE_u8; 200];
        ensure!(pread(&handle, &mut room[..], end)? == 0);
        ensure!(pread(&handle, &mut room[..], end + 1)? == 0);
        ensure!(pread(&handle, &mut room[..], i64::MAX as u64 - 200)? == 0);
        ensure!(pread(&handle, &mut room[..0], 0)? == 0);
        ensure!(pread(&handle, &mut room[..], end - 50)? == 50 && room[..50] == want[want.len() - 50..]);
        // What lies behind what was read is not touched.
        ensure!(room[50..] == [0xEE; 150]);
        // Over the border of two chunks.
        ensure!(
            pread(&handle, &mut room[..], CHUNK as u64 - 100)? == 200 && room[..] == want[CHUNK - 100..CHUNK + 100]
        );
        let (mut one, mut two) = ([0_u8; 3], [0_u8; 5]);
        let count = preadv(&handle, &mut [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)], 7)?;
        ensure!(count == 8 && one == want[7..10] && two == want[10..15]);
    }
    cluster.finish([mount])
}

#[test]
fn what_cannot_be_read() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let mut room = [0_u8; 8];
    refused(Errno::BADF, pread(open(&path, OFlags::WRONLY)?, &mut room[..], 0))?;
    refused(Errno::ISDIR, pread(open(mount.path(), OFlags::RDONLY)?, &mut room[..], 0))?;
    refused(Errno::INVAL, pread(open(&path, OFlags::RDONLY)?, &mut room[..], 1 << 63))?;
    cluster.finish([mount])
}

#[test]
fn who_reads_while_another_handle_writes_or_cuts() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"0123456789")?;
    let reader = open(&path, OFlags::RDONLY)?;
    let both = open(&path, OFlags::RDWR)?;
    let at = |handle: &OwnedFd| content(handle);
    write_all(&both, b"AB", 3)?;
    ensure!(at(&both)? == b"012AB56789", "a writer reads what it wrote");
    ftruncate(&both, 6)?;
    ensure!(at(&both)? == b"012AB5");
    ftruncate(&both, 8)?;
    ensure!(at(&both)? == b"012AB5\0\0", "what was cut off does not come back");
    drop(both);
    ensure!(at(&reader)? == b"0123456789", "who had it open for reading keeps its version");
    ensure!(at(&open(&path, OFlags::RDONLY)?)? == b"012AB5\0\0");
    cluster.finish([mount])
}
