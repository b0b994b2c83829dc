//! Storage nodes as the leader sees them: registration, placement, repair, garbage.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use dfs_common::{ChunkId, ErrorCode, FileId};
use dfs_proto::{
    WIRE_VERSION,
    convert::{chunk_id, id_bytes},
    v1::{self, metadata_service_client::MetadataServiceClient},
};
use tonic::transport::Channel;

use super::cluster::{Client, Cluster, code, quick, unlink};

const CAPACITY: u64 = 1 << 30;

/// A storage node without a disk.
struct Storage {
    meta: MetadataServiceClient<Channel>,
    number: u8,
    id: u32,
    incarnation: u64,
    held: BTreeSet<ChunkId>,
    deleted: Vec<Bytes>,
    page: Option<v1::InventoryPage>,
    /// Jobs are taken and never answered.
    loses_jobs: bool,
    jobs: Vec<v1::RepairJob>,
}

impl Storage {
    async fn start(cluster: &Cluster, number: u8) -> Self {
        let mut node = Self {
            meta: cluster.meta(),
            number,
            id: 0,
            incarnation: 1,
            held: BTreeSet::new(),
            deleted: vec![],
            page: None,
            loses_jobs: false,
            jobs: vec![],
        };
        node.register().await;
        node
    }

    async fn register(&mut self) {
        let request = v1::RegisterNodeRequest {
            node_uuid: vec![self.number; 16].into(),
            name: format!("storage-{}", self.number),
            address: format!("127.0.0.1:{}", 5000 + u16::from(self.number)),
            capacity_bytes: CAPACITY,
            incarnation: self.incarnation,
            wire_version: WIRE_VERSION,
            ..Default::default()
        };
        self.id = self.meta.register_node(request).await.expect("registers").into_inner().node_id;
    }

    fn held_chunk(chunk: &ChunkId) -> v1::HeldChunk {
        v1::HeldChunk { chunk_id: id_bytes(chunk.as_bytes()), file_id: vec![7; 16].into(), length: 100 }
    }

    /// Reports and does what it is told.
    async fn beat(&mut self) -> v1::HeartbeatResponse {
        let request = v1::HeartbeatRequest {
            node_id: self.id,
            incarnation: self.incarnation,
            capacity_bytes: CAPACITY,
            deleted: std::mem::take(&mut self.deleted),
            inventory: self.page.take(),
            inventory_seq: 9,
            ..Default::default()
        };
        let answer = self.meta.heartbeat(request).await.expect("answers").into_inner();
        for id in &answer.delete {
            self.held.remove(&chunk_id(id).expect("a chunk id"));
            self.deleted.push(id.clone());
        }
        self.jobs.extend(answer.repair.clone());
        if let Some(asked) = &answer.inventory {
            let after = chunk_id(&asked.after).ok();
            let rest: Vec<_> = self.held.iter().filter(|c| after.is_none_or(|a| **c > a)).collect();
            let chunks = rest.iter().take(asked.limit as usize).map(|c| Self::held_chunk(c)).collect();
            let last = rest.len() <= asked.limit as usize;
            self.page = Some(v1::InventoryPage { after: asked.after.clone(), chunks, last, run: asked.run });
        }
        answer
    }
}

/// Four nodes, or fewer, that all report.
struct Nodes(Vec<Storage>);

impl Nodes {
    async fn start(cluster: &Cluster, count: u8) -> Self {
        let mut nodes = vec![];
        for number in 1..=count {
            nodes.push(Storage::start(cluster, number).await);
        }
        let mut nodes = Self(nodes);
        // Registration asks for an inventory, of disks that are empty.
        nodes.round(&[]).await;
        nodes.round(&[]).await;
        nodes
    }

    /// One heartbeat of each node but the `silent` ones; repair jobs are done at once.
    async fn round(&mut self, silent: &[u32]) {
        for i in 0..self.0.len() {
            if silent.contains(&self.0[i].id) {
                continue;
            }
            let answer = self.0[i].beat().await;
            assert!(!answer.register_again);
            assert_eq!(answer.acked_seq, 9);
            if self.0[i].loses_jobs {
                continue;
            }
            for job in answer.repair {
                let chunk = chunk_id(&job.chunk_id).expect("a chunk id");
                assert!(self.0[i].held.contains(&chunk), "only a holder is told to send");
                let source = self.0[i].id;
                self.node(job.target).held.insert(chunk);
                let result = v1::ReportRepairResultRequest {
                    job_id: job.job_id,
                    node_id: source,
                    chunk_id: job.chunk_id,
                    target: job.target,
                    ok: true,
                    ..Default::default()
                };
                self.0[i].meta.report_repair_result(result).await.expect("is taken");
            }
        }
    }

    fn node(&mut self, id: u32) -> &mut Storage {
        self.0.iter_mut().find(|node| node.id == id).expect("a node")
    }

    /// Rounds until `done` says so.
    async fn until(&mut self, cluster: &Cluster, silent: &[u32], done: impl Fn(&v1::ClusterStatusResponse) -> bool) {
        for _ in 0..300 {
            if done(&cluster.status().await) {
                return;
            }
            self.round(silent).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never: {:?}", cluster.status().await);
    }

    /// Publishes a file of one chunk on the first `copies` nodes.
    async fn store(&mut self, client: &mut Client, name: &str, copies: usize) -> (FileId, ChunkId) {
        let file = client.create(name).await;
        let chunk = ChunkId::derive(file, 0, 0);
        let holders: Vec<u32> = self.0.iter_mut().take(copies).map(|node| node.id).collect();
        for id in &holders {
            self.node(*id).held.insert(chunk);
        }
        client.commit(file, chunk, &holders).await;
        (file, chunk)
    }
}

fn full(count: u64) -> impl Fn(&v1::ClusterStatusResponse) -> bool {
    move |status| status.chunks.is_some_and(|chunks| chunks.full == count && chunks.total == count)
}

#[tokio::test]
async fn placements_name_live_nodes() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let ask = v1::AllocateChunksRequest { session_id: client.session, count: 8, ..Default::default() };
    assert_eq!(code(client.meta.allocate_chunks(ask.clone()).await), ErrorCode::NotEnoughNodes);
    let mut nodes = Nodes::start(&cluster, 4).await;
    let answer = client.meta.allocate_chunks(ask.clone()).await.expect("four nodes").into_inner();
    assert_eq!((answer.placements.len(), answer.nodes.len()), (8, 4));
    assert!(answer.placements.iter().all(|p| p.nodes.iter().collect::<BTreeSet<_>>().len() == 3));
    let first = nodes.0[0].id;
    nodes
        .until(&cluster, &[first], |status| status.nodes.iter().any(|n| n.state == v1::NodeState::Suspect as i32))
        .await;
    let answer = client.meta.allocate_chunks(ask.clone()).await.expect("three nodes").into_inner();
    assert!(answer.placements.iter().all(|p| !p.nodes.contains(&first)));
    let room = client.meta.stat_fs(v1::StatFsRequest {}).await.expect("answers").into_inner();
    assert_eq!((room.capacity_bytes, room.replication), (4 * CAPACITY, 3));
    let nobody = v1::AllocateChunksRequest { session_id: 999, ..ask };
    assert_eq!(code(client.meta.allocate_chunks(nobody).await), ErrorCode::SessionExpired);
    cluster.stop().await;
}

#[tokio::test]
async fn an_unknown_run_of_a_node_registers_again_and_another_cluster_is_refused() {
    let cluster = Cluster::start(quick()).await;
    let mut nodes = Nodes::start(&cluster, 1).await;
    let node = &mut nodes.0[0];
    node.incarnation = 2;
    assert!(node.beat().await.register_again);
    node.register().await;
    assert!(!node.beat().await.register_again);
    let mut request = v1::RegisterNodeRequest {
        node_uuid: vec![9; 16].into(),
        cluster_id: vec![1; 16].into(),
        name: "x".into(),
        address: "h:1".into(),
        wire_version: WIRE_VERSION,
        ..Default::default()
    };
    assert_eq!(code(node.meta.register_node(request.clone()).await), ErrorCode::WrongCluster);
    request.wire_version = WIRE_VERSION + 2;
    request.cluster_id = Bytes::new();
    assert_eq!(code(node.meta.register_node(request).await), ErrorCode::Incompatible);
    cluster.stop().await;
}

#[tokio::test]
async fn a_missing_copy_and_the_copies_of_a_dead_node_are_replaced() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 4).await;
    for n in 0..10 {
        nodes.store(&mut client, &format!("f{n}"), 2).await;
    }
    nodes.until(&cluster, &[], full(10)).await;
    let first = nodes.0[0].id;
    nodes.until(&cluster, &[first], |status| status.chunks.is_some_and(|chunks| chunks.under_replicated > 0)).await;
    nodes.until(&cluster, &[first], full(10)).await;
    let dead = cluster.status().await.nodes[0].state;
    assert_eq!(dead, v1::NodeState::Dead as i32);
    nodes.until(&cluster, &[], |status| status.nodes[0].state == v1::NodeState::Alive as i32).await;
    // Now there are copies too many: those of the node that was away go.
    for _ in 0..300 {
        nodes.round(&[]).await;
        if nodes.0.iter().map(|node| node.held.len()).sum::<usize>() == 30 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(nodes.0.iter().map(|node| node.held.len()).sum::<usize>(), 30);
    assert!(full(10)(&cluster.status().await));
    cluster.stop().await;
}

#[tokio::test]
async fn a_lost_job_is_given_out_again() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 3).await;
    nodes.0.iter_mut().for_each(|node| node.loses_jobs = true);
    nodes.store(&mut client, "f", 2).await;
    for _ in 0..300 {
        nodes.round(&[]).await;
        if nodes.0.iter().map(|node| node.jobs.len()).sum::<usize>() >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let jobs: Vec<u64> = nodes.0.iter().flat_map(|node| &node.jobs).map(|job| job.job_id).collect();
    assert!(jobs.len() >= 2 && jobs.iter().collect::<BTreeSet<_>>().len() == jobs.len(), "{jobs:?}");
    nodes.0.iter_mut().for_each(|node| node.loses_jobs = false);
    nodes.until(&cluster, &[], full(1)).await;
    cluster.stop().await;
}

#[tokio::test]
async fn removed_files_are_deleted_unless_somebody_reads_them() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 3).await;
    let (kept, kept_chunk) = nodes.store(&mut client, "kept", 3).await;
    nodes.store(&mut client, "gone", 3).await;
    client.renew(true, &[kept], &[]).await;
    client.mutate(unlink("kept")).await.expect("is there");
    client.mutate(unlink("gone")).await.expect("is there");
    nodes.until(&cluster, &[], |status| status.garbage_chunks == 1).await;
    for _ in 0..20 {
        nodes.round(&[]).await;
    }
    assert!(nodes.0.iter().all(|node| node.held == BTreeSet::from([kept_chunk])));
    client.renew(false, &[], &[kept]).await;
    nodes.until(&cluster, &[], |status| status.garbage_chunks == 0).await;
    for _ in 0..3 {
        nodes.round(&[]).await;
    }
    assert!(nodes.0.iter().all(|node| node.held.is_empty()));
    assert!(nodes.0[0].beat().await.delete.is_empty(), "what is confirmed is not asked for again");
    cluster.stop().await;
}

#[tokio::test]
async fn a_bad_copy_is_replaced_but_the_last_one_is_kept() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 3).await;
    let (_, chunk) = nodes.store(&mut client, "f", 3).await;
    let ids: Vec<u32> = nodes.0.iter().map(|node| node.id).collect();
    let report = |node_id| v1::ReportCorruptionRequest {
        chunk_id: id_bytes(chunk.as_bytes()),
        node_id,
        reason: "test\n".into(),
        missing: false,
    };
    let locate = v1::GetChunkLocationsRequest { chunk_ids: vec![id_bytes(chunk.as_bytes())] };
    client.meta.report_corruption(report(ids[0])).await.expect("is taken");
    let found = client.meta.get_chunk_locations(locate.clone()).await.expect("answers").into_inner();
    assert_eq!(found.chunks[0].replicas, ids[1..]);
    // The bad copy is deleted first, then replaced.
    nodes.until(&cluster, &[], full(1)).await;
    for id in &ids {
        client.meta.report_corruption(report(*id)).await.expect("is taken");
    }
    let found = client.meta.get_chunk_locations(locate).await.expect("answers").into_inner();
    assert_eq!(found.chunks[0].replicas, ids[2..], "the last one");
    cluster.stop().await;
}

#[tokio::test]
async fn the_inventory_corrects_the_record_and_unknown_chunks_are_deleted() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 3).await;
    let (_, chunk) = nodes.store(&mut client, "f", 3).await;
    let stray = ChunkId([0xee; 32]);
    let node = &mut nodes.0[2];
    node.held.clear();
    node.held.insert(stray);
    node.incarnation = 5;
    node.register().await;
    nodes.until(&cluster, &[], |status| status.chunks.is_some_and(|chunks| chunks.under_replicated == 1)).await;
    nodes.until(&cluster, &[], full(1)).await;
    for _ in 0..300 {
        nodes.round(&[]).await;
        if !nodes.0[2].held.contains(&stray) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(nodes.0[2].held, BTreeSet::from([chunk]));
    cluster.stop().await;
}
