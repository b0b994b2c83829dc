//! ioctl(2): there is none; programs that try one fall back.

use std::fs;

use anyhow::{Result, ensure};
use dfs_tests::files;
use rustix::{fs::OFlags, io::Errno};

use super::{file, mounted, open, refused};

#[test]
fn what_is_not_offered_is_refused_and_not_pretended() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let (from, to) = (mount.join("from"), mount.join("to"));
    let want = files::noise(1, 200_000);
    file(&from, &want)?;
    let source = open(&from, OFlags::RDONLY)?;
    refused(Errno::NOTTY, rustix::fs::ioctl_getflags(&source))?;
    let target = open(&to, OFlags::CREATE | OFlags::WRONLY)?;
    let outcome = rustix::fs::ioctl_ficlone(&target, &source);
    ensure!(matches!(outcome, Err(Errno::OPNOTSUPP | Errno::NOTTY)), "{outcome:?}");
    drop(target);
    // cp(1) tries that first.
    files::sh("cp --reflink=auto \"$1\" \"$2\"", &[&from, &to])?;
    ensure!(fs::read(&to)? == want);
    cluster.finish([mount])
}
