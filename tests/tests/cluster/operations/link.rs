//! link(2).

use std::{fs, os::unix::fs::symlink};

use anyhow::{Result, ensure};
use rustix::{
    fs::{AtFlags, CWD, OFlags, link, linkat, lstat, stat},
    io::Errno,
};

use super::{file, mounted, open, refused, stranger_refused, write_all};

#[test]
fn what_cannot_be_linked() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let (f, d) = (mount.join("f"), mount.join("d"));
    file(&f, b"x")?;
    fs::create_dir(&d)?;
    for taken in [&f, &d] {
        refused(Errno::EXIST, link(&f, taken))?;
    }
    refused(Errno::PERM, link(&d, mount.join("e")))?;
    refused(Errno::NOENT, link(mount.join("missing"), mount.join("e")))?;
    refused(Errno::NOENT, link(&f, mount.join("missing/e")))?;
    refused(Errno::NOTDIR, link(&f, f.join("e")))?;
    refused(Errno::NAMETOOLONG, link(&f, mount.join("n".repeat(256))))?;
    // Two mounts of one cluster are two file systems.
    refused(Errno::XDEV, link(&f, other.join("e")))?;
    // By the directory's bits, or before them by the kernel's protection of other people's files.
    stranger_refused("ermi", "ln \"$1\"/f \"$1\"/e", mount.path())?;
    ensure!(stat(&f)?.st_nlink == 1);
    cluster.finish([mount, other])
}

#[test]
fn a_name_more_changes_the_count_and_the_change_time() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let (f, g) = (mount.join("f"), mount.join("g"));
    file(&f, b"x")?;
    let before = stat(&f)?;
    link(&f, &g)?;
    let after = stat(&f)?;
    ensure!((after.st_nlink, after.st_ino) == (2, stat(&g)?.st_ino));
    ensure!((after.st_ctime, after.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec));
    ensure!((after.st_mtime, after.st_mtime_nsec) == (before.st_mtime, before.st_mtime_nsec));
    // Of a symbolic link: the link itself gets the name.
    symlink("f", mount.join("l"))?;
    link(mount.join("l"), mount.join("m"))?;
    ensure!(fs::read_link(mount.join("m"))?.as_os_str() == "f" && lstat(mount.join("l"))?.st_nlink == 2);
    // And if wished, what it leads to.
    linkat(CWD, mount.join("l"), CWD, mount.join("n"), AtFlags::SYMLINK_FOLLOW)?;
    ensure!(stat(mount.join("n"))?.st_ino == after.st_ino && stat(&f)?.st_nlink == 3);
    cluster.finish([mount])
}

#[test]
fn a_published_file_that_is_being_written_gets_a_second_name() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let (f, g) = (mount.join("f"), mount.join("g"));
    file(&f, b"old")?;
    let writer = open(&f, OFlags::RDWR)?;
    write_all(&writer, b"new", 0)?;
    link(&f, &g)?;
    // Whoever opens it for reading gets what is published, by either name and on any mount.
    for path in [&f, &g, &other.join("g")] {
        ensure!(fs::read(path)? == b"old", "{}", path.display());
    }
    drop(writer);
    ensure!(fs::read(other.join("g"))? == b"new" && fs::read(other.join("f"))? == b"new");
    cluster.finish([mount, other])
}

#[test]
fn a_new_file_gets_a_second_name_before_it_is_closed() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let (f, g) = (mount.join("f"), mount.join("g"));
    let writer = open(&f, OFlags::CREATE | OFlags::RDWR)?;
    write_all(&writer, b"new", 0)?;
    link(&f, &g)?;
    fs::remove_file(&f)?;
    drop(writer);
    ensure!(fs::read(&g)? == b"new" && stat(&g)?.st_nlink == 1);
    cluster.finish([mount])
}
