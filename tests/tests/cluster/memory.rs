//! Memory stays below its budget whatever is copied. `DFS_TEST_BIG_GIB=5` makes the file larger (scripts/soak.sh).

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, files};

const MIB: u64 = 1 << 20;

#[test]
fn a_large_file_stays_within_the_memory_budgets() -> Result<()> {
    let gib: u64 = match std::env::var("DFS_TEST_BIG_GIB") {
        Ok(text) => text.parse()?,
        Err(_) => 1,
    };
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let path = mount.join("large");
    let written = files::write_noise(&path, 42, gib << 30)?;
    limits(&mut cluster, mount.process().peak_memory()?)?;
    mount.remount()?;
    ensure!(files::sha256(&path)? == written, "the bytes that came back are others");
    limits(&mut cluster, mount.process().peak_memory()?)?;
    cluster.finish([mount])
}

fn limits(cluster: &mut Cluster, mount: u64) -> Result<()> {
    eprintln!("mount.dfs: peak {} MiB", mount / MIB);
    ensure!(mount < 512 * MIB, "mount.dfs needed {} MiB", mount / MIB);
    for node in cluster.nodes() {
        let peak = node.peak_memory()?;
        eprintln!("{}: peak {} MiB", node.name(), peak / MIB);
        ensure!(peak < 256 * MIB, "{} needed {} MiB", node.name(), peak / MIB);
    }
    Ok(())
}
