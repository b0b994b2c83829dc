//! chmod(2), chown(2), utimensat(2), truncate(2).

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
};

use anyhow::{Result, ensure};
use rustix::{
    fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, ftruncate, stat, utimensat},
    io::Errno,
};

use super::{STRANGER, as_stranger, content, file, mounted, open, refused, stranger_refused, write_all};

#[test]
fn only_the_owner_and_root_may() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    for script in ["chmod 600 \"$1\"", "chown 4711 \"$1\"", "chgrp 4711 \"$1\"", "touch -d 2001-01-01 \"$1\""] {
        stranger_refused("not permitted", script, &path)?;
    }
    // Who may write may set the times to now, and cut.
    ensure!(as_stranger("touch \"$1\" && truncate -s 0 \"$1\"", &path)?.status.success());
    chown(&path, Some(STRANGER), None)?;
    ensure!(
        as_stranger("chmod 600 \"$1\" && touch -d 2001-01-01 \"$1\" && chgrp 4711 \"$1\"", &path)?.status.success()
    );
    // Away it cannot be given, nor to a group that one is not in.
    stranger_refused("not permitted", "chown 1 \"$1\"", &path)?;
    stranger_refused("not permitted", "chgrp 1 \"$1\"", &path)?;
    let attr = fs::metadata(&path)?;
    ensure!((attr.uid(), attr.gid(), attr.mode() & 0o7777, attr.mtime()) == (STRANGER, STRANGER, 0o600, 978_307_200));
    cluster.finish([mount])
}

#[test]
fn a_new_owner_takes_the_set_id_bits_away() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let mode = || fs::metadata(&path).map(|attr| attr.mode() & 0o7777);
    for (before, after) in [(0o6755, 0o755), (0o4711, 0o711)] {
        fs::set_permissions(&path, Permissions::from_mode(before))?;
        ensure!(mode()? == before);
        chown(&path, Some(STRANGER), Some(STRANGER))?;
        ensure!(mode()? == after, "{before:o}: {:o}", mode()?);
        chown(&path, Some(0), Some(0))?;
    }
    cluster.finish([mount])
}

#[test]
fn times_to_the_nanosecond_now_or_left() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    symlink("f", mount.join("link"))?;
    let set = |at: &std::path::Path, access: (i64, i64), modified: (i64, i64), flags| {
        let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
        utimensat(CWD, at, &Timestamps { last_access: time(access), last_modification: time(modified) }, flags)
    };
    set(&path, (1, 2), (-3, 4), AtFlags::empty())?;
    for at in [&path, &other.join("f")] {
        let attr = stat(at)?;
        ensure!((attr.st_atime, attr.st_atime_nsec, attr.st_mtime, attr.st_mtime_nsec) == (1, 2, -3, 4), "{attr:?}");
    }
    set(&path, (0, UTIME_OMIT), (0, UTIME_NOW), AtFlags::empty())?;
    let attr = stat(&path)?;
    ensure!((attr.st_atime, attr.st_atime_nsec) == (1, 2) && attr.st_mtime > 1_600_000_000, "{attr:?}");
    set(&mount.join("link"), (7, 0), (8, 0), AtFlags::SYMLINK_NOFOLLOW)?;
    ensure!(fs::symlink_metadata(mount.join("link"))?.mtime() == 8 && stat(&path)?.st_mtime != 8);
    refused(Errno::INVAL, set(&path, (0, 1_000_000_000), (0, 0), AtFlags::empty()))?;
    refused(Errno::NOENT, set(&mount.join("missing"), (0, 0), (0, 0), AtFlags::empty()))?;
    cluster.finish([mount, other])
}

#[test]
fn sizes_by_path_and_by_descriptor() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"0123456789")?;
    let truncate = |at: &std::path::Path, size: i64| -> rustix::io::Result<()> {
        let name = std::ffi::CString::new(at.as_os_str().as_encoded_bytes()).expect("no zero byte");
        // SAFETY: the name ends in a zero byte and is read only.
        let code = unsafe { libc::truncate(name.as_ptr(), size) };
        if code == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("an errno")) }
    };
    refused(Errno::INVAL, truncate(&path, -1))?;
    refused(Errno::ISDIR, truncate(mount.path(), 0))?;
    refused(Errno::NOENT, truncate(&mount.join("missing"), 0))?;
    refused(Errno::INVAL, ftruncate(open(&path, OFlags::RDONLY)?, 3))?;
    let too_large = truncate(&path, i64::MAX);
    ensure!(matches!(too_large, Err(Errno::FBIG)), "{too_large:?}");
    truncate(&path, 5)?;
    ensure!(fs::read(&path)? == b"01234");
    // By name, while a descriptor writes: both mean the same file.
    let writer = open(&path, OFlags::RDWR)?;
    write_all(&writer, b"AB", 5)?;
    truncate(&path, 6)?;
    ensure!(content(&writer)? == b"01234A");
    write_all(&writer, b"C", 7)?;
    drop(writer);
    ensure!(fs::read(&path)? == b"01234A\0C");
    cluster.finish([mount])
}
