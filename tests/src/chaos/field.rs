//! Where it happens: carries out the schedule, ends what is due to end, and watches everybody meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Report, SMALL_DISKS, SUPERVISED, damage,
    schedule::{self, Fault, Shape, Strike},
    watch::Workers,
};
use crate::{
    Cluster, Mount, logs, mount,
    network::{self, Way},
    process::{self, Process},
};

/// Between two looks.
const TICK: Duration = Duration::from_millis(50);
/// Before a process that ended by itself is started again.
const RESTART: Duration = Duration::from_millis(700);
/// For so long after a disk had room again a process may still end because it had none.
const EXCUSED: Duration = Duration::from_secs(5);
/// A process is gone this long after `kill -9`.
const KILLED_MAX: Duration = Duration::from_secs(20);

/// A signal for a process that may have ended meanwhile.
fn send_if_there(pid: u32, signal: i32) -> Result<()> {
    match process::send(pid, signal) {
        Err(_) if !Path::new(&format!("/proc/{pid}")).exists() => Ok(()),
        outcome => outcome,
    }
}

/// What ends a fault.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Remedy {
    Start(String),
    Continue(String),
    Heal(u64),
    Free(String),
}

/// The cluster, its mounts, and what is wrong with them now.
pub(super) struct Field {
    // Before the cluster, so that they are gone before their servers.
    mounts: Vec<Mount>,
    pub(super) cluster: Cluster,
    pub(super) report: Report,
    pub(super) workers: Workers,
    shape: Shape,
    remedies: Vec<(Instant, Remedy)>,
    cuts: BTreeMap<u64, Vec<(String, String)>>,
    stopped: BTreeSet<String>,
    /// Until when a process may end by itself.
    excused: BTreeMap<String, Instant>,
    /// Metadata nodes whose log was damaged and that may refuse to start with it.
    damaged: BTreeSet<String>,
    /// Mounts that have been seen to work since they were started.
    mounted: BTreeSet<String>,
    begun: Instant,
    verbose: bool,
}

impl Field {
    pub(super) fn new(cluster: Cluster, mounts: Vec<Mount>, verbose: bool) -> Result<Self> {
        let names = |kind: &str, count: usize| (1..=count).map(|i| format!("{kind}-{i}")).collect();
        let small_disks = SMALL_DISKS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let shape = Shape {
            metas: names("meta", 3),
            storages: names("storage", 4),
            mounts: names("mnt", mounts.len()),
            supervised: vec![SUPERVISED.to_owned()],
            small_disks,
        };
        let paths = mounts.iter().map(|mount| mount.path().to_owned()).collect();
        let workers = Workers::new(cluster.scratch()?, paths);
        Ok(Self {
            mounts,
            cluster,
            report: Report::default(),
            workers,
            shape,
            remedies: Vec::new(),
            cuts: BTreeMap::new(),
            stopped: BTreeSet::new(),
            excused: BTreeMap::new(),
            damaged: BTreeSet::new(),
            mounted: BTreeSet::new(),
            begun: Instant::now(),
            verbose,
        })
    }

    pub(super) fn say(&self, text: &str) {
        if self.verbose {
            println!("{:>8.2} {text}", self.begun.elapsed().as_secs_f64());
        }
    }

    pub(super) fn finding(&mut self, text: String) {
        println!("{:>8.2} FINDING: {text}", self.begun.elapsed().as_secs_f64());
        self.report.findings.push(text);
    }

    fn remark(&mut self, text: &str) {
        self.say(text);
        *self.report.remarks.entry(text.to_owned()).or_default() += 1;
    }

    /// One round: work under faults, then peace and judgement.
    pub(super) fn round(&mut self, seed: u64, length: Duration) -> Result<()> {
        println!("round of seed {seed}");
        self.workers.start(seed)?;
        let begun = Instant::now();
        for strike in schedule::plan(seed, &self.shape, length) {
            while begun.elapsed() < strike.at {
                self.tick()?;
            }
            self.strike(&strike).with_context(|| strike.fault.to_string())?;
        }
        while begun.elapsed() < length {
            self.tick()?;
        }
        self.say("the faults end");
        for remedy in std::mem::take(&mut self.remedies) {
            self.remedy(remedy.1)?;
        }
        self.peace()?;
        self.report.rounds += 1;
        Ok(())
    }

    /// A moment passes: what is due to end ends, and everybody is looked at.
    pub(super) fn tick(&mut self) -> Result<()> {
        thread::sleep(TICK);
        let now = Instant::now();
        let (due, rest) = std::mem::take(&mut self.remedies).into_iter().partition(|(at, _)| *at <= now);
        self.remedies = rest;
        let due: Vec<(Instant, Remedy)> = due;
        for (_, remedy) in due {
            self.remedy(remedy)?;
        }
        self.supervise()?;
        for hang in self.workers.hangs() {
            self.finding(hang);
        }
        Ok(())
    }

    fn process(&mut self, name: &str) -> &mut Process {
        match self.shape.mounts.iter().position(|known| known == name) {
            Some(at) => self.mounts[at].process_mut(),
            None => self.cluster.node(name),
        }
    }

    fn is_up(&mut self, name: &str) -> bool {
        self.process(name).pid().is_some()
    }

    fn later(&mut self, after: Duration, remedy: Remedy) {
        self.remedies.push((Instant::now() + after, remedy));
    }

    fn strike(&mut self, strike: &Strike) -> Result<()> {
        let done = match &strike.fault {
            Fault::Kill(name) => self.kill(name, strike.lasts)?,
            Fault::KillAll => self.kill_all(strike.lasts)?,
            Fault::KillLeader => match self.leader() {
                Some(name) => self.kill(&name, strike.lasts)?,
                None => false,
            },
            Fault::KillServing(name) => self.kill_serving(name)?,
            Fault::Stop(name) => self.stop(name, strike.lasts)?,
            Fault::StopLeader => match self.leader() {
                Some(name) => self.stop(&name, strike.lasts)?,
                None => false,
            },
            Fault::Cut { host, way, others } => self.cut(host, *way, others, strike)?,
            Fault::Fill(name) => self.fill(name, strike.lasts)?,
            Fault::FlipChunks(name) => damage::flip_chunks(&self.cluster.data_dir(name), strike.salt)? > 0,
            Fault::CutChunks(name) => damage::cut_chunks(&self.cluster.data_dir(name), strike.salt)? > 0,
            Fault::WipeStorage(name) | Fault::WipeMeta(name) => self.wipe(name, strike.lasts)?,
            Fault::FlipLog(name) => self.damage_log(name, strike, damage::flip_log)?,
            Fault::CutLog(name) => self.damage_log(name, strike, damage::cut_log)?,
        };
        let lasts = strike.lasts.as_secs_f64();
        if done {
            *self.report.faults.entry(strike.fault.kind().to_owned()).or_default() += 1;
            self.say(&format!("{} ({lasts:.1} s)", strike.fault));
        } else {
            self.say(&format!("not possible now: {}", strike.fault));
        }
        Ok(())
    }

    fn kill(&mut self, name: &str, down: Duration) -> Result<bool> {
        if !self.is_up(name) {
            return Ok(false);
        }
        self.end(name)?;
        self.later(down, Remedy::Start(name.to_owned()));
        Ok(true)
    }

    /// `kill -9`; says so when that does not end it.
    fn end(&mut self, name: &str) -> Result<()> {
        self.stopped.remove(name);
        self.mounted.remove(name);
        // A supervisor first, which would start another one for each that ends.
        let children = self.process(name).children();
        let process = self.process(name);
        process.signal(libc::SIGKILL)?;
        for child in children {
            send_if_there(child, libc::SIGKILL)?;
        }
        let process = self.process(name);
        if let Err(error) = process.wait_exit(KILLED_MAX) {
            self.finding(format!("{name} is not gone after kill -9: {error}"));
        }
        Ok(())
    }

    fn kill_all(&mut self, down: Duration) -> Result<bool> {
        for name in [self.shape.metas.clone(), self.shape.storages.clone()].concat() {
            self.kill(&name, down)?;
        }
        Ok(true)
    }

    fn kill_serving(&mut self, name: &str) -> Result<bool> {
        if !self.is_up(name) || self.stopped.contains(name) || !self.mounted.contains(name) {
            return Ok(false);
        }
        let children = self.process(name).children();
        for child in &children {
            send_if_there(*child, libc::SIGKILL)?;
        }
        Ok(!children.is_empty())
    }

    /// To a process and to those that it has started.
    fn signal_all(&mut self, name: &str, signal: i32) -> Result<()> {
        self.process(name).signal(signal)?;
        for child in self.process(name).children() {
            send_if_there(child, signal)?;
        }
        Ok(())
    }

    fn stop(&mut self, name: &str, lasts: Duration) -> Result<bool> {
        if !self.is_up(name) || !self.stopped.insert(name.to_owned()) {
            return Ok(false);
        }
        self.signal_all(name, libc::SIGSTOP)?;
        self.later(lasts, Remedy::Continue(name.to_owned()));
        Ok(true)
    }

    fn cut(&mut self, host: &str, way: Way, others: &[String], strike: &Strike) -> Result<bool> {
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        self.cuts.insert(strike.salt, network::ways(host, &others, way));
        self.set_cuts()?;
        self.later(strike.lasts, Remedy::Heal(strike.salt));
        Ok(!others.is_empty())
    }

    fn set_cuts(&self) -> Result<()> {
        self.cluster.network()?.cut(&self.cuts.values().flatten().cloned().collect::<Vec<_>>())
    }

    fn fill(&mut self, name: &str, lasts: Duration) -> Result<bool> {
        self.cluster.disk(name)?.fill()?;
        self.excused.insert(name.to_owned(), Instant::now() + lasts + EXCUSED);
        self.later(lasts, Remedy::Free(name.to_owned()));
        Ok(true)
    }

    fn wipe(&mut self, name: &str, down: Duration) -> Result<bool> {
        if self.is_up(name) {
            self.end(name)?;
            self.later(down, Remedy::Start(name.to_owned()));
        }
        damage::empty(&self.cluster.data_dir(name))?;
        Ok(true)
    }

    fn damage_log(
        &mut self,
        name: &str,
        strike: &Strike,
        how: impl FnOnce(&Path, u64) -> Result<bool>,
    ) -> Result<bool> {
        if self.is_up(name) {
            self.end(name)?;
            self.later(strike.lasts, Remedy::Start(name.to_owned()));
        }
        self.damaged.insert(name.to_owned());
        how(&self.cluster.data_dir(name), strike.salt)
    }

    /// The metadata leader, if one answers at once.
    fn leader(&self) -> Option<String> {
        let output = self.cluster.dfsctl(&["--deadline", "1s", "status", "--json"]).ok()?;
        let status: serde_json::Value = serde_json::from_str(&output.stdout).ok()?;
        status["meta"]["leader"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
    }

    fn remedy(&mut self, remedy: Remedy) -> Result<()> {
        self.say(&format!("{remedy:?}"));
        match remedy {
            Remedy::Start(name) => self.launch(&name),
            Remedy::Continue(name) if self.stopped.remove(&name) => self.signal_all(&name, libc::SIGCONT),
            Remedy::Continue(_) => Ok(()),
            Remedy::Heal(cut) => {
                self.cuts.remove(&cut);
                self.set_cuts()
            }
            Remedy::Free(name) => self.cluster.disk(&name)?.free(),
        }
    }

    fn launch(&mut self, name: &str) -> Result<()> {
        if self.is_up(name) {
            return Ok(());
        }
        // What a dead predecessor has left in the table of mounts, and was noted, is not this one's.
        self.mounted.remove(name);
        match self.shape.mounts.iter().position(|known| known == name) {
            Some(at) => self.mounts[at].launch(),
            None => self.cluster.start(name),
        }
    }

    /// Looks after the processes: one that ended by itself is started again, as an init system would.
    fn supervise(&mut self) -> Result<()> {
        let all = [&self.shape.metas[..], &self.shape.storages[..], &self.shape.mounts[..]].concat();
        for name in all {
            self.note_mounted(&name);
            let Some(status) = self.process(&name).ended() else { continue };
            self.process(&name).wait_exit(Duration::ZERO)?;
            let tail = logs::tail(self.process(&name).log(), 6);
            if self.damaged.remove(&name) {
                self.remark("a metadata node refused its damaged log and got an empty disk");
                self.say(&tail);
                damage::empty(&self.cluster.data_dir(&name))?;
            } else if self.excused.get(&name).is_some_and(|until| Instant::now() < *until) {
                self.remark("a node ended since its disk was full");
            } else if self.shape.mounts.contains(&name) && !self.mounted.contains(&name) {
                self.remark("a mount could not start during faults");
            } else {
                self.finding(format!("{name} ended by itself with {status}:\n{tail}"));
            }
            self.mounted.remove(&name);
            self.later(RESTART, Remedy::Start(name));
        }
        Ok(())
    }

    fn note_mounted(&mut self, name: &str) {
        let path = self.shape.mounts.iter().position(|known| known == name).map(|at| self.mounts[at].path());
        if path.is_some_and(mount::is_mounted) {
            self.mounted.insert(name.to_owned());
        }
    }

    /// All processes that should run do.
    pub(super) fn all_up(&mut self) -> bool {
        let all = [&self.shape.metas[..], &self.shape.storages[..], &self.shape.mounts[..]].concat();
        let paths: Vec<PathBuf> = self.mounts.iter().map(|mount| mount.path().to_owned()).collect();
        all.iter().all(|name| self.is_up(name)) && paths.iter().all(|path| mount::is_mounted(path))
    }

    /// Where the first mount is.
    pub(super) fn mount_path(&self) -> PathBuf {
        self.mounts[0].path().to_owned()
    }

    /// Forgets what was excused: from now on nothing is.
    pub(super) fn excuse_nothing(&mut self) {
        self.excused.clear();
        self.damaged.clear();
    }

    /// Ends everything and looks through the logs.
    pub(super) fn finish(mut self) -> Result<Report> {
        for path in fs::read_dir(self.cluster.dir().join("log"))? {
            let path = path?.path();
            for line in logs::unexpected(&path, &super::judge::expected_logs()) {
                self.finding(format!("{}: {line}", path.display()));
            }
        }
        if !self.report.findings.is_empty() {
            self.cluster.keep();
            println!("logs and data are kept in {}", self.cluster.dir().display());
        }
        for mut mount in std::mem::take(&mut self.mounts) {
            if let Err(error) = mount.stop() {
                self.report.findings.push(format!("a mount does not end: {error:#}"));
            }
        }
        Ok(self.report)
    }
}
