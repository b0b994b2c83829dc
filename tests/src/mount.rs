//! A FUSE mount under test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{bins, process::Process, wait};

/// How long a mount may take to answer its first question.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// One `mount.dfs` process and its mount point. Dropping it kills the process and detaches the mount point.
#[derive(Debug)]
pub struct Mount {
    process: Process,
    path: PathBuf,
}

impl Mount {
    /// Mounts at `path` with `-o options` (may be empty) and waits until the mount answers.
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn start(meta: &str, path: &Path, options: &str, log: PathBuf) -> Result<Self> {
        Self::start_on(None, meta, path, options, &[], log)
    }

    /// The same with more arguments, by a process on the machine behind `namespace`.
    pub(crate) fn start_on(
        namespace: Option<PathBuf>,
        meta: &str,
        path: &Path,
        options: &str,
        more: &[&str],
        log: PathBuf,
    ) -> Result<Self> {
        fs::create_dir_all(path)?;
        let mut args = vec![meta.to_owned(), path.display().to_string(), "-f".to_owned()];
        if !options.is_empty() {
            args.extend(["-o".to_owned(), options.to_owned()]);
        }
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        let name = path.file_name().map_or_else(|| "mount".into(), |name| name.to_string_lossy().into_owned());
        let process = Process::new(&name, bins::path("mount.dfs")?, args, Vec::new(), log).on(namespace);
        let mut mount = Self { process, path: path.to_owned() };
        mount.start_again()?;
        Ok(mount)
    }

    /// Starts the process and waits for nothing; what is left of an earlier one at the mount point is detached.
    pub(crate) fn launch(&mut self) -> Result<()> {
        if is_mounted(&self.path) {
            detach(&self.path);
        }
        self.process.start()
    }

    pub(crate) fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Mounts once more after [`Mount::stop`] or [`Mount::kill`].
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn start_again(&mut self) -> Result<()> {
        self.process.start()?;
        let (process, path) = (&mut self.process, &self.path);
        let mut ended = None;
        wait::until("mount answers", READY_LIMIT, || {
            ended = process.ended();
            ended.is_some() || (is_mounted(path) && answers(path))
        })?;
        match ended {
            Some(status) => bail!("mount.dfs ended with {status}: {}", crate::logs::tail(self.process.log(), 20)),
            None => Ok(()),
        }
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

    /// The process that serves the mount.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Detaches the mount point of a process that has died.
    pub fn let_go(&self) {
        detach(&self.path);
    }

    /// SIGTERM: the mount point must be free afterwards.
    ///
    /// # Errors
    /// The process does not end cleanly, or the mount point stays.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop()?;
        wait::until("mount point is free", Duration::from_secs(2), || !is_mounted(&self.path))
            .with_context(|| self.path.display().to_string())
    }

    /// SIGKILL, as a crash; the dead mount point is detached.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        detach(&self.path);
        Ok(())
    }

    /// Unmounts and mounts again: every cache is cold.
    ///
    /// # Errors
    /// As [`Mount::stop`] and [`Mount::start_again`].
    pub fn remount(&mut self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.process.pid().is_some() {
            let _ = self.process.kill();
        }
        if is_mounted(&self.path) {
            detach(&self.path);
        }
    }
}

/// Whether something is mounted at `path`, asked without touching it.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    // Blanks stand there in octal.
    let wanted = path.display().to_string().replace(' ', "\\040");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().any(|line| line.split(' ').nth(4) == Some(&wanted))
}

/// Whether the mount answers a stat of its root. A process of its own asks, so that a mount that hangs cannot take the
/// test with it.
fn answers(path: &Path) -> bool {
    let mut stat = Command::new("timeout");
    stat.args(["2", "stat"]).arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    stat.status().is_ok_and(|status| status.success())
}

pub(crate) fn detach(path: &Path) {
    let mut umount = Command::new("umount");
    umount.arg("-l").arg(path).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = umount.status();
}
