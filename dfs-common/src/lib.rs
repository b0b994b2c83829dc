//! Domain types that every dfs process shares: identifiers, attributes, layouts, checksums, error codes, backoff,
//! configuration units, crash-safe file helpers, crash points and what a process leaves to its successor.
//!
//! This crate must stay free of runtimes, RPC libraries and databases: it is the vocabulary, not the machinery.

pub mod attr;
pub mod backoff;
pub mod backup;
pub mod checksum;
pub mod config;
pub mod crash;
pub mod disk;
pub mod durable;
pub mod error;
pub mod id;
pub mod layout;
pub mod ledger;
pub mod lock;
pub mod name;
pub mod node;
pub mod ports;
pub mod units;

pub use attr::{Attr, FileKind, SetAttr, SetTime};
pub use error::ErrorCode;
pub use id::{ChunkId, ClusterId, FileId, InodeId, NodeId, SessionId, Uuid};
pub use layout::{ChunkRef, Layout};
