//! unlink(2).

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
};

use anyhow::{Result, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat, stat, unlink},
    io::Errno,
};

use super::{as_stranger, content, file, mounted, open, refused, stranger_refused, write_all};

#[test]
fn what_cannot_be_removed() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let at = |name: &str| mount.join(name);
    file(&at("f"), b"x")?;
    fs::create_dir(at("d"))?;
    refused(Errno::NOENT, unlink(at("missing")))?;
    refused(Errno::ISDIR, unlink(at("d")))?;
    refused(Errno::NOTDIR, unlink(at("f/")))?;
    refused(Errno::NOTDIR, unlink(at("f/below")))?;
    refused(Errno::NAMETOOLONG, unlink(at(&"n".repeat(256))))?;
    stranger_refused("ermission denied", "rm -f \"$1\"", &at("f"))?;
    // With the sticky bit only the owner may, although all may write.
    fs::set_permissions(at("d"), Permissions::from_mode(0o1777))?;
    file(&at("d/of-root"), b"x")?;
    stranger_refused("not permitted", "rm -f \"$1\"", &at("d/of-root"))?;
    ensure!(as_stranger(": > \"$1\"/own && rm \"$1\"/own", &at("d"))?.status.success());
    cluster.finish([mount])
}

#[test]
fn the_name_goes_and_nothing_else() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let at = |name: &str| mount.join(name);
    file(&at("f"), b"f")?;
    fs::hard_link(at("f"), at("g"))?;
    symlink("f", at("link"))?;
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RWXU, 0)?;
    unlink(at("link"))?;
    unlink(at("pipe"))?;
    ensure!(at("f").exists(), "what a link leads to stays");
    let before = stat(at("g"))?;
    unlink(at("f"))?;
    let after = stat(at("g"))?;
    ensure!(after.st_nlink == 1 && fs::read(at("g"))? == b"f");
    ensure!((after.st_ctime, after.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec));
    // While it is open, here and on another mount.
    let (here, there) = (open(&at("g"), OFlags::RDONLY)?, open(&other.join("g"), OFlags::RDONLY)?);
    unlink(at("g"))?;
    refused(Errno::NOENT, unlink(at("g")))?;
    ensure!(content(&here)? == b"f" && content(&there)? == b"f");
    ensure!(dfs_tests::files::names(mount.path())?.is_empty());
    cluster.finish([mount, other])
}

#[test]
fn a_published_file_that_is_open_for_writing_goes_on_without_its_name() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    for how in ["unlink", "rename over"] {
        for flags in [OFlags::WRONLY, OFlags::RDWR] {
            // Nothing is written before the name goes, or all that was is published by the close of a duplicate.
            let unwritten = {
                file(&path, b"content")?;
                open(&path, flags)?
            };
            let new = mount.join("new");
            let published = open(&new, OFlags::CREATE | OFlags::RDWR)?;
            write_all(&published, b"content", 0)?;
            drop(rustix::io::dup(&published)?);
            for gone in [&path, &new] {
                if how == "unlink" {
                    unlink(gone)?;
                } else {
                    file(&mount.join("aside"), b"next")?;
                    fs::rename(mount.join("aside"), gone)?;
                }
            }
            for writer in [&unwritten, &published] {
                write_all(writer, b"C", 0)?;
                rustix::fs::fsync(writer)?;
                write_all(writer, b"!", 7)?;
                ensure!(rustix::fs::fstat(writer)?.st_size == 8, "{how}");
            }
            ensure!(content(&published)? == b"Content!", "{how}");
            ensure!(flags == OFlags::WRONLY || content(&unwritten)? == b"Content!", "{how}");
            drop((unwritten, published));
            for gone in [&path, &new] {
                ensure!(how == "unlink" || fs::read(gone)? == b"next");
                let _ = fs::remove_file(gone);
            }
        }
    }
    ensure!(dfs_tests::files::names(mount.path())?.is_empty());
    cluster.finish([mount])
}

#[test]
fn a_file_removed_on_another_mount_before_it_was_written_is_gone_and_disturbs_nothing() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    file(&mount.join("f"), b"content")?;
    let writer = open(&mount.join("f"), OFlags::WRONLY)?;
    unlink(other.join("f"))?;
    for name in ["g", "h"] {
        file(&mount.join(name), b"x")?;
        unlink(mount.join(name))?;
    }
    refused(Errno::NOENT, rustix::io::pwrite(&writer, b"C", 0))?;
    drop(writer);
    cluster.finish([mount, other])
}

#[test]
fn a_file_that_is_being_written_goes_and_its_name_is_free() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    let writer = open(&path, OFlags::CREATE | OFlags::RDWR)?;
    write_all(&writer, b"first", 0)?;
    unlink(&path)?;
    file(&path, b"second")?;
    write_all(&writer, b" goes on", 5)?;
    ensure!(content(&writer)? == b"first goes on");
    drop(writer);
    ensure!(fs::read(&path)? == b"second");
    cluster.finish([mount])
}
