//! What of an upload is stored already: one JSON document a line, the first describes the upload, each other one a chunk.
//!
//! Lines are appended and fsynced as chunks get stored, so that a crash loses at most the chunk in flight; a torn last line
//! is ignored. Rejected: one JSON document rewritten for each chunk, which for a large file writes more manifest than file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
};

use dfs_common::{ChunkId, ChunkRef, ErrorCode, FileId, NodeId, checksum};
use serde::{Deserialize, Serialize};

use super::local;
use crate::Error;

/// Version of the format; another one is not resumed.
const VERSION: u32 = 1;
/// A manifest is not read further: twice what the largest file needs. Whatever is behind counts as not stored.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

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
    /// What tells that the local file is not the one that `self` describes any more.
    fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        if self.size != now.size {
            changes.push(format!("{} bytes, were {}", now.size, self.size));
        }
        if self.mtime_ns != now.mtime_ns {
            changes.push("another modification time".to_owned());
        }
        if self.inode != now.inode {
            changes.push("another inode".to_owned());
        }
        changes
    }

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
    /// Opens the manifest at `path` for the upload that `head` describes, with what an earlier run stored if `resume`. Without
    /// it the upload starts anew.
    ///
    /// # Errors
    /// `WrongCluster` if the earlier run was to another cluster, where it may still be resumed; the file cannot be written.
    pub(super) fn open(path: &Path, head: &Head, resume: bool) -> Result<(Self, Earlier), Error> {
        let earlier = if resume { read(path, head)? } else { Earlier::default() };
        let stored = &earlier.stored;
        let write = || -> io::Result<File> {
            if let Some(dir) = path.parent() {
                dfs_common::durable::create_dir_all(dir)?;
            }
            let mut text = serde_json::to_vec(head)?;
            text.push(b'\n');
            for (index, chunk) in stored {
                append(&mut text, *index, FileId([0; 16]), chunk)?;
            }
            dfs_common::durable::write_file(path, &text)?;
            OpenOptions::new().append(true).open(path)
        };
        let file = write().map_err(|e| local("writing the manifest", path, &e))?;
        Ok((Self { path: path.to_owned(), file }, earlier))
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

/// What an earlier run left.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Earlier {
    /// Chunks by slot. Whether they are still there, and whether the file still has these bytes, is to be seen.
    pub(super) stored: Vec<(u64, ChunkRef)>,
    /// What the user should know of it.
    pub(super) remark: Option<String>,
}

impl Earlier {
    fn none(remark: String) -> Self {
        Self { stored: Vec::new(), remark: Some(remark) }
    }
}

/// Reads what an earlier run left. What cannot be read counts as not stored, and is named.
fn read(path: &Path, head: &Head) -> Result<Earlier, Error> {
    let shown = path.display();
    let anew = |why: String| Ok(Earlier::none(format!("{why}; everything is sent")));
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return anew(format!("no interrupted upload of {} to this name is noted ({shown})", head.local.display()));
        }
        Err(error) => return Err(local("reading the manifest", path, &error)),
    };
    let mut lines = BufReader::new(file.take(MANIFEST_BYTES_MAX)).lines();
    let first = match lines.next() {
        Some(Ok(first)) => first,
        Some(Err(error)) => return anew(format!("the manifest {shown} cannot be read ({error})")),
        None => return anew(format!("the manifest {shown} is empty")),
    };
    let before: Head = match serde_json::from_str(&first) {
        Ok(before) => before,
        Err(error) => return anew(format!("the manifest {shown} is damaged ({error})")),
    };
    if before.version != VERSION {
        return anew(format!("the manifest {shown} has version {}, known is {VERSION}", before.version));
    }
    if before.cluster_id != head.cluster_id {
        let message = format!(
            "the manifest {shown} is of an upload to cluster {}, this is cluster {}: resume it there, or upload without resuming",
            before.cluster_id, head.cluster_id
        );
        return Err(Error::new(ErrorCode::WrongCluster, message));
    }
    if before.chunk_size != head.chunk_size || (&before.local, &before.remote) != (&head.local, &head.remote) {
        return anew(format!("the manifest {shown} is of an upload of another file or chunk size"));
    }
    let stored: Vec<_> = lines.map_while(|line| parse(&line.ok()?, head)).collect();
    let changes = before.changes(head);
    let remark = (!changes.is_empty()).then(|| {
        let name = head.local.display();
        format!(
            "{name} changed since the interrupted upload ({}): only chunks with the same bytes are kept",
            changes.join(", ")
        )
    });
    Ok(Earlier { stored, remark })
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
        assert!(
            before.stored.is_empty() && before.remark.is_some_and(|remark| remark.contains("no interrupted upload"))
        );
        manifest.add(0, FileId([1; 16]), &chunk(1, 100)).expect("writes");
        manifest.add(2, FileId([1; 16]), &chunk(2, 50)).expect("writes");
        manifest.add(1, FileId([1; 16]), &chunk(3, 100)).expect("writes");
        let text = fs::read(&path).expect("read");
        fs::write(&path, &text[..text.len() - 9]).expect("write");
        let (manifest, earlier) = Manifest::open(&path, &head, true).expect("opens");
        assert_eq!(earlier, Earlier { stored: vec![(0, chunk(1, 100)), (2, chunk(2, 50))], remark: None });
        let (_, earlier) = Manifest::open(&path, &head, true).expect("opens");
        assert_eq!(earlier.stored.len(), 2, "rewritten whole");
        manifest.remove().expect("removes");
    }

    #[test]
    fn a_changed_file_is_named() {
        let (_dir, path, head) = setup();
        let (mut manifest, _) = Manifest::open(&path, &head, false).expect("opens");
        manifest.add(0, FileId([1; 16]), &chunk(1, 100)).expect("writes");
        manifest.add(1, FileId([1; 16]), &chunk(1, 99)).expect("writes");
        let changed = Head { mtime_ns: head.mtime_ns + 1, inode: 7, size: 260, ..head.clone() };
        let (_, earlier) = Manifest::open(&path, &changed, true).expect("opens");
        assert_eq!(earlier.stored, [(0, chunk(1, 100))], "a chunk of a length that its slot cannot have ends the list");
        let remark = earlier.remark.expect("it is told");
        for word in ["260 bytes, were 250", "modification time", "another inode"] {
            assert!(remark.contains(word), "{remark}");
        }
    }

    #[test]
    fn another_cluster_is_refused_and_its_manifest_kept() {
        let (_dir, path, head) = setup();
        let (mut manifest, _) = Manifest::open(&path, &head, false).expect("opens");
        manifest.add(0, FileId([1; 16]), &chunk(1, 100)).expect("writes");
        let elsewhere = Head { cluster_id: "d".into(), ..head.clone() };
        let error = Manifest::open(&path, &elsewhere, true).expect_err("another cluster");
        assert_eq!(error.code, ErrorCode::WrongCluster);
        assert!(error.message.contains("to cluster c, this is cluster d"), "{error}");
        assert_eq!(Manifest::open(&path, &head, true).expect("opens").1.stored.len(), 1);
    }

    #[test]
    fn a_damaged_manifest_is_named_and_not_believed() {
        let (_dir, path, head) = setup();
        for (text, word) in [
            (&b""[..], "is empty"),
            (b"{\"version\":1,\"loc", "is damaged"),
            (b"\xff\xfe\n", "cannot be read"),
            (b"[]\n", "is damaged"),
        ] {
            fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            fs::write(&path, text).expect("write");
            let (_, earlier) = Manifest::open(&path, &head, true).expect("opens");
            assert!(earlier.stored.is_empty());
            let remark = earlier.remark.expect("it is told");
            assert!(remark.contains(word) && remark.contains("everything is sent"), "{remark}");
        }
        drop(Manifest::open(&path, &Head { version: 9, ..head.clone() }, false).expect("opens"));
        let (_, earlier) = Manifest::open(&path, &head, true).expect("opens");
        assert!(earlier.remark.is_some_and(|remark| remark.contains("version 9")));
    }
}
