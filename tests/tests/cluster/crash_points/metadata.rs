//! Points of the metadata nodes: log, snapshots, joining, membership.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{Cluster, Mount, Output, cluster, wait};

use super::{Case, LIMIT, builder, name};

/// Makes the log longer by one entry after the other until `done`. Two at a time: while one is synced the next is gathered.
fn lengthen_log(mount: &Mount, done: &AtomicBool) -> Result<()> {
    let touch = |number: u64| -> Result<()> {
        for mode in (0o600..0o700).cycle() {
            if done.load(Ordering::Relaxed) {
                return Ok(());
            }
            fs::set_permissions(mount.join(name(number)), fs::Permissions::from_mode(mode))?;
        }
        unreachable!("it goes round and round")
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| touch(1));
        touch(0).and(other.join().expect("does not panic"))
    })
}

#[test]
fn what_the_log_acknowledged_is_there_after_each_step() -> Result<()> {
    let flags = [("--snapshot-threshold", "100"), ("--log-keep", "10"), ("--log-file-size", "64K")];
    let builder = flags.into_iter().fold(builder(), |builder, (flag, value)| builder.meta_flag(flag, value));
    let mut case = Case::start(builder)?;
    for point in
        ["log-written:20", "log-flushed:20", "snapshot-written", "snapshot-renamed", "log-sealed", "log-shortened"]
    {
        case.crash_under_load("meta-1", point)?;
    }
    case.finish()
}

/// Another node than the leader.
fn follower(cluster: &Cluster) -> Result<String> {
    let leader = cluster.leader()?;
    let others = (1..=3).map(|i| format!("meta-{i}")).find(|name| *name != leader);
    others.context("three of them")
}

#[test]
fn a_log_is_shortened_and_a_follower_is_filled_whatever_step_is_the_last() -> Result<()> {
    let builder = builder().metas(3).meta_flag("--snapshot-threshold", "100").meta_flag("--log-keep", "50");
    let mut case = Case::start(builder)?;
    case.write_many(4)?;
    let purging = follower(&case.cluster)?;
    case.cluster.arm(&purging, "log-purged")?;
    let done = AtomicBool::new(false);
    let Case { cluster, mount, .. } = &mut case;
    thread::scope(|scope| {
        let longer = scope.spawn(|| lengthen_log(mount, &done));
        let crashed = cluster.await_crash(&purging, "log-purged");
        done.store(true, Ordering::Relaxed);
        crashed.and(longer.join().expect("does not panic"))
    })?;
    case.cluster.wait_alive(3)?;
    let filled = follower(&case.cluster)?;
    for points in [
        &["join-begun", "join-promised", "snapshot-received", "snapshot-adopted"][..],
        &["snapshot-installed", "join-caught-up"],
    ] {
        let node = case.cluster.node(&filled);
        if node.pid().is_some() {
            node.kill()?;
        }
        fs::remove_dir_all(case.cluster.data_dir(&filled))?;
        for point in points {
            let node = case.cluster.node(&filled);
            node.arm(point)?;
            node.await_crash(point)?;
        }
    }
    case.cluster.start(&filled)?;
    until_it_takes_part(&case.cluster, &filled)?;
    case.write_many(2)?;
    // With it and without the leader there is a majority that knows everything.
    let leader = case.cluster.leader()?;
    case.cluster.kill(&leader)?;
    case.check()?;
    case.cluster.start(&leader)?;
    case.finish()
}

fn until_it_takes_part(cluster: &Cluster, node: &str) -> Result<()> {
    wait::until(&format!("{node} takes part"), LIMIT, || {
        fs::read_to_string(cluster.log(node)).is_ok_and(|log| log.contains("has caught up and takes part"))
    })
}

#[test]
fn a_vote_that_nobody_heard_of_is_kept() -> Result<()> {
    let mut case = Case::start(builder().metas(3))?;
    case.write_many(2)?;
    for _ in 0..2 {
        let voter = follower(&case.cluster)?;
        case.cluster.arm(&voter, "vote-saved")?;
        until_all_have_the_log(&case.cluster)?;
        let leader = case.cluster.leader()?;
        case.cluster.kill(&leader)?;
        case.cluster.await_crash(&voter, "vote-saved")?;
        case.write_many(2)?;
        case.cluster.start(&leader)?;
        until_all_have_the_log(&case.cluster)?;
    }
    case.finish()
}

/// Waits until all three metadata nodes have what the leader has.
fn until_all_have_the_log(cluster: &Cluster) -> Result<()> {
    wait::until("all have the whole log", LIMIT, || {
        let members = cluster.status().map(|status| status["meta"]["members"].clone()).unwrap_or_default();
        let members = members.as_array().cloned().unwrap_or_default();
        members.len() == 3 && members.iter().all(|member| member["lag"] == 0)
    })
}

#[test]
fn a_cluster_is_formed_once_although_its_founder_dies() -> Result<()> {
    let mut cluster = builder().metas(3).describe()?;
    for node in ["meta-2", "meta-3"] {
        cluster.start(node)?;
    }
    cluster.arm("meta-1", "form-stamped")?;
    cluster.await_crash("meta-1", "form-stamped")?;
    cluster.start_all()?;
    let mut case = Case::over(cluster)?;
    case.write_many(2)?;
    case.finish()
}

/// Makes `node` the leader that dies at `point`.
fn lead_to_death(cluster: &mut Cluster, node: &str, point: &str) -> Result<()> {
    cluster.arm(node, point)?;
    wait::until(&format!("{node} leads"), LIMIT, || {
        cluster.dfsctl(&["meta", "transfer-leader", node]).is_ok_and(|output| output.code == 0)
    })
}

/// Runs a change of the membership, in which `node` dies at `point`. What the command is told does not matter.
fn change_and_die(cluster: &mut Cluster, node: &str, point: &str, change: &[&str]) -> Result<Output> {
    let addresses = cluster.meta_addresses();
    let args = [&["--meta", &addresses, "--deadline", "5s", "meta"], change].concat();
    thread::scope(|scope| {
        let changing = scope.spawn(|| cluster::dfsctl(&args));
        cluster.await_crash(node, point)?;
        changing.join().expect("does not panic")
    })
}

#[test]
fn changes_of_the_membership_are_completed_or_taken_back() -> Result<()> {
    let mut case = Case::start(builder().metas(3))?;
    case.write_many(2)?;
    let address = case.cluster.join_meta(4)?;
    for (node, point) in [("meta-2", "member-learner"), ("meta-1", "membership-joint")] {
        lead_to_death(&mut case.cluster, node, point)?;
        let told = change_and_die(&mut case.cluster, node, point, &["add", "meta-4", &address])?;
        println!("{point}: {told:?}");
    }
    wait::until("the node is a voter", LIMIT, || {
        let again = case.cluster.dfsctl(&["meta", "add", "meta-4", &address]);
        again.is_ok_and(|output| output.code == 0 || output.stderr.contains("is a member already"))
    })?;
    // Asked to lead, and gone before it stood for election: the others go on.
    case.cluster.arm("meta-4", "heir-asked")?;
    wait::until("it is asked to lead", LIMIT, || {
        case.cluster.node("meta-4").ended().is_some()
            || case.cluster.dfsctl(&["meta", "transfer-leader", "meta-4"]).is_err()
    })?;
    case.cluster.await_crash("meta-4", "heir-asked")?;
    case.write_many(2)?;
    // Removed, and gone before it could note that: it finds out again.
    case.cluster.arm("meta-4", "removal-heard")?;
    wait::until("it can be removed", LIMIT, || {
        case.cluster.dfsctl(&["meta", "remove", "meta-4"]).is_ok_and(|output| output.code == 0)
    })?;
    case.cluster.await_crash("meta-4", "removal-heard")?;
    let ended = case.cluster.node("meta-4").wait_exit(LIMIT)?;
    let log = fs::read_to_string(case.cluster.log("meta-4"))?;
    ensure!(!ended.success() && log.contains("was removed from its cluster"), "{ended}: {log}");
    case.finish()
}
