//! What one leadership knows beyond the replicated state.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use dfs_common::{ChunkId, ErrorCode, NodeId};
use dfs_proto::status::RpcError;
use rand::{SeedableRng, rngs::StdRng};

use super::{
    NodeFigures,
    checks::Checks,
    detector::{Detector, Timing},
    disks::Disks,
    garbage::{Pinned, UnknownChunks},
    inventory::{self, Inventories},
    locks::SessionLocks,
    placement::{Candidate, Outstanding},
    rebalance::Rebalancer,
    repair::Planner,
    sessions::Sessions,
    settings::Settings,
    trim::Trimmer,
};
use crate::fsm::Node;

/// Copies to be deleted that are remembered. What does not fit is found again, by the next reader or inventory.
const EVICTIONS_MAX: usize = 10_000;

/// How long after trash was given up its space is on its way: it is released at once, deleted on the nodes with the next
/// heartbeat, and reported with the one after.
const FREEING: Duration = Duration::from_secs(15);

/// What a node last said of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub(super) capacity_bytes: u64,
    pub(super) used_bytes: u64,
    pub(super) chunk_count: u64,
    pub(super) active_streams: u32,
}

/// Where the rounds that look for work stopped.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    /// In the under-replicated chunks.
    pub(super) repair: Option<(u32, ChunkId)>,
    /// In the chunks of suspect nodes.
    pub(super) suspects: Option<(NodeId, ChunkId)>,
}

pub(super) struct Soft {
    pub(super) term: u64,
    pub(super) since: Instant,
    pub(super) detector: Detector,
    pub(super) sessions: Sessions,
    pub(super) locks: SessionLocks,
    pub(super) outstanding: Outstanding,
    pub(super) planner: Planner,
    pub(super) trimmer: Trimmer,
    pub(super) rebalancer: Rebalancer,
    pub(super) unknown: UnknownChunks,
    pub(super) inventories: Inventories,
    pub(super) reports: HashMap<NodeId, Report>,
    /// Nodes that were nearly full when they last reported.
    pub(super) low_on_space: BTreeSet<NodeId>,
    pub(super) disks: Disks,
    /// Copies that somebody reported as bad and that their nodes are to look at.
    pub(super) checks: Checks,
    /// Bad and superfluous copies that left the record, to be deleted while this many live ones are recorded.
    pub(super) evictions: BTreeMap<(NodeId, ChunkId), u32>,
    pub(super) cursors: Cursors,
    /// Garbage that readers keep, as the last round found it.
    pub(super) pinned: Pinned,
    /// Versions given up before their time because space was short.
    pub(super) given_up: u64,
    /// Until when that space is on its way.
    pub(super) freeing_until: Option<Instant>,
    pub(super) rng: StdRng,
}

impl Soft {
    pub(super) fn new(term: u64, settings: &Settings, now: Instant) -> Self {
        let timing = Timing { heartbeat: settings.heartbeat, suspect: settings.suspect, dead: settings.dead };
        Self {
            term,
            since: now,
            detector: Detector::new(timing, now),
            sessions: Sessions::new(settings.session_lease, now),
            locks: SessionLocks::default(),
            outstanding: Outstanding::default(),
            planner: Planner::new(settings.repair.clone(), term, now),
            trimmer: Trimmer::default(),
            rebalancer: Rebalancer::default(),
            unknown: UnknownChunks::default(),
            inventories: Inventories::new(term << 32),
            reports: HashMap::new(),
            low_on_space: BTreeSet::new(),
            disks: Disks::default(),
            checks: Checks::default(),
            evictions: BTreeMap::new(),
            cursors: Cursors::default(),
            pinned: Pinned::default(),
            given_up: 0,
            freeing_until: None,
            rng: StdRng::from_os_rng(),
        }
    }

    /// The nodes as placement and repair see them. `window` is how long what was placed counts as outstanding.
    pub(super) fn candidates(&mut self, nodes: &[Node], window: Duration, now: Instant) -> Vec<Candidate> {
        nodes
            .iter()
            .map(|node| {
                let figures = self.figures(node, now);
                Candidate {
                    id: node.id,
                    state: node.state(),
                    leaving: node.is_leaving(),
                    rack: node.rack.clone(),
                    host: node.address.rsplit_once(':').map_or("", |(host, _)| host).to_owned(),
                    capacity_bytes: figures.capacity_bytes,
                    used_bytes: figures.used_bytes,
                    outstanding_bytes: self.outstanding.bytes(node.id, window, now),
                    active_streams: self.reports.get(&node.id).map_or(0, |report| report.active_streams),
                    recently_failed: self.detector.recently_accused(node.id, now)
                        || self.detector.is_held_down(node.id, now),
                }
            })
            .collect()
    }

    /// What a node last said, or before it was heard, what the record says.
    pub(super) fn figures(&self, node: &Node, now: Instant) -> NodeFigures {
        let silent = self.detector.silence(node.id, now);
        match self.reports.get(&node.id) {
            Some(Report { capacity_bytes, used_bytes, chunk_count, .. }) => NodeFigures {
                capacity_bytes: *capacity_bytes,
                used_bytes: *used_bytes,
                chunk_count: *chunk_count,
                silent,
            },
            None => NodeFigures {
                capacity_bytes: node.capacity_bytes,
                used_bytes: node.chunk_bytes,
                chunk_count: node.chunk_count,
                silent,
            },
        }
    }

    /// A heartbeat or registration arrived.
    pub(super) fn heard(&mut self, node: NodeId, report: Report, now: Instant) {
        self.detector.heard(node, now);
        self.reports.insert(node, report);
    }

    /// Trash was given up because space was short.
    pub(super) fn trash_given_up(&mut self, versions: u64, now: Instant) {
        self.given_up += versions;
        self.freeing_until = Some(now + FREEING);
    }

    /// A cluster that is full only because of its trash is not full: the next round gives some of it up, and the writer
    /// tries again meanwhile.
    pub(super) fn wait_for_trash(&self, error: RpcError, has_trash: bool, now: Instant) -> RpcError {
        let is_freeing = self.freeing_until.is_some_and(|until| now < until);
        if error.code == ErrorCode::NoSpace && (has_trash || is_freeing) {
            let message = format!("{}; the oldest trash is being given up for it", error.message);
            return RpcError { code: ErrorCode::Unavailable, message, ..error };
        }
        error
    }

    /// Remembers a copy to be deleted while `others` live ones are recorded. `false` if there is no room to remember it.
    pub(super) fn evict(&mut self, node: NodeId, chunk: ChunkId, others: u32) -> bool {
        let fits = self.evictions.len() < EVICTIONS_MAX;
        if fits {
            self.evictions.insert((node, chunk), others);
        }
        fits
    }

    /// Whether a copy of `chunk` that one of `nodes` holds is to be deleted.
    pub(super) fn is_evicted(&self, chunk: ChunkId, nodes: &[NodeId]) -> bool {
        nodes.iter().any(|node| self.evictions.contains_key(&(*node, chunk)))
    }

    /// Wants a first inventory of each node, at leisure, and forgets nodes that are gone.
    pub(super) fn settle(&mut self, nodes: &[Node], settings: &Settings, now: Instant) {
        for node in nodes {
            self.inventories.want(node.id, inventory::first_due(self.since, settings.inventory_delay, node.id));
        }
        let known = |id: NodeId| nodes.iter().any(|node| node.id == id);
        self.detector.retain(known);
        self.inventories.retain(known);
        self.reports.retain(|id, _| known(*id));
        self.low_on_space.retain(|id| known(*id));
        self.disks.retain(known);
        self.checks.expire(now);
    }
}
