//! The command line: transfers, verbs, JSON and exit codes.

use std::fs;

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster, Output, cluster,
    files::{self, CHUNK},
};
use serde_json::Value;

fn json(output: &Output) -> Result<Value> {
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

fn expect(cluster: &Cluster, code: i32, args: &[&str]) -> Result<Output> {
    let output = cluster.dfsctl(args)?;
    ensure!(output.code == code, "dfsctl {args:?}: want code {code}: {output:?}");
    Ok(output)
}

#[test]
fn upload_list_download_delete() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let dir = cluster.scratch()?;
    for (i, size) in [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5].into_iter().enumerate() {
        let (source, back) = (dir.join("in"), dir.join(format!("out-{i}")));
        files::write(&source, &files::noise(i as u64, size))?;
        let name = format!("/data/file {i}");
        cluster.dfsctl_ok(&["upload", "--file", &source.display().to_string(), "--name", &name])?;
        cluster.dfsctl_ok(&["download", "--name", &name, "--out", &back.display().to_string()])?;
        ensure!(fs::read(&back)? == fs::read(&source)?, "{size} bytes");
    }
    let all = cluster.dfsctl_ok(&["list"])?;
    let some = cluster.dfsctl_ok(&["list", "--prefix", "/data/file 3"])?;
    ensure!(all.contains("file 0") && all.contains("file 4"), "{all}");
    ensure!(some.contains("file 3") && !some.contains("file 4"), "{some}");
    expect(&cluster, 0, &["delete", "--name", "/data/file 3"])?;
    expect(&cluster, 3, &["download", "--name", "/data/file 3", "--out", "/dev/null"])?;
    expect(&cluster, 3, &["delete", "--name", "/data/file 3"])?;
    cluster.finish([])
}

#[test]
fn what_dfsctl_uploads_the_mount_reads_and_the_other_way_round() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let dir = cluster.scratch()?;
    let bytes = files::noise(1, CHUNK + 999);
    files::write(&dir.join("in"), &bytes)?;
    cluster.dfsctl_ok(&["upload", "--file", &dir.join("in").display().to_string(), "--name", "/up"])?;
    ensure!(fs::read(mount.join("up"))? == bytes);
    files::write(&mount.join("down"), &bytes)?;
    cluster.dfsctl_ok(&["download", "--name", "/down", "--out", &dir.join("out").display().to_string()])?;
    ensure!(fs::read(dir.join("out"))? == bytes);
    ensure!(cluster.dfsctl_ok(&["cat", "/down"])?.len() >= bytes.len() / 2);
    cluster.finish([mount])
}

#[test]
fn a_resumed_upload_completes() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let dir = cluster.scratch()?;
    let source = dir.join("big");
    let want = files::write_noise(&source, 5, 60 * CHUNK as u64)?;
    let (file, manifests) = (source.display().to_string(), dir.join("manifests").display().to_string());
    let meta = cluster.meta_addresses();
    let args = ["--meta", &meta, "upload", "--file", &file, "--name", "/big", "--resume"];
    let program = dfs_tests::bins::path("dfsctl")?;
    let mut first = dfs_tests::process::command(&program)
        .args(args)
        .env("DFS_MANIFEST_DIR", &manifests)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()?;
    // Killed once it has stored something, or it was faster: then the second run has nothing left to do.
    dfs_tests::wait::until("a part is stored", std::time::Duration::from_secs(20), || {
        let stored = cluster.status().is_ok_and(|status| {
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            nodes.iter().any(|node| node["used_bytes"].as_u64().unwrap_or(0) > 10 * CHUNK as u64)
        });
        stored || first.try_wait().is_ok_and(|status| status.is_some())
    })?;
    let _ = first.kill();
    first.wait()?;
    let second = dfs_tests::process::command(&program).args(args).env("DFS_MANIFEST_DIR", &manifests).output()?;
    ensure!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    let out = dir.join("out");
    cluster.dfsctl_ok(&["download", "--name", "/big", "--out", &out.display().to_string()])?;
    ensure!(files::sha256(&out)? == want);
    cluster.finish([])
}

#[test]
fn verbs_of_the_tree() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    cluster.dfsctl_ok(&["mkdir", "/d"])?;
    files::write(&mount.join("d/f"), b"hello\n")?;
    ensure!(cluster.dfsctl_ok(&["cat", "/d/f"])? == "hello\n");
    ensure!(cluster.dfsctl_ok(&["ls", "/d"])?.contains('f'));
    ensure!(cluster.dfsctl_ok(&["stat", "/d/f"])?.contains('6'));
    cluster.dfsctl_ok(&["mv", "/d/f", "/d/g"])?;
    ensure!(cluster.dfsctl_ok(&["cat", "/d/g"])? == "hello\n");
    expect(&cluster, 3, &["cat", "/d/f"])?;
    expect(&cluster, 4, &["mkdir", "/d"])?;
    let refused = expect(&cluster, 1, &["rm", "/d"])?;
    ensure!(refused.stderr.contains("rm -r"), "what to do next: {refused:?}");
    // Local files are not the cluster's: no verb of dfsctl helps.
    let scratch = cluster.scratch()?.display().to_string();
    for args in
        [&["upload", "--file", &scratch, "--name", "/x"][..], &["download", "--name", "/d/g", "--out", &scratch]]
    {
        let refused = expect(&cluster, 1, args)?;
        ensure!(refused.stderr.contains(&scratch) && !refused.stderr.contains("hint"), "{args:?}: {refused:?}");
    }
    let endless = expect(&cluster, 2, &["upload", "--file", "/proc/version", "--name", "/pv"])?;
    ensure!(endless.stderr.contains("/proc/version says that it has 0 bytes"), "{endless:?}");
    expect(&cluster, 3, &["stat", "/pv"])?;
    let dots = expect(&cluster, 2, &["upload", "--file", "/etc/hostname", "--name", "/a/../b"])?;
    ensure!(dots.stderr.contains("`..` is not resolved"), "{dots:?}");
    cluster.dfsctl_ok(&["rm", "-r", "/d"])?;
    expect(&cluster, 3, &["ls", "/d"])?;
    ensure!(files::names(mount.path())?.is_empty());
    cluster.finish([mount])
}

#[test]
fn status_tells_who_leads_and_how_chunks_are() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).storages(4).start()?;
    let mount = cluster.mount()?;
    files::write(&mount.join("f"), &files::noise(1, 3 * CHUNK))?;
    cluster.wait_healthy(std::time::Duration::from_secs(15))?;
    let status = json(&expect(&cluster, 0, &["status", "--json"])?)?;
    ensure!(status["healthy"] == true, "{status}");
    let leader = status["meta"]["leader"].as_str().context("leader")?;
    ensure!(["meta-1", "meta-2", "meta-3"].contains(&leader), "{leader}");
    ensure!(status["meta"]["members"].as_array().is_some_and(|members| members.len() == 3), "{status}");
    let nodes = status["nodes"].as_array().context("nodes")?;
    ensure!(nodes.len() == 4, "{status}");
    for node in nodes {
        ensure!(node["name"].as_str().is_some_and(|name| name.starts_with("storage-")), "{node}");
        ensure!(node["state"] == "alive", "{node}");
        ensure!(node["used_bytes"].is_u64() && node["capacity_bytes"].as_u64() > Some(0), "{node}");
    }
    let chunks = &status["chunks"];
    ensure!(chunks["total"] == 3 && chunks["full"] == 3, "{chunks}");
    for zero in ["under_replicated", "endangered", "missing"] {
        ensure!(chunks[zero] == 0, "{chunks}");
    }
    for verb in ["nodes", "df", "status"] {
        ensure!(!cluster.dfsctl_ok(&[verb])?.is_empty(), "{verb} prints nothing");
        json(&expect(&cluster, 0, &[verb, "--json"])?)?;
    }
    for args in [&["ls", "/", "--json"][..], &["list", "--json"], &["stat", "/f", "--json"]] {
        let value = json(&expect(&cluster, 0, args)?)?;
        ensure!(value.to_string().contains('f'), "{args:?}: {value}");
    }
    cluster.finish([mount])
}

#[test]
fn wait_healthy_gives_up_in_time() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = cluster.mount()?;
    files::write(&mount.join("f"), b"x")?;
    cluster.wait_healthy(std::time::Duration::from_secs(15))?;
    cluster.kill("storage-1")?;
    dfs_tests::wait::until("a copy is missed", std::time::Duration::from_secs(15), || {
        cluster.status().is_ok_and(|status| status["chunks"]["under_replicated"] == 1)
    })?;
    expect(&cluster, 5, &["wait", "healthy", "--timeout", "1s"])?;
    expect(&cluster, 5, &["status", "--json"])?;
    cluster.start("storage-1")?;
    cluster.wait_healthy(std::time::Duration::from_secs(30))?;
    cluster.finish([mount])
}

#[test]
fn mistakes_have_their_own_exit_code_and_say_what_to_do() -> Result<()> {
    ensure!(cluster::dfsctl(&["--help"])?.code == 0);
    for args in
        [&["no-such-verb"][..], &["upload"], &["wait", "healthy", "--timeout", "soon"], &["ls", "--no-such-flag"]]
    {
        let output = cluster::dfsctl(args)?;
        ensure!(output.code == 2 && !output.stderr.is_empty(), "{args:?}: {output:?}");
    }
    // Nobody listens there.
    let lost = cluster::dfsctl(&["--meta", "127.0.0.1:9", "--deadline", "2s", "status"])?;
    ensure!(lost.code == 6 && lost.stderr.contains("127.0.0.1:9"), "{lost:?}");
    Ok(())
}
