//! Tests of a real cluster through a real mount, one module per theme. Each test starts a cluster of its own.
//!
//! `docs/semantics.md` names these tests sentence by sentence; tests/documents.rs holds it to that.

mod attributes;
mod basic_io;
mod big_directory;
mod chaos;
mod clones;
mod coherence;
mod cp_tree;
mod crash_points;
mod dev;
mod dfsctl;
mod disks;
mod drain;
mod failures;
mod full;
mod handles;
mod hangs;
mod inotify;
mod links;
mod locks;
mod members;
mod memory;
mod model;
mod mounts;
mod names;
mod observe;
mod operations;
mod read_only;
mod refuse;
mod rename;
mod repair;
mod rescue;
mod restart;
mod resume;
mod scrub;
mod takeover;
mod tools;
mod trash;
mod two_mounts;
mod xattrs;
