//! Storage nodes: numbers, names, states.

use std::sync::Arc;

use dfs_common::{
    ErrorCode, NodeId, Uuid,
    node::{Health, NodeState},
};

use super::{
    command::{Outcome, Refusal, Reply},
    event::Fact,
    record::{Admin, Counters, Node},
    state::State,
};

/// Longest name, address or rack in bytes: a host name has at most 253, and room for a port.
const TEXT_MAX: usize = 260;

/// A node that starts.
pub(super) struct Registration<'a> {
    pub(super) uuid: Uuid,
    pub(super) name: &'a str,
    pub(super) address: &'a str,
    pub(super) rack: &'a str,
    pub(super) capacity_bytes: u64,
    pub(super) incarnation: u64,
}

impl State {
    pub(super) fn register_node(&mut self, now_ns: i64, asked: &Registration<'_>) -> Outcome {
        let known = self.nodes_by_uuid.get(&asked.uuid).copied();
        self.check_registration(known, asked)?;
        let rivals: Vec<(NodeId, u64)> = self.rivals(known, asked).map(|node| (node.id, node.chunk_count)).collect();
        for (rival, copies) in rivals {
            self.change_health(now_ns, rival, Health::Dead);
            if known.is_none() {
                self.event(now_ns, Fact::NodeWiped { node: rival, copies });
            }
        }
        let id = known.unwrap_or_else(|| self.add_node(now_ns, asked));
        let is_new_process = self.node(id).is_some_and(|node| node.incarnation != asked.incarnation);
        if let Some(node) = self.nodes.get_mut(&id).map(Arc::make_mut) {
            asked.name.clone_into(&mut node.name);
            asked.address.clone_into(&mut node.address);
            asked.rack.clone_into(&mut node.rack);
            node.capacity_bytes = asked.capacity_bytes;
            node.incarnation = asked.incarnation;
        }
        if is_new_process || known.is_none() {
            let address = asked.address.to_owned();
            self.event(now_ns, Fact::NodeRegistered { node: id, address, created: known.is_none() });
        }
        // What an administrator has decided about it holds after a restart.
        self.change_health(now_ns, id, Health::Alive);
        Ok(Reply::Node { node: id, created: known.is_none() })
    }

    fn check_registration(&self, known: Option<NodeId>, asked: &Registration<'_>) -> Result<(), Refusal> {
        let texts = [asked.name, asked.address, asked.rack];
        if asked.uuid.is_zero()
            || asked.name.is_empty()
            || asked.address.is_empty()
            || texts.iter().any(|text| text.len() > TEXT_MAX)
        {
            let message = format!("a node needs a uuid, a name and an address, each text at most {TEXT_MAX} bytes");
            return Err(Refusal::new(ErrorCode::InvalidArgument, message));
        }
        if let Some(node) = known.and_then(|id| self.nodes.get(&id))
            && !node.is_member()
        {
            let message = format!(
                "storage node {} (number {}) was removed from the cluster for good and cannot come back with this data directory; \
                 to use the machine again, start it with an empty data directory",
                node.name, node.id
            );
            return Err(Refusal::new(ErrorCode::NotPermitted, message));
        }
        if let Some(rival) = self.rivals(known, asked).find(|node| node.health == Health::Alive) {
            let message = format!(
                "node {} ({} at {}) is {} and has this name or address",
                rival.id,
                rival.name,
                rival.address,
                rival.state()
            );
            return Err(Refusal::new(ErrorCode::AlreadyExists, message));
        }
        Ok(())
    }

    /// Other nodes of the same name or address that could still come back.
    fn rivals(&self, known: Option<NodeId>, asked: &Registration<'_>) -> impl Iterator<Item = &Node> {
        self.nodes().filter(move |node| {
            Some(node.id) != known && node.is_member() && (node.name == asked.name || node.address == asked.address)
        })
    }

    fn add_node(&mut self, now_ns: i64, asked: &Registration<'_>) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        let node = Node {
            id,
            uuid: asked.uuid,
            name: String::new(),
            address: String::new(),
            rack: String::new(),
            capacity_bytes: 0,
            incarnation: 0,
            health: Health::Dead,
            since_ns: now_ns,
            chunk_count: 0,
            chunk_bytes: 0,
            admin: Admin::InService,
        };
        self.nodes.insert(id, Arc::new(node));
        self.nodes_by_uuid.insert(asked.uuid, id);
        id
    }

    pub(super) fn deregister_node(&mut self, now_ns: i64, id: NodeId, incarnation: u64) -> Outcome {
        let node = self.existing_node(id)?;
        if node.incarnation != incarnation {
            return Err(Refusal::new(ErrorCode::Stale, format!("node {id} was started again meanwhile")));
        }
        if node.health == Health::Alive {
            self.change_health(now_ns, id, Health::Suspect);
        }
        Ok(Reply::Done)
    }

    pub(super) fn set_node_health(&mut self, now_ns: i64, id: NodeId, health: Health, from: Health) -> Outcome {
        let node = self.existing_node(id)?;
        if !node.is_member() {
            return Err(Refusal::new(ErrorCode::NotPermitted, format!("node {id} left for good")));
        }
        if node.health != from {
            return Err(Refusal::new(ErrorCode::Stale, format!("node {id} is {}, not {from}", node.health)));
        }
        self.change_health(now_ns, id, health);
        Ok(Reply::Done)
    }

    pub(super) fn existing_node(&self, id: NodeId) -> Result<&Node, Refusal> {
        self.node(id).ok_or_else(|| Refusal::new(ErrorCode::NotFound, format!("node {id} is not registered")))
    }

    fn change_health(&mut self, now_ns: i64, id: NodeId, health: Health) {
        let Some(from) = self.change_node(now_ns, id, |node| node.health = health) else { return };
        let Some(node) = self.node(id) else { return };
        let (to, copies) = (node.state(), node.chunk_count);
        if from != to {
            let Counters { endangered, missing, .. } = self.counters;
            self.event(now_ns, Fact::NodeState { node: id, from, to, copies, endangered, missing });
        }
        // What was expected to be silent for a while is replaced now.
        if health == Health::Dead && matches!(self.node(id).map(|node| node.admin), Some(Admin::Maintenance { .. })) {
            self.end_maintenance(now_ns, id, "the node is dead");
        }
    }

    /// Changes health or admin state, and how the node's copies count. Returns the state before.
    pub(super) fn change_node(&mut self, now_ns: i64, id: NodeId, change: impl FnOnce(&mut Node)) -> Option<NodeState> {
        let node = self.nodes.get_mut(&id).map(Arc::make_mut)?;
        let (from, before) = (node.state(), node.share());
        change(node);
        let (to, after) = (node.state(), node.share());
        if from != to {
            node.since_ns = now_ns;
        }
        if before != after {
            self.change_share_on(id, before);
        }
        Some(from)
    }

    /// A copy on a node came into or left the records.
    pub(super) fn count_on_node(&mut self, id: NodeId, length: u32, more: bool) {
        let Some(node) = self.nodes.get_mut(&id).map(Arc::make_mut) else { return };
        if more {
            node.chunk_count += 1;
            node.chunk_bytes += u64::from(length);
        } else {
            node.chunk_count = node.chunk_count.saturating_sub(1);
            node.chunk_bytes = node.chunk_bytes.saturating_sub(u64::from(length));
        }
    }
}
