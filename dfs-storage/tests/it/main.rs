//! Tests of the storage node against real sockets and disks: one binary, so that it is linked once.

mod disks;
mod engine;
mod fake_meta;
mod harness;
mod meta;
mod read;
mod scrub;
mod upload;
