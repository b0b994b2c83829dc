//! Tests of the storage node against real sockets and disks: one binary, so that it is linked once.

mod engine;
mod fake_meta;
mod harness;
mod meta;
mod read;
mod upload;
