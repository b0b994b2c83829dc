//! Storage nodes with several data directories, each on a file system of its own, that fail alone.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster,
    cluster::Builder,
    files::{self, CHUNK},
    logs, wait,
};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(90);
const NODE: &str = "storage-1";

/// A file system in a file.
struct Loop {
    at: PathBuf,
    image: PathBuf,
}

impl Loop {
    fn make(dir: &Path, name: &str, size: &str) -> Result<Self> {
        let (at, image) = (dir.join(name), dir.join(format!("{name}.img")));
        fs::create_dir_all(&at)?;
        files::run("truncate", &["-s", size, &image.display().to_string()])?;
        files::run("mkfs.ext4", &["-q", "-F", "-m", "0", &image.display().to_string()])?;
        let disk = Self { at, image };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        files::sh("mount -o loop,errors=remount-ro \"$1\" \"$2\"", &[&self.image, &self.at])?;
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        files::sh("umount \"$1\"", &[&self.at])?;
        Ok(())
    }

    /// Has the kernel stop all writes to it, as it does when it finds the file system damaged.
    fn fail_writes(&self) -> Result<()> {
        let script = "device=$(findmnt -n -o SOURCE \"$1\") && echo test > /sys/fs/ext4/${device##*/}/trigger_fs_error";
        files::sh(script, &[&self.at])?;
        Ok(())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Also when the test failed and a process still has files open there.
        let _ = files::sh("umount -l \"$1\" 2>/dev/null || true", &[&self.at]);
    }
}

/// Three storage nodes, of which the first has these disks.
fn cluster(builder: Builder, sizes: [&str; 2]) -> Result<(Cluster, [Loop; 2])> {
    let mut cluster = builder.faults().expect_log("disk").describe()?;
    let dir = cluster.data_dir(NODE);
    let [one, two] = [("d1", sizes[0]), ("d2", sizes[1])].map(|(name, size)| Loop::make(&dir, name, size));
    let disks = [one?, two?];
    let list = disks.iter().map(|disk| disk.at.display().to_string()).collect::<Vec<_>>().join(",");
    cluster.node(NODE).set_flag("--data-dir", &list);
    cluster.start_all()?;
    Ok((cluster, disks))
}

fn chunks(disk: &Loop) -> Result<usize> {
    Ok(files::sh("find \"$1\" -name '*.chunk' | wc -l", &[&disk.at])?.trim().parse()?)
}

fn node(cluster: &Cluster) -> Result<Value> {
    let nodes: Value = serde_json::from_str(&cluster.dfsctl_ok(&["nodes", "--json"])?)?;
    let found = nodes.as_array().context("an array")?.iter().find(|node| node["name"] == NODE);
    Ok(found.context("the node")?.clone())
}

fn failed_disks(cluster: &Cluster) -> Result<Vec<String>> {
    let node = node(cluster)?;
    let disks = node["disks"].as_array().context("disks")?.clone();
    Ok(disks
        .iter()
        .filter(|disk| disk["failed"] == true)
        .filter_map(|disk| Some(disk["path"].as_str()?.to_owned()))
        .collect())
}

fn events(cluster: &Cluster, kind: &str) -> Result<Vec<Value>> {
    Ok(serde_json::from_str(&cluster.dfsctl_ok(&["events", "--json", "--kind", kind, "-n", "0"])?)?)
}

/// Writes files of a chunk, and gives their sums.
fn fill(mount: &Path, prefix: &str, count: u64) -> Result<Vec<(PathBuf, String)>> {
    (0..count)
        .map(|n| {
            let path = mount.join(format!("{prefix}{n}"));
            let sum = files::write_noise(&path, n, CHUNK as u64)?;
            Ok((path, sum))
        })
        .collect()
}

fn check(files: &[(PathBuf, String)]) -> Result<()> {
    for (path, sum) in files {
        ensure!(files::sha256(path)? == *sum, "{}", path.display());
    }
    Ok(())
}

#[test]
fn a_disk_that_takes_no_writes_any_more_fails_alone_and_its_chunks_are_replaced() -> Result<()> {
    let (mut cluster, disks) = cluster(Cluster::builder().storage_flag("--reserve", "0"), ["300M", "300M"])?;
    let mut mount = cluster.mount()?;
    let written = fill(mount.path(), "f", 12)?;
    cluster.wait_healthy(SOON)?;
    let (first, second) = (chunks(&disks[0])?, chunks(&disks[1])?);
    ensure!(first + second == 12 && first >= 4 && second >= 4, "{first} and {second}: not spread");
    let shown = node(&cluster)?["disks"].as_array().context("disks")?.len();
    ensure!(shown == 2, "{shown} disks are shown");
    disks[1].fail_writes()?;
    // The next write there fails, for the node only: it has another disk, and the cluster other nodes.
    let more = fill(mount.path(), "g", 6)?;
    let path = disks[1].at.display().to_string();
    wait::until("it is taken out", SOON, || failed_disks(&cluster).is_ok_and(|failed| failed == [path.clone()]))?;
    let told = wait::until_some("that is told", SOON, || events(&cluster, "disk-failed").ok()?.pop())?;
    ensure!(told["fields"]["node"] == NODE && told["fields"]["disk"] == path, "{told}");
    ensure!(told["fields"]["reason"].as_str().is_some_and(|reason| reason.contains("read-only")), "{told}");
    ensure!(cluster.dfsctl_ok(&["nodes"])?.contains("FAILED"));
    // What was on it is missed from the next inventory on.
    wait::until("everything is on the other disk", SOON, || chunks(&disks[0]).is_ok_and(|count| count == 18))?;
    cluster.wait_healthy(SOON)?;
    mount.remount()?;
    check(&written)?;
    check(&more)?;
    cluster.dfsctl_ok(&["fsck", "/", "--verify"])?;
    cluster.finish([mount])
}

#[test]
fn a_disk_that_is_emptied_fails_and_one_that_is_back_counts_again() -> Result<()> {
    let (mut cluster, disks) = cluster(Cluster::builder().storage_flag("--reserve", "0"), ["300M", "300M"])?;
    let mut mount = cluster.mount()?;
    let written = fill(mount.path(), "f", 12)?;
    cluster.wait_healthy(SOON)?;
    ensure!(chunks(&disks[0])? > 0);
    // Somebody moves everything on it away, and back a while later.
    let (at, away) = (&disks[0].at, disks[0].at.join(".away"));
    files::sh("mkdir \"$2\" && mv \"$1\"/* \"$2\"/", &[at, &away])?;
    let path = at.display().to_string();
    wait::until("it is taken out", SOON, || failed_disks(&cluster).is_ok_and(|failed| failed == [path.clone()]))?;
    cluster.wait_healthy(SOON)?;
    mount.remount()?;
    check(&written)?;
    files::sh("mv \"$2\"/* \"$1\"/ && rmdir \"$2\"", &[at, &away])?;
    wait::until("it is back", SOON, || failed_disks(&cluster).is_ok_and(|failed| failed.is_empty()))?;
    wait::until_some("that is told", SOON, || events(&cluster, "disk-returned").ok()?.pop())?;
    // Its copies were made again on the other disk meanwhile: one of each goes.
    wait::until("nothing is there twice", SOON, || {
        chunks(&disks[0]).is_ok_and(|first| chunks(&disks[1]).is_ok_and(|second| first + second == 12))
    })?;
    cluster.wait_healthy(SOON)?;
    check(&written)?;
    cluster.dfsctl_ok(&["fsck", "/", "--verify"])?;
    cluster.finish([mount])
}

#[test]
fn a_full_disk_is_no_failure_and_the_other_takes_what_comes() -> Result<()> {
    let (mut cluster, disks) = cluster(Cluster::builder().storage_flag("--reserve", "0"), ["24M", "400M"])?;
    let mount = cluster.mount()?;
    // Foreign bytes fill the small one under the process.
    files::sh("dd if=/dev/zero of=\"$1\"/ballast bs=64k 2>/dev/null; sync; true", &[&disks[0].at])?;
    let written = fill(mount.path(), "f", 10)?;
    cluster.wait_healthy(SOON)?;
    ensure!(chunks(&disks[0])? == 0 && chunks(&disks[1])? == 10);
    ensure!(failed_disks(&cluster)?.is_empty());
    check(&written)?;
    cluster.finish([mount])
}

#[test]
fn disks_are_added_while_stopped_and_foreign_ones_refuse_the_start() -> Result<()> {
    let (mut cluster, disks) = cluster(Cluster::builder().storage_flag("--reserve", "0"), ["200M", "200M"])?;
    let mount = cluster.mount()?;
    let written = fill(mount.path(), "f", 6)?;
    cluster.wait_healthy(SOON)?;
    cluster.stop(NODE)?;
    let third = Loop::make(&cluster.data_dir(NODE), "d3", "200M")?;
    let list = |paths: &[&Path]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",");
    let copy = cluster.data_dir(NODE).join("copy");
    files::sh("mkdir \"$2\" && cp \"$1\"/IDENTITY \"$2\"/", &[&disks[0].at, &copy])?;
    let other = cluster.data_dir("storage-2");
    let refusals: [(&Path, &str); 3] =
        [(&copy, "is a copy of"), (&disks[0].at, "is given twice"), (&other, "another process")];
    for (path, why) in refusals {
        let flag = list(&[&disks[0].at, &disks[1].at, path]);
        cluster.node(NODE).set_flag("--data-dir", &flag);
        cluster.start(NODE)?;
        cluster.node(NODE).wait_exit(SOON)?;
        let said = logs::tail(&cluster.log(NODE), 3);
        ensure!(said.contains(why) && said.contains(&path.display().to_string()), "{why}: {said}");
    }
    cluster.node(NODE).set_flag("--data-dir", &list(&[&third.at, &disks[1].at, &disks[0].at]));
    cluster.start(NODE)?;
    cluster.wait_alive(3)?;
    cluster.wait_healthy(SOON)?;
    let ids: BTreeSet<String> = node(&cluster)?["disks"]
        .as_array()
        .context("disks")?
        .iter()
        .filter_map(|disk| Some(disk["disk_id"].as_str()?.to_owned()))
        .collect();
    ensure!(ids.len() == 3, "{ids:?}");
    // The emptiest one is filled first.
    let more = fill(mount.path(), "g", 4)?;
    ensure!(chunks(&third)? >= 3, "{}", chunks(&third)?);
    check(&written)?;
    check(&more)?;
    cluster.finish([mount])
}

#[test]
fn a_node_starts_without_a_disk_that_is_gone_and_serves_nothing_without_any() -> Result<()> {
    let (mut cluster, disks) = cluster(Cluster::builder().storage_flag("--reserve", "0"), ["200M", "200M"])?;
    let mut mount = cluster.mount()?;
    let written = fill(mount.path(), "f", 8)?;
    cluster.wait_healthy(SOON)?;
    cluster.kill(NODE)?;
    disks[0].unmount()?;
    // A file where the directory was: it cannot be made either.
    fs::remove_dir(&disks[0].at)?;
    fs::write(&disks[0].at, b"")?;
    cluster.start(NODE)?;
    cluster.wait_alive(3)?;
    let path = disks[0].at.display().to_string();
    wait::until("it says so", SOON, || failed_disks(&cluster).is_ok_and(|failed| failed == [path.clone()]))?;
    cluster.wait_healthy(SOON)?;
    check(&written)?;
    // The last one goes too.
    let away = disks[1].at.join(".away");
    files::sh("mkdir \"$2\" && mv \"$1\"/* \"$2\"/", &[&disks[1].at, &away])?;
    wait::until("it serves nothing", SOON, || logs::tail(&cluster.log(NODE), 200).contains("it serves nothing"))?;
    wait::until("its chunks are gone", SOON, || {
        cluster.status().is_ok_and(|status| status["chunks"]["under_replicated"] == 8)
    })?;
    mount.remount()?;
    check(&written)?;
    files::sh("mv \"$2\"/* \"$1\"/ && rmdir \"$2\"", &[&disks[1].at, &away])?;
    cluster.wait_healthy(SOON)?;
    fs::remove_file(&disks[0].at)?;
    fs::create_dir(&disks[0].at)?;
    disks[0].mount()?;
    wait::until("the first is back as well", SOON, || failed_disks(&cluster).is_ok_and(|failed| failed.is_empty()))?;
    check(&written)?;
    cluster.finish([mount])
}
