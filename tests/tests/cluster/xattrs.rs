//! Extended attributes: those of users, and those that dfs answers itself.

use std::{ffi::CString, io, os::unix::ffi::OsStrExt, path::Path};

use anyhow::{Result, ensure};
use dfs_tests::{
    Cluster,
    files::{self, CHUNK},
};

fn c(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("no NUL in a test's name")
}

fn set(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (c(path.as_os_str().as_bytes()), c(name.as_bytes()));
    // SAFETY: both strings end with NUL, and the value has the length that is given.
    let done = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn get(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (c(path.as_os_str().as_bytes()), c(name.as_bytes()));
    let mut value = vec![0u8; 70_000];
    // SAFETY: both strings end with NUL, and the buffer has the length that is given.
    let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    value.truncate(length);
    Ok(value)
}

fn remove(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c(path.as_os_str().as_bytes()), c(name.as_bytes()));
    // SAFETY: both strings end with NUL.
    let done = unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn list(path: &Path) -> io::Result<Vec<String>> {
    let path = c(path.as_os_str().as_bytes());
    let mut names = vec![0u8; 70_000];
    // SAFETY: the string ends with NUL, and the buffer has the length that is given.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

#[test]
fn user_attributes() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let path = mount.join("f");
    files::write(&path, b"x")?;
    set(&path, "user.colour", b"red", 0)?;
    set(&path, "user.binary", &[0, 1, 255], libc::XATTR_CREATE)?;
    ensure!(files::errno(set(&path, "user.colour", b"", libc::XATTR_CREATE)) == libc::EEXIST);
    ensure!(files::errno(set(&path, "user.none", b"", libc::XATTR_REPLACE)) == libc::ENODATA);
    set(&path, "user.colour", b"", libc::XATTR_REPLACE)?;
    mount.remount()?;
    ensure!(get(&path, "user.colour")?.is_empty());
    ensure!(get(&path, "user.binary")? == [0, 1, 255]);
    ensure!(files::errno(get(&path, "user.none")) == libc::ENODATA);
    let names = list(&path)?;
    ensure!(names.contains(&"user.colour".into()) && names.contains(&"user.binary".into()), "{names:?}");
    remove(&path, "user.colour")?;
    ensure!(files::errno(remove(&path, "user.colour")) == libc::ENODATA);
    ensure!(files::errno(get(&path, "user.colour")) == libc::ENODATA);
    cluster.finish([mount])
}

#[test]
fn sha256_of_the_content() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    for size in [0, 10, CHUNK, 2 * CHUNK + 3] {
        let path = mount.join(format!("f{size}"));
        let bytes = files::noise(9, size);
        files::write(&path, &bytes)?;
        let value = String::from_utf8(get(&path, "user.dfs.sha256")?)?;
        ensure!(value == files::sha256_of(&bytes), "{size} bytes: {value}");
        ensure!(files::errno(set(&path, "user.dfs.sha256", b"forged", 0)) == libc::EPERM);
    }
    cluster.finish([mount])
}

#[test]
fn where_the_replicas_are() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let path = mount.join("f");
    files::write(&path, &files::noise(9, 2 * CHUNK))?;
    cluster.wait_healthy(std::time::Duration::from_secs(10))?;
    let value = String::from_utf8(get(&path, "user.dfs.replicas")?)?;
    for node in ["storage-1", "storage-2", "storage-3"] {
        ensure!(value.contains(node), "{value}");
    }
    ensure!(files::errno(set(&path, "user.dfs.replicas", b"x", 0)) == libc::EPERM);
    cluster.finish([mount])
}

#[test]
fn trusted_and_security_attributes() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    std::fs::set_permissions(cluster.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut mount = cluster.mount()?;
    let path = mount.join("f");
    files::write(&path, b"x")?;
    for name in ["user.a", "trusted.a", "security.a"] {
        set(&path, name, name.as_bytes(), 0)?;
    }
    mount.remount()?;
    for name in ["user.a", "trusted.a", "security.a"] {
        ensure!(get(&path, name)? == name.as_bytes(), "{name}");
    }
    let mut names = list(&path)?;
    names.sort();
    ensure!(names == ["security.a", "trusted.a", "user.a"], "{names:?}");
    // As another user, who sees nothing of root's.
    // SAFETY: changes who this thread is towards file systems, and nothing else.
    unsafe { libc::setfsuid(1) };
    let seen = list(&path);
    // SAFETY: as above.
    unsafe { libc::setfsuid(0) };
    let mut seen = seen?;
    seen.sort();
    ensure!(seen == ["security.a", "user.a"], "{seen:?}");
    // What the kernel asks for on its own is not kept.
    ensure!(files::errno(set(&path, "security.selinux", b"x", 0)) == libc::EOPNOTSUPP);
    ensure!(files::errno(get(&path, "security.selinux")) == libc::EOPNOTSUPP);
    remove(&path, "trusted.a")?;
    ensure!(files::errno(get(&path, "trusted.a")) == libc::ENODATA);
    // The limits of the kernel.
    set(&path, &format!("user.{}", "n".repeat(250)), &[7; 64 << 10], 0)?;
    ensure!(files::errno(set(&path, "user.b", &vec![7; (64 << 10) + 1], 0)) == libc::E2BIG);
    cluster.finish([mount])
}
