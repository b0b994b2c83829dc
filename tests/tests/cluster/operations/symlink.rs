//! symlink(2).

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink as make},
};

use anyhow::{Result, ensure};
use rustix::{fs::symlink, io::Errno};

use super::{STRANGER, as_stranger, file, mounted, refused, stranger_refused};

#[test]
fn what_cannot_be_made() -> Result<()> {
    let (cluster, mount) = mounted()?;
    file(&mount.join("f"), b"x")?;
    fs::create_dir(mount.join("d"))?;
    make("nowhere", mount.join("dangling"))?;
    for taken in ["f", "d", "dangling"] {
        refused(Errno::EXIST, symlink("t", mount.join(taken)))?;
    }
    refused(Errno::NOENT, symlink("t", mount.join("missing/l")))?;
    refused(Errno::NOTDIR, symlink("t", mount.join("f/l")))?;
    refused(Errno::NAMETOOLONG, symlink("t", mount.join("n".repeat(256))))?;
    refused(Errno::NAMETOOLONG, symlink("t".repeat(4096), mount.join("l")))?;
    refused(Errno::NOENT, symlink("", mount.join("l")))?;
    stranger_refused("Permission denied", "ln -s t \"$1\"/l", mount.path())?;
    cluster.finish([mount])
}

#[test]
fn owner_mode_size_and_where_it_leads() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    ensure!(as_stranger("ln -s f \"$1\"/l", &dir)?.status.success());
    let attr = fs::symlink_metadata(dir.join("l"))?;
    ensure!((attr.uid(), attr.mode() & 0o7777, attr.len()) == (STRANGER, 0o777, 1), "{attr:?}");
    ensure!(fs::metadata(dir.join("l")).is_err(), "it leads nowhere yet");
    // Written through the link.
    fs::write(dir.join("l"), b"content")?;
    ensure!(fs::read(dir.join("f"))? == b"content" && fs::read(other.join("d/l"))? == b"content");
    // Exchanged in one step, as deployments do.
    file(&dir.join("g"), b"next")?;
    make("g", dir.join("aside"))?;
    fs::rename(dir.join("aside"), dir.join("l"))?;
    ensure!(fs::read(dir.join("l"))? == b"next");
    cluster.finish([mount, other])
}
