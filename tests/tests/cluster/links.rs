//! Symbolic and hard links.

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, files};

#[test]
fn symbolic_links() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    files::write(&mount.join("f"), b"target")?;
    let long = "x/".repeat(2047) + "x";
    for (name, target) in [("good", "f"), ("dangling", "nowhere"), ("long", &long), ("newline", "a\nb")] {
        symlink(target, mount.join(name))?;
    }
    mount.remount()?;
    ensure!(fs::read(mount.join("good"))? == b"target");
    ensure!(files::errno(fs::read(mount.join("dangling"))) == libc::ENOENT);
    ensure!(fs::read_link(mount.join("long"))? == Path::new(&long));
    ensure!(fs::read_link(mount.join("newline"))? == Path::new("a\nb"));
    ensure!(fs::symlink_metadata(mount.join("good"))?.len() == 1, "the size is the length of the target");
    fs::remove_file(mount.join("good"))?;
    ensure!(fs::read(mount.join("f"))? == b"target");
    cluster.finish([mount])
}

#[test]
fn hard_links_are_one_file() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    files::write(&mount.join("a"), b"one")?;
    fs::create_dir(mount.join("d"))?;
    fs::hard_link(mount.join("a"), mount.join("d/b"))?;
    let (a, b) = (fs::metadata(mount.join("a"))?, fs::metadata(mount.join("d/b"))?);
    ensure!(a.ino() == b.ino() && b.nlink() == 2);
    files::write(&mount.join("d/b"), b"two")?;
    ensure!(fs::read(mount.join("a"))? == b"two");
    mount.remount()?;
    ensure!(fs::read(mount.join("a"))? == b"two");
    fs::remove_file(mount.join("a"))?;
    ensure!(fs::metadata(mount.join("d/b"))?.nlink() == 1);
    ensure!(fs::read(mount.join("d/b"))? == b"two");
    let errno = files::errno(fs::hard_link(mount.join("d"), mount.join("e")));
    ensure!(errno == libc::EPERM, "no hard links to directories: {errno}");
    cluster.finish([mount])
}
