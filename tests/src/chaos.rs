//! Chaos: a real cluster, each process on a machine of its own, works while everything goes wrong, and is judged.
//!
//! A run has one cluster and some rounds. In each round workers ([`worker`]) use two mounts while faults happen by a schedule
//! that follows from the seed ([`schedule`], `field`). Then all faults end, and within bounds the workers must get on, every
//! node must be there, every chunk must have its copies, and everything that was acknowledged must be read (`audit`);
//! histories of small files must be linearizable (`judge`).
//!
//! Allowed during faults: errors, within the deadline. Never allowed: wrong bytes, the absence of what was acknowledged,
//! operations that take longer than their deadlines, processes that cannot be killed or that end by themselves, panics.

mod audit;
mod damage;
mod field;
pub mod journal;
mod judge;
mod peace;
mod register;
pub mod schedule;
mod tree;
mod watch;
pub mod worker;

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context as _, Result};

use crate::Cluster;

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The schedule of round r follows from this number plus r.
    pub seed: u64,
    /// How many rounds on one cluster.
    pub rounds: u64,
    /// How long faults happen in a round.
    pub round: Duration,
    /// Whether to print each fault.
    pub verbose: bool,
}

/// How it went.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// What was promised and not kept; empty: all is well.
    pub findings: Vec<String>,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Things that are worth knowing, by kind, and how often.
    pub remarks: BTreeMap<String, u64>,
    /// Operations on small files, and how many of them have no certain answer.
    pub operations: (usize, usize),
    /// Steps on trees by program: without error, with one.
    pub steps: BTreeMap<String, (u64, u64)>,
    /// Files of trees whose copy was acknowledged, and small files.
    pub acknowledged: (usize, usize),
    /// Objects whose histories were judged, and how many of them were too long.
    pub histories: (usize, usize),
    /// Rounds that were played to their end.
    pub rounds: u64,
    /// Longest time from the end of the faults until all was well.
    pub healed_in: Duration,
}

impl Report {
    /// Adds another run.
    pub fn add(&mut self, other: Self) {
        self.findings.extend(other.findings);
        for (kind, count) in other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for (kind, count) in other.remarks {
            *self.remarks.entry(kind).or_default() += count;
        }
        for (what, (well, failed)) in other.steps {
            let sum = self.steps.entry(what).or_default();
            *sum = (sum.0 + well, sum.1 + failed);
        }
        let sum = |a: (usize, usize), b: (usize, usize)| (a.0 + b.0, a.1 + b.1);
        self.operations = sum(self.operations, other.operations);
        self.acknowledged = sum(self.acknowledged, other.acknowledged);
        self.histories = sum(self.histories, other.histories);
        self.rounds += other.rounds;
        self.healed_in = self.healed_in.max(other.healed_in);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u64 = self.faults.values().sum();
        writeln!(f, "{} rounds, {faults} faults, healed within {:.1} s", self.rounds, self.healed_in.as_secs_f64())?;
        for (kind, count) in &self.faults {
            writeln!(f, "  {kind:<22} {count:>5}")?;
        }
        let ((operations, unknown), (objects, undecided)) = (self.operations, self.histories);
        writeln!(f, "{operations} operations on small files, {unknown} without a certain answer")?;
        writeln!(f, "{objects} histories judged, {undecided} of them too long")?;
        for (what, (well, failed)) in &self.steps {
            writeln!(f, "  {what:<22} {well:>5} without error, {failed} with one")?;
        }
        let (in_trees, small) = self.acknowledged;
        writeln!(f, "{in_trees} files of trees and {small} small files acknowledged")?;
        for (what, count) in &self.remarks {
            writeln!(f, "  {what}: {count}")?;
        }
        writeln!(f, "{} findings", self.findings.len())?;
        self.findings.iter().try_for_each(|finding| writeln!(f, "  FINDING: {finding}"))
    }
}

/// Names of nodes with small disks, and the bytes of these.
const SMALL_DISKS: [(&str, u64); 2] = [("storage-4", 768 << 20), ("meta-3", 256 << 20)];
/// The deadline of the mounts. An operation may take four times that.
const DEADLINE: Duration = Duration::from_secs(5);
/// The mount that has a supervisor.
const SUPERVISED: &str = "mnt-2";

/// Runs the rounds on a new cluster. It takes root and FUSE.
///
/// # Errors
/// The cluster does not come up, or something outside of it fails.
pub fn run(settings: &Settings) -> Result<Report> {
    let builder = Cluster::builder()
        .metas(3)
        .storages(4)
        .machines(2)
        .faults()
        .meta_flag("--session-lease", "12s")
        .meta_flag("--gc-grace", "5s")
        .meta_flag("--trash-retention", "2s")
        .meta_flag("--trim-grace", "5s")
        .meta_flag("--snapshot-threshold", "400");
    let mut cluster = builder.describe()?;
    for (name, bytes) in SMALL_DISKS {
        cluster.small_disk(name, bytes)?;
    }
    cluster.start_all().context("start")?;
    let options = format!("cache=0,timeout={}s", DEADLINE.as_secs());
    let mounts = vec![cluster.mount_with(&options)?, cluster.mount_supervised(&options)?];
    let mut field = field::Field::new(cluster, mounts, settings.verbose)?;
    for round in 0..settings.rounds {
        field.round(settings.seed + round, settings.round)?;
        if !field.report.findings.is_empty() {
            break;
        }
    }
    field.finish()
}
