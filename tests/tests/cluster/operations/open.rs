//! open(2) of what is there.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use anyhow::{Result, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fstat, mknodat},
    io::Errno,
};

use super::{content, file, mounted, open, refused, stranger_refused, write_all};

#[test]
fn what_cannot_be_opened() -> Result<()> {
    let (cluster, mount) = mounted()?;
    file(&mount.join("f"), b"x")?;
    fs::create_dir(mount.join("d"))?;
    symlink("f", mount.join("link"))?;
    symlink("loop", mount.join("loop"))?;
    mknodat(CWD, mount.join("pipe"), FileType::Fifo, Mode::RWXU, 0)?;
    mknodat(CWD, mount.join("socket"), FileType::Socket, Mode::RWXU, 0)?;
    for (name, flags, errno) in [
        ("missing", OFlags::RDONLY, Errno::NOENT),
        ("d", OFlags::WRONLY, Errno::ISDIR),
        ("d", OFlags::RDWR, Errno::ISDIR),
        ("f", OFlags::RDONLY | OFlags::DIRECTORY, Errno::NOTDIR),
        ("f/", OFlags::RDONLY, Errno::NOTDIR),
        ("f/below", OFlags::RDONLY, Errno::NOTDIR),
        ("link", OFlags::RDONLY | OFlags::NOFOLLOW, Errno::LOOP),
        ("loop", OFlags::RDONLY, Errno::LOOP),
        ("pipe", OFlags::WRONLY | OFlags::NONBLOCK, Errno::NXIO),
        ("socket", OFlags::RDONLY, Errno::NXIO),
    ] {
        refused(errno, open(&mount.join(name), flags)).map_err(|error| error.context(format!("{name} {flags:?}")))?;
    }
    fs::set_permissions(mount.join("f"), Permissions::from_mode(0o640))?;
    stranger_refused("Permission denied", "cat \"$1\"", &mount.join("f"))?;
    stranger_refused("ermission denied", "echo more >> \"$1\"", &mount.join("f"))?;
    cluster.finish([mount])
}

#[test]
fn a_descriptor_does_what_it_was_opened_for() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"content")?;
    let (reader, writer, place) =
        (open(&path, OFlags::RDONLY)?, open(&path, OFlags::WRONLY)?, open(&path, OFlags::PATH)?);
    let mut room = [0_u8; 4];
    refused(Errno::BADF, rustix::io::pwrite(&reader, b"x", 0))?;
    refused(Errno::BADF, rustix::io::pread(&writer, &mut room[..], 0))?;
    refused(Errno::BADF, rustix::io::pread(&place, &mut room[..], 0))?;
    ensure!(fstat(&place)?.st_size == 7);
    ensure!(content(&reader)? == b"content");
    cluster.finish([mount])
}

#[test]
fn truncating_empties_at_once_on_this_mount_and_at_close_elsewhere() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let path = mount.join("f");
    file(&path, b"old content")?;
    let reader = open(&other.join("f"), OFlags::RDONLY)?;
    let writer = open(&path, OFlags::WRONLY | OFlags::TRUNC)?;
    ensure!(fs::metadata(&path)?.len() == 0 && fs::read(other.join("f"))? == b"old content");
    write_all(&writer, b"new", 0)?;
    drop(writer);
    ensure!(fs::read(other.join("f"))? == b"new");
    ensure!(content(&reader)? == b"old content", "who had it open keeps the version");
    // Emptied and closed without a write.
    drop(open(&path, OFlags::WRONLY | OFlags::TRUNC)?);
    ensure!(fs::read(&path)?.is_empty() && fs::read(other.join("f"))?.is_empty());
    cluster.finish([mount, other])
}

#[test]
fn programs_run_from_the_mount_and_are_busy_meanwhile() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let (program, script) = (mount.join("sleep"), mount.join("script"));
    fs::copy("/bin/sleep", &program)?;
    let mut child = Command::new(&program).arg("60").spawn()?;
    refused(Errno::TXTBSY, open(&program, OFlags::WRONLY))?;
    child.kill()?;
    child.wait()?;
    drop(open(&program, OFlags::WRONLY)?);
    file(&script, b"#!/bin/sh\necho from the mount\n")?;
    ensure!(Command::new(&script).output().is_err(), "without x it is no program");
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    ensure!(Command::new(&script).output()?.stdout == b"from the mount\n");
    cluster.finish([mount])
}
