//! Bad copies: found, set aside, replaced, told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster,
    files::{self, CHUNK},
    wait,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// The chunk files of a node by chunk id.
fn chunks(cluster: &Cluster, node: &str) -> Result<BTreeMap<String, PathBuf>> {
    list(&cluster.data_dir(node).join("chunks"), ".chunk")
}

/// The chunk ids of what a node has in quarantine.
fn quarantined(cluster: &Cluster, node: &str) -> Result<BTreeSet<String>> {
    let files = list(&cluster.data_dir(node).join("quarantine"), ".bad")?;
    Ok(files.keys().filter_map(|name| name.split('-').next()).map(str::to_owned).collect())
}

fn list(dir: &Path, suffix: &str) -> Result<BTreeMap<String, PathBuf>> {
    let text = files::sh("find \"$1\" -type f", &[dir])?;
    let named = text.lines().map(PathBuf::from).filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_suffix(suffix)?.to_owned();
        Some((name, path))
    });
    Ok(named.collect())
}

fn flip(path: &Path, offset: u64) -> Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ 4], offset)?;
    Ok(file.sync_all()?)
}

/// The events of one kind.
fn events(cluster: &Cluster, kind: &str) -> Result<Vec<Value>> {
    let text = cluster.dfsctl_ok(&["events", "--json", "--kind", kind, "-n", "0"])?;
    Ok(serde_json::from_str(&text)?)
}

/// What `dfsctl scrub status` says of the one disk of a node.
fn scrub(cluster: &Cluster, node: &str) -> Result<Value> {
    let status: Value = serde_json::from_str(&cluster.dfsctl_ok(&["scrub", "status", node, "--json"])?)?;
    Ok(status["nodes"][0]["disks"][0].clone())
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

#[test]
fn one_flipped_bit_in_each_of_twenty_chunks_is_found_and_mended_while_files_are_read() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = cluster.mount()?;
    let size = 256 * 1024;
    let sums: Vec<String> =
        (0..24).map(|n| files::write_noise(&mount.join(format!("f{n}")), n, size)).collect::<Result<_>>()?;
    cluster.wait_healthy(Duration::from_secs(20))?;
    // Twenty different chunks, spread over the nodes that run, at twenty places.
    let mut victims: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let ids: Vec<String> = chunks(&cluster, "storage-1")?.into_keys().take(20).collect();
    ensure!(ids.len() == 20, "only {} chunks", ids.len());
    for ((id, node), place) in ids.iter().zip(["storage-1", "storage-2", "storage-3"].into_iter().cycle()).zip(0..) {
        let path = &chunks(&cluster, node)?[id];
        flip(path, place * 12_000)?;
        victims.entry(node).or_default().insert(id.clone());
    }
    let (stop, reads, wrong) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| -> Result<()> {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (n, sum) in sums.iter().enumerate() {
                    let got = files::sha256(&mount.join(format!("f{n}")));
                    wrong.fetch_add(u64::from(!got.is_ok_and(|got| got == *sum)), Ordering::Relaxed);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let done = (|| {
            cluster.dfsctl_ok(&["scrub", "start"])?;
            for (node, bad) in &victims {
                wait::until(&format!("{node} has set its bad copies aside"), SOON, || {
                    quarantined(&cluster, node).is_ok_and(|found| found == *bad)
                })?;
            }
            for (node, bad) in &victims {
                wait::until(&format!("{node} has good copies again"), SOON, || {
                    chunks(&cluster, node).is_ok_and(|found| bad.iter().all(|id| found.contains_key(id)))
                })?;
            }
            cluster.wait_healthy(SOON)
        })();
        stop.store(true, Ordering::Relaxed);
        done
    })?;
    ensure!(reads.load(Ordering::Relaxed) >= 24 && wrong.load(Ordering::Relaxed) == 0, "{wrong:?} of {reads:?} reads");
    let all: BTreeSet<String> = ids.into_iter().collect();
    // They are entered once a second.
    wait::until("the events name them all", SOON, || {
        let named = |event: &Value| Some(event["fields"]["chunk"].as_str()?.to_owned());
        let told = events(&cluster, "copy-quarantined").unwrap_or_default();
        told.iter().filter_map(named).collect::<BTreeSet<_>>() == all
    })?;
    wait::until("the passes are told", SOON, || events(&cluster, "scrub-pass").is_ok_and(|events| events.len() >= 3))?;
    cluster.dfsctl_ok(&["fsck", "/", "--verify"])?;
    let explained: Value = serde_json::from_str(&cluster.dfsctl_ok(&["explain", "/f0", "--json"])?)?;
    let nodes = explained["nodes"].as_array().context("nodes")?;
    ensure!(nodes.iter().all(|node| node["verified_ns"].as_i64().is_some_and(|ns| ns > 0)), "{explained}");
    cluster.finish([mount])
}

#[test]
fn a_chunk_without_a_good_copy_is_an_error_is_named_and_nothing_of_it_is_deleted() -> Result<()> {
    let mut cluster = Cluster::builder()
        .storage_flag("--quarantine-keep", "0s")
        .storage_flag("--quarantine-size", "0")
        .faults()
        .expect_log("the last live copy")
        .start()?;
    let mut mount = cluster.mount_with("timeout=5s")?;
    files::write_noise(&mount.join("bad"), 1, CHUNK as u64)?;
    let sum = files::write_noise(&mount.join("good"), 2, CHUNK as u64)?;
    cluster.wait_healthy(Duration::from_secs(20))?;
    let nodes = ["storage-1", "storage-2", "storage-3"];
    // The footer names the file.
    let stat: Value = serde_json::from_str(&cluster.dfsctl_ok(&["stat", "/bad", "--json"])?)?;
    let file: Vec<u8> = (0..16)
        .map(|at| Ok(u8::from_str_radix(&stat["file_id"].as_str().context("an id")?[2 * at..2 * at + 2], 16)?))
        .collect::<Result<_>>()?;
    let of_file = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes.windows(16).any(|window| window == file));
    let found = chunks(&cluster, nodes[0])?.into_iter().find(|(_, path)| of_file(path));
    let (id, _) = found.context("a chunk")?;
    // At the same place: of copies that are bad in different places a reader still puts the good blocks together.
    for node in nodes {
        flip(&chunks(&cluster, node)?[&id], 100_000)?;
    }
    mount.remount()?;
    let errno = files::errno(fs::read(mount.join("bad")));
    ensure!(errno == libc::EIO, "errno {errno}");
    for node in nodes {
        wait::until("it is set aside", SOON, || quarantined(&cluster, node).is_ok_and(|found| found.contains(&id)))?;
    }
    wait::until("it counts as missing", SOON, || {
        cluster.status().is_ok_and(|status| status["chunks"]["missing"] == 1)
    })?;
    let fsck = cluster.dfsctl(&["fsck", "/", "--json"])?;
    ensure!(fsck.code == 7, "{fsck:?}");
    let report: Value = serde_json::from_str(&fsck.stdout)?;
    ensure!(report["findings"][0]["path"] == "/bad" && report["lost"] == 1, "{report}");
    let explained = cluster.dfsctl(&["explain", "/bad"])?;
    ensure!(explained.code == 7 && explained.stdout.contains("quarantine"), "{explained:?}");
    ensure!(files::sha256(&mount.join("good"))? == sum);
    // The quarantine may keep nothing, and keeps this: no good copy is left. Each start looks at once.
    for node in nodes {
        cluster.stop(node)?;
        cluster.start(node)?;
    }
    cluster.wait_alive(3)?;
    cluster.dfsctl_ok(&["scrub", "start"])?;
    wait::until("passes are done", SOON, || {
        nodes.iter().all(|node| scrub(&cluster, node).is_ok_and(|disk| !disk["last"].is_null()))
    })?;
    for node in nodes {
        ensure!(quarantined(&cluster, node)?.contains(&id), "{node}");
    }
    cluster.finish([mount])
}

#[test]
fn a_pass_goes_on_from_its_checkpoint_after_kill_9() -> Result<()> {
    let mut cluster = Cluster::builder().faults().storage_flag("--scrub-tranquility", "1000").start()?;
    let mount = cluster.mount()?;
    for n in 0..300 {
        files::write_noise(&mount.join(format!("f{n}")), n, 20_000)?;
    }
    cluster.wait_healthy(Duration::from_secs(20))?;
    let node = "storage-2";
    cluster.dfsctl_ok(&["scrub", "start", node])?;
    let file = cluster.data_dir(node).join("SCRUB");
    let cursor = || fs::read_to_string(&file).is_ok_and(|text| text.contains("cursor"));
    wait::until("the pass is noted", SOON, cursor)?;
    let before = scrub(&cluster, node)?;
    cluster.kill(node)?;
    let noted = fs::read_to_string(&file)?;
    let value = |key: &str| -> Result<u64> {
        let line = noted.lines().rev().find_map(|line| line.strip_prefix(&format!("{key} = "))).context("noted")?;
        Ok(line.parse()?)
    };
    let (started, chunks) = (value("started_ns")?, value("chunks")?);
    ensure!(chunks > 0 && chunks <= number(&before["chunks"]) + 64, "{noted}\n{before}");
    cluster.start(node)?;
    cluster.wait_alive(3)?;
    wait::until("it goes on", SOON, || scrub(&cluster, node).is_ok_and(|now| now["scrub"] == "running"))?;
    let after = scrub(&cluster, node)?;
    ensure!(number(&after["started_ns"]) == started, "it began anew: {after}");
    ensure!(number(&after["chunks"]) >= chunks, "{after} behind {noted}");
    // Paused it stands still, also over a restart.
    cluster.dfsctl_ok(&["scrub", "pause", node])?;
    wait::until("it stands still", SOON, || scrub(&cluster, node).is_ok_and(|now| now["scrub"] == "paused"))?;
    wait::until("that is noted", SOON, || fs::read_to_string(&file).is_ok_and(|text| text.contains("paused = true")))?;
    cluster.kill(node)?;
    cluster.start(node)?;
    cluster.wait_alive(3)?;
    wait::until("it is still paused", SOON, || scrub(&cluster, node).is_ok_and(|now| now["scrub"] == "paused"))?;
    let paused = scrub(&cluster, node)?;
    ensure!(number(&paused["chunks"]) >= chunks && number(&paused["started_ns"]) == started, "{paused}");
    cluster.dfsctl_ok(&["scrub", "resume", node])?;
    wait::until("it goes on", SOON, || {
        scrub(&cluster, node).is_ok_and(|now| number(&now["chunks"]) > number(&paused["chunks"]))
    })?;
    cluster.finish([mount])
}

#[test]
fn a_truncated_chunk_file_is_replaced() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = cluster.mount()?;
    let sum = files::write_noise(&mount.join("f"), 1, CHUNK as u64)?;
    cluster.wait_healthy(Duration::from_secs(20))?;
    let node = "storage-3";
    let (id, path) = chunks(&cluster, node)?.pop_first().context("a chunk")?;
    let size = fs::metadata(&path)?.len();
    fs::OpenOptions::new().write(true).open(&path)?.set_len(size / 2)?;
    cluster.dfsctl_ok(&["scrub", "start", node])?;
    wait::until("it is set aside", SOON, || quarantined(&cluster, node).is_ok_and(|found| found.contains(&id)))?;
    wait::until("it is whole again", SOON, || fs::metadata(&path).is_ok_and(|meta| meta.len() == size))?;
    cluster.wait_healthy(SOON)?;
    cluster.dfsctl_ok(&["fsck", "/", "--verify"])?;
    ensure!(files::sha256(&mount.join("f"))? == sum);
    cluster.finish([mount])
}

/// A node that dies between setting a copy aside and telling: its directory is as if it had.
#[test]
fn the_inventory_tells_what_a_killed_node_could_not() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = cluster.mount()?;
    let sum = files::write_noise(&mount.join("f"), 1, CHUNK as u64)?;
    cluster.wait_healthy(Duration::from_secs(20))?;
    let node = "storage-1";
    cluster.kill(node)?;
    let (id, path) = chunks(&cluster, node)?.pop_first().context("a chunk")?;
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let aside = cluster.data_dir(node).join("quarantine").join(format!("{id}-{now_ms:013}-00000000.bad"));
    fs::rename(&path, &aside)?;
    cluster.start(node)?;
    cluster.wait_alive(3)?;
    wait::until("it is replaced", SOON, || path.exists())?;
    cluster.wait_healthy(SOON)?;
    ensure!(number(&scrub(&cluster, node)?["quarantined_copies"]) == 1);
    ensure!(files::sha256(&mount.join("f"))? == sum);
    cluster.finish([mount])
}

#[test]
fn orders_name_nodes_that_exist_and_say_who_has_not_taken_them() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let unknown = cluster.dfsctl(&["scrub", "start", "storage-9"])?;
    ensure!(unknown.code == 3 && unknown.stderr.contains("storage-9"), "{unknown:?}");
    cluster.kill("storage-2")?;
    wait::until("it is dead", SOON, || {
        cluster.status().is_ok_and(|status| {
            status["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(|node| node["state"] == "dead"))
        })
    })?;
    let partly = cluster.dfsctl(&["scrub", "pause", "--json"])?;
    ensure!(partly.code == 8 && partly.stderr.contains("storage-2"), "{partly:?}");
    let told: Value = serde_json::from_str(&partly.stdout)?;
    let taken: BTreeSet<&str> = told["taken"].as_array().context("names")?.iter().filter_map(Value::as_str).collect();
    ensure!(taken == BTreeSet::from(["storage-1", "storage-3"]), "{told}");
    cluster.start("storage-2")?;
    cluster.wait_alive(3)?;
    // The order still waits for it.
    wait::until("it is told", SOON, || scrub(&cluster, "storage-2").is_ok_and(|now| now["scrub"] == "paused"))?;
    cluster.finish([])
}
