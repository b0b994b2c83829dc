//! A node with two data directories, one of which goes and comes back.

use std::{collections::BTreeSet, fs, path::Path};

use dfs_common::ErrorCode;
use dfs_proto::v1;
use dfs_storage::server::{Server, ServerError};

use crate::{
    fake_meta::{FakeMeta, State},
    harness::{TestNode, chunk_id, config, content, eventually},
};

const CHUNKS: u64 = 12;

fn held(dir: &Path) -> BTreeSet<u64> {
    (0..CHUNKS).filter(|n| crate::harness::chunk_file(dir, chunk_id(*n)).exists()).collect()
}

/// Moves everything in `from` to `to`.
fn carry(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("mkdir");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        fs::rename(entry.path(), to.join(entry.file_name())).expect("rename");
    }
}

fn failures(state: &State) -> Vec<v1::DiskFailure> {
    let notices = state.heartbeats.iter().flat_map(|beat| beat.notices.clone());
    notices
        .filter_map(|notice| match notice.what {
            Some(v1::disk_notice::What::Failed(failure)) => Some(failure),
            _ => None,
        })
        .collect()
}

fn has_returned(state: &State) -> bool {
    let mut notices = state.heartbeats.iter().flat_map(|beat| &beat.notices);
    notices.any(|notice| matches!(notice.what, Some(v1::disk_notice::What::Returned(_))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_emptied_goes_alone_and_comes_back_with_its_chunks() {
    let (meta, address) = FakeMeta::start().await;
    meta.with(|state| state.heartbeat_ms = 50);
    let dir = tempfile::tempdir().expect("tmp");
    let [one, two, away] = ["one", "two", "away"].map(|name| dir.path().join(name));
    let more = ["--data-dir", two.to_str().expect("UTF-8"), "--capacity", "100M"];
    let server = Server::start(&config(&one, 1, &address.to_string(), &more)).await.expect("starts");
    let node = TestNode { id: 1, server, dir };
    eventually("beats", || meta.with(|state| !state.heartbeats.is_empty())).await;
    for n in 0..CHUNKS {
        node.put_as_member(n, &content(1_000_000, n)).await;
    }
    let (first, second) = (held(&one), held(&two));
    assert!(first.is_disjoint(&second) && first.len() + second.len() == CHUNKS as usize);
    assert_eq!((first.len(), second.len()), (6, 6), "the one with most room each time");
    carry(&two, &away);
    eventually("it is taken out", || meta.with(|state| !failures(state).is_empty())).await;
    let failure = meta.with(|state| failures(state)[0].clone());
    assert!(failure.copies == 6 && failure.reason.contains("not there any more"), "{failure:?}");
    eventually("an inventory is asked for", || {
        meta.with(|state| state.heartbeats.iter().any(|beat| beat.inventory_due))
    })
    .await;
    let page = node.server.node().on_disk(|engine| engine.list(None, 100)).await.expect("lists");
    assert_eq!(page.chunks.len(), 6);
    for n in 0..CHUNKS {
        match node.get(chunk_id(n), 0, 0).await {
            Ok((_, read)) => assert!(first.contains(&n) && read == content(1_000_000, n)),
            Err(error) => assert!(second.contains(&n) && error.code == ErrorCode::ChunkMissing, "{error}"),
        }
    }
    // One of the lost ones is copied to the disk that is left.
    let copied = *second.first().expect("six");
    node.put_as_member(copied, &content(1_000_000, copied)).await;
    assert!(held(&one).contains(&copied));
    carry(&away, &two);
    eventually("it is back", || meta.with(|state| has_returned(state))).await;
    for n in 0..CHUNKS {
        assert!(node.get(chunk_id(n), 0, 0).await.expect("reads").1 == content(1_000_000, n));
    }
    eventually("what is there twice is dropped", || held(&one).is_disjoint(&held(&two))).await;
    assert_eq!(held(&one).len() + held(&two).len(), CHUNKS as usize);
    eventually("it says so", || {
        let is_right = |beat: &v1::HeartbeatRequest| beat.disks.len() == 2 && beat.chunk_count == CHUNKS;
        meta.with(|state| state.heartbeats.last().is_some_and(is_right))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_any_disk_that_works_answers_unavailable_and_has_no_chunks() {
    let (meta, address) = FakeMeta::start().await;
    meta.with(|state| state.heartbeat_ms = 50);
    let dir = tempfile::tempdir().expect("tmp");
    let (one, away) = (dir.path().join("one"), dir.path().join("away"));
    let server = Server::start(&config(&one, 1, &address.to_string(), &[])).await.expect("starts");
    let node = TestNode { id: 1, server, dir };
    eventually("beats", || meta.with(|state| !state.heartbeats.is_empty())).await;
    node.put_as_member(1, &content(5000, 1)).await;
    carry(&one, &away);
    eventually("it is taken out", || meta.with(|state| !failures(state).is_empty())).await;
    assert_eq!(node.get(chunk_id(1), 0, 0).await.expect_err("no disk").code, ErrorCode::Unavailable);
    let put = node.put(chunk_id(2), &content(5000, 2), &[], 1).await.expect_err("no disk");
    assert_eq!(put.code, ErrorCode::Unavailable, "{put}");
    let page = node.server.node().on_disk(|engine| engine.list(None, 100)).await.expect("lists");
    assert!(page.chunks.is_empty() && page.last, "metadata is to know that nothing is left");
    eventually("it says that it can hold nothing", || {
        meta.with(|state| state.heartbeats.last().is_some_and(|beat| beat.capacity_bytes == 0 && beat.disks[0].failed))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_directory_that_can_be_used_it_does_not_start() {
    let dir = tempfile::tempdir().expect("tmp");
    let file = dir.path().join("file");
    fs::write(&file, b"no directory").expect("write");
    let error = Server::start(&config(&file.join("x"), 1, crate::harness::NOWHERE, &[])).await.expect_err("refused");
    assert!(matches!(error, ServerError::DataDir(_)) && error.to_string().contains("file/x"), "{error}");
}
