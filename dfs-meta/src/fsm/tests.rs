//! Tests of the state machine: rules by name in the files beside, everything at once against a model in `model`.

mod admin;
mod chunks;
mod deletion;
mod events;
mod files;
mod lab;
mod model;
mod namespace;
mod nodes;
mod properties;
mod sessions;
mod snapshots;
mod trash;
