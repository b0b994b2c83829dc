//! rename(2), renameat2(2): what is refused, and what does nothing. What it does is shown in the module `rename` beside this one.

use std::{fs, os::unix::fs::symlink};

use anyhow::{Result, ensure};
use rustix::{
    fs::{CWD, OFlags, RenameFlags, rename, renameat_with, stat},
    io::Errno,
};

use super::{content, file, mounted, open, refused, stranger_refused};

#[test]
fn what_cannot_be_renamed() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let at = |name: &str| mount.join(name);
    file(&at("f"), b"f")?;
    fs::create_dir_all(at("empty"))?;
    fs::create_dir_all(at("full/below"))?;
    for (from, to, errno) in [
        ("missing", "x", Errno::NOENT),
        ("f", "missing/x", Errno::NOENT),
        ("f", "f/x", Errno::NOTDIR),
        ("f", "empty", Errno::ISDIR),
        ("empty", "f", Errno::NOTDIR),
        ("empty", "full", Errno::NOTEMPTY),
        ("full", "full/below/x", Errno::INVAL),
        ("full", "full/x", Errno::INVAL),
        ("f/", "x", Errno::NOTDIR),
        ("f", "x/", Errno::NOTDIR),
    ] {
        refused(errno, rename(at(from), at(to))).map_err(|error| error.context(format!("{from} to {to}")))?;
    }
    refused(Errno::NAMETOOLONG, rename(at("f"), at(&"n".repeat(256))))?;
    refused(Errno::XDEV, rename(at("f"), other.join("x")))?;
    let with = |from: &str, to: &str, flags| renameat_with(CWD, at(from), CWD, at(to), flags);
    refused(Errno::EXIST, with("f", "empty", RenameFlags::NOREPLACE))?;
    refused(Errno::NOENT, with("f", "missing", RenameFlags::EXCHANGE))?;
    refused(Errno::INVAL, with("full", "full/below", RenameFlags::EXCHANGE))?;
    refused(Errno::INVAL, with("f", "x", RenameFlags::NOREPLACE | RenameFlags::EXCHANGE))?;
    refused(Errno::INVAL, with("f", "x", RenameFlags::WHITEOUT))?;
    stranger_refused("ermission denied", "mv \"$1\"/f \"$1\"/x", mount.path())?;
    ensure!(dfs_tests::files::names(mount.path())? == ["empty", "f", "full"]);
    cluster.finish([mount, other])
}

#[test]
fn names_of_one_file_and_a_name_onto_itself() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let at = |name: &str| mount.join(name);
    file(&at("f"), b"f")?;
    fs::hard_link(at("f"), at("g"))?;
    symlink("f", at("link"))?;
    let before = stat(at("f"))?;
    rename(at("f"), at("f"))?;
    // POSIX: two names of one file, and nothing happens.
    rename(at("f"), at("g"))?;
    ensure!(dfs_tests::files::names(mount.path())? == ["f", "g", "link"]);
    let after = stat(at("f"))?;
    ensure!((after.st_nlink, after.st_ctime_nsec) == (2, before.st_ctime_nsec));
    // The link moves, not what it leads to.
    rename(at("link"), at("moved"))?;
    ensure!(fs::read_link(at("moved"))?.as_os_str() == "f" && at("f").exists());
    cluster.finish([mount])
}

#[test]
fn times_and_counts_above() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let (from, to) = (mount.join("from"), mount.join("to"));
    fs::create_dir_all(from.join("d"))?;
    fs::create_dir(&to)?;
    file(&from.join("replaced"), b"new")?;
    file(&to.join("replaced"), b"old")?;
    let reader = open(&to.join("replaced"), OFlags::RDONLY)?;
    let time = |path: &std::path::Path| stat(path).map(|attr| (attr.st_mtime, attr.st_mtime_nsec));
    let before = (time(&from)?, time(&to)?);
    rename(from.join("d"), to.join("d"))?;
    ensure!(time(&from)? > before.0 && time(&to)? > before.1);
    ensure!((stat(&from)?.st_nlink, stat(&to)?.st_nlink) == (2, 3), "the count goes with the directory");
    rename(from.join("replaced"), to.join("replaced"))?;
    ensure!(fs::read(to.join("replaced"))? == b"new" && content(&reader)? == b"old");
    cluster.finish([mount])
}
