//! Everything goes wrong at once, and machines are cut off from each other. These tests need root, for network namespaces and
//! loop mounts.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dfs_tests::{
    Cluster, Mount,
    chaos::{self, Settings},
    files,
    network::{self, Way},
    wait,
};

/// What a write on the side of the majority may take: an election, and the deadline of an attempt before it.
const ELECTED_MAX: Duration = Duration::from_secs(20);

#[test]
fn what_was_acknowledged_survives_a_minute_of_chaos() -> Result<()> {
    let seed = std::env::var("DFS_CHAOS_SEED").ok().map(|seed| seed.parse()).transpose().context("DFS_CHAOS_SEED")?;
    let settings = Settings { seed: seed.unwrap_or(3), rounds: 1, round: Duration::from_secs(40), verbose: true };
    let report = chaos::run(&settings)?;
    println!("{report}");
    ensure!(report.findings.is_empty(), "again: scripts/chaos.sh 1 --seed {} --rounds 1", settings.seed);
    let (in_trees, small) = report.acknowledged;
    ensure!(report.faults.len() > 3 && in_trees > 0 && small > 20, "too little happened");
    ensure!(report.histories.0 > 5 && report.histories.1 == 0, "too little was judged");
    Ok(())
}

struct Sides {
    cluster: Cluster,
    /// Cut off, together with the one who leads at first.
    few: Mount,
    many: Mount,
    leader: String,
}

fn sides() -> Result<Sides> {
    let mut cluster = Cluster::builder().metas(3).machines(2).faults().start()?;
    let few = cluster.mount_with("cache=0,timeout=3s")?;
    let many = cluster.mount_with("cache=0,timeout=3s")?;
    files::write(&many.join("f"), b"old")?;
    ensure!(fs::read(few.join("f"))? == b"old");
    let leader = cluster.leader()?;
    Ok(Sides { cluster, few, many, leader })
}

/// Reads `f` again and again; returns when each read that was answered with the old content began.
fn stale_reads(path: &Path, stop: &AtomicBool) -> Vec<Instant> {
    let mut begun = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if fs::read(path).is_ok_and(|bytes| bytes == b"old") {
            begun.push(now);
        }
    }
    begun
}

fn write_until_it_works(path: &Path, bytes: &[u8]) -> Result<()> {
    wait::until("a write on the majority's side", ELECTED_MAX, || files::write(path, bytes).is_ok())
}

#[test]
fn a_minority_that_is_cut_off_refuses_writes_and_stale_reads() -> Result<()> {
    let Sides { mut cluster, few, many, leader } = sides()?;
    let others: Vec<String> = (1..=3).map(|i| format!("meta-{i}")).filter(|name| *name != leader).collect();
    let majority: Vec<&str> = others.iter().map(String::as_str).chain(["mnt-2"]).collect();
    let mut ways = network::ways(&leader, &majority, Way::Both);
    ways.extend(network::ways("mnt-1", &majority, Way::Both));

    let (stop, path) = (AtomicBool::new(false), few.join("f"));
    thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| stale_reads(&path, &stop));
        cluster.network()?.cut(&ways)?;
        let written = write_until_it_works(&many.join("f"), b"new");
        let since = Instant::now();
        let refused = written.and_then(|()| refuses(&few));
        stop.store(true, Ordering::Relaxed);
        let stale = reader.join().expect("the reader does not panic");
        refused?;
        ensure!(!stale.is_empty(), "nothing was read before the cut");
        ensure!(
            stale.iter().all(|begun| *begun < since),
            "the old content was read after the new one was acknowledged"
        );
        Ok(())
    })?;
    ensure!(fs::read(many.join("f"))? == b"new");

    cluster.network()?.heal()?;
    wait::until("the mount works again", ELECTED_MAX, || fs::read(few.join("f")).is_ok_and(|bytes| bytes == b"new"))?;
    wait::until("it can write", ELECTED_MAX, || files::write(&few.join("g"), b"g").is_ok())?;
    ensure!(fs::read(many.join("g"))? == b"g");
    cluster.wait_alive(3)?;
    cluster.finish([few, many])
}

/// What the mount that reaches only the cut off node must answer: nothing that it cannot know, and in bounded time.
fn refuses(few: &Mount) -> Result<()> {
    let begun = Instant::now();
    let errors = [
        ("read", fs::read(few.join("f")).map(drop)),
        ("look for what is not there", fs::metadata(few.join("unknown")).map(drop)),
        ("list", fs::read_dir(few.path()).and_then(|dir| dir.collect::<std::io::Result<Vec<_>>>()).map(drop)),
        ("write", files::write(&few.join("h"), b"h")),
        ("mkdir", fs::create_dir(few.join("d"))),
        ("remove", fs::remove_file(few.join("f"))),
        ("rename", fs::rename(few.join("f"), few.join("e"))),
    ];
    for (what, result) in errors {
        let error = result.err().with_context(|| format!("{what}: no error"))?;
        ensure!(error.raw_os_error() == Some(libc::EIO), "{what}: {error}");
    }
    ensure!(begun.elapsed() < 7 * 4 * Duration::from_secs(3), "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn a_leader_that_hears_nobody_or_is_heard_by_nobody_is_replaced() -> Result<()> {
    for way in [Way::Inward, Way::Outward] {
        let Sides { mut cluster, few, many, leader } = sides()?;
        let everybody = ["meta-1", "meta-2", "meta-3", "mnt-1", "mnt-2", "storage-1", "storage-2", "storage-3"];
        cluster.network()?.cut(&network::ways(&leader, &everybody, way))?;
        write_until_it_works(&many.join("f"), b"new").with_context(|| format!("{way:?}"))?;
        wait::until("the other mount sees it", ELECTED_MAX, || {
            fs::read(few.join("f")).is_ok_and(|bytes| bytes == b"new")
        })?;
        cluster.network()?.heal()?;
        cluster.wait_alive(3)?;
        ensure!(fs::read(few.join("f"))? == b"new" && fs::read(many.join("f"))? == b"new");
        cluster.finish([few, many])?;
    }
    Ok(())
}
