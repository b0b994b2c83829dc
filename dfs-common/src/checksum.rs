//! The two checksums of dfs and what each is for.
//!
//! SHA-256 of a whole chunk is computed once, where the bytes enter, and committed in metadata; readers of whole chunks and
//! who verifies whole chunks check it. CRC32C of each 64 KiB block is what every hop and every disk checks: it costs about a tenth.

use crc_fast::{CrcAlgorithm, Digest as CrcDigest};
use sha2::{Digest, Sha256};

/// Bytes covered by one CRC32C. Small enough that a random 4 KiB read costs little, large enough that the table of a 4 MiB
/// chunk is 256 bytes.
pub const BLOCK_BYTES: usize = 64 << 10;

/// SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// CRC32C (Castagnoli, RFC 3720 appendix B.4) of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes)).expect("a 32-bit CRC fits")
}

/// CRC32C of `parts` one after the other.
#[must_use]
pub fn crc32c_of(parts: &[&[u8]]) -> u32 {
    let mut digest = CrcDigest::new(CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|part| digest.update(part));
    u32::try_from(digest.finalize()).expect("a 32-bit CRC fits")
}

/// CRC32C of each 64 KiB block of `bytes`, the last one perhaps shorter.
#[must_use]
pub fn block_crcs(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK_BYTES).map(crc32c).collect()
}

/// How many blocks cover `length` bytes.
#[must_use]
pub fn block_count(length: u64) -> usize {
    usize::try_from(length.div_ceil(BLOCK_BYTES as u64)).expect("chunks are small")
}

/// A block did not match.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("block {block} has CRC32C {found:08x}, expected {expected:08x}")]
pub struct BlockMismatch {
    /// Index of the block, counted from where the verifier started.
    pub block: usize,
    /// What was promised.
    pub expected: u32,
    /// What the bytes give.
    pub found: u32,
}

/// Checks bytes against a table of block CRCs while they arrive in pieces of any size.
#[derive(Debug)]
pub struct BlockVerifier {
    expected: Vec<u32>,
    block: usize,
    filled: usize,
    digest: CrcDigest,
}

impl BlockVerifier {
    /// A verifier for bytes that start at a block border.
    #[must_use]
    pub fn new(expected: Vec<u32>) -> Self {
        Self { expected, block: 0, filled: 0, digest: CrcDigest::new(CrcAlgorithm::Crc32Iscsi) }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// The first block that ended in this piece and did not match, or bytes beyond the table (expected 0).
    pub fn update(&mut self, mut bytes: &[u8]) -> Result<(), BlockMismatch> {
        while !bytes.is_empty() {
            let take = bytes.len().min(BLOCK_BYTES - self.filled);
            if self.filled == 0 && take == BLOCK_BYTES {
                self.check(crc32c(&bytes[..take]))?;
            } else {
                self.digest.update(&bytes[..take]);
                self.filled += take;
                if self.filled == BLOCK_BYTES {
                    self.close_block()?;
                }
            }
            bytes = &bytes[take..];
        }
        Ok(())
    }

    /// Ends the last, shorter block.
    ///
    /// # Errors
    /// A mismatch, or blocks of the table that never came (found 0).
    pub fn finish(mut self) -> Result<(), BlockMismatch> {
        if self.filled > 0 {
            self.close_block()?;
        }
        match self.expected.get(self.block) {
            Some(expected) => Err(BlockMismatch { block: self.block, expected: *expected, found: 0 }),
            None => Ok(()),
        }
    }

    fn close_block(&mut self) -> Result<(), BlockMismatch> {
        let found = u32::try_from(self.digest.finalize()).expect("a 32-bit CRC fits");
        self.digest.reset();
        self.filled = 0;
        self.check(found)
    }

    fn check(&mut self, found: u32) -> Result<(), BlockMismatch> {
        let block = self.block;
        self.block += 1;
        match self.expected.get(block) {
            Some(expected) if *expected == found => Ok(()),
            Some(expected) => Err(BlockMismatch { block, expected: *expected, found }),
            None => Err(BlockMismatch { block, expected: 0, found }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_answers() {
        // RFC 3720 B.4: 32 bytes of zeros; FIPS 180-2: "abc".
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(sha256(b"abc")[..4], [0xba, 0x78, 0x16, 0xbf]);
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_verify(len in 0usize..300_000, cuts in proptest::collection::vec(1usize..100_000, 0..8)) {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let mut verifier = BlockVerifier::new(block_crcs(&bytes));
            let mut rest = &bytes[..];
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                prop_assert!(verifier.update(head).is_ok());
                rest = tail;
            }
            prop_assert!(verifier.update(rest).is_ok());
            prop_assert!(verifier.finish().is_ok());
        }

        #[test]
        fn a_flipped_bit_is_found(len in 1usize..200_000, at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = vec![5u8; len];
            let crcs = block_crcs(&bytes);
            bytes[at.index(len)] ^= 1 << bit;
            let mut verifier = BlockVerifier::new(crcs);
            prop_assert!(verifier.update(&bytes).and_then(|()| verifier.finish()).is_err());
        }
    }

    #[test]
    fn too_few_and_too_many_bytes_are_found() {
        let bytes = vec![1u8; BLOCK_BYTES + 10];
        let mut short = BlockVerifier::new(block_crcs(&bytes));
        short.update(&bytes[..BLOCK_BYTES]).expect("the first block is whole");
        assert!(short.finish().is_err());
        let mut long = BlockVerifier::new(block_crcs(&bytes[..BLOCK_BYTES]));
        assert!(long.update(&bytes).and_then(|()| long.finish()).is_err());
    }
}
