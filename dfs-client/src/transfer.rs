//! Whole files from and to the local disk, and copies inside the cluster.
//!
//! An upload keeps a manifest beside it: which chunks are stored, and where. After a crash the pending version is gone (it
//! ends with its session), but the chunks are still there for a while; a resumed upload makes a new pending version and
//! commits those that the storage nodes still have.

mod clone;
mod download;
mod manifest;
mod upload;

pub use clone::{Cloned, clone_tree};
pub use download::download;
pub use manifest::path as manifest_path;
pub use upload::{Uploaded, upload};

use std::{io, path::Path};

use dfs_common::ErrorCode;

use crate::Error;

/// A failed local operation.
fn local(what: &str, path: &Path, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        io::ErrorKind::PermissionDenied => ErrorCode::PermissionDenied,
        io::ErrorKind::AlreadyExists => ErrorCode::AlreadyExists,
        io::ErrorKind::IsADirectory => ErrorCode::IsDirectory,
        io::ErrorKind::NotADirectory => ErrorCode::NotDirectory,
        io::ErrorKind::StorageFull => ErrorCode::NoSpace,
        io::ErrorKind::ReadOnlyFilesystem => ErrorCode::ReadOnly,
        _ => ErrorCode::Io,
    };
    Error::local(code, format!("{what} {}: {error}", path.display()))
}

/// Runs disk work off the runtime threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match dfs_proto::machine::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::new(ErrorCode::Internal, format!("a disk task failed: {error}"))),
    }
}
