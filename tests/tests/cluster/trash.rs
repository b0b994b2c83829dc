//! Content that was removed or replaced comes back, until it is given up.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster, Output,
    files::{self, CHUNK},
    wait,
};
use serde_json::Value;

fn trash(cluster: &Cluster, code: i32, args: &[&str]) -> Result<Output> {
    let output = cluster.dfsctl(&[&["trash"], args].concat())?;
    ensure!(output.code == code, "trash {args:?}: want code {code}: {output:?}");
    Ok(output)
}

/// Paths and reasons, in the order of the list.
fn listed(cluster: &Cluster, args: &[&str]) -> Result<Vec<(String, String)>> {
    let output = trash(cluster, 0, &[&["list", "--json"], args].concat())?;
    let entries: Vec<Value> = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    Ok(entries.iter().map(|entry| (text(entry, "path"), text(entry, "reason"))).collect())
}

fn held(cluster: &Cluster, what: &str) -> Result<u64> {
    let status = cluster.status()?;
    status["space_held"][what]["bytes"].as_u64().with_context(|| format!("{}", status["space_held"]))
}

/// Waits for an event of a kind and returns the newest.
fn event(cluster: &Cluster, kind: &str) -> Result<Value> {
    wait::until_some(&format!("a {kind} in the log"), Duration::from_secs(30), || {
        let output = cluster.dfsctl(&["events", "--json", "--kind", kind]).ok()?;
        serde_json::from_str::<Vec<Value>>(&output.stdout).ok()?.pop()
    })
}

#[test]
fn removed_and_replaced_files_come_back() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = cluster.mount()?;
    fs::create_dir(mount.join("d"))?;
    let (first, second) = (files::noise(1, CHUNK + 7), files::noise(2, 3 * CHUNK));
    files::write(&mount.join("d/f"), &first)?;
    fs::set_permissions(mount.join("d/f"), fs::Permissions::from_mode(0o640))?;
    files::write(&mount.join("d/f"), &second)?;
    fs::remove_file(mount.join("d/f"))?;
    files::write(&mount.join("kept"), b"kept")?;
    let replaced = ("/d/f".to_owned(), "replaced".to_owned());
    let removed = ("/d/f".to_owned(), "removed".to_owned());
    ensure!(listed(&cluster, &[])? == [replaced.clone(), removed.clone()]);
    ensure!(listed(&cluster, &["--prefix", "/d"])?.len() == 2 && listed(&cluster, &["--prefix", "/x"])?.is_empty());
    ensure!(listed(&cluster, &["--since", "1h"])?.len() == 2);
    ensure!(held(&cluster, "trash")? == (4 * CHUNK + 7) as u64);

    // The trash is part of what the metadata nodes agree on.
    cluster.kill("meta-1")?;
    cluster.start("meta-1")?;
    cluster.wait_alive(3)?;
    trash(&cluster, 0, &["restore", "/d/f"])?;
    ensure!(fs::read(mount.join("d/f"))? == second);
    ensure!(fs::metadata(mount.join("d/f"))?.permissions().mode() & 0o7777 == 0o640);

    // Nothing is overwritten, and the message says what to do.
    let refused = trash(&cluster, 4, &["restore", "/d/f"])?;
    ensure!(refused.stderr.contains("--to"), "{refused:?}");
    trash(&cluster, 0, &["restore", "/d/f", "--to", "/d/old"])?;
    ensure!(fs::read(mount.join("d/old"))? == first);
    let restored = event(&cluster, "trash-restored")?;
    ensure!(restored["fields"]["name"] == "old", "{restored}");
    trash(&cluster, 3, &["restore", "/d/f"])?;
    ensure!(listed(&cluster, &[])?.is_empty() && held(&cluster, "trash")? == 0);
    cluster.finish([mount])
}

#[test]
fn a_removed_tree_comes_back_with_its_directories() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    fs::create_dir_all(mount.join("a/b/c"))?;
    for name in ["a/1", "a/b/2", "a/b/c/3", "a-other"] {
        files::write(&mount.join(name), name.as_bytes())?;
    }
    fs::remove_dir_all(mount.join("a"))?;
    fs::remove_file(mount.join("a-other"))?;
    let refused = trash(&cluster, 3, &["restore", "/a/b/2"])?;
    ensure!(refused.stderr.contains("--parents"), "{refused:?}");
    let refused = trash(&cluster, 3, &["restore", "/a"])?;
    ensure!(refused.stderr.contains("--recursive"), "{refused:?}");
    trash(&cluster, 0, &["restore", "--recursive", "--parents", "/a"])?;
    for name in ["a/1", "a/b/2", "a/b/c/3"] {
        ensure!(fs::read(mount.join(name))? == name.as_bytes(), "{name}");
    }
    ensure!(listed(&cluster, &[])? == [("/a-other".to_owned(), "removed".to_owned())]);
    cluster.finish([mount])
}

#[test]
fn the_trash_is_emptied_on_demand_and_by_its_retention() -> Result<()> {
    let mut cluster = Cluster::builder().meta_flag("--gc-grace", "1s").start()?;
    let mount = cluster.mount()?;
    for name in ["x", "y", "z"] {
        files::write(&mount.join(name), &files::noise(1, CHUNK))?;
        fs::remove_file(mount.join(name))?;
    }
    let refused = trash(&cluster, 2, &["empty", "/x"])?;
    ensure!(refused.stderr.contains("1 version"), "{refused:?}");
    trash(&cluster, 0, &["empty", "/x", "--yes"])?;
    ensure!(listed(&cluster, &[])?.len() == 2);
    trash(&cluster, 0, &["empty", "--older", "1h", "--yes"])?;
    ensure!(listed(&cluster, &[])?.len() == 2, "nothing is that old");
    let emptied = event(&cluster, "trash-emptied")?;
    ensure!(emptied["fields"]["versions"] == 1 && emptied["fields"]["bytes"] == CHUNK, "{emptied}");
    trash(&cluster, 0, &["retention", "1s"])?;
    let changed = event(&cluster, "setting-changed")?;
    ensure!(changed["fields"]["name"] == "trash-retention-ms" && changed["fields"]["to"] == "1000", "{changed}");
    let is_empty = || listed(&cluster, &[]).is_ok_and(|list| list.is_empty());
    wait::until("what was kept long enough is given up", Duration::from_secs(30), is_empty)?;
    let is_free = || {
        let status = cluster.status().unwrap_or_default();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        !nodes.is_empty() && nodes.iter().all(|node| node["chunk_count"] == 0)
    };
    wait::until("its space is free", Duration::from_secs(60), is_free)?;
    trash(&cluster, 0, &["retention", "0"])?;
    files::write(&mount.join("gone"), b"gone")?;
    fs::remove_file(mount.join("gone"))?;
    ensure!(listed(&cluster, &[])?.is_empty());
    cluster.finish([mount])
}

#[test]
fn a_full_cluster_gives_up_its_oldest_trash_instead_of_refusing_writes() -> Result<()> {
    let mut cluster = Cluster::builder()
        .storage_flag("--capacity", "64MiB")
        .storage_flag("--reserve", "0")
        .meta_flag("--gc-grace", "1s")
        .expect_log("space")
        .start()?;
    let mount = cluster.mount()?;
    for turn in 0..6 {
        let content = files::noise(turn, 6 * CHUNK);
        files::write(&mount.join("f"), &content).with_context(|| format!("turn {turn}"))?;
        ensure!(fs::read(mount.join("f"))? == content);
        fs::remove_file(mount.join("f"))?;
    }
    let left = listed(&cluster, &[])?;
    ensure!(!left.is_empty() && left.len() < 6, "{left:?}");
    ensure!(event(&cluster, "trash-freed-early")?["severity"] == "warning");
    trash(&cluster, 0, &["restore", "/f"])?;
    ensure!(fs::read(mount.join("f"))? == files::noise(5, 6 * CHUNK), "the newest is the one that is left");
    cluster.finish([mount])
}
