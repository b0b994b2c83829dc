//! What the administrator asks. All figures are kept, none is counted here.

use dfs_common::{ErrorCode, FileId, InodeId, NodeId, SessionId, disk::DiskReport};
use dfs_proto::{
    convert::{self, id_bytes, state_to_wire},
    status::RpcError,
    v1,
};

use super::{Service, invalid, repair::figures_to_wire, session::millis, trash::retention_ms};
use crate::{
    control::{Held, NodeFigures, unix_now_ns},
    fsm::{Admin, Command, Counters, DoomedOn, Figure, Node, Pending, Risk},
    raft::MemberStatus,
};

/// Writers, and readers, of one file that are named.
const USERS_MAX: usize = 1000;
/// Versions whose readers can be asked for at once.
const VERSIONS_MAX: usize = 1024;

impl Service {
    pub(super) async fn handle_cluster_status(
        &self,
        _: v1::ClusterStatusRequest,
    ) -> Result<v1::ClusterStatusResponse, RpcError> {
        let (cluster_id, settings, counters, nodes, risks, doomed, retention_ms) = self
            .raft
            .read(|state| {
                // Who was removed for good is of no interest any more.
                let nodes: Vec<Node> = state.nodes().filter(|node| node.is_member()).cloned().collect();
                let risks: Vec<_> = nodes.iter().map(|node| (state.risk(node.id), state.rests(node.id))).collect();
                let doomed: Vec<_> = state.doomed_on().collect();
                (state.cluster_id(), state.settings(), state.counters(), nodes, risks, doomed, retention_ms(state))
            })
            .await?;
        let figures = self.control.figures(&nodes)?;
        let disks = self.control.disks(&nodes)?;
        let members = self.raft.members();
        let leader = members.iter().find(|m| m.leader).map(|m| m.member.name.clone()).unwrap_or_default();
        let tunables = self.control.settings();
        let held = self.control.held()?;
        let client = held.holder.and_then(|id| self.raft.peek(|s| s.session(id).map(|s| s.description.clone())));
        let space_held = space_to_wire(counters, retention_ms, &held, client, doomed_to_wire(&doomed, &nodes));
        let repair = self.control.repair_figures(&counters)?;
        let repair_active = repair.active;
        Ok(v1::ClusterStatusResponse {
            space_held: Some(space_held),
            cluster_id: cluster_id.map(|id| id_bytes(id.as_bytes())).unwrap_or_default(),
            leader,
            members: members.into_iter().map(member_to_wire).collect(),
            nodes: nodes
                .iter()
                .zip(figures)
                .zip(risks.into_iter().zip(disks))
                .map(|((node, figures), ((risk, rests), disks))| node_to_wire(node, figures, (risk, rests), &disks))
                .collect(),
            chunks: Some(chunks_to_wire(counters)),
            inodes: counters.inodes,
            sessions: counters.sessions,
            pending_files: counters.pending,
            garbage_bytes: counters.garbage_bytes,
            garbage_chunks: counters.garbage_chunks,
            repair_queue: counters.under_replicated.saturating_sub(repair_active),
            repair_active,
            repair: Some(figures_to_wire(repair)),
            detector: Some(v1::DetectorSettings {
                suspect_ms: millis(tunables.suspect),
                dead_ms: millis(tunables.dead),
                heartbeat_ms: millis(tunables.heartbeat),
                replication: settings.replication,
                write_quorum: settings.write_quorum,
                chunk_size: settings.chunk_size,
            }),
            copies: copies_to_wire(&counters),
            now_ns: unix_now_ns(),
        })
    }

    pub(super) async fn handle_meta_status(
        &self,
        _: v1::MetaStatusRequest,
    ) -> Result<v1::MetaStatusResponse, RpcError> {
        let status = self.raft.status();
        Ok(v1::MetaStatusResponse {
            raft_id: status.me.raft_id,
            name: status.me.name,
            role: status.role.to_owned(),
            term: status.term,
            last_log_index: status.last_log_index,
            applied_index: status.applied_index,
            snapshot_index: status.snapshot_index,
            purged_index: status.purged_index,
            log_disk_bytes: status.log_disk_bytes,
            leader: status.leader.map(|leader| leader.name).unwrap_or_default(),
            cluster_id: self.raft.cluster_id().map(|id| id_bytes(id.as_bytes())).unwrap_or_default(),
            members: self.raft.members().into_iter().map(member_to_wire).collect(),
            epoch: self.raft.epoch(),
            restored: self.restored(),
            address: status.me.address,
        })
    }

    pub(super) async fn handle_file_users(
        &self,
        request: v1::FileUsersRequest,
    ) -> Result<v1::FileUsersResponse, RpcError> {
        if request.versions.len() > VERSIONS_MAX {
            return Err(invalid(format!("readers are told of {VERSIONS_MAX} versions at a time, at most")));
        }
        let versions: Vec<FileId> = request.versions.iter().map(|id| convert::file_id(id)).collect::<Result<_, _>>()?;
        let readers = self.control.readers(&versions)?;
        let users = self.raft.read(|state| {
            let client = |session| state.session(session).map(|s| s.description.clone()).unwrap_or_default();
            let writer = |(file_id, pending): (FileId, &Pending)| v1::FileWriter {
                file_id: id_bytes(file_id.as_bytes()),
                session_id: pending.session.0,
                client: client(pending.session),
                opened_ns: pending.opened_ns,
                publications: pending.publications,
                chunks: pending.held_count(),
            };
            let reader = |(file_id, session): (FileId, SessionId)| v1::FileReader {
                file_id: id_bytes(file_id.as_bytes()),
                session_id: session.0,
                client: client(session),
            };
            v1::FileUsersResponse {
                writers: state.writers_of(InodeId(request.ino)).take(USERS_MAX).map(writer).collect(),
                readers: readers.into_iter().take(USERS_MAX).map(reader).collect(),
            }
        });
        users.await
    }

    fn restored(&self) -> Option<v1::Restored> {
        let restored = self.raft.peek(|state| state.restored())?;
        Some(v1::Restored {
            as_of_ns: restored.as_of_ns,
            done_ns: restored.done_ns,
            rescued: restored.rescued,
            // Only the leader knows.
            unknown_chunks: self.control.unknown_chunks().unwrap_or(0),
        })
    }

    pub(super) async fn handle_finish_restore(
        &self,
        _: v1::FinishRestoreRequest,
    ) -> Result<v1::FinishRestoreResponse, RpcError> {
        match self.control.apply(Command::FinishRestore).await {
            Ok(_) => {
                tracing::info!("the time after the restore was ended: chunks that no version lists may be deleted");
                Ok(v1::FinishRestoreResponse { was_restored: true })
            }
            Err(error) if error.code == ErrorCode::NotFound => Ok(v1::FinishRestoreResponse { was_restored: false }),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn handle_trigger_snapshot(
        &self,
        _: v1::TriggerSnapshotRequest,
    ) -> Result<v1::TriggerSnapshotResponse, RpcError> {
        self.raft.read(|_| ()).await?;
        Ok(v1::TriggerSnapshotResponse { applied_index: self.raft.trigger_snapshot().await? })
    }
}

fn member_to_wire(status: MemberStatus) -> v1::MetaMember {
    let MemberStatus { member, leader, voter, matched_index, lag, reachable } = status;
    v1::MetaMember {
        raft_id: member.raft_id,
        name: member.name,
        address: member.address,
        leader,
        voter,
        matched_index,
        lag,
        reachable,
    }
}

pub(super) fn node_to_wire(
    node: &Node,
    figures: NodeFigures,
    (risk, rests): (Risk, Figure),
    disks: &[DiskReport],
) -> v1::NodeStatus {
    let (admin, until_ns) = match node.admin {
        Admin::InService => (v1::AdminState::InService, 0),
        Admin::Draining => (v1::AdminState::Draining, 0),
        Admin::Drained => (v1::AdminState::Drained, 0),
        Admin::Maintenance { until_ns } => (v1::AdminState::Maintenance, until_ns),
        Admin::Decommissioned => (v1::AdminState::Decommissioned, 0),
    };
    v1::NodeStatus {
        node_id: node.id.0,
        name: node.name.clone(),
        address: node.address.clone(),
        rack: node.rack.clone(),
        state: state_to_wire(node.state()).into(),
        capacity_bytes: figures.capacity_bytes,
        used_bytes: figures.used_bytes,
        chunk_count: figures.chunk_count,
        silent_ms: millis(figures.silent),
        node_uuid: id_bytes(node.uuid.as_bytes()),
        since_ns: node.since_ns,
        if_lost: Some(figure_to_wire(risk.lost)),
        if_endangered: Some(figure_to_wire(risk.endangered)),
        disks: disks.iter().map(Into::into).collect(),
        admin: admin.into(),
        maintenance_until_ns: until_ns,
        rests: Some(figure_to_wire(rests)),
    }
}

pub(super) fn figure_to_wire(figure: Figure) -> v1::ChunkClass {
    v1::ChunkClass { chunks: figure.chunks, bytes: figure.bytes }
}

fn copies_to_wire(counters: &Counters) -> Vec<v1::CopyClass> {
    let class = |(live, figure): (u32, &Figure)| v1::CopyClass { live, chunks: figure.chunks, bytes: figure.bytes };
    (0..).zip(&counters.by_live).map(class).collect()
}

pub(super) fn chunks_to_wire(counters: Counters) -> v1::ChunkCounts {
    v1::ChunkCounts {
        total: counters.chunks,
        full: counters.full,
        under_replicated: counters.under_replicated,
        endangered: counters.endangered,
        missing: counters.missing,
        moving: counters.moving,
    }
}

fn space_to_wire(
    counters: Counters,
    trash_retention_ms: u64,
    held: &Held,
    client: Option<String>,
    doomed: Vec<v1::DoomedSpace>,
) -> v1::SpaceHeld {
    let short = counters.trash_under_replicated + counters.trash_missing;
    v1::SpaceHeld {
        trash: Some(v1::HeldFigure {
            versions: counters.trash_versions,
            chunks: counters.trash_chunks,
            bytes: counters.trash_bytes,
            copies: counters.trash_copies,
            copy_bytes: counters.trash_copy_bytes,
        }),
        garbage: Some(v1::HeldFigure {
            versions: counters.garbage_versions,
            chunks: counters.garbage_chunks,
            bytes: counters.garbage_bytes,
            copies: counters.garbage_copies,
            copy_bytes: counters.garbage_copy_bytes,
        }),
        pinned: Some(v1::PinnedSpace {
            versions: held.pinned.versions,
            bytes: held.pinned.bytes,
            oldest_ns: held.pinned.oldest.map_or(0, |(since_ns, _)| since_ns),
            session_id: held.holder.map_or(0, |session| session.0),
            client: client.unwrap_or_default(),
        }),
        doomed,
        unknown_copies: held.unknown,
        trash_retention_ms,
        trash_chunks: Some(v1::ChunkCounts {
            total: counters.trash_chunks,
            full: counters.trash_chunks.saturating_sub(short),
            under_replicated: counters.trash_under_replicated,
            endangered: counters.trash_endangered,
            missing: counters.trash_missing,
            moving: 0,
        }),
        trash_given_up: held.given_up,
    }
}

fn doomed_to_wire(doomed: &[(NodeId, DoomedOn)], nodes: &[Node]) -> Vec<v1::DoomedSpace> {
    let space = |(id, on): &(NodeId, DoomedOn)| {
        let node = nodes.iter().find(|node| node.id == *id)?;
        Some(v1::DoomedSpace {
            node_id: id.0,
            node: node.name.clone(),
            state: state_to_wire(node.state()).into(),
            copies: on.copies,
            bytes: on.bytes,
        })
    };
    doomed.iter().filter_map(space).collect()
}
