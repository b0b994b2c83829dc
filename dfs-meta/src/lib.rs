//! The metadata node: a replicated, in-memory description of the file tree, the chunks and the storage nodes.
//!
//! - [`fsm`] is the pure state machine: commands in, outcomes out.
//! - [`raft`] has commands agreed on, applied and answered, and gives reads under the leader's lease.
//! - `store` keeps the log and the snapshots on disk.
//! - [`control`] is what the leader does on its own: failure detection, placement, repair, garbage.
//! - [`offline`] restores and rescues a data directory.
//! - [`rpc`] is the edge towards clients and storage nodes.
//! - [`server`] puts it together, [`config`] says with which settings.

pub mod config;
pub mod control;
pub mod fsm;
pub mod offline;
pub mod raft;
pub mod rpc;
pub mod server;
mod store;
