//! What an administrator decides about storage nodes.

use std::time::Duration;

use dfs_common::NodeId;
use dfs_proto::{status::RpcError, v1};

use super::{
    Service,
    admin::{figure_to_wire, node_to_wire},
    invalid,
};
use crate::control::{
    Balance,
    nodes::{Outlook, Verb},
    rebalance::Fill,
};

impl Service {
    pub(super) async fn handle_change_node(
        &self,
        request: v1::ChangeNodeRequest,
    ) -> Result<v1::ChangeNodeResponse, RpcError> {
        let verb = match request.verb() {
            v1::NodeVerb::Unspecified => return Err(invalid("no verb for a storage node".to_owned())),
            v1::NodeVerb::Drain => Verb::Drain,
            v1::NodeVerb::Undrain => Verb::Undrain,
            v1::NodeVerb::Maintenance => Verb::Maintenance(Duration::from_millis(request.for_ms)),
            v1::NodeVerb::EndMaintenance => Verb::EndMaintenance,
            v1::NodeVerb::Remove => Verb::Remove { lose: request.lose },
        };
        let outlook = self.control.change_node(&request.node, verb, request.dry_run).await?;
        let id = outlook.node.id;
        let (now, risk, rests) =
            self.raft.read(|state| (state.node(id).cloned(), state.risk(id), state.rests(id))).await?;
        let now = now.unwrap_or_else(|| outlook.node.clone());
        let figures = self.control.figures(std::slice::from_ref(&now))?;
        let disks = self.control.disks(std::slice::from_ref(&now))?.pop().unwrap_or_default();
        let node = figures.into_iter().next().map(|figures| node_to_wire(&now, figures, (risk, rests), &disks));
        let (done, obstacles, warnings) = (outlook.done, outlook.obstacles.clone(), outlook.warnings.clone());
        Ok(v1::ChangeNodeResponse { node, impact: Some(impact_to_wire(outlook)), done, obstacles, warnings })
    }
}

impl Service {
    pub(super) async fn handle_rebalance(
        &self,
        request: v1::RebalanceRequest,
    ) -> Result<v1::RebalanceResponse, RpcError> {
        let run = match request.verb() {
            v1::RebalanceVerb::Unspecified => return Err(invalid("no verb for the rebalance")),
            v1::RebalanceVerb::Status => None,
            v1::RebalanceVerb::Start => Some(true),
            v1::RebalanceVerb::Stop => Some(false),
        };
        let Balance { rebalance, nodes, active, rate } = self.control.rebalance(run).await?;
        let name = |id: NodeId| self.raft.peek(|state| state.node(id).map(|node| node.name.clone()));
        let fill = |(fill, even): (Fill, bool)| v1::NodeFill {
            node_id: fill.node.0,
            name: name(fill.node).unwrap_or_default(),
            bytes: fill.bytes,
            capacity_bytes: fill.capacity_bytes,
            even,
        };
        Ok(v1::RebalanceResponse {
            running: rebalance.running,
            started_ns: rebalance.started_ns,
            ended_ns: rebalance.ended_ns,
            chunks: rebalance.chunks,
            bytes: rebalance.bytes,
            active,
            bytes_per_s: rate.bytes_per_s,
            nodes: nodes.into_iter().map(fill).collect(),
        })
    }
}

fn impact_to_wire(outlook: Outlook) -> v1::NodeImpact {
    let impact = outlook.impact;
    v1::NodeImpact {
        holds: Some(figure_to_wire(impact.holds)),
        under_replicated: Some(figure_to_wire(impact.under_replicated)),
        endangered: Some(figure_to_wire(impact.endangered)),
        lost: Some(figure_to_wire(impact.lost)),
        to_copy: Some(figure_to_wire(impact.to_copy)),
        room_bytes: outlook.room_bytes,
        targets: u32::try_from(outlook.targets).unwrap_or(u32::MAX),
        lost_paths: outlook.lost_paths,
        endangered_paths: outlook.endangered_paths,
    }
}
