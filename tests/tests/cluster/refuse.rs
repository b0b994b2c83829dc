//! What a process must refuse at its start, and that it says why.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, Output, bins, cluster};

fn run(program: &str, args: &[&str]) -> Result<Output> {
    cluster::run(&bins::path(program)?, args)
}

#[test]
fn wrong_values_end_with_code_2_and_name_the_option() -> Result<()> {
    let meta: &[&str] = &["--name", "meta-1", "--data-dir", "/tmp/unused", "--peers", "meta-1=127.0.0.1:4001"];
    let storage: &[&str] = &["--name", "s", "--data-dir", "/tmp/unused", "--meta", "127.0.0.1:4001"];
    for (program, base, flag, value) in [
        ("dfs-meta", meta, "--heartbeat", "soon"),
        ("dfs-meta", meta, "--chunk-size", "4Q"),
        ("dfs-meta", meta, "--replication", "many"),
        ("dfs-meta", meta, "--suspect", "10"),
        ("dfs-meta", meta, "--listen", "nonsense"),
        ("dfs-meta", meta, "--no-such-option", "1"),
        ("dfs-storage", storage, "--capacity", "lots"),
        ("dfs-storage", storage, "--listen", "nonsense"),
        ("dfs-storage", storage, "--no-such-option", "1"),
    ] {
        let output = run(program, &[base, &[flag, value]].concat())?;
        ensure!(output.code == 2, "{program} {flag} {value}: {output:?}");
        ensure!(output.stderr.contains(flag), "{program} {flag} {value} is not named: {output:?}");
    }
    Ok(())
}

#[test]
fn settings_that_contradict_each_other_are_refused() -> Result<()> {
    let base: &[&str] = &["--name", "meta-1", "--data-dir", "/tmp/unused", "--peers", "meta-1=127.0.0.1:4001"];
    for (flags, named) in [
        (&["--replication", "2", "--write-quorum", "3"][..], "write-quorum"),
        (&["--suspect", "30s", "--dead", "10s"][..], "dead"),
        (&["--name", "meta-7"][..], "peers"),
    ] {
        // The last occurrence of an option counts, or it is an error that names it: both are a refusal.
        let args: Vec<&str> = if flags[0] == "--name" { [flags, &base[2..]].concat() } else { [base, flags].concat() };
        let output = run("dfs-meta", &args)?;
        ensure!(output.code == 2, "{flags:?}: {output:?}");
        ensure!(output.stderr.contains(named), "{flags:?} is not named: {output:?}");
    }
    Ok(())
}

#[test]
fn the_environment_and_the_file_are_checked_too() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("meta.toml");
    fs::write(&file, "heartbeet = \"3s\"\n")?;
    let config = file.display().to_string();
    let output = run("dfs-meta", &["--config", &config])?;
    ensure!(output.code == 2 && output.stderr.contains("heartbeet"), "{output:?}");
    let env = std::process::Command::new(bins::path("dfs-storage")?)
        .args(["--name", "s", "--data-dir", "/tmp/unused", "--meta", "127.0.0.1:1"])
        .env("DFS_STORAGE_CAPACITY", "lots")
        .output()?;
    let message = String::from_utf8_lossy(&env.stderr);
    ensure!(env.status.code() == Some(2) && message.contains("--capacity"), "{message}");
    Ok(())
}

/// Starts a node that must refuse, and returns what it said.
fn refusal(cluster: &mut Cluster, name: &str) -> Result<String> {
    cluster.start(name)?;
    let status = cluster.node(name).wait_exit(std::time::Duration::from_secs(15))?;
    ensure!(!status.success(), "{name} did not refuse");
    Ok(String::from_utf8_lossy(&fs::read(cluster.log(name))?).into_owned())
}

fn says(text: &str, words: &[&str]) -> Result<()> {
    let lower = text.to_lowercase();
    ensure!(words.iter().any(|word| lower.contains(word)), "none of {words:?} in: {text}");
    Ok(())
}

#[test]
fn a_data_directory_of_another_cluster() -> Result<()> {
    let mut one = Cluster::builder().faults().expect_log("cluster").start()?;
    let other = Cluster::builder().start()?;
    one.stop("storage-1")?;
    one.node("storage-1").set_flag("--meta", &other.meta_addresses());
    let text = refusal(&mut one, "storage-1")?;
    says(&text, &["another cluster", "other cluster", "wrong cluster", "different cluster"])?;
    let meta = one.meta_addresses();
    one.node("storage-1").set_flag("--meta", &meta);
    one.start("storage-1")?;
    one.wait_alive(3)?;
    one.finish([])?;
    other.finish([])
}

#[test]
fn a_data_directory_in_use() -> Result<()> {
    let cluster = Cluster::builder().faults().expect_log("in use").expect_log("lock").start()?;
    for (name, taken) in [("storage-2", "storage-1"), ("meta-1", "meta-1")] {
        let program = if name.starts_with("meta") { "dfs-meta" } else { "dfs-storage" };
        let data = cluster.data_dir(taken).display().to_string();
        let meta = cluster.meta_addresses();
        let listen = ["--listen", "127.0.0.1:0", "--advertise", &meta];
        let storage = ["--name", "second", "--data-dir", &data, "--meta", &meta];
        let peers = format!("meta-1={meta}");
        let metadata = ["--name", "meta-1", "--data-dir", &data, "--peers", &peers];
        let own = if program == "dfs-meta" { &metadata } else { &storage };
        let output = run(program, &[&listen[..], own].concat())?;
        ensure!(output.code != 0, "{program} on a directory in use");
        says(&output.stderr, &["in use", "locked", "another process"])?;
        ensure!(output.stderr.contains(&data), "{}", output.stderr);
    }
    cluster.finish([])
}

#[test]
fn a_port_in_use_leaves_no_data_directory_behind() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let (dir, address) = (tempfile::tempdir()?, taken.local_addr()?.to_string());
    let data = dir.path().join("data").display().to_string();
    for (program, flags) in
        [("dfs-storage", &["--name", "s", "--meta", "127.0.0.1:9"][..]), ("dfs-meta", &["--name", "meta-1"])]
    {
        let output = run(program, &[&["--listen", &address, "--data-dir", &data], flags].concat())?;
        ensure!(output.code == 1 && output.stderr.contains("--listen"), "{output:?}");
        ensure!(!Path::new(&data).exists(), "{program} made its data directory");
        let output = run(
            program,
            &[&["--listen", "127.0.0.1:0", "--advertise", &address, "--data-dir", "/proc/x"], flags].concat(),
        )?;
        ensure!(output.code == 1, "{output:?}");
        ensure!(output.stderr.matches("No such file or directory").count() == 1, "the reason is said once: {output:?}");
    }
    Ok(())
}

#[test]
fn a_data_directory_of_the_other_kind_of_node() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    cluster.stop("storage-1")?;
    let meta = cluster.meta_addresses();
    let listen = ["--listen", "127.0.0.1:0", "--advertise", &meta];
    let (storage_dir, meta_dir) = (cluster.data_dir("storage-1"), cluster.data_dir("meta-1"));
    let text = |path: &Path| path.display().to_string();
    let peers = format!("meta-1={meta}");
    let as_meta = ["--name", "meta-1", "--data-dir", &text(&storage_dir), "--peers", &peers];
    let as_meta = run("dfs-meta", &[&listen[..], &as_meta].concat())?;
    ensure!(as_meta.code != 0, "{as_meta:?}");
    says(&as_meta.stderr, &["storage"])?;
    cluster.stop("meta-1")?;
    let as_storage = ["--name", "s", "--data-dir", &text(&meta_dir), "--meta", &meta];
    let as_storage = run("dfs-storage", &[&listen[..], &as_storage].concat())?;
    ensure!(as_storage.code != 0, "{as_storage:?}");
    says(&as_storage.stderr, &["meta"])?;
    cluster.start_all()?;
    cluster.finish([])
}

#[test]
fn mount_refuses_what_makes_no_sense() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let here = dir.path().display().to_string();
    for (args, named) in [
        (vec!["127.0.0.1:1", here.as_str(), "-f", "-o", "mem=lots"], "mem"),
        (vec!["127.0.0.1:1", here.as_str(), "-f", "-o", "no_such_option=1"], "no_such_option"),
        (vec!["127.0.0.1:1", "/nonexistent/mount/point", "-f"], "/nonexistent/mount/point"),
    ] {
        let output = run("mount.dfs", &args)?;
        ensure!(output.code != 0, "{args:?}: {output:?}");
        ensure!(output.stderr.contains(named), "{args:?} is not named: {output:?}");
    }
    Ok(())
}
