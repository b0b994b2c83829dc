//! What programs see of each operation of the FUSE protocol: what it does, its errors, and the ends of its ranges. One module
//! per operation, named after it.

mod access;
mod copy_file_range;
mod create;
mod destroy;
mod fallocate;
mod flush;
mod forget;
mod fsync;
mod fsyncdir;
mod getattr;
mod getlk;
mod getxattr;
mod init;
mod ioctl;
mod link;
mod listxattr;
mod lookup;
mod lseek;
mod mkdir;
mod mknod;
mod open;
mod opendir;
mod poll;
mod read;
mod readdir;
mod readdirplus;
mod readlink;
mod release;
mod releasedir;
mod removexattr;
mod rename;
mod rmdir;
mod setattr;
mod setlk;
mod setxattr;
mod statfs;
mod symlink;
mod tmpfile;
mod unlink;
mod write;

use std::{
    fmt::Debug,
    os::fd::OwnedFd,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, bail};
use dfs_tests::{Cluster, Mount};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

/// The user and group that are neither root's nor the owner's.
const STRANGER: u32 = 4711;

/// A cluster with one mount.
fn mounted() -> Result<(Cluster, Mount)> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    Ok((cluster, mount))
}

/// Demands that an operation was refused with `errno`.
fn refused<T: Debug>(errno: Errno, outcome: rustix::io::Result<T>) -> Result<()> {
    match outcome {
        Err(found) if found == errno => Ok(()),
        other => bail!("{other:?} instead of {errno:?}"),
    }
}

/// Opens with flags, and with all rights for its owner if it makes the file.
fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

/// A new file with this content, published.
fn file(path: &Path, content: &[u8]) -> Result<()> {
    dfs_tests::files::write(path, content).with_context(|| path.display().to_string())
}

/// A pwrite(2) of everything.
fn write_all(file: &OwnedFd, content: &[u8], offset: u64) -> Result<()> {
    let mut done = 0;
    while done < content.len() {
        done += rustix::io::pwrite(file, &content[done..], offset + done as u64)?;
    }
    Ok(())
}

/// The whole content from the start of an open file.
fn content(file: &OwnedFd) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match rustix::io::pread(file, &mut piece[..], all.len() as u64)? {
            0 => return Ok(all),
            count => all.extend_from_slice(&piece[..count]),
        }
    }
}

/// Runs a shell script, which finds `path` in `$1`, as a user who owns nothing.
fn as_stranger(script: &str, path: &Path) -> Result<Output> {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(path).uid(STRANGER).gid(STRANGER).current_dir("/");
    shell.output().context("sh")
}

/// Demands that a stranger's script fails, and that what it says has `message` in it.
fn stranger_refused(message: &str, script: &str, path: &Path) -> Result<()> {
    let output = as_stranger(script, path)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || !said.contains(message) {
        bail!("{script}: {}, {said:?} instead of {message:?}", output.status);
    }
    Ok(())
}
