//! What an administrator asks about scrubs, and orders.

use dfs_common::NodeId;
use dfs_proto::{
    convert::{disk::scrub_verb, state_to_wire},
    status::RpcError,
    v1,
};

use super::Service;
use crate::{
    control::{disks::ScrubNode, unix_now_ns},
    fsm::Node,
};

impl Service {
    pub(super) async fn handle_scrub_status(
        &self,
        _: v1::ScrubStatusRequest,
    ) -> Result<v1::ScrubStatusResponse, RpcError> {
        let nodes: Vec<Node> = self.raft.read(|state| state.nodes().cloned().collect()).await?;
        let scrubs = self.control.scrubs(&nodes)?;
        let nodes = nodes.iter().zip(scrubs).map(|(node, scrub)| node_to_wire(node, &scrub)).collect();
        Ok(v1::ScrubStatusResponse { nodes, now_ns: unix_now_ns() })
    }

    pub(super) async fn handle_order_scrub(
        &self,
        request: v1::OrderScrubRequest,
    ) -> Result<v1::OrderScrubResponse, RpcError> {
        let verb = scrub_verb(request.verb)?;
        let nodes: Vec<NodeId> = request.node_ids.into_iter().map(NodeId).collect();
        let (number, told) = self.control.order_scrub(verb, &nodes).await?;
        Ok(v1::OrderScrubResponse { number, node_ids: told.into_iter().map(|node| node.0).collect() })
    }
}

fn node_to_wire(node: &Node, scrub: &ScrubNode) -> v1::ScrubNode {
    v1::ScrubNode {
        node_id: node.id.0,
        name: node.name.clone(),
        state: state_to_wire(node.state()).into(),
        disks: scrub.disks.iter().map(Into::into).collect(),
        order_taken: scrub.order_taken,
        order_pending: scrub.order_pending,
        checks: scrub.checks as u64,
    }
}
