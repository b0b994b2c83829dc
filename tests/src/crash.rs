//! Processes that die at a crash point: told by their environment, waited for, and started again as if nothing had been said.

use std::{process::ExitStatus, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    Cluster, Mount, logs,
    process::{self, Process},
};

/// The variable that names the point.
pub const VARIABLE: &str = "DFS_CRASH_POINT";

/// How long a process may take to come to its point.
pub const LIMIT: Duration = Duration::from_secs(60);

impl Process {
    /// Starts it to die at `point` (`NAME` or `NAME:N`). If it runs it is stopped first, in good order, so that nobody avoids it.
    ///
    /// # Errors
    /// It does not stop, or cannot be started.
    pub fn arm(&mut self, point: &str) -> Result<()> {
        if self.pid().is_some() {
            self.stop()?;
        }
        self.set_env(VARIABLE, Some(point));
        self.start()
    }

    /// Waits until it has died at the point it was armed with, and disarms it. It is not started.
    ///
    /// # Errors
    /// It does not die in time, or otherwise.
    pub fn await_crash(&mut self, point: &str) -> Result<()> {
        let status = self.wait_exit(LIMIT).with_context(|| format!("{} was to die at {point}", self.name()))?;
        self.set_env(VARIABLE, None);
        died_there(status, point, &logs::tail(self.log(), 40)).with_context(|| self.name().to_owned())
    }
}

/// Demands that a process was killed by itself at `point`.
///
/// # Errors
/// It ended otherwise.
pub fn died_there(status: ExitStatus, point: &str, said: &str) -> Result<()> {
    let name = point.split(':').next().unwrap_or_default();
    let killed = process::killed_by(status) == Some(libc::SIGKILL);
    ensure!(killed && said.contains(&format!("crash point {name}: ")), "ended with {status}, not at {point}: {said}");
    Ok(())
}

impl Cluster {
    /// Starts a node anew, to die at `point`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn arm(&mut self, name: &str, point: &str) -> Result<()> {
        self.node(name).arm(point)
    }

    /// Starts a node anew that did not come to its point.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn disarm(&mut self, name: &str) -> Result<()> {
        let node = self.node(name);
        node.kill()?;
        node.set_env(VARIABLE, None);
        node.start()
    }

    /// Waits until a node has died at the point it was armed with, and starts it again without.
    ///
    /// # Errors
    /// It does not die in time, or otherwise, or does not start.
    pub fn await_crash(&mut self, name: &str, point: &str) -> Result<()> {
        let node = self.node(name);
        node.await_crash(point)?;
        node.start()
    }
}

impl Mount {
    /// Mounts anew, now if it is mounted, to die at `point`.
    ///
    /// # Errors
    /// It does not come up.
    pub fn arm(&mut self, point: &str) -> Result<()> {
        if self.process().pid().is_some() {
            self.stop()?;
        }
        self.process_mut().set_env(VARIABLE, Some(point));
        self.start_again()
    }

    /// Waits until the mount has died at its point, and mounts again without.
    ///
    /// # Errors
    /// It does not die in time, or otherwise, or does not come up.
    pub fn await_crash(&mut self, point: &str) -> Result<()> {
        self.process_mut().await_crash(point)?;
        self.let_go();
        self.start_again()
    }
}
