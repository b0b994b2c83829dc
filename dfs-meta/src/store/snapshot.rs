//! Snapshots as files: made without stopping the state machine, whole or not there at all.
//!
//! ```text
//! "DFSSNAP1"  length of head (u32)  head (postcard)  state  |  length of all before (u64)  CRC32C of all before (u32)
//! ```
//! Numbers are little-endian. A file is written under a temporary name, fsynced, renamed, and its directory fsynced. It is
//! verified as a whole before anything in it is believed. The newest [`KEEP`] are kept: when the newest turns out damaged, the
//! one before is used if the log still reaches back to it.

use std::{
    cmp::Reverse,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crc_fast::{CrcAlgorithm, Digest};
use dfs_common::{
    crash::{self, Point},
    durable,
};

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::{
    fsm::State,
    raft::types::{LogId, SnapshotMeta},
};

const MAGIC: &[u8; 8] = b"DFSSNAP1";
const TRAILER_BYTES: u64 = 12;
/// A longer description would not be one.
const HEAD_BYTES_MAX: u32 = 1 << 20;
/// Snapshots kept.
const KEEP: usize = 2;
const BUFFER_BYTES: usize = 1 << 20;

/// What a snapshot holds.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub(crate) struct Head {
    /// What it covers.
    pub(crate) meta: SnapshotMeta,
    /// Time of the last batch in it, nanoseconds since the Unix epoch.
    pub(crate) now_ns: i64,
}

/// An open snapshot file. It stays readable when a newer snapshot replaces it.
#[derive(Debug)]
pub(crate) struct SnapshotFile {
    file: File,
    path: PathBuf,
    length: u64,
    /// Removed when this is dropped, unless it was installed.
    temporary: bool,
}

impl SnapshotFile {
    fn open(path: PathBuf, temporary: bool) -> io::Result<Self> {
        let file = File::open(&path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, path, length, temporary })
    }

    /// Its size in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Reads up to `max` bytes from `offset`; nothing at the end.
    pub(crate) fn read_at(&self, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(max)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Checks the whole file and reads its head.
    pub(crate) fn head(&self) -> Result<Head, StoreError> {
        open_checked(&self.path, &self.file).map(|(head, _)| head)
    }

    /// Checks the whole file and reads it.
    pub(crate) fn load(&self) -> Result<(Head, State), StoreError> {
        load(&self.path, &self.file)
    }
}

impl Drop for SnapshotFile {
    fn drop(&mut self) {
        if self.temporary {
            // Left over files are removed at the next start.
            drop(fs::remove_file(&self.path));
        }
    }
}

/// The directory of the snapshots.
#[derive(Debug)]
pub(crate) struct SnapshotDir {
    path: PathBuf,
    temporaries: AtomicU64,
}

impl SnapshotDir {
    /// Opens the directory, making it if it is not there, and removes what a crash left half written.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let prepare = || {
            durable::create_dir_all(path)?;
            for entry in fs::read_dir(path)? {
                let entry = entry?.path();
                if entry.extension().is_some_and(|extension| extension == "tmp") {
                    fs::remove_file(entry)?;
                }
            }
            Ok(())
        };
        prepare().map_err(StoreError::io(path))?;
        Ok(Self { path: path.to_owned(), temporaries: AtomicU64::new(0) })
    }

    /// Whether there is any snapshot, damaged ones included.
    pub(crate) fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.list()?.is_empty())
    }

    /// The newest snapshot that verifies. Damaged ones are reported and left for inspection under another name.
    pub(crate) fn newest(&self) -> Result<Option<(Head, State)>, StoreError> {
        for path in self.list()? {
            let file = SnapshotFile::open(path.clone(), false).map_err(StoreError::io(&path))?;
            match file.load() {
                Ok(found) => return Ok(Some(found)),
                Err(error @ StoreError::Snapshot { .. }) => {
                    tracing::warn!(%error, "trying the snapshot before; the damaged one is kept as .damaged");
                    let aside = path.with_extension("damaged");
                    durable::rename(&path, &aside).map_err(StoreError::io(&path))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Opens the snapshot that `meta` describes.
    pub(crate) fn get(&self, meta: &SnapshotMeta) -> Result<SnapshotFile, StoreError> {
        let path = self.path_of(meta.last_log_id);
        SnapshotFile::open(path.clone(), false).map_err(StoreError::io(path))
    }

    /// Writes a snapshot durably.
    pub(crate) fn write(&self, head: &Head, state: &State) -> Result<SnapshotFile, StoreError> {
        let tmp = self.temporary_path();
        let result = write(&tmp, head, state).map_err(StoreError::io(&tmp)).and_then(|()| {
            crash::point(Point::SnapshotWritten);
            self.publish(&tmp, &head.meta)
        });
        if result.is_err() {
            drop(fs::remove_file(&tmp));
        }
        result
    }

    /// A file to receive another node's snapshot into.
    pub(crate) fn receive(&self) -> Result<Incoming, StoreError> {
        let path = self.temporary_path();
        let file = File::create(&path).map_err(StoreError::io(&path))?;
        Ok(Incoming { file, path: Some(path) })
    }

    /// Makes a received snapshot one of ours.
    pub(crate) fn adopt(&self, mut received: SnapshotFile, meta: &SnapshotMeta) -> Result<SnapshotFile, StoreError> {
        if received.temporary && received.path.parent() == Some(&self.path) {
            received.temporary = false;
            return self.publish(&received.path, meta);
        }
        let tmp = self.temporary_path();
        let copy = || {
            fs::copy(&received.path, &tmp)?;
            File::open(&tmp)?.sync_all()
        };
        copy().map_err(StoreError::io(&tmp))?;
        self.publish(&tmp, meta)
    }

    fn publish(&self, tmp: &Path, meta: &SnapshotMeta) -> Result<SnapshotFile, StoreError> {
        let path = self.path_of(meta.last_log_id);
        durable::rename(tmp, &path).map_err(StoreError::io(&path))?;
        crash::point(Point::SnapshotRenamed);
        let file = SnapshotFile::open(path.clone(), false).map_err(StoreError::io(&path))?;
        for old in self.list()?.into_iter().skip(KEEP) {
            fs::remove_file(&old).map_err(StoreError::io(&old))?;
        }
        Ok(file)
    }

    /// Paths of all snapshots, the newest first.
    fn list(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(StoreError::io(&self.path))? {
            let path = entry.map_err(StoreError::io(&self.path))?.path();
            if let Some(position) = path.file_name().and_then(|name| parse_name(name.to_str()?)) {
                found.push((Reverse(position), path));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    fn path_of(&self, position: Option<LogId>) -> PathBuf {
        let (index, term) = position.map_or((0, 0), |id| (id.index, id.leader_id.term));
        self.path.join(format!("snapshot-{index:020}-{term}"))
    }

    fn temporary_path(&self) -> PathBuf {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        self.path.join(format!("snapshot-{number}.tmp"))
    }
}

fn parse_name(name: &str) -> Option<(u64, u64)> {
    let (index, term) = name.strip_prefix("snapshot-")?.split_once('-')?;
    Some((index.parse().ok()?, term.parse().ok()?))
}

/// A snapshot that is being received.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: File,
    path: Option<PathBuf>,
}

impl Incoming {
    /// Appends bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Makes what was received durable, under its temporary name still.
    pub(crate) fn finish(mut self) -> io::Result<SnapshotFile> {
        self.file.sync_all()?;
        let path = self.path.take().ok_or_else(|| io::Error::other("finished twice"))?;
        SnapshotFile::open(path, true)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            drop(fs::remove_file(path));
        }
    }
}

fn write(path: &Path, head: &Head, state: &State) -> io::Result<()> {
    let mut file = Checked::new(BufWriter::with_capacity(BUFFER_BYTES, File::create(path)?));
    let head = postcard::to_allocvec(head).map_err(io::Error::other)?;
    let head_bytes = u32::try_from(head.len()).map_err(io::Error::other)?;
    file.write_all(MAGIC)?;
    file.write_all(&head_bytes.to_le_bytes())?;
    file.write_all(&head)?;
    state.write_snapshot(&mut file)?;
    let (length, crc) = (file.length, file.crc());
    let mut file = file.inner;
    file.write_all(&length.to_le_bytes())?;
    file.write_all(&crc.to_le_bytes())?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn load(path: &Path, file: &File) -> Result<(Head, State), StoreError> {
    let (head, mut body) = open_checked(path, file)?;
    let state = State::read_snapshot(&mut body)
        .map_err(|e| StoreError::Snapshot { path: path.to_owned(), reason: e.to_string() })?;
    Ok((head, state))
}

/// Checks the whole file; its head, and a reader of the state behind it.
fn open_checked<'f>(path: &Path, file: &'f File) -> Result<(Head, impl Read + use<'f>), StoreError> {
    let damaged = |reason: String| StoreError::Snapshot { path: path.to_owned(), reason };
    let length = verify(file).map_err(StoreError::io(path))?.map_err(damaged)?;
    let mut rewound = file;
    rewound.seek(SeekFrom::Start(MAGIC.len() as u64)).map_err(StoreError::io(path))?;
    let mut body = BufReader::with_capacity(BUFFER_BYTES, rewound.take(length - MAGIC.len() as u64));
    let head = read_head(&mut body).map_err(|e| damaged(e.to_string()))?;
    Ok((head, body))
}

fn read_head(body: &mut impl Read) -> io::Result<Head> {
    let mut length = [0; 4];
    body.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > HEAD_BYTES_MAX {
        return Err(io::Error::other("its description is too long"));
    }
    let mut bytes = vec![0; length as usize];
    body.read_exact(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

/// Checks length and checksum; the length without the trailer, or what is wrong.
fn verify(mut file: &File) -> io::Result<Result<u64, String>> {
    let total = file.metadata()?.len();
    let Some(length) = total.checked_sub(TRAILER_BYTES).filter(|length| *length >= 12) else {
        return Ok(Err("it is too short".into()));
    };
    file.seek(SeekFrom::Start(0))?;
    let mut checked = Checked::new(io::sink());
    let mut magic = [0; 8];
    file.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Ok(Err("it does not start like a snapshot of a version known here".into()));
    }
    checked.write_all(&magic)?;
    let mut body = BufReader::with_capacity(BUFFER_BYTES, file.take(length - 8));
    io::copy(&mut body, &mut checked)?;
    let mut trailer = [0; 12];
    file.read_exact_at(&mut trailer, length)?;
    let (stored_length, stored_crc) = trailer.split_at(8);
    if stored_length != length.to_le_bytes() {
        return Ok(Err("its length does not match its trailer".into()));
    }
    if stored_crc != checked.crc().to_le_bytes() {
        return Ok(Err("its checksum does not match".into()));
    }
    Ok(Ok(length))
}

/// Counts and checksums what is written through it.
struct Checked<W> {
    inner: W,
    digest: Digest,
    length: u64,
}

impl<W> Checked<W> {
    fn new(inner: W) -> Self {
        Self { inner, digest: Digest::new(CrcAlgorithm::Crc32Iscsi), length: 0 }
    }

    fn crc(&self) -> u32 {
        u32::try_from(self.digest.finalize()).expect("a 32-bit CRC fits")
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
