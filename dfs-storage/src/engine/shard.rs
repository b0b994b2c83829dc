//! Where a chunk's file is: `chunks/xx/0y/<64 hexadecimal digits>.chunk`, sharded by the first three digits of the id, so that
//! no directory grows beyond what readdir does in a moment (256 * 16 directories; ten million chunks are 2,500 a directory).
//! More directories would make small chunks dear: a chunk that is the first of its directory pays a mkdir and two more
//! fsyncs, and with 256 * 256 that is every one of the first tens of thousands.
//!
//! Directories are made on demand. A new chunk is durable only if its directory is, up to the root of the tree; which ones
//! are known to be is remembered in a bitmap, so that the parents are fsynced once and not with every chunk.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use dfs_common::{
    ChunkId,
    crash::{self, Point},
    durable,
};

/// The tree of chunk directories.
#[derive(Debug)]
pub(super) struct Shards {
    root: PathBuf,
    /// Per directory of the second level: the directory's entry in its parent, and the parent's in the root, are on disk.
    durable: Vec<AtomicBool>,
    /// Per first byte: the directory's entry in the root is on disk.
    durable_tops: Vec<AtomicBool>,
}

impl Shards {
    /// The tree under `root`, which exists.
    pub(super) fn new(root: PathBuf) -> Self {
        let flags = |count| (0..count).map(|_| AtomicBool::new(false)).collect();
        Self { root, durable: flags(1 << 12), durable_tops: flags(1 << 8) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The file of a chunk.
    pub(super) fn file(&self, id: ChunkId) -> PathBuf {
        let mut path = self.leaf(id);
        path.push(format!("{id}.chunk"));
        path
    }

    fn leaf(&self, id: ChunkId) -> PathBuf {
        leaf_dir(&self.root, id.0[0], leaf_of(id))
    }

    /// Notes that a directory was found at start, after everything was synced.
    pub(super) fn mark_durable(&self, top: u8, leaf: u8) {
        self.durable[index(top, leaf)].store(true, Ordering::Release);
        self.durable_tops[usize::from(top)].store(true, Ordering::Release);
    }

    /// Moves a synced file to its place and makes the move durable. The order matters: directories first, then the rename,
    /// then the fsyncs from the leaf upwards, of which the first usually commits everything.
    pub(super) fn publish(&self, tmp: &Path, id: ChunkId) -> io::Result<()> {
        let (leaf, file) = (self.leaf(id), self.file(id));
        let known = &self.durable[index(id.0[0], leaf_of(id))];
        if !known.load(Ordering::Acquire) {
            fs::create_dir_all(&leaf)?;
        }
        if let Err(error) = fs::rename(tmp, &file) {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            // Somebody removed the directory behind our back.
            known.store(false, Ordering::Release);
            self.durable_tops[usize::from(id.0[0])].store(false, Ordering::Release);
            fs::create_dir_all(&leaf)?;
            fs::rename(tmp, &file)?;
        }
        crash::point(Point::ChunkRenamed);
        self.sync(id).inspect_err(|_| {
            // Whether it is durable is unknown, and the writer is told that it failed: it must not be found later.
            if let Err(error) = fs::remove_file(&file) {
                tracing::warn!(path = %file.display(), %error, "cannot remove a chunk that could not be synced");
            }
        })
    }

    /// Makes the entries of a chunk's directory durable, and the directory itself.
    pub(super) fn sync(&self, id: ChunkId) -> io::Result<()> {
        let leaf = self.leaf(id);
        let known = &self.durable[index(id.0[0], leaf_of(id))];
        durable::sync_dir(&leaf)?;
        if !known.load(Ordering::Acquire) {
            durable::sync_parent(&leaf)?;
            let known_top = &self.durable_tops[usize::from(id.0[0])];
            if !known_top.load(Ordering::Acquire) {
                durable::sync_dir(&self.root)?;
                known_top.store(true, Ordering::Release);
            }
            known.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// The directory of the second level that a chunk belongs to: 0 to 15, in id order.
pub(super) fn leaf_of(id: ChunkId) -> u8 {
    id.0[1] >> 4
}

fn index(top: u8, leaf: u8) -> usize {
    usize::from(top) << 4 | usize::from(leaf & 0xf)
}

/// A directory of the second level.
pub(super) fn leaf_dir(root: &Path, top: u8, leaf: u8) -> PathBuf {
    root.join(format!("{top:02x}")).join(format!("{leaf:02x}"))
}

/// The two-digit sub-directories of `dir`, in order; none if it does not exist.
pub(super) fn subdirs(dir: &Path) -> io::Result<Vec<u8>> {
    let mut found = Vec::new();
    for entry in read_dir(dir)?.into_iter().flatten() {
        if let Some(number) = entry?.file_name().to_str().and_then(hex_byte) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Opens a directory; `None` if it does not exist.
pub(super) fn read_dir(dir: &Path) -> io::Result<Option<fs::ReadDir>> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(Some(entries)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

fn hex_byte(text: &str) -> Option<u8> {
    let lower = text.len() == 2 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if lower { u8::from_str_radix(text, 16).ok() } else { None }
}

/// The chunk whose file in the directory of `top` and `leaf` has this name; `None` for a foreign file.
pub(super) fn chunk_of(name: &std::ffi::OsStr, top: u8, leaf: u8) -> Option<ChunkId> {
    let digits = name.to_str()?.strip_suffix(".chunk")?;
    if digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let id: ChunkId = digits.parse().ok()?;
    (id.0[0] == top && leaf_of(id) == leaf).then_some(id)
}

/// Writes everything of the file system that holds `dir` to disk.
pub(super) fn sync_file_system(dir: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let file = File::open(dir)?;
    // SAFETY: the descriptor is open for the whole call and syncfs touches no memory of ours.
    match unsafe { libc::syncfs(file.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_only_in_their_own_directory() {
        let id = ChunkId::derive(dfs_common::FileId([1; 16]), 0, 0);
        let name = std::ffi::OsString::from(format!("{id}.chunk"));
        assert_eq!(chunk_of(&name, id.0[0], leaf_of(id)), Some(id));
        assert_eq!(chunk_of(&name, id.0[0].wrapping_add(1), leaf_of(id)), None);
        assert_eq!(chunk_of("x.chunk".as_ref(), 0, 0), None);
        assert_eq!((hex_byte("0a"), hex_byte("0A"), hex_byte("+1"), hex_byte("100")), (Some(10), None, None, None));
    }
}
