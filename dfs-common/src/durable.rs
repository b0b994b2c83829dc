//! Crash-safe file helpers.
//!
//! A file that must exist whole or not at all is written to a temporary name, fsynced, renamed, and its directory fsynced;
//! an error of any of the four steps is an error of the whole (see the rename and fsync manual pages; directory fsync is
//! not optional on Linux file systems).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use fs4::fs_std::FileExt as _;

/// Writes `bytes` to `path` atomically and durably. A leftover `.tmp` sibling of an earlier crash is replaced.
///
/// # Errors
/// Any failing step; `path` then has its old content or the new one, never a part.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let tmp = tmp_sibling(path);
    let mut file = File::create(&tmp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    rename(&tmp, path)
}

/// Renames within one file system and fsyncs the target's directory. The source must be fsynced already.
///
/// # Errors
/// Any failing step.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)
}

/// Fsyncs the directory that holds `path`.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    sync_dir(parent)
}

/// Fsyncs a directory.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes `dir` and its missing parents, each durable.
///
/// # Errors
/// Any failing step.
pub fn create_dir_all(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dir_all(parent)?;
    }
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_parent(dir),
    }
}

/// The temporary name next to `path`.
#[must_use]
pub fn tmp_sibling(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// An exclusive lock on a data directory, held while the value lives; the kernel frees it when the process dies.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Locks `dir` through the file `LOCK` in it; `None` if another process holds it.
///
/// # Errors
/// The lock file cannot be made.
pub fn lock_dir(dir: &Path) -> io::Result<Option<DirLock>> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(dir.join("LOCK"))?;
    Ok(file.try_lock_exclusive()?.then_some(DirLock { _file: file }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_and_leaves_no_tmp() {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("a/b/stamp");
        create_dir_all(path.parent().expect("has one")).expect("dirs");
        write_file(&path, b"one").expect("write");
        write_file(&path, b"two").expect("write");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::read_dir(path.parent().expect("has one")).expect("list").count(), 1);
    }

    #[test]
    fn second_lock_is_refused() {
        let dir = tempfile::tempdir().expect("tmp");
        let first = lock_dir(dir.path()).expect("lock").expect("free");
        assert!(lock_dir(dir.path()).expect("lock").is_none());
        drop(first);
        assert!(lock_dir(dir.path()).expect("lock").is_some());
    }
}
