//! A mount in the background, as `mount` makes it: a supervisor, and the process that serves.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{Cluster, bins, crash::VARIABLE, mount, process, program, wait};

/// How long a mount may take to answer, to be taken over, or to go.
const LIMIT: Duration = Duration::from_secs(20);

/// One mount. Dropping it kills its processes and detaches the mount point.
#[derive(Debug)]
pub struct Background {
    path: PathBuf,
    log: PathBuf,
    supervisor: u32,
}

impl Background {
    /// Mounts with `-o options` (may be empty).
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(cluster: &Cluster, name: &str, options: &str) -> Result<Self> {
        Self::start_to_die(cluster, name, options, "")
    }

    /// The same; the first process that serves dies at the crash point `point`, if one is named.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_to_die(cluster: &Cluster, name: &str, options: &str, point: &str) -> Result<Self> {
        Self::start_program(&bins::path("mount.dfs")?, cluster, name, options, point)
    }

    /// The same by another file that holds the program.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_program(program: &Path, cluster: &Cluster, name: &str, options: &str, point: &str) -> Result<Self> {
        let (path, log) = (cluster.dir().join(name), cluster.log(name));
        fs::create_dir_all(&path)?;
        let mut all = format!("log_file={}", log.display());
        if !options.is_empty() {
            all = format!("{all},{options}");
        }
        let args = [&cluster.meta_addresses(), text(&path)?, "-o", &all];
        let mut command = process::command(program);
        command.args(args).env(VARIABLE, point);
        let output = program::output(&mut command)?;
        ensure!(output.code == 0, "mount.dfs {args:?}: {output:?}");
        let mut mount = Self { path, log, supervisor: 0 };
        mount.supervisor = parent(mount.server()?)?;
        ensure!(comm(mount.supervisor)? == "dfs-supervisor", "{}", comm(mount.supervisor)?);
        Ok(mount)
    }

    /// The mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path below the mount point.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it tells about itself.
    ///
    /// # Errors
    /// It does not answer.
    pub fn report(&self) -> Result<Value> {
        let output = program::dfsctl(&["mount", "status", text(&self.path)?, "--json"])?;
        let all: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
        all.get(0).map(|one| one["report"].clone()).filter(Value::is_object).with_context(|| format!("{output:?}"))
    }

    /// The process that serves it.
    ///
    /// # Errors
    /// None does.
    pub fn server(&self) -> Result<u32> {
        let pid = self.report()?["pid"].as_u64().context("a pid")?;
        Ok(u32::try_from(pid)?)
    }

    /// The process that keeps it.
    #[must_use]
    pub fn supervisor(&self) -> u32 {
        self.supervisor
    }

    /// SIGKILL for the process that serves.
    ///
    /// # Errors
    /// None does.
    pub fn kill_server(&self) -> Result<u32> {
        let pid = self.server()?;
        process::send(pid, libc::SIGKILL)?;
        Ok(pid)
    }

    /// Waits until another process than `before` serves.
    ///
    /// # Errors
    /// None does in time.
    pub fn until_served_by_another(&self, before: u32) -> Result<u32> {
        wait::until_some("another process serves the mount", LIMIT, || self.server().ok().filter(|pid| *pid != before))
    }

    /// Unmounts as a user does: both processes must end.
    ///
    /// # Errors
    /// The mount is busy, or a process stays.
    pub fn unmount(self) -> Result<()> {
        let server = self.server()?;
        let output = program::run(Path::new("umount"), &[text(&self.path)?])?;
        ensure!(output.code == 0, "{output:?}");
        wait::until("both processes end", LIMIT, || !runs(server) && !runs(self.supervisor))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let server = self.server().ok();
        for pid in [Some(self.supervisor).filter(|pid| *pid != 0), server].into_iter().flatten() {
            let _ = process::send(pid, libc::SIGKILL);
        }
        if mount::is_mounted(&self.path) {
            mount::detach(&self.path);
        }
    }
}

/// Whether a process is there and no zombie.
#[must_use]
pub fn runs(pid: u32) -> bool {
    stat(pid).is_ok_and(|stat| !stat.starts_with('Z'))
}

/// State, parent and so on of a process, as proc_pid_stat(5) has them behind the name.
fn stat(pid: u32) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(text.rsplit_once(") ").context("a name in brackets")?.1.to_owned())
}

fn parent(pid: u32) -> Result<u32> {
    match stat(pid)?.split(' ').nth(1) {
        Some(parent) => Ok(parent.parse()?),
        None => bail!("process {pid} has no parent"),
    }
}

fn comm(pid: u32) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/comm"))?.trim().to_owned())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path of text")
}
