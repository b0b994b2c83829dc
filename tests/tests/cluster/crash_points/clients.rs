//! Points of the clients, and of the leader that answers them.

use std::{fs, os::unix::process::ExitStatusExt as _, path::PathBuf, process::Stdio, thread};

use anyhow::{Context, Result, ensure};
use dfs_tests::{Cluster, Output, bins, cluster, crash, files, process};

use super::{Case, LIMIT, builder, content, name};

#[test]
fn a_mount_that_dies_leaves_a_whole_file_or_none() -> Result<()> {
    let mut case = Case::start(builder())?;
    case.write_many(2)?;
    // The chunk is stored and nobody lists it: it goes, and the leader dies over that too.
    case.cluster.arm("meta-1", "unknown-doomed")?;
    case.cluster.wait_alive(3)?;
    for point in ["create-answered", "publish-stored"] {
        case.mount.arm(point)?;
        let number = case.next;
        case.next += 1;
        ensure!(files::write(&case.mount.join(name(number)), &content(number)).is_err(), "{point}: its mount was gone");
        case.mount.await_crash(point)?;
        ensure!(!case.mount.join(name(number)).exists(), "{point}: a file that was never published");
    }
    case.back("meta-1", "unknown-doomed")?;
    case.mount.arm("publish-answered")?;
    let number = case.next;
    case.next += 1;
    ensure!(files::write(&case.mount.join(name(number)), &content(number)).is_err(), "its mount was gone");
    case.mount.await_crash("publish-answered")?;
    // Nobody was told, but it was published: it is a file like others.
    case.stored.push(number);
    case.finish()
}

#[test]
fn an_answer_that_was_lost_is_given_again() -> Result<()> {
    let mut case = Case::start(builder())?;
    // Files are created with O_EXCL: a create that had its effect twice would fail.
    for point in ["create-applied:3", "publish-applied:3"] {
        case.crash_under_load("meta-1", point)?;
    }
    case.finish()
}

#[test]
fn a_restoration_whose_answer_was_lost_is_done_once() -> Result<()> {
    let mut case = Case::start(builder().meta_flag("--trash-retention", "1h"))?;
    case.write_many(2)?;
    let number = *case.stored.last().context("a file")?;
    fs::remove_file(case.mount.join(name(number)))?;
    case.cluster.arm("meta-1", "restore-applied")?;
    case.cluster.wait_alive(3)?;
    let addresses = case.cluster.meta_addresses();
    let path = format!("/{}", name(number));
    let told = thread::scope(|scope| -> Result<Output> {
        let restoring = scope.spawn(|| cluster::dfsctl(&["--meta", &addresses, "trash", "restore", &path]));
        case.cluster.await_crash("meta-1", "restore-applied")?;
        restoring.join().expect("does not panic")
    })?;
    ensure!(told.code == 0, "{told:?}");
    case.finish()
}

/// An upload of a file of some chunks by `dfsctl`.
struct Upload {
    source: PathBuf,
    manifests: PathBuf,
    sha256: String,
}

impl Upload {
    fn new(cluster: &Cluster) -> Result<Self> {
        let dir = cluster.scratch()?;
        let source = dir.join("big");
        let sha256 = files::write_noise(&source, 5, 5 << 20)?;
        Ok(Self { source, manifests: dir.join("manifests"), sha256 })
    }

    fn args(&self, cluster: &Cluster) -> Vec<String> {
        let words = [
            format!("--meta={}", cluster.meta_addresses()),
            "--json".to_owned(),
            "--parallel-uploads=1".to_owned(),
            format!("--manifest-dir={}", self.manifests.display()),
            "upload".to_owned(),
            format!("--file={}", self.source.display()),
            "--name=/big".to_owned(),
            "--resume".to_owned(),
        ];
        words.to_vec()
    }

    /// Dies at `point`.
    fn dies(&self, cluster: &Cluster, point: &str) -> Result<()> {
        dfsctl_dies(&self.args(cluster), point)
    }

    /// Runs to its end; how many chunks were not sent again.
    fn goes_on(&self, cluster: &Cluster) -> Result<u64> {
        let args = self.args(cluster);
        let output = cluster::dfsctl(&args.iter().map(String::as_str).collect::<Vec<_>>())?;
        ensure!(output.code == 0, "{output:?}");
        let done: serde_json::Value = serde_json::from_str(&output.stdout)?;
        let out = cluster.scratch()?.join("out");
        cluster.dfsctl_ok(&["download", "--name", "/big", "--out", &out.display().to_string()])?;
        ensure!(files::sha256(&out)? == self.sha256, "another content");
        fs::remove_file(out)?;
        ensure!(fs::read_dir(&self.manifests)?.next().is_none(), "the manifest is left");
        done["reused_chunks"].as_u64().with_context(|| done.to_string())
    }
}

/// Runs `dfsctl` until it dies at `point`.
fn dfsctl_dies(args: &[String], point: &str) -> Result<()> {
    let mut dfsctl = process::command(&bins::path("dfsctl")?);
    let output = dfsctl.args(args).env(crash::VARIABLE, point).stdin(Stdio::null()).output()?;
    ensure!(output.status.signal().is_some(), "{point}: {output:?}");
    crash::died_there(output.status, point, &String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_upload_is_resumed_from_each_of_its_steps() -> Result<()> {
    let mut case = Case::start(builder().meta_flag("--chunk-size", "1M"))?;
    let upload = Upload::new(&case.cluster)?;
    // The second chunk is stored and not noted: only the first one counts.
    for (point, reused) in [("upload-stored:2", 1), ("upload-noted:2", 2), ("upload-published", 5)] {
        upload.dies(&case.cluster, point)?;
        let again = upload.goes_on(&case.cluster)?;
        ensure!(again == reused, "{point}: {again} chunks were not sent again");
        case.cluster.dfsctl_ok(&["rm", "/big"])?;
    }
    case.write_many(2)?;
    case.finish()
}

#[test]
fn a_backup_is_whole_or_not_there() -> Result<()> {
    let mut case = Case::start(builder())?;
    case.write_many(2)?;
    let file = case.cluster.scratch()?.join("backup");
    let shown = file.display().to_string();
    let args = ["--meta", &case.cluster.meta_addresses(), "meta", "backup", &shown].map(str::to_owned);
    dfsctl_dies(&args, "backup-written")?;
    ensure!(!file.exists(), "it has its name although it was not complete");
    case.cluster.dfsctl_ok(&["meta", "backup", &shown])?;
    let verified = cluster::dfsctl(&["meta", "backup", "--verify", &shown])?;
    ensure!(verified.code == 0, "{verified:?}");
    ensure!(fs::read_dir(case.cluster.scratch()?)?.count() == 1, "the temporary file was left");
    case.cluster.wait_healthy(LIMIT)?;
    case.finish()
}
