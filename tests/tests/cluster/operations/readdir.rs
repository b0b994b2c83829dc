//! readdir(3), seekdir(3), rewinddir(3).

use std::{collections::BTreeMap, fs, os::unix::fs::symlink};

use anyhow::{Result, ensure};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, SeekFrom, lstat, mknodat, seek, stat};

use super::{file, mounted, open};

/// Name, kind and inode of all entries from where the descriptor is.
fn entries(handle: &std::os::fd::OwnedFd) -> Result<BTreeMap<String, (FileType, u64)>> {
    let mut all = BTreeMap::new();
    for entry in Dir::new(rustix::io::dup(handle)?)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        ensure!(all.insert(name.clone(), (entry.file_type(), entry.ino())).is_none(), "{name} twice");
    }
    Ok(all)
}

#[test]
fn each_entry_has_its_kind_and_inode() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir_all(dir.join("directory"))?;
    file(&dir.join("file"), b"x")?;
    symlink("nowhere", dir.join("link"))?;
    for (name, kind) in [("pipe", FileType::Fifo), ("socket", FileType::Socket), ("device", FileType::CharacterDevice)]
    {
        mknodat(CWD, dir.join(name), kind, Mode::RUSR, 0)?;
    }
    // One that is being written has an entry on its own mount.
    let writer = open(&dir.join("unpublished"), OFlags::CREATE | OFlags::WRONLY)?;
    let found = entries(&open(&dir, OFlags::RDONLY)?)?;
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    ensure!(names == [".", "..", "device", "directory", "file", "link", "pipe", "socket", "unpublished"], "{names:?}");
    for (name, (kind, inode)) in &found {
        let attr = lstat(dir.join(name))?;
        ensure!((FileType::from_raw_mode(attr.st_mode), attr.st_ino) == (*kind, *inode), "{name}");
    }
    ensure!(found[".."].1 == stat(mount.path())?.st_ino);
    drop(writer);
    cluster.finish([mount])
}

#[test]
fn rewinding_shows_what_is_new() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    let handle = open(&dir, OFlags::RDONLY)?;
    ensure!(entries(&handle)?.len() == 2);
    file(&dir.join("f"), b"x")?;
    seek(&handle, SeekFrom::Start(0))?;
    ensure!(entries(&handle)?.contains_key("f"));
    fs::rename(dir.join("f"), dir.join("g"))?;
    seek(&handle, SeekFrom::Start(0))?;
    ensure!(entries(&handle)?.into_keys().collect::<Vec<_>>() == [".", "..", "g"]);
    cluster.finish([mount])
}

#[test]
fn a_place_that_was_remembered_is_found_again_although_entries_went() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    for i in 0..500 {
        file(&dir.join(format!("{i:03}")), b"")?;
    }
    // Each entry with the place of the next one.
    let mut listing = Dir::new(open(&dir, OFlags::RDONLY)?)?;
    let mut places = Vec::new();
    while let Some(entry) = listing.read() {
        let entry = entry?;
        places.push((entry.file_name().to_string_lossy().into_owned(), entry.offset()));
    }
    ensure!(places.len() == 502);
    // Half of what was listed before goes; what comes behind stays where it was.
    for (name, _) in places.iter().take(250).filter(|(name, _)| !name.starts_with('.')) {
        fs::remove_file(dir.join(name))?;
    }
    for at in [250, 499, 300] {
        listing.seek(places[at].1)?;
        let mut rest = Vec::new();
        while let Some(entry) = listing.read() {
            rest.push(entry?.file_name().to_string_lossy().into_owned());
        }
        let want: Vec<_> = places[at + 1..].iter().map(|(name, _)| name.clone()).collect();
        ensure!(rest == want, "behind entry {at}: {} instead of {}", rest.len(), want.len());
    }
    cluster.finish([mount])
}

#[test]
fn removing_while_listing_removes_everything() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    for i in 0..700 {
        fs::create_dir(dir.join(i.to_string()))?;
    }
    // As rm -r does.
    let mut listing = Dir::new(open(&dir, OFlags::RDONLY)?)?;
    while let Some(entry) = listing.read() {
        let entry = entry?;
        if !entry.file_name().to_bytes().starts_with(b".") {
            fs::remove_dir(dir.join(entry.file_name().to_str()?))?;
        }
    }
    fs::remove_dir(&dir)?;
    cluster.finish([mount])
}
