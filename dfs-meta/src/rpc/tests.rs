//! The services over loopback connections, against a real consensus group of one node and storage nodes played by the test.

mod cluster;
mod locks;
mod nodes;
mod sessions;
