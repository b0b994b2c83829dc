//! How a name is found.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use dfs_tests::wait;
use rustix::{
    fs::{CWD, RenameFlags, renameat_with, stat},
    io::Errno,
};

use super::{file, mounted, refused};

#[test]
fn names_that_are_not_there() -> Result<()> {
    let (cluster, mount) = mounted()?;
    file(&mount.join("f"), b"x")?;
    refused(Errno::NOENT, stat(mount.join("missing")))?;
    refused(Errno::NOENT, stat(mount.join("missing/below")))?;
    refused(Errno::NOENT, stat(mount.join("F")))?;
    refused(Errno::NOTDIR, stat(mount.join("f/below")))?;
    refused(Errno::NOTDIR, stat(mount.join("f/")))?;
    refused(Errno::NAMETOOLONG, stat(mount.join("n".repeat(256))))?;
    cluster.finish([mount])
}

#[test]
fn dots_lead_here_and_up() -> Result<()> {
    let (cluster, mount) = mounted()?;
    fs::create_dir_all(mount.join("a/b"))?;
    let inode = |name: &str| stat(mount.join(name)).map(|attr| attr.st_ino);
    ensure!(inode("a/.")? == inode("a")? && inode("a/b/..")? == inode("a")? && inode("a/..")? == inode("")?);
    fs::rename(mount.join("a/b"), mount.join("c"))?;
    ensure!(inode("c/..")? == inode("")?, "after a move as well");
    cluster.finish([mount])
}

#[test]
fn a_name_that_was_missing_is_found_once_it_is_there() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    for (maker, seeker) in [(&mount, &mount), (&other, &mount), (&mount, &other)] {
        let (made, sought) = (maker.join("f"), seeker.join("f"));
        refused(Errno::NOENT, stat(&sought))?;
        file(&made, b"x")?;
        wait::until("the name is found", Duration::from_secs(1), || stat(&sought).is_ok())?;
        fs::remove_file(&made)?;
        wait::until("the name is gone", Duration::from_secs(1), || {
            stat(&sought).is_err_and(|error| error == Errno::NOENT)
        })?;
    }
    cluster.finish([mount, other])
}

#[test]
fn a_name_that_now_means_another_file_leads_to_that() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    file(&mount.join("a"), b"a")?;
    file(&mount.join("b"), b"b")?;
    let inode = |name: &str| stat(mount.join(name)).map(|attr| attr.st_ino);
    let (a, b) = (inode("a")?, inode("b")?);
    renameat_with(CWD, other.join("a"), CWD, other.join("b"), RenameFlags::EXCHANGE)?;
    wait::until("the names are exchanged", Duration::from_secs(1), || (inode("a"), inode("b")) == (Ok(b), Ok(a)))?;
    ensure!(fs::read(mount.join("a"))? == b"b");
    cluster.finish([mount, other])
}
