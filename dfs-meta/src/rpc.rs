//! The edge towards clients, storage nodes and administrators: gRPC calls become reads, commands and calls of the control
//! loops, one file a group. Everything that comes in is checked here or in `dfs_proto::convert`; nothing is decided here.
//!
//! Every call but `MetaStatus` is answered by the leader only. The others answer `NotLeader` with its address.

mod admin;
mod backup;
mod drain;
mod events;
mod files;
mod listing;
mod locks;
mod members;
mod mutation;
mod namespace;
mod nodes;
mod repair;
mod scrub;
mod service;
mod session;
#[cfg(test)]
mod tests;
mod trash;
mod watch;

use dfs_common::{ErrorCode, NodeId, SessionId, node::NodeState};
use dfs_proto::{
    convert::NodeAddress,
    status::RpcError,
    v1::{admin_service_server::AdminServiceServer, metadata_service_server::MetadataServiceServer},
};
use tonic::transport::{Server, server::Router};

use crate::{control, fsm::State, raft};

/// Largest request, bytes: the `CommitFile` of a 3 TiB file of 4 MiB chunks.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// Serves the metadata and admin services.
#[derive(Clone)]
pub struct Service {
    raft: raft::Handle,
    control: control::Handle,
}

/// Adds the services of this module to a server.
#[must_use]
pub fn add(server: &mut Server, raft: raft::Handle, control: control::Handle) -> Router {
    let service = Service { raft, control };
    server
        .add_service(MetadataServiceServer::new(service.clone()).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(AdminServiceServer::new(service))
}

fn invalid(message: impl Into<String>) -> RpcError {
    RpcError::new(ErrorCode::InvalidArgument, message)
}

/// Session of a request; 0 is none.
fn session(number: u64) -> Option<SessionId> {
    (number != 0).then_some(SessionId(number))
}

/// Address book entries of `ids` in ascending order, without those that are not registered.
fn addresses(state: &State, ids: impl IntoIterator<Item = NodeId>) -> Vec<NodeAddress> {
    let ids: std::collections::BTreeSet<NodeId> = ids.into_iter().collect();
    ids.into_iter()
        .filter_map(|id| state.node(id))
        .map(|node| NodeAddress {
            id: node.id,
            address: node.address.clone(),
            name: node.name.clone(),
            // Who reads and writes need not know why no new chunk comes to it.
            state: match node.state() {
                NodeState::Maintenance => NodeState::Alive,
                state => state,
            },
        })
        .collect()
}
