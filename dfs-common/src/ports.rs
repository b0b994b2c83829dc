//! The port table. Code, scripts and documents take default ports from here and nowhere else.

/// Metadata node: clients, storage nodes and other metadata nodes.
pub const META: u16 = 4001;
/// Storage node: clients and other storage nodes.
pub const STORAGE: u16 = 4000;
