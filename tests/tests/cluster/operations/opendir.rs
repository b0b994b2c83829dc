//! opendir(3).

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

use anyhow::{Result, ensure};
use rustix::{
    fs::{Dir, Mode, OFlags, openat},
    io::Errno,
};

use super::{content, file, mounted, open, refused, stranger_refused};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

#[test]
fn what_is_no_directory_or_not_to_be_read() -> Result<()> {
    let (cluster, mount) = mounted()?;
    file(&mount.join("f"), b"x")?;
    fs::create_dir(mount.join("d"))?;
    refused(Errno::NOTDIR, open(&mount.join("f"), DIRECTORY))?;
    refused(Errno::NOENT, open(&mount.join("missing"), DIRECTORY))?;
    fs::set_permissions(mount.join("d"), Permissions::from_mode(0o711))?;
    stranger_refused("Permission denied", "ls \"$1\"", &mount.join("d"))?;
    cluster.finish([mount])
}

#[test]
fn an_open_directory_is_followed_when_it_moves_and_is_empty_when_it_is_gone() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    file(&dir.join("f"), b"x")?;
    let handle = open(&dir, DIRECTORY)?;
    fs::rename(&dir, mount.join("moved"))?;
    ensure!(content(&openat(&handle, "f", OFlags::RDONLY, Mode::empty())?)? == b"x");
    let names = |handle| -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(handle)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != "." && name != "..");
        Ok(names)
    };
    ensure!(names(&handle)? == ["f"]);
    fs::remove_dir_all(mount.join("moved"))?;
    refused(Errno::STALE, openat(&handle, "f", OFlags::RDONLY, Mode::empty()))?;
    ensure!(names(&handle).unwrap_or_default().is_empty());
    cluster.finish([mount])
}
