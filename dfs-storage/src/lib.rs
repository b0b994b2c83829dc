//! The storage node of dfs: keeps chunks on disk, takes uploads and forwards them to the other replicas while they arrive,
//! serves reads, and tells metadata by heartbeats what it holds.
//!
//! ```text
//!            rpc ──────► ingest ──► engine (on the disk pool)
//!             │             └─────► replicate ──► other nodes
//!   metadata ◄┤ outbox, heartbeat ◄── changes
//!        └────► worker (deletes, repairs, checks), scrub ──► disks, engine, replicate
//! ```

pub mod budget;
pub mod buffers;
pub mod changes;
pub mod config;
pub mod data_dir;
pub mod data_dirs;
pub mod disks;
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
pub mod scrub;
pub mod server;
pub mod stamps;
pub mod worker;
pub mod writes;
