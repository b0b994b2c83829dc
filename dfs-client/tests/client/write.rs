//! Writers: pieces, failures, memory.

use std::{sync::atomic::Ordering, time::Duration};

use dfs_client::{Dfs, NewFile, Options, Writer};
use dfs_common::{ErrorCode, InodeId, SetAttr, SetTime};

use crate::{CHUNK, Cluster, lock, pattern};

const ROOT: InodeId = InodeId::ROOT;

async fn create(dfs: &Dfs, name: &str) -> Writer {
    let created = dfs.create(ROOT, name.as_bytes(), NewFile::default()).await.expect("created");
    dfs.open_new_writer(&created).await.expect("opens")
}

pub(crate) async fn content(dfs: &Dfs, ino: InodeId) -> Vec<u8> {
    let reader = dfs.open_reader(ino).await.expect("opens");
    let len = usize::try_from(reader.size()).expect("small");
    reader.read_at(0, len).await.expect("reads").concat()
}

#[tokio::test]
async fn an_empty_file_is_published() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let writer = create(&dfs, "empty").await;
    assert!(writer.is_dirty(), "it must be published once");
    assert_eq!(writer.publish(SetAttr::default()).await.expect("published").size, 0);
    assert!(!writer.is_dirty());
    assert_eq!(content(&dfs, writer.ino()).await, b"");
    let commits = cluster.meta.calls("mutate");
    writer.publish(SetAttr::default()).await.expect("nothing to do");
    assert_eq!(cluster.meta.calls("mutate"), commits);
    writer.finish().await;
    drop(writer);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(cluster.meta.pending(), 0);
}

#[tokio::test]
async fn sizes_around_a_chunk() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let chunk = CHUNK as usize;
    for len in [1, chunk - 1, chunk, chunk + 1, 5 * chunk, 5 * chunk + 17] {
        let writer = create(&dfs, &format!("f{len}")).await;
        let data = pattern(len, len as u64);
        for (i, piece) in data.chunks(10_007).enumerate() {
            writer.write_at((i * 10_007) as u64, piece).await.expect("written");
        }
        assert_eq!(writer.read_at(0, len + 5).await.expect("reads").concat(), data);
        let attr = writer
            .publish_and_finish(SetAttr { mtime: Some(SetTime::At(77)), ..SetAttr::default() })
            .await
            .expect("published");
        assert_eq!((attr.size, attr.mtime_ns), (len as u64, 77));
        assert!(content(&dfs, attr.ino).await == data, "{len} bytes");
        assert_eq!(cluster.meta.replicated(attr.ino.0).len(), len.div_ceil(chunk));
    }
}

#[tokio::test]
async fn appends_and_rewrites_share_untouched_chunks() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let writer = create(&dfs, "f").await;
    let mut data = pattern(4 * CHUNK as usize + 100, 1);
    writer.write_at(0, &data).await.expect("written");
    let ino = writer.publish_and_finish(SetAttr::default()).await.expect("published").ino;
    let before = cluster.meta.replicated(ino.0);
    let writer = dfs.open_writer(ino, false).await.expect("opens");
    assert!(!writer.is_dirty());
    writer.write_at(data.len() as u64, b"tail").await.expect("written");
    data.extend_from_slice(b"tail");
    writer.write_at(u64::from(CHUNK) + 3, b"middle").await.expect("written");
    data[CHUNK as usize + 3..][..6].copy_from_slice(b"middle");
    writer.publish(SetAttr::default()).await.expect("published");
    assert!(content(&dfs, ino).await == data);
    let after = cluster.meta.replicated(ino.0);
    let shared: Vec<bool> = before.iter().zip(&after).map(|(a, b)| a.chunk_id == b.chunk_id).collect();
    assert_eq!(shared, [true, false, true, true, false]);
    // A write after the version was ended opens another one.
    writer.publish_and_finish(SetAttr::default()).await.expect("nothing new");
    writer.write_at(0, b"again").await.expect("written");
    data[..5].copy_from_slice(b"again");
    writer.publish(SetAttr::default()).await.expect("published");
    assert!(content(&dfs, ino).await == data);
}

#[tokio::test]
async fn holes_are_not_stored_and_read_as_zeros() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let writer = create(&dfs, "sparse").await;
    let end = 10 * u64::from(CHUNK);
    writer.write_at(end, b"x").await.expect("written");
    writer.truncate(end + 100).await.expect("extended");
    let attr = writer.publish(SetAttr::default()).await.expect("published");
    let mut expected = vec![0; usize::try_from(end).expect("small") + 100];
    expected[usize::try_from(end).expect("small")] = b'x';
    assert!(content(&dfs, attr.ino).await == expected);
    let stored: u32 = cluster.storage.iter().map(|node| node.disk.puts.load(Ordering::SeqCst)).sum();
    assert_eq!(stored, 1);
}

#[tokio::test]
async fn what_was_cut_off_does_not_come_back() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let writer = create(&dfs, "f").await;
    writer.write_at(0, &vec![9; 2 * CHUNK as usize]).await.expect("written");
    writer.publish(SetAttr::default()).await.expect("published");
    writer.truncate(u64::from(CHUNK) + 10).await.expect("cut");
    writer.truncate(2 * u64::from(CHUNK)).await.expect("extended");
    let attr = writer.publish(SetAttr::default()).await.expect("published");
    let mut expected = vec![9; CHUNK as usize + 10];
    expected.resize(2 * CHUNK as usize, 0);
    assert!(content(&dfs, attr.ino).await == expected);
    assert_eq!(writer.truncate(u64::MAX).await.expect_err("too large").code, ErrorCode::TooLarge);
    writer.write_at(0, b"still fine").await.expect("not failed");
}

#[tokio::test]
async fn a_failed_primary_means_a_new_attempt_elsewhere() {
    let cluster = Cluster::start(1, 4).await;
    let dfs = cluster.connect().await;
    cluster.storage[1].disk.fail_puts.store(2, Ordering::SeqCst);
    cluster.storage[0].kill();
    let writer = create(&dfs, "f").await;
    let data = pattern(20 * CHUNK as usize, 3);
    writer.write_at(0, &data).await.expect("written");
    let attr = writer.publish(SetAttr::default()).await.expect("published");
    assert!(content(&dfs, attr.ino).await == data);
    for chunk in cluster.meta.replicated(attr.ino.0) {
        assert!(chunk.replicas.len() >= 2 && !chunk.replicas.contains(&1), "{:?}", chunk.replicas);
    }
}

#[tokio::test]
async fn too_few_nodes_end_in_an_error_within_the_deadline_and_the_old_content_stays() {
    let cluster = Cluster::start(1, 3).await;
    let options = Options { deadline: Duration::from_millis(800), ..cluster.options() };
    let dfs = Dfs::connect(options).await.expect("connects");
    let writer = create(&dfs, "f").await;
    writer.write_at(0, b"old").await.expect("written");
    let ino = writer.publish(SetAttr::default()).await.expect("published").ino;
    cluster.storage[0].kill();
    cluster.storage[1].kill();
    writer.write_at(0, b"new").await.expect("buffered");
    let since = std::time::Instant::now();
    let error = writer.publish(SetAttr::default()).await.expect_err("one node is not a quorum");
    assert!(since.elapsed() < Duration::from_secs(4), "{error}");
    assert_eq!(error.errno(), 5);
    assert_eq!(writer.publish(SetAttr::default()).await.expect_err("repeated"), error);
    assert_eq!(cluster.meta.layout(ino.0).expect("published").size, 3);
    writer.abort().await;
}

#[tokio::test]
async fn a_full_cluster_is_enospc() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    lock(&cluster.meta.state).allocate_error = Some(ErrorCode::NoSpace);
    let writer = create(&dfs, "f").await;
    writer.write_at(0, b"x").await.expect("buffered");
    assert_eq!(writer.publish(SetAttr::default()).await.expect_err("full").code, ErrorCode::NoSpace);
    assert_eq!(writer.write_at(0, b"x").await.expect_err("repeated").code, ErrorCode::NoSpace);
    drop(writer);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(cluster.meta.pending(), 0, "the pending version was ended");
}

#[tokio::test]
async fn an_aborted_writer_publishes_nothing() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let writer = create(&dfs, "f").await;
    writer.write_at(0, &pattern(3 * CHUNK as usize, 1)).await.expect("written");
    writer.abort().await;
    assert!(writer.publish(SetAttr::default()).await.is_err());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((cluster.meta.pending(), cluster.meta.layout(writer.ino().0)), (0, None));
}

#[tokio::test]
async fn the_memory_budget_holds_for_many_writers_on_slow_nodes() {
    let chunk = 256 << 10;
    let cluster = Cluster::with_chunk_size(1, 3, chunk).await;
    cluster.storage.iter().for_each(|node| node.disk.delay_ms.store(5, Ordering::SeqCst));
    let memory = 4 << 20;
    let dfs = Dfs::connect(Options { memory_bytes: memory, ..cluster.options() }).await.expect("connects");
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..6u64 {
        let dfs = dfs.clone();
        tasks.spawn(async move {
            let writer = create(&dfs, &format!("f{i}")).await;
            let data = pattern(4 << 20, i);
            // Even writers go on, odd ones jump.
            for (n, piece) in data.chunks(64 << 10).enumerate() {
                let n = if i % 2 == 0 { n } else { (n * 37) % 64 };
                let _ = piece;
                let at = n * (64 << 10);
                writer.write_at(at as u64, &data[at..at + (64 << 10)]).await.expect("written");
            }
            let ino = writer.publish(SetAttr::default()).await.expect("published").ino;
            (ino, data)
        });
    }
    let mut files = Vec::new();
    while let Some(file) = tasks.join_next().await {
        files.push(file.expect("no panic"));
    }
    let (_, peak) = dfs.memory_usage();
    assert!(peak <= memory + 6 * u64::from(chunk), "{peak}");
    for (ino, data) in files {
        assert!(content(&dfs, ino).await == data);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(dfs.memory_usage().0, 0, "everything is given back");
}

#[tokio::test]
async fn memory_does_not_grow_with_the_number_of_files_that_are_open_for_writing() {
    let chunk = 256 << 10;
    let cluster = Cluster::with_chunk_size(1, 3, chunk).await;
    let memory = 4 << 20;
    let dfs = Dfs::connect(Options { memory_bytes: memory, ..cluster.options() }).await.expect("connects");
    let mut files = Vec::new();
    // Each keeps a part of a chunk: in all six times the memory.
    for i in 0..128 {
        let (writer, data) = (create(&dfs, &format!("f{i}")).await, pattern(200 << 10, i));
        writer.write_at(0, &data[..190 << 10]).await.expect("written");
        files.push((writer, data));
    }
    let (_, peak) = dfs.memory_usage();
    assert!(peak <= 2 * memory + u64::from(chunk), "{peak}");
    for (writer, data) in &files {
        writer.write_at(190 << 10, &data[190 << 10..]).await.expect("written");
        let held = writer.read_at(0, data.len()).await.expect("read back").concat();
        assert!(held == *data);
    }
    for (writer, data) in &files {
        let attr = writer.publish_and_finish(SetAttr::default()).await.expect("published");
        assert!(content(&dfs, attr.ino).await == *data);
    }
    let (_, peak) = dfs.memory_usage();
    assert!(peak <= 2 * memory + 2 * u64::from(chunk), "{peak}");
}
