//! Rename in all its forms.

use std::{ffi::CString, fs, io, os::unix::ffi::OsStrExt, path::Path};

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, files};

fn renameat2(from: &Path, to: &Path, flags: libc::c_uint) -> io::Result<()> {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).expect("no NUL in a test's path");
    let (from, to) = (path(from), path(to));
    // SAFETY: both strings end with NUL.
    let done = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn a_rename_replaces_files_and_empty_directories() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    files::write(&mount.join("a"), b"a")?;
    files::write(&mount.join("b"), b"b")?;
    fs::rename(mount.join("a"), mount.join("b"))?;
    for dir in ["full", "empty"] {
        fs::create_dir(mount.join(dir))?;
    }
    files::write(&mount.join("full/x"), b"x")?;
    ensure!(files::errno(fs::rename(mount.join("empty"), mount.join("full"))) == libc::ENOTEMPTY);
    fs::rename(mount.join("full"), mount.join("empty"))?;
    ensure!(files::errno(fs::rename(mount.join("b"), mount.join("empty"))) == libc::EISDIR);
    ensure!(files::errno(fs::rename(mount.join("empty"), mount.join("b"))) == libc::ENOTDIR);
    ensure!(files::errno(fs::rename(mount.join("gone"), mount.join("b"))) == libc::ENOENT);
    ensure!(files::errno(fs::rename(mount.join("empty"), mount.join("empty/inside"))) == libc::EINVAL);
    mount.remount()?;
    ensure!(files::names(mount.path())? == ["b", "empty"]);
    ensure!(fs::read(mount.join("b"))? == b"a");
    ensure!(fs::read(mount.join("empty/x"))? == b"x");
    cluster.finish([mount])
}

#[test]
fn no_replace_and_exchange() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    files::write(&mount.join("a"), b"a")?;
    files::write(&mount.join("b"), b"b")?;
    let (a, b, c) = (mount.join("a"), mount.join("b"), mount.join("c"));
    ensure!(files::errno(renameat2(&a, &b, libc::RENAME_NOREPLACE)) == libc::EEXIST);
    renameat2(&a, &c, libc::RENAME_NOREPLACE)?;
    renameat2(&b, &c, libc::RENAME_EXCHANGE)?;
    ensure!(fs::read(&b)? == b"a" && fs::read(&c)? == b"b");
    ensure!(files::errno(renameat2(&b, &a, libc::RENAME_EXCHANGE)) == libc::ENOENT);
    fs::create_dir_all(mount.join("d/sub"))?;
    renameat2(&b, &mount.join("d/sub"), libc::RENAME_EXCHANGE)?;
    mount.remount()?;
    ensure!(fs::read(mount.join("d/sub"))? == b"a");
    ensure!(fs::metadata(&b)?.is_dir());
    cluster.finish([mount])
}

#[test]
fn directories_move_with_all_they_hold() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    fs::create_dir_all(mount.join("one/deep/er"))?;
    files::write(&mount.join("one/deep/er/f"), b"f")?;
    fs::create_dir(mount.join("two"))?;
    fs::rename(mount.join("one/deep"), mount.join("two/moved"))?;
    ensure!(fs::read(mount.join("two/moved/er/f"))? == b"f");
    mount.remount()?;
    ensure!(fs::read(mount.join("two/moved/er/f"))? == b"f");
    ensure!(files::names(&mount.join("one"))?.is_empty());
    let (one, two) = (fs::metadata(mount.join("one"))?, fs::metadata(mount.join("two"))?);
    use std::os::unix::fs::MetadataExt;
    ensure!((one.nlink(), two.nlink()) == (2, 3), "link counts follow the move");
    cluster.finish([mount])
}

#[test]
fn a_file_that_is_being_written_can_be_renamed() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let mut file = fs::File::create(mount.join("tmp"))?;
    io::Write::write_all(&mut file, b"first ")?;
    fs::rename(mount.join("tmp"), mount.join("final"))?;
    io::Write::write_all(&mut file, b"second")?;
    files::close(file)?;
    ensure!(files::names(mount.path())? == ["final"]);
    mount.remount()?;
    ensure!(files::names(mount.path())? == ["final"]);
    ensure!(fs::read(mount.join("final"))? == b"first second");
    cluster.finish([mount])
}
