//! What the files of the journal hold.
//!
//! A file begins with [`MAGIC`], its number (u64) and the CRC32C of both (u32). A record is its kind (u8), an index (u64), the
//! length of its value (u32), the CRC32C of the number of the file, these and the value (u32), and the value. All is little endian. Behind
//! the last record are zeros, which is no kind, or nothing.

use dfs_common::checksum::crc32c_of;

/// First bytes of each file; the last one is the version of the format.
const MAGIC: [u8; 8] = *b"dfsraft\x01";
/// Bytes in front of the first record.
pub(super) const FILE_HEAD_BYTES: usize = 20;
/// Bytes in front of a value.
pub(super) const HEAD_BYTES: usize = 17;

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// The entry with this index.
    Entry = 1,
    /// Entries from this index on are void.
    Truncated = 2,
    /// The vote.
    Vote = 3,
    /// Up to where entries are committed.
    Committed = 4,
    /// Up to this index entries are not needed.
    Purged = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::Entry, Self::Truncated, Self::Vote, Self::Committed, Self::Purged]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A record in the bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    pub(super) index: u64,
    /// Where the value begins in the file.
    pub(super) at: usize,
    pub(super) value: &'a [u8],
}

/// The first bytes of the file `number`.
pub(super) fn file_head(number: u64) -> [u8; FILE_HEAD_BYTES] {
    let mut head = [0; FILE_HEAD_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..16].copy_from_slice(&number.to_le_bytes());
    let sum = crc32c_of(&[&head[..16]]);
    head[16..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// Appends a record of the file `number` to `bytes`. Values are shorter than 4 GiB: they came through messages.
pub(super) fn push(bytes: &mut Vec<u8>, number: u64, kind: Kind, index: u64, value: &[u8]) {
    let length = u32::try_from(value.len()).expect("a value is shorter than 4 GiB");
    bytes.extend_from_slice(&head(number, kind, index, length, value));
    bytes.extend_from_slice(value);
}

/// What stands in front of a value.
pub(super) fn head(number: u64, kind: Kind, index: u64, length: u32, value: &[u8]) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[0] = kind as u8;
    head[1..9].copy_from_slice(&index.to_le_bytes());
    head[9..13].copy_from_slice(&length.to_le_bytes());
    let sum = crc32c_of(&[&number.to_le_bytes(), &head[..13], value]);
    head[13..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// The records of a file, up to the first that is none.
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    number: u64,
    /// Behind the last record that was given out.
    pub(super) end: usize,
}

impl<'a> Records<'a> {
    /// `None`: these are not the bytes of the file `number`.
    pub(super) fn of(bytes: &'a [u8], number: u64) -> Option<Self> {
        (bytes.get(..FILE_HEAD_BYTES)? == file_head(number)).then_some(Self { bytes, number, end: FILE_HEAD_BYTES })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        let found: &[u8; HEAD_BYTES] = self.bytes.get(self.end..)?.first_chunk()?;
        let kind = Kind::of(found[0])?;
        let index = u64::from_le_bytes(*found[1..].first_chunk()?);
        let length = u32::from_le_bytes(*found[9..].first_chunk()?);
        let at = self.end + HEAD_BYTES;
        let value = self.bytes.get(at..at.checked_add(usize::try_from(length).ok()?)?)?;
        if head(self.number, kind, index, length, value) != *found {
            return None;
        }
        self.end = at + value.len();
        Some(Record { kind, index, at, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_bit_and_every_cut_ends_the_records_there() {
        let mut bytes = file_head(7).to_vec();
        let mut ends = vec![bytes.len()];
        for (kind, index, value) in
            [(Kind::Entry, 1, &b"one"[..]), (Kind::Truncated, 1, b""), (Kind::Vote, 0, b"vote"), (Kind::Entry, 9, b"")]
        {
            push(&mut bytes, 7, kind, index, value);
            ends.push(bytes.len());
        }
        let count = |bytes: &[u8]| Records::of(bytes, 7).map(Iterator::count);
        assert_eq!(count(&bytes), Some(4));
        assert!(Records::of(&bytes, 8).is_none(), "another file's");
        for at in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= at).count().checked_sub(1);
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert_eq!(count(&bad), whole, "bit {bit} of byte {at}");
            }
            assert_eq!(count(&bytes[..at]), whole, "cut at {at}");
        }
        bytes.extend_from_slice(&[0; 100]);
        assert_eq!(count(&bytes), Some(4), "zeros are no record");
    }

    #[test]
    fn a_record_of_another_file_is_none() {
        let mut bytes = file_head(7).to_vec();
        push(&mut bytes, 6, Kind::Entry, 1, b"left over");
        assert_eq!(Records::of(&bytes, 7).map(Iterator::count), Some(0));
    }
}
