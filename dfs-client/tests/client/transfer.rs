//! Uploads with a manifest, downloads.

use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dfs_client::{Dfs, Options, transfer};
use dfs_common::ErrorCode;

use crate::{CHUNK, Cluster, lock, pattern};

fn puts(cluster: &Cluster) -> u32 {
    cluster.storage.iter().map(|node| node.disk.puts.load(Ordering::SeqCst)).sum()
}

#[tokio::test]
async fn up_and_down_again() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let dir = tempfile::tempdir().expect("tmp");
    for len in [0usize, 1, CHUNK as usize, 10 * CHUNK as usize + 3] {
        let (source, out) = (dir.path().join("in"), dir.path().join("out"));
        let data = pattern(len, 3);
        fs::write(&source, &data).expect("write");
        let last = AtomicU64::new(u64::MAX);
        let progress = |done, _| last.store(done, Ordering::SeqCst);
        let attr = transfer::upload(&dfs, &source, b"/a/b c/f", &dir.path().join("m"), false, progress)
            .await
            .expect("uploads")
            .attr;
        assert_eq!((attr.size, last.load(Ordering::SeqCst)), (len as u64, len as u64));
        let steps = Mutex::new(vec![]);
        transfer::download(&dfs, b"a/b c/f", &out, |done, total| lock(&steps).push((done, total)))
            .await
            .expect("downloads");
        assert!(fs::read(&out).expect("read") == data);
        assert_eq!(lock(&steps).last(), Some(&(len as u64, len as u64)));
    }
    assert_eq!(fs::read_dir(dir.path().join("m")).expect("list").count(), 0, "no manifest is left");
    let error = transfer::download(&dfs, b"a", &dir.path().join("x"), |_, _| {}).await.expect_err("a directory");
    assert_eq!(error.code, ErrorCode::IsDirectory);
    assert_eq!(cluster.meta.pending(), 0);
}

#[tokio::test]
async fn a_resumed_upload_sends_only_what_is_missing_or_changed() {
    let cluster = Cluster::start(1, 3).await;
    let dir = tempfile::tempdir().expect("tmp");
    let (source, manifests) = (dir.path().join("in"), dir.path().join("m"));
    let count = 12;
    let data = pattern(count * CHUNK as usize, 4);
    fs::write(&source, &data).expect("write");
    let dfs = cluster.connect().await;
    // Dies after some chunks.
    let reached = tokio::sync::Notify::new();
    let progress = |done: u64, _| {
        if done >= 5 * u64::from(CHUNK) {
            reached.notify_one();
        }
    };
    tokio::select! {
        _ = transfer::upload(&dfs, &source, b"f", &manifests, false, progress) => panic!("faster than the crash"),
        () = reached.notified() => {}
    }
    drop(dfs);
    cluster.meta.expire_sessions();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = puts(&cluster);
    let dfs = cluster.connect().await;
    // One stored chunk is lost meanwhile on too many nodes.
    let manifest =
        fs::read_to_string(fs::read_dir(&manifests).expect("list").next().expect("one").expect("entry").path())
            .expect("read");
    let lines = manifest.lines().count() - 1;
    assert!(lines >= 5, "{lines}");
    let lost =
        manifest.lines().nth(1).expect("a chunk").split("chunk_id\":\"").nth(1).expect("its id")[..64].to_owned();
    for node in &cluster.storage[..2] {
        lock(&node.disk.chunks).retain(|id, _| dfs_common::ChunkId::from_slice(id).expect("an id").to_string() != lost);
    }
    let uploaded = transfer::upload(&dfs, &source, b"f", &manifests, true, |_, _| {}).await.expect("uploads");
    let sent = (puts(&cluster) - before) as usize;
    assert_eq!(sent, count - lines + 1);
    assert_eq!((uploaded.sent_chunks, uploaded.reused_chunks), (sent as u64, lines as u64 - 1));
    assert!(uploaded.remarks[0].starts_with("1 of "), "{:?}", uploaded.remarks);
    let attr = uploaded.attr;
    let out = dir.path().join("out");
    transfer::download(&dfs, b"f", &out, |_, _| {}).await.expect("downloads");
    assert!(fs::read(&out).expect("read") == data);
    assert_eq!((attr.size, cluster.meta.pending()), (data.len() as u64, 0));
}

#[tokio::test]
async fn a_failed_download_leaves_nothing() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = Dfs::connect(Options { deadline: Duration::from_secs(1), ..cluster.options() }).await.expect("connects");
    let dir = tempfile::tempdir().expect("tmp");
    let source = dir.path().join("in");
    fs::write(&source, pattern(3 * CHUNK as usize, 1)).expect("write");
    transfer::upload(&dfs, &source, b"f", dir.path(), false, |_, _| {}).await.expect("uploads");
    cluster.storage.iter().for_each(|node| node.disk.corrupt.store(true, Ordering::SeqCst));
    let out = dir.path().join("out");
    fs::write(&out, "old").expect("write");
    let error = transfer::download(&dfs, b"f", &out, |_, _| {}).await.expect_err("all copies are bad");
    assert_eq!(error.code, ErrorCode::Io);
    assert_eq!(fs::read(&out).expect("read"), b"old");
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 2, "source and old file");
}
