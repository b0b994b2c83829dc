//! Client library of dfs: everything between a program's request and the cluster.
//!
//! A [`Dfs`] is one connection to a cluster with one session. It finds the metadata leader, retries until the deadline of
//! each operation, gives every mutation its effect once, writes file versions through [`Writer`] and reads them through
//! [`Reader`], all under one memory budget. It knows nothing of FUSE and of command lines (but [`config::ClientArgs`]
//! describes its options, so that every program spells them alike).
//!
//! Rooms: `cluster` (leader, retry, session), `meta` (namespace), `chunk` (bytes to and from storage nodes), `write`,
//! `read`, `watch` (what others change), `estate` (what a crashed process leaves to its successor), `budget`, `transfer` (whole files from and to the local disk), `fsck` (what is
//! really on the disks), `mounts` (what mounts of this machine tell about themselves).

pub mod config;
pub mod fsck;
pub mod mounts;
pub mod transfer;

mod budget;
mod chunk;
mod cluster;
mod dfs;
mod error;
mod estate;
mod files;
mod hash;
mod locks;
mod meta;
mod nodes;
mod options;
mod placement;
mod read;
mod types;
mod watch;
mod write;

pub use cluster::Pin;
pub use dfs::Dfs;
pub use error::{Attempt, Error};
pub use estate::{CLIENT_KINDS, Estate};
pub use locks::Wish;
pub use options::{Options, Settings};
pub use read::{Reader, Seek};
pub use types::{Created, DirEntry, DirPage, FilePage, ListedFile, NewFile, NewNode, RenameFlags, StatFs};
pub use watch::{News, Told};
pub use write::Writer;
