//! Readers: patterns, replicas that fail, corruption, memory.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use dfs_client::{Dfs, NewFile, Options};
use dfs_common::{ErrorCode, InodeId, SetAttr};

use crate::{CHUNK, Cluster, lock, pattern};

const BIG: u32 = 1 << 20;

async fn file(dfs: &Dfs, data: &[u8]) -> InodeId {
    let created = dfs.create(InodeId::ROOT, b"f", NewFile::default()).await.expect("created");
    let writer = dfs.open_new_writer(&created).await.expect("opens");
    writer.write_at(0, data).await.expect("written");
    writer.publish_and_finish(SetAttr::default()).await.expect("published").ino
}

fn gets(cluster: &Cluster) -> u32 {
    cluster.storage.iter().map(|node| node.disk.gets.load(Ordering::SeqCst)).sum()
}

#[tokio::test]
async fn sequential_and_random_reads_give_the_bytes() {
    let cluster = Cluster::with_chunk_size(1, 3, BIG).await;
    let dfs = cluster.connect().await;
    let data = pattern(10 * BIG as usize + 12_345, 5);
    let ino = file(&dfs, &data).await;
    for step in [4096, 100_000, 128 << 10, 1 << 20, 3 << 20] {
        let reader = dfs.open_reader(ino).await.expect("opens");
        let mut at = 0;
        while at < data.len() {
            let got = reader.read_at(at as u64, step).await.expect("reads").concat();
            assert!(got == data[at..(at + step).min(data.len())], "{step} bytes at {at}");
            at += step;
        }
        assert!(reader.read_at(data.len() as u64, 10).await.expect("end").is_empty());
    }
    let reader = dfs.open_reader(ino).await.expect("opens");
    let mut at = 7_654_321;
    for _ in 0..200 {
        let got = reader.read_at(at as u64, 70_000).await.expect("reads").concat();
        assert!(got == data[at..(at + 70_000).min(data.len())], "at {at}");
        at = (at * 31 + 1_000_003) % data.len();
    }
}

#[tokio::test]
async fn reads_out_of_order_from_two_threads_are_served_from_the_window() {
    let cluster = Cluster::with_chunk_size(1, 3, BIG).await;
    let dfs = cluster.connect().await;
    let data = pattern(16 * BIG as usize, 6);
    let ino = file(&dfs, &data).await;
    let reader = dfs.open_reader(ino).await.expect("opens");
    let (reader, data) = (&reader, &data);
    let step = 128 << 10;
    let count = data.len() / step;
    for pair in 0..count / 2 {
        let read = |n: usize| async move {
            let got = reader.read_at((n * step) as u64, step).await.expect("reads").concat();
            assert!(got == data[n * step..(n + 1) * step], "block {n}");
        };
        // The second of the pair comes first.
        tokio::join!(read(2 * pair + 1), read(2 * pair));
    }
    assert!(gets(&cluster) <= 16 + 8, "{} fetches for 16 chunks", gets(&cluster));
}

#[tokio::test]
async fn the_first_read_of_a_large_file_fetches_little() {
    let cluster = Cluster::with_chunk_size(1, 3, 4 << 20).await;
    let dfs = cluster.connect().await;
    let data = pattern(12 << 20, 6);
    let ino = file(&dfs, &data).await;
    let reader = dfs.open_reader(ino).await.expect("opens");
    reader.read_at(0, 4096).await.expect("reads");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(gets(&cluster), 1);
    assert!(dfs.memory_usage().0 <= 256 << 10);
}

#[tokio::test]
async fn dead_replicas_are_passed_over_and_nothing_left_is_an_error_not_zeros() {
    let cluster = Cluster::start(1, 3).await;
    let options = Options { deadline: Duration::from_millis(1500), ..cluster.options() };
    let dfs = Dfs::connect(options).await.expect("connects");
    let data = pattern(8 * CHUNK as usize, 7);
    let ino = file(&dfs, &data).await;
    for dead in 0..2 {
        cluster.storage[dead].kill();
        let reader = dfs.open_reader(ino).await.expect("opens");
        assert!(reader.read_at(0, data.len()).await.expect("reads").concat() == data);
    }
    cluster.storage[2].kill();
    let reader = dfs.open_reader(ino).await.expect("opens");
    let since = Instant::now();
    let error = reader.read_at(0, data.len()).await.expect_err("nobody is left");
    assert!(since.elapsed() < Duration::from_secs(4));
    assert_eq!(error.errno(), 5);
    assert!(!error.tried.is_empty(), "{error}");
}

#[tokio::test]
async fn corrupt_copies_are_reported_and_another_one_is_read() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let data = pattern(9 * CHUNK as usize + 5, 8);
    let ino = file(&dfs, &data).await;
    cluster.storage[0].disk.corrupt.store(true, Ordering::SeqCst);
    cluster.storage[1].disk.corrupt.store(true, Ordering::SeqCst);
    let reader = dfs.open_reader(ino).await.expect("opens");
    assert!(reader.read_at(0, data.len()).await.expect("reads").concat() == data);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let reports = lock(&cluster.meta.state).reports.clone();
    assert!(!reports.is_empty() && reports.iter().all(|report| report.node_id < 3 && !report.missing));
    // All bad: an error soon, without waiting for the deadline.
    cluster.storage[2].disk.corrupt.store(true, Ordering::SeqCst);
    let reader = dfs.open_reader(ino).await.expect("opens");
    let since = Instant::now();
    assert_eq!(reader.read_at(0, 10).await.expect_err("bad").code, ErrorCode::Io);
    assert!(since.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn random_blocks_of_a_large_chunk_are_verified() {
    let cluster = Cluster::with_chunk_size(1, 3, BIG).await;
    let dfs = cluster.connect().await;
    let data = pattern(4 * BIG as usize, 8);
    let ino = file(&dfs, &data).await;
    for node in &cluster.storage[..2] {
        node.disk.corrupt.store(true, Ordering::SeqCst);
    }
    let reader = dfs.open_reader(ino).await.expect("opens");
    for at in [3_000_000usize, 100, 2_222_222, 1_048_570] {
        let got = reader.read_at(at as u64, 5000).await.expect("reads").concat();
        assert!(got == data[at..at + 5000], "at {at}");
    }
}

#[tokio::test]
async fn a_missing_copy_is_reported_as_missing() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let ino = file(&dfs, b"hello").await;
    for node in &cluster.storage[..2] {
        lock(&node.disk.chunks).clear();
    }
    let reader = dfs.open_reader(ino).await.expect("opens");
    assert_eq!(reader.read_at(1, 3).await.expect("reads").concat(), b"ell");
    lock(&cluster.storage[2].disk.chunks).clear();
    let reader = dfs.open_reader(ino).await.expect("opens");
    assert_eq!(reader.read_at(0, 5).await.expect_err("gone").code, ErrorCode::Io);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(lock(&cluster.meta.state).reports.iter().all(|report| report.missing));
}

#[tokio::test]
async fn a_silent_replica_is_overtaken() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let data = pattern(30 * CHUNK as usize, 9);
    let ino = file(&dfs, &data).await;
    cluster.storage[0].disk.delay_ms.store(60_000, Ordering::SeqCst);
    let reader = dfs.open_reader(ino).await.expect("opens");
    let since = Instant::now();
    for n in 0..30 {
        let at = n * CHUNK as usize;
        let got = reader.read_at(at as u64, CHUNK as usize).await.expect("reads").concat();
        assert!(got == data[at..at + CHUNK as usize]);
    }
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}

#[tokio::test]
async fn moved_chunks_are_found_again() {
    let cluster = Cluster::start(1, 4).await;
    let dfs = cluster.connect().await;
    let ino = file(&dfs, b"moved").await;
    let reader = dfs.open_reader(ino).await.expect("opens");
    let chunk = cluster.meta.replicated(ino.0).remove(0);
    let holders = chunk.replicas.clone();
    let free = cluster.storage.iter().find(|node| !holders.contains(&node.id)).expect("one of four is free");
    for node in cluster.storage.iter().filter(|node| holders.contains(&node.id)) {
        let bytes = lock(&node.disk.chunks).remove(&chunk.chunk_id);
        if let Some(bytes) = bytes {
            lock(&free.disk.chunks).insert(chunk.chunk_id.clone(), bytes);
        }
    }
    if let Some(known) = lock(&cluster.meta.state).chunks.get_mut(&chunk.chunk_id) {
        known.replicas = vec![free.id];
    }
    assert_eq!(reader.read_at(0, 5).await.expect("reads").concat(), b"moved");
}

#[tokio::test]
async fn read_ahead_stays_within_the_budget() {
    let cluster = Cluster::with_chunk_size(1, 3, BIG).await;
    let memory = 16 << 20;
    let dfs = Dfs::connect(Options { memory_bytes: memory, ..cluster.options() }).await.expect("connects");
    let data = pattern(24 * BIG as usize, 10);
    let ino = file(&dfs, &data).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let (dfs, data) = (dfs.clone(), data.clone());
        tasks.spawn(async move {
            let reader = dfs.open_reader(ino).await.expect("opens");
            for (n, piece) in data.chunks(128 << 10).enumerate() {
                let got = reader.read_at((n * (128 << 10)) as u64, 128 << 10).await.expect("reads").concat();
                assert!(got == piece, "block {n}");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
    let (_, peak) = dfs.memory_usage();
    assert!(peak <= memory + 6 * u64::from(BIG), "{peak}");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(dfs.memory_usage().0, 0);
}
