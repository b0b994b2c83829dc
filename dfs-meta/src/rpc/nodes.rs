//! Storage nodes: registration, heartbeats, receipts, results of repairs.

use bytes::Bytes;
use dfs_common::{ChunkId, ErrorCode, NodeId, Uuid, disk::DiskReport, layout::CHUNK_SIZE_MAX};
use dfs_proto::{
    WIRE_VERSION,
    convert::{self, disk::clean, id_bytes},
    status::RpcError,
    transport::check_address,
    v1,
};

use super::{
    Service, invalid,
    session::{millis, settings_to_wire},
};
use crate::{
    control::{
        disks::Quarantined,
        heartbeat::{Heartbeat, Orders, Registration},
        inventory::{Held, Page},
        repair::Cause,
        reports::RepairResult,
    },
    fsm::Receipt,
};

/// Longest name or rack, bytes.
const TEXT_MAX: usize = 255;
/// Copies that one receipt may name.
const REPLICAS_MAX: usize = 16;
/// Longest message of a failed repair that is kept, characters.
const MESSAGE_MAX: usize = 512;
/// Disks of one node.
const DISKS_MAX: usize = 256;
/// Outcomes in one report of a source.
const OUTCOMES_MAX: usize = 4096;

impl Service {
    pub(super) async fn handle_register_node(
        &self,
        request: v1::RegisterNodeRequest,
    ) -> Result<v1::RegisterNodeResponse, RpcError> {
        let cluster_id = self.cluster_id().await?;
        if !request.cluster_id.is_empty() && convert::cluster_id(&request.cluster_id)? != cluster_id {
            return Err(RpcError::new(
                ErrorCode::WrongCluster,
                format!("the data directory of {} belongs to another cluster than {cluster_id}", request.name),
            ));
        }
        if request.wire_version.abs_diff(WIRE_VERSION) > 1 {
            return Err(RpcError::new(
                ErrorCode::Incompatible,
                format!("wire version {} of the node, {WIRE_VERSION} of metadata", request.wire_version),
            ));
        }
        let (node, settings) = self.control.register(registration(request)?).await?;
        Ok(v1::RegisterNodeResponse {
            node_id: node.0,
            cluster_id: id_bytes(cluster_id.as_bytes()),
            heartbeat_ms: millis(self.control.settings().heartbeat),
            settings: Some(settings_to_wire(settings)),
            inventory_wanted: true,
            epoch: self.raft.epoch(),
            meta_addresses: self.raft.voter_addresses(),
        })
    }

    pub(super) async fn handle_deregister_node(
        &self,
        request: v1::DeregisterNodeRequest,
    ) -> Result<v1::DeregisterNodeResponse, RpcError> {
        self.control.deregister(NodeId(request.node_id), request.incarnation).await?;
        Ok(v1::DeregisterNodeResponse {})
    }

    pub(super) async fn handle_heartbeat(
        &self,
        request: v1::HeartbeatRequest,
    ) -> Result<v1::HeartbeatResponse, RpcError> {
        let orders = self.control.heartbeat(heartbeat(request)?).await?;
        Ok(self.orders_to_wire(orders))
    }

    pub(super) async fn handle_commit_chunk(
        &self,
        request: v1::CommitChunkRequest,
    ) -> Result<v1::CommitChunkResponse, RpcError> {
        let receipts = request.receipts.into_iter().map(receipt).collect::<Result<_, _>>()?;
        self.control.commit_chunks(receipts).await?;
        Ok(v1::CommitChunkResponse {})
    }

    pub(super) async fn handle_report_repair_result(
        &self,
        request: v1::ReportRepairResultRequest,
    ) -> Result<v1::ReportRepairResultResponse, RpcError> {
        if request.outcomes.len() > OUTCOMES_MAX {
            return Err(invalid(format!("{} outcomes in one report, at most {OUTCOMES_MAX}", request.outcomes.len())));
        }
        let results = request.outcomes.into_iter().map(outcome).collect::<Result<_, _>>()?;
        self.control.repair_results(NodeId(request.node_id), results).await?;
        Ok(v1::ReportRepairResultResponse {})
    }

    fn orders_to_wire(&self, orders: Orders) -> v1::HeartbeatResponse {
        let lease_ms = millis(self.control.settings().repair.lease);
        let repair = orders.repair.into_iter().map(|(job, target_address)| v1::RepairJob {
            job_id: job.id,
            chunk_id: id_bytes(job.chunk.as_bytes()),
            length: job.length,
            sha256: id_bytes(&job.sha256),
            target: job.target.0,
            target_address,
            lease_ms,
            urgent: job.urgent,
        });
        v1::HeartbeatResponse {
            register_again: orders.register_again,
            acked_seq: orders.acked_seq,
            delete: orders.delete.iter().map(|chunk| id_bytes(chunk.as_bytes())).collect(),
            repair: repair.collect(),
            inventory: orders.inventory.map(|page| v1::InventoryRequest {
                after: page.after.map(|chunk| id_bytes(chunk.as_bytes())).unwrap_or_default(),
                limit: page.limit,
                run: page.run,
            }),
            more: orders.more,
            leader_term: orders.term,
            confirm: orders.confirm.iter().map(|chunk| id_bytes(chunk.as_bytes())).collect(),
            repair_streams: orders.streams,
            scrub: orders.scrub.map(Into::into),
            epoch: self.raft.epoch(),
            meta_addresses: self.raft.voter_addresses(),
        }
    }
}

fn registration(request: v1::RegisterNodeRequest) -> Result<Registration, RpcError> {
    let uuid = Uuid::from_slice(&request.node_uuid)
        .filter(|uuid| !uuid.is_zero())
        .ok_or_else(|| invalid("a node's uuid has 16 bytes, not all zero"))?;
    check_address(&request.address).map_err(|error| invalid(error.to_string()))?;
    let is_text = |text: &str| text.len() <= TEXT_MAX && !text.chars().any(char::is_control);
    if request.name.is_empty() || !is_text(&request.name) || !is_text(&request.rack) || !is_text(&request.address) {
        return Err(invalid(format!("a node's name, rack and address are texts of at most {TEXT_MAX} bytes")));
    }
    Ok(Registration {
        uuid,
        name: request.name,
        address: request.address,
        rack: request.rack,
        capacity_bytes: request.capacity_bytes,
        used_bytes: request.used_bytes,
        chunk_count: request.chunk_count,
        incarnation: request.incarnation,
    })
}

fn heartbeat(request: v1::HeartbeatRequest) -> Result<Heartbeat, RpcError> {
    let page = request
        .inventory
        .map(|page| Ok::<_, RpcError>(Page { run: page.run, chunks: held(page.chunks)?, last: page.last }))
        .transpose()?;
    Ok(Heartbeat {
        node: NodeId(request.node_id),
        incarnation: request.incarnation,
        capacity_bytes: request.capacity_bytes,
        used_bytes: request.used_bytes,
        chunk_count: request.chunk_count,
        active_streams: request.active_streams,
        added: held(request.added)?,
        removed: chunk_ids(&request.removed)?,
        deleted: chunk_ids(&request.deleted)?,
        unreachable: request.unreachable.into_iter().map(NodeId).collect(),
        seq: request.inventory_seq,
        page,
        confirmed: chunk_ids(&request.confirmed)?,
        quarantined: request.quarantined.into_iter().map(quarantined).collect::<Result<_, _>>()?,
        notices: request.notices.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        disks: disks(request.disks)?,
        scrub_order: request.scrub_order,
        inventory_due: request.inventory_due,
    })
}

fn quarantined(wire: v1::QuarantinedCopy) -> Result<Quarantined, RpcError> {
    Ok(Quarantined { chunk: convert::chunk_id(&wire.chunk_id)?, disk: clean(&wire.disk), reason: clean(&wire.reason) })
}

fn disks(wire: Vec<v1::DiskReport>) -> Result<Vec<DiskReport>, RpcError> {
    if wire.len() > DISKS_MAX {
        return Err(invalid(format!("a node with {} disks, at most {DISKS_MAX}", wire.len())));
    }
    wire.into_iter().map(TryInto::try_into).collect()
}

fn held(wire: Vec<v1::HeldChunk>) -> Result<Vec<Held>, RpcError> {
    wire.into_iter()
        .map(|held| {
            let chunk = convert::chunk_id(&held.chunk_id)?;
            Ok(Held { chunk, file: convert::file_id(&held.file_id)?, length: held.length })
        })
        .collect()
}

fn outcome(wire: v1::RepairOutcome) -> Result<RepairResult, RpcError> {
    let failure = (wire.code != 0).then(|| Cause {
        code: ErrorCode::from_wire(wire.code).unwrap_or(ErrorCode::Io),
        message: wire.message.chars().filter(|c| !c.is_control()).take(MESSAGE_MAX).collect(),
    });
    let chunk = convert::chunk_id(&wire.chunk_id)?;
    Ok(RepairResult { job: wire.job_id, chunk, target: NodeId(wire.target), failure })
}

fn chunk_ids(wire: &[Bytes]) -> Result<Vec<ChunkId>, RpcError> {
    wire.iter().map(|bytes| convert::chunk_id(bytes)).collect()
}

fn receipt(wire: v1::ChunkReceipt) -> Result<Receipt, RpcError> {
    let chunk = convert::chunk_id(&wire.chunk_id)?;
    if wire.length == 0 || wire.length > CHUNK_SIZE_MAX || wire.replicas.len() > REPLICAS_MAX {
        return Err(invalid(format!("malformed receipt of chunk {chunk}")));
    }
    Ok(Receipt {
        chunk,
        length: wire.length,
        sha256: convert::sha256(&wire.sha256)?,
        replicas: convert::replicas(&wire.replicas),
        file: convert::file_id(&wire.file_id)?,
    })
}
