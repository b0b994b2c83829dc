//! The replicated state machine of dfs: state x command -> outcome.
//!
//! Pure and in memory. No clock, no randomness, no I/O, no iteration over hash maps: every metadata node that applies the
//! same log holds the same state, byte for byte. The leader's clock and the identifiers that clients and the leader draw
//! come in with the commands.
//!
//! ```text
//!   dentry ──► inode ──► version ──► chunk ──► nodes          reservation ──► unpublished inode ◄── pending version
//!                         ▲   ▲                                                                          │ session
//!                     trash   garbage ──released──► chunk without references ──► doomed on its nodes
//! ```
//!
//! - [`command`]: what goes in and what comes out.
//! - [`record`]: what is stored.
//! - [`state`]: the state and [`State::apply`](state::State::apply).
//! - `read`: what the RPC layer and the planners ask.
//! - `session`, `namespace`, `name`, `rename`, `attr`, `version`, `trash`, `chunk`, `holders`, `node`, `admin`, `rebalance`: the rules, one room each.
//! - [`event`]: what happened, for the administrator.
//! - `restore`: a cluster that goes on from an older state.
//! - [`snapshot`]: the state as a stream of records.
//! - [`check`]: invariants, recounted from scratch.

pub mod check;
pub mod command;
pub mod event;
pub mod read;
pub mod record;
pub mod snapshot;
pub mod state;
pub mod trash;

mod admin;
mod attr;
mod change;
mod chunk;
mod holders;
mod name;
mod namespace;
mod node;
mod rebalance;
mod rename;
mod restore;
pub mod risk;
mod session;
mod version;

#[cfg(test)]
mod tests;

pub use admin::{Action, Impact};
pub use change::Change;
pub use command::{Batch, Command, CommittedChunk, Op, Outcome, Receipt, Refusal, RepairLimits, Reply, Settings};
pub use event::{Event, Fact, Severity};
pub use holders::Holders;
pub use name::Name;
pub use read::{DirEntry, DirPage, FileLayout};
pub use rebalance::{Rebalance, RebalanceChange};
pub use record::{Admin, Chunk, Counters, DoomedOn, Node, Pending, Reason, Session, Trashed};
pub use restore::Restored;
pub use risk::{Figure, Risk};
pub use snapshot::SnapshotError;
pub use state::State;
