//! Names: 255 bytes, and any byte but NUL and '/'.

use std::{ffi::OsStr, ffi::OsString, fs, os::unix::ffi::OsStrExt};

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, files};

#[test]
fn a_name_has_at_most_255_bytes() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let longest = "n".repeat(255);
    files::write(&mount.join(&longest), b"x")?;
    fs::create_dir(mount.join("d"))?;
    fs::rename(mount.join(&longest), mount.join("d").join(&longest))?;
    ensure!(files::names(&mount.join("d"))? == [OsString::from(&longest)]);
    let too_long = mount.join("n".repeat(256));
    for (what, errno) in [
        ("create", files::errno(fs::File::create(&too_long))),
        ("mkdir", files::errno(fs::create_dir(&too_long))),
        ("stat", files::errno(fs::metadata(&too_long))),
        ("unlink", files::errno(fs::remove_file(&too_long))),
        ("rename", files::errno(fs::rename(mount.join("d"), &too_long))),
        ("symlink", files::errno(std::os::unix::fs::symlink("x", &too_long))),
    ] {
        ensure!(errno == libc::ENAMETOOLONG, "{what}: {errno}");
    }
    cluster.finish([mount])
}

#[test]
fn any_byte_but_nul_and_slash() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let mut names: Vec<Vec<u8>> = vec![
        b"with space".into(),
        b"new\nline".into(),
        b"tab\tand 'quotes\"".into(),
        b"-rf *".into(),
        b" ".into(),
        b"...".into(),
        "\u{fc}ml\u{e4}ut \u{1F980}".into(),
        b"not utf-8 \xff\xfe\x80".into(),
    ];
    names.extend((1..=255u8).filter(|byte| *byte != b'/').map(|byte| vec![b'b', byte]));
    for name in &names {
        files::write(&mount.join(OsStr::from_bytes(name)), name)?;
    }
    mount.remount()?;
    names.sort();
    let listed = files::names(mount.path())?;
    ensure!(listed.iter().map(|name| name.as_bytes()).eq(names.iter().map(Vec::as_slice)), "{listed:?}");
    for name in &names {
        ensure!(fs::read(mount.join(OsStr::from_bytes(name)))? == *name, "{name:?}");
    }
    for name in &names {
        fs::remove_file(mount.join(OsStr::from_bytes(name)))?;
    }
    ensure!(files::names(mount.path())?.is_empty());
    cluster.finish([mount])
}

#[test]
fn deep_paths() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let mut path = mount.path().to_path_buf();
    for depth in 0..100 {
        path.push(format!("level-{depth}"));
        fs::create_dir(&path)?;
    }
    files::write(&path.join("f"), b"deep")?;
    ensure!(fs::read(path.join("f"))? == b"deep");
    fs::remove_dir_all(mount.join("level-0"))?;
    ensure!(files::names(mount.path())?.is_empty());
    cluster.finish([mount])
}

#[test]
fn errors_of_names() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    fs::create_dir(mount.join("d"))?;
    files::write(&mount.join("d/f"), b"x")?;
    for (what, errno, want) in [
        ("mkdir over file", files::errno(fs::create_dir(mount.join("d/f"))), libc::EEXIST),
        ("rmdir of a full directory", files::errno(fs::remove_dir(mount.join("d"))), libc::ENOTEMPTY),
        ("rmdir of a file", files::errno(fs::remove_dir(mount.join("d/f"))), libc::ENOTDIR),
        ("unlink of a directory", files::errno(fs::remove_file(mount.join("d"))), libc::EISDIR),
        ("file as directory", files::errno(fs::metadata(mount.join("d/f/x"))), libc::ENOTDIR),
        ("nothing there", files::errno(fs::metadata(mount.join("nothing"))), libc::ENOENT),
        ("no parent", files::errno(fs::File::create(mount.join("no/f"))), libc::ENOENT),
        ("write a directory", files::errno(fs::File::options().write(true).open(mount.join("d"))), libc::EISDIR),
    ] {
        ensure!(errno == want, "{what}: errno {errno}, want {want}");
    }
    cluster.finish([mount])
}
