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
    used_bytes: u64,
    held: BTreeSet<ChunkId>,
    deleted: Vec<Bytes>,
    page: Option<v1::InventoryPage>,
    /// Copies that were read for the leader.
    confirmed: Vec<Bytes>,
    /// How many copies the leader asked to read.
    asked: usize,
    /// Copies that are bad, which it finds out when it reads them.
    bad: BTreeSet<ChunkId>,
    /// Bad copies that it has set aside.
    quarantined: Vec<v1::QuarantinedCopy>,
    /// Copies that it was asked to read and does not have, if it tells of them.
    removed: Vec<Bytes>,
    tells_missing: bool,
    notices: Vec<v1::DiskNotice>,
    scrub_order: u64,
    /// Jobs are taken and never answered.
    loses_jobs: bool,
    jobs: Vec<v1::RepairJob>,
}

impl Storage {
    fn new(cluster: &Cluster, number: u8) -> Self {
        Self {
            meta: cluster.meta(),
            number,
            id: 0,
            incarnation: 1,
            used_bytes: 0,
            held: BTreeSet::new(),
            deleted: vec![],
            page: None,
            confirmed: vec![],
            asked: 0,
            bad: BTreeSet::new(),
            quarantined: vec![],
            removed: vec![],
            tells_missing: false,
            notices: vec![],
            scrub_order: 0,
            loses_jobs: false,
            jobs: vec![],
        }
    }

    async fn start(cluster: &Cluster, number: u8) -> Self {
        let mut node = Self::new(cluster, number);
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

    fn disk(&self) -> v1::DiskReport {
        let scrub = v1::ScrubReport { state: v1::ScrubState::Waiting.into(), ..Default::default() };
        let path = format!("/disk-{}", self.number);
        v1::DiskReport { disk_id: vec![self.number; 16].into(), path, scrub: Some(scrub), ..Default::default() }
    }

    /// Reads a copy in full for the leader.
    fn read(&mut self, id: &Bytes) {
        let chunk = chunk_id(id).expect("a chunk id");
        if !self.held.contains(&chunk) {
            self.removed.extend(self.tells_missing.then(|| id.clone()));
        } else if self.bad.remove(&chunk) {
            self.held.remove(&chunk);
            let (reason, disk) = ("block 3 does not match".into(), format!("/disk-{}", self.number));
            self.quarantined.push(v1::QuarantinedCopy { chunk_id: id.clone(), reason, disk, ..Default::default() });
        } else {
            self.confirmed.push(id.clone());
        }
    }

    /// Reports and does what it is told.
    async fn beat(&mut self) -> v1::HeartbeatResponse {
        let request = v1::HeartbeatRequest {
            node_id: self.id,
            incarnation: self.incarnation,
            capacity_bytes: CAPACITY,
            used_bytes: self.used_bytes,
            deleted: std::mem::take(&mut self.deleted),
            inventory: self.page.take(),
            inventory_seq: 9,
            confirmed: std::mem::take(&mut self.confirmed),
            quarantined: std::mem::take(&mut self.quarantined),
            removed: std::mem::take(&mut self.removed),
            notices: std::mem::take(&mut self.notices),
            scrub_order: self.scrub_order,
            disks: vec![self.disk()],
            ..Default::default()
        };
        let answer = self.meta.heartbeat(request).await.expect("answers").into_inner();
        for id in &answer.delete {
            self.held.remove(&chunk_id(id).expect("a chunk id"));
            self.deleted.push(id.clone());
        }
        self.jobs.extend(answer.repair.clone());
        self.asked += answer.confirm.len();
        self.scrub_order = answer.scrub.map_or(self.scrub_order, |order| order.number);
        answer.confirm.iter().for_each(|id| self.read(id));
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
                    node_id: source,
                    outcomes: vec![v1::RepairOutcome {
                        job_id: job.job_id,
                        chunk_id: job.chunk_id,
                        target: job.target,
                        ..Default::default()
                    }],
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

/// Waits for an event of one kind, and returns the texts of all.
async fn events(cluster: &Cluster, kind: &str) -> Vec<String> {
    let mut ask = v1::ListEventsRequest { wait_ms: 1000, kinds: vec![kind.to_owned()], ..Default::default() };
    for _ in 0..20 {
        let answer = cluster.admin().list_events(ask.clone()).await.expect("answers").into_inner();
        if !answer.events.is_empty() {
            return answer.events.into_iter().map(|event| event.text).collect();
        }
        ask.after = answer.next;
    }
    panic!("never an event of the kind {kind}");
}

#[tokio::test]
async fn a_node_that_is_nearly_full_is_in_the_event_log_once() {
    let cluster = Cluster::start(quick()).await;
    let mut node = Storage::start(&cluster, 1).await;
    for used_bytes in [CAPACITY / 2, CAPACITY / 100 * 95, CAPACITY / 100 * 88, CAPACITY] {
        node.used_bytes = used_bytes;
        node.beat().await;
    }
    let texts = events(&cluster, "space-low").await;
    assert!(texts.len() == 1 && texts[0].starts_with("storage-1 is nearly full"), "{texts:?}");
    node.used_bytes = 0;
    node.beat().await;
    node.beat().await;
    assert_eq!(events(&cluster, "space-recovered").await.len(), 1);
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_that_comes_and_goes_is_in_the_event_log() {
    let cluster = Cluster::start(quick()).await;
    let mut node = Storage::start(&cluster, 1).await;
    for _ in 0..8 {
        node.beat().await;
        let left = v1::DeregisterNodeRequest { node_id: node.id, incarnation: node.incarnation };
        node.meta.deregister_node(left).await.expect("is taken");
        cluster.until_node(node.id, v1::NodeState::Suspect).await;
        node.incarnation += 1;
        node.register().await;
    }
    let texts = events(&cluster, "node-flapping").await;
    assert!(texts[0].starts_with("storage-1 came and went"), "{texts:?}");
    cluster.stop().await;
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
async fn a_copy_that_is_lost_before_it_is_looked_up_again_is_not_recorded_then() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 3).await;
    let file = client.create("f").await;
    let chunk = ChunkId::derive(file, 0, 0);
    // Reported before a file lists it: it is looked up again in a second.
    let first = &mut nodes.0[0];
    let report = v1::HeartbeatRequest {
        node_id: first.id,
        incarnation: first.incarnation,
        capacity_bytes: CAPACITY,
        added: vec![Storage::held_chunk(&chunk)],
        inventory_seq: 8,
        ..Default::default()
    };
    first.meta.heartbeat(report).await.expect("is taken");
    let holders: Vec<u32> = nodes.0.iter().map(|node| node.id).collect();
    client.commit(file, chunk, &holders).await;
    assert!(full(1)(&cluster.status().await));
    // Its node starts again, without the copy, and nobody makes another one.
    for node in &mut nodes.0 {
        node.loses_jobs = true;
    }
    nodes.0[1].held.insert(chunk);
    nodes.0[2].held.insert(chunk);
    nodes.0[0].incarnation = 2;
    nodes.0[0].register().await;
    let lacks_one = |status: &v1::ClusterStatusResponse| status.chunks.is_some_and(|c| c.full == 0 && c.total == 1);
    nodes.until(&cluster, &[], lacks_one).await;
    for _ in 0..75 {
        nodes.round(&[]).await;
        assert!(lacks_one(&cluster.status().await), "a copy is recorded that is not there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
    // Its copies may be replaced within the same round in which it is found dead.
    nodes.until(&cluster, &[first], |status| status.nodes[0].state == v1::NodeState::Dead as i32).await;
    nodes.until(&cluster, &[first], full(10)).await;
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
    assert!(nodes.0.iter().map(|node| node.asked).sum::<usize>() >= 30, "three others of each were read before");
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

fn corruption(chunk: ChunkId, node_id: u32, missing: bool) -> v1::ReportCorruptionRequest {
    v1::ReportCorruptionRequest { chunk_id: id_bytes(chunk.as_bytes()), node_id, reason: "test\n".into(), missing }
}

#[tokio::test]
async fn a_report_of_a_bad_copy_is_believed_only_when_its_node_confirms_it() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 3).await;
    let (_, chunk) = nodes.store(&mut client, "f", 3).await;
    let ids: Vec<u32> = nodes.0.iter().map(|node| node.id).collect();
    let locate = v1::GetChunkLocationsRequest { chunk_ids: vec![id_bytes(chunk.as_bytes())] };
    // A liar, or a bad cable: nothing comes of it.
    for id in &ids {
        client.meta.report_corruption(corruption(chunk, *id, false)).await.expect("is taken");
        client.meta.report_corruption(corruption(chunk, *id, true)).await.expect("is taken");
    }
    for _ in 0..3 {
        nodes.round(&[]).await;
        let found = client.meta.get_chunk_locations(locate.clone()).await.expect("answers").into_inner();
        assert_eq!(found.chunks[0].replicas, ids);
    }
    assert_eq!(nodes.0.iter().map(|node| node.asked).sum::<usize>(), 3, "asked until they answered, once each");
    // It is bad: out of the record, replaced, and told.
    nodes.0[0].bad.insert(chunk);
    client.meta.report_corruption(corruption(chunk, ids[0], false)).await.expect("is taken");
    nodes.0[0].beat().await;
    nodes.0[0].beat().await;
    let found = client.meta.get_chunk_locations(locate.clone()).await.expect("answers").into_inner();
    assert_eq!(found.chunks[0].replicas, ids[1..]);
    nodes.until(&cluster, &[], full(1)).await;
    for _ in 0..100 {
        if !events(&cluster, "copy-quarantined").await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (corrupt, aside) = (events(&cluster, "copy-corrupt").await, events(&cluster, "copy-quarantined").await);
    assert!(corrupt.len() == 1 && corrupt[0].contains("block 3"), "{corrupt:?}");
    assert!(aside.len() == 1 && aside[0].contains("/disk-1"), "{aside:?}");
    // It is gone altogether.
    nodes.0[1].held.clear();
    nodes.0[1].tells_missing = true;
    client.meta.report_corruption(corruption(chunk, ids[1], true)).await.expect("is taken");
    nodes.0[1].beat().await;
    nodes.0[1].beat().await;
    let found = client.meta.get_chunk_locations(locate).await.expect("answers").into_inner();
    assert!(!found.chunks[0].replicas.contains(&ids[1]));
    nodes.until(&cluster, &[], full(1)).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_chunk_whose_copies_are_all_bad_is_missing_and_stays_on_record() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 3).await;
    let (_, chunk) = nodes.store(&mut client, "f", 3).await;
    for at in 0..3 {
        nodes.0[at].bad.insert(chunk);
        let report = corruption(chunk, nodes.0[at].id, false);
        client.meta.report_corruption(report).await.expect("is taken");
        // Before repair copies a bad one, which a real node refuses.
        nodes.0[at].loses_jobs = true;
    }
    nodes.until(&cluster, &[], |status| status.chunks.is_some_and(|chunks| chunks.missing == 1)).await;
    let locate = v1::GetChunkLocationsRequest { chunk_ids: vec![id_bytes(chunk.as_bytes())] };
    let found = client.meta.get_chunk_locations(locate).await.expect("answers").into_inner();
    assert_eq!((found.chunks.len(), found.chunks[0].replicas.len()), (1, 0));
    assert!(nodes.0.iter().all(|node| node.deleted.is_empty()), "nothing is deleted");
    cluster.stop().await;
}

#[tokio::test]
async fn orders_about_scrubs_ride_on_heartbeats_and_passes_are_told() {
    let cluster = Cluster::start(quick()).await;
    let mut admin = cluster.admin();
    let mut nodes = Nodes::start(&cluster, 2).await;
    let verb = v1::ScrubVerb::Start.into();
    let unknown = v1::OrderScrubRequest { verb, node_ids: vec![99] };
    assert_eq!(code(admin.order_scrub(unknown).await), ErrorCode::NotFound);
    assert_eq!(code(admin.order_scrub(v1::OrderScrubRequest::default()).await), ErrorCode::InvalidArgument);
    let second = nodes.0[1].id;
    let one = v1::OrderScrubRequest { verb, node_ids: vec![second] };
    let given = admin.order_scrub(one).await.expect("is taken").into_inner();
    assert_eq!(given.node_ids, [second]);
    assert!(nodes.0[0].beat().await.scrub.is_none());
    let order = nodes.0[1].beat().await.scrub.expect("told");
    assert_eq!((order.number, order.verb), (given.number, verb));
    assert!(nodes.0[1].beat().await.scrub.is_none(), "it has taken it");
    let pass = v1::ScrubPass { started_ns: 1, ended_ns: 7_000_000_001, chunks: 5, bytes: 6, bad: 1 };
    let what = Some(v1::disk_notice::What::Pass(pass));
    let notice = v1::DiskNotice { disk_id: vec![2; 16].into(), disk: "/disk-2".into(), what };
    for _ in 0..2 {
        nodes.0[1].notices.push(notice.clone());
        nodes.0[1].beat().await;
    }
    let status = admin.scrub_status(v1::ScrubStatusRequest {}).await.expect("answers").into_inner();
    let node = status.nodes.iter().find(|node| node.node_id == second).expect("listed");
    assert_eq!((node.order_taken, node.disks.len()), (given.number, 1));
    for _ in 0..100 {
        if !events(&cluster, "scrub-pass").await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let passes = events(&cluster, "scrub-pass").await;
    assert_eq!(passes.len(), 1, "the notice came twice: {passes:?}");
    assert!(passes[0].contains("in 7 s, 1 bad"), "{passes:?}");
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

#[tokio::test]
async fn a_copy_too_many_stays_while_the_others_are_not_confirmed() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 4).await;
    let (_, chunk) = nodes.store(&mut client, "f", 4).await;
    // The record says that it is there.
    let second = nodes.0[1].id;
    nodes.node(second).held.clear();
    for _ in 0..30 {
        nodes.round(&[]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(nodes.0.iter().map(|node| node.asked).sum::<usize>() > 3, "asked again and again");
    assert_eq!(nodes.0.iter().filter(|node| node.held.contains(&chunk)).count(), 3, "none was deleted");
    let status = cluster.status().await.repair.expect("told");
    assert_eq!((status.over_replicated, status.trimming), (1, 1));
    cluster.stop().await;
}

#[tokio::test]
async fn a_wiped_disk_under_the_same_name_is_noticed_at_once() {
    let mut settings = quick();
    (settings.suspect, settings.dead) = (Duration::from_secs(60), Duration::from_secs(120));
    let cluster = Cluster::start(settings).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut nodes = Nodes::start(&cluster, 4).await;
    nodes.store(&mut client, "f", 3).await;
    let first = nodes.0[0].id;
    let address = format!("127.0.0.1:{}", 5000 + u16::from(nodes.0[0].number));
    let request = v1::RegisterNodeRequest {
        node_uuid: vec![77; 16].into(),
        name: "storage-1".into(),
        address,
        capacity_bytes: CAPACITY,
        incarnation: 8,
        wire_version: WIRE_VERSION,
        ..Default::default()
    };
    assert_eq!(code(client.meta.register_node(request.clone()).await), ErrorCode::AlreadyExists);
    for _ in 0..5 {
        nodes.round(&[]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(client.meta.register_node(request.clone()).await.is_err(), "the first one reports: it is no successor");
    }
    nodes
        .until(&cluster, &[first], |status| status.nodes.iter().any(|n| n.state == v1::NodeState::Suspect as i32))
        .await;
    let id = client.meta.register_node(request).await.expect("the first one is silent").into_inner().node_id;
    assert_ne!(id, first);
    nodes.0.push(Storage { id, incarnation: 8, ..Storage::new(&cluster, 77) });
    let status = cluster.status().await;
    assert!(status.nodes.iter().any(|n| n.node_id == first && n.state == v1::NodeState::Dead as i32));
    nodes.until(&cluster, &[first], full(1)).await;
    cluster.stop().await;
}

#[tokio::test]
async fn the_administrator_sees_and_steers_repair() {
    let cluster = Cluster::start(quick()).await;
    let mut client = Client::open(&cluster, 1).await;
    let mut admin = cluster.admin();
    let mut nodes = Nodes::start(&cluster, 2).await;
    let (_, chunk) = nodes.store(&mut client, "f", 2).await;
    let page = v1::RepairQueueRequest { limit: 10, ..Default::default() };
    let answer = admin.repair_queue(page.clone()).await.expect("answers").into_inner();
    assert_eq!((answer.chunks.len(), answer.total, answer.end), (1, 1, true));
    let waits = |answer: &v1::RepairQueueResponse| answer.chunks[0].wait();
    assert!(matches!(waits(&answer), v1::RepairWait::Fresh | v1::RepairWait::NoTarget));
    let now = v1::RepairNowRequest { chunk_ids: vec![id_bytes(chunk.as_bytes())] };
    let answer = admin.repair_now(now.clone()).await.expect("answers").into_inner();
    assert_eq!(answer.chunks[0].wait(), v1::RepairWait::NoTarget, "there is no third node");

    let limits = v1::SetRepairLimitsRequest { bytes_per_s: Some(1), ..Default::default() };
    let set = admin.set_repair_limits(limits).await.expect("sane").into_inner().limits.expect("told");
    assert_eq!((set.streams_per_node, set.bytes_per_s), (4, 1));
    let nonsense = v1::SetRepairLimitsRequest { streams_per_node: Some(0), ..Default::default() };
    assert_eq!(code(admin.set_repair_limits(nonsense).await), ErrorCode::InvalidArgument);
    nodes.0.push(Storage::start(&cluster, 3).await);
    nodes.0.iter_mut().for_each(|node| node.loses_jobs = true);
    let status =
        admin.repair_status(v1::RepairStatusRequest { failures_limit: 9 }).await.expect("answers").into_inner();
    let progress = status.progress.expect("told");
    assert_eq!((progress.lacking_copies, progress.lacking_bytes), (1, 100));
    let free = v1::SetRepairLimitsRequest { bytes_per_s: Some(0), ..Default::default() };
    admin.set_repair_limits(free).await.expect("sane");
    let answer = admin.repair_now(now).await.expect("answers").into_inner();
    assert_eq!((answer.chunks[0].wait(), answer.chunks[0].target), (v1::RepairWait::InWork, nodes.0[2].id));
    // The job fails, and the cause is kept.
    while nodes.0.iter().all(|node| node.jobs.is_empty()) {
        nodes.round(&[]).await;
    }
    let source = nodes.0.iter_mut().find(|node| !node.jobs.is_empty()).expect("waited for");
    let job = source.jobs.remove(0);
    let outcome = v1::RepairOutcome {
        job_id: job.job_id,
        chunk_id: job.chunk_id,
        target: job.target,
        code: ErrorCode::NoSpace as u32,
        message: "the disk of storage-3 is full".into(),
    };
    let report = v1::ReportRepairResultRequest { node_id: source.id, outcomes: vec![outcome] };
    client.meta.report_repair_result(report).await.expect("is taken");
    let status =
        admin.repair_status(v1::RepairStatusRequest { failures_limit: 9 }).await.expect("answers").into_inner();
    assert!(status.failures.iter().any(|f| f.message.contains("is full")), "{:?}", status.failures);
    let answer = admin.repair_queue(page).await.expect("answers").into_inner();
    assert!(answer.chunks[0].failure.is_some(), "{answer:?}");
    nodes.0.iter_mut().for_each(|node| node.loses_jobs = false);
    admin.repair_now(v1::RepairNowRequest::default()).await.expect("answers");
    nodes.until(&cluster, &[], full(1)).await;
    cluster.stop().await;
}
