//! stat(2), fstat(2).

use std::{fs, os::unix::fs::symlink};

use anyhow::{Result, ensure};
use dfs_tests::files::CHUNK;
use rustix::fs::{FileType, Mode, OFlags, fstat, lstat, mknodat, stat};

use super::{file, mounted, open, write_all};

#[test]
fn every_kind_is_told() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let at = |name: &str| mount.join(name);
    fs::create_dir(at("dir"))?;
    fs::create_dir(at("dir/below"))?;
    file(&at("file"), &[1; 1025])?;
    symlink("some/target", at("link"))?;
    mknodat(rustix::fs::CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0)?;
    mknodat(rustix::fs::CWD, at("device"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3))?;
    for (name, kind, size, links) in [
        ("dir", FileType::Directory, None, 3),
        ("file", FileType::RegularFile, Some(1025), 1),
        ("link", FileType::Symlink, Some(11), 1),
        ("pipe", FileType::Fifo, Some(0), 1),
        ("device", FileType::CharacterDevice, Some(0), 1),
    ] {
        let attr = lstat(at(name))?;
        ensure!(FileType::from_raw_mode(attr.st_mode) == kind, "{name}: {attr:?}");
        ensure!(size.is_none_or(|size| attr.st_size == size), "{name}: {attr:?}");
        ensure!(attr.st_nlink == links, "{name}: {attr:?}");
        ensure!(attr.st_dev == stat(mount.path())?.st_dev, "{name}: {attr:?}");
        // Blocks of 512 bytes, whatever the size of one write.
        ensure!(kind != FileType::RegularFile || attr.st_blocks * 512 >= 1025, "{name}: {attr:?}");
        ensure!(
            attr.st_blksize > 0 && attr.st_mtime > 1_600_000_000 && attr.st_ctime >= attr.st_mtime,
            "{name}: {attr:?}"
        );
    }
    ensure!(lstat(at("device"))?.st_rdev == rustix::fs::makedev(1, 3));
    cluster.finish([mount])
}

#[test]
fn the_size_follows_the_writer_on_its_mount_only() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let path = mount.join("f");
    file(&path, b"old")?;
    ensure!(stat(other.join("f"))?.st_size == 3);
    let writer = open(&path, OFlags::WRONLY | OFlags::APPEND)?;
    for size in [3 + CHUNK, 3 + 2 * CHUNK] {
        write_all(&writer, &vec![7; CHUNK], 0)?;
        ensure!(fstat(&writer)?.st_size == i64::try_from(size)?, "by descriptor");
        ensure!(stat(&path)?.st_size == i64::try_from(size)?, "by name");
        ensure!(stat(other.join("f"))?.st_size == 3, "elsewhere nothing is seen yet");
    }
    drop(writer);
    let size = i64::try_from(3 + 2 * CHUNK)?;
    ensure!(fstat(open(&other.join("f"), OFlags::RDONLY)?)?.st_size == size);
    cluster.finish([mount, other])
}

#[test]
fn an_open_file_without_a_name_has_no_links() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"content")?;
    let reader = open(&path, OFlags::RDONLY)?;
    let inode = fstat(&reader)?.st_ino;
    fs::remove_file(&path)?;
    let attr = fstat(&reader)?;
    ensure!((attr.st_nlink, attr.st_size, attr.st_ino) == (0, 7, inode), "{attr:?}");
    // One with two names loses one.
    file(&path, b"again")?;
    fs::hard_link(&path, mount.join("g"))?;
    let again = open(&path, OFlags::RDONLY)?;
    ensure!(fstat(&again)?.st_nlink == 2);
    fs::remove_file(&path)?;
    ensure!(fstat(&again)?.st_nlink == 1);
    drop((reader, again));
    cluster.finish([mount])
}
