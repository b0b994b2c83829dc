//! Storage nodes in the model: health, admin state, and what rests on whom, counted anew each time.

use dfs_common::{
    ErrorCode,
    node::{Health, NodeState},
};

use super::{
    super::super::{Action, Admin},
    Answer, Model,
};

/// Copies wanted of each chunk in these tests.
const WANTED: usize = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) struct Node {
    pub(in super::super) health: Health,
    pub(in super::super) admin: Admin,
}

impl Node {
    pub(super) const NEW: Self = Self { health: Health::Alive, admin: Admin::InService };

    fn is_gone(self) -> bool {
        self.admin == Admin::Decommissioned
    }

    pub(in super::super) fn is_live(self) -> bool {
        !self.is_gone() && self.health != Health::Dead
    }

    pub(in super::super) fn is_leaving(self) -> bool {
        matches!(self.admin, Admin::Draining | Admin::Drained)
    }

    fn shown(self) -> NodeState {
        match self.health {
            _ if self.is_gone() => NodeState::Decommissioned,
            Health::Alive if self.is_leaving() => NodeState::Draining,
            Health::Alive if self.admin != Admin::InService => NodeState::Maintenance,
            health => health.into(),
        }
    }
}

impl Model {
    pub(super) fn set_health(&mut self, id: u32, health: Health) -> Answer {
        let node = self.nodes.get_mut(&id).expect("one of ours");
        if node.is_gone() {
            return Err(ErrorCode::NotPermitted);
        }
        let from = node.shown();
        node.health = health;
        let to = node.shown();
        if from != to {
            self.transitions.push((id, from, to));
        }
        if health == Health::Dead && matches!(node.admin, Admin::Maintenance { .. }) {
            node.admin = Admin::InService;
        }
        Ok((None, false))
    }

    pub(super) fn administer(&mut self, now_ns: i64, id: u32, action: Action) -> Answer {
        let node = self.nodes[&id];
        let (rests, may_go) = (self.rests(id), self.may_go(id));
        let next = match (action, node.admin) {
            (_, Admin::Decommissioned) => return Err(ErrorCode::NotPermitted),
            (Action::Drain, Admin::Draining | Admin::Drained) => node.admin,
            (Action::Drain, _) if node.health == Health::Dead => return Err(ErrorCode::NotPermitted),
            (Action::Drain, _) => Admin::Draining,
            (Action::Undrain, Admin::Draining | Admin::Drained) => Admin::InService,
            (Action::Undrain, admin) => admin,
            (Action::FinishDrain, Admin::Drained) => Admin::Drained,
            (Action::FinishDrain, Admin::Draining) if node.is_live() && rests == 0 => Admin::Drained,
            (Action::FinishDrain, _) => return Err(ErrorCode::Stale),
            (Action::StartMaintenance { .. }, _) if node.is_leaving() || !node.is_live() => {
                return Err(ErrorCode::NotPermitted);
            }
            (Action::StartMaintenance { until_ns }, _) if until_ns <= now_ns => {
                return Err(ErrorCode::InvalidArgument);
            }
            (Action::StartMaintenance { until_ns }, _) => Admin::Maintenance { until_ns },
            (Action::EndMaintenance { expired: true }, Admin::Maintenance { until_ns }) if now_ns < until_ns => {
                return Err(ErrorCode::Stale);
            }
            (Action::EndMaintenance { .. }, Admin::Maintenance { .. }) => Admin::InService,
            (Action::EndMaintenance { .. }, admin) => admin,
            (Action::Remove { lose }, _) if lose || may_go => Admin::Decommissioned,
            (Action::Remove { .. }, _) => return Err(ErrorCode::NotPermitted),
        };
        self.nodes.get_mut(&id).expect("one of ours").admin = next;
        if next == Admin::Decommissioned {
            self.chunks.values_mut().for_each(|holders| holders.retain(|node| *node != id));
            self.doomed.retain(|(node, _)| *node != id);
        }
        Ok((None, false))
    }

    /// Whether a version that is no garbage lists a chunk, or may at any moment.
    fn is_needed(&self, chunk: u8) -> bool {
        let garbage = self.garbage.values().flatten().filter(|slot| **slot == chunk).count();
        self.refs(chunk) > garbage
    }

    /// Copies of a chunk on nodes of which `of` holds, one node left out.
    fn copies(&self, chunk: u8, without: Option<u32>, of: impl Fn(Node) -> bool) -> usize {
        self.chunks[&chunk].iter().filter(|node| Some(**node) != without && of(self.nodes[*node])).count()
    }

    /// Needed chunks on a leaving node that have too few copies that count.
    pub(in super::super) fn rests(&self, id: u32) -> u64 {
        let node = self.nodes[&id];
        if !node.is_live() || !node.is_leaving() {
            return 0;
        }
        let counts = |node: Node| node.is_live() && !node.is_leaving();
        let rests = |(chunk, holders): (&u8, &std::collections::BTreeSet<u32>)| {
            holders.contains(&id) && self.is_needed(*chunk) && self.copies(*chunk, None, counts) < WANTED
        };
        self.chunks.iter().filter(|entry| rests(*entry)).count() as u64
    }

    /// Whether a node may be removed without accepting losses.
    fn may_go(&self, id: u32) -> bool {
        let node = self.nodes[&id];
        let counts = |node: Node| node.is_live() && !node.is_leaving();
        let held = self.chunks.iter().filter(|(chunk, holders)| holders.contains(&id) && self.is_needed(**chunk));
        let is_safe = |chunk: u8| {
            let live = self.copies(chunk, Some(id), Node::is_live);
            let was_live = live + usize::from(node.is_live());
            let counted = self.copies(chunk, Some(id), counts);
            live > 1 || (live == 1 && (was_live == 1 || counted >= WANTED))
        };
        let is_ready = !node.is_live() || (node.is_leaving() && self.rests(id) == 0);
        is_ready && held.into_iter().all(|(chunk, _)| is_safe(*chunk))
    }
}
