//! What the kernel forgets, and asks for again.

use std::{fs, os::unix::fs::MetadataExt};

use anyhow::{Result, ensure};
use rustix::fs::OFlags;

use super::{content, file, mounted, open};

/// The kernel gives up the names and inodes that nobody uses.
fn forget() -> Result<()> {
    Ok(fs::write("/proc/sys/vm/drop_caches", "2")?)
}

#[test]
fn inodes_that_were_forgotten_are_the_same_again() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    let paths: Vec<_> = (0..200).map(|i| dir.join(i.to_string())).collect();
    for path in &paths {
        file(path, path.as_os_str().as_encoded_bytes())?;
    }
    let inodes = || paths.iter().map(|path| Ok(fs::metadata(path)?.ino())).collect::<Result<Vec<_>>>();
    let before = inodes()?;
    for _ in 0..3 {
        forget()?;
        ensure!(inodes()? == before);
    }
    for path in &paths {
        ensure!(fs::read(path)? == path.as_os_str().as_encoded_bytes());
    }
    cluster.finish([mount])
}

#[test]
fn an_open_file_stays_when_its_name_is_forgotten() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"kept")?;
    let reader = open(&path, OFlags::RDONLY)?;
    let writer = open(&mount.join("new"), OFlags::CREATE | OFlags::RDWR)?;
    super::write_all(&writer, b"being written", 0)?;
    fs::remove_file(&path)?;
    forget()?;
    ensure!(content(&reader)? == b"kept" && content(&writer)? == b"being written");
    drop(writer);
    ensure!(fs::read(mount.join("new"))? == b"being written");
    drop(reader);
    forget()?;
    cluster.finish([mount])
}
