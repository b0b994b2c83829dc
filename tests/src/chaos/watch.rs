//! The workers' processes: started, watched, and ended.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    DEADLINE,
    journal::{self, Line, now},
    worker::{self, Kind, Task},
};
use crate::{bins, history::Answer, process, wait};

/// Workers on small files: half of them on each mount.
const REGISTERS: u64 = 4;
/// Workers on trees: half of them on each mount.
const TREES: u64 = 2;
/// The longest an operation may take. The kernel makes up to three requests of one (two names to look up, one change), each
/// takes at most four deadlines, and the mount may stand still twice meanwhile; the rest is for a busy machine.
const HANG: Duration = Duration::from_secs(3 * 4 * DEADLINE.as_secs() + 2 * 12 + 16);

/// The workers of a round.
#[derive(Debug)]
pub(super) struct Workers {
    scratch: PathBuf,
    mounts: Vec<PathBuf>,
    /// Where the journals of this round are.
    pub(super) state: PathBuf,
    running: Vec<(Task, Child)>,
    hung: BTreeSet<String>,
}

impl Workers {
    pub(super) fn new(scratch: PathBuf, mounts: Vec<PathBuf>) -> Self {
        Self { state: scratch.clone(), scratch, mounts, running: Vec::new(), hung: BTreeSet::new() }
    }

    /// Starts those of a round.
    pub(super) fn start(&mut self, seed: u64) -> Result<()> {
        self.state = self.scratch.join(format!("round-{seed}"));
        fs::create_dir_all(&self.state)?;
        self.hung.clear();
        for number in 0..REGISTERS + TREES {
            let kind = if number < REGISTERS { Kind::Register } else { Kind::Tree };
            self.launch(kind, number, seed)?;
        }
        Ok(())
    }

    /// Starts one.
    pub(super) fn launch(&mut self, kind: Kind, number: u64, seed: u64) -> Result<()> {
        let mut mounts = self.mounts.clone();
        let first = usize::try_from(number)? % mounts.len();
        mounts.rotate_left(first);
        let task = Task { kind, number, seed, mounts, state: self.state.clone() };
        let said = File::create(self.state.join(format!("{}.log", task.name())))?;
        let paths: Vec<_> = task.mounts.iter().map(|mount| mount.display().to_string()).collect();
        let child = Command::new(bins::path("dfs-chaos")?)
            .args(["worker", "--kind", &format!("{kind:?}").to_lowercase(), "--number", &number.to_string()])
            .args(["--seed", &seed.to_string(), "--mounts", &paths.join(","), "--state"])
            .arg(&task.state)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .spawn()
            .context("cannot start a worker")?;
        self.running.push((task, child));
        Ok(())
    }

    /// What has taken too long since it was asked last.
    pub(super) fn hangs(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for (task, child) in &self.running {
            let Some((since, what)) = worker::pulse(&task.pulse()) else { continue };
            let taken = Duration::from_nanos(now().saturating_sub(since));
            if taken > HANG && self.hung.insert(task.name()) {
                let stack = fs::read_to_string(format!("/proc/{}/stack", child.id())).unwrap_or_default();
                found.push(format!("{}: {what} takes {:.0} s:\n{stack}", task.name(), taken.as_secs_f64()));
            }
        }
        found
    }

    /// How many operations each worker has ended without an error.
    pub(super) fn successes(&self) -> Result<Vec<(String, usize)>> {
        let count = |task: &Task| -> Result<usize> {
            Ok(journal::read(&task.journal())?.iter().filter(|line| is_success(line)).count())
        };
        self.running.iter().map(|(task, _)| Ok((task.name(), count(task)?))).collect()
    }

    /// Whether all have ended.
    pub(super) fn are_over(&mut self) -> bool {
        self.running.iter_mut().all(|(_, child)| child.try_wait().is_ok_and(|status| status.is_some()))
    }

    /// Asks all to end.
    pub(super) fn ask_to_end(&self) -> Result<()> {
        Ok(fs::write(worker::stop_file(&self.state), "")?)
    }

    /// Collects those that have ended, kills the others, and says what was wrong.
    pub(super) fn collect(&mut self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (task, mut child) in std::mem::take(&mut self.running) {
            let name = task.name();
            let status = match child.try_wait()? {
                Some(status) => status,
                None => {
                    let doing = worker::pulse(&task.pulse()).map(|(_, what)| what);
                    found.push(format!("{name} does not end; it is in {doing:?}"));
                    process::send(child.id(), libc::SIGKILL)?;
                    match wait::until_some("end", super::tree::KILL_MAX, || child.try_wait().ok().flatten()) {
                        Ok(_) => continue,
                        Err(_) => {
                            found.push(format!("{name} cannot be killed"));
                            continue;
                        }
                    }
                }
            };
            if !status.success() {
                let said = fs::read_to_string(self.state.join(format!("{name}.log"))).unwrap_or_default();
                found.push(format!("worker {name} ended with {status}: {said}"));
            }
        }
        Ok(found)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (_, child) in &mut self.running {
            let _ = child.kill();
        }
    }
}

fn is_success(line: &Line) -> bool {
    match line {
        Line::Returned { answer, .. } => *answer != Answer::Unknown,
        Line::Step { well, .. } => *well,
        Line::Called { .. } | Line::Tree { .. } | Line::Violation(_) => false,
    }
}

/// The journals of a round, and the names of who wrote them.
pub(super) fn journals(state: &Path) -> Result<Vec<(String, Vec<Line>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(state)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "journal") {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            found.push((name, journal::read(&path)?));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}
