//! The storage node of dfs: keeps chunks on disk, takes uploads and forwards them to the other replicas while they arrive,
//! serves reads, and tells metadata by heartbeats what it holds.
//!
//! ```text
//!            rpc ──────► ingest ──► engine (on the disk pool)
//!             │             └─────► replicate ──► other nodes
//!   metadata ◄┤ outbox, heartbeat ◄── changes
//!        └────► worker (deletes, repairs) ──► engine, replicate
//! ```

pub mod budget;
pub mod buffers;
pub mod changes;
pub mod config;
pub mod data_dir;
pub mod engine;
pub mod heartbeat;
pub mod ingest;
pub mod meta_client;
pub mod node;
pub mod outbox;
pub mod peers;
pub mod pool;
pub mod replicate;
pub mod rpc;
pub mod server;
pub mod worker;
pub mod writes;
