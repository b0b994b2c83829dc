//! The consensus group: one openraft node, its network, its state machine, and the [`Handle`] that the rest of the process uses.
//!
//! ```text
//!  rpc, control ──► Handle ── propose ──► proposer ──► openraft ──► store (log), network ──► peers
//!                     │                                  │  ▲
//!                     ├── read ◄──── lease ── quorum rounds │ service ◄── peers
//!                     └── peek ◄──── state machine ◄─ apply
//! ```
//!
//! Nothing outside this module and `store` names openraft. Nothing in here knows what a command means, but the one that gives
//! a cluster its id.

mod anew;
mod bootstrap;
mod changes;
mod clock;
mod core;
mod data_dir;
mod handle;
mod handover;
mod lease;
mod members;
mod network;
mod node;
mod peers;
mod proposer;
mod service;
mod settings;
pub(crate) mod state_machine;
mod transfer;
pub(crate) mod types;
mod watcher;

#[cfg(test)]
mod tests;

pub use anew::{AnewError, Remains, remains, rescue, restore};
pub use changes::{News, Position};
pub use data_dir::DataDirError;
pub use handle::{Handle, Leadership, Member, MemberStatus, Status};
pub use members::Step;
pub use node::{Node, StartError};
pub use service::Service;
pub use settings::{LOG_BYTES_MAX, Settings};

pub use crate::store::StoreError;
