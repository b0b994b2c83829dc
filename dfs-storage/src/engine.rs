//! Chunks on a local disk: what the rest of the node knows about them.
//!
//! Everything here is synchronous and may block for as long as the disk does; callers run it on the
//! [`DiskPool`](crate::pool::DiskPool), never on a runtime thread. The one implementation is [`disk::DiskEngine`], one file a
//! chunk; small chunks packed into segment files could be a second one behind the same traits.
//!
//! Invariants: bytes stored under an id never change; a chunk is visible only when it is complete and durable; what cannot be
//! proven whole by its footer is reported as corrupt, never handed out.

mod direct;
pub mod disk;
pub mod footer;
mod listing;
pub mod quarantine;
mod shard;
mod space;
mod writer;

use std::{fmt, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use dfs_common::{
    ChunkId, ErrorCode, FileId,
    checksum::{self, BLOCK_BYTES, BlockMismatch},
};

pub use space::Usage;

/// Everything that is known of a chunk besides its bytes; also what its footer on disk says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkFacts {
    /// Its id.
    pub id: ChunkId,
    /// The file version it was written for.
    pub file_id: FileId,
    /// Bytes, 1 to 64 MiB.
    pub length: u32,
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
    /// CRC32C of each 64 KiB block.
    pub block_crcs: Vec<u32>,
}

impl ChunkFacts {
    /// Checks `bytes`, which start at `offset` (a multiple of 64 KiB) and end at a block border or the chunk's end.
    ///
    /// # Errors
    /// The first block that does not match, counted from the start of the chunk.
    pub fn check_blocks(&self, offset: u32, bytes: &[u8]) -> Result<(), BlockMismatch> {
        let first = offset as usize / BLOCK_BYTES;
        for (block, part) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
            let (found, expected) = (checksum::crc32c(part), self.block_crcs.get(block).copied().unwrap_or(0));
            if found != expected {
                return Err(BlockMismatch { block, expected, found });
            }
        }
        Ok(())
    }
}

/// A chunk as an inventory lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Its id.
    pub id: ChunkId,
    /// The file version in its footer.
    pub file_id: FileId,
    /// Bytes.
    pub length: u32,
}

/// One page of the inventory, in id order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Chunks whose footers are good.
    pub chunks: Vec<Held>,
    /// Chunks in the same range whose footers are not.
    pub damaged: Vec<ChunkId>,
    /// Whether nothing follows.
    pub last: bool,
}

/// Damaged chunks named in one page; the rest is named when these are gone.
const DAMAGED_MAX: usize = 1024;

impl Page {
    /// Names a damaged chunk. They do not count against the limit of a page, so that whoever pages by the last good chunk
    /// always gets on.
    pub(crate) fn damaged(&mut self, id: ChunkId) {
        if self.damaged.len() < DAMAGED_MAX {
            self.damaged.push(id);
        }
    }
}

/// What a copy turned out to be when it was read in full.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judged {
    /// Every block and the SHA-256 match.
    Whole(ChunkFacts),
    /// It is not here.
    Missing,
    /// It was bad and is in quarantine now.
    SetAside {
        /// What was wrong.
        reason: String,
    },
}

/// How a finished write ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finished {
    /// The chunk is new on this disk.
    New,
    /// The identical chunk was here before.
    AlreadyThere,
}

/// Why the engine refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The chunk is not on this disk.
    #[error("chunk {0} is not here")]
    Missing(ChunkId),
    /// What is on the disk is not what was written.
    #[error("chunk {id} on disk is corrupt: {reason}")]
    Corrupt {
        /// The chunk.
        id: ChunkId,
        /// What does not fit.
        reason: String,
    },
    /// Bytes that arrived do not match the checksums that came with them.
    #[error("chunk {id} arrived damaged: {mismatch}")]
    Damaged {
        /// The chunk.
        id: ChunkId,
        /// The first bad block.
        mismatch: BlockMismatch,
    },
    /// Fewer or more bytes than announced.
    #[error("chunk {id} has {found} bytes, announced were {expected}")]
    Length {
        /// The chunk.
        id: ChunkId,
        /// Bytes announced.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// Another content is stored under this id.
    #[error("chunk {0} is stored with a different content")]
    Conflict(ChunkId),
    /// The disk, or the capacity given to this node, is full.
    #[error("no space for {wanted} bytes in {path}: {available} available")]
    NoSpace {
        /// The data directory.
        path: PathBuf,
        /// Bytes wanted.
        wanted: u64,
        /// Bytes that may still be used.
        available: u64,
    },
    /// The disk was taken out.
    #[error("the disk {path} has failed: {reason}")]
    DiskFailed {
        /// The data directory.
        path: PathBuf,
        /// Why it was taken out.
        reason: String,
    },
    /// All of them were.
    #[error("every disk of this node has failed")]
    NoDisk,
    /// The disk failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl EngineError {
    /// An I/O error, told apart from a full disk.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoSpace { path: path.into(), wanted: 0, available: 0 },
            _ => Self::Io { action, path: path.into(), source },
        }
    }

    /// The code that crosses the process border.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Missing(_) => ErrorCode::ChunkMissing,
            Self::Corrupt { .. } | Self::Damaged { .. } => ErrorCode::Corrupt,
            Self::Length { .. } => ErrorCode::InvalidArgument,
            Self::Conflict(_) => ErrorCode::AlreadyExists,
            Self::NoSpace { .. } => ErrorCode::NoSpace,
            Self::DiskFailed { .. } | Self::NoDisk => ErrorCode::Unavailable,
            Self::Io { .. } => ErrorCode::Io,
        }
    }
}

/// A store of chunks.
pub trait ChunkEngine: Send + Sync + fmt::Debug + 'static {
    /// Starts to write a chunk. Space is reserved before the first byte.
    ///
    /// # Errors
    /// [`EngineError::NoSpace`] if it would not fit, or the disk's error.
    fn begin(&self, facts: ChunkFacts) -> Result<Box<dyn ChunkWriter>, EngineError>;

    /// Opens a chunk for reading; its footer is checked, its bytes are not.
    ///
    /// # Errors
    /// It is missing, its footer is bad, or the disk failed.
    fn open(&self, id: ChunkId) -> Result<Arc<dyn StoredChunk>, EngineError>;

    /// Whether a chunk of this id is here, good or bad.
    ///
    /// # Errors
    /// The disk failed.
    fn contains(&self, id: ChunkId) -> Result<bool, EngineError>;

    /// Reads the whole chunk from the disk, not from the page cache, and checks every block and the SHA-256.
    ///
    /// # Errors
    /// It is missing, corrupt, or the disk failed.
    fn verify(&self, id: ChunkId) -> Result<ChunkFacts, EngineError>;

    /// Reads the whole chunk as [`ChunkEngine::verify`] does, and sets it aside if it is bad. One that is bad is read twice before
    /// it is believed. One that cannot be read is left where it is, unless `give_up`: then it is bad too.
    ///
    /// # Errors
    /// The disk failed.
    fn judge(&self, id: ChunkId, give_up: bool) -> Result<Judged, EngineError>;

    /// Removes a chunk; `false` if it was not here. The removal may be undone by a crash of the machine, so the caller
    /// repeats what was not confirmed.
    ///
    /// # Errors
    /// The disk failed.
    fn delete(&self, id: ChunkId) -> Result<bool, EngineError>;

    /// The chunks with ids above `after`, at most `limit` of them, in id order. Memory is bounded by `limit` and one
    /// directory.
    ///
    /// # Errors
    /// The disk failed.
    fn list(&self, after: Option<ChunkId>, limit: usize) -> Result<Page, EngineError>;

    /// Space and chunks now.
    ///
    /// # Errors
    /// The file system cannot be asked.
    fn usage(&self) -> Result<Usage, EngineError>;
}

/// A chunk being written. Dropping it removes what was written.
pub trait ChunkWriter: Send {
    /// Writes the next bytes; every block is checked as it completes.
    ///
    /// # Errors
    /// A block does not match, there are more bytes than announced, or the disk failed; the writer is of no use then.
    fn append(&mut self, pieces: &[Bytes]) -> Result<(), EngineError>;

    /// Makes the chunk durable and visible.
    ///
    /// # Errors
    /// Bytes are missing, another content has this id, or the disk failed; nothing is visible then.
    fn finish(self: Box<Self>) -> Result<Finished, EngineError>;
}

/// A chunk open for reading.
pub trait StoredChunk: Send + Sync {
    /// What its footer says.
    fn facts(&self) -> &ChunkFacts;

    /// Fills `buffer` with the bytes from `offset`.
    ///
    /// # Errors
    /// The file ends early ([`EngineError::Corrupt`]) or the disk failed.
    fn read_at(&self, buffer: &mut [u8], offset: u32) -> Result<(), EngineError>;
}
