//! Disks that are full.

use std::{fs, net::TcpStream, time::Duration};

use anyhow::{Result, ensure};
use dfs_tests::{
    Cluster,
    files::{self, CHUNK},
    wait,
};

#[test]
fn full_storage_is_enospc_and_leaves_nothing_half_visible() -> Result<()> {
    let mut cluster = Cluster::builder()
        .storage_flag("--capacity", "40MiB")
        .storage_flag("--reserve", "0")
        .meta_flag("--gc-grace", "1s")
        .faults()
        .expect_log("space")
        .start()?;
    let mut mount = cluster.mount_with("timeout=5s")?;
    let kept = files::noise(1, 3 * CHUNK);
    files::write(&mount.join("kept"), &kept)?;
    let errno = files::errno(files::write(&mount.join("too-large"), &files::noise(2, 20 * CHUNK)));
    ensure!(errno == libc::ENOSPC, "errno {errno}");
    let gone = || fs::metadata(mount.join("too-large")).is_err();
    wait::until("nothing half visible", Duration::from_secs(5), gone)?;
    // An old version stays whole when its replacement does not fit.
    let errno = files::errno(files::write(&mount.join("kept"), &files::noise(3, 20 * CHUNK)));
    ensure!(errno == libc::ENOSPC, "errno {errno}");
    ensure!(fs::read(mount.join("kept"))? == kept);
    mount.remount()?;
    ensure!(files::names(mount.path())? == ["kept"]);
    ensure!(fs::read(mount.join("kept"))? == kept);
    // What the failed writes stored is garbage: its space comes back without help.
    wait::until("there is space again", Duration::from_secs(60), || {
        files::write(&mount.join("fits"), &files::noise(4, 3 * CHUNK)).is_ok()
    })?;
    cluster.finish([mount])
}

#[test]
fn a_metadata_node_goes_on_after_its_disk_was_full() -> Result<()> {
    let mut cluster = Cluster::builder()
        .meta_flag("--snapshot-threshold", "100")
        .faults()
        .expect_log("No space left")
        .expect_log("the disk is full")
        .describe()?;
    cluster.small_disk("meta-1", 64 << 20)?;
    cluster.start_all()?;
    cluster.wait_alive(3)?;
    let mut mount = cluster.mount_with("timeout=10s")?;
    let address = cluster.meta_address(1);
    let mut kept = 0;
    for round in 0..2 {
        for _ in 0..60 {
            files::write(&mount.join(format!("{kept}")), b"acknowledged")?;
            kept += 1;
        }
        cluster.disk("meta-1")?.fill()?;
        // Restarted again and again with a full disk, as a service manager does, it may come up or say why not.
        for _ in 0..2 {
            cluster.kill("meta-1")?;
            cluster.start("meta-1")?;
            wait::until("it came up or ended", Duration::from_secs(20), || {
                cluster.node("meta-1").ended().is_some() || TcpStream::connect(&address).is_ok()
            })?;
        }
        cluster.disk("meta-1")?.free()?;
        cluster.kill("meta-1")?;
        cluster.start("meta-1")?;
        cluster.wait_alive(3)?;
        wait::until("the mount works", Duration::from_secs(30), || fs::read_dir(mount.path()).is_ok())?;
        ensure!(files::names(mount.path())?.len() == kept, "round {round}");
    }
    mount.remount()?;
    for name in 0..kept {
        ensure!(fs::read(mount.join(name.to_string()))? == b"acknowledged");
    }
    cluster.finish([mount])
}

#[test]
fn deleted_files_give_their_space_back() -> Result<()> {
    let mut cluster = Cluster::builder().meta_flag("--gc-grace", "1s").meta_flag("--trash-retention", "0").start()?;
    let mount = cluster.mount()?;
    let used = |cluster: &Cluster| -> u64 {
        let status = cluster.status().unwrap_or_default();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter_map(|node| node["used_bytes"].as_u64()).sum()
    };
    let before = used(&cluster);
    let size = 6 * CHUNK as u64;
    files::write(&mount.join("f"), &files::noise(1, 6 * CHUNK))?;
    wait::until("use is counted", Duration::from_secs(10), || used(&cluster) >= before + 3 * size)?;
    fs::remove_file(mount.join("f"))?;
    wait::until("space comes back", Duration::from_secs(60), || used(&cluster) < before + size)?;
    cluster.finish([mount])
}
