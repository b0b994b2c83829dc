//! A backup of the metadata as a file: what is in it, and whether it is whole.
//!
//! ```text
//! "DFSBKUP1"  length of head (u32)  head (TOML)  state  |  length of all before (u64)  CRC32C of all before (u32)
//! ```
//! Numbers are little-endian. The head can be read without knowing the state's own format, which is that of a snapshot. A file without its
//! end, or with any byte changed, is refused.

use std::io::{self, Read, Write};

use crc_fast::{CrcAlgorithm, Digest};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 8] = b"DFSBKUP1";
/// A longer head would not be one.
const HEAD_BYTES_MAX: u32 = 64 << 10;
const TRAILER_BYTES: usize = 12;
const BUFFER_BYTES: usize = 1 << 20;

/// What a backup says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// The cluster, in hexadecimal.
    pub cluster_id: String,
    /// Grows when the cluster is restored or rescued.
    pub epoch: u64,
    /// When it was made, nanoseconds since the Unix epoch.
    pub created_ns: i64,
    /// The metadata node that made it.
    pub made_by: String,
    /// Version of its program.
    pub version: String,
    /// Entry of the log up to which it goes.
    pub last_index: u64,
    /// Term of that entry.
    pub last_term: u64,
    /// Bytes of a chunk of new files.
    pub chunk_size: u32,
    /// Copies wanted of each chunk.
    pub replication: u32,
    /// Copies before a write is acknowledged.
    pub write_quorum: u32,
    /// Files, directories and everything else that has a name.
    pub inodes: u64,
    /// Chunks of files.
    pub chunks: u64,
    /// Storage nodes.
    pub nodes: u64,
    /// Files that were being written.
    pub pending: u64,
}

/// Not a backup, or not a whole one.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It cannot be read.
    #[error("cannot read the backup: {0}")]
    Io(#[from] io::Error),
    /// It does not begin like one.
    #[error("this is no backup of dfs metadata, or of a version that is not known here")]
    Foreign,
    /// It ends early, or bytes were changed.
    #[error("the backup is damaged: {0}. Use another one")]
    Damaged(&'static str),
    /// Its head does not parse.
    #[error("the head of the backup makes no sense: {0}")]
    Head(String),
}

/// Counts and checksums what goes through it.
#[derive(Debug)]
pub struct Checked<T> {
    inner: T,
    digest: Digest,
    length: u64,
}

impl<T> Checked<T> {
    fn new(inner: T) -> Self {
        Self { inner, digest: Digest::new(CrcAlgorithm::Crc32Iscsi), length: 0 }
    }

    fn trailer(&self) -> [u8; TRAILER_BYTES] {
        let crc = u32::try_from(self.digest.finalize()).expect("a 32-bit CRC fits");
        let mut trailer = [0; TRAILER_BYTES];
        trailer[..8].copy_from_slice(&self.length.to_le_bytes());
        trailer[8..].copy_from_slice(&crc.to_le_bytes());
        trailer
    }

    fn note(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.length += bytes.len() as u64;
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.note(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a backup to `sink`: `state` writes the state.
///
/// # Errors
/// Those of the sink and of `state`.
pub fn write<W: Write>(sink: W, head: &Head, state: impl FnOnce(&mut Checked<W>) -> io::Result<()>) -> io::Result<()> {
    let mut out = Checked::new(sink);
    let head = toml::to_string(head).map_err(io::Error::other)?;
    out.write_all(MAGIC)?;
    out.write_all(&u32::try_from(head.len()).map_err(io::Error::other)?.to_le_bytes())?;
    out.write_all(head.as_bytes())?;
    state(&mut out)?;
    let trailer = out.trailer();
    out.inner.write_all(&trailer)?;
    out.inner.flush()
}

/// Reads the whole of `source` and checks it; the head, and the length in bytes.
///
/// # Errors
/// It is no backup, or damaged.
pub fn verify(source: impl Read) -> Result<(Head, u64), BackupError> {
    let mut source = io::BufReader::with_capacity(BUFFER_BYTES, source);
    let mut seen = Checked::new(io::sink());
    let head = read_head(&mut source, &mut seen)?;
    // The last bytes are the trailer, and only the end tells which those are.
    let mut held: Vec<u8> = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let got = source.read(&mut buffer)?;
        if got == 0 {
            break;
        }
        held.extend_from_slice(&buffer[..got]);
        let settled = held.len().saturating_sub(TRAILER_BYTES);
        seen.note(&held[..settled]);
        held.drain(..settled);
    }
    if held.len() < TRAILER_BYTES || held[..8] != seen.length.to_le_bytes() {
        return Err(BackupError::Damaged("it ends early"));
    }
    if held != seen.trailer() {
        return Err(BackupError::Damaged("its checksum does not match"));
    }
    Ok((head, seen.length + TRAILER_BYTES as u64))
}

/// Reads the head; `source` then stands at the state. Nothing is checked: call [`verify`] first.
///
/// # Errors
/// It is no backup.
pub fn skip_head(source: &mut impl Read) -> Result<Head, BackupError> {
    read_head(source, &mut Checked::new(io::sink()))
}

fn read_head(source: &mut impl Read, seen: &mut Checked<io::Sink>) -> Result<Head, BackupError> {
    let early = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::Foreign,
        _ => error.into(),
    };
    let mut magic = [0; 8];
    source.read_exact(&mut magic).map_err(early)?;
    if &magic != MAGIC {
        return Err(BackupError::Foreign);
    }
    let mut length = [0; 4];
    source.read_exact(&mut length).map_err(early)?;
    if u32::from_le_bytes(length) > HEAD_BYTES_MAX {
        return Err(BackupError::Damaged("its head is too long"));
    }
    let mut text = vec![0; u32::from_le_bytes(length) as usize];
    source.read_exact(&mut text).map_err(early)?;
    [&magic[..], &length, &text].into_iter().for_each(|bytes| seen.note(bytes));
    let text = String::from_utf8(text).map_err(|e| BackupError::Head(e.to_string()))?;
    toml::from_str(&text).map_err(|e| BackupError::Head(e.message().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            cluster_id: "00".repeat(16),
            epoch: 3,
            created_ns: 1_700_000_000_000_000_000,
            made_by: "meta-1".into(),
            version: "0.1.0".into(),
            last_index: 77,
            last_term: 5,
            chunk_size: 4 << 20,
            replication: 3,
            write_quorum: 2,
            inodes: 10,
            chunks: 20,
            nodes: 4,
            pending: 0,
        }
    }

    fn made(state: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, &head(), |out| out.write_all(state)).expect("memory");
        bytes
    }

    #[test]
    fn a_backup_comes_back_and_its_state_is_found() {
        for state in [&b""[..], b"x", &vec![7; (1 << 20) + 5]] {
            let bytes = made(state);
            let (found, length) = verify(&bytes[..]).expect("whole");
            assert_eq!((found, length), (head(), bytes.len() as u64));
            let mut rest = &bytes[..];
            skip_head(&mut rest).expect("a head");
            assert_eq!(&rest[..state.len()], state);
        }
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let bytes = made(b"the state");
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x20;
            assert!(verify(&bad[..]).is_err(), "byte {at}");
            assert!(verify(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert!(matches!(verify(&b"something else"[..]), Err(BackupError::Foreign)));
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert!(verify(&longer[..]).is_err());
    }
}
