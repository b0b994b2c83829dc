//! `dfsctl dev`: the embedded cluster that a newcomer starts with.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    bins,
    cluster::{self, Output},
    files, logs, mount, wait,
};
use tempfile::TempDir;

/// A cluster made by `dfsctl dev up`, whose processes are not children of the test.
struct Dev {
    dir: TempDir,
}

impl Dev {
    fn new() -> Result<Self> {
        Ok(Self { dir: tempfile::Builder::new().prefix("dfs-dev-").tempdir()? })
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("cluster")
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// `dfsctl dev VERB --dir DIR ARGS`
    fn run(&self, verb: &str, args: &[&str]) -> Result<Output> {
        let root = self.root().display().to_string();
        cluster::run(&bins::path("dfsctl")?, &[&["dev", verb, "--dir", &root], args].concat())
    }

    fn ok(&self, verb: &str, args: &[&str]) -> Result<String> {
        let output = self.run(verb, args)?;
        ensure!(output.code == 0, "dev {verb} {args:?}: {output:?}");
        Ok(output.stdout)
    }

    fn up(&self, metas: usize, storages: usize) -> Result<String> {
        let (mount, m, s) = (self.mount().display().to_string(), metas.to_string(), storages.to_string());
        self.ok("up", &["-m", &m, "-s", &s, "--mount", &mount])
    }

    fn pids(&self) -> Vec<(String, u32)> {
        let files = fs::read_dir(self.root().join("run")).into_iter().flatten().flatten();
        files
            .filter_map(|file| {
                let name = file.file_name().to_str()?.strip_suffix(".pid")?.to_owned();
                Some((name, fs::read_to_string(file.path()).ok()?.trim().parse().ok()?))
            })
            .filter(|(_, pid)| is_alive(*pid))
            .collect()
    }

    fn pid(&self, name: &str) -> Option<u32> {
        self.pids().into_iter().find(|(known, _)| known == name).map(|(_, pid)| pid)
    }

    /// An environment as a user has it who sourced `DIR/env`.
    fn with_env(&self, script: &str) -> Result<String> {
        let text = format!(". \"$1\"/env && {script}");
        let path = std::env::var("PATH").unwrap_or_default();
        let programs = bins::path("dfsctl")?.parent().context("directory")?.display().to_string();
        files::run(
            "env",
            &[&format!("PATH={programs}:{path}"), "sh", "-c", &text, "sh", &self.root().display().to_string()],
        )
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        for (_, pid) in self.pids() {
            let _ = dfs_tests::process::send(pid, libc::SIGKILL);
        }
        if mount::is_mounted(&self.mount()) {
            let _ = files::run("umount", &["-l", &self.mount().display().to_string()]);
        }
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which is in parentheses, comes the state; Z is a process that has ended.
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

fn no_errors(dir: &Path) -> Result<()> {
    let expected = logs::Expectations { warnings: true, lines: Vec::new() };
    for entry in fs::read_dir(dir.join("log"))? {
        let path = entry?.path();
        let lines = logs::unexpected(&path, &expected);
        ensure!(lines.is_empty(), "{}: {}", path.display(), lines.join("\n"));
    }
    Ok(())
}

#[test]
fn up_use_down_up() -> Result<()> {
    let dev = Dev::new()?;
    let begun = Instant::now();
    let said = dev.up(3, 4)?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "ready after {:?}", begun.elapsed());
    ensure!(said.contains(&dev.mount().display().to_string()), "prints what to do next: {said}");
    ensure!(dev.pids().len() == 8, "{:?}", dev.pids());
    let bytes = files::noise(1, 5_000_000);
    files::write(&dev.mount().join("f"), &bytes)?;
    ensure!(dev.with_env("dfsctl wait healthy --timeout 20s >/dev/null && dfsctl status --json")?.contains("healthy"));
    ensure!(dev.ok("status", &[])?.contains("storage-4"));
    dev.up(3, 4).context("a second `up` finds everything in order")?;
    dev.ok("down", &[])?;
    ensure!(dev.pids().is_empty() && !mount::is_mounted(&dev.mount()));
    dev.ok("down", &[]).context("a second `down` has nothing to do")?;
    dev.up(3, 4)?;
    ensure!(fs::read(dev.mount().join("f"))? == bytes, "data outlives down and up");
    dev.ok("down", &[])?;
    no_errors(&dev.root())
}

#[test]
fn kill_stop_and_start_by_name() -> Result<()> {
    let dev = Dev::new()?;
    dev.up(1, 3)?;
    files::write(&dev.mount().join("f"), b"x")?;
    for (verb, name) in
        [("kill", "storage-2"), ("stop", "storage-3"), ("kill", "meta-1"), ("stop", "mount"), ("kill", "mount")]
    {
        dev.ok(verb, &[name])?;
        wait::until("it is gone", Duration::from_secs(8), || dev.pid(name).is_none())?;
        dev.ok("start", &[name])?;
        ensure!(dev.pid(name).is_some(), "{verb} {name}, start {name}");
    }
    wait::until("the mount answers", Duration::from_secs(15), || {
        fs::read(dev.mount().join("f")).is_ok_and(|bytes| bytes == b"x")
    })?;
    ensure!(dev.run("kill", &["storage-9"])?.code != 0, "there is no storage-9");
    dev.ok("down", &[])?;
    no_errors(&dev.root())
}

#[test]
fn up_after_everything_was_killed() -> Result<()> {
    let dev = Dev::new()?;
    dev.up(3, 3)?;
    let bytes = files::noise(4, 9_000_000);
    files::write(&dev.mount().join("f"), &bytes)?;
    // A mount is two processes: when its supervisor is gone, the one that serves is named.
    wait::until("all are gone", Duration::from_secs(5), || {
        let pids = dev.pids();
        pids.iter().for_each(|(_, pid)| _ = dfs_tests::process::send(*pid, libc::SIGKILL));
        pids.is_empty()
    })?;
    dev.up(3, 3)?;
    ensure!(fs::read(dev.mount().join("f"))? == bytes);
    dev.ok("down", &[])?;
    no_errors(&dev.root())
}
