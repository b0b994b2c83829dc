//! How much repair work each node has, kept up to date with every job so that planning one costs no walk over all.

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::NodeId;

use super::Job;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    jobs: usize,
    bytes: u64,
}

impl Amount {
    fn add(&mut self, length: u32) {
        self.jobs += 1;
        self.bytes += u64::from(length);
    }

    fn remove(&mut self, length: u32) {
        self.jobs -= 1;
        self.bytes -= u64::from(length);
    }
}

/// Jobs of one node, normal and urgent ones.
#[derive(Debug, Default)]
struct Load {
    sends: [Amount; 2],
    receives: [Amount; 2],
    waiting: BTreeSet<u64>,
    /// Bytes that the node may have to send: less than the limit after jobs were not done within their lease.
    window: Option<u64>,
}

/// The loads of all nodes.
#[derive(Debug)]
pub(super) struct Loads {
    jobs_max: usize,
    bytes_max: u64,
    nodes: BTreeMap<NodeId, Load>,
    /// Nodes with jobs to send.
    sources: usize,
}

impl Loads {
    /// At most so many jobs and bytes wait at one source; twice that are on their way to one target.
    pub(super) fn new(jobs_max: usize, bytes_max: u64) -> Self {
        Self { jobs_max, bytes_max, nodes: BTreeMap::new(), sources: 0 }
    }

    pub(super) fn add(&mut self, job: &Job) {
        let kind = usize::from(job.urgent);
        let source = self.nodes.entry(job.source).or_default();
        self.sources += usize::from(!source.is_source());
        source.sends[kind].add(job.length);
        if !job.issued {
            source.waiting.insert(job.id);
        }
        self.nodes.entry(job.target).or_default().receives[kind].add(job.length);
    }

    pub(super) fn remove(&mut self, job: &Job) {
        let kind = usize::from(job.urgent);
        if let Some(source) = self.nodes.get_mut(&job.source) {
            source.sends[kind].remove(job.length);
            source.waiting.remove(&job.id);
            self.sources -= usize::from(!source.is_source());
        }
        if let Some(target) = self.nodes.get_mut(&job.target) {
            target.receives[kind].remove(job.length);
        }
        for node in [job.source, job.target] {
            if self.nodes.get(&node).is_some_and(Load::is_idle) {
                self.nodes.remove(&node);
            }
        }
    }

    /// Jobs that wait for the next heartbeat of `source`; they wait no longer.
    pub(super) fn take_waiting(&mut self, source: NodeId) -> BTreeSet<u64> {
        self.nodes.get_mut(&source).map(|load| std::mem::take(&mut load.waiting)).unwrap_or_default()
    }

    /// Nodes with jobs to send.
    pub(super) fn sources(&self) -> usize {
        self.sources
    }

    pub(super) fn has_jobs(&self, source: NodeId) -> bool {
        self.nodes.get(&source).is_some_and(Load::is_source)
    }

    /// Bytes that `source` has to send.
    pub(super) fn sending(&self, source: NodeId) -> u64 {
        self.nodes.get(&source).map_or(0, |load| load.sends.iter().map(|amount| amount.bytes).sum())
    }

    pub(super) fn can_send(&self, source: NodeId, urgent: bool) -> bool {
        let Some(load) = self.nodes.get(&source) else { return true };
        let Amount { jobs, bytes } = load.sends[usize::from(urgent)];
        jobs < self.jobs_max && bytes < load.window.unwrap_or(self.bytes_max)
    }

    pub(super) fn can_receive(&self, target: NodeId, urgent: bool) -> bool {
        let Some(load) = self.nodes.get(&target) else { return true };
        let Amount { jobs, bytes } = load.receives[usize::from(urgent)];
        jobs < self.jobs_max * 2 && bytes < self.bytes_max * 2
    }

    /// A job of `length` bytes was not done in time: the node has too much to do.
    pub(super) fn shrink(&mut self, source: NodeId, length: u32) {
        let bytes_max = self.bytes_max;
        let load = self.nodes.entry(source).or_default();
        load.window = Some((load.window.unwrap_or(bytes_max) / 2).max(u64::from(length)));
    }

    /// A job was done in time.
    pub(super) fn grow(&mut self, source: NodeId, length: u32) {
        let Some(load) = self.nodes.get_mut(&source) else { return };
        load.window = load.window.map(|window| window + u64::from(length)).filter(|window| *window < self.bytes_max);
    }
}

impl Load {
    fn is_source(&self) -> bool {
        self.sends.iter().any(|amount| amount.jobs > 0)
    }

    fn is_idle(&self) -> bool {
        !self.is_source() && self.receives.iter().all(|amount| amount.jobs == 0) && self.window.is_none()
    }
}
