//! What an administrator decides about storage nodes: drain, maintenance, removal.
//!
//! ```text
//!                    drain                 nothing rests on it             remove
//!   in service ────────────────► draining ─────────────────────► drained ──────────► decommissioned
//!     │    ▲ ▲                      │                               │                      ▲
//!     │    │ └──────── undrain ─────┴───────────────────────────────┘                      │
//!     │    └── time over, --end, dead ── maintenance                                       │
//!     ├──────── maintenance ────────────────▲                                              │
//!     └──────────────────── remove a dead node, or with losses accepted ───────────────────┘
//! ```
//!
//! None of it depends on health: a draining node may fall silent and return. Each step is one command, so a leader that dies
//! between two of them leaves a state that the next one goes on from.

use std::{collections::BTreeSet, sync::Arc};

use dfs_common::{ChunkId, ErrorCode, FileId, NodeId, node::Health};
use serde::{Deserialize, Serialize};

use super::{
    command::{Outcome, Refusal, Reply},
    event::Fact,
    record::{Admin, Chunk, Node, Share, Version},
    risk::Figure,
    state::State,
};

/// Longest maintenance: an outage that is longer is better drained, or repaired.
const MAINTENANCE_MAX_NS: i64 = 24 * 3600 * 1_000_000_000;

/// What is to become of a storage node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Action {
    /// It is to be emptied. One that is dead or gone is refused.
    Drain,
    /// It is not to be emptied after all.
    Undrain,
    /// Nothing rests on it any more. Refused with `Stale` where that is not so.
    FinishDrain,
    /// It may be silent until then without anything being repaired.
    StartMaintenance {
        /// The leader's clock, nanoseconds since the Unix epoch.
        until_ns: i64,
    },
    /// Its silence counts again.
    EndMaintenance {
        /// Not because somebody said so, but because the time is over. Refused with `Stale` where it is not.
        expired: bool,
    },
    /// It leaves for good, and every copy on it is forgotten.
    Remove {
        /// Also if that loses or endangers something.
        lose: bool,
    },
}

/// What the absence of one node would mean for what is needed, chunks and bytes of one copy each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Impact {
    /// Needed chunks recorded on it.
    pub holds: Figure,
    /// Those that would have fewer counted copies than wanted, and two live ones or more.
    pub under_replicated: Figure,
    /// Those that would have one live copy left, and have more now.
    pub endangered: Figure,
    /// Those that would have no live copy.
    pub lost: Figure,
    /// Those that need another copy elsewhere before the node can go without being missed.
    pub to_copy: Figure,
}

/// What becomes of one chunk without one of its holders.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Same,
    UnderReplicated,
    Endangered,
    Lost,
}

impl State {
    pub(super) fn administer(&mut self, now_ns: i64, id: NodeId, action: Action) -> Outcome {
        let node = self.existing_node(id)?.clone();
        if !node.is_member() {
            return Err(refusal(&node, "was removed from the cluster already"));
        }
        match action {
            Action::Drain => self.drain(now_ns, &node),
            Action::Undrain => Ok(self.undrain(now_ns, &node)),
            Action::FinishDrain => self.finish_drain(now_ns, &node),
            Action::StartMaintenance { until_ns } => self.start_maintenance(now_ns, &node, until_ns),
            Action::EndMaintenance { expired } => {
                match node.admin {
                    Admin::Maintenance { until_ns } if expired && now_ns < until_ns => {
                        return Err(Refusal::new(
                            ErrorCode::Stale,
                            format!("maintenance of {} was prolonged", node.name),
                        ));
                    }
                    Admin::Maintenance { .. } if expired => self.end_maintenance(now_ns, id, "its time is over"),
                    Admin::Maintenance { .. } => self.end_maintenance(now_ns, id, "an administrator ended it"),
                    Admin::InService | Admin::Draining | Admin::Drained | Admin::Decommissioned => {}
                }
                Ok(Reply::Done)
            }
            Action::Remove { lose } => self.remove_node(now_ns, &node, lose),
        }
    }

    fn drain(&mut self, now_ns: i64, node: &Node) -> Outcome {
        if node.is_leaving() {
            return Ok(Reply::Done);
        }
        if node.health == Health::Dead {
            let message = "is dead: there is nothing to copy from it, and what it held is made again from other copies; \
                           remove it when nothing is lost by that";
            return Err(refusal(node, message));
        }
        if matches!(node.admin, Admin::Maintenance { .. }) {
            self.end_maintenance(now_ns, node.id, "it is drained instead");
        }
        self.change_node(now_ns, node.id, |node| node.admin = Admin::Draining);
        let Figure { chunks, bytes } = self.rests(node.id);
        self.event(now_ns, Fact::DrainStarted { node: node.id, chunks, bytes });
        Ok(Reply::Done)
    }

    fn undrain(&mut self, now_ns: i64, node: &Node) -> Reply {
        if node.is_leaving() {
            let Figure { chunks, .. } = self.rests(node.id);
            self.change_node(now_ns, node.id, |node| node.admin = Admin::InService);
            self.event(now_ns, Fact::DrainCancelled { node: node.id, chunks });
        }
        Reply::Done
    }

    fn finish_drain(&mut self, now_ns: i64, node: &Node) -> Outcome {
        match node.admin {
            Admin::Drained => return Ok(Reply::Done),
            // What a dead node holds alone is not elsewhere, although nothing counts on it.
            Admin::Draining if node.share() == Share::Leaving && self.rests(node.id) == Figure::default() => {}
            Admin::Draining | Admin::InService | Admin::Maintenance { .. } | Admin::Decommissioned => {
                return Err(Refusal::new(ErrorCode::Stale, format!("{} is not drained yet", node.name)));
            }
        }
        self.change_node(now_ns, node.id, |node| node.admin = Admin::Drained);
        let (chunks, bytes) = (node.chunk_count, node.chunk_bytes);
        self.event(now_ns, Fact::DrainDone { node: node.id, chunks, bytes });
        Ok(Reply::Done)
    }

    fn start_maintenance(&mut self, now_ns: i64, node: &Node, until_ns: i64) -> Outcome {
        if node.is_leaving() {
            return Err(refusal(node, "is being drained: `dfsctl node undrain` it first, or let it be"));
        }
        if node.health == Health::Dead {
            return Err(refusal(node, "is dead, and its copies are being replaced already"));
        }
        let span_ns = until_ns.saturating_sub(now_ns);
        if !(1..=MAINTENANCE_MAX_NS).contains(&span_ns) {
            let hours = MAINTENANCE_MAX_NS / 3_600_000_000_000;
            let message =
                format!("maintenance ends in the future, and within {hours} h; what takes longer is better drained");
            return Err(Refusal::new(ErrorCode::InvalidArgument, message));
        }
        self.change_node(now_ns, node.id, |node| node.admin = Admin::Maintenance { until_ns });
        self.event(now_ns, Fact::MaintenanceStarted { node: node.id, until_ns });
        Ok(Reply::Done)
    }

    pub(super) fn end_maintenance(&mut self, now_ns: i64, id: NodeId, reason: &str) {
        self.change_node(now_ns, id, |node| node.admin = Admin::InService);
        self.event(now_ns, Fact::MaintenanceEnded { node: id, reason: reason.to_owned() });
    }

    /// Looks again at what would be lost: between the question and this command much may have happened.
    fn remove_node(&mut self, now_ns: i64, node: &Node, lose: bool) -> Outcome {
        let impact = self.impact(node.id, &mut |_, _| {});
        if !lose && let Some(reason) = self.removal_obstacle(node, &impact) {
            return Err(refusal(node, &reason));
        }
        if matches!(node.admin, Admin::Maintenance { .. }) {
            self.end_maintenance(now_ns, node.id, "the node is removed");
        }
        self.change_node(now_ns, node.id, |node| node.admin = Admin::Decommissioned);
        self.forget_copies_on(node.id);
        let (endangered, lost) = (impact.endangered.chunks, impact.lost.chunks);
        self.event(now_ns, Fact::NodeRemoved { node: node.id, endangered, lost });
        Ok(Reply::Done)
    }

    /// Why a node cannot be removed without `lose`; `None` if it can.
    #[must_use]
    pub fn removal_obstacle(&self, node: &Node, impact: &Impact) -> Option<String> {
        let Impact { endangered, lost, .. } = impact;
        if lost.chunks > 0 {
            return Some(format!("holds {} chunks of which no other live copy is known", lost.chunks));
        }
        if endangered.chunks > 0 {
            return Some(format!("holds {} chunks that would have one live copy left", endangered.chunks));
        }
        match (node.health, node.is_leaving()) {
            (Health::Dead, _) => None,
            (Health::Alive | Health::Suspect, false) => Some("is in service: drain it first".to_owned()),
            (Health::Alive | Health::Suspect, true) => match self.rests(node.id).chunks {
                0 => None,
                n => Some(format!("is not drained yet: {n} chunks have too few copies elsewhere")),
            },
        }
    }

    /// What the absence of a node would mean. Visits every chunk on it; `each` is told those that would be endangered
    /// (`false`) or lost (`true`).
    pub fn impact(&self, id: NodeId, each: &mut dyn FnMut(ChunkId, bool)) -> Impact {
        let (share, wanted) = (self.share(id), self.settings().replication);
        let mut impact = Impact::default();
        for (chunk_id, chunk) in self.chunks_on(id, None).filter_map(|chunk| Some((chunk, self.chunk(chunk)?))) {
            if !chunk.is_needed() {
                continue;
            }
            let length = u64::from(chunk.length);
            impact.holds.count(length, true);
            if chunk.counted() - u32::from(share == Share::Counted) < wanted {
                impact.to_copy.count(length, true);
            }
            match fate(chunk, share, wanted) {
                Fate::Same => {}
                Fate::UnderReplicated => impact.under_replicated.count(length, true),
                Fate::Endangered => {
                    impact.endangered.count(length, true);
                    each(chunk_id, false);
                }
                Fate::Lost => {
                    impact.lost.count(length, true);
                    each(chunk_id, true);
                }
            }
        }
        impact
    }
}

/// Files of chunks.
impl State {
    /// Versions that list one of `chunks` and are no garbage. Visits every version.
    pub fn versions_with<'a>(&'a self, chunks: &'a BTreeSet<ChunkId>) -> impl Iterator<Item = FileId> + 'a {
        let lists = |version: &Version| version.chunks.iter().any(|chunk| chunks.contains(chunk));
        self.versions
            .iter()
            .filter(move |(id, version)| lists(version) && !self.garbage.contains_key(*id))
            .map(|(id, _)| *id)
    }

    /// Where the content of a version is, or was before it came into the trash.
    #[must_use]
    pub fn path_of_version(&self, id: FileId) -> Option<Arc<[u8]>> {
        match self.trash.get(&id) {
            Some(trashed) => Some(Arc::clone(&trashed.path)),
            None => self.path_of(self.versions.get(&id)?.ino),
        }
    }
}

/// What becomes of a chunk without a holder whose copies count like this.
fn fate(chunk: &Chunk, share: Share, wanted: u32) -> Fate {
    let live = chunk.live() - u32::from(share != Share::Lost);
    let counted = chunk.counted() - u32::from(share == Share::Counted);
    match live {
        0 => Fate::Lost,
        1 if chunk.live() > 1 && counted < wanted => Fate::Endangered,
        _ if counted < wanted && chunk.counted() >= wanted => Fate::UnderReplicated,
        _ => Fate::Same,
    }
}

fn refusal(node: &Node, why: &str) -> Refusal {
    Refusal::new(ErrorCode::NotPermitted, format!("storage node {} (number {}) {why}", node.name, node.id))
}
