//! lseek(2).

use anyhow::{Result, ensure};
use dfs_tests::files::{self, CHUNK};
use rustix::{
    fs::{OFlags, SeekFrom, ftruncate, seek},
    io::Errno,
};

use super::{file, mounted, open, refused, write_all};

#[test]
fn from_the_start_from_here_and_from_the_end() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, &[5; 1000])?;
    let handle = open(&path, OFlags::RDONLY)?;
    for (to, at) in [
        (SeekFrom::Start(10), 10),
        (SeekFrom::Current(5), 15),
        (SeekFrom::End(-1), 999),
        (SeekFrom::End(500), 1500),
        (SeekFrom::Current(-1500), 0),
    ] {
        ensure!(seek(&handle, to)? == at, "{to:?}");
    }
    refused(Errno::INVAL, seek(&handle, SeekFrom::Current(-1)))?;
    refused(Errno::INVAL, seek(&handle, SeekFrom::End(-1001)))?;
    // The end is that of the file as the mount sees it, also while it is written.
    let writer = open(&path, OFlags::WRONLY)?;
    write_all(&writer, b"x", 1999)?;
    ensure!(seek(&writer, SeekFrom::End(0))? == 2000);
    drop(writer);
    ensure!(seek(open(&path, OFlags::RDONLY)?, SeekFrom::End(0))? == 2000);
    cluster.finish([mount])
}

#[test]
fn data_and_holes_before_and_after_the_close() -> Result<()> {
    let (cluster, mut mount) = mounted()?;
    let path = mount.join("f");
    let (chunk, size) = (CHUNK as u64, 6 * CHUNK as u64 + 100);
    let writer = open(&path, OFlags::CREATE | OFlags::RDWR)?;
    write_all(&writer, &files::noise(1, CHUNK), 2 * chunk)?;
    ftruncate(&writer, size)?;
    let check = |handle: &std::os::fd::OwnedFd| -> Result<()> {
        ensure!(seek(handle, SeekFrom::Data(0))? == 2 * chunk);
        ensure!(seek(handle, SeekFrom::Data(2 * chunk + 17))? == 2 * chunk + 17);
        ensure!(seek(handle, SeekFrom::Hole(0))? == 0);
        ensure!(seek(handle, SeekFrom::Hole(2 * chunk))? == 3 * chunk);
        ensure!(seek(handle, SeekFrom::Hole(size - 1))? == size - 1);
        refused(Errno::NXIO, seek(handle, SeekFrom::Data(3 * chunk)))?;
        refused(Errno::NXIO, seek(handle, SeekFrom::Data(size)))?;
        refused(Errno::NXIO, seek(handle, SeekFrom::Hole(size)))
    };
    check(&writer)?;
    drop(writer);
    mount.remount()?;
    check(&open(&path, OFlags::RDONLY)?)?;
    // Without a hole, one is told at the end; in an empty file there is neither.
    file(&mount.join("full"), b"data")?;
    let full = open(&mount.join("full"), OFlags::RDONLY)?;
    ensure!((seek(&full, SeekFrom::Data(1))?, seek(&full, SeekFrom::Hole(1))?) == (1, 4));
    file(&mount.join("empty"), b"")?;
    refused(Errno::NXIO, seek(open(&mount.join("empty"), OFlags::RDONLY)?, SeekFrom::Hole(0)))?;
    cluster.finish([mount])
}
