//! access(2): the kernel decides by owner, group and bits, and asks the mount for nothing else.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Result, ensure};
use rustix::{
    fs::{Access, access},
    io::Errno,
};

use super::{as_stranger, file, mounted, refused, stranger_refused};

#[test]
fn bits_decide_for_everybody_but_root() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    for (mode, readable, writable, executable) in [
        (0o644, true, false, false),
        (0o600, false, false, false),
        (0o606, true, true, false),
        (0o711, false, false, true),
    ] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        for (test, allowed) in [("-r", readable), ("-w", writable), ("-x", executable)] {
            let told = as_stranger(&format!("test {test} \"$1\""), &path)?.status.success();
            ensure!(told == allowed, "{test} with {mode:o}: {told}");
        }
    }
    cluster.finish([mount])
}

#[test]
fn root_may_all_but_execute_what_nobody_may() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000))?;
    access(&path, Access::READ_OK | Access::WRITE_OK)?;
    refused(Errno::ACCESS, access(&path, Access::EXEC_OK))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o001))?;
    access(&path, Access::EXEC_OK)?;
    refused(Errno::NOENT, access(mount.join("missing"), Access::EXISTS))?;
    refused(Errno::NOTDIR, access(path.join("below"), Access::EXISTS))?;
    cluster.finish([mount])
}

#[test]
fn a_directory_without_x_hides_what_is_below() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    file(&dir.join("f"), b"x")?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o744))?;
    stranger_refused("Permission denied", "cat \"$1\"/f", &dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))?;
    ensure!(as_stranger("cat \"$1\"/f", &dir)?.stdout == b"x");
    stranger_refused("Permission denied", "ls \"$1\"", &dir)?;
    cluster.finish([mount])
}

#[test]
fn a_read_only_mount_says_so() -> Result<()> {
    let mut cluster = dfs_tests::Cluster::builder().start()?;
    let mount = cluster.mount()?;
    file(&mount.join("f"), b"x")?;
    let read_only = cluster.mount_with("ro")?;
    access(read_only.join("f"), Access::READ_OK)?;
    refused(Errno::ROFS, access(read_only.join("f"), Access::WRITE_OK))?;
    cluster.finish([mount, read_only])
}
