//! Where the bytes of a file version are.

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::id::{ChunkId, FileId, NodeId};

/// Default chunk size in bytes: 4 MiB amortizes one metadata entry and one RPC over about 2 ms of disk time.
pub const CHUNK_SIZE_DEFAULT: u32 = 4 << 20;
/// Smallest chunk size that can be configured, bytes.
pub const CHUNK_SIZE_MIN: u32 = 64 << 10;
/// Largest chunk size that can be configured, bytes.
pub const CHUNK_SIZE_MAX: u32 = 64 << 20;

/// Node numbers of a chunk's replicas; three without an allocation.
pub type Replicas = SmallVec<[NodeId; 3]>;

/// One chunk of a version.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkRef {
    /// Identifier.
    pub id: ChunkId,
    /// Bytes in the chunk; 0 only in a hole.
    pub length: u32,
    /// SHA-256 of the chunk's bytes.
    pub sha256: [u8; 32],
    /// Nodes that hold it.
    pub replicas: Replicas,
}

impl ChunkRef {
    /// A slot of a sparse file that was never written: it is stored nowhere and reads as zeros.
    pub const HOLE: Self = Self { id: ChunkId([0; 32]), length: 0, sha256: [0; 32], replicas: SmallVec::new_const() };

    /// Whether this is a hole.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.id.is_zero()
    }
}

/// Immutable layout of a version. One variant today; erasure-coded versions would be a second one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Layout {
    /// Whole chunks on several nodes.
    Replicated {
        /// The version.
        file_id: FileId,
        /// Size of the file in bytes.
        size: u64,
        /// Chunk `i` holds the bytes from `i * chunk_size`.
        chunk_size: u32,
        /// The chunks in order, one a slot. What a chunk (or hole) does not cover of its slot reads as zeros.
        chunks: Vec<ChunkRef>,
    },
}

impl Layout {
    /// Size of the file in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Replicated { size, .. } => *size,
        }
    }

    /// The version.
    #[must_use]
    pub fn file_id(&self) -> FileId {
        match self {
            Self::Replicated { file_id, .. } => *file_id,
        }
    }
}

/// Most chunks of a file: 1 TiB with chunks of 4 MiB. A publication names every chunk, so this bounds its size (about 20 MB).
pub const CHUNKS_MAX: u64 = 1 << 18;

/// How many chunks a file of `size` bytes has.
#[must_use]
pub fn chunk_count(size: u64, chunk_size: u32) -> u64 {
    size.div_ceil(u64::from(chunk_size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_at_the_edges() {
        let c = CHUNK_SIZE_DEFAULT;
        assert_eq!(chunk_count(0, c), 0);
        assert_eq!(chunk_count(1, c), 1);
        assert_eq!(chunk_count(u64::from(c), c), 1);
        assert_eq!(chunk_count(u64::from(c) + 1, c), 2);
    }
}
