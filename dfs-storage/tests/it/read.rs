//! GetChunk.

use std::{fs, os::unix::fs::FileExt as _};

use bytes::Bytes;
use dfs_common::{ErrorCode, checksum::BlockVerifier};
use dfs_proto::{convert::id_bytes, stream, v1::GetChunkRequest};

use crate::harness::{CLUSTER, TestNode, chunk_id, content, eventually, get_raw};

fn flip(node: &TestNode, id: dfs_common::ChunkId, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(node.file(id)).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_are_whole_blocks_that_verify() {
    let node = TestNode::start(1, &[]).await;
    let (id, data) = (chunk_id(1), content((4 << 20) - 77, 1));
    node.put(id, &data, &[], 1).await.expect("stored");
    let length = data.len() as u32;
    for (offset, wanted) in
        [(0, 0), (0, 1), (1, 65_536), (65_535, 2), (3 << 20, 0), (length - 1, 1), (100, 3 << 20), (0, length)]
    {
        let (header, read) = node.get(id, offset, wanted).await.expect("reads");
        let end = if wanted == 0 { length } else { offset + wanted };
        assert!(header.offset <= offset && header.offset + header.length >= end);
        assert_eq!((header.chunk_length, header.length as usize), (length, read.len()));
        assert!(read == data[header.offset as usize..][..read.len()], "{offset} + {wanted}");
        let mut verifier = BlockVerifier::new(header.block_crc32c);
        verifier.update(&read).and_then(|()| verifier.finish()).expect("blocks verify");
    }
    for (offset, wanted) in [(length, 0), (length - 1, 2), (u32::MAX, u32::MAX)] {
        let error = node.get(id, offset, wanted).await.expect_err("outside");
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_and_damaged_chunks_are_told_apart() {
    let node = TestNode::start(1, &[]).await;
    let error = node.get(chunk_id(9), 0, 0).await.expect_err("missing");
    assert_eq!(error.code, ErrorCode::ChunkMissing);
    assert_eq!(node.server.node().changes.difference().removed, [chunk_id(9)]);
    let (id, data) = (chunk_id(1), content(1 << 20, 1));
    node.put(id, &data, &[], 1).await.expect("stored");
    flip(&node, id, (1 << 20) + 5);
    let error = node.get(id, 0, 0).await.expect_err("footer");
    assert_eq!(error.code, ErrorCode::Corrupt);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_bytes_are_found_by_the_reader_or_on_demand_by_the_node() {
    for (more, found_by_node) in [(&[][..], false), (&["--verify-reads"], true)] {
        let node = TestNode::start(1, more).await;
        let (id, data) = (chunk_id(1), content(4 << 20, 1));
        node.put(id, &data, &[], 1).await.expect("stored");
        flip(&node, id, 3 << 20);
        for (offset, length) in [(0, 0), (3 << 20, 10)] {
            match node.get(id, offset, length).await {
                Ok((header, read)) => {
                    assert!(!found_by_node);
                    let mut verifier = BlockVerifier::new(header.block_crc32c);
                    verifier.update(&read).and_then(|()| verifier.finish()).expect_err("the reader finds it");
                }
                // The second time it may be in quarantine already.
                Err(error) => {
                    let expected = matches!(error.code, ErrorCode::Corrupt | ErrorCode::ChunkMissing);
                    assert!(found_by_node && expected, "{error}");
                }
            }
        }
        if found_by_node {
            eventually("it is set aside", || !node.file(id).exists()).await;
            assert_eq!(node.quarantined(), 1);
        } else {
            assert!(node.get(id, 0, 100).await.is_ok(), "good blocks are still served");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_addressees_are_refused() {
    let node = TestNode::start(1, &[]).await;
    let request = GetChunkRequest {
        chunk_id: id_bytes(chunk_id(1).as_bytes()),
        node_id: 1,
        cluster_id: id_bytes(CLUSTER.as_bytes()),
        ..GetChunkRequest::default()
    };
    let wrong_node = GetChunkRequest { node_id: 2, ..request.clone() };
    assert_eq!(get_raw(node.channel(), wrong_node).await.expect_err("node").code, ErrorCode::WrongNode);
    let wrong_cluster = GetChunkRequest { cluster_id: Bytes::new(), ..request.clone() };
    assert_eq!(get_raw(node.channel(), wrong_cluster).await.expect_err("cluster").code, ErrorCode::WrongCluster);
    let hole = GetChunkRequest { chunk_id: Bytes::from_static(&[0; 32]), ..request };
    assert_eq!(get_raw(node.channel(), hole).await.expect_err("hole").code, ErrorCode::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stand_still_do_not_stop_others() {
    let node = TestNode::start(1, &["--memory", "16M"]).await;
    let (id, data) = (chunk_id(1), content(32 << 20, 1));
    node.put(id, &data, &[], 1).await.expect("stored");
    let request = GetChunkRequest {
        chunk_id: id_bytes(id.as_bytes()),
        node_id: 1,
        cluster_id: id_bytes(CLUSTER.as_bytes()),
        ..GetChunkRequest::default()
    };
    let mut standing = vec![];
    for _ in 0..8 {
        let mut channel = node.channel();
        let call = stream::request("/dfs.v1.StorageService/GetChunk", stream::message_body(&request));
        standing.push((stream::call(&mut channel, call).await.expect("answers"), channel));
    }
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let read = tokio::time::timeout(std::time::Duration::from_secs(30), node.get(id, 0, 0)).await.expect("in time");
    assert!(read.expect("reads").1 == data);
    drop(standing);
    eventually("streams end", || node.server.node().counters.streams.load(std::sync::atomic::Ordering::Relaxed) == 0)
        .await;
}
