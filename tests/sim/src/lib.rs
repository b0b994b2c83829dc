//! Deterministic simulation of a whole cluster: the real metadata nodes, storage nodes and clients in one thread, in virtual
//! time, on a simulated network and on disks that lose what was not synced. Everything that happens follows from one number.
//!
//! See `docs/testing.md` for what is simulated and what is not.

mod cluster;
mod disk;
mod faults;
mod net;
mod run;
mod shim;
mod workload;
mod world;

pub use run::{Defect, Report, Settings, directory, repeatable, run};
