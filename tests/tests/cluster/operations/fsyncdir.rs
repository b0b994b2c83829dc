//! fsync(2) of a directory: whatever was done in it is durable already.

use std::fs;

use anyhow::{Result, ensure};
use dfs_tests::files;
use rustix::fs::{OFlags, fdatasync, fsync};

use super::{file, mounted, open};

#[test]
fn names_are_there_after_everything_was_killed() -> Result<()> {
    let (mut cluster, mut mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    let handle = open(&dir, OFlags::RDONLY | OFlags::DIRECTORY)?;
    // As databases do: write aside, rename, sync the directory.
    file(&dir.join("aside"), b"content")?;
    fs::rename(dir.join("aside"), dir.join("f"))?;
    fs::create_dir(dir.join("sub"))?;
    fsync(&handle)?;
    fdatasync(&handle)?;
    drop(handle);
    mount.kill()?;
    let nodes: Vec<String> = cluster.nodes().map(|node| node.name().to_owned()).collect();
    for node in &nodes {
        cluster.kill(node)?;
    }
    cluster.start_all()?;
    mount.start_again()?;
    ensure!(files::names(&dir)? == ["f", "sub"] && fs::read(dir.join("f"))? == b"content");
    cluster.finish([mount])
}
