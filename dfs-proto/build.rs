//! Compiles the `.proto` files with protox, so that no protoc is needed.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("../proto");
    println!("cargo:rerun-if-changed=../proto");
    let files =
        ["common", "metadata", "storage", "raft", "admin"].map(|name| root.join(format!("dfs/v1/{name}.proto")));
    let descriptors = protox::compile(files, [root])?;
    tonic_prost_build::configure().bytes(".").emit_rerun_if_changed(false).compile_fds(descriptors)?;
    Ok(())
}
