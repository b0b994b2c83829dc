//! The end of a mount.

use std::fs::{self, File};

use anyhow::{Result, ensure};
use dfs_tests::files;
use std::io::Write as _;

use super::{file, mounted};

#[test]
fn a_mount_in_use_is_busy_and_goes_on() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let path = mount.join("f");
    let mut open = File::create(&path)?;
    open.write_all(b"first ")?;
    let output = std::process::Command::new("umount").arg(mount.path()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.contains("busy"), "{output:?}");
    open.write_all(b"second")?;
    files::close(open)?;
    ensure!(fs::read(&path)? == b"first second");
    let other = cluster.mount()?;
    ensure!(fs::read(other.join("f"))? == b"first second");
    cluster.finish([mount, other])
}

#[test]
fn after_umount_nothing_is_left_but_what_was_published() -> Result<()> {
    let (cluster, mut mount) = mounted()?;
    file(&mount.join("f"), b"x")?;
    mount.stop()?;
    ensure!(files::names(mount.path())?.is_empty(), "the directory below the mount is empty again");
    mount.start_again()?;
    ensure!(files::names(mount.path())? == ["f"]);
    cluster.finish([mount])
}
