//! What of an upload is stored already: one JSON document a line, the first describes the upload, each other one a chunk.
//!
//! Lines are appended and fsynced as chunks get stored, so that a crash loses at most the chunk in flight; a torn last line
//! is ignored. Rejected: one JSON document rewritten for each chunk, which for a large file writes more manifest than file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
};

use dfs_common::{ChunkId, ChunkRef, FileId, NodeId, checksum};
use serde::{Deserialize, Serialize};

use super::local;
use crate::Error;

/// Version of the format; another one is not resumed.
const VERSION: u32 = 1;

/// What is uploaded to where.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) version: u32,
    pub(super) local: PathBuf,
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    /// Inode of the local file.
    pub(super) inode: u64,
    /// Path from the root, escaped where it is not ASCII.
    pub(super) remote: String,
    pub(super) cluster_id: String,
    pub(super) chunk_size: u32,
}

/// A stored chunk. Identifiers as hexadecimal text, for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Line {
    index: u64,
    file_id: String,
    chunk_id: String,
    length: u32,
    sha256: String,
    replicas: Vec<u32>,
}

/// An open manifest.
#[derive(Debug)]
pub(super) struct Manifest {
    path: PathBuf,
    file: File,
}

impl Head {
    /// Describes the upload of `local` to `remote`.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub(super) fn new(
        local_path: &Path,
        remote: &[u8],
        cluster_id: String,
        chunk_size: u32,
    ) -> Result<(Self, fs::Metadata), Error> {
        use std::os::unix::fs::MetadataExt as _;
        let full = fs::canonicalize(local_path).map_err(|e| local("reading", local_path, &e))?;
        let meta = fs::metadata(&full).map_err(|e| local("reading", &full, &e))?;
        let head = Self {
            version: VERSION,
            local: full,
            size: meta.len(),
            mtime_ns: meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()),
            inode: meta.ino(),
            remote: remote.escape_ascii().to_string(),
            cluster_id,
            chunk_size,
        };
        Ok((head, meta))
    }
}

/// Where the manifest of an upload of `local` to `remote` is kept in `dir`.
#[must_use]
pub fn path(dir: &Path, local: &Path, remote: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    let mut key = local.as_os_str().as_bytes().to_vec();
    key.push(0);
    key.extend_from_slice(remote);
    let hash: String = checksum::sha256(&key)[..12].iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(format!("upload-{hash}.json"))
}

impl Manifest {
    /// Opens the manifest at `path` for the upload that `head` describes, with the chunks that an earlier run stored if
    /// `resume` and if that run was of the same content. A chunk size or content that differs starts anew.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn open(path: &Path, head: &Head, resume: bool) -> Result<(Self, Vec<(u64, ChunkRef)>), Error> {
        let stored = if resume { read(path, head).unwrap_or_default() } else { Vec::new() };
        let write = || -> io::Result<File> {
            if let Some(dir) = path.parent() {
                dfs_common::durable::create_dir_all(dir)?;
            }
            let mut text = serde_json::to_vec(head)?;
            text.push(b'\n');
            for (index, chunk) in &stored {
                append(&mut text, *index, FileId([0; 16]), chunk)?;
            }
            dfs_common::durable::write_file(path, &text)?;
            OpenOptions::new().append(true).open(path)
        };
        let file = write().map_err(|e| local("writing the manifest", path, &e))?;
        Ok((Self { path: path.to_owned(), file }, stored))
    }

    /// Notes a stored chunk, durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn add(&mut self, index: u64, file_id: FileId, chunk: &ChunkRef) -> Result<(), Error> {
        let mut write = || {
            let mut text = Vec::new();
            append(&mut text, index, file_id, chunk)?;
            self.file.write_all(&text)?;
            self.file.sync_data()
        };
        write().map_err(|e: io::Error| local("writing the manifest", &self.path, &e))
    }

    /// The upload is complete: nothing is left to resume.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn remove(self) -> Result<(), Error> {
        fs::remove_file(&self.path).map_err(|e| local("removing the manifest", &self.path, &e))
    }
}

fn append(text: &mut Vec<u8>, index: u64, file_id: FileId, chunk: &ChunkRef) -> io::Result<()> {
    let line = Line {
        index,
        file_id: file_id.to_string(),
        chunk_id: chunk.id.to_string(),
        length: chunk.length,
        sha256: ChunkId(chunk.sha256).to_string(),
        replicas: chunk.replicas.iter().map(|node| node.0).collect(),
    };
    serde_json::to_writer(&mut *text, &line)?;
    text.push(b'\n');
    Ok(())
}

/// The chunks of an earlier run, if it was of the same upload. Anything unreadable counts as not stored.
fn read(path: &Path, head: &Head) -> Option<Vec<(u64, ChunkRef)>> {
    let mut lines = BufReader::new(File::open(path).ok()?).lines();
    let before: Head = serde_json::from_str(&lines.next()?.ok()?).ok()?;
    if before != *head {
        return None;
    }
    Some(lines.map_while(|line| parse(&line.ok()?, head)).collect())
}

fn parse(line: &str, head: &Head) -> Option<(u64, ChunkRef)> {
    let line: Line = serde_json::from_str(line).ok()?;
    let start = line.index.checked_mul(head.chunk_size.into())?;
    let expected = head.size.checked_sub(start)?.min(head.chunk_size.into());
    let chunk = ChunkRef {
        id: line.chunk_id.parse().ok()?,
        length: line.length,
        sha256: line.sha256.parse::<ChunkId>().ok()?.0,
        replicas: line.replicas.into_iter().map(NodeId).collect(),
    };
    (u64::from(line.length) == expected).then_some((line.index, chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u8, length: u32) -> ChunkRef {
        ChunkRef {
            id: ChunkId([n; 32]),
            length,
            sha256: [n; 32],
            replicas: [NodeId(1), NodeId(7)].into_iter().collect(),
        }
    }

    fn setup() -> (tempfile::TempDir, PathBuf, Head) {
        let dir = tempfile::tempdir().expect("tmp");
        let source = dir.path().join("f");
        fs::write(&source, vec![0; 250]).expect("write");
        let (head, _) = Head::new(&source, b"a b\xff", "c".into(), 100).expect("exists");
        let path = path(&dir.path().join("m"), &source, b"a b\xff");
        (dir, path, head)
    }

    #[test]
    fn a_torn_line_costs_one_chunk() {
        let (_dir, path, head) = setup();
        let (mut manifest, before) = Manifest::open(&path, &head, true).expect("opens");
        assert!(before.is_empty());
        manifest.add(0, FileId([1; 16]), &chunk(1, 100)).expect("writes");
        manifest.add(2, FileId([1; 16]), &chunk(2, 50)).expect("writes");
        manifest.add(1, FileId([1; 16]), &chunk(3, 100)).expect("writes");
        let text = fs::read(&path).expect("read");
        fs::write(&path, &text[..text.len() - 9]).expect("write");
        let (manifest, stored) = Manifest::open(&path, &head, true).expect("opens");
        assert_eq!(stored, [(0, chunk(1, 100)), (2, chunk(2, 50))]);
        let (_, stored) = Manifest::open(&path, &head, true).expect("opens");
        assert_eq!(stored.len(), 2, "rewritten whole");
        manifest.remove().expect("removes");
    }

    #[test]
    fn another_content_is_not_resumed() {
        let (_dir, path, head) = setup();
        let (mut manifest, _) = Manifest::open(&path, &head, false).expect("opens");
        manifest.add(0, FileId([1; 16]), &chunk(1, 100)).expect("writes");
        manifest.add(1, FileId([1; 16]), &chunk(1, 99)).expect("writes");
        let changed = Head { mtime_ns: head.mtime_ns + 1, ..head.clone() };
        assert_eq!(Manifest::open(&path, &changed, true).expect("opens").1, []);
        assert_eq!(Manifest::open(&path, &head, true).expect("opens").1, [], "it was replaced");
    }
}
