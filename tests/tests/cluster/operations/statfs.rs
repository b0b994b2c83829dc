//! statvfs(3), df(1).

use std::time::Duration;

use anyhow::{Result, ensure};
use dfs_tests::{
    files::{self, CHUNK},
    wait,
};
use rustix::fs::statvfs;

use super::{file, mounted};

#[test]
fn figures_are_what_a_user_can_store() -> Result<()> {
    let mut cluster = dfs_tests::Cluster::builder().describe()?;
    for node in ["storage-1", "storage-2", "storage-3"] {
        cluster.small_disk(node, 200 << 20)?;
    }
    cluster.start_all()?;
    cluster.wait_alive(3)?;
    let mount = cluster.mount()?;
    let told = statvfs(mount.path())?;
    ensure!(told.f_namemax == 255, "{}", told.f_namemax);
    let blocks = (told.f_blocks, told.f_bfree, told.f_bavail);
    ensure!(blocks.0 >= blocks.1 && blocks.1 >= blocks.2 && blocks.2 > 0, "{blocks:?}");
    ensure!(told.f_files > 0 && told.f_ffree > 0, "{} and {}", told.f_files, told.f_ffree);
    // Three copies on three disks of 200 MiB: not 600.
    let bytes = |blocks: u64| blocks * told.f_frsize;
    ensure!(bytes(told.f_blocks) <= 200 << 20 && bytes(told.f_blocks) > 100 << 20, "{blocks:?}");
    // What is stored is missing afterwards, once, although it lies there three times.
    file(&mount.join("f"), &files::noise(1, 10 * CHUNK))?;
    let used = || statvfs(mount.path()).map_or(0, |now| bytes(told.f_bfree.saturating_sub(now.f_bfree)));
    wait::until("df tells of it", Duration::from_secs(30), || used() >= 39 << 20)?;
    ensure!(used() <= 50 << 20, "{} bytes", used());
    // The same of any file below.
    ensure!(statvfs(mount.join("f"))?.f_blocks == statvfs(mount.path())?.f_blocks);
    cluster.finish([mount])
}

#[test]
fn it_has_a_type_that_programs_know() -> Result<()> {
    let (cluster, mount) = mounted()?;
    // FUSE_SUPER_MAGIC.
    ensure!(rustix::fs::statfs(mount.path())?.f_type == 0x6573_5546);
    ensure!(files::sh("df -T \"$1\"", &[mount.path()])?.contains("fuse.dfs"));
    cluster.finish([mount])
}
