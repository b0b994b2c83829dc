//! What other metadata nodes ask of this one.
//!
//! A message for another node, of another cluster, or in an unknown version of the wire is refused, so that a mistaken
//! address or a reused one never reaches the consensus group. While a node is joining it accepts entries and snapshots but
//! refuses to vote: see the module `bootstrap`.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use dfs_common::{ClusterId, ErrorCode};
use dfs_proto::{
    WIRE_VERSION,
    status::RpcError,
    transport::check_address,
    v1::{
        HelloMember, HelloRequest, HelloResponse, RaftReply, RaftRequest, SnapshotPart,
        raft_service_server::RaftService, raft_service_server::RaftServiceServer,
    },
};
use openraft::{
    error::RaftError,
    raft::{AppendEntriesRequest, VoteRequest},
};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Request, Response, Status, Streaming};

use super::{
    core::{Core, Phase},
    handover,
    peers::MESSAGE_BYTES_MAX,
    transfer::Receiver,
    types::{Raft, RaftId, TypeConfig, Vote},
};
use crate::store::SnapshotDir;

/// The service, to be added to the node's listener.
#[derive(Clone)]
pub struct Service {
    core: Arc<Core>,
    receiver: Arc<Receiver>,
    /// Until then votes are refused: before the process restarted it may have promised a leader to follow it.
    votes_from: Instant,
}

impl Service {
    pub(crate) fn new(core: Arc<Core>, snapshots: Arc<SnapshotDir>, votes_from: Instant) -> Self {
        Self { core, receiver: Arc::new(Receiver::new(snapshots)), votes_from }
    }

    /// The service in the form that a gRPC server takes.
    #[must_use]
    pub fn into_server(self) -> RaftServiceServer<Self> {
        RaftServiceServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Checks the envelope.
    fn check(&self, request: &RaftRequest) -> Result<&Raft, RpcError> {
        let me = &self.core.settings.me;
        if request.wire_version.abs_diff(WIRE_VERSION) > 1 {
            let message = format!(
                "{} speaks version {WIRE_VERSION}, the message is of version {}",
                me.name, request.wire_version
            );
            return Err(RpcError::new(ErrorCode::Incompatible, message));
        }
        if request.target != me.raft_id {
            let message =
                format!("this is {} (raft id {}), the message is for raft id {}", me.name, me.raft_id, request.target);
            return Err(RpcError::new(ErrorCode::WrongNode, message));
        }
        if let (Some(ours), false) = (self.core.cluster.get(), request.cluster_id.is_empty())
            && request.cluster_id != ours.as_bytes()
        {
            let theirs = ClusterId::from_slice(&request.cluster_id).map_or("?".into(), |id| id.to_string());
            let message = format!("{} is of cluster {ours}, the message is of cluster {theirs}", me.name);
            return Err(RpcError::new(ErrorCode::WrongCluster, message));
        }
        let epoch = self.core.cluster.epoch();
        if self.core.cluster.get().is_some() && !request.cluster_id.is_empty() && request.epoch != epoch {
            let message = format!(
                "{} is of epoch {epoch}, the message is of epoch {}: the metadata was restored or rescued in between",
                me.name, request.epoch
            );
            return Err(RpcError::new(ErrorCode::WrongCluster, message));
        }
        let starting = || RpcError::new(ErrorCode::Unavailable, format!("{} is starting", me.name));
        self.core.raft.get().ok_or_else(starting)
    }

    /// `handover`: the leader whose lease the silence after a start protects has given it up.
    fn may_vote(&self, handover: bool) -> Result<(), RpcError> {
        let refuse =
            |why: &str| Err(RpcError::new(ErrorCode::Unavailable, format!("{} {why}", self.core.settings.me.name)));
        if *self.core.phase.borrow() != Phase::Member {
            return refuse("does not vote before it has caught up");
        }
        if !handover && Instant::now() < self.votes_from {
            return refuse("does not vote right after its start");
        }
        Ok(())
    }

    async fn about_me(&self, asking: &HelloRequest) -> HelloResponse {
        let core = &self.core;
        let me = &core.settings.me;
        let mut hello = HelloResponse {
            cluster_id: core.cluster.get().map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default(),
            raft_id: me.raft_id,
            name: me.name.clone(),
            initialized: core.cluster.get().is_some(),
            leader: core.leadership.borrow().leader.as_ref().map(|leader| leader.address.clone()).unwrap_or_default(),
            epoch: core.cluster.epoch(),
            address: me.address.clone(),
            ready: *core.phase.borrow() == Phase::Member,
            ..HelloResponse::default()
        };
        let Some(raft) = core.raft.get() else { return hello };
        let state = raft.with_raft_state(|state| {
            let (effective, committed) =
                (state.membership_state.effective().clone(), state.membership_state.committed().clone());
            (*state.vote_ref(), effective, committed)
        });
        let Ok((vote, effective, committed)) = state.await else { return hello };
        let last = core.log.last_index().unwrap_or(0);
        // Before the first leader there is nothing but the membership at index 0, which every node has alike.
        hello.initialized |= vote.committed || last > 0;
        (hello.term, hello.last_log_index) = (vote.leader_id.term, last);
        let id = asking.raft_id;
        hello.member = effective.voter_ids().any(|voter| voter == id);
        // While a change is not agreed on, the asking node must not conclude that it was removed.
        hello.listed = effective.get_node(&id).is_some() || committed.get_node(&id).is_some();
        let is_voter = |id: RaftId| effective.voter_ids().any(|voter| voter == id);
        hello.members = effective
            .nodes()
            .map(|(id, node)| HelloMember {
                raft_id: *id,
                name: node.name.clone(),
                address: if *id == me.raft_id {
                    me.address.clone()
                } else {
                    core.peers.member(*id, Some(node)).address
                },
                voter: is_voter(*id),
            })
            .collect();
        if let Some(node) = effective.get_node(&id).filter(|node| node.name == asking.name)
            && asking.established
            && asking.cluster_id == hello.cluster_id
            && asking.epoch == hello.epoch
            && check_address(&asking.address).is_ok()
        {
            core.peers.found(id, node, &asking.address);
        }
        hello.leading = core.serving().is_ok() && core.lease.renew(core).await.is_ok();
        hello
    }
}

fn decode<T: DeserializeOwned>(payload: &Bytes) -> Result<T, RpcError> {
    postcard::from_bytes(payload).map_err(|e| RpcError::new(ErrorCode::InvalidArgument, format!("message: {e}")))
}

fn reply<T: Serialize>(answer: &T) -> Result<Response<RaftReply>, Status> {
    let payload = postcard::to_allocvec(answer)
        .map_err(|e| Status::from(RpcError::new(ErrorCode::Internal, format!("answer: {e}"))))?;
    Ok(Response::new(RaftReply { payload: payload.into() }))
}

fn stopped(error: impl ToString) -> RpcError {
    RpcError::new(ErrorCode::Unavailable, error.to_string())
}

#[tonic::async_trait]
impl RaftService for Service {
    async fn append_entries(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let request = request.into_inner();
        let raft = self.check(&request)?;
        let rpc: AppendEntriesRequest<TypeConfig> = decode(&request.payload)?;
        let answer = raft.append_entries(rpc).await.map_err(|e: RaftError<RaftId>| stopped(e))?;
        reply(&answer)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let request = request.into_inner();
        let raft = self.check(&request)?;
        self.may_vote(request.handover)?;
        let rpc: VoteRequest<RaftId> = decode(&request.payload)?;
        if request.handover {
            handover::let_go(raft, rpc.vote).await?;
        }
        let answer = raft.vote(rpc).await.map_err(|e: RaftError<RaftId>| stopped(e))?;
        reply(&answer)
    }

    async fn install_snapshot(&self, request: Request<Streaming<SnapshotPart>>) -> Result<Response<RaftReply>, Status> {
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|part| part.header);
        let header = first.ok_or_else(|| RpcError::new(ErrorCode::InvalidArgument, "snapshot without a header"))?;
        let raft = self.check(&header)?;
        let received = self.receiver.receive(&header, parts).await?;
        let answer = raft.install_full_snapshot(received.vote, received.snapshot).await.map_err(stopped)?;
        drop(received.turn);
        reply(&answer)
    }

    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let request = request.into_inner();
        if request.look {
            self.core.look.notify_one();
        }
        Ok(Response::new(self.about_me(&request).await))
    }

    async fn take_over(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let request = request.into_inner();
        let raft = self.check(&request)?;
        self.may_vote(true)?;
        let vote: Vote = decode(&request.payload)?;
        handover::stand(&self.core, raft, vote).await?;
        reply(&())
    }
}
