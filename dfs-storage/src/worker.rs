//! Work that metadata asks for with its heartbeat answers. Queues are bounded; what does not fit is asked for again.

pub mod confirm;
pub mod deletes;
pub mod repair;
