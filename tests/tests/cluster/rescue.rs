//! Restore and rescue of the metadata on real data, cut short at each of their steps: the same command again goes on, no node starts on
//! what is half done, and every file is what it was.

use std::{collections::BTreeMap, fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use dfs_tests::{Builder, Cluster, Mount, Output, bins, cluster, crash, files, process, wait};

/// Nothing that is waited for here takes this long on an idle machine.
const LONG: Duration = Duration::from_secs(60);
/// The moments at which both programs are killed, in their order.
const STEPS: [&str; 4] = ["anew-begun", "anew-snapshot", "anew-voted", "anew-purged"];
/// Chunks are small, so that a file has several.
const CHUNK: usize = 64 << 10;

fn builder() -> Builder {
    [
        ("--session-lease", "2s"),
        ("--unknown-grace", "4s"),
        ("--gc-grace", "1s"),
        ("--inventory-delay", "1s"),
        ("--chunk-size", "64K"),
    ]
    .into_iter()
    .fold(Cluster::builder().faults(), |builder, (flag, value)| builder.meta_flag(flag, value))
}

/// Writes files of one to four chunks; what their names and SHA-256 are.
fn store(mount: &Mount, first: u64, count: u64) -> Result<BTreeMap<String, String>> {
    let mut stored = BTreeMap::new();
    for number in first..first + count {
        let bytes = files::noise(number, 1000 + usize::try_from(number % 4)? * CHUNK);
        files::write(&mount.join(format!("f{number}")), &bytes)?;
        stored.insert(format!("f{number}"), files::sha256_of(&bytes));
    }
    Ok(stored)
}

/// Chunks of so many files, in the order of [`store`].
fn chunks(first: u64, count: u64) -> usize {
    (first..first + count).map(|number| usize::try_from(1 + number % 4).expect("small")).sum()
}

fn check(mount: &Mount, stored: &BTreeMap<String, String>) -> Result<()> {
    let found: Vec<String> =
        files::names(mount.path())?.into_iter().map(|name| name.to_string_lossy().into_owned()).collect();
    ensure!(found == stored.keys().cloned().collect::<Vec<_>>(), "names: {found:?}");
    for (name, sha256) in stored {
        let got = fs::read(mount.join(name)).with_context(|| name.clone())?;
        ensure!(files::sha256_of(&got) == *sha256, "{name} differs");
    }
    Ok(())
}

fn chunk_files(cluster: &Cluster) -> Result<usize> {
    let count = files::sh("find \"$1\"/storage-*/chunks -type f | wc -l", &[cluster.dir()])?;
    Ok(count.trim().parse()?)
}

/// Runs `dfs-meta`, which dies at `point`.
fn dies(args: &[&str], point: &str) -> Result<()> {
    let mut program = process::command(&bins::path("dfs-meta")?);
    let output = program.args(args).env(crash::VARIABLE, point).stdin(Stdio::null()).output()?;
    crash::died_there(output.status, point, &String::from_utf8_lossy(&output.stderr))
}

fn dfs_meta(args: &[&str]) -> Result<Output> {
    cluster::run(&bins::path("dfs-meta")?, args)
}

/// No node starts on a directory that is half made, and it says which command must be run again.
fn does_not_start(cluster: &mut Cluster, node: &str, verb: &str) -> Result<()> {
    cluster.start(node)?;
    let ended = cluster.node(node).wait_exit(LONG)?;
    let log = fs::read_to_string(cluster.log(node))?;
    let why = format!("`dfs-meta {verb}` was interrupted");
    ensure!(!ended.success() && log.contains(&why), "{ended}: {log}");
    Ok(())
}

#[test]
fn a_restore_is_repeated_from_each_of_its_steps() -> Result<()> {
    let mut cluster = builder().start()?;
    let mut mount = cluster.mount()?;
    let before = store(&mount, 0, 12)?;
    let backup = cluster.scratch()?.join("backup").display().to_string();
    cluster.dfsctl_ok(&["meta", "backup", &backup])?;
    store(&mount, 100, 6)?;
    cluster.wait_healthy(LONG)?;
    mount.kill()?;
    cluster.kill("meta-1")?;
    let data = cluster.data_dir("meta-1");
    fs::remove_dir_all(&data)?;

    let (data, address) = (data.display().to_string(), cluster.meta_address(1));
    let args = ["restore", "--from", &backup, "--data-dir", &data, "--advertise", &address];
    for step in STEPS {
        dies(&args, step)?;
        does_not_start(&mut cluster, "meta-1", "restore")?;
    }
    let done = dfs_meta(&args)?;
    ensure!(done.code == 0 && done.stdout.contains("lost: every change of the tree since then"), "{done:?}");

    cluster.start("meta-1")?;
    cluster.wait_alive(3)?;
    mount.start_again()?;
    check(&mount, &before)?;
    cluster.wait_healthy(LONG)?;
    ensure!(chunk_files(&cluster)? == 3 * (chunks(0, 12) + chunks(100, 6)), "what was written since is kept");
    cluster.dfsctl_ok(&["fsck", "--verify"])?;
    // Nobody wants it back: it goes.
    cluster.dfsctl_ok(&["meta", "restore-finish"])?;
    wait::until("what no file lists is gone", LONG, || {
        chunk_files(&cluster).is_ok_and(|count| count == 3 * chunks(0, 12))
    })?;
    check(&mount, &before)?;
    cluster.finish([mount])
}

#[test]
fn two_of_three_are_lost_and_the_rescue_is_cut_short_at_each_step() -> Result<()> {
    let mut cluster = builder().metas(3).start()?;
    let mut mount = cluster.mount()?;
    let stored = store(&mount, 0, 12)?;
    cluster.wait_healthy(LONG)?;
    wait::until("all have the whole log", LONG, || {
        let members = cluster.status().map(|status| status["meta"]["members"].clone()).unwrap_or_default();
        let members = members.as_array().cloned().unwrap_or_default();
        members.len() == 3 && members.iter().all(|member| member["lag"] == 0)
    })?;
    mount.kill()?;
    for i in 1..=3 {
        cluster.kill(&format!("meta-{i}"))?;
    }
    for lost in ["meta-1", "meta-3"] {
        fs::remove_dir_all(cluster.data_dir(lost))?;
    }
    let data = cluster.data_dir("meta-2");
    let index = what_is_told(&data)?;

    let data = data.display().to_string();
    let args = ["rescue", "--data-dir", &data, "--confirm", &index];
    for step in STEPS {
        dies(&args, step)?;
        does_not_start(&mut cluster, "meta-2", "rescue")?;
    }
    let done = dfs_meta(&args)?;
    ensure!(done.code == 0 && done.stdout.contains("meta-2 is the only metadata node now"), "{done:?}");

    cluster.start("meta-2")?;
    cluster.forget_meta(1);
    cluster.forget_meta(3);
    cluster.wait_alive(3)?;
    mount.start_again()?;
    check(&mount, &stored)?;
    // It grows to three again, and the one that was rescued may go.
    for i in [4, 5] {
        let address = cluster.join_meta(i)?;
        cluster.dfsctl_ok(&["meta", "add", &format!("meta-{i}"), &address])?;
        cluster.use_meta(&address);
    }
    // A mount that is told of the new ones.
    let other = cluster.mount()?;
    cluster.kill("meta-2")?;
    cluster.wait_alive(3)?;
    check(&other, &stored)?;
    cluster.start("meta-2")?;
    cluster.wait_healthy(LONG)?;
    check(&mount, &stored)?;
    cluster.dfsctl_ok(&["fsck", "--verify"])?;
    cluster.finish([mount, other])
}

/// What a rescue says before anything is done: who is lost, how far its log goes, and what may be lost. Gives the index to confirm.
fn what_is_told(data: &Path) -> Result<String> {
    let data = data.display().to_string();
    let told = dfs_meta(&["rescue", "--data-dir", &data])?;
    ensure!(told.code != 0, "{told:?}");
    for words in [
        "metadata node meta-2 of cluster",
        "other metadata nodes: meta-1, meta-3",
        "its log ends with entry",
        "are known to be agreed on",
        "files and directories",
        "what may be lost: every change that the other nodes agreed on after entry",
        "If one of the others can be brought back with its data, do that instead",
    ] {
        ensure!(told.stdout.contains(words), "{words:?} is not in {}", told.stdout);
    }
    let index = told.stderr.trim().rsplit("--confirm ").next().and_then(|rest| rest.split(' ').next());
    let index = index.context("the index")?.to_owned();
    ensure!(told.stdout.contains(&format!("after entry {index}")), "{index}: {}", told.stdout);
    let wrong = dfs_meta(&["rescue", "--data-dir", &data, "--confirm", "1"])?;
    ensure!(wrong.code != 0 && wrong.stderr.contains("nothing was changed"), "{wrong:?}");
    Ok(index)
}
