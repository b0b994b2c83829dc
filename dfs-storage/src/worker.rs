//! Work that metadata asks for with its heartbeat answers, or that the node finds to do. Queues are bounded; what does not fit is
//! asked for again.

pub mod checks;
pub mod deletes;
pub mod disks;
pub mod quarantine;
pub mod repair;
