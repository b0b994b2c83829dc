//! What the administrator sees: status, events, fsck, explain, while things break.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster, Output, bins,
    files::{self, CHUNK},
    process, wait,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

fn json(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

fn expect(cluster: &Cluster, code: i32, args: &[&str]) -> Result<Output> {
    let output = cluster.dfsctl(args)?;
    ensure!(output.code == code, "dfsctl {args:?}: want code {code}: {output:?}");
    Ok(output)
}

fn upload(cluster: &Cluster, name: &str, seed: u64, bytes: usize) -> Result<()> {
    let source = cluster.scratch()?.join("source");
    files::write(&source, &files::noise(seed, bytes))?;
    cluster.dfsctl_ok(&["upload", "--file", &source.display().to_string(), "--name", name])?;
    cluster.wait_healthy(SOON)
}

/// The chunk files of a node.
fn chunk_files(cluster: &Cluster, node: &str) -> Result<Vec<PathBuf>> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                walk(&path, found)?;
            } else if path.extension().is_some_and(|extension| extension == "chunk") {
                found.push(path);
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(&cluster.data_dir(node).join("chunks"), &mut found)?;
    found.sort();
    Ok(found)
}

fn events(cluster: &Cluster, kind: &str) -> Result<Vec<Value>> {
    let output = expect(cluster, 0, &["events", "--json", "--kind", kind, "-n", "0"])?;
    Ok(json(&output)?.as_array().context("an array")?.clone())
}

fn node<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    let nodes = status["nodes"].as_array().context("nodes")?;
    nodes.iter().find(|node| node["name"] == name).context("no such node")
}

#[test]
fn a_dead_node_shows_in_status_and_events() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    upload(&cluster, "/f", 1, 5 * CHUNK)?;
    let status = cluster.status()?;
    ensure!(status["copies"][3]["chunks"] == 5, "{status}");
    ensure!(node(&status, "storage-2")?["if_it_fails"]["endangered_chunks"] == 0, "{status}");
    cluster.kill("storage-1")?;
    wait::until("dead", SOON, || {
        cluster.status().is_ok_and(|status| node(&status, "storage-1").is_ok_and(|node| node["state"] == "dead"))
    })?;
    // Two copies are left and no node could take a third: the next failure leaves one.
    let output = expect(&cluster, 5, &["status", "--json"])?;
    let status = json(&output)?;
    ensure!(status["copies"][2]["chunks"] == 5 && status["copies"][3]["chunks"] == 0, "{status}");
    let cost = &node(&status, "storage-2")?["if_it_fails"];
    ensure!(cost["endangered_chunks"] == 5 && cost["lost_chunks"] == 0, "{status}");
    let text = cluster.dfsctl(&["status"])?.stdout;
    ensure!(text.starts_with("NOT HEALTHY"), "the verdict comes first: {text}");
    ensure!(text.contains("storage-1 is dead since ") && text.contains("0 chunks lost, 5 endangered"), "{text}");
    let changes = events(&cluster, "node-state")?;
    let seen: Vec<_> =
        changes.iter().filter(|e| e["fields"]["node"] == "storage-1").map(|e| &e["fields"]["to"]).collect();
    ensure!(seen.ends_with(&[&Value::from("suspect"), &Value::from("dead")]), "{changes:?}");
    cluster.start("storage-1")?;
    cluster.wait_healthy(SOON)?;
    let back = wait::until_some("it is alive in the log", SOON, || {
        events(&cluster, "node-state").ok()?.pop().filter(|event| event["fields"]["to"] == "alive")
    })?;
    ensure!(back["fields"]["from"] == "dead" && back["severity"] == "info", "{back}");
    cluster.finish([])
}

#[test]
fn fsck_asks_the_disks_and_starts_the_repair() -> Result<()> {
    let mut cluster = Cluster::builder().faults().expect_log("corrupt").start()?;
    upload(&cluster, "/d/one", 1, 2 * CHUNK)?;
    upload(&cluster, "/d/two", 2, CHUNK + 1)?;
    let clean = json(&expect(&cluster, 0, &["fsck", "--verify", "--json"])?)?;
    ensure!(clean["files"] == 2 && clean["chunks"] == 4 && clean["copies"] == 12, "{clean}");
    // What has no chunks is passed by.
    let mount = cluster.mount()?;
    std::os::unix::fs::symlink("one", mount.join("d/link"))?;
    let made = std::process::Command::new("mkfifo").arg(mount.join("d/pipe")).status()?;
    ensure!(made.success(), "mkfifo: {made}");
    wait::until("special files are there", SOON, || {
        cluster.dfsctl(&["ls", "/d"]).is_ok_and(|output| output.stdout == "link\none\npipe\ntwo\n")
    })?;
    let clean = json(&expect(&cluster, 0, &["fsck", "--json"])?)?;
    ensure!(clean["files"] == 2 && clean["lost"] == 0, "{clean}");
    let listed = json(&expect(&cluster, 0, &["list", "--json"])?)?;
    ensure!(listed.as_array().is_some_and(|files| files.len() == 2), "{listed}");
    ensure!(expect(&cluster, 0, &["ls", "/d/one"])?.stdout == "/d/one\n", "a path has its slash");
    // One copy vanishes behind the node's back, one bit of another flips.
    let copies = chunk_files(&cluster, "storage-3")?;
    fs::remove_file(&copies[0])?;
    let mut bytes = fs::read(&copies[1])?;
    bytes[0] ^= 1;
    fs::write(&copies[1], bytes)?;
    let found = json(&expect(&cluster, 5, &["fsck", "/d", "--verify", "--json"])?)?;
    ensure!(found["missing_copies"] == 1 && found["corrupt_copies"] == 1 && found["lost"] == 0, "{found}");
    ensure!(found["findings"][0]["path"].as_str().is_some_and(|path| path.starts_with("/d/")), "{found}");
    ensure!(found["findings"].to_string().contains("storage-3"), "{found}");
    wait::until("they are replaced", SOON, || {
        cluster.dfsctl(&["fsck", "--verify"]).is_ok_and(|output| output.code == 0)
    })?;
    let corrupt = wait::until_some("it is in the log", SOON, || events(&cluster, "copy-corrupt").ok()?.pop())?;
    ensure!(corrupt["fields"]["node"] == "storage-3" && corrupt["severity"] == "warning", "{corrupt}");
    let repaired =
        wait::until_some("the repair is in the log", SOON, || events(&cluster, "repair-progress").ok()?.pop())?;
    ensure!(repaired["fields"]["live"] == 2, "{repaired}");
    let done = wait::until_some("and its end", SOON, || events(&cluster, "repair-done").ok()?.pop())?;
    ensure!(done["fields"]["chunks"].as_u64().is_some_and(|chunks| chunks > 0), "{done}");
    cluster.finish([mount])
}

#[test]
fn fsck_and_explain_name_a_file_without_a_good_copy() -> Result<()> {
    let cluster = Cluster::builder().faults().expect_log("the last live copy").expect_log("corrupt").start()?;
    upload(&cluster, "/lost", 1, 1000)?;
    upload(&cluster, "/kept", 2, 1000)?;
    let lost = expect(&cluster, 0, &["stat", "/lost", "--json"])?;
    let id = json(&lost)?["file_id"].as_str().context("an id")?.to_owned();
    let id_bytes: Vec<u8> = (0..16).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16)).collect::<Result<_, _>>()?;
    for name in ["storage-1", "storage-2", "storage-3"] {
        for path in chunk_files(&cluster, name)? {
            // The footer names the file.
            let mut bytes = fs::read(&path)?;
            if bytes.windows(16).any(|window| window == id_bytes) {
                bytes[5] ^= 1;
                fs::write(&path, bytes)?;
            }
        }
    }
    let found = json(&expect(&cluster, 7, &["fsck", "--verify", "--json"])?)?;
    ensure!(found["lost"] == 1 && found["findings"][0]["path"] == "/lost", "{found}");
    let text = expect(&cluster, 7, &["explain", "/lost", "--verify"])?.stdout;
    ensure!(text.starts_with("/lost: unavailable") && text.contains("NO GOOD COPY"), "{text}");
    let fine = expect(&cluster, 0, &["explain", "/kept", "--verify"])?.stdout;
    ensure!(fine.starts_with("/kept: good") && fine.contains("3 good copies"), "{fine}");
    let found = expect(&cluster, 0, &["explain", "/kept"])?.stdout;
    ensure!(found.contains("3 copies found") && !found.contains("3 good copies"), "{found}");
    cluster.finish([])
}

#[test]
fn fsck_finds_nothing_when_a_node_came_back_with_an_empty_disk() -> Result<()> {
    let mut cluster = Cluster::builder().storages(4).faults().start()?;
    upload(&cluster, "/f", 1, 3 * CHUNK)?;
    cluster.wait_healthy(SOON)?;
    // One that has copies: they stay recorded on the dead node that nobody can be asked for any more.
    let mut victim = "";
    for name in ["storage-1", "storage-2", "storage-3", "storage-4"] {
        if !chunk_files(&cluster, name)?.is_empty() {
            victim = name;
        }
    }
    cluster.kill(victim)?;
    fs::remove_dir_all(cluster.data_dir(victim))?;
    cluster.start(victim)?;
    wait::until("the old identity is dead and a new one there", SOON, || {
        let states = |nodes: &[Value]| -> Vec<String> {
            let named = nodes.iter().filter(|node| node["name"] == victim);
            named.filter_map(|node| node["state"].as_str().map(str::to_owned)).collect()
        };
        cluster
            .status()
            .is_ok_and(|status| status["nodes"].as_array().is_some_and(|all| states(all) == ["dead", "alive"]))
    })?;
    cluster.wait_healthy(SOON)?;
    let found = json(&expect(&cluster, 0, &["fsck", "--verify", "--json"])?)?;
    ensure!(found["missing_copies"] == 0 && found["not_asked"] == Value::Array(vec![]), "{found}");
    cluster.finish([])
}

#[test]
fn fsck_says_whom_it_could_not_ask_and_never_hangs() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    upload(&cluster, "/f", 1, 3 * CHUNK)?;
    cluster.node("storage-2").signal(libc::SIGSTOP)?;
    let begun = std::time::Instant::now();
    let output = cluster.dfsctl(&["--rpc-timeout", "1s", "fsck", "--json"])?;
    ensure!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    let found = json(&output)?;
    ensure!(found["not_asked"][0]["node"] == "storage-2", "{found}");
    ensure!(output.code == 5 || output.code == 8, "{output:?}");
    let explained = cluster.dfsctl(&["--rpc-timeout", "1s", "explain", "/f"])?;
    ensure!(explained.stdout.contains("could not ask storage-2"), "{explained:?}");
    cluster.node("storage-2").signal(libc::SIGCONT)?;
    cluster.wait_healthy(SOON)?;
    cluster.finish([])
}

#[test]
fn explain_names_the_writer() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let writing = fs::File::create(mount.join("f"))?;
    files::close(writing)?;
    let writing = fs::OpenOptions::new().append(true).open(mount.join("f"))?;
    std::io::Write::write_all(&mut &writing, b"more")?;
    let explained = json(&cluster.dfsctl(&["explain", "/f", "--json"])?)?;
    let writers = explained["writers"].as_array().context("writers")?;
    ensure!(writers.len() == 1 && writers[0]["client"].as_str().is_some_and(|who| !who.is_empty()), "{explained}");
    files::close(writing)?;
    cluster.finish([mount])
}

#[test]
fn explain_names_the_readers_and_the_earlier_versions() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    fs::write(mount.join("f"), b"first")?;
    let reading = fs::File::open(mount.join("f"))?;
    fs::write(mount.join("f"), b"second!")?;
    let current = fs::File::open(mount.join("f"))?;
    let explain = || json(&cluster.dfsctl(&["explain", "/f", "--json"])?);
    wait::until("the leader has heard who reads", SOON, || {
        let readers = |of: &Value| of.as_array().map_or(0, Vec::len);
        explain().is_ok_and(|told| readers(&told["readers"]) == 1 && readers(&told["earlier"][0]["readers"]) == 1)
    })?;
    let told = explain()?;
    let earlier = told["earlier"].as_array().context("earlier versions")?;
    ensure!(earlier.len() == 1 && earlier[0]["size"] == 5 && earlier[0]["reason"] == "replaced", "{told}");
    ensure!(told["readers"][0]["client"].as_str().is_some_and(|who| !who.is_empty()), "{told}");
    let text = cluster.dfsctl(&["explain", "/f"])?.stdout;
    ensure!(text.contains("reader") && text.contains("open in 1 client"), "{text}");
    drop((reading, current));
    cluster.finish([mount])
}

#[test]
fn events_survive_a_change_of_the_leader_and_can_be_followed() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let log = cluster.dir().join("followed");
    let mut follow = process::command(&bins::path("dfsctl")?)
        .args(["--meta", &cluster.meta_addresses(), "events", "--follow", "--json", "-n", "1"])
        .stdout(fs::File::create(&log)?)
        .stderr(Stdio::null())
        .spawn()?;
    wait::until("the newest event", SOON, || fs::read_to_string(&log).is_ok_and(|text| !text.is_empty()))?;
    let before = events(&cluster, "node-registered")?;
    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    wait::until("another leader", SOON, || cluster.leader().is_ok_and(|new| new != leader))?;
    cluster.start(&leader)?;
    ensure!(events(&cluster, "node-registered")?.starts_with(&before), "events were lost with their leader");
    let followed = || fs::read_to_string(&log).unwrap_or_default();
    wait::until("the new leader is told", SOON, || {
        followed().lines().any(|line| line.contains("\"leader-changed\"") && !line.contains(&format!("{leader} (")))
    })?;
    follow.kill()?;
    follow.wait()?;
    let numbers: Vec<u64> = followed()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line)?["number"].as_u64().context("a number"))
        .collect::<Result<_>>()?;
    ensure!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    expect(&cluster, 2, &["events", "--kind", "no-such-kind"])?;
    cluster.finish([])
}
