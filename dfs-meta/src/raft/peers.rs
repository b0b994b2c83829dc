//! The other metadata nodes: one channel each, and what is known about whether they answer.
//!
//! A node that is down is called ten times a second by several parties; that it went away and came back is logged once each.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use dfs_common::{ClusterId, ErrorCode};
use dfs_proto::{
    WIRE_VERSION,
    status::RpcError,
    transport,
    v1::{HelloRequest, HelloResponse, RaftReply, RaftRequest, SnapshotPart, raft_service_client::RaftServiceClient},
};
use tokio_stream::Stream;
use tonic::{Response, Status, transport::Channel};

use super::{
    Member,
    types::{MetaNode, RaftId},
};

/// Largest message between metadata nodes, bytes. A message to a follower has a few MiB at most unless one entry is larger;
/// an entry cannot be larger than what clients may send.
pub(crate) const MESSAGE_BYTES_MAX: usize = 96 << 20;
/// Making a connection within a data centre takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The cluster this node belongs to: its id, unknown while it is being formed, and its epoch. Shared by everything that sends or
/// checks them. The epoch is set before the id.
#[derive(Debug, Default)]
pub(crate) struct Belonging {
    id: OnceLock<ClusterId>,
    epoch: AtomicU64,
}

/// See [`Belonging`].
pub(crate) type Cluster = Arc<Belonging>;

impl Belonging {
    /// As the data directory says.
    pub(crate) fn new(id: Option<ClusterId>, epoch: u64) -> Self {
        Self { id: id.map_or_else(OnceLock::new, OnceLock::from), epoch: AtomicU64::new(epoch) }
    }

    /// The id, once it is known.
    pub(crate) fn get(&self) -> Option<&ClusterId> {
        self.id.get()
    }

    /// The id; `cluster` if it was not known.
    pub(crate) fn get_or_set(&self, cluster: ClusterId) -> ClusterId {
        *self.id.get_or_init(|| cluster)
    }

    /// The epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes over the epoch of the cluster that this node joins.
    pub(crate) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
    }
}

/// The calls between metadata nodes that are one message each way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Append,
    Vote,
    /// A vote for a node that the leader asked to take over.
    HandoverVote,
    TakeOver,
}

/// All peers.
///
/// The address of a member is the one in the membership, which all nodes agree on. A member that was started under another
/// address says so itself (Hello); that counts until the membership is changed, which the leader does when it hears of it. This
/// node's own configuration only helps to find the others at first.
#[derive(Debug)]
pub(crate) struct Peers {
    cluster: Cluster,
    configured: HashMap<RaftId, Member>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    members: HashMap<RaftId, Arc<Peer>>,
    /// Where members said they are, with the address that the membership had for them at that time.
    moved: HashMap<RaftId, Moved>,
    /// Nodes that are asked who they are, by address.
    asked: HashMap<String, Arc<Peer>>,
}

#[derive(Debug)]
struct Moved {
    to: String,
    from: String,
}

impl Peers {
    /// Peers with these configured addresses.
    pub(crate) fn new(cluster: Cluster, configured: &[Member]) -> Self {
        let configured = configured.iter().map(|peer| (peer.raft_id, peer.clone())).collect();
        Self { cluster, configured, known: Mutex::default() }
    }

    /// A member as others may be told of it; `node` is unknown to a node that has no membership yet.
    pub(crate) fn member(&self, id: RaftId, node: Option<&MetaNode>) -> Member {
        self.describe(&self.known(), id, node)
    }

    fn describe(&self, known: &Known, id: RaftId, node: Option<&MetaNode>) -> Member {
        let configured = self.configured.get(&id);
        let name = node.map(|node| &node.name).or(configured.map(|peer| &peer.name));
        let moved = known.moved.get(&id).filter(|moved| node.is_some_and(|node| node.address == moved.from));
        let address = moved.map(|moved| &moved.to).or(node.map(|node| &node.address));
        let address = address.or(configured.map(|peer| &peer.address));
        Member { raft_id: id, name: name.cloned().unwrap_or_default(), address: address.cloned().unwrap_or_default() }
    }

    /// The peer with this id; a changed address makes a new channel.
    pub(crate) fn get(&self, id: RaftId, node: &MetaNode) -> Arc<Peer> {
        let mut known = self.known();
        let member = self.describe(&known, id, Some(node));
        match known.members.get(&id) {
            Some(peer) if peer.member == member => peer.clone(),
            Some(_) | None => {
                let peer = Arc::new(Peer::new(member, self.cluster.clone()));
                known.members.insert(id, peer.clone());
                peer
            }
        }
    }

    /// Whoever is at `address`, to be asked who it is.
    pub(crate) fn at(&self, address: &str) -> Arc<Peer> {
        let mut known = self.known();
        if let Some(peer) = known.asked.get(address) {
            return peer.clone();
        }
        let member = Member { raft_id: 0, name: address.to_owned(), address: address.to_owned() };
        let peer = Arc::new(Peer::new(member, self.cluster.clone()));
        known.asked.insert(address.to_owned(), peer.clone());
        peer
    }

    /// A member answered at, or called from, `address`.
    pub(crate) fn found(&self, id: RaftId, node: &MetaNode, address: &str) {
        let mut known = self.known();
        if node.address == address || address.is_empty() {
            known.moved.remove(&id);
        } else if known.moved.get(&id).is_none_or(|moved| moved.to != address || moved.from != node.address) {
            tracing::info!(peer = node.name, was = node.address, now = address, "a metadata node has moved");
            known.moved.insert(id, Moved { to: address.to_owned(), from: node.address.clone() });
        }
    }

    /// Address of a member that differs from the membership's.
    pub(crate) fn moved(&self, id: RaftId, node: &MetaNode) -> Option<String> {
        let known = self.known();
        known.moved.get(&id).filter(|moved| moved.from == node.address).map(|moved| moved.to.clone())
    }

    /// When the peer last answered.
    pub(crate) fn silent(&self, id: RaftId) -> Option<Duration> {
        self.known().members.get(&id)?.silent()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// One peer.
#[derive(Debug)]
pub(crate) struct Peer {
    member: Member,
    cluster: Cluster,
    client: Option<RaftServiceClient<Channel>>,
    state: AtomicU8,
    made: Instant,
    /// When it last answered, milliseconds after `made` plus one; 0 for never.
    heard_ms: AtomicU64,
}

impl Peer {
    fn new(member: Member, cluster: Cluster) -> Self {
        let client = match transport::connect(&member.address, CONNECT_TIMEOUT) {
            Ok(channel) => Some(
                RaftServiceClient::new(channel)
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            ),
            Err(error) => {
                tracing::warn!(peer = member.name, %error, "a peer has no usable address");
                None
            }
        };
        let (state, heard_ms) = (AtomicU8::new(UNKNOWN), AtomicU64::new(0));
        Self { member, cluster, client, state, made: Instant::now(), heard_ms }
    }

    /// Who it is.
    pub(crate) fn member(&self) -> &Member {
        &self.member
    }

    /// Sends one message and waits for the answer.
    pub(crate) async fn call(&self, call: Call, payload: Vec<u8>, timeout: Duration) -> Result<Bytes, RpcError> {
        let mut request = self.request(payload.into());
        request.handover = matches!(call, Call::HandoverVote);
        let reply = self
            .with_client(timeout, |mut client| async move {
                match call {
                    Call::Append => client.append_entries(request).await,
                    Call::Vote | Call::HandoverVote => client.vote(request).await,
                    Call::TakeOver => client.take_over(request).await,
                }
            })
            .await?;
        Ok(reply.payload)
    }

    /// Sends a stream of parts; the first must carry [`Peer::request`].
    pub(crate) async fn install(
        &self,
        parts: impl Stream<Item = SnapshotPart> + Send + 'static,
        timeout: Duration,
    ) -> Result<RaftReply, RpcError> {
        self.with_client(timeout, |mut client| async move { client.install_snapshot(parts).await }).await
    }

    /// Asks who it is and what it knows.
    pub(crate) async fn hello(&self, request: HelloRequest, timeout: Duration) -> Result<HelloResponse, RpcError> {
        self.with_client(timeout, |mut client| async move { client.hello(request).await }).await
    }

    /// The envelope of a message to this peer.
    pub(crate) fn request(&self, payload: Bytes) -> RaftRequest {
        let cluster_id = self.cluster.get().map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default();
        let epoch = self.cluster.epoch();
        RaftRequest {
            wire_version: WIRE_VERSION,
            cluster_id,
            target: self.member.raft_id,
            payload,
            epoch,
            handover: false,
        }
    }

    async fn with_client<T, F>(
        &self,
        timeout: Duration,
        f: impl FnOnce(RaftServiceClient<Channel>) -> F,
    ) -> Result<T, RpcError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let Some(client) = self.client.clone() else {
            return Err(RpcError::new(ErrorCode::InvalidArgument, format!("{:?} is no address", self.member.address)));
        };
        let result = match tokio::time::timeout(timeout, f(client)).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(RpcError::from),
            Err(_) => Err(RpcError::new(ErrorCode::TimedOut, format!("no answer within {timeout:?}"))),
        };
        self.note(result.as_ref().err());
        result
    }

    fn note(&self, error: Option<&RpcError>) {
        let peer = &self.member.name;
        let address = &self.member.address;
        match error {
            // An error with a code of ours is an answer.
            Some(error) if !matches!(error.code, ErrorCode::TimedOut | ErrorCode::Indeterminate) => {
                let state = self.state.swap(DOWN, Ordering::Relaxed);
                if state != DOWN && error.code != ErrorCode::Unavailable {
                    tracing::warn!(peer, address, %error, "a metadata node refuses this one");
                }
            }
            Some(error) => {
                if self.state.swap(DOWN, Ordering::Relaxed) == UP {
                    tracing::info!(peer, address, %error, "metadata node does not answer");
                }
            }
            None => {
                let now_ms = u64::try_from(self.made.elapsed().as_millis()).unwrap_or(u64::MAX);
                self.heard_ms.store(now_ms.saturating_add(1), Ordering::Relaxed);
                if self.state.swap(UP, Ordering::Relaxed) != UP {
                    tracing::info!(peer, address, "metadata node answers");
                }
            }
        }
    }

    fn silent(&self) -> Option<Duration> {
        let heard_ms = self.heard_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.made.elapsed().saturating_sub(Duration::from_millis(heard_ms)))
    }
}
