//! readlink(2).

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, os::unix::fs::symlink};

use anyhow::{Result, ensure};
use rustix::{fs::readlink, io::Errno};

use super::{file, mounted, refused};

#[test]
fn targets_come_back_byte_by_byte() -> Result<()> {
    let (cluster, mut mount) = mounted()?;
    let long = vec![b'x'; 4095];
    let targets: [&[u8]; 7] =
        [b"f", b"../up/and/down", b"/absolute", b"//./..", b"not UTF-8: \xFF\xFE", b"line\nbreak", &long];
    for (i, target) in targets.iter().enumerate() {
        symlink(OsStr::from_bytes(target), mount.join(i.to_string()))?;
    }
    for _ in 0..2 {
        for (i, target) in targets.iter().enumerate() {
            ensure!(fs::read_link(mount.join(i.to_string()))?.as_os_str().as_bytes() == *target, "link {i}");
        }
        mount.remount()?;
    }
    cluster.finish([mount])
}

#[test]
fn what_is_no_link() -> Result<()> {
    let (cluster, mount) = mounted()?;
    file(&mount.join("f"), b"x")?;
    refused(Errno::INVAL, readlink(mount.join("f"), Vec::new()))?;
    refused(Errno::INVAL, readlink(mount.path(), Vec::new()))?;
    refused(Errno::NOENT, readlink(mount.join("missing"), Vec::new()))?;
    refused(Errno::NOTDIR, readlink(mount.join("f/below"), Vec::new()))?;
    cluster.finish([mount])
}
