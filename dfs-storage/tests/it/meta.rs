//! Registration, heartbeats and the work they bring, against a metadata server that does what a test tells it.

use std::time::Duration;

use bytes::Bytes;
use dfs_common::ErrorCode;
use dfs_proto::{
    convert::id_bytes,
    v1::{self, HeartbeatResponse, InventoryRequest, RepairJob},
};
use dfs_storage::{
    data_dir::DataDirError,
    server::{Server, ServerError},
};

use crate::{
    fake_meta::FakeMeta,
    harness::{TestNode, chunk_id, config, content, eventually},
};

/// A node that registers with `meta` as number 1.
async fn registered(meta: &FakeMeta, address: std::net::SocketAddr) -> TestNode {
    meta.with(|state| state.heartbeat_ms = 50);
    let dir = tempfile::tempdir().expect("tmp");
    let server = Server::start(&config(dir.path(), 1, &address.to_string(), &["--rack", "r7"])).await.expect("starts");
    let node = TestNode { id: 1, server, dir };
    eventually("beats", || meta.with(|state| !state.heartbeats.is_empty())).await;
    node
}

fn answer(meta: &FakeMeta, answer: HeartbeatResponse) {
    meta.with(|state| state.answers.push_back(answer));
}

fn job(id: u64, chunk: u64, data: &[u8], target: &TestNode) -> RepairJob {
    RepairJob {
        job_id: id,
        chunk_id: id_bytes(chunk_id(chunk).as_bytes()),
        length: data.len() as u32,
        sha256: id_bytes(&dfs_common::checksum::sha256(data)),
        target: target.id,
        target_address: target.address().to_string(),
        lease_ms: 10_000,
        urgent: id.is_multiple_of(2),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_node_registers_is_stamped_and_comes_back_as_itself() {
    let (meta, address) = FakeMeta::start().await;
    let node = registered(&meta, address).await;
    let first = meta.with(|state| state.registrations[0].clone());
    assert_eq!((first.name.as_str(), first.rack.as_str(), &first.cluster_id[..]), ("storage-1", "r7", &[][..]));
    assert_eq!(first.address, node.address().to_string());
    let TestNode { server, dir, .. } = node;
    // In use: a second process is refused.
    let error = Server::start(&config(dir.path(), 1, &address.to_string(), &[])).await.expect_err("locked");
    assert!(matches!(error, ServerError::DataDir(DataDirError::Locked { .. })), "{error}");
    server.stop().await;
    let goodbye = meta.with(|state| state.goodbyes[0]);
    assert_eq!((goodbye.node_id, goodbye.incarnation), (1, first.incarnation));
    drop(server_again(&meta, address, dir.path()).await);
    let again = meta.with(|state| state.registrations.last().cloned().expect("there"));
    assert_eq!(again.node_uuid, first.node_uuid);
    assert_ne!(again.incarnation, first.incarnation);
    assert!(!again.cluster_id.is_empty());
}

async fn server_again(meta: &FakeMeta, address: std::net::SocketAddr, dir: &std::path::Path) -> Server {
    let before = meta.with(|state| state.registrations.len());
    let server = Server::start(&config(dir, 1, &address.to_string(), &[])).await.expect("starts");
    eventually("registers again", || meta.with(|state| state.registrations.len() > before)).await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_ends_the_node() {
    let (meta, address) = FakeMeta::start().await;
    let node = registered(&meta, address).await;
    let TestNode { server, dir, .. } = node;
    server.stop().await;
    meta.with(|state| state.cluster = Some([66; 16]));
    let mut server = Server::start(&config(dir.path(), 1, &address.to_string(), &[])).await.expect("starts");
    let error = tokio::time::timeout(Duration::from_secs(10), server.failed()).await.expect("in time");
    assert!(error.to_string().contains("another cluster"), "{error}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn differences_are_repeated_until_acknowledged() {
    let (meta, address) = FakeMeta::start().await;
    let node = registered(&meta, address).await;
    meta.with(|state| (state.fail, state.heartbeats) = (3, vec![]));
    node.put_as_member(1, &content(5000, 1)).await;
    let expected = vec![id_bytes(chunk_id(1).as_bytes())];
    let reported = |state: &mut crate::fake_meta::State| -> Vec<(u64, Vec<Bytes>)> {
        let told = state.heartbeats.iter().filter(|beat| !beat.added.is_empty());
        told.map(|beat| (beat.inventory_seq, beat.added.iter().map(|held| held.chunk_id.clone()).collect())).collect()
    };
    eventually("told", || meta.with(|state| state.fail == 0 && !reported(state).is_empty())).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let reported = meta.with(reported);
    assert!(reported.len() <= 4, "acknowledged differences are not repeated: {reported:?}");
    assert!(reported.iter().all(|(seq, added)| *seq == 1 && *added == expected), "{reported:?}");
    let beat = meta.with(|state| state.heartbeats.last().cloned().expect("beats"));
    assert_eq!((beat.chunk_count, beat.added.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_are_done_and_confirmed() {
    let (meta, address) = FakeMeta::start().await;
    let node = registered(&meta, address).await;
    meta.with(|state| state.heartbeat_ms = 50);
    node.put_as_member(1, &content(5000, 1)).await;
    let ids = vec![id_bytes(chunk_id(1).as_bytes()), id_bytes(chunk_id(2).as_bytes())];
    answer(&meta, HeartbeatResponse { delete: ids.clone(), ..Default::default() });
    eventually("confirmed, the missing one too", || {
        meta.with(|state| {
            let mut deleted: Vec<_> = state.heartbeats.iter().flat_map(|beat| beat.deleted.clone()).collect();
            deleted.sort_unstable();
            let mut wanted = ids.clone();
            wanted.sort_unstable();
            deleted == wanted
        })
    })
    .await;
    assert!(!node.file(chunk_id(1)).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_leader_is_not_obeyed() {
    let (meta, address) = FakeMeta::start().await;
    let node = registered(&meta, address).await;
    node.put_as_member(1, &content(5000, 1)).await;
    answer(&meta, HeartbeatResponse { leader_term: 5, ..Default::default() });
    eventually("term seen", || meta.with(|state| state.answers.is_empty())).await;
    let delete = vec![id_bytes(chunk_id(1).as_bytes())];
    answer(&meta, HeartbeatResponse { leader_term: 4, delete, ..Default::default() });
    eventually("old answer given", || meta.with(|state| state.answers.is_empty())).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(node.file(chunk_id(1)).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inventory_comes_in_pages() {
    let (meta, address) = FakeMeta::start().await;
    let node = registered(&meta, address).await;
    let mut ids: Vec<_> = (0..25).map(|n| id_bytes(chunk_id(n).as_bytes())).collect();
    for n in 0..25 {
        node.put_as_member(n, &content(100, n)).await;
    }
    ids.sort_unstable();
    let (mut found, mut after) = (vec![], Bytes::new());
    loop {
        let request = InventoryRequest { after: after.clone(), limit: 10, run: 3 };
        answer(&meta, HeartbeatResponse { inventory: Some(request), ..Default::default() });
        let mut page = None;
        eventually("page", || {
            page = meta.with(|state| state.heartbeats.drain(..).find_map(|beat| beat.inventory));
            page.is_some()
        })
        .await;
        let page = page.expect("waited for");
        assert_eq!((page.run, &page.after), (3, &after));
        found.extend(page.chunks.into_iter().map(|held| held.chunk_id));
        after = found.last().cloned().expect("not empty");
        if page.last {
            break;
        }
    }
    assert_eq!(found, ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repairs_copy_and_report() {
    let (meta, address) = FakeMeta::start().await;
    let node = registered(&meta, address).await;
    let target = TestNode::start(2, &[]).await;
    let data = content(3_000_000, 1);
    for n in 1..=3 {
        node.put_as_member(n, &data).await;
    }
    let spoiled = node.file(chunk_id(3));
    let mut bytes = std::fs::read(&spoiled).expect("read");
    bytes[2_000_000] ^= 1;
    std::fs::write(&spoiled, bytes).expect("write");
    let mut unreachable = job(14, 1, &data, &target);
    (unreachable.target, unreachable.target_address) = (77, crate::harness::NOWHERE.into());
    let repair = vec![
        job(11, 1, &data, &target),
        job(12, 2, &data, &target),
        job(13, 3, &data, &target),
        unreachable,
        job(15, 999, &data, &target),
    ];
    // Twice: a job in work is not started again.
    for more in [true, false] {
        answer(&meta, HeartbeatResponse { repair: repair.clone(), more, ..Default::default() });
    }
    let done = |state: &mut crate::fake_meta::State, id| state.repairs.iter().find(|done| done.job_id == id).cloned();
    for id in 11..=15 {
        eventually("reported", || meta.with(|state| done(state, id).is_some())).await;
    }
    for id in [11, 12] {
        let report = meta.with(|state| done(state, id)).expect("waited for");
        assert!(report.code == 0 && report.target == 2, "{report:?}");
    }
    for (id, code) in [(13, ErrorCode::Corrupt), (14, ErrorCode::Indeterminate), (15, ErrorCode::ChunkMissing)] {
        let report = meta.with(|state| done(state, id)).expect("waited for");
        assert!(report.code == code as u32, "{report:?}");
    }
    assert!(target.get(chunk_id(1), 0, 0).await.expect("copied").1 == data);
    assert!(!target.file(chunk_id(3)).exists(), "a bad copy is not spread");
    eventually("corruption and unreachable peer reported", || {
        meta.with(|state| {
            state.was_told_of(&chunk_id(3).0)
                && state.heartbeats.iter().any(|beat| beat.unreachable == [77])
                && state.heartbeats.iter().any(|beat| beat.removed == [id_bytes(chunk_id(999).as_bytes())])
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_whole_copies_are_confirmed() {
    let (meta, address) = FakeMeta::start().await;
    let node = registered(&meta, address).await;
    let data = content(3_000_000, 1);
    for n in 1..=3 {
        node.put_as_member(n, &data).await;
    }
    let spoiled = node.file(chunk_id(2));
    let mut bytes = std::fs::read(&spoiled).expect("read");
    bytes[2_000_000] ^= 1;
    std::fs::write(&spoiled, bytes).expect("write");
    let wire = |n| id_bytes(chunk_id(n).as_bytes());
    let confirm = vec![wire(1), wire(2), wire(3), wire(999), wire(1)];
    answer(&meta, HeartbeatResponse { confirm, ..Default::default() });
    let told = |state: &mut crate::fake_meta::State, id: &bytes::Bytes| {
        state.heartbeats.iter().filter(|beat| beat.confirmed.contains(id)).count()
    };
    eventually("confirmed", || meta.with(|state| told(state, &wire(1)) == 1 && told(state, &wire(3)) == 1)).await;
    eventually("the others are reported", || {
        meta.with(|state| {
            state.was_told_of(&chunk_id(2).0) && state.heartbeats.iter().any(|beat| beat.removed == [wire(999)])
        })
    })
    .await;
    assert_eq!(meta.with(|state| told(state, &wire(2)) + told(state, &wire(999))), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_copies_are_reported_by_the_primary() {
    let (meta, address) = FakeMeta::start().await;
    let node = registered(&meta, address).await;
    let replica = TestNode::start(2, &[]).await;
    // With a quorum of 1 the other copy may end after the answer; how often is chance.
    let mut late = 0;
    for n in 0..20 {
        let data = content(2 << 20, n);
        let answer = node.put(chunk_id(n), &data, &[replica.forward()], 1).await.expect("stored");
        late += answer.pending.len();
    }
    eventually("receipts", || meta.with(|state| state.receipts.len() == late)).await;
    assert!(meta.with(|state| state.receipts.iter().all(|r| r.replicas.len() == 1 && r.length == 2 << 20)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_followed_and_found_again() {
    let (old, old_address) = FakeMeta::start().await;
    let (new, new_address) = FakeMeta::start().await;
    old.with(|state| (state.leader, state.heartbeat_ms) = (Some(new_address.to_string()), 50));
    new.with(|state| state.heartbeat_ms = 50);
    let dir = tempfile::tempdir().expect("tmp");
    let server = Server::start(&config(dir.path(), 1, &old_address.to_string(), &[])).await.expect("starts");
    eventually("redirected", || new.with(|state| state.heartbeats.len() > 2)).await;
    assert_eq!(old.with(|state| state.registrations.len()), 0);
    // The leadership goes back; the new leader does not know this run.
    new.with(|state| state.leader = Some(old_address.to_string()));
    old.with(|state| {
        state.leader = None;
        state.answers.push_back(v1::HeartbeatResponse { register_again: true, ..Default::default() });
    });
    eventually("registered with the other", || old.with(|state| state.registrations.len() == 1)).await;
    eventually("beats there", || old.with(|state| state.heartbeats.len() > 2)).await;
    server.stop().await;
}

impl TestNode {
    /// Stores a chunk on this node alone.
    pub(crate) async fn put_as_member(&self, n: u64, data: &Bytes) {
        self.put(chunk_id(n), data, &[], 1).await.expect("stored");
    }
}
