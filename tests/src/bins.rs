//! Where the programs under test are: next to the test executable, in the target directory of the same profile.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// Path of the program `name` (`dfs-meta`, `dfs-storage`, `mount.dfs`, `dfsctl`).
///
/// # Errors
/// It has not been built.
pub fn path(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("own path")?;
    // target/release/deps/cluster-1234 or target/release/dfs-bench
    let dir = here.ancestors().find(|dir| dir.join("dfsctl").is_file()).unwrap_or(&here).to_path_buf();
    // Cargo takes no dot in the name of a target, so the mount program is built as mount-dfs.
    let file = if name == "mount.dfs" { "mount-dfs" } else { name };
    let path = dir.join(file);
    ensure!(path.is_file(), "{name} is not built: run `cargo build --release --workspace --bins` first");
    Ok(path)
}

/// Path of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
