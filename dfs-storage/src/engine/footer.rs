//! The footer of a chunk file.
//!
//! ```text
//! | bytes of the chunk | CRC32C of each 64 KiB block, u32 LE | trailer, 108 bytes |
//!
//! trailer: magic "dfschunk" | version u32 | block bytes u32 | length u32 | reserved u32
//!          | chunk id 32 | file id 16 | SHA-256 32 | CRC32C of table and trailer before this field, u32
//! ```
//!
//! All numbers are little endian. The footer is behind the bytes so that a chunk is written front to back while it arrives
//! and blocks stay aligned to pages. A file whose size does not follow from its footer is corrupt.

use dfs_common::{
    ChunkId, FileId,
    checksum::{self, BLOCK_BYTES},
    layout::CHUNK_SIZE_MAX,
};

use super::ChunkFacts;

/// Bytes of the fixed part.
pub const TRAILER_BYTES: usize = 108;
const MAGIC: [u8; 8] = *b"dfschunk";
const VERSION: u32 = 1;

/// The footer is not one, or does not fit the file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FooterError {
    /// The file is too short for its footer.
    #[error("the file of {0} bytes is truncated")]
    Truncated(u64),
    /// No magic number at its place.
    #[error("the file does not end in a chunk footer")]
    NoMagic,
    /// Written by a newer dfs.
    #[error("footer version {0} is not known")]
    Version(u32),
    /// The footer's own checksum is wrong.
    #[error("the footer's checksum does not match")]
    Checksum,
    /// Fields contradict each other or the file's size.
    #[error("the footer does not fit the file of {0} bytes")]
    Size(u64),
    /// The footer is of another chunk.
    #[error("the footer is of chunk {0}")]
    OtherChunk(ChunkId),
}

/// Bytes of the footer of a chunk of `length` bytes.
#[must_use]
pub fn footer_bytes(length: u32) -> usize {
    4 * checksum::block_count(u64::from(length)) + TRAILER_BYTES
}

/// Bytes of the file of a chunk of `length` bytes.
#[must_use]
pub fn file_bytes(length: u32) -> u64 {
    u64::from(length) + footer_bytes(length) as u64
}

/// The footer of a chunk.
#[must_use]
pub fn encode(facts: &ChunkFacts) -> Vec<u8> {
    let mut out = Vec::with_capacity(footer_bytes(facts.length));
    for crc in &facts.block_crcs {
        out.extend_from_slice(&crc.to_le_bytes());
    }
    out.extend_from_slice(&MAGIC);
    for number in [VERSION, BLOCK_BYTES as u32, facts.length, 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(facts.id.as_bytes());
    out.extend_from_slice(facts.file_id.as_bytes());
    out.extend_from_slice(&facts.sha256);
    let crc = checksum::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// How many bytes the footer has, from the last [`TRAILER_BYTES`] of a file of `file_bytes` bytes.
///
/// # Errors
/// This is no trailer, or one that does not fit the file.
pub fn size_from_trailer(trailer: &[u8], file_size: u64) -> Result<usize, FooterError> {
    if trailer.len() < TRAILER_BYTES {
        return Err(FooterError::Truncated(file_size));
    }
    if trailer[..8] != MAGIC {
        return Err(FooterError::NoMagic);
    }
    let (version, block_bytes, length) = (number(trailer, 8), number(trailer, 12), number(trailer, 16));
    if version != VERSION {
        return Err(FooterError::Version(version));
    }
    if block_bytes as usize != BLOCK_BYTES || length == 0 || length > CHUNK_SIZE_MAX || file_bytes(length) != file_size
    {
        return Err(FooterError::Size(file_size));
    }
    Ok(footer_bytes(length))
}

/// Parses a whole footer, whose size [`size_from_trailer`] gave.
///
/// # Errors
/// Its checksum does not match or it is of another chunk than `id`.
pub fn decode(footer: &[u8], id: ChunkId, file_size: u64) -> Result<ChunkFacts, FooterError> {
    let table_bytes = footer.len().checked_sub(TRAILER_BYTES).ok_or(FooterError::Truncated(file_size))?;
    let (table, trailer) = footer.split_at(table_bytes);
    if size_from_trailer(trailer, file_size)? != footer.len() {
        return Err(FooterError::Size(file_size));
    }
    if checksum::crc32c(&footer[..footer.len() - 4]) != number(trailer, TRAILER_BYTES - 4) {
        return Err(FooterError::Checksum);
    }
    let found = ChunkId(trailer[24..56].try_into().expect("32 bytes"));
    if found != id {
        return Err(FooterError::OtherChunk(found));
    }
    Ok(ChunkFacts {
        id,
        file_id: FileId(trailer[56..72].try_into().expect("16 bytes")),
        length: number(trailer, 16),
        sha256: trailer[72..104].try_into().expect("32 bytes"),
        block_crcs: table.chunks_exact(4).map(|crc| number(crc, 0)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts(length: u32) -> ChunkFacts {
        ChunkFacts {
            id: ChunkId([3; 32]),
            file_id: FileId([4; 16]),
            length,
            sha256: [5; 32],
            block_crcs: (0..checksum::block_count(u64::from(length)) as u32).collect(),
        }
    }

    proptest! {
        #[test]
        fn round_trips_and_every_flipped_bit_is_found(length in 1u32..1 << 20, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let facts = facts(length);
            let mut footer = encode(&facts);
            prop_assert_eq!(footer.len(), footer_bytes(length));
            let size = file_bytes(length);
            prop_assert_eq!(decode(&footer, facts.id, size), Ok(facts.clone()));
            let at = at.index(footer.len());
            footer[at] ^= 1 << bit;
            prop_assert!(decode(&footer, facts.id, size).is_err());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in any::<u64>()) {
            prop_assert!(decode(&bytes, ChunkId([0; 32]), size).is_err());
        }
    }

    #[test]
    fn another_chunk_and_another_size_are_refused() {
        let facts = facts(100);
        let footer = encode(&facts);
        assert_eq!(decode(&footer, ChunkId([9; 32]), file_bytes(100)), Err(FooterError::OtherChunk(facts.id)));
        assert!(matches!(decode(&footer, facts.id, 7), Err(FooterError::Size(7))));
    }
}
