//! Storage nodes that are emptied, kept after all, and removed, while the cluster is in use.

use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster, Mount, Output,
    files::{self, CHUNK},
    wait,
};
use serde_json::Value;

/// Longest time for what takes a moment on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(90);

/// Files of one to three chunks.
fn store(mount: &Mount, count: u64) -> Result<()> {
    for i in 0..count {
        files::write(&mount.join(format!("f{i}")), &content(i))?;
    }
    Ok(())
}

fn content(i: u64) -> Vec<u8> {
    files::noise(i, CHUNK / 2 + usize::try_from(i % 3).expect("small") * CHUNK)
}

fn read_all(mount: &Mount, count: u64) -> Result<()> {
    for i in 0..count {
        let got = fs::read(mount.join(format!("f{i}"))).with_context(|| format!("f{i}"))?;
        ensure!(got == content(i), "f{i} differs");
    }
    Ok(())
}

fn node(cluster: &Cluster, name: &str) -> Result<Value> {
    let nodes: Value = serde_json::from_str(&cluster.dfsctl_ok(&["nodes", "--json"])?)?;
    let nodes = nodes.as_array().context("an array")?;
    nodes.iter().rfind(|node| node["name"] == name).cloned().with_context(|| format!("{name} is not listed"))
}

fn until_admin(cluster: &Cluster, name: &str, admin: &str) -> Result<()> {
    wait::until(&format!("{name} is {admin}"), LIMIT, || node(cluster, name).is_ok_and(|node| node["admin"] == admin))
}

fn until_state(cluster: &Cluster, name: &str, state: &str) -> Result<()> {
    wait::until(&format!("{name} is {state}"), LIMIT, || node(cluster, name).is_ok_and(|node| node["state"] == state))
}

fn refused(cluster: &Cluster, args: &[&str]) -> Result<Output> {
    let output = cluster.dfsctl(args)?;
    ensure!(output.code == 1, "dfsctl {args:?} is to be refused: {output:?}");
    Ok(output)
}

fn dry_run(cluster: &Cluster, verb: &str, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.dfsctl_ok(&["node", verb, name, "--dry-run", "--json"])?)?)
}

fn events(cluster: &Cluster, kind: &str) -> Result<Vec<Value>> {
    let output = cluster.dfsctl_ok(&["events", "--json", "--kind", kind, "-n", "0"])?;
    Ok(serde_json::from_str::<Value>(&output)?.as_array().context("an array")?.clone())
}

/// Bytes that a client writes at once while something else goes on.
const LOAD_BYTES: usize = 200_000;

/// Runs `action` while a client writes some files again and again. Returns what it wrote last into each: the seed.
fn while_writing(mount: &Mount, action: impl FnOnce() -> Result<()>) -> Result<BTreeMap<String, u64>> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<BTreeMap<String, u64>> {
            let mut written = BTreeMap::new();
            for seed in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("load-{}", seed % 30);
                files::write(&mount.join(&name), &files::noise(seed, LOAD_BYTES)).with_context(|| name.clone())?;
                written.insert(name, seed);
            }
            Ok(written)
        });
        let done = action();
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().expect("writer does not panic");
        done.and(written)
    })
}

#[test]
fn what_becomes_of_writes_is_told_although_the_node_holds_nothing() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let outlook = dry_run(&cluster, "drain", "storage-1")?;
    let told = outlook["warnings"][0].as_str().unwrap_or_default();
    ensure!(told.contains("2 other nodes are") && told.contains("has 2 copies of 3"), "{outlook}");
    ensure!(outlook["impact"]["holds"]["chunks"] == 0 && outlook["obstacles"] == serde_json::json!([]), "{outlook}");
    let words = cluster.dfsctl_ok(&["node", "drain", "storage-1"])?;
    ensure!(words.contains("! 2 other nodes are alive and in service"), "{words}");
    let words = cluster.dfsctl_ok(&["node", "maintenance", "storage-2", "--dry-run"])?;
    ensure!(words.contains("1 other node is") && words.contains("writes are refused"), "{words}");
    cluster.dfsctl_ok(&["node", "undrain", "storage-1"])?;
    cluster.finish([])
}

#[test]
fn a_node_is_emptied_under_load_removed_and_cannot_come_back() -> Result<()> {
    let builder = Cluster::builder().storages(5).faults().expect_log("was removed from the cluster for good");
    let mut cluster = builder.meta_flag("--trash-retention", "0s").start()?;
    let mut mount = cluster.mount()?;
    store(&mount, 12)?;
    cluster.wait_healthy(LIMIT)?;
    let outlook = dry_run(&cluster, "drain", "storage-1")?;
    ensure!(
        outlook["impact"]["to_copy"]["chunks"].as_u64() > Some(0) && outlook["impact"]["targets"] == 4,
        "{outlook}"
    );
    ensure!(outlook["obstacles"] == serde_json::json!([]) && node(&cluster, "storage-1")?["state"] == "alive");

    let written = while_writing(&mount, || {
        cluster.dfsctl_ok(&["node", "drain", "storage-1"])?;
        until_admin(&cluster, "storage-1", "drained")
    })?;
    ensure!(written.len() == 30, "{} files were written meanwhile", written.len());
    cluster.wait_healthy(LIMIT)?;
    let drained = node(&cluster, "storage-1")?;
    ensure!(drained["rests_chunks"] == 0 && drained["state"] == "draining", "{drained}");
    ensure!(drained["chunk_count"].as_u64() > Some(0), "its copies still serve: {drained}");
    ensure!(cluster.dfsctl_ok(&["status"])?.contains("storage-1 is drained: `dfsctl node remove storage-1`"));
    let done = events(&cluster, "drain-done")?;
    ensure!(done.len() == 1 && done[0]["fields"]["node"] == "storage-1", "{done:?}");

    let words = cluster.dfsctl_ok(&["node", "remove", "storage-1"])?;
    ensure!(words.contains("lost              0 chunks") && words.contains("storage-1 was removed"), "{words}");
    let ended = cluster.node("storage-1").wait_exit(LIMIT)?;
    ensure!(!ended.success(), "a removed node has nothing to do any more: {ended}");
    ensure!(node(&cluster, "storage-1").is_err(), "it is not listed any more");
    refused(&cluster, &["node", "undrain", "storage-1"])?;
    cluster.start("storage-1")?;
    ensure!(!cluster.node("storage-1").wait_exit(LIMIT)?.success(), "it came back");
    cluster.wait_healthy(LIMIT)?;
    mount.remount()?;
    read_all(&mount, 12)?;
    for (name, seed) in written {
        ensure!(fs::read(mount.join(&name))? == files::noise(seed, LOAD_BYTES), "{name} differs");
    }

    // The machine may, with an empty disk.
    fs::remove_dir_all(cluster.data_dir("storage-1"))?;
    cluster.start("storage-1")?;
    cluster.wait_alive(5)?;
    cluster.finish([mount])
}

#[test]
fn a_drain_is_taken_back_on_its_way_and_survives_its_leader() -> Result<()> {
    let builder = Cluster::builder().metas(3).storages(4).faults().meta_flag("--trim-grace", "1s");
    let mut cluster = builder.start()?;
    let mount = cluster.mount()?;
    store(&mount, 18)?;
    cluster.wait_healthy(LIMIT)?;
    cluster.dfsctl_ok(&["repair", "limits", "--rate", "2M"])?;
    cluster.dfsctl_ok(&["node", "drain", "storage-2"])?;
    let rests = |cluster: &Cluster| node(cluster, "storage-2").ok()?["rests_chunks"].as_u64();
    let begun = rests(&cluster).context("it rests on it")?;
    wait::until("some copies are made", LIMIT, || rests(&cluster).is_some_and(|left| left < begun))?;
    ensure!(cluster.dfsctl_ok(&["status"])?.contains("storage-2 is being drained: "));

    // The leader dies, and the next one goes on.
    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    wait::until("another leader", LIMIT, || cluster.leader().is_ok_and(|new| new != leader))?;
    cluster.start(&leader)?;
    let left = wait::until_some("it is still drained", LIMIT, || rests(&cluster))?;
    ensure!(left > 0 && left < begun, "{left} of {begun}");
    wait::until("copying goes on", LIMIT, || rests(&cluster).is_some_and(|now| now < left))?;

    // Kept after all: what was copied is one too many now, and goes.
    cluster.dfsctl_ok(&["node", "undrain", "storage-2"])?;
    ensure!(node(&cluster, "storage-2")?["state"] == "alive");
    cluster.dfsctl_ok(&["repair", "limits", "--rate", "0"])?;
    wait::until("nothing is too many", LIMIT, || {
        let status = cluster.dfsctl_ok(&["repair", "status", "--json"]);
        let status = status.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok()).unwrap_or_default();
        status["over_replicated"] == 0 && status["lacking"]["copies"] == 0
    })?;
    ensure!(events(&cluster, "drain-cancelled")?.len() == 1);

    // To its end, with another change of leader.
    cluster.dfsctl_ok(&["node", "drain", "storage-2"])?;
    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    wait::until("another leader", LIMIT, || cluster.leader().is_ok_and(|new| new != leader))?;
    until_admin(&cluster, "storage-2", "drained")?;
    cluster.start(&leader)?;
    cluster.wait_healthy(LIMIT)?;
    read_all(&mount, 18)?;
    cluster.finish([mount])
}

#[test]
fn a_removal_that_loses_something_says_what_and_must_be_told_twice() -> Result<()> {
    let builder = Cluster::builder().faults().expect_log("was removed from the cluster for good");
    let mut cluster = builder.start()?;
    let mount = cluster.mount()?;
    store(&mount, 3)?;
    cluster.wait_healthy(LIMIT)?;
    let drain = dry_run(&cluster, "drain", "storage-3")?;
    let obstacle = drain["obstacles"][0].as_str().unwrap_or_default();
    ensure!(obstacle.starts_with("3 copies are wanted of every chunk, and 2 other nodes"), "{drain}");
    let output = refused(&cluster, &["node", "remove", "storage-3"])?;
    ensure!(output.stderr.contains("is in service: drain it first"), "{output:?}");
    let missing = cluster.dfsctl(&["node", "drain", "storage-9"])?;
    ensure!(missing.code == 3 && missing.stderr.contains("there are storage-1, storage-2, storage-3"), "{missing:?}");

    // A dead node goes while others have everything.
    for name in ["storage-1", "storage-2"] {
        cluster.kill(name)?;
        until_state(&cluster, name, "dead")?;
        ensure!(refused(&cluster, &["node", "drain", name])?.stderr.contains("is dead: there is nothing to copy"));
    }
    cluster.dfsctl_ok(&["node", "remove", "storage-1"])?;
    let lost = dry_run(&cluster, "remove", "storage-3")?;
    ensure!(lost["impact"]["lost"]["chunks"] == 6 && lost["done"] == false, "{lost}");
    ensure!(lost["impact"]["lost_paths"] == serde_json::json!(["/f0", "/f1", "/f2"]), "{lost}");
    let output = refused(&cluster, &["node", "remove", "storage-3"])?;
    ensure!(
        output.stdout.contains("LOST: /f1") && output.stderr.contains("6 chunks of which no other live"),
        "{output:?}"
    );
    ensure!(node(&cluster, "storage-3")?["state"] == "alive", "a refusal changes nothing");

    // The one that is dead has the same chunks: they are lost when it goes after the last live one.
    let words = cluster.dfsctl_ok(&["node", "remove", "storage-3", "--lose"])?;
    ensure!(words.contains("LOST: /f0") && words.contains("storage-3 was removed"), "{words}");
    ensure!(!cluster.node("storage-3").wait_exit(LIMIT)?.success());
    let removed = events(&cluster, "node-removed")?;
    ensure!(
        removed.len() == 2 && removed[1]["fields"]["lost"] == 6 && removed[1]["severity"] == "error",
        "{removed:?}"
    );
    refused(&cluster, &["node", "remove", "storage-2"])?;

    // It was not removed, and has everything.
    cluster.start("storage-2")?;
    until_state(&cluster, "storage-2", "alive")?;
    wait::until("its copies count again", LIMIT, || {
        cluster.status().is_ok_and(|status| status["chunks"]["missing"] == 0 && status["chunks"]["total"] == 6)
    })?;
    read_all(&mount, 3)?;
    cluster.finish([mount])
}

fn repairs(cluster: &Cluster) -> Result<u64> {
    let events = events(cluster, "repair-progress")?;
    Ok(events.iter().filter_map(|event| event["fields"]["chunks"].as_u64()).sum())
}

#[test]
fn silence_in_maintenance_is_not_repaired_until_its_time_is_over() -> Result<()> {
    let mut cluster = Cluster::builder().storages(4).faults().start()?;
    let mut mount = cluster.mount()?;
    store(&mount, 9)?;
    cluster.wait_healthy(LIMIT)?;
    let before = repairs(&cluster)?;
    let long = cluster.dfsctl(&["node", "maintenance", "storage-1", "--for", "25h"])?;
    ensure!(long.code == 2 && long.stderr.contains("within 24 h"), "{long:?}");
    let words = cluster.dfsctl_ok(&["node", "maintenance", "storage-1", "--for", "10m"])?;
    ensure!(words.contains("storage-1 is in maintenance until 2"), "{words}");
    cluster.kill("storage-1")?;
    let dead_ms = cluster.status()?["settings"]["dead_ms"].as_u64().context("dead_ms")?;
    wait::until("it is silent for longer than the dead are", LIMIT, || {
        node(&cluster, "storage-1").is_ok_and(|node| node["silent_ms"].as_u64() > Some(dead_ms * 2))
    })?;
    let silent = node(&cluster, "storage-1")?;
    ensure!(silent["state"] == "suspect" && silent["admin"] == "maintenance", "{silent}");
    // `status` ends with 0: nothing is at risk that somebody did not expect.
    let words = cluster.dfsctl_ok(&["status"])?;
    ensure!(
        words.contains("storage-1 is in maintenance until 2") && words.contains("SUSPECT (maintenance)"),
        "{words}"
    );
    mount.remount()?;
    read_all(&mount, 9)?;

    // New chunks go to the other three.
    store_one(&mount, 9)?;
    cluster.wait_healthy(LIMIT)?;
    cluster.start("storage-1")?;
    until_state(&cluster, "storage-1", "maintenance")?;
    cluster.dfsctl_ok(&["node", "maintenance", "storage-1", "--end"])?;
    until_state(&cluster, "storage-1", "alive")?;
    ensure!(repairs(&cluster)? == before, "nothing was to be copied");
    let status: Value = serde_json::from_str(&cluster.dfsctl_ok(&["repair", "status", "--json"])?)?;
    ensure!(status["over_replicated"] == 0 && status["lacking"]["copies"] == 0, "{status}");

    // The time ends while it is away.
    cluster.dfsctl_ok(&["node", "maintenance", "storage-1", "--for", "4s"])?;
    cluster.kill("storage-1")?;
    until_state(&cluster, "storage-1", "dead")?;
    cluster.wait_healthy(LIMIT)?;
    wait::until("what it had is copied", LIMIT, || repairs(&cluster).is_ok_and(|count| count > before))?;
    let ended = events(&cluster, "maintenance-ended")?;
    let reasons: Vec<_> = ended.iter().filter_map(|event| event["fields"]["reason"].as_str()).collect();
    ensure!(reasons == ["an administrator ended it", "its time is over"], "{reasons:?}");
    cluster.start("storage-1")?;
    cluster.wait_alive(4)?;
    read_all(&mount, 10)?;
    cluster.finish([mount])
}

fn store_one(mount: &Mount, i: u64) -> Result<()> {
    Ok(files::write(&mount.join(format!("f{i}")), &content(i))?)
}

/// An empty node joins full ones; files are written, a node dies and a leader, and nothing is lost.
#[test]
fn a_new_node_is_filled_until_all_are_even() -> Result<()> {
    let builder = Cluster::builder().metas(3).storages(4).faults().meta_flag("--trim-grace", "1s");
    let builder = builder.meta_flag("--inventory-delay", "1s");
    let mut cluster = builder.meta_flag("--trash-retention", "0s").describe()?;
    for name in ["meta-1", "meta-2", "meta-3", "storage-1", "storage-2", "storage-3"] {
        cluster.start(name)?;
    }
    cluster.wait_alive(3)?;
    let mut mount = cluster.mount()?;
    store(&mount, 12)?;
    cluster.wait_healthy(LIMIT)?;
    cluster.start("storage-4")?;
    cluster.wait_alive(4)?;
    let status = |cluster: &Cluster| -> Result<Value> {
        Ok(serde_json::from_str(&cluster.dfsctl_ok(&["rebalance", "status", "--json"])?)?)
    };
    let before = status(&cluster)?;
    ensure!(before["running"] == false && before["even"] == false && before["started_ns"] == 0, "{before}");
    cluster.dfsctl_ok(&["repair", "limits", "--rate", "16M"])?;
    cluster.dfsctl_ok(&["rebalance", "start"])?;
    wait::until("some chunks have moved", LIMIT, || {
        status(&cluster).is_ok_and(|status| status["chunks"].as_u64() > Some(0))
    })?;
    let some = status(&cluster)?;
    ensure!(some["running"] == true && some["even"] == false, "a quarter of 16 MiB/s moves 50 MiB in no time: {some}");

    // It is stopped, and goes on when it is told to; the next leader goes on by itself.
    let text = cluster.dfsctl_ok(&["rebalance", "stop"])?;
    ensure!(text.starts_with("not running; the last one ended at "), "{text}");
    cluster.dfsctl_ok(&["repair", "limits", "--rate", "0"])?;
    cluster.dfsctl_ok(&["rebalance", "start"])?;
    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    wait::until("another leader", LIMIT, || cluster.leader().is_ok_and(|new| new != leader))?;
    wait::until("all nodes are even", LIMIT, || {
        status(&cluster).is_ok_and(|status| status["running"] == false && status["even"] == true)
    })?;
    cluster.start(&leader)?;
    ensure!(events(&cluster, "rebalance-started")?.len() == 2 && events(&cluster, "rebalance-stopped")?.len() == 1);
    ensure!(events(&cluster, "rebalance-done")?.len() == 1);
    let after = status(&cluster)?;
    let held = |name: &str| -> Result<u64> {
        let nodes = after["nodes"].as_array().context("nodes")?;
        let node = nodes.iter().find(|node| node["name"] == name).context("in service")?;
        node["bytes"].as_u64().context("bytes")
    };
    // 12 files of 1.5 chunks' bytes, three copies, four nodes.
    let mean = 12 * 3 * 3 * CHUNK as u64 / 2 / 4;
    for name in ["storage-1", "storage-2", "storage-3", "storage-4"] {
        let bytes = held(name)?;
        ensure!(
            bytes.abs_diff(mean) <= mean / 10 + CHUNK as u64,
            "{name} has {bytes} bytes, the mean is {mean}: {after}"
        );
    }
    cluster.wait_healthy(LIMIT)?;
    let repair: Value = serde_json::from_str(&cluster.dfsctl_ok(&["repair", "status", "--json"])?)?;
    ensure!(repair["over_replicated"] == 0, "{repair}");
    mount.remount()?;
    read_all(&mount, 12)?;
    // A copy whose deletion was ordered by the leader that died is found by the next inventory.
    let mut fsck = Value::Null;
    let only_wanted = wait::until("only the wanted copies are left", LIMIT, || {
        let said = cluster.dfsctl_ok(&["fsck", "--verify", "--json"]).ok();
        fsck = said.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        fsck["files"] == 12 && fsck["copies"] == 24 * 3
    });
    only_wanted.with_context(|| fsck.to_string())?;
    cluster.finish([mount])
}
