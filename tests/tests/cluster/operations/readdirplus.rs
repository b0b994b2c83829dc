//! A listing that brings attributes with it: they are those that stat(2) tells.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};

use anyhow::{Result, ensure};
use dfs_tests::files;
use rustix::fs::OFlags;

use super::{file, mounted, open, write_all};

type Attributes = (u64, u32, u64, u64, i64, i64);

/// Name and attributes of every entry, asked for in the order of the listing, as `ls -l` does.
fn listed(dir: &Path) -> Result<BTreeMap<String, Attributes>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let attr = entry.metadata()?;
        let told = (attr.ino(), attr.mode(), attr.nlink(), attr.size(), attr.mtime(), attr.mtime_nsec());
        all.insert(entry.file_name().to_string_lossy().into_owned(), told);
    }
    Ok(all)
}

#[test]
fn attributes_of_a_listing_are_those_of_stat() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    for i in 0..300_usize {
        file(&dir.join(format!("f{i}")), &vec![1; i])?;
    }
    fs::create_dir_all(dir.join("sub/below"))?;
    symlink("target", dir.join("link"))?;
    fs::hard_link(dir.join("f7"), dir.join("f7-again"))?;
    let mut other = cluster.mount()?;
    let elsewhere = other.join("d");
    // Cold: with the listing. Warm: what the kernel kept. And one by one.
    let cold = listed(&elsewhere)?;
    ensure!(listed(&elsewhere)? == cold);
    other.remount()?;
    let mut alone = BTreeMap::new();
    for name in cold.keys() {
        let attr = fs::symlink_metadata(elsewhere.join(name))?;
        let told = (attr.ino(), attr.mode(), attr.nlink(), attr.size(), attr.mtime(), attr.mtime_nsec());
        alone.insert(name.clone(), told);
    }
    ensure!(alone == cold && cold.len() == 303);
    ensure!(cold["f7"].2 == 2 && cold["sub"].2 == 3);
    cluster.finish([mount, other])
}

#[test]
fn a_file_that_is_being_written_has_the_size_that_its_mount_sees() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    file(&dir.join("old"), b"12345")?;
    let old = open(&dir.join("old"), OFlags::WRONLY | OFlags::APPEND)?;
    let new = open(&dir.join("new"), OFlags::CREATE | OFlags::WRONLY)?;
    write_all(&old, b"678", 0)?;
    write_all(&new, b"12", 0)?;
    let sizes = |dir: &Path| -> Result<Vec<(String, u64)>> {
        Ok(listed(dir)?.into_iter().map(|(name, told)| (name, told.3)).collect())
    };
    ensure!(sizes(&dir)? == [("new".into(), 2), ("old".into(), 8)], "{:?}", sizes(&dir)?);
    ensure!(sizes(&other.join("d"))? == [("old".into(), 5)], "{:?}", sizes(&other.join("d"))?);
    drop((old, new));
    ensure!(files::names(&other.join("d"))?.len() == 2);
    cluster.finish([mount, other])
}
