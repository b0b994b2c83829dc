//! Storage nodes in this process, and the few calls that tests make.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Parser as _;
use dfs_common::{
    ChunkId, ClusterId, FileId, NodeId,
    checksum::{block_crcs, sha256},
};
use dfs_proto::{
    convert::id_bytes,
    status::RpcError,
    stream::{self, Item, MessageReader, Reader},
    transport,
    v1::{
        ForwardTo, GetChunkHeader, GetChunkRequest, PutChunkHeader, PutChunkResponse,
        storage_service_client::StorageServiceClient,
    },
};
use dfs_storage::{
    config::Config,
    data_dir::{DataDir, Membership},
    engine::ChunkFacts,
    server::Server,
};
use tempfile::TempDir;
use tonic::transport::Channel;

pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Nobody listens there.
pub(crate) const NOWHERE: &str = "127.0.0.1:1";

pub(crate) struct TestNode {
    pub(crate) id: u32,
    pub(crate) server: Server,
    pub(crate) dir: TempDir,
}

/// Bytes that differ from block to block.
pub(crate) fn content(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub(crate) fn chunk_id(n: u64) -> ChunkId {
    ChunkId::derive(FileId([9; 16]), n, 0)
}

pub(crate) fn facts(id: ChunkId, data: &[u8]) -> ChunkFacts {
    ChunkFacts {
        id,
        file_id: FileId([9; 16]),
        length: data.len() as u32,
        sha256: sha256(data),
        block_crcs: block_crcs(data),
    }
}

pub(crate) fn config(dir: &Path, id: u32, meta: &str, more: &[&str]) -> Config {
    let (dir, name) = (dir.to_str().expect("UTF-8"), format!("storage-{id}"));
    let base = ["dfs-storage", "--data-dir", dir, "--meta", meta, "--name", &name, "--listen", "127.0.0.1:0"];
    Config::parse_from(base.iter().copied().chain(more.iter().copied()))
}

impl TestNode {
    /// A node that was registered before, so that it serves without metadata.
    pub(crate) async fn start(id: u32, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("tmp");
        let mut data_dir = DataDir::open(dir.path(), "x").expect("fresh");
        data_dir.join(Membership { cluster: CLUSTER, node: NodeId(id), epoch: 0 }).expect("stamp");
        drop(data_dir);
        let server = Server::start(&config(dir.path(), id, NOWHERE, more)).await.expect("starts");
        Self { id, server, dir }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub(crate) fn forward(&self) -> ForwardTo {
        ForwardTo { node_id: self.id, address: self.address().to_string() }
    }

    pub(crate) fn file(&self, id: ChunkId) -> PathBuf {
        chunk_file(self.dir.path(), id)
    }

    pub(crate) fn channel(&self) -> Channel {
        transport::connect(&self.address().to_string(), Duration::from_secs(2)).expect("address")
    }

    pub(crate) fn control(&self) -> StorageServiceClient<Channel> {
        StorageServiceClient::new(self.channel())
    }

    pub(crate) fn tmp_files(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("tmp")).expect("list").count()
    }

    /// Bad copies that were set aside.
    pub(crate) fn quarantined(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("quarantine")).expect("list").count()
    }

    pub(crate) fn header(&self, id: ChunkId, data: &[u8], forward: &[ForwardTo], quorum: u32) -> PutChunkHeader {
        let facts = facts(id, data);
        PutChunkHeader {
            cluster_id: id_bytes(CLUSTER.as_bytes()),
            chunk_id: id_bytes(id.as_bytes()),
            file_id: id_bytes(facts.file_id.as_bytes()),
            length: facts.length,
            sha256: id_bytes(&facts.sha256),
            block_crc32c: facts.block_crcs,
            forward: forward.to_vec(),
            write_quorum: quorum,
            capability: Bytes::new(),
            node_id: self.id,
        }
    }

    pub(crate) async fn put(
        &self,
        id: ChunkId,
        data: &Bytes,
        forward: &[ForwardTo],
        quorum: u32,
    ) -> Result<PutChunkResponse, RpcError> {
        put_raw(self.channel(), &self.header(id, data, forward, quorum), data.clone()).await
    }

    pub(crate) async fn get(
        &self,
        id: ChunkId,
        offset: u32,
        length: u32,
    ) -> Result<(GetChunkHeader, Vec<u8>), RpcError> {
        get_raw(
            self.channel(),
            GetChunkRequest {
                chunk_id: id_bytes(id.as_bytes()),
                offset,
                length,
                capability: Bytes::new(),
                node_id: self.id,
                cluster_id: id_bytes(CLUSTER.as_bytes()),
            },
        )
        .await
    }
}

pub(crate) fn chunk_file(dir: &Path, id: ChunkId) -> PathBuf {
    let hex = id.to_string();
    dir.join("chunks").join(&hex[..2]).join(format!("0{}", &hex[2..3])).join(format!("{hex}.chunk"))
}

pub(crate) async fn put_raw(
    mut channel: Channel,
    header: &PutChunkHeader,
    data: Bytes,
) -> Result<PutChunkResponse, RpcError> {
    let request = stream::request("/dfs.v1.StorageService/PutChunk", stream::whole_body(header, data));
    let body = stream::call(&mut channel, request).await?;
    Ok(stream::read_message(&mut MessageReader::new(body)).await?.expect("an answer"))
}

pub(crate) async fn get_raw(
    mut channel: Channel,
    request: GetChunkRequest,
) -> Result<(GetChunkHeader, Vec<u8>), RpcError> {
    let request = stream::request("/dfs.v1.StorageService/GetChunk", stream::message_body(&request));
    let mut reader = Reader::<GetChunkHeader>::new(stream::call(&mut channel, request).await?);
    let header = reader.header().await?;
    let mut data = Vec::new();
    while let Some(item) = reader.next().await? {
        match item {
            Item::Data(piece) => data.extend_from_slice(&piece),
            Item::Header(_) => panic!("a second header"),
        }
    }
    Ok((header, data))
}

/// Polls until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A peer that takes connections and never says a word.
pub(crate) async fn hung_peer(node_id: u32) -> (ForwardTo, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let task = tokio::spawn(async move {
        let mut kept = vec![];
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    (ForwardTo { node_id, address }, task)
}
