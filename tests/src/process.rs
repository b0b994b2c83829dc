//! One process under test.

use std::{
    fs::{self, OpenOptions},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{network, wait};

/// How long a process may take to end after SIGTERM.
pub const STOP_LIMIT: Duration = Duration::from_secs(8);

/// A command line that can be started again and again, and the process it is now, if any.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    log: PathBuf,
    namespace: Option<PathBuf>,
    child: Option<Child>,
}

impl Process {
    /// Describes a process; nothing is started.
    #[must_use]
    pub fn new(name: &str, program: PathBuf, args: Vec<String>, env: Vec<(String, String)>, log: PathBuf) -> Self {
        Self { name: name.to_owned(), program, args, env, log, namespace: None, child: None }
    }

    /// It runs on the machine behind this file, see [`crate::network`].
    #[must_use]
    pub fn on(mut self, namespace: Option<PathBuf>) -> Self {
        self.namespace = namespace;
        self
    }

    /// Its name in the cluster, like `storage-2`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its log file.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process id, if it has been started and not been waited for.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Replaces the value of a flag (`--flag value`), or adds it, for the next start.
    pub fn set_flag(&mut self, flag: &str, value: &str) {
        match self.args.iter().position(|arg| arg == flag) {
            Some(at) => self.args[at + 1] = value.to_owned(),
            None => self.args.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    /// Sets a variable of its environment for the next starts, or takes it out.
    pub fn set_env(&mut self, key: &str, value: Option<&str>) {
        self.env.retain(|(known, _)| known != key);
        self.env.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    }

    /// Starts it.
    ///
    /// # Errors
    /// It runs already or cannot be executed.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = command(&self.program);
        if let Some(namespace) = &self.namespace {
            network::enter(&mut command, namespace)?;
        }
        let child = command
            .args(&self.args)
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.name))?;
        send(pid, signal)
    }

    /// Processes that it has started and that run; none if it has ended.
    #[must_use]
    pub fn children(&self) -> Vec<u32> {
        let Some(pid) = self.pid() else { return Vec::new() };
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        // A thread, or all of it, may end while it is looked at.
        let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let words = texts.collect::<Vec<_>>().join(" ");
        words.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        // SIGKILL ends stopped processes too.
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and demands exit code 0 in time.
    ///
    /// # Errors
    /// It does not run, takes too long (it is killed then) or ends with another code.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(libc::SIGTERM)?;
        let status = self.wait_exit(STOP_LIMIT)?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(())
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// It does not run, or does not end in time; it is killed then.
    pub fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        let ended = wait::until_some("end of process", limit, || child.try_wait().ok().flatten());
        match ended {
            Ok(status) => Ok(status),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                bail!("{}: {error}", self.name)
            }
        }
    }

    /// How it ended, if it did without being asked to.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Peak resident memory in bytes since it was started.
    ///
    /// # Errors
    /// It does not run.
    pub fn peak_memory(&self) -> Result<u64> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.name))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.is_some() {
            // The harness ends what it started, also when a test has failed half way.
            let _ = self.kill();
        }
    }
}

/// A command with a clean environment: nothing of `DFS_*` and `RUST_LOG` leaks from the caller, no colours.
#[must_use]
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("DFS_") || key == "RUST_LOG") {
            command.env_remove(key);
        }
    }
    command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "1");
    command
}

/// Sends `signal` to process `pid`.
///
/// # Errors
/// There is no such process.
pub fn send(pid: u32, signal: i32) -> Result<()> {
    let pid = i32::try_from(pid)?;
    // SAFETY: kill takes two numbers and touches no memory of ours.
    let done = unsafe { libc::kill(pid, signal) };
    ensure!(done == 0, "signal {signal} to {pid}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The signal that ended a process, if one did.
#[must_use]
pub fn killed_by(status: ExitStatus) -> Option<i32> {
    status.signal()
}
