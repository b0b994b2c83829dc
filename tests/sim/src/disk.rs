//! What of the files of a node survives a crash of its machine.
//!
//! The files are real ones, on a file system in memory. Recorded is only how to get back to what was durable: for a file the
//! bytes that were overwritten or cut off since it was synced, for directories each change of an entry until the directory is
//! synced. A crash undoes the latest changes of entries from a random point on, and for each file all, none, or a part of what
//! was not synced.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    os::{fd::RawFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
};

use dfs_tests::rng::Rng;

use crate::world::Bypass;

type Errno = i32;

#[derive(Default, Debug)]
struct FileState {
    /// Bytes at the end that no sync has covered start here; `None`: everything is durable.
    synced_len: Option<u64>,
    /// What was there before, newest last: offset and bytes.
    undo: Vec<(u64, Vec<u8>)>,
}

impl FileState {
    fn is_clean(&self) -> bool {
        self.synced_len.is_none() && self.undo.is_empty()
    }
}

#[derive(Debug)]
enum Change {
    Created(PathBuf),
    MadeDir(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<PathBuf> },
    Removed { path: PathBuf, kept: PathBuf },
}

impl Change {
    /// The directory that must be synced for it to last. Of a file that moved it is the one with the new name, since that is
    /// what is promised.
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Created(path) | Self::MadeDir(path) | Self::Removed { path, .. } => path.parent(),
            Self::Renamed { to, .. } => to.parent(),
        }
    }

    fn is_on(&self, disk: &Path) -> bool {
        self.dir().is_some_and(|dir| dir.starts_with(disk))
    }
}

/// The disks of all nodes.
#[derive(Debug)]
pub(crate) struct Disks {
    root: PathBuf,
    grave: PathBuf,
    graves: u64,
    fds: BTreeMap<RawFd, PathBuf>,
    files: BTreeMap<PathBuf, FileState>,
    changes: Vec<Change>,
}

impl Disks {
    pub(crate) fn new(root: PathBuf) -> Self {
        let grave = root.join(".removed");
        Self { root, grave, graves: 0, fds: BTreeMap::new(), files: BTreeMap::new(), changes: Vec::new() }
    }

    pub(crate) fn covers(&self, path: &Path) -> bool {
        path.starts_with(&self.root)
    }

    pub(crate) fn path_of(&self, fd: RawFd) -> Option<PathBuf> {
        self.fds.get(&fd).cloned()
    }

    pub(crate) fn opened(&mut self, fd: RawFd, path: &Path, is_new: bool) {
        self.fds.insert(fd, path.to_owned());
        if is_new {
            self.changes.push(Change::Created(path.to_owned()));
            self.files.insert(path.to_owned(), FileState { synced_len: Some(0), undo: Vec::new() });
        }
    }

    pub(crate) fn closed(&mut self, fd: RawFd) {
        self.fds.remove(&fd);
    }

    pub(crate) fn before_write(&mut self, fd: RawFd, offset: Option<u64>, length: u64) {
        let Some(path) = self.fds.get(&fd).cloned() else { return };
        let size = || fs::metadata(&path).map_or(0, |meta| meta.len());
        let state = self.files.entry(path.clone()).or_default();
        let known = *state.synced_len.get_or_insert_with(size);
        // Without an offset files are only appended to here.
        let Some(at) = offset.filter(|at| *at < known) else { return };
        let mut old = vec![0; (length.min(known - at)) as usize];
        if let Ok(file) = OpenOptions::new().read(true).open(&path)
            && file.read_exact_at(&mut old, at).is_ok()
        {
            state.undo.push((at, old));
        }
    }

    pub(crate) fn before_truncate(&mut self, path: &Path, length: u64) {
        let Ok(meta) = fs::metadata(path) else { return };
        let size = meta.len();
        let state = self.files.entry(path.to_owned()).or_default();
        let known = *state.synced_len.get_or_insert(size);
        if length < known {
            let mut old = vec![0; (known - length) as usize];
            if let Ok(file) = OpenOptions::new().read(true).open(path)
                && file.read_exact_at(&mut old, length).is_ok()
            {
                state.undo.push((length, old));
            }
        }
    }

    pub(crate) fn synced(&mut self, fd: RawFd) {
        let Some(path) = self.fds.get(&fd).cloned() else { return };
        if path.is_dir() {
            self.sync_dir(&path);
        } else {
            self.files.remove(&path);
        }
    }

    fn sync_dir(&mut self, dir: &Path) {
        // The entries of a directory that itself is not durable yet go with it; that is decided at the crash.
        let changes = std::mem::take(&mut self.changes);
        for change in changes {
            if change.dir().is_some_and(|of| of.as_os_str() == dir.as_os_str()) {
                bury(&change);
            } else {
                self.changes.push(change);
            }
        }
    }

    /// Everything on the disk that holds `path` is durable.
    pub(crate) fn synced_all(&mut self, path: &Path) {
        let Some(disk) = self.disk_of(path) else { return };
        self.files.retain(|path, _| !path.starts_with(&disk));
        let changes = std::mem::take(&mut self.changes);
        for change in changes {
            if change.is_on(&disk) {
                bury(&change);
            } else {
                self.changes.push(change);
            }
        }
    }

    /// The directory of the node that `path` belongs to.
    pub(crate) fn disk_of(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.root).ok()?;
        below.components().next().map(|node| self.root.join(node))
    }

    fn move_to_grave(&mut self, path: &Path) -> Result<PathBuf, Errno> {
        self.graves += 1;
        let kept = self.grave.join(self.graves.to_string());
        fs::rename(path, &kept).map_err(errno)?;
        if let Some(state) = self.files.remove(path) {
            self.files.insert(kept.clone(), state);
        }
        for held in self.fds.values_mut().filter(|held| *held == path) {
            *held = kept.clone();
        }
        Ok(kept)
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Errno> {
        if !from.exists() || !to.parent().is_some_and(Path::is_dir) {
            return Err(libc::ENOENT);
        }
        let replaced = if to.is_file() { Some(self.move_to_grave(to)?) } else { None };
        fs::rename(from, to).map_err(errno)?;
        if let Some(state) = self.files.remove(from) {
            self.files.insert(to.to_owned(), state);
        }
        for held in self.fds.values_mut().filter(|held| *held == from) {
            *held = to.to_owned();
        }
        self.changes.push(Change::Renamed { from: from.to_owned(), to: to.to_owned(), replaced });
        Ok(())
    }

    pub(crate) fn unlink(&mut self, path: &Path) -> Result<(), Errno> {
        if path.is_dir() {
            return Err(libc::EISDIR);
        }
        if !path.exists() {
            return Err(libc::ENOENT);
        }
        let kept = self.move_to_grave(path)?;
        self.changes.push(Change::Removed { path: path.to_owned(), kept });
        Ok(())
    }

    pub(crate) fn made(&mut self, path: &Path) {
        self.changes.push(Change::MadeDir(path.to_owned()));
    }

    /// The machine of the node in `disk` loses power: says what was lost.
    pub(crate) fn crash(&mut self, disk: &Path, rng: &mut Rng) -> String {
        let _bypass = Bypass::new();
        self.fds.retain(|_, path| !path.starts_with(disk));
        let (mine, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.changes).into_iter().partition(|change| change.is_on(disk));
        self.changes = others;
        let keep = if mine.is_empty() { 0 } else { rng.below(mine.len() as u64 + 1) as usize };
        let undone = mine.len() - keep;
        for (at, change) in mine.into_iter().enumerate().rev() {
            if at < keep { bury(&change) } else { self.undo(change) }
        }
        let mut torn = 0;
        let paths: Vec<PathBuf> = self.files.keys().filter(|path| path.starts_with(disk)).cloned().collect();
        for path in paths {
            let Some(state) = self.files.remove(&path).filter(|state| !state.is_clean()) else { continue };
            torn += 1;
            lose(&path, state, rng);
        }
        format!("{undone} changes of directories undone, {torn} files not synced")
    }

    fn undo(&mut self, change: Change) {
        match change {
            Change::Created(path) => {
                self.files.remove(&path);
                let _ = fs::remove_file(path);
            }
            Change::MadeDir(path) => {
                let _ = fs::remove_dir_all(path);
            }
            Change::Renamed { from, to, replaced } => {
                let _ = fs::rename(&to, &from);
                if let Some(state) = self.files.remove(&to) {
                    self.files.insert(from, state);
                }
                if let Some(kept) = replaced {
                    self.restore(&kept, to);
                }
            }
            Change::Removed { path, kept } => self.restore(&kept, path),
        }
    }

    fn restore(&mut self, kept: &Path, path: PathBuf) {
        let _ = fs::rename(kept, &path);
        if let Some(state) = self.files.remove(kept) {
            self.files.insert(path, state);
        }
    }

    /// The node in `disk` gets a new, empty disk.
    pub(crate) fn wipe(&mut self, disk: &Path) {
        let _bypass = Bypass::new();
        self.fds.retain(|_, path| !path.starts_with(disk));
        self.files.retain(|path, _| !path.starts_with(disk));
        self.changes.retain(|change| !change.is_on(disk));
        let _ = fs::remove_dir_all(disk);
    }
}

fn bury(change: &Change) {
    let kept = match change {
        Change::Renamed { replaced: Some(kept), .. } | Change::Removed { kept, .. } => kept,
        Change::Renamed { .. } | Change::Created(_) | Change::MadeDir(_) => return,
    };
    let _bypass = Bypass::new();
    let _ = fs::remove_file(kept);
}

/// Takes from a file some of what was not synced.
fn lose(path: &Path, state: FileState, rng: &mut Rng) {
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return };
    let size = file.metadata().map_or(0, |meta| meta.len());
    let synced = state.synced_len.unwrap_or(size);
    let mode = rng.below(3);
    if mode == 0 {
        return;
    }
    for (at, old) in state.undo.iter().rev() {
        if mode == 1 || rng.once_in(2) {
            let _ = file.write_all_at(old, *at);
        }
    }
    if size > synced {
        let end = if mode == 1 { synced } else { rng.range(synced, size + 1) };
        let _ = file.set_len(end);
        // The size may be on disk before the bytes are.
        if mode == 2 && end > synced && rng.once_in(3) {
            let from = rng.range(synced, end);
            let _ = file.write_all_at(&vec![0; (end - from) as usize], from);
        }
    }
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().unwrap_or(libc::EIO)
}
