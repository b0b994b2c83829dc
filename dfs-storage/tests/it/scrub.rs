//! Scrubs and quarantine, on a whole node.

use std::{collections::BTreeSet, fs, time::Duration};

use dfs_common::disk::{ScrubState, ScrubVerb};
use dfs_proto::{convert::id_bytes, v1};
use dfs_storage::{scrub::checkpoint::Checkpoint, server::Server};

use crate::{
    fake_meta::FakeMeta,
    harness::{TestNode, chunk_id, config, content, eventually},
};

const CHUNKS: u64 = 40;

/// A node with chunks, known to `meta`.
async fn filled(meta: &FakeMeta, address: std::net::SocketAddr, more: &[&str]) -> TestNode {
    meta.with(|state| state.heartbeat_ms = 50);
    let dir = tempfile::tempdir().expect("tmp");
    let server = Server::start(&config(dir.path(), 1, &address.to_string(), more)).await.expect("starts");
    let node = TestNode { id: 1, server, dir };
    eventually("beats", || meta.with(|state| !state.heartbeats.is_empty())).await;
    for n in 0..CHUNKS {
        node.put_as_member(n, &content(70_000, n)).await;
    }
    node
}

fn spoil(node: &TestNode, n: u64) {
    let path = node.file(chunk_id(n));
    let mut bytes = fs::read(&path).expect("read");
    let at = (n as usize * 1000) % bytes.len();
    bytes[at] ^= 0x20;
    fs::write(&path, bytes).expect("write");
}

fn order(meta: &FakeMeta, number: u64, verb: v1::ScrubVerb) {
    let scrub = Some(v1::ScrubOrder { number, verb: verb.into() });
    meta.with(|state| state.answers.push_back(v1::HeartbeatResponse { scrub, ..Default::default() }));
}

fn passes(state: &crate::fake_meta::State) -> Vec<v1::ScrubPass> {
    let notices = state.heartbeats.iter().flat_map(|beat| &beat.notices);
    notices
        .filter_map(|notice| match &notice.what {
            Some(v1::disk_notice::What::Pass(pass)) => Some(*pass),
            _ => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_pass_finds_every_bad_copy_and_says_so() {
    let (meta, address) = FakeMeta::start().await;
    let node = filled(&meta, address, &["--scrub-tranquility", "0"]).await;
    let bad: BTreeSet<u64> = (0..CHUNKS).filter(|n| n % 5 == 3).collect();
    bad.iter().for_each(|n| spoil(&node, *n));
    fs::OpenOptions::new().write(true).open(node.file(chunk_id(0))).expect("open").set_len(500).expect("cut");
    order(&meta, 7, v1::ScrubVerb::Start);
    // Twice: an order is carried out once.
    order(&meta, 7, v1::ScrubVerb::Start);
    eventually("the pass is told", || meta.with(|state| !passes(state).is_empty())).await;
    let pass = meta.with(|state| passes(state)[0]);
    assert_eq!((pass.chunks, pass.bad), (CHUNKS - 9, 9));
    for n in bad.iter().chain([&0]) {
        assert!(!node.file(chunk_id(*n)).exists());
        eventually("told", || meta.with(|state| state.was_told_of(&chunk_id(*n).0))).await;
    }
    assert_eq!(node.quarantined(), 9);
    eventually("the report says so", || {
        meta.with(|state| {
            let beat = state.heartbeats.last().expect("beats");
            let disk = &beat.disks[0];
            let last = disk.scrub.as_ref().and_then(|scrub| scrub.last).unwrap_or_default();
            beat.scrub_order == 7 && (disk.quarantined_copies, last.bad, disk.chunk_count) == (9, 9, CHUNKS - 9)
        })
    })
    .await;
    assert_eq!(meta.with(|state| passes(state).iter().map(|pass| pass.ended_ns).collect::<BTreeSet<_>>().len()), 1);
    // A good copy may come to the place of a bad one at once, and every chunk knows when it was verified.
    node.put_as_member(3, &content(70_000, 3)).await;
    let ids = vec![id_bytes(chunk_id(3).as_bytes()), id_bytes(chunk_id(8).as_bytes())];
    let stat = node.control().stat_chunks(v1::StatChunksRequest { chunk_ids: ids }).await.expect("stat").into_inner();
    assert_eq!(stat.present, [true, false]);
    assert!(stat.verified_ns[0] > 0 && stat.verified_ns[1] == 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_that_is_due_begins_by_itself_and_a_pause_survives_a_restart() {
    let (meta, address) = FakeMeta::start().await;
    let more = ["--scrub-interval", "1s", "--scrub-tranquility", "0"];
    let node = filled(&meta, address, &more).await;
    eventually("two passes", || meta.with(|state| passes(state).len() >= 2)).await;
    order(&meta, 1, v1::ScrubVerb::Pause);
    eventually("it is noted", || Checkpoint::load(node.dir.path()).is_some_and(|noted| noted.paused)).await;
    let TestNode { server, dir, .. } = node;
    server.stop().await;
    let server = Server::start(&config(dir.path(), 1, &address.to_string(), &more)).await.expect("starts");
    let scrub = server.node().scrubs[0].clone();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(scrub.report().state, ScrubState::Paused);
    scrub.order(ScrubVerb::Resume);
    let before = meta.with(|state| passes(state).len());
    eventually("it goes on", || meta.with(|state| passes(state).len() > before)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quarantine_keeps_what_no_good_copy_is_left_of() {
    let (meta, address) = FakeMeta::start().await;
    let more = ["--quarantine-keep", "0s", "--scrub-interval", "0"];
    let node = filled(&meta, address, &more).await;
    let lost = id_bytes(chunk_id(1).as_bytes());
    meta.with(|state| state.lost = vec![lost.clone()]);
    (1..4).for_each(|n| spoil(&node, n));
    let confirm = (1..4).map(|n| id_bytes(chunk_id(n).as_bytes())).collect();
    meta.with(|state| state.answers.push_back(v1::HeartbeatResponse { confirm, ..Default::default() }));
    eventually("all are told", || meta.with(|state| (1..4).all(|n| state.was_told_of(&chunk_id(n).0)))).await;
    eventually("the others are gone", || node.quarantined() == 1).await;
    let kept = fs::read_dir(node.dir.path().join("quarantine")).expect("list").next().expect("one").expect("entry");
    assert!(kept.file_name().to_string_lossy().starts_with(&chunk_id(1).to_string()));
    assert_eq!(node.server.node().scrubs[0].report().state, ScrubState::Off);
}
