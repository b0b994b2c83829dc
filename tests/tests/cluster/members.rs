//! The metadata nodes themselves: added, removed, replaced, handed over, lost, restored.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{Cluster, Mount, bins, cluster, files, wait};
use serde_json::Value;

/// Nothing that is waited for here takes this long on an idle machine.
const LONG: Duration = Duration::from_secs(60);
/// Bytes of a small file: one chunk.
const SMALL: usize = 10_000;

/// Writes files one after the other and reads earlier ones back, until it is told to stop; the names that were acknowledged. A write
/// that failed is tried again under its name.
fn write_and_read(mount: &Mount, stop: &AtomicBool) -> Result<u64> {
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        files::write(&mount.join(format!("f{next}")), &files::noise(next, SMALL))
            .with_context(|| format!("f{next}"))?;
        let earlier = next / 2;
        let got = fs::read(mount.join(format!("f{earlier}"))).with_context(|| format!("f{earlier}"))?;
        ensure!(got == files::noise(earlier, SMALL), "f{earlier} has other bytes");
        next += 1;
    }
    Ok(next)
}

fn check_files(mount: &Mount, count: u64) -> Result<()> {
    for i in 0..count {
        let got = fs::read(mount.join(format!("f{i}"))).with_context(|| format!("f{i} was acknowledged"))?;
        ensure!(got == files::noise(i, SMALL), "f{i} has other bytes");
    }
    Ok(())
}

/// Names of the voters, as the leader has them.
fn voters(cluster: &Cluster) -> Result<Vec<String>> {
    let answers: Value = serde_json::from_str(&cluster.dfsctl_ok(&["meta", "status", "--json"])?)?;
    let nodes = answers.as_array().context("an array")?;
    let leader = nodes.iter().find(|node| node["role"] == "leader").context("a leader")?;
    let members = leader["members"].as_array().context("members")?;
    let voters = members.iter().filter(|member| member["voter"] == true);
    Ok(voters.filter_map(|member| member["name"].as_str().map(str::to_owned)).collect())
}

/// Waits until the process of a removed node has ended with an error, and sees that it does not start again.
fn is_out(cluster: &mut Cluster, name: &str) -> Result<()> {
    let ended = cluster.node(name).wait_exit(LONG)?;
    ensure!(!ended.success(), "{name} says why it ended");
    let log = fs::read_to_string(cluster.log(name))?;
    ensure!(log.contains("was removed from its cluster"), "{log}");
    cluster.start(name)?;
    let ended = cluster.node(name).wait_exit(LONG)?;
    ensure!(!ended.success(), "{name} does not come back");
    Ok(())
}

#[test]
fn every_member_is_replaced_while_a_mount_works() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).meta_flag("--session-lease", "3s").faults().start()?;
    let mount = cluster.mount()?;
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| -> Result<u64> {
        let writer = scope.spawn(|| write_and_read(&mount, &stop));
        let replaced = (|| {
            // Dead, and replaced in one step.
            cluster.kill("meta-1")?;
            let address = cluster.join_meta(4)?;
            cluster.forget_meta(1);
            cluster.dfsctl_ok(&["meta", "replace", "meta-1", "meta-4", &address])?;
            cluster.use_meta(&address);
            // Alive: add, then remove; whoever leads hands over.
            for (new, old) in [(5, 2), (6, 3)] {
                let address = cluster.join_meta(new)?;
                cluster.dfsctl_ok(&["meta", "add", &format!("meta-{new}"), &address])?;
                cluster.use_meta(&address);
                cluster.dfsctl_ok(&["meta", "remove", &format!("meta-{old}")])?;
                cluster.forget_meta(old);
                is_out(&mut cluster, &format!("meta-{old}"))?;
            }
            ensure!(voters(&cluster)? == ["meta-4", "meta-5", "meta-6"]);
            // It was told of the first three only, and none of them is left.
            cluster.stop("storage-1")?;
            cluster.start("storage-1")?;
            cluster.wait_alive(3)?;
            // Members come back with what they know of each other: meta-4 was told to join three that are gone.
            for name in ["meta-4", "meta-5", "meta-6"] {
                cluster.node(name).kill()?;
            }
            for name in ["meta-4", "meta-5", "meta-6"] {
                cluster.start(name)?;
            }
            cluster.wait_alive(3)
        })();
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().expect("the writer does not panic");
        replaced?;
        written
    })?;
    ensure!(written > 3, "{written} files");
    check_files(&mount, written)?;
    cluster.finish([mount])
}

#[test]
fn changes_that_would_stop_the_cluster_are_refused_with_the_reason() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).storages(0).faults().start()?;
    let leader = cluster.leader()?;
    let refused = |cluster: &Cluster, args: &[&str], why: &str| -> Result<()> {
        let output = cluster.dfsctl(&[&["meta"], args].concat())?;
        ensure!(output.code != 0 && output.stderr.contains(why), "{args:?}: {output:?}");
        Ok(())
    };
    let nobody = cluster.meta_address(9);
    refused(&cluster, &["add", "meta-9", &nobody], "--join")?;
    refused(&cluster, &["remove", "meta-9"], "members are meta-1, meta-2, meta-3")?;
    refused(&cluster, &["add", "x-1", &nobody], "the same number")?;
    refused(&cluster, &["add", "meta-9", &cluster.meta_address(1)], "is the address of")?;
    refused(&cluster, &["add", "meta-2", &cluster.meta_address(2)], "is a member already")?;
    let others: Vec<String> = (1..=3).map(|i| format!("meta-{i}")).filter(|name| *name != leader).collect();
    cluster.kill(&others[0])?;
    // At once: nobody has noticed yet that it is dead.
    refused(&cluster, &["remove", &others[1]], &format!("Bring back {}", others[0]))?;
    ensure!(voters(&cluster)?.len() == 3, "nothing was changed");
    cluster.dfsctl_ok(&["meta", "remove", &others[0]])?;
    ensure!(voters(&cluster)?.len() == 2);
    // Removed while it was down: it finds out by itself.
    cluster.start(&others[0])?;
    is_out(&mut cluster, &others[0])?;
    cluster.finish([])
}

#[test]
fn a_change_that_was_cut_short_is_completed_or_taken_back() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let mount = cluster.mount()?;
    files::write(&mount.join("before"), b"x")?;
    let address = cluster.join_meta(4)?;
    wait::until("it waits", LONG, || {
        fs::read_to_string(cluster.log("meta-4")).is_ok_and(|log| log.contains("dfsctl meta add meta-4"))
    })?;
    // The new node is stopped in the middle: it is a learner that gets nothing; then the leader dies.
    let leader = cluster.leader()?;
    let addresses = cluster.meta_addresses();
    let add = thread::scope(|scope| -> Result<cluster::Output> {
        let adding =
            scope.spawn(|| cluster::dfsctl(&["--meta", &addresses, "meta", "add", "meta-4", &address, "--json"]));
        cluster.node("meta-4").signal(libc::SIGSTOP)?;
        wait::until("it is a learner, or a voter already", LONG, || {
            let answers = cluster::dfsctl(&["--meta", &addresses, "meta", "status", "--json"]);
            answers.is_ok_and(|output| output.stdout.contains("\"meta-4\"")) || adding.is_finished()
        })?;
        cluster.node(&leader).kill()?;
        adding.join().expect("does not panic")
    })?;
    cluster.node("meta-4").signal(libc::SIGCONT)?;
    println!("add was told: {add:?}");
    cluster.start(&leader)?;
    cluster.wait_alive(3)?;
    // The same command again goes on from wherever it stood.
    wait::until("the node is a voter", LONG, || {
        let again = cluster.dfsctl(&["meta", "add", "meta-4", &address]);
        again.is_ok_and(|output| output.code == 0 || output.stderr.contains("is a member already"))
    })?;
    cluster.use_meta(&address);
    ensure!(voters(&cluster)?.len() == 4);
    cluster.dfsctl_ok(&["meta", "remove", "meta-4"])?;
    cluster.forget_meta(4);
    is_out(&mut cluster, "meta-4")?;
    files::write(&mount.join("after"), b"y")?;
    cluster.finish([mount])
}

#[test]
fn the_leadership_is_handed_over_without_an_election_by_silence() -> Result<()> {
    // Elections take ten seconds here, so a pause of less cannot be one.
    let mut cluster = Cluster::builder()
        .metas(3)
        .meta_flag("--raft-heartbeat", "1s")
        .meta_flag("--election-min", "8s")
        .meta_flag("--election-max", "10s")
        .start()?;
    let mount = cluster.mount()?;
    files::write(&mount.join("a"), b"a")?;
    for to in ["meta-2", "meta-3", "meta-1"] {
        let told: Value = serde_json::from_str(&cluster.dfsctl_ok(&["meta", "transfer-leader", to, "--json"])?)?;
        println!("{told}");
        ensure!(told["leader"] == to && told["pause_us"].as_u64().context("a pause")? < 4_000_000, "{told}");
        ensure!(cluster.leader()? == to);
        files::write(&mount.join(format!("to-{to}")), b"x")?;
    }
    // A rolling restart: each of them leads, and ends by SIGTERM.
    for _ in 0..3 {
        let leader = cluster.leader()?;
        let begun = Instant::now();
        cluster.stop(&leader)?;
        files::write(&mount.join(format!("without-{leader}-{}", begun.elapsed().as_nanos())), b"x")?;
        println!("{leader} stopped and a file written after {:?}", begun.elapsed());
        ensure!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
        cluster.start(&leader)?;
        cluster.wait_alive(3)?;
    }
    cluster.finish([mount])
}

#[test]
fn a_paused_leader_costs_an_election_and_nothing_else() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let mount = cluster.mount()?;
    let leader = cluster.leader()?;
    let paused = cluster.meta_address(leader.trim_start_matches("meta-").parse()?);
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| -> Result<u64> {
        let writer = scope.spawn(|| write_and_read(&mount, &stop));
        let paused = (|| {
            wait::until("files are written", LONG, || mount.join("f5").exists())?;
            cluster.node(&leader).signal(libc::SIGSTOP)?;
            let begun = Instant::now();
            // Asked of the others: a client that begins with the paused node looks for the leader first.
            let others: Vec<_> =
                (1..=3).map(|i| cluster.meta_address(i)).filter(|address| *address != paused).collect();
            let next = wait::until_some("another leader", LONG, || {
                let status = cluster::dfsctl(&["--meta", &others.join(","), "status", "--json"]).ok()?;
                let status: Value = serde_json::from_str(&status.stdout).ok()?;
                status["meta"]["leader"].as_str().filter(|now| !now.is_empty() && *now != leader).map(str::to_owned)
            })?;
            // At default timings it takes about one second; the rest is for a loaded machine. A client that waits for its
            // call's timeout would take longer.
            ensure!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            println!("{next} leads {:?} after {leader} was paused", begun.elapsed());
            while begun.elapsed() < Duration::from_secs(10) {
                thread::sleep(Duration::from_millis(100));
            }
            cluster.node(&leader).signal(libc::SIGCONT)?;
            wait::until("it follows", LONG, || voters(&cluster).is_ok_and(|voters| voters.len() == 3))
        })();
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().expect("the writer does not panic");
        paused?;
        written
    })?;
    ensure!(written > 20, "{written} files");
    check_files(&mount, written)?;
    cluster.finish([mount])
}

#[test]
fn a_leader_that_is_cut_off_answers_neither_reads_nor_writes() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let mut mount = cluster.mount_with("timeout=4s")?;
    files::write(&mount.join("f"), b"x")?;
    let leader = cluster.leader()?;
    let others: Vec<String> = (1..=3).map(|i| format!("meta-{i}")).filter(|name| *name != leader).collect();
    for name in &others {
        cluster.node(name).signal(libc::SIGSTOP)?;
    }
    let address = cluster.meta_address(leader.trim_start_matches("meta-").parse()?);
    wait::until("the lease has ended", LONG, || {
        let listed = cluster::dfsctl(&["--meta", &address, "--deadline", "1s", "ls", "/"]);
        listed.is_ok_and(|output| output.code == 6)
    })?;
    let begun = Instant::now();
    ensure!(files::errno(fs::metadata(mount.join("unknown"))) == libc::EIO, "a read");
    ensure!(files::errno(files::write(&mount.join("g"), b"y")) == libc::EIO, "a write");
    ensure!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    for name in &others {
        cluster.node(name).signal(libc::SIGCONT)?;
    }
    wait::until("it works again", LONG, || files::write(&mount.join("h"), b"z").is_ok())?;
    mount.remount()?;
    ensure!(fs::read(mount.join("f"))? == b"x");
    cluster.finish([mount])
}

#[test]
fn all_are_killed_one_is_wiped_and_nothing_is_lost() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let mount = cluster.mount()?;
    let mut count = 0;
    for round in 0..2 {
        for _ in 0..10 {
            files::write(&mount.join(format!("f{count}")), &files::noise(count, SMALL))?;
            count += 1;
        }
        for i in 1..=3 {
            cluster.kill(&format!("meta-{i}"))?;
        }
        for i in 1..=3 {
            cluster.start(&format!("meta-{i}"))?;
        }
        cluster.wait_alive(3)?;
        check_files(&mount, count).with_context(|| format!("round {round}"))?;
    }
    let leader = cluster.leader()?;
    let wiped = if leader == "meta-3" { "meta-2" } else { "meta-3" };
    cluster.kill(wiped)?;
    fs::remove_dir_all(cluster.data_dir(wiped))?;
    cluster.start(wiped)?;
    wait::until("it takes part again", LONG, || {
        fs::read_to_string(cluster.log(wiped)).is_ok_and(|log| log.contains("has caught up and takes part"))
    })?;
    // With it and without the old leader there is a majority that knows everything.
    cluster.kill(&leader)?;
    cluster.wait_alive(3)?;
    check_files(&mount, count)?;
    cluster.start(&leader)?;
    cluster.finish([mount])
}

/// Every file below `root` with its bytes.
fn tree(root: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        found.insert(path.file_name().context("a name")?.to_string_lossy().into_owned(), fs::read(&path)?);
    }
    Ok(found)
}

fn chunk_files(cluster: &Cluster) -> Result<usize> {
    let count = files::sh("find \"$1\"/storage-* -name '*.chunk' -type f | wc -l", &[cluster.dir()])?;
    Ok(count.trim().parse()?)
}

/// Runs `dfs-meta` to its end.
fn dfs_meta(args: &[&str]) -> Result<cluster::Output> {
    cluster::run(&bins::path("dfs-meta")?, args)
}

#[test]
fn a_backup_is_restored_into_new_metadata_nodes() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).meta_flag("--gc-grace", "1s").faults().start()?;
    let mut mount = cluster.mount()?;
    fs::create_dir(mount.join("d"))?;
    for i in 0..20 {
        files::write(&mount.join(format!("d/old{i}")), &files::noise(i, SMALL * 7))?;
    }
    let before = tree(&mount.join("d"))?;
    let backup = cluster.scratch()?.join("meta.backup").display().to_string();
    println!("{}", cluster.dfsctl_ok(&["meta", "backup", &backup])?);
    let told: Value =
        serde_json::from_str(&cluster::dfsctl(&["meta", "backup", "--verify", &backup, "--json"])?.stdout)?;
    ensure!(told["backup"]["inodes"].as_u64() >= Some(22), "{told}");
    for i in 0..10 {
        files::write(&mount.join(format!("d/new{i}")), &files::noise(100 + i, SMALL))?;
    }
    cluster.wait_healthy(LONG)?;
    let chunks = chunk_files(&cluster)?;
    mount.kill()?;
    for i in 1..=3 {
        cluster.kill(&format!("meta-{i}"))?;
    }
    // One of the old ones survives somewhere with its data.
    let kept = cluster.scratch()?.join("kept");
    fs::rename(cluster.data_dir("meta-2"), &kept)?;
    fs::remove_dir_all(cluster.data_dir("meta-1"))?;
    fs::remove_dir_all(cluster.data_dir("meta-3"))?;

    let damaged = cluster.scratch()?.join("damaged").display().to_string();
    let mut bytes = fs::read(&backup)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes)?;
    let data = cluster.data_dir("meta-1").display().to_string();
    let address = cluster.meta_address(1);
    let restore = |from: &str| dfs_meta(&["restore", "--from", from, "--data-dir", &data, "--advertise", &address]);
    let output = restore(&damaged)?;
    ensure!(output.code != 0 && output.stderr.contains("damaged"), "{output:?}");
    ensure!(!Path::new(&data).exists(), "nothing was made of it");
    let output = restore(&backup)?;
    ensure!(output.code == 0 && output.stdout.contains("lost: "), "{output:?}");
    println!("{}", output.stdout);
    let output = restore(&backup)?;
    ensure!(output.code != 0 && output.stderr.contains("never overwrites"), "{output:?}");

    cluster.start("meta-1")?;
    cluster.forget_meta(2);
    cluster.forget_meta(3);
    cluster.wait_alive(3)?;
    mount.start_again()?;
    ensure!(tree(&mount.join("d"))? == before, "the tree is as of the backup");
    let status = cluster.dfsctl_ok(&["meta", "status"])?;
    ensure!(status.contains("restored from a backup"), "{status}");
    cluster.wait_healthy(LONG)?;
    ensure!(chunk_files(&cluster)? == chunks, "nothing that was written since was deleted");

    // The one that survived does not come in again.
    fs::rename(&kept, cluster.data_dir("meta-2"))?;
    cluster.start("meta-2")?;
    let ended = cluster.node("meta-2").wait_exit(LONG)?;
    let log = fs::read_to_string(cluster.log("meta-2"))?;
    ensure!(!ended.success() && log.contains("restored or rescued"), "{log}");

    files::write(&mount.join("d/later"), b"later")?;
    cluster.dfsctl_ok(&["meta", "restore-finish"])?;
    ensure!(!cluster.dfsctl_ok(&["meta", "status"])?.contains("restored from a backup"));
    cluster.finish([mount])
}

#[test]
fn the_last_metadata_node_is_rescued() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let mut mount = cluster.mount()?;
    for i in 0..20 {
        files::write(&mount.join(format!("f{i}")), &files::noise(i, SMALL))?;
    }
    let left = "meta-2";
    // It has everything: a write that all three have follows.
    wait::until("all have the whole log", LONG, || {
        cluster.status().is_ok_and(|status| {
            let members = status["meta"]["members"].as_array().cloned().unwrap_or_default();
            members.len() == 3 && members.iter().all(|member| member["lag"] == 0)
        })
    })?;
    mount.kill()?;
    for i in 1..=3 {
        cluster.kill(&format!("meta-{i}"))?;
    }
    for lost in ["meta-1", "meta-3"] {
        fs::remove_dir_all(cluster.data_dir(lost))?;
    }
    let data = cluster.data_dir(left).display().to_string();
    let output = dfs_meta(&["rescue", "--data-dir", &data])?;
    ensure!(output.code != 0 && output.stdout.contains("what may be lost"), "{output:?}");
    let output = dfs_meta(&["rescue", "--data-dir", &data, "--confirm", "1"])?;
    ensure!(output.code != 0 && output.stderr.contains("nothing was changed"), "{output:?}");
    let index = output.stderr.trim().rsplit(' ').next().context("the index")?.to_owned();
    let output = dfs_meta(&["rescue", "--data-dir", &data, "--confirm", &index])?;
    ensure!(output.code == 0, "{output:?}");
    println!("{}", output.stdout);
    cluster.start(left)?;
    cluster.forget_meta(1);
    cluster.forget_meta(3);
    cluster.wait_alive(3)?;
    mount.start_again()?;
    check_files(&mount, 20)?;
    ensure!(voters(&cluster)? == [left]);
    // And it grows again.
    let address = cluster.join_meta(4)?;
    cluster.dfsctl_ok(&["meta", "add", "meta-4", &address])?;
    cluster.use_meta(&address);
    ensure!(voters(&cluster)? == [left, "meta-4"]);
    files::write(&mount.join("later"), b"later")?;
    cluster.finish([mount])
}
