//! Sessions: open, renew, close.

use dfs_common::{ClusterId, ErrorCode, FileId, SessionId, Uuid};
use dfs_proto::{
    convert::{self, id_bytes},
    status::RpcError,
    v1,
};

use super::{Service, invalid};
use crate::{
    control::sessions::Renewal,
    fsm::{Command, Reply, Settings},
};

/// Longest description of a client, bytes.
const DESCRIPTION_MAX: usize = 1024;

impl Service {
    pub(super) async fn handle_open_session(
        &self,
        request: v1::OpenSessionRequest,
    ) -> Result<v1::OpenSessionResponse, RpcError> {
        let client_id = Uuid::from_slice(&request.client_id)
            .filter(|id| !id.is_zero())
            .ok_or_else(|| invalid("a client id has 16 bytes, not all zero"))?;
        if request.description.len() > DESCRIPTION_MAX {
            return Err(invalid(format!("a client's description has at most {DESCRIPTION_MAX} bytes")));
        }
        let cluster_id = self.cluster_id().await?;
        let asked_ns = self.raft.now_ns();
        let reply = self.control.apply(Command::OpenSession { client_id, description: request.description }).await?;
        let Reply::Session { session } = reply else {
            return Err(RpcError::new(ErrorCode::Internal, "a session was answered with something else"));
        };
        let (opened_ns, settings) =
            self.raft.peek(|state| (state.session(session).map(|found| found.opened_ns), state.settings()));
        // One that was there before may have versions open that this leader was not told of.
        if opened_ns.is_some_and(|opened| opened >= asked_ns) {
            self.control.session_opened(session)?;
        }
        Ok(v1::OpenSessionResponse {
            session_id: session.0,
            lease_ms: self.lease_ms(),
            cluster_id: id_bytes(cluster_id.as_bytes()),
            settings: Some(settings_to_wire(settings)),
            meta_addresses: self.raft.voter_addresses(),
        })
    }

    pub(super) async fn handle_renew_session(
        &self,
        request: v1::RenewSessionRequest,
    ) -> Result<v1::RenewSessionResponse, RpcError> {
        let renewal =
            Renewal { full: request.full, pins: file_ids(&request.pins)?, unpins: file_ids(&request.unpins)? };
        let session = SessionId(request.session_id);
        let locks = request.locks.iter().map(|wire| convert::lock(session, wire)).collect::<Result<_, _>>()?;
        let need_full = self.control.renew(session, renewal, locks).await?;
        Ok(v1::RenewSessionResponse {
            leader_term: self.control.term(),
            need_full,
            lease_ms: self.lease_ms(),
            meta_addresses: self.raft.voter_addresses(),
        })
    }

    pub(super) async fn handle_close_session(
        &self,
        request: v1::CloseSessionRequest,
    ) -> Result<v1::CloseSessionResponse, RpcError> {
        let session = SessionId(request.session_id);
        let left = self.raft.peek(|state| state.held_by_session(session));
        self.control.apply(Command::CloseSession { session }).await?;
        self.control.left_behind(left);
        self.control.session_closed(session)?;
        Ok(v1::CloseSessionResponse {})
    }

    /// The cluster's id, once it has one.
    pub(super) async fn cluster_id(&self) -> Result<ClusterId, RpcError> {
        let found = self.raft.read(|state| state.cluster_id()).await?;
        found.ok_or_else(|| RpcError::new(ErrorCode::Unavailable, "the cluster is being formed"))
    }

    fn lease_ms(&self) -> u64 {
        millis(self.control.settings().session_lease)
    }
}

/// Milliseconds as they travel.
pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What clients and storage nodes must know of the cluster's settings.
pub(super) fn settings_to_wire(settings: Settings) -> v1::ClusterSettings {
    v1::ClusterSettings {
        chunk_size: settings.chunk_size,
        replication: settings.replication,
        write_quorum: settings.write_quorum,
    }
}

fn file_ids(wire: &[bytes::Bytes]) -> Result<Vec<FileId>, RpcError> {
    wire.iter().map(|bytes| convert::file_id(bytes)).collect()
}
