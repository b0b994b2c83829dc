//! Records on disk: one format byte, a CRC32C, then postcard.
//!
//! The same in the log and in files of their own, so each record tells its format and has a checksum, wherever it is.

use dfs_common::checksum::crc32c;
use serde::{Serialize, de::DeserializeOwned};

/// The format. The first one had publications without attributes.
const FORMAT: u8 = 2;
/// Bytes in front of the payload.
const HEADER_BYTES: usize = 5;

/// Why a record does not decode.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("it is shorter than its header")]
    Short,
    #[error("its format is {0}, known is {FORMAT}; it was written by another version of dfs-meta")]
    Format(u8),
    #[error("its checksum does not match")]
    Checksum,
    #[error("it does not parse: {0}")]
    Parse(#[from] postcard::Error),
}

/// Encodes a record.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = postcard::to_extend(value, vec![0; HEADER_BYTES])?;
    let crc = crc32c(&bytes[HEADER_BYTES..]);
    bytes[0] = FORMAT;
    bytes[1..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// Decodes a record.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    Ok(postcard::from_bytes(payload(bytes)?)?)
}

/// Decodes what stands first in a record, after checking the whole.
pub(crate) fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    Ok(postcard::take_from_bytes(payload(bytes)?)?.0)
}

fn payload(bytes: &[u8]) -> Result<&[u8], CodecError> {
    let (header, payload) = bytes.split_at_checked(HEADER_BYTES).ok_or(CodecError::Short)?;
    if header[0] != FORMAT {
        return Err(CodecError::Format(header[0]));
    }
    if header[1..] != crc32c(payload).to_le_bytes() {
        return Err(CodecError::Checksum);
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_is_found() {
        let bytes = encode(&(7u64, "text")).unwrap();
        assert_eq!(decode::<(u64, String)>(&bytes).unwrap(), (7, "text".into()));
        assert_eq!(decode_prefix::<u64>(&bytes).unwrap(), 7);
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(decode::<(u64, String)>(&bad).is_err(), "byte {at}");
        }
        assert!(matches!(decode::<u64>(&[1, 2]), Err(CodecError::Short)));
    }
}
