//! Storage nodes: numbers, names, states.

use std::sync::Arc;

use dfs_common::{ErrorCode, NodeId, Uuid, node::NodeState};

use super::{
    command::{Outcome, Refusal, Reply},
    event::Fact,
    record::{Counters, Node, counts_as_live},
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
            self.change_state(now_ns, rival, NodeState::Dead);
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
        // A node that is drained is still to be drained after a restart.
        if self.nodes.get(&id).is_some_and(|node| node.state != NodeState::Draining) {
            self.change_state(now_ns, id, NodeState::Alive);
        }
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
            && node.state == NodeState::Decommissioned
        {
            let message =
                format!("node {} ({}) was decommissioned; empty its data directory first", node.id, node.name);
            return Err(Refusal::new(ErrorCode::NotPermitted, message));
        }
        if let Some(rival) =
            self.rivals(known, asked).find(|node| matches!(node.state, NodeState::Alive | NodeState::Draining))
        {
            let message = format!(
                "node {} ({} at {}) is {} and has this name or address",
                rival.id, rival.name, rival.address, rival.state
            );
            return Err(Refusal::new(ErrorCode::AlreadyExists, message));
        }
        Ok(())
    }

    /// Other nodes of the same name or address that could still come back.
    fn rivals(&self, known: Option<NodeId>, asked: &Registration<'_>) -> impl Iterator<Item = &Node> {
        self.nodes().filter(move |node| {
            Some(node.id) != known
                && node.state != NodeState::Decommissioned
                && (node.name == asked.name || node.address == asked.address)
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
            state: NodeState::Dead,
            since_ns: now_ns,
            chunk_count: 0,
            chunk_bytes: 0,
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
        if node.state == NodeState::Alive {
            self.change_state(now_ns, id, NodeState::Suspect);
        }
        Ok(Reply::Done)
    }

    pub(super) fn set_node_state(&mut self, now_ns: i64, id: NodeId, state: NodeState, from: NodeState) -> Outcome {
        let now = self.existing_node(id)?.state;
        if now != from {
            return Err(Refusal::new(ErrorCode::Stale, format!("node {id} is {now}, not {from}")));
        }
        if now == NodeState::Decommissioned && state != now {
            return Err(Refusal::new(ErrorCode::NotPermitted, format!("node {id} left for good")));
        }
        self.change_state(now_ns, id, state);
        Ok(Reply::Done)
    }

    fn existing_node(&self, id: NodeId) -> Result<&Node, Refusal> {
        self.node(id).ok_or_else(|| Refusal::new(ErrorCode::NotFound, format!("node {id} is not registered")))
    }

    fn change_state(&mut self, now_ns: i64, id: NodeId, state: NodeState) {
        let Some(node) = self.nodes.get_mut(&id).map(Arc::make_mut) else { return };
        if node.state == state {
            return;
        }
        let (from, copies) = (node.state, node.chunk_count);
        let (was_live, is_live) = (counts_as_live(from), counts_as_live(state));
        (node.state, node.since_ns) = (state, now_ns);
        if was_live != is_live {
            self.change_live_on(id, is_live);
        }
        if state == NodeState::Decommissioned {
            self.forget_copies_on(id);
        }
        let Counters { endangered, missing, .. } = self.counters;
        self.event(now_ns, Fact::NodeState { node: id, from, to: state, copies, endangered, missing });
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
