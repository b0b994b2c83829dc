//! What an administrator asks about repair, and tells it.

use dfs_common::ChunkId;
use dfs_proto::{
    convert::{self, id_bytes},
    status::RpcError,
    v1,
};

use super::{Service, admin::chunks_to_wire, invalid, session::millis};
use crate::{
    control::{
        repair::{Failure, Verdict},
        repairs::{Figures, LimitChange, NodeLoad, Queued},
    },
    fsm::{Node, RepairLimits},
};

/// Failures in one answer.
const FAILURES_MAX: usize = 1000;
/// Chunks in one answer.
const QUEUE_MAX: usize = 4096;

impl Service {
    pub(super) async fn handle_repair_status(
        &self,
        request: v1::RepairStatusRequest,
    ) -> Result<v1::RepairStatusResponse, RpcError> {
        let (limits, counters, nodes) = self
            .raft
            .read(|state| (state.repair_limits(), state.counters(), state.nodes().cloned().collect::<Vec<Node>>()))
            .await?;
        let figures = self.control.repair_figures(&counters)?;
        let failures = self.control.repair_failures((request.failures_limit as usize).min(FAILURES_MAX))?;
        Ok(v1::RepairStatusResponse {
            limits: Some(limits_to_wire(limits)),
            progress: Some(figures_to_wire(figures)),
            chunks: Some(chunks_to_wire(counters)),
            failures: failures.into_iter().map(failure_to_wire).collect(),
            nodes: self.control.repair_loads(&nodes)?.into_iter().map(load_to_wire).collect(),
        })
    }

    pub(super) async fn handle_repair_queue(
        &self,
        request: v1::RepairQueueRequest,
    ) -> Result<v1::RepairQueueResponse, RpcError> {
        let after = match &request.after[..] {
            [] => None,
            id => Some((request.after_live, convert::chunk_id(id)?)),
        };
        let limit = (request.limit as usize).clamp(1, QUEUE_MAX);
        let (chunks, end) = self.control.repair_queue(after, limit).await?;
        let counters = self.raft.read(|state| state.counters()).await?;
        Ok(v1::RepairQueueResponse {
            chunks: chunks.into_iter().map(queued_to_wire).collect(),
            total: counters.under_replicated + counters.missing,
            end,
        })
    }

    pub(super) async fn handle_repair_now(
        &self,
        request: v1::RepairNowRequest,
    ) -> Result<v1::RepairNowResponse, RpcError> {
        if request.chunk_ids.len() > QUEUE_MAX {
            return Err(invalid(format!("{} chunks at once, at most {QUEUE_MAX}", request.chunk_ids.len())));
        }
        let chunks: Vec<ChunkId> =
            request.chunk_ids.iter().map(|id| convert::chunk_id(id)).collect::<Result<_, _>>()?;
        let begun = self.control.repair_now(&chunks).await?;
        let counters = self.raft.read(|state| state.counters()).await?;
        let figures = self.control.repair_figures(&counters)?;
        Ok(v1::RepairNowResponse {
            forgiven: begun.forgiven as u64,
            chunks: begun.chunks.into_iter().map(queued_to_wire).collect(),
            active_copies: figures.active,
            lacking_copies: figures.lacking,
        })
    }

    pub(super) async fn handle_set_repair_limits(
        &self,
        request: v1::SetRepairLimitsRequest,
    ) -> Result<v1::SetRepairLimitsResponse, RpcError> {
        let v1::SetRepairLimitsRequest { streams_per_node, streams_total, bytes_per_s } = request;
        let change = LimitChange { streams_per_node, streams_total, bytes_per_s };
        let limits = self.control.change_repair_limits(change).await?;
        Ok(v1::SetRepairLimitsResponse { limits: Some(limits_to_wire(limits)) })
    }
}

fn limits_to_wire(limits: RepairLimits) -> v1::RepairLimits {
    let RepairLimits { streams_per_node, streams_total, bytes_per_s } = limits;
    v1::RepairLimits { streams_per_node, streams_total, bytes_per_s }
}

pub(super) fn figures_to_wire(figures: Figures) -> v1::RepairProgress {
    v1::RepairProgress {
        active_copies: figures.active,
        active_urgent: figures.urgent,
        active_bytes: figures.active_bytes,
        lacking_copies: figures.lacking,
        lacking_bytes: figures.lacking_bytes,
        chunks_per_s: figures.rate.chunks_per_s,
        bytes_per_s: figures.rate.bytes_per_s,
        eta_ms: figures.eta.map(millis),
        over_replicated: figures.over_replicated,
        trimming: figures.trimming,
    }
}

fn failure_to_wire(failure: Failure) -> v1::RepairFailure {
    v1::RepairFailure {
        chunk_id: id_bytes(failure.chunk.as_bytes()),
        node_id: failure.node.0,
        failures: failure.failures,
        ago_ms: millis(failure.ago),
        again_in_ms: millis(failure.again_in),
        code: failure.cause.code as u32,
        message: failure.cause.message,
    }
}

fn load_to_wire(load: NodeLoad) -> v1::RepairNode {
    v1::RepairNode {
        node_id: load.node.0,
        name: load.name,
        sending: load.sending.0,
        sending_bytes: load.sending.1,
        receiving: load.receiving.0,
        receiving_bytes: load.receiving.1,
    }
}

fn queued_to_wire(queued: Queued) -> v1::QueuedChunk {
    let (source, target) = queued.route.map_or((0, 0), |(source, target)| (source.0, target.0));
    v1::QueuedChunk {
        chunk_id: id_bytes(queued.chunk.as_bytes()),
        length: queued.length,
        live: queued.live,
        wanted: queued.wanted,
        holders: queued.holders.iter().map(|node| node.0).collect(),
        wait: wait_to_wire(queued.verdict).into(),
        failure: queued.failure.map(failure_to_wire),
        source,
        target,
    }
}

fn wait_to_wire(verdict: Verdict) -> v1::RepairWait {
    match verdict {
        Verdict::Planned => v1::RepairWait::Next,
        Verdict::Enough => v1::RepairWait::Enough,
        Verdict::InWork => v1::RepairWait::InWork,
        Verdict::Fresh => v1::RepairWait::Fresh,
        Verdict::NoSource => v1::RepairWait::NoSource,
        Verdict::NoTarget => v1::RepairWait::NoTarget,
        Verdict::Paused => v1::RepairWait::Paused,
        Verdict::Busy => v1::RepairWait::Busy,
        Verdict::Throttled => v1::RepairWait::Throttled,
    }
}
