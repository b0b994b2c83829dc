//! Empties the quarantines: what is older than it needs to be, and the oldest of what is more than there is room for.
//!
//! A bad copy may be the best that is left of a chunk: three of them, bad in different places, can be made a good one by hand.
//! So before one is removed metadata is asked who has the chunk, and a node that should have it is asked to read it in full: the bad
//! copy goes only if nothing references the chunk any more, or a good one was just read. One that must stay stays, over every
//! limit.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use dfs_common::{ChunkId, node::NodeState};
use dfs_proto::{
    convert::{self, NodeAddress, id_bytes},
    status::RpcError,
    v1::{self, storage_service_client::StorageServiceClient},
};
use tokio::time::{sleep, timeout};

use crate::{
    disks::Disk,
    engine::{disk::DiskEngine, quarantine::SetAside},
    meta_client::MetaClient,
    node::Node,
};

/// Time between two rounds. Nothing is late by minutes where days are kept.
const EVERY: Duration = Duration::from_secs(600);
/// Copies looked at in one round: for each another one is read.
const ROUND_MAX: usize = 128;
/// How long metadata, or another node, is asked.
const ASK_FOR: Duration = Duration::from_secs(10);

/// How much is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// For so long.
    pub keep: Duration,
    /// At most so many bytes on each disk.
    pub bytes: u64,
}

/// Starts the worker; it ends with the node.
pub fn start(node: &Arc<Node>, meta: &Arc<MetaClient>, limits: Limits) {
    let (node, meta) = (node.clone(), meta.clone());
    node.tasks.clone().spawn(async move {
        node.stop.clone().run_until_cancelled(work(&node, &meta, limits)).await;
    });
}

async fn work(node: &Arc<Node>, meta: &MetaClient, limits: Limits) {
    loop {
        for disk in node.disks.iter().filter(|disk| disk.failure().is_none()) {
            if let Err(error) = empty(node, meta, disk, limits).await {
                tracing::info!(disk = %disk.path().display(), %error, "the quarantine is not emptied now");
            }
        }
        tokio::select! {
            () = sleep(EVERY) => {}
            () = node.quarantined.notified() => {}
        }
    }
}

async fn empty(node: &Arc<Node>, meta: &MetaClient, disk: &Arc<Disk>, limits: Limits) -> Result<(), RpcError> {
    let (holder, now) = (disk.clone(), SystemTime::now());
    let listed = node.disk.run(move || holder.with(DiskEngine::quarantined)).await?;
    let kept = listed.map_err(|error| RpcError::new(error.code(), error.to_string()))?;
    let mut excess = superfluous(kept, limits, now);
    excess.truncate(ROUND_MAX);
    if excess.is_empty() {
        return Ok(());
    }
    let needed = needed(node, meta, excess.iter().map(|copy| copy.id).collect()).await?;
    let holder = disk.clone();
    node.disk
        .run(move || {
            for copy in excess.iter().filter(|copy| !needed.contains(&copy.id)) {
                match holder.with(|engine| engine.remove_quarantined(copy)) {
                    Ok(()) => tracing::info!(chunk = %copy.id, "a bad copy has left the quarantine"),
                    Err(error) => tracing::warn!(chunk = %copy.id, %error, "a bad copy stays in quarantine"),
                }
            }
        })
        .await
}

/// What is too old, and the oldest of what is too much. `kept` has the oldest first.
fn superfluous(kept: Vec<SetAside>, limits: Limits, now: SystemTime) -> Vec<SetAside> {
    let mut bytes: u64 = kept.iter().map(|copy| copy.bytes).sum();
    let mut excess = Vec::new();
    for copy in kept {
        let is_old = now.duration_since(copy.at).is_ok_and(|age| age >= limits.keep);
        if is_old || bytes > limits.bytes {
            bytes -= copy.bytes;
            excess.push(copy);
        }
    }
    excess
}

/// Those of the chunks that something references and of which no good copy is found. The record is no proof: the other copies may
/// be as bad and nobody has noticed yet. So one of them is read in full, where it is, now.
async fn needed(node: &Node, meta: &MetaClient, ids: Vec<ChunkId>) -> Result<HashSet<ChunkId>, RpcError> {
    let cluster = node.member()?.cluster;
    let request = v1::GetChunkLocationsRequest { chunk_ids: ids.iter().map(|id| id_bytes(id.as_bytes())).collect() };
    let answer = meta
        .call(ASK_FOR, |mut client| {
            let request = request.clone();
            async move { client.get_chunk_locations(request).await }
        })
        .await?;
    let nodes = answer.nodes.into_iter().map(NodeAddress::try_from).collect::<Result<Vec<_>, _>>()?;
    let is_live = |node: &&NodeAddress| matches!(node.state, NodeState::Alive | NodeState::Draining);
    let live: HashMap<u32, &NodeAddress> = nodes.iter().filter(is_live).map(|node| (node.id.0, node)).collect();
    let mut needed = HashSet::new();
    for chunk in &answer.chunks {
        let mut good = false;
        for holder in chunk.replicas.iter().filter_map(|id| live.get(id)) {
            let (chunk_id, cluster_id) = (chunk.chunk_id.clone(), id_bytes(cluster.as_bytes()));
            let ask = v1::VerifyChunkRequest { chunk_id, cluster_id, node_id: holder.id.0 };
            good = is_whole(node, &holder.address, ask, &chunk.sha256).await;
            if good {
                break;
            }
        }
        if !good {
            needed.insert(convert::chunk_id(&chunk.chunk_id)?);
        }
    }
    Ok(needed)
}

/// Has a node read its copy in full.
async fn is_whole(node: &Node, address: &str, ask: v1::VerifyChunkRequest, sha256: &[u8]) -> bool {
    let Ok(channel) = node.peers.channel(address) else { return false };
    let mut client = StorageServiceClient::new(channel);
    let answer = timeout(ASK_FOR, client.verify_chunk(ask)).await;
    matches!(answer, Ok(Ok(answer)) if answer.get_ref().sha256 == *sha256)
}
