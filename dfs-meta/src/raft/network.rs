//! openraft's calls to other nodes, over gRPC.
//!
//! Payloads are postcard. Every failure is reported as *unreachable*, which makes openraft pause for [`BACKOFF`] before it tries
//! again; its own default of half a second would make a restarted follower wait.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dfs_common::ErrorCode;
use dfs_proto::status::RpcError;
use openraft::{
    OptionalSend, RaftNetworkFactory, Snapshot, StorageIOError,
    error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption, RaftNetwork},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinHandle;

use super::{
    peers::{Call, Peer, Peers},
    transfer,
    types::{LogId, MetaNode, RaftId, TypeConfig, Vote},
};

/// Pause after a failed call.
const BACKOFF: Duration = Duration::from_millis(100);

/// A larger message outlives the call that sent it, see [`Large`].
const LARGE_BYTES: usize = 256 << 10;
/// Time for a large message: 64 MiB over a slow link.
const LARGE_TIMEOUT: Duration = Duration::from_secs(30);

type RpcFailure = RPCError<RaftId, MetaNode, RaftError<RaftId>>;

/// Makes the clients of all peers.
#[derive(Clone)]
pub(crate) struct Network {
    peers: Arc<Peers>,
    /// See [`Core::stands_in`](super::core::Core::stands_in).
    stands_in: Arc<AtomicU64>,
}

impl Network {
    pub(crate) fn new(peers: Arc<Peers>, stands_in: Arc<AtomicU64>) -> Self {
        Self { peers, stands_in }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: RaftId, node: &MetaNode) -> Client {
        Client { network: self.clone(), target, node: node.clone(), large: None }
    }
}

/// Calls one peer.
pub(crate) struct Client {
    network: Network,
    target: RaftId,
    node: MetaNode,
    large: Option<Large>,
}

/// A large message under way. openraft gives a call up after one heartbeat and makes it again; the message goes on meanwhile,
/// or an entry that needs longer than a heartbeat would never arrive.
struct Large {
    vote: Vote,
    from: Option<LogId>,
    upto: Option<LogId>,
    answer: JoinHandle<Result<Bytes, RpcError>>,
}

impl Client {
    /// The peer where it is now.
    fn peer(&self) -> Arc<Peer> {
        self.network.peers.get(self.target, &self.node)
    }

    /// Sends a large message, or goes on waiting for the one that starts at the same entry.
    async fn append_large(
        &mut self,
        rpc: &AppendEntriesRequest<TypeConfig>,
        payload: Vec<u8>,
    ) -> Result<Appended, RpcError> {
        let upto = rpc.entries.last().map(|entry| entry.log_id);
        let under_way = self.large.take().filter(|large| large.vote == rpc.vote && large.from == rpc.prev_log_id);
        let large = self.large.insert(under_way.unwrap_or_else(|| {
            let peer = self.network.peers.get(self.target, &self.node);
            let answer = tokio::spawn(async move { peer.call(Call::Append, payload, LARGE_TIMEOUT).await });
            Large { vote: rpc.vote, from: rpc.prev_log_id, upto, answer }
        }));
        // When this is cancelled the message stays in `large`.
        let answer = (&mut large.answer).await;
        let sent = large.upto;
        self.large = None;
        let answer = answer.map_err(|e| RpcError::new(ErrorCode::Internal, e.to_string()))??;
        Ok(match decode(Call::Append, &answer)? {
            AppendEntriesResponse::Success if sent < upto => AppendEntriesResponse::PartialSuccess(sent),
            // What was sent is more than what is asked now; openraft counts what it asked.
            other => other,
        })
    }
}

type Appended = AppendEntriesResponse<RaftId>;

fn encode<Q: Serialize>(call: Call, rpc: &Q) -> Result<Vec<u8>, RpcError> {
    postcard::to_allocvec(rpc).map_err(|e| RpcError::new(ErrorCode::Internal, format!("{call:?} message: {e}")))
}

fn decode<A: DeserializeOwned>(call: Call, bytes: &[u8]) -> Result<A, RpcError> {
    postcard::from_bytes(bytes).map_err(|e| RpcError::new(ErrorCode::Internal, format!("{call:?} answer: {e}")))
}

/// One typed call.
pub(crate) async fn exchange<Q: Serialize, A: DeserializeOwned>(
    peer: &Peer,
    call: Call,
    rpc: &Q,
    timeout: Duration,
) -> Result<A, RpcError> {
    decode(call, &peer.call(call, encode(call, rpc)?, timeout).await?)
}

impl RaftNetwork<TypeConfig> for Client {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<Appended, RpcFailure> {
        let append = async {
            let payload = encode(Call::Append, &rpc)?;
            if payload.len() > LARGE_BYTES {
                return self.append_large(&rpc, payload).await;
            }
            decode(Call::Append, &self.peer().call(Call::Append, payload, option.hard_ttl()).await?)
        };
        append.await.map_err(|e| Unreachable::new(&e).into())
    }

    async fn vote(&mut self, rpc: VoteRequest<RaftId>, option: RPCOption) -> Result<VoteResponse<RaftId>, RpcFailure> {
        let asked = self.network.stands_in.load(Ordering::Acquire) == rpc.vote.leader_id.term;
        let call = if asked { Call::HandoverVote } else { Call::Vote };
        let vote = exchange(&self.peer(), call, &rpc, option.hard_ttl()).await;
        vote.map_err(|e| Unreachable::new(&e).into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<RaftId>, StreamingError<TypeConfig, Fatal<RaftId>>> {
        let signature = snapshot.meta.signature();
        let peer = self.peer();
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = transfer::send(&peer, vote, snapshot) => sent.map_err(|error| match error {
                transfer::SendError::Peer(error) => Unreachable::new(&error).into(),
                transfer::SendError::Local(error) => {
                    let error = StorageIOError::read_snapshot(Some(signature), &error);
                    StreamingError::StorageError(error.into())
                }
            }),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
