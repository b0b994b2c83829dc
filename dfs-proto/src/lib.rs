//! The wire: generated messages and services, their conversion to domain types, the table between error codes and gRPC
//! statuses, zero-copy chunk streams, and the one place where channels and listeners are made.

pub mod convert;
pub mod machine;
pub mod runtime;
pub mod status;
pub mod stream;
pub mod transport;

/// Generated from `proto/dfs/v1/*.proto`.
#[expect(missing_docs, reason = "generated; the .proto files hold the documentation")]
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    unreachable_pub,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("dfs.v1");
}

/// Version of everything on the wire between dfs processes. Processes whose numbers differ by at most one work together.
pub const WIRE_VERSION: u32 = 2;
