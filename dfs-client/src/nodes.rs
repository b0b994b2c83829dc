//! What this client knows of storage nodes: addresses, channels, how they fare.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use dfs_common::{ErrorCode, NodeId, node::NodeState};
use dfs_proto::{convert::NodeAddress, status::RpcError, transport};
use tokio::time::Instant;
use tonic::transport::Channel;

/// A node that failed is avoided for this long: about the time in which the cluster marks it suspect.
const AVOID_FOR: Duration = Duration::from_secs(10);
/// A node that was overtaken after this long counts as failed, not as slow.
const HUNG_AFTER: Duration = Duration::from_millis(500);
/// HTTP/2 connections a node: one thread serves a connection, so a second one lets big transfers overlap.
const CHANNELS: usize = 2;
/// Weight of the newest latency in the average: an eighth.
const EWMA_SHIFT: u32 = 3;

/// One storage node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    inner: Mutex<Inner>,
    in_flight: AtomicUsize,
    latency_us: AtomicU64,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Inner {
    address: Arc<str>,
    state: NodeState,
    failed_at: Option<Instant>,
    channels: Option<[Channel; CHANNELS]>,
}

/// A call under way; dropping it ends it.
#[derive(Debug)]
pub(crate) struct InFlight {
    node: Arc<Node>,
    started: Instant,
}

/// How good a source a node is now; the smallest is asked first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Score {
    unhealthy: bool,
    remote: bool,
    load_us: u64,
}

#[derive(Debug)]
pub(crate) struct Nodes {
    map: RwLock<HashMap<NodeId, Arc<Node>>>,
    connect_timeout: Duration,
    local_host: Option<String>,
}

impl Nodes {
    pub(crate) fn new(connect_timeout: Duration, local_host: Option<String>) -> Self {
        Self { map: RwLock::default(), connect_timeout, local_host }
    }

    /// Takes over addresses and states that metadata has just sent.
    pub(crate) fn learn(&self, addresses: Vec<NodeAddress>) {
        for address in addresses {
            match self.get(address.id) {
                Some(node) => node.update(&address),
                None => {
                    let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
                    map.entry(address.id).or_insert_with(|| Arc::new(Node::new(&address)));
                }
            }
        }
    }

    pub(crate) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub(crate) fn address(&self, id: NodeId) -> Option<Arc<str>> {
        self.get(id).map(|node| node.address())
    }

    /// Nodes that failed this client lately.
    pub(crate) fn avoid(&self) -> Vec<NodeId> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.values().filter(|node| node.failed_lately()).map(|node| node.id).collect()
    }

    /// Forgets the failures: metadata found no placement without these nodes.
    pub(crate) fn forgive(&self) {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.values().for_each(|node| node.succeeded());
    }

    pub(crate) fn failed(&self, id: NodeId) {
        if let Some(node) = self.get(id) {
            node.lock().failed_at = Some(Instant::now());
        }
    }

    pub(crate) fn score(&self, node: &Node) -> Score {
        let inner = node.lock();
        let host = inner.address.rsplit_once(':').map_or("", |(host, _)| host);
        let healthy = matches!(inner.state, NodeState::Alive | NodeState::Draining | NodeState::Maintenance);
        let in_flight = node.in_flight.load(Ordering::Relaxed) as u64;
        Score {
            unhealthy: !healthy || inner.failed_at.is_some_and(|when| when.elapsed() < AVOID_FOR),
            remote: self.local_host.as_deref() != Some(host),
            load_us: (in_flight + 1).saturating_mul(node.latency_us.load(Ordering::Relaxed).max(100)),
        }
    }

    /// A channel to `node`, and where it leads.
    pub(crate) fn channel(&self, node: &Node) -> Result<(Channel, Arc<str>), RpcError> {
        let mut inner = node.lock();
        let address = inner.address.clone();
        if inner.channels.is_none() {
            let connect = || {
                transport::connect(&address, self.connect_timeout)
                    .map_err(|error| RpcError::new(ErrorCode::Unavailable, format!("node {}: {error}", node.id)))
            };
            inner.channels = Some([connect()?, connect()?]);
        }
        let turn = node.turn.fetch_add(1, Ordering::Relaxed) % CHANNELS;
        let channel = inner.channels.as_ref().map(|channels| channels[turn].clone());
        Ok((channel.expect("made above"), address))
    }
}

impl Node {
    fn new(address: &NodeAddress) -> Self {
        Self {
            id: address.id,
            inner: Mutex::new(Inner {
                address: Arc::from(address.address.as_str()),
                state: address.state,
                failed_at: None,
                channels: None,
            }),
            in_flight: AtomicUsize::new(0),
            latency_us: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, address: &NodeAddress) {
        let mut inner = self.lock();
        inner.state = address.state;
        if *inner.address != *address.address {
            inner.address = Arc::from(address.address.as_str());
            inner.channels = None;
            inner.failed_at = None;
        }
    }

    pub(crate) fn address(&self) -> Arc<str> {
        self.lock().address.clone()
    }

    pub(crate) fn failed_lately(&self) -> bool {
        self.lock().failed_at.is_some_and(|when| when.elapsed() < AVOID_FOR)
    }

    /// It was asked this long ago and another replica has answered since.
    pub(crate) fn overtaken(&self, silent: Duration) {
        let us = u64::try_from(silent.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.fetch_max(us, Ordering::Relaxed);
        if silent >= HUNG_AFTER {
            self.lock().failed_at = Some(Instant::now());
        }
    }

    pub(crate) fn succeeded(&self) {
        self.lock().failed_at = None;
    }

    pub(crate) fn start(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { node: self.clone(), started: Instant::now() }
    }
}

impl InFlight {
    /// The call has succeeded; gives how long it took.
    pub(crate) fn done(self) -> Duration {
        let took = self.started.elapsed();
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = self.node.latency_us.load(Ordering::Relaxed);
        // Lost updates between two threads are harmless: it is a guide.
        let average = if before == 0 { us } else { before - (before >> EWMA_SHIFT) + (us >> EWMA_SHIFT) };
        self.node.latency_us.store(average, Ordering::Relaxed);
        if self.node.failed_lately() {
            self.node.succeeded();
        }
        took
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.node.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(id: u32, host: &str, state: NodeState) -> NodeAddress {
        NodeAddress { id: NodeId(id), address: format!("{host}:4000"), name: String::new(), state }
    }

    #[test]
    fn local_first_then_least_loaded_and_suspects_last() {
        let nodes = Nodes::new(Duration::from_secs(1), Some("here".into()));
        nodes.learn(vec![
            address(1, "there", NodeState::Suspect),
            address(2, "there", NodeState::Alive),
            address(3, "yonder", NodeState::Alive),
            address(4, "here", NodeState::Alive),
        ]);
        let get = |id| nodes.get(NodeId(id)).expect("learned");
        let _busy = get(2).start();
        let mut order = vec![1, 2, 3, 4];
        order.sort_by_key(|id| nodes.score(&get(*id)));
        assert_eq!(order, [4, 3, 2, 1]);
        nodes.failed(NodeId(4));
        order.sort_by_key(|id| nodes.score(&get(*id)));
        assert_eq!(order[..2], [3, 2]);
        assert_eq!(nodes.avoid(), [NodeId(4)]);
        nodes.forgive();
        assert!(nodes.avoid().is_empty());
    }
}
