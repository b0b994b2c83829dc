//! rmdir(2).

use std::{fs, os::unix::fs::symlink};

use anyhow::{Result, ensure};
use rustix::{
    fs::{OFlags, rmdir, stat},
    io::Errno,
};

use super::{file, mounted, open, refused, stranger_refused, write_all};

#[test]
fn what_cannot_be_removed() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let at = |name: &str| mount.join(name);
    file(&at("f"), b"x")?;
    fs::create_dir_all(at("full/below"))?;
    symlink("full", at("link"))?;
    for (name, errno) in [
        ("missing", Errno::NOENT),
        ("f", Errno::NOTDIR),
        ("f/below", Errno::NOTDIR),
        ("link", Errno::NOTDIR),
        ("full", Errno::NOTEMPTY),
        ("full/below/.", Errno::INVAL),
        ("full/below/..", Errno::NOTEMPTY),
        ("", Errno::BUSY),
    ] {
        refused(errno, rmdir(at(name))).map_err(|error| error.context(name.to_owned()))?;
    }
    stranger_refused("ermission denied", "rmdir \"$1\"", &at("full/below"))?;
    ensure!(at("full/below").is_dir());
    cluster.finish([mount])
}

#[test]
fn the_directory_above_counts_one_less() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let top = mount.join("top");
    fs::create_dir_all(top.join("a"))?;
    fs::create_dir_all(top.join("b"))?;
    let before = stat(&top)?;
    rmdir(top.join("a"))?;
    let after = stat(&top)?;
    ensure!((before.st_nlink, after.st_nlink) == (4, 3));
    ensure!((after.st_mtime, after.st_mtime_nsec) > (before.st_mtime, before.st_mtime_nsec));
    refused(Errno::NOENT, stat(top.join("a")))?;
    cluster.finish([mount])
}

#[test]
fn a_file_that_is_being_written_keeps_its_directory_and_an_open_directory_is_removed() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    let writer = open(&dir.join("f"), OFlags::CREATE | OFlags::WRONLY)?;
    write_all(&writer, b"x", 0)?;
    refused(Errno::NOTEMPTY, rmdir(&dir))?;
    drop(writer);
    refused(Errno::NOTEMPTY, rmdir(&dir))?;
    fs::remove_file(dir.join("f"))?;
    let handle = open(&dir, OFlags::RDONLY)?;
    rmdir(&dir)?;
    refused(Errno::STALE, rustix::fs::fstat(&handle))?;
    cluster.finish([mount])
}
