//! open(2) with O_CREAT of a name that is not there.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
};

use anyhow::{Result, ensure};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use super::{STRANGER, as_stranger, content, mounted, open, refused, write_all};

const NEW: OFlags = OFlags::CREATE.union(OFlags::RDWR);

#[test]
fn owner_mode_and_umask() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    fs::set_permissions(&dir, Permissions::from_mode(0o777))?;
    for (umask, mode) in [("022", 0o644), ("077", 0o600), ("000", 0o666), ("277", 0o400)] {
        let output = as_stranger(&format!("umask {umask}; : > \"$1\"/{umask}"), &dir)?;
        ensure!(output.status.success(), "{output:?}");
        let attr = fs::metadata(dir.join(umask))?;
        ensure!((attr.mode() & 0o7777, attr.uid(), attr.gid()) == (mode, STRANGER, STRANGER), "{umask}: {attr:?}");
        ensure!((attr.len(), attr.nlink()) == (0, 1), "{umask}: {attr:?}");
    }
    // A directory with the set-group-id bit gives its group.
    chown(&dir, None, Some(99))?;
    fs::set_permissions(&dir, Permissions::from_mode(0o2777))?;
    ensure!(as_stranger(": > \"$1\"/of-group", &dir)?.status.success());
    ensure!(fs::metadata(dir.join("of-group"))?.gid() == 99);
    cluster.finish([mount])
}

#[test]
fn the_maker_may_write_whatever_the_mode() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    let made = rustix::fs::open(&path, NEW | OFlags::EXCL, Mode::empty())?;
    write_all(&made, b"mine", 0)?;
    ensure!(content(&made)? == b"mine");
    drop(made);
    ensure!(fs::read(&path)? == b"mine" && fs::metadata(&path)?.mode() & 0o7777 == 0);
    cluster.finish([mount])
}

#[test]
fn what_cannot_be_made() -> Result<()> {
    let (cluster, mount) = mounted()?;
    fs::create_dir(mount.join("d"))?;
    super::file(&mount.join("f"), b"x")?;
    symlink("nowhere", mount.join("dangling"))?;
    for name in ["d", "f", "dangling"] {
        refused(Errno::EXIST, open(&mount.join(name), NEW | OFlags::EXCL))?;
    }
    refused(Errno::ISDIR, open(&mount.join("d"), NEW))?;
    refused(Errno::NOENT, open(&mount.join("missing/f"), NEW))?;
    refused(Errno::NOTDIR, open(&mount.join("f/g"), NEW))?;
    refused(Errno::NAMETOOLONG, open(&mount.join("n".repeat(256)), NEW))?;
    refused(Errno::ISDIR, open(&mount.join("slash/"), NEW))?;
    // Through a link that leads nowhere the target is made.
    drop(open(&mount.join("dangling"), NEW)?);
    ensure!(fs::symlink_metadata(mount.join("nowhere"))?.is_file());
    // In a directory that is gone.
    let gone = mount.join("gone");
    fs::create_dir(&gone)?;
    let handle = open(&gone, OFlags::RDONLY | OFlags::DIRECTORY)?;
    fs::remove_dir(&gone)?;
    refused(Errno::NOENT, rustix::fs::openat(&handle, "f", NEW, Mode::RWXU))?;
    cluster.finish([mount])
}

#[test]
fn an_existing_file_is_opened_and_keeps_its_mode() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    super::file(&path, b"old")?;
    fs::set_permissions(&path, Permissions::from_mode(0o640))?;
    let again = rustix::fs::open(&path, NEW, Mode::from_raw_mode(0o777))?;
    ensure!(content(&again)? == b"old" && fs::metadata(&path)?.mode() & 0o7777 == 0o640);
    drop(again);
    cluster.finish([mount])
}
