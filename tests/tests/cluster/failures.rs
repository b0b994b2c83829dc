//! Processes die while programs work: no error reaches the program, and nothing that was acknowledged is lost.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command},
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

/// The kernel releases a file shortly after its close has failed, and may know its name for a second longer.
const SOON: Duration = Duration::from_secs(5);

/// A tree whose copy takes a few seconds, so that a kill falls into it: many small files and some large ones.
fn make_tree(dir: &Path) -> Result<()> {
    for d in 0..10 {
        let sub = dir.join(format!("d{d}"));
        fs::create_dir_all(&sub)?;
        for f in 0..80 {
            fs::write(sub.join(format!("f{f}")), files::noise(d * 1000 + f, 5000))?;
        }
        fs::write(sub.join("large"), files::noise(d + 77, 3 * CHUNK + 999))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<Child> {
    Command::new("cp").arg("-a").arg(from).arg(to).spawn().context("cp")
}

/// Waits until the copy is under way and far from its end.
fn until_under_way(copy: &mut Child, to: &Path) -> Result<()> {
    wait::until("the copy is under way", Duration::from_secs(20), || to.join("d2/f5").exists())?;
    ensure!(copy.try_wait()?.is_none(), "the copy was over before the kill");
    Ok(())
}

/// Reads all files of a tree again and again until told to stop, and compares each with its original.
fn read_loop(source: &Path, copy: &Path, stop: &AtomicBool) -> Result<u32> {
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        for d in 0..10 {
            for name in ["f1", "f33", "large"] {
                let (want, got) = (source.join(format!("d{d}/{name}")), copy.join(format!("d{d}/{name}")));
                ensure!(fs::read(&want)? == fs::read(&got).with_context(|| got.display().to_string())?, "{got:?}");
            }
        }
        rounds += 1;
    }
    Ok(rounds)
}

/// Something that goes wrong.
type Fault<'a> = &'a mut dyn FnMut(&mut Cluster) -> Result<()>;

/// Runs one fault in the middle of `cp -a` and another in the middle of a read loop through a cold mount.
fn survive(cluster: &mut Cluster, mount: &mut Mount, faults: [Fault<'_>; 2]) -> Result<()> {
    let source: PathBuf = cluster.scratch()?.join("tree");
    make_tree(&source)?;
    let target = mount.join("tree");
    let [during_copy, during_reads] = faults;

    let mut cp = copy(&source, &target)?;
    until_under_way(&mut cp, &target)?;
    during_copy(cluster)?;
    ensure!(cp.wait()?.success(), "cp -a reports an error");
    files::same_tree(&source, &target)?;
    mount.remount()?;

    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| read_loop(&source, &target, &stop));
        let outcome = during_reads(cluster);
        let begun = Instant::now();
        // The loop reads on for a while after the fault, also what it has not read before.
        wait::until("read on", Duration::from_secs(6), || {
            begun.elapsed() > Duration::from_secs(5) || reader.is_finished()
        })?;
        stop.store(true, Ordering::Relaxed);
        let rounds = reader.join().expect("reader does not panic")?;
        ensure!(rounds > 0, "the loop never came round");
        outcome
    })?;
    files::same_tree(&source, &target)
}

#[test]
fn the_metadata_leader_dies_during_copy_and_reads() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let mut mount = cluster.mount()?;
    let mut kill_leader = |cluster: &mut Cluster| -> Result<()> {
        let leader = cluster.leader()?;
        cluster.kill(&leader)?;
        wait::until("another leader", Duration::from_secs(10), || cluster.leader().is_ok_and(|new| new != leader))?;
        cluster.start(&leader)
    };
    let mut again = kill_leader;
    survive(&mut cluster, &mut mount, [&mut kill_leader, &mut again])?;
    cluster.finish([mount])
}

#[test]
fn a_storage_node_dies_during_copy_and_reads() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).storages(4).faults().start()?;
    let mut mount = cluster.mount()?;
    let mut first = |cluster: &mut Cluster| cluster.kill("storage-2");
    let mut second = |cluster: &mut Cluster| {
        cluster.start("storage-2")?;
        cluster.wait_alive(4)?;
        cluster.kill("storage-3")
    };
    survive(&mut cluster, &mut mount, [&mut first, &mut second])?;
    cluster.start("storage-3")?;
    cluster.wait_alive(4)?;
    cluster.wait_healthy(Duration::from_secs(60))?;
    cluster.finish([mount])
}

#[test]
fn writes_resume_within_three_seconds_of_the_leaders_death() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let mount = cluster.mount()?;
    for round in 0..3 {
        files::write(&mount.join(format!("before-{round}")), b"x")?;
        let leader = cluster.leader()?;
        cluster.kill(&leader)?;
        let begun = Instant::now();
        files::write(&mount.join(format!("after-{round}")), b"y")?;
        let pause = begun.elapsed();
        ensure!(pause < Duration::from_secs(3), "round {round}: {pause:?}");
        cluster.start(&leader)?;
        cluster.wait_alive(3)?;
        wait::until("the killed node follows again", Duration::from_secs(10), || {
            cluster.status().is_ok_and(|status| {
                let members = status["meta"]["members"].as_array().cloned().unwrap_or_default();
                members.len() == 3 && members.iter().all(|member| member["reachable"] == true && member["lag"] == 0)
            })
        })?;
    }
    cluster.finish([mount])
}

#[test]
fn without_storage_nodes_a_write_fails_in_time_and_df_answers() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = cluster.mount_with("timeout=5s")?;
    files::write(&mount.join("before"), b"x")?;
    for i in 1..=3 {
        cluster.kill(&format!("storage-{i}"))?;
    }
    let begun = Instant::now();
    let errno = files::errno(files::write(&mount.join("f"), &files::noise(1, CHUNK + 1)));
    ensure!(errno == libc::EIO || errno == libc::ENOSPC, "errno {errno}");
    ensure!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    files::sh("timeout 3 df \"$1\" && timeout 3 ls \"$1\"", &[mount.path()])?;
    wait::until("nothing half visible", SOON, || fs::metadata(mount.join("f")).is_err())?;
    cluster.start_all()?;
    files::write(&mount.join("f"), b"works again")?;
    ensure!(fs::read(mount.join("f"))? == b"works again");
    ensure!(fs::read(mount.join("before"))? == b"x");
    cluster.finish([mount])
}

#[test]
fn without_a_write_quorum_a_write_fails_in_time() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = cluster.mount_with("timeout=5s")?;
    files::write(&mount.join("before"), b"x")?;
    cluster.kill("storage-1")?;
    cluster.kill("storage-3")?;
    let begun = Instant::now();
    let errno = files::errno(files::write(&mount.join("f"), b"y"));
    ensure!(errno == libc::EIO || errno == libc::ENOSPC, "errno {errno}");
    ensure!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    wait::until("nothing half visible", SOON, || fs::metadata(mount.join("f")).is_err())?;
    ensure!(fs::read(mount.join("before"))? == b"x", "one copy is enough to read");
    cluster.start_all()?;
    files::write(&mount.join("f"), b"y")?;
    cluster.finish([mount])
}

#[test]
fn without_metadata_the_mount_answers_with_an_error_and_recovers() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = cluster.mount_with("timeout=4s")?;
    let bytes = files::noise(1, CHUNK);
    files::write(&mount.join("f"), &bytes)?;
    cluster.kill("meta-1")?;
    let begun = Instant::now();
    let errno = files::errno(fs::metadata(mount.join("unknown")));
    ensure!(errno == libc::EIO, "errno {errno}");
    ensure!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    let answer = files::sh("timeout 20 df \"$1\" >/dev/null 2>&1; test $? -ne 124 && echo answered", &[mount.path()])?;
    ensure!(answer == "answered\n");
    cluster.start_all()?;
    wait::until("the mount works again", Duration::from_secs(15), || files::write(&mount.join("g"), b"g").is_ok())?;
    ensure!(fs::read(mount.join("f"))? == bytes);
    cluster.finish([mount])
}

#[test]
fn everything_is_killed_and_comes_back_identical() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).storages(4).faults().start()?;
    let mut mount = cluster.mount()?;
    let source = cluster.scratch()?.join("tree");
    make_tree(&source)?;
    files::sh("cp -a \"$1\" \"$2\"/tree", &[&source, mount.path()])?;
    mount.kill()?;
    for node in cluster.nodes() {
        node.kill()?;
    }
    cluster.start_all()?;
    mount.start_again()?;
    files::same_tree(&source, &mount.join("tree"))?;
    cluster.wait_healthy(Duration::from_secs(60))?;
    cluster.finish([mount])
}

#[test]
fn acknowledged_files_survive_the_death_of_everything_at_any_moment() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mut mount = cluster.mount()?;
    let mut acknowledged = 0;
    for round in 0..3 {
        let stop = AtomicBool::new(false);
        acknowledged = thread::scope(|scope| -> Result<u64> {
            let writer = scope.spawn(|| {
                let mut next = acknowledged;
                while !stop.load(Ordering::Relaxed) {
                    let path = mount.join(format!("f{next}"));
                    let bytes = files::noise(next, 20_000);
                    let written = File::create(&path).and_then(|mut file| {
                        file.write_all(&bytes)?;
                        files::close(file)
                    });
                    match written {
                        Ok(()) => next += 1,
                        Err(_) => break,
                    }
                }
                next
            });
            let seen = mount.join(format!("f{}", acknowledged + 20));
            wait::until("files are written", Duration::from_secs(20), || seen.exists())?;
            // Every server dies in mid-write; then the mount, so that its waiting writer ends.
            for node in cluster.nodes() {
                node.kill()?;
            }
            stop.store(true, Ordering::Relaxed);
            dfs_tests::process::send(mount.process().pid().context("mount runs")?, libc::SIGKILL)?;
            Ok(writer.join().expect("writer does not panic"))
        })
        .with_context(|| format!("round {round}"))?;
        mount.kill()?;
        cluster.start_all()?;
        mount.start_again()?;
        for i in 0..acknowledged {
            let got = fs::read(mount.join(format!("f{i}"))).with_context(|| format!("f{i} was acknowledged"))?;
            ensure!(got == files::noise(i, 20_000), "f{i}");
        }
    }
    ensure!(acknowledged >= 60);
    cluster.finish([mount])
}

#[test]
fn a_frozen_storage_node_delays_but_does_not_stop_work() -> Result<()> {
    let mut cluster = Cluster::builder().storages(4).faults().start()?;
    let mut mount = cluster.mount()?;
    let bytes = files::noise(1, 6 * CHUNK);
    files::write(&mount.join("before"), &bytes)?;
    mount.remount()?;
    cluster.node("storage-1").signal(libc::SIGSTOP)?;
    ensure!(fs::read(mount.join("before"))? == bytes, "read");
    files::write(&mount.join("during"), &bytes)?;
    ensure!(fs::read(mount.join("during"))? == bytes);
    cluster.node("storage-1").signal(libc::SIGCONT)?;
    cluster.wait_alive(4)?;
    cluster.wait_healthy(Duration::from_secs(60))?;
    cluster.finish([mount])
}

#[test]
fn damaged_bytes_on_disk_are_never_returned() -> Result<()> {
    let mut cluster = Cluster::builder().faults().expect_log("corrupt").expect_log("checksum").start()?;
    let mut mount = cluster.mount()?;
    let bytes = files::noise(1, 2 * CHUNK);
    files::write(&mount.join("f"), &bytes)?;
    cluster.wait_healthy(Duration::from_secs(10))?;
    mount.stop()?;
    // Two of three copies of everything are damaged behind the back of the nodes.
    for name in ["storage-1", "storage-2"] {
        let script = "find \"$1\" -name '*.chunk' -type f | while read -r f; do \
                      printf 'DAMAGE' | dd of=\"$f\" bs=1 seek=100000 conv=notrunc status=none; done; \
                      find \"$1\" -name '*.chunk' -type f | wc -l";
        let count = files::sh(script, &[&cluster.data_dir(name)])?;
        ensure!(count.trim() != "0", "no chunk files below {name}");
    }
    files::sh("sync; echo 3 > /proc/sys/vm/drop_caches || true", &[])?;
    mount.start_again()?;
    ensure!(fs::read(mount.join("f"))? == bytes, "the good copy is found");
    cluster.finish([mount])
}
