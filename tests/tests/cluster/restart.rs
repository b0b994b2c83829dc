//! Restarts, snapshots, and nodes that lost their disk.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, Mount, files, wait};

fn fill(mount: &Mount, round: usize, count: usize) -> Result<()> {
    for i in 0..count {
        let dir = mount.join(format!("r{round}-{i}"));
        fs::create_dir(&dir)?;
        if i % 10 == 0 {
            files::write(&dir.join("f"), format!("{round} {i}").as_bytes())?;
        }
    }
    Ok(())
}

fn check(mount: &Mount, rounds: usize, count: usize) -> Result<()> {
    let listed: BTreeSet<_> = files::names(mount.path())?.into_iter().collect();
    ensure!(listed.len() == rounds * count, "{} entries instead of {}", listed.len(), rounds * count);
    for round in 0..rounds {
        for i in (0..count).step_by(10) {
            let text = fs::read_to_string(mount.join(format!("r{round}-{i}/f")))?;
            ensure!(text == format!("{round} {i}"), "{text}");
        }
    }
    Ok(())
}

#[test]
fn snapshots_and_logs_bring_everything_back() -> Result<()> {
    let mut cluster = Cluster::builder().meta_flag("--snapshot-threshold", "100").start()?;
    let mut mount = cluster.mount()?;
    for round in 0..3 {
        fill(&mount, round, 400)?;
        mount.stop()?;
        cluster.stop("meta-1")?;
        cluster.start_all()?;
        mount.start_again()?;
        check(&mount, round + 1, 400)?;
    }
    cluster.finish([mount])
}

#[test]
fn three_metadata_nodes_restart_one_after_the_other_under_a_mount() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).meta_flag("--snapshot-threshold", "200").faults().start()?;
    let mount = cluster.mount()?;
    for (round, name) in ["meta-1", "meta-2", "meta-3"].into_iter().enumerate() {
        fill(&mount, round, 200)?;
        cluster.stop(name)?;
        wait::until("a leader", Duration::from_secs(10), || cluster.leader().is_ok())?;
        files::write(&mount.join(format!("r{round}-0/f")), format!("{round} 0").as_bytes())?;
        cluster.start(name)?;
        all_follow(&cluster)?;
    }
    check(&mount, 3, 200)?;
    cluster.finish([mount])
}

/// Waits until every metadata node has all the leader has.
fn all_follow(cluster: &Cluster) -> Result<()> {
    wait::until("all metadata nodes follow", Duration::from_secs(20), || {
        cluster.status().is_ok_and(|status| {
            let members = status["meta"]["members"].as_array().cloned().unwrap_or_default();
            !members.is_empty() && members.iter().all(|member| member["reachable"] == true && member["lag"] == 0)
        })
    })
}

#[test]
fn a_wiped_metadata_node_rejoins_and_can_lead() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).meta_flag("--snapshot-threshold", "100").faults().start()?;
    let mut mount = cluster.mount()?;
    fill(&mount, 0, 300)?;
    let wiped = if cluster.leader()? == "meta-3" { "meta-2" } else { "meta-3" };
    cluster.kill(wiped)?;
    fs::remove_dir_all(cluster.data_dir(wiped))?;
    fill(&mount, 1, 300)?;
    cluster.start(wiped)?;
    all_follow(&cluster)?;
    // Now one of the others may die: the wiped node counts in the majority, with everything it was sent.
    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    files::write(&mount.join("r1-0/f"), b"1 0")?;
    mount.remount()?;
    check(&mount, 2, 300)?;
    cluster.start(&leader)?;
    all_follow(&cluster)?;
    cluster.finish([mount])
}

#[test]
fn the_log_on_disk_stays_bounded() -> Result<()> {
    let mut cluster = Cluster::builder().meta_flag("--snapshot-threshold", "200").start()?;
    let mount = cluster.mount()?;
    for i in 0..3000 {
        let path = mount.join(format!("d{}", i % 7));
        fs::create_dir(&path)?;
        fs::remove_dir(&path)?;
    }
    let size = files::sh("du -sk \"$1\" | cut -f1", &[&cluster.data_dir("meta-1")])?;
    let kib: u64 = size.trim().parse()?;
    ensure!(kib < 100 * 1024, "{kib} KiB after 6000 changes with nothing left");
    cluster.finish([mount])
}

#[test]
fn a_storage_node_that_was_away_is_welcome_again() -> Result<()> {
    let mut cluster = Cluster::builder().storages(4).faults().start()?;
    let mount = cluster.mount()?;
    for i in 0..30 {
        files::write(&mount.join(format!("f{i}")), &files::noise(i, 10_000))?;
    }
    cluster.stop("storage-4")?;
    for i in 30..60 {
        files::write(&mount.join(format!("f{i}")), &files::noise(i, 10_000))?;
    }
    cluster.start("storage-4")?;
    cluster.wait_alive(4)?;
    for i in 0..60 {
        ensure!(fs::read(mount.join(format!("f{i}")))? == files::noise(i, 10_000), "f{i}");
    }
    cluster.wait_healthy(Duration::from_secs(60))?;
    cluster.finish([mount])
}
