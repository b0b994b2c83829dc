//! PutChunk and ReplicateChunk between real servers on loopback.

use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_common::{ErrorCode, checksum::sha256};
use dfs_proto::{
    convert::id_bytes,
    stream::{self, MessageReader},
    v1::{DeleteChunkRequest, ForwardTo, PutChunkHeader, StatChunksRequest, VerifyChunkRequest},
};

use crate::harness::{CLUSTER, NOWHERE, TestNode, chunk_id, content, eventually, hung_peer, put_raw};

async fn three() -> [TestNode; 3] {
    [TestNode::start(1, &[]).await, TestNode::start(2, &[]).await, TestNode::start(3, &[]).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_copies_land_and_are_verified() {
    let [a, b, c] = three().await;
    let forward = [b.forward(), c.forward()];
    for (n, length) in [1, 65_535, 65_536, 65_537, 1 << 20, 4 << 20, (4 << 20) + 1, 64 << 20].into_iter().enumerate() {
        let (id, data) = (chunk_id(n as u64), content(length, n as u64));
        let answer = a.put(id, &data, &forward, 3).await.expect("stored");
        let mut stored = answer.stored.clone();
        stored.sort_unstable();
        assert_eq!((stored, answer.pending.len(), answer.failed.len()), (vec![1, 2, 3], 0, 0));
        for node in [&a, &b, &c] {
            let request = VerifyChunkRequest {
                chunk_id: id_bytes(id.as_bytes()),
                cluster_id: id_bytes(CLUSTER.as_bytes()),
                node_id: node.id,
            };
            let verified = node.control().verify_chunk(request).await.expect("good").into_inner();
            assert_eq!((verified.length as usize, &verified.sha256[..]), (length, &sha256(&data)[..]));
            let (header, read) = node.get(id, 0, 0).await.expect("reads");
            assert!(header.chunk_length as usize == length && read == data);
        }
    }
    for node in [a, b, c] {
        assert_eq!(node.tmp_files(), 0);
        let start = Instant::now();
        node.server.stop().await;
        assert!(start.elapsed() < Duration::from_secs(4));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_replica_leaves_the_quorum() {
    let [a, b, c] = three().await;
    let dead = ForwardTo { node_id: 3, address: NOWHERE.into() };
    let (id, data) = (chunk_id(1), content(4 << 20, 1));
    let start = Instant::now();
    let answer = a.put(id, &data, &[b.forward(), dead.clone()], 2).await.expect("two of three");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(answer.stored.len(), 2);
    eventually("named as unreachable", || a.server.node().changes.take_unreachable() == [dfs_common::NodeId(3)]).await;
    // All three wanted: refused, and the own copy is gone again.
    let id = chunk_id(2);
    let dead = ForwardTo { node_id: 4, ..dead };
    let error = a.put(id, &data, &[c.forward(), dead], 3).await.expect_err("no quorum");
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(error.message.contains("node 4"), "{error}");
    eventually("own copy removed", || !a.file(id).exists() && a.tmp_files() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_replica_holds_nobody_up() {
    let [a, b, _] = three().await;
    let (hung, task) = hung_peer(3).await;
    for n in 0..4 {
        let start = Instant::now();
        let answer =
            a.put(chunk_id(n), &content(4 << 20, n), &[b.forward(), hung.clone()], 2).await.expect("two of three");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert_eq!((answer.stored.len(), &answer.pending[..]), (2, &[3][..]));
    }
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hung_replicas_give_back_memory_that_others_wait_for() {
    // Memory for two chunks: the third upload waits until the hung replica of the first is given up.
    let a = TestNode::start(1, &["--memory", "24M", "--stall-timeout", "5s"]).await;
    let b = TestNode::start(2, &[]).await;
    let (hung, task) = hung_peer(3).await;
    let start = Instant::now();
    for n in 0..5 {
        let data = content(4 << 20, n);
        let answer = a.put(chunk_id(n), &data, &[b.forward(), hung.clone()], 2).await.expect("two of three");
        assert_eq!(answer.stored.len(), 2);
    }
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_own_disk_still_serves_the_quorum() {
    let a = TestNode::start(1, &["--capacity", "1M", "--reserve", "0"]).await;
    let b = TestNode::start(2, &[]).await;
    let c = TestNode::start(3, &["--capacity", "1M", "--reserve", "0"]).await;
    let data = content(4 << 20, 1);
    let answer = a.put(chunk_id(1), &data, &[b.forward()], 1).await.expect("one copy");
    assert_eq!((&answer.stored[..], answer.failed[0].node_id), (&[2][..], 1));
    assert_eq!(answer.failed[0].code, ErrorCode::NoSpace as u32);
    let error = a.put(chunk_id(2), &data, &[c.forward()], 1).await.expect_err("both are full");
    assert_eq!(error.code, ErrorCode::NoSpace);
    assert!(error.message.contains("node 1") && error.message.contains("node 3"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_aborts_leaves_nothing() {
    let [a, b, c] = three().await;
    let (id, data) = (chunk_id(1), content(4 << 20, 1));
    let header = a.header(id, &data, &[b.forward(), c.forward()], 2);
    for end in [false, true] {
        let (mut sender, body) = stream::body(8);
        let mut channel = a.channel();
        let call = tokio::spawn(async move {
            stream::call(&mut channel, stream::request("/dfs.v1.StorageService/PutChunk", body)).await
        });
        sender.send(Some(&header), data.slice(..1 << 20)).await.expect("open");
        sender.send::<PutChunkHeader>(None, data.slice(1 << 20..3 << 20)).await.expect("open");
        eventually("in work", || a.tmp_files() + b.tmp_files() + c.tmp_files() == 3).await;
        if end {
            sender.end();
            let error = call.await.expect("joins").expect_err("bytes are missing");
            assert_eq!(error.code, ErrorCode::InvalidArgument);
        } else {
            drop(sender);
            call.abort();
        }
        for node in [&a, &b, &c] {
            eventually("tmp removed", || node.tmp_files() == 0).await;
            assert!(!node.file(id).exists());
        }
    }
    // The chunk can be stored afterwards.
    a.put(id, &data, &[b.forward(), c.forward()], 3).await.expect("stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_addressees_and_nonsense_are_refused() {
    let [a, b, _] = three().await;
    let (id, data) = (chunk_id(1), content(4 << 20, 1));
    let good = a.header(id, &data, &[], 1);
    type Change = fn(&mut PutChunkHeader);
    let cases: [(ErrorCode, Change); 11] = [
        (ErrorCode::WrongNode, |h| h.node_id = 9),
        (ErrorCode::WrongCluster, |h| h.cluster_id = Bytes::from_static(&[8; 16])),
        (ErrorCode::WrongCluster, |h| h.cluster_id = Bytes::new()),
        (ErrorCode::InvalidArgument, |h| h.length = 0),
        (ErrorCode::InvalidArgument, |h| h.length = (64 << 20) + 1),
        (ErrorCode::InvalidArgument, |h| h.block_crc32c.truncate(3)),
        (ErrorCode::InvalidArgument, |h| h.chunk_id = Bytes::from_static(&[0; 32])),
        (ErrorCode::InvalidArgument, |h| h.sha256 = Bytes::from_static(&[0; 31])),
        (ErrorCode::InvalidArgument, |h| h.write_quorum = 0),
        (ErrorCode::NotEnoughNodes, |h| h.write_quorum = 2),
        (ErrorCode::Corrupt, |h| h.block_crc32c[17] ^= 1),
    ];
    for (n, (expected, change)) in cases.into_iter().enumerate() {
        let mut header = good.clone();
        change(&mut header);
        let error = put_raw(a.channel(), &header, data.clone()).await.expect_err("refused");
        assert_eq!(error.code, expected, "case {n}: {error}");
    }
    let twice = a.header(id, &data, &[b.forward(), b.forward()], 1);
    assert_eq!(put_raw(a.channel(), &twice, data.clone()).await.expect_err("twice").code, ErrorCode::InvalidArgument);
    // A replica under a reused address refuses, the others go on.
    let mistaken = ForwardTo { node_id: 5, ..b.forward() };
    let answer = a.put(id, &data, &[mistaken], 1).await.expect("own copy");
    eventually("refused", || !b.file(id).exists()).await;
    assert!(answer.stored == [1]);
    assert_eq!(b.tmp_files(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_chunk_again_is_success_and_another_content_is_not() {
    let [a, b, c] = three().await;
    let forward = [b.forward(), c.forward()];
    let (id, data) = (chunk_id(1), content(300_000, 1));
    for _ in 0..2 {
        assert_eq!(a.put(id, &data, &forward, 3).await.expect("stored").stored.len(), 3);
    }
    let back = [a.forward()];
    let both = tokio::join!(a.put(id, &data, &forward, 3), b.put(id, &data, &back, 2));
    assert!(both.0.is_ok() && both.1.is_ok(), "{both:?}");
    let error = a.put(id, &content(300_000, 2), &forward, 2).await.expect_err("another content");
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    // A failed repetition must not remove what was acknowledged before.
    let dead = ForwardTo { node_id: 9, address: NOWHERE.into() };
    a.put(id, &data, &[dead], 2).await.expect_err("no quorum");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(a.get(id, 0, 0).await.expect("still there").1 == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_calls() {
    let a = TestNode::start(1, &[]).await;
    let (id, data) = (chunk_id(1), content(1000, 1));
    a.put(id, &data, &[], 1).await.expect("stored");
    let mut control = a.control();
    let ids = vec![id_bytes(id.as_bytes()), id_bytes(chunk_id(2).as_bytes())];
    let stat = control.stat_chunks(StatChunksRequest { chunk_ids: ids }).await.expect("stat").into_inner();
    assert_eq!(stat.present, [true, false]);
    let status = control.node_status(dfs_proto::v1::NodeStatusRequest {}).await.expect("status").into_inner();
    assert_eq!((status.node_id, status.chunk_count, status.bytes_written), (1, 1, 1000));
    let delete =
        DeleteChunkRequest { chunk_id: id_bytes(id.as_bytes()), cluster_id: id_bytes(CLUSTER.as_bytes()), node_id: 1 };
    for existed in [true, false] {
        let answer = control.delete_chunk(delete.clone()).await.expect("deletes").into_inner();
        assert_eq!(answer.existed, existed);
    }
    let difference = a.server.node().changes.difference();
    assert_eq!((difference.added.len(), &difference.removed[..]), (0, &[id][..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_of_garbage_gets_an_error() {
    let a = TestNode::start(1, &[]).await;
    for path in [
        "/dfs.v1.StorageService/PutChunk",
        "/dfs.v1.StorageService/GetChunk",
        "/dfs.v1.ReplicationService/ReplicateChunk",
        "/dfs.v1.ReplicationService/Nothing",
    ] {
        let garbage = PutChunkHeader { length: 7, ..PutChunkHeader::default() };
        let mut channel = a.channel();
        let request = stream::request(path, stream::message_body(&garbage));
        let result = match stream::call(&mut channel, request).await {
            Ok(body) => stream::read_message::<PutChunkHeader>(&mut MessageReader::new(body)).await,
            Err(error) => Err(error),
        };
        assert!(result.is_err(), "{path}: {result:?}");
    }
}
