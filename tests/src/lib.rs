//! A cluster of real processes for tests: metadata and storage nodes on loopback addresses or on machines of their own, real
//! FUSE mounts, kills; and the checker of histories.
//!
//! Nothing here knows the insides of dfs: the harness starts the programs by their command lines and looks at them from
//! outside, as an administrator would. Three rules hold for every test:
//!
//! - waiting is for a condition with a deadline ([`wait::until`]), never for a while;
//! - [`Cluster::finish`] ends the cluster by SIGTERM, demands exit code 0 of every process, and fails on any line of WARN or
//!   ERROR in a log that the test did not announce, and on any panic;
//! - whatever happens, dropping the cluster leaves no process and no mount behind.

pub mod background;
pub mod bins;
pub mod chaos;
pub mod cluster;
pub mod crash;
pub mod disk;
pub mod files;
pub mod history;
pub mod logs;
pub mod mount;
pub mod network;
pub mod process;
pub mod program;
pub mod rng;
pub mod tools;
pub mod wait;

pub use background::Background;
pub use cluster::{Builder, Cluster, Output};
pub use mount::Mount;
