//! Identifiers. Each is its own type, so that a chunk id can never be handed over where a file id is meant.
//!
//! Identifiers are never reused: numbers only grow, the rest is 128 random bits or a hash of such bits.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The text is not the hexadecimal form of this identifier.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an identifier of {expected_bytes} bytes in hexadecimal")]
pub struct ParseIdError {
    text: String,
    expected_bytes: usize,
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// The raw bytes, as they travel.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }

            /// Takes the identifier from raw bytes; `None` if the length is wrong.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            /// Whether every byte is zero, which no live identifier is.
            #[must_use]
            pub fn is_zero(&self) -> bool {
                self.0.iter().all(|b| *b == 0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for b in self.0 {
                    write!(f, "{b:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = || ParseIdError { text: text.to_owned(), expected_bytes: $len };
                let digits = text.as_bytes();
                if digits.len() != 2 * $len {
                    return Err(error());
                }
                let mut out = [0; $len];
                for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
                    let pair = std::str::from_utf8(pair).map_err(|_| error())?;
                    if pair.starts_with('+') {
                        return Err(error());
                    }
                    *byte = u8::from_str_radix(pair, 16).map_err(|_| error())?;
                }
                Ok(Self(out))
            }
        }
    };
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

bytes_id!(
    /// A random 128-bit identifier without a more special meaning: of a client, or of a storage node's data directory.
    Uuid, 16
);
bytes_id!(
    /// Identifies one cluster for ever; stamped on every data directory.
    ClusterId, 16
);
bytes_id!(
    /// One version of a file's content, unique for ever. Its upper bytes leave room for a metadata group.
    FileId, 16
);
bytes_id!(
    /// One chunk: SHA-256 of (file id, index, attempt).
    ChunkId, 32
);
number_id!(
    /// Inode number, stable for the life of the file and never reused. The upper 16 bits are the metadata group, 0 today.
    InodeId, u64
);
number_id!(
    /// Number of a storage node, given by metadata at its first registration and never reused.
    NodeId, u32
);
number_id!(
    /// A client session.
    SessionId, u64
);

impl InodeId {
    /// The root directory.
    pub const ROOT: Self = Self(1);
}

impl Uuid {
    /// A fresh random identifier from the operating system's generator.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl ClusterId {
    /// A fresh random identifier.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl FileId {
    /// A fresh random identifier.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl ChunkId {
    /// The id of attempt `attempt` at chunk `index` of version `file_id`. A new attempt is a new chunk: bytes once stored
    /// under an id never change.
    #[must_use]
    pub fn derive(file_id: FileId, index: u64, attempt: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(file_id.0);
        hash.update(index.to_be_bytes());
        hash.update(attempt.to_be_bytes());
        Self(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_round_trips() {
        let id = ChunkId::derive(FileId([7; 16]), 3, 0);
        assert_eq!(id.to_string().parse::<ChunkId>().as_ref(), Ok(&id));
        assert_eq!(ChunkId::from_slice(id.as_bytes()), Some(id));
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in ["", "00", "zz", &"+f".repeat(16), &"é".repeat(16)] {
            assert!(text.parse::<FileId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn chunk_ids_differ_by_each_part() {
        let a = ChunkId::derive(FileId([1; 16]), 0, 0);
        assert_ne!(a, ChunkId::derive(FileId([2; 16]), 0, 0));
        assert_ne!(a, ChunkId::derive(FileId([1; 16]), 1, 0));
        assert_ne!(a, ChunkId::derive(FileId([1; 16]), 0, 1));
    }
}
