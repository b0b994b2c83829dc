//! Uploads that were cut off and go on: only what is missing is sent, and only what is right is kept.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster, Output, bins, cluster,
    files::{self, CHUNK},
    process, wait,
};
use serde_json::Value;

/// Chunks of the file that is uploaded.
const CHUNKS: u64 = 60;
/// Chunks that may be on their way when the client is killed, and were not noted yet: one, for one is sent at a time.
const IN_FLIGHT: u64 = 1;

/// An upload of one file to `/big`, which can be cut off.
struct Case {
    source: PathBuf,
    manifests: PathBuf,
    sha256: String,
}

impl Case {
    fn new(cluster: &Cluster) -> Result<Self> {
        let dir = cluster.scratch()?;
        let source = dir.join("big");
        let sha256 = files::write_noise(&source, 5, CHUNKS * CHUNK as u64)?;
        Ok(Self { source, manifests: dir.join("manifests"), sha256 })
    }

    fn args(&self, cluster: &Cluster, resume: bool) -> Vec<String> {
        let words = [
            "--meta".to_owned(),
            cluster.meta_addresses(),
            "--json".to_owned(),
            "--parallel-uploads=1".to_owned(),
            format!("--manifest-dir={}", self.manifests.display()),
            "upload".to_owned(),
            format!("--file={}", self.source.display()),
            "--name=/big".to_owned(),
        ];
        words.into_iter().chain(resume.then(|| "--resume".to_owned())).collect()
    }

    /// Lines of the manifest behind its first one.
    fn noted(&self) -> usize {
        let text = self.manifest().and_then(|path| Ok(fs::read_to_string(path)?)).unwrap_or_default();
        text.lines().count().saturating_sub(1)
    }

    fn manifest(&self) -> Result<PathBuf> {
        let entry = fs::read_dir(&self.manifests)?.find(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
        });
        Ok(entry.context("no manifest")??.path())
    }

    /// Starts the upload and cuts it off by SIGKILL in its middle. Says how many chunks were noted by then.
    fn cut_off(&self, cluster: &Cluster) -> Result<u64> {
        let mut upload: Child = process::command(&bins::path("dfsctl")?)
            .args(self.args(cluster, false))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        wait::until("a part is stored", Duration::from_secs(60), || {
            self.noted() >= 10 || upload.try_wait().is_ok_and(|status| status.is_some())
        })?;
        upload.kill()?;
        ensure!(!upload.wait()?.success(), "the upload was over before it was cut off");
        let noted = self.noted() as u64;
        ensure!((10..CHUNKS - 5).contains(&noted), "{noted} chunks were stored");
        Ok(noted)
    }

    fn resume(&self, cluster: &Cluster) -> Result<Output> {
        let args = self.args(cluster, true);
        cluster::dfsctl(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Goes on, and demands success.
    fn resume_ok(&self, cluster: &Cluster) -> Result<Value> {
        let output = self.resume(cluster)?;
        ensure!(output.code == 0, "{output:?}");
        serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
    }

    fn check(&self, cluster: &Cluster, sha256: &str) -> Result<()> {
        let out = cluster.scratch()?.join("out");
        cluster.dfsctl_ok(&["download", "--name", "/big", "--out", &out.display().to_string()])?;
        ensure!(files::sha256(&out)? == sha256, "another content");
        ensure!(self.manifest().is_err(), "the manifest is left");
        Ok(())
    }
}

/// Bytes on the disks of all nodes: chunk files, whoever lists them.
fn stored(cluster: &Cluster) -> Result<u64> {
    fn walk(dir: &Path) -> Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            bytes += if entry.file_type()?.is_dir() { walk(&entry.path())? } else { entry.metadata()?.size() };
        }
        Ok(bytes)
    }
    let nodes = ["storage-1", "storage-2", "storage-3"];
    nodes.iter().map(|name| walk(&cluster.data_dir(name).join("chunks"))).sum()
}

/// What the nodes wrote all in all must be the file once, and what was on its way when the client was killed.
fn nothing_twice(cluster: &Cluster) -> Result<()> {
    let copies = stored(cluster)? / CHUNK as u64;
    let most = 3 * (CHUNKS + IN_FLIGHT) + 2;
    ensure!(copies <= most, "{copies} copies of chunks on the disks, {most} at most were to be written");
    Ok(())
}

#[test]
fn a_killed_client_sends_only_what_is_missing() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let case = Case::new(&cluster)?;
    let noted = case.cut_off(&cluster)?;
    let done = case.resume_ok(&cluster)?;
    ensure!(done["reused_chunks"] == noted, "{noted} were noted: {done}");
    ensure!(done["sent_chunks"] == CHUNKS - noted, "{done}");
    ensure!(done["remarks"] == serde_json::json!([]), "{done}");
    nothing_twice(&cluster)?;
    case.check(&cluster, &case.sha256)?;
    cluster.finish([])
}

#[test]
fn an_upload_goes_on_after_its_session_has_ended() -> Result<()> {
    let cluster = Cluster::builder().meta_flag("--session-lease", "3s").start()?;
    let case = Case::new(&cluster)?;
    let noted = case.cut_off(&cluster)?;
    wait::until("the session ends", Duration::from_secs(20), || {
        cluster.status().is_ok_and(|status| status["pending_files"] == 0 && status["sessions"] == 0)
    })?;
    let done = case.resume_ok(&cluster)?;
    ensure!(done["reused_chunks"] == noted, "{noted} were noted: {done}");
    nothing_twice(&cluster)?;
    case.check(&cluster, &case.sha256)?;
    cluster.finish([])
}

#[test]
fn an_upload_goes_on_at_another_leader_and_after_a_restart_of_all() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let case = Case::new(&cluster)?;
    let noted = case.cut_off(&cluster)?;
    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    wait::until("another leader", Duration::from_secs(20), || cluster.leader().is_ok_and(|new| new != leader))?;
    for name in ["meta-1", "meta-2", "meta-3"].into_iter().filter(|name| *name != leader) {
        cluster.kill(name)?;
    }
    cluster.start_all()?;
    let done = case.resume_ok(&cluster)?;
    ensure!(done["reused_chunks"] == noted, "{noted} were noted: {done}");
    nothing_twice(&cluster)?;
    case.check(&cluster, &case.sha256)?;
    cluster.finish([])
}

#[test]
fn a_source_that_changed_is_named_and_never_mixed() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let case = Case::new(&cluster)?;
    let noted = case.cut_off(&cluster)?;
    // A byte in the first chunk, and the file becomes longer.
    let mut file = fs::OpenOptions::new().write(true).append(false).open(&case.source)?;
    file.write_all_at(&[0x5a; 7], 1000)?;
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
    file.write_all(b"tail")?;
    drop(file);
    let done = case.resume_ok(&cluster)?;
    let remarks = done["remarks"].to_string();
    ensure!(remarks.contains("changed since the interrupted upload"), "{remarks}");
    ensure!(remarks.contains("1 chunks of") && remarks.contains("other bytes"), "{remarks}");
    ensure!(done["reused_chunks"] == noted - 1, "{done}");
    case.check(&cluster, &files::sha256(&case.source)?)?;
    cluster.finish([])
}

#[test]
fn changed_bytes_behind_an_unchanged_time_are_found() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let case = Case::new(&cluster)?;
    let noted = case.cut_off(&cluster)?;
    let before = fs::metadata(&case.source)?.modified()?;
    let file = fs::OpenOptions::new().write(true).open(&case.source)?;
    file.write_all_at(&[0x5a; 7], 1000)?;
    file.set_modified(before)?;
    drop(file);
    let done = case.resume_ok(&cluster)?;
    ensure!(done["reused_chunks"] == noted - 1, "{done}");
    ensure!(done["remarks"].to_string().contains("other bytes"), "{done}");
    case.check(&cluster, &files::sha256(&case.source)?)?;
    cluster.finish([])
}

#[test]
fn a_manifest_of_another_cluster_is_refused_and_a_torn_one_is_named() -> Result<()> {
    let (one, other) = (Cluster::builder().start()?, Cluster::builder().start()?);
    let case = Case::new(&one)?;
    case.cut_off(&one)?;
    let refused = case.resume(&other)?;
    ensure!(refused.code == 1 && refused.stderr.contains("wrong_cluster"), "{refused:?}");
    ensure!(refused.stderr.contains("resume it there"), "{refused:?}");
    // The manifest is still good where it belongs, but for its head, which is torn now.
    let path = case.manifest()?;
    let text = fs::read(&path)?;
    fs::write(&path, &text[..40])?;
    let done = case.resume_ok(&one)?;
    ensure!(done["remarks"].to_string().contains("is damaged"), "{done}");
    ensure!(done["reused_chunks"] == 0 && done["sent_chunks"] == CHUNKS, "{done}");
    case.check(&one, &case.sha256)?;
    other.finish([])?;
    one.finish([])
}
