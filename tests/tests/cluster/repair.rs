//! Lost copies are replaced, the most endangered first, and what is too many afterwards goes again.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster, Mount,
    files::{self, CHUNK},
    wait,
};
use serde_json::Value;

/// Longest time for what takes a moment on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(60);

/// Large and small files, of `chunks` chunks together.
struct Stored {
    files: Vec<(String, Vec<u8>)>,
    chunks: usize,
}

fn store(mount: &Mount, large: u64, small: u64) -> Result<Stored> {
    let mut files = Vec::new();
    for i in 0..large {
        files.push((format!("large-{i}"), files::noise(i, 2 * CHUNK + 777)));
    }
    for i in 0..small {
        files.push((format!("small-{i}"), files::noise(1000 + i, 9000)));
    }
    for (name, bytes) in &files {
        files::write(&mount.join(name), bytes)?;
    }
    let chunks = usize::try_from(large * 3 + small)?;
    Ok(Stored { files, chunks })
}

impl Stored {
    fn read_all(&self, mount: &Mount) -> Result<()> {
        for (name, bytes) in &self.files {
            let got = fs::read(mount.join(name)).with_context(|| name.clone())?;
            ensure!(got == *bytes, "{name} differs");
        }
        Ok(())
    }
}

/// Chunk files of a node.
fn chunk_files(cluster: &Cluster, node: &str) -> Result<usize> {
    let found = files::sh("find \"$1/chunks\" -name '*.chunk' | wc -l", &[&cluster.data_dir(node)])?;
    Ok(found.trim().parse()?)
}

fn all_chunk_files(cluster: &Cluster, nodes: usize) -> Result<usize> {
    (1..=nodes).map(|i| chunk_files(cluster, &format!("storage-{i}"))).sum()
}

fn state_of(cluster: &Cluster, node: &str) -> Option<String> {
    let status = cluster.status().ok()?;
    let nodes = status["nodes"].as_array()?.clone();
    let mut states = nodes.iter().filter(|n| n["name"] == node).filter_map(|n| n["state"].as_str());
    states.next_back().map(str::to_owned)
}

fn until_state(cluster: &Cluster, node: &str, state: &str) -> Result<()> {
    wait::until(&format!("{node} is {state}"), LIMIT, || state_of(cluster, node).as_deref() == Some(state))
}

fn repair(cluster: &Cluster) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.dfsctl_ok(&["repair", "status", "--json"])?)?)
}

#[test]
fn copies_too_many_go_when_a_killed_node_returns_and_reads_go_on() -> Result<()> {
    let builder = Cluster::builder().storages(4).meta_flag("--trim-grace", "1s").meta_flag("--gc-grace", "1s");
    let mut cluster = builder.meta_flag("--trash-retention", "0s").faults().start()?;
    let mut mount = cluster.mount()?;
    let stored = store(&mount, 6, 60)?;
    files::write(&mount.join("gone"), &files::noise(7, CHUNK))?;
    cluster.wait_healthy(LIMIT)?;
    cluster.kill("storage-1")?;
    until_state(&cluster, "storage-1", "dead")?;
    fs::remove_file(mount.join("gone"))?;
    cluster.wait_healthy(LIMIT)?;
    mount.remount()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                stored.read_all(&mount)?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let trimmed = (|| {
            cluster.start("storage-1")?;
            cluster.wait_alive(4)?;
            wait::until("three copies of each", LIMIT, || {
                all_chunk_files(&cluster, 4).is_ok_and(|count| count == stored.chunks * 3)
            })
        })();
        stop.store(true, Ordering::Relaxed);
        let rounds = reader.join().expect("reader does not panic")?;
        ensure!(rounds > 0, "the loop never came round");
        trimmed
    })?;
    cluster.wait_healthy(LIMIT)?;
    ensure!(repair(&cluster)?["over_replicated"] == 0);
    mount.remount()?;
    stored.read_all(&mount)?;
    cluster.finish([mount])
}

#[test]
fn an_emptied_disk_is_noticed_when_its_node_starts() -> Result<()> {
    // Nobody waits for silence here.
    let builder = Cluster::builder().storages(4).faults();
    let mut cluster = builder.meta_flag("--suspect", "60s").meta_flag("--dead", "120s").start()?;
    let mount = cluster.mount()?;
    let stored = store(&mount, 4, 20)?;
    cluster.wait_healthy(LIMIT)?;

    // The chunks are gone, the identity is there.
    cluster.kill("storage-1")?;
    let dir = cluster.data_dir("storage-1");
    files::sh("rm -rf \"$1\"/chunks/*", &[&dir])?;
    let begun = Instant::now();
    cluster.start("storage-1")?;
    wait::until("noticed", Duration::from_secs(10), || {
        cluster.status().is_ok_and(|status| status["chunks"]["under_replicated"].as_u64() > Some(0))
            || (begun.elapsed() > Duration::from_secs(1)
                && all_chunk_files(&cluster, 4).is_ok_and(|n| n == stored.chunks * 3))
    })?;
    wait::until("repaired", LIMIT, || all_chunk_files(&cluster, 4).is_ok_and(|n| n == stored.chunks * 3))?;
    cluster.wait_healthy(LIMIT)?;

    // Everything is gone: a new disk under the same name and address.
    cluster.kill("storage-2")?;
    fs::remove_dir_all(cluster.data_dir("storage-2"))?;
    cluster.start("storage-2")?;
    wait::until("the old identity is dead", Duration::from_secs(20), || {
        cluster.status().is_ok_and(|status| {
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            nodes.iter().any(|n| n["name"] == "storage-2" && n["state"] == "dead")
                && nodes.iter().any(|n| n["name"] == "storage-2" && n["state"] == "alive")
        })
    })?;
    cluster.wait_healthy(LIMIT)?;
    stored.read_all(&mount)?;
    cluster.finish([mount])
}

#[test]
fn limits_are_changed_while_it_runs_and_survive_a_change_of_leader() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).storages(4).faults().start()?;
    let mount = cluster.mount()?;
    let stored = store(&mount, 12, 10)?;
    cluster.wait_healthy(LIMIT)?;
    cluster.dfsctl_ok(&["repair", "limits", "--rate", "2M", "--streams", "2"])?;
    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    wait::until("another leader", LIMIT, || cluster.leader().is_ok_and(|new| new != leader))?;
    cluster.start(&leader)?;
    let limits: Value = serde_json::from_str(&cluster.dfsctl_ok(&["repair", "limits", "--json"])?)?;
    ensure!(limits["bytes_per_s"] == 2 << 20 && limits["streams_per_node"] == 2, "{limits}");

    cluster.kill("storage-3")?;
    until_state(&cluster, "storage-3", "dead")?;
    let lacking = |status: &Value| status["lacking"]["bytes"].as_u64().unwrap_or(0);
    let (begun, before) = (Instant::now(), lacking(&repair(&cluster)?));
    ensure!(before > 16 << 20, "{before} bytes to repair are too few for this test");
    wait::until("it has a rate", LIMIT, || {
        repair(&cluster)
            .is_ok_and(|status| status["eta_ms"].is_u64() && status["rate"]["bytes_per_s"].as_f64() > Some(1.0))
    })?;
    // Whatever time the questions take: in the time that passed no more was copied than the limit allows.
    wait::until("some seconds pass", LIMIT, || begun.elapsed() > Duration::from_secs(4))?;
    let after = lacking(&repair(&cluster)?);
    let allowed = begun.elapsed().as_secs_f64() * f64::from(2 << 20) + f64::from(3 * (4 << 20));
    ensure!((before - after) as f64 <= allowed, "{} bytes in {:?}", before - after, begun.elapsed());
    ensure!(after > 0, "it is over already");
    let queue: Value = serde_json::from_str(&cluster.dfsctl_ok(&["repair", "queue", "--json"])?)?;
    ensure!(
        queue["chunks"].as_array().is_some_and(|chunks| chunks.iter().any(|c| c["wait"] == "throttled")),
        "{queue}"
    );

    cluster.dfsctl_ok(&["repair", "limits", "--rate", "0"])?;
    cluster.wait_healthy(LIMIT)?;
    stored.read_all(&mount)?;
    cluster.start("storage-3")?;
    cluster.wait_alive(4)?;
    cluster.finish([mount])
}

#[test]
fn what_cannot_be_repaired_says_why_and_goes_on_when_it_can() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = cluster.mount()?;
    let stored = store(&mount, 1, 3)?;
    cluster.wait_healthy(LIMIT)?;
    cluster.kill("storage-2")?;
    until_state(&cluster, "storage-2", "dead")?;
    let queue: Value = serde_json::from_str(&cluster.dfsctl_ok(&["repair", "queue", "--json"])?)?;
    let chunks = queue["chunks"].as_array().cloned().unwrap_or_default();
    ensure!(chunks.len() == stored.chunks && chunks.iter().all(|c| c["wait"] == "no_target"), "{queue}");
    let words = cluster.dfsctl_ok(&["repair", "now", "/large-0"])?;
    ensure!(words.contains("NO TARGET"), "{words}");
    let missing = cluster.dfsctl(&["repair", "now", "/nothing"])?;
    ensure!(missing.code == 3, "{missing:?}");
    cluster.start("storage-2")?;
    cluster.wait_alive(3)?;
    cluster.wait_healthy(LIMIT)?;
    ensure!(cluster.dfsctl_ok(&["repair", "queue"])?.contains("no chunk lacks a copy"));
    cluster.finish([mount])
}

/// The state of the copies while two nodes die one after the other.
#[test]
fn chunks_with_one_copy_are_repaired_before_all_others() -> Result<()> {
    let mut cluster = Cluster::builder().storages(5).faults().start()?;
    let mount = cluster.mount()?;
    let stored = store(&mount, 16, 20)?;
    cluster.wait_healthy(LIMIT)?;
    // Slow enough that much is left when the second one dies; what is endangered passes the limit by.
    cluster.dfsctl_ok(&["repair", "limits", "--rate", "1M"])?;
    cluster.kill("storage-1")?;
    until_state(&cluster, "storage-1", "dead")?;
    cluster.kill("storage-2")?;
    until_state(&cluster, "storage-2", "dead")?;
    wait::until("nothing is endangered any more", LIMIT, || {
        repair(&cluster).is_ok_and(|status| status["endangered"] == 0 && status["missing"] == 0)
    })?;
    let status = repair(&cluster)?;
    ensure!(status["under_replicated"].as_u64() > Some(0), "the others were not to be done yet: {status}");
    cluster.dfsctl_ok(&["repair", "limits", "--rate", "0"])?;
    cluster.wait_healthy(LIMIT)?;
    stored.read_all(&mount)?;
    cluster.start("storage-1")?;
    cluster.start("storage-2")?;
    cluster.wait_alive(5)?;
    cluster.finish([mount])
}
