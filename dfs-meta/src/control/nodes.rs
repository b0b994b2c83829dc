//! What an administrator decides about storage nodes, and what the leader tells before: drain, maintenance, removal.

use std::{collections::BTreeSet, time::Duration};

use dfs_common::{ChunkId, ErrorCode, FileId, NodeId, node::NodeState};
use dfs_proto::status::RpcError;

use super::{Handle, placement::Candidate, unix_now_ns};
use crate::fsm::{Action, Admin, Command, Figure, Impact, Node, State};

/// Paths named of what would be lost or endangered.
const PATHS_MAX: usize = 20;
/// Chunks whose files are looked for.
const CHUNKS_MAX: usize = 4096;

/// What an administrator wants of a storage node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Empty it.
    Drain,
    /// Keep it after all.
    Undrain,
    /// Let it be silent for a time.
    Maintenance(Duration),
    /// Its silence counts again.
    EndMaintenance,
    /// Let it go for good; `lose` even if something is lost.
    Remove {
        /// Accepts losses.
        lose: bool,
    },
}

/// What a verb would do, or has done.
#[derive(Clone, Debug)]
pub struct Outlook {
    /// The node as it was before.
    pub node: Node,
    /// What its absence would mean.
    pub impact: Impact,
    /// Some paths of what would be lost.
    pub lost_paths: Vec<String>,
    /// Some paths of what would be endangered.
    pub endangered_paths: Vec<String>,
    /// Room for copies on the nodes that could take them, bytes.
    pub room_bytes: u64,
    /// Nodes that could take copies.
    pub targets: usize,
    /// Why the verb cannot be carried out, or will not come to its end; empty if it can and will.
    pub obstacles: Vec<String>,
    /// How writes fare without the node, if not as before.
    pub warnings: Vec<String>,
    /// Whether it was carried out.
    pub done: bool,
}

impl Handle {
    /// Says what `verb` would do to a node, and does it unless `dry_run` or something speaks against it: then `done` is false.
    ///
    /// # Errors
    /// No node, or several, go by that name; the state machine's refusals; what [`crate::raft::Handle::read`] and
    /// [`crate::raft::Handle::propose`] say.
    pub async fn change_node(&self, name: &str, verb: Verb, dry_run: bool) -> Result<Outlook, RpcError> {
        let state = self.inner.raft.read(State::clone).await?;
        let node = find(&state, name)?.clone();
        let candidates = self.lead(|soft, now| {
            let nodes: Vec<Node> = state.nodes().cloned().collect();
            soft.candidates(&nodes, self.settings().placement_valid, now)
        })?;
        let reserve = self.settings().reserve_bytes;
        // Visits every chunk of the node, and perhaps every file.
        let looked = tokio::task::spawn_blocking(move || outlook(&state, node, verb, &candidates, reserve)).await;
        let mut outlook =
            looked.map_err(|error| RpcError::new(ErrorCode::Internal, format!("cannot look: {error}")))?;
        let is_refused = matches!(verb, Verb::Remove { lose: false }) && !outlook.obstacles.is_empty();
        if dry_run || is_refused {
            return Ok(outlook);
        }
        let id = outlook.node.id;
        self.apply(Command::Administer { node: id, action: action(verb) }).await?;
        tracing::info!(node = %id, name = outlook.node.name, ?verb, "an administrator decided about a storage node");
        outlook.done = true;
        // What is to be copied is planned now, not in the next round.
        self.inner.finished.notify_one();
        Ok(outlook)
    }

    /// Ends the drains that are done and the maintenance whose time is over.
    pub(super) async fn end_decisions(&self) -> Result<(), RpcError> {
        let now_ns = unix_now_ns();
        // Uploads to places that were given out before may still be under way.
        let valid_ns = i64::try_from(self.settings().placement_valid.as_nanos()).unwrap_or(i64::MAX);
        let due: Vec<(NodeId, Action)> = self.inner.raft.peek(|state| {
            let due = |node: &Node| match node.admin {
                Admin::Draining => {
                    let is_done = state.rests(node.id) == Figure::default() && node.state() == NodeState::Draining;
                    (is_done && node.since_ns.saturating_add(valid_ns) <= now_ns).then_some(Action::FinishDrain)
                }
                Admin::Maintenance { until_ns } if until_ns <= now_ns => Some(Action::EndMaintenance { expired: true }),
                Admin::Maintenance { .. } | Admin::InService | Admin::Drained | Admin::Decommissioned => None,
            };
            state.nodes().filter_map(|node| Some((node.id, due(node)?))).collect()
        });
        for (node, action) in due {
            match self.apply(Command::Administer { node, action }).await {
                Ok(_) => tracing::info!(%node, ?action, "a decision about a storage node has come to its end"),
                // A copy came to it, or an administrator was faster: the next round looks again.
                Err(error) if error.code == ErrorCode::Stale => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn action(verb: Verb) -> Action {
    match verb {
        Verb::Drain => Action::Drain,
        Verb::Undrain => Action::Undrain,
        Verb::Maintenance(time) => {
            let span_ns = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
            Action::StartMaintenance { until_ns: unix_now_ns().saturating_add(span_ns) }
        }
        Verb::EndMaintenance => Action::EndMaintenance { expired: false },
        Verb::Remove { lose } => Action::Remove { lose },
    }
}

/// The member that goes by a name, or else by a number.
fn find<'a>(state: &'a State, name: &str) -> Result<&'a Node, RpcError> {
    let named: Vec<&Node> = state.nodes().filter(|node| node.is_member() && node.name == name).collect();
    match named[..] {
        [node] => return Ok(node),
        [] => {}
        _ => {
            let which: Vec<_> = named.iter().map(|node| format!("{} ({})", node.id, node.state())).collect();
            let message = format!(
                "{} storage nodes are named {name}: numbers {}; name one by its number",
                named.len(),
                which.join(", ")
            );
            return Err(RpcError::new(ErrorCode::InvalidArgument, message));
        }
    }
    let numbered = name.parse().ok().and_then(|number| state.node(NodeId(number)));
    if let Some(node) = numbered.filter(|node| node.is_member()) {
        return Ok(node);
    }
    if numbered.is_some() || state.nodes().any(|node| node.name == name) {
        let message = format!("storage node {name} was removed from the cluster already");
        return Err(RpcError::new(ErrorCode::NotPermitted, message));
    }
    let mut known: Vec<&str> = state.nodes().filter(|node| node.is_member()).map(|node| node.name.as_str()).collect();
    known.sort_unstable();
    let message = format!("no storage node is named {name}; there are {}", known.join(", "));
    Err(RpcError::new(ErrorCode::NotFound, message))
}

fn outlook(state: &State, node: Node, verb: Verb, candidates: &[Candidate], reserve: u64) -> Outlook {
    let (mut lost, mut endangered) = (BTreeSet::new(), BTreeSet::new());
    let impact = state.impact(node.id, &mut |chunk, is_lost| {
        let chunks = if is_lost { &mut lost } else { &mut endangered };
        if chunks.len() < CHUNKS_MAX {
            chunks.insert(chunk);
        }
    });
    let targets = || candidates.iter().filter(|c| c.state == NodeState::Alive && c.id != node.id);
    let room = |c: &Candidate| c.capacity_bytes.saturating_sub(c.used_bytes).saturating_sub(reserve);
    let (room_bytes, targets) = (targets().map(room).fold(0, u64::saturating_add), targets().count());
    let obstacles = match verb {
        Verb::Drain => drain_obstacles(state, &impact, room_bytes, targets),
        Verb::Remove { .. } => state.removal_obstacle(&node, &impact).into_iter().collect(),
        Verb::Undrain | Verb::Maintenance(_) | Verb::EndMaintenance => Vec::new(),
    };
    let warnings = match verb {
        Verb::Undrain | Verb::EndMaintenance => Vec::new(),
        Verb::Drain | Verb::Maintenance(_) | Verb::Remove { .. } => {
            let settings = state.settings();
            write_warning(settings.replication as usize, settings.write_quorum as usize, targets).into_iter().collect()
        }
    };
    let (lost_paths, endangered_paths) = (paths_of(state, &lost), paths_of(state, &endangered));
    Outlook { node, impact, lost_paths, endangered_paths, room_bytes, targets, obstacles, warnings, done: false }
}

/// What becomes of writes when so many nodes are left.
fn write_warning(replication: usize, write_quorum: usize, left: usize) -> Option<String> {
    let nodes = if left == 1 { "1 other node is".to_owned() } else { format!("{left} other nodes are") };
    if left < write_quorum {
        return Some(format!(
            "{nodes} alive and in service: writes are refused without it, since {write_quorum} copies must be durable"
        ));
    }
    let is_short = left < replication;
    is_short
        .then(|| format!("{nodes} alive and in service: what is written without it has {left} copies of {replication}"))
}

/// Why a drain would not come to its end.
fn drain_obstacles(state: &State, impact: &Impact, room_bytes: u64, targets: usize) -> Vec<String> {
    let mut obstacles = Vec::new();
    let wanted = state.settings().replication as usize;
    if impact.to_copy.chunks > 0 && targets < wanted {
        obstacles.push(format!(
            "{wanted} copies are wanted of every chunk, and {targets} other nodes are alive and in service"
        ));
    }
    if impact.to_copy.bytes > room_bytes {
        let lacks = impact.to_copy.bytes - room_bytes;
        obstacles.push(format!("the other nodes have {room_bytes} bytes of room, {lacks} fewer than its copies need"));
    }
    obstacles
}

/// Paths of some files that list one of `chunks`, in order. Visits every version until it has enough.
fn paths_of(state: &State, chunks: &BTreeSet<ChunkId>) -> Vec<String> {
    if chunks.is_empty() {
        return Vec::new();
    }
    let of_file = |id: FileId| {
        let path = state.path_of_version(id)?;
        Some(path.escape_ascii().to_string())
    };
    let mut paths: Vec<String> = state.versions_with(chunks).filter_map(of_file).take(PATHS_MAX).collect();
    paths.sort();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_warned_of_where_nodes_are_few() {
        assert_eq!(write_warning(3, 2, 3), None);
        assert!(write_warning(3, 2, 2).is_some_and(|text| text.contains("2 copies of 3")));
        assert!(
            write_warning(3, 2, 1).is_some_and(|text| text.starts_with("1 other node is") && text.contains("refused"))
        );
        assert_eq!(write_warning(1, 1, 1), None);
        assert!(write_warning(1, 1, 0).is_some_and(|text| text.starts_with("0 other nodes are")));
    }
}
