//! Fake storage nodes: chunks in memory, forwarding by a shared registry.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dfs_common::{ErrorCode, checksum};
use dfs_proto::{
    convert::id_bytes,
    status::RpcError,
    transport,
    v1::{
        self,
        storage_service_server::{StorageService, StorageServiceServer},
    },
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::lock;

pub(crate) type Registry = Arc<Mutex<HashMap<u32, Arc<Disk>>>>;

/// What a node holds, and how it misbehaves.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) chunks: Mutex<HashMap<Bytes, Bytes>>,
    /// So many PutChunk calls fail with this code.
    pub(crate) fail_puts: AtomicU32,
    pub(crate) put_code: AtomicU32,
    /// Sends a flipped bit.
    pub(crate) corrupt: AtomicBool,
    /// Answers GetChunk and PutChunk this late, milliseconds.
    pub(crate) delay_ms: AtomicU64,
    pub(crate) puts: AtomicU32,
    pub(crate) gets: AtomicU32,
    pub(crate) down: AtomicBool,
}

pub(crate) struct Storage {
    pub(crate) id: u32,
    pub(crate) disk: Arc<Disk>,
    host: String,
    stop: CancellationToken,
}

struct Service {
    id: u32,
    registry: Registry,
    disk: Arc<Disk>,
}

impl Storage {
    pub(crate) async fn start(id: u32, registry: Registry) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let host = listener.local_addr().expect("bound").to_string();
        let disk = Arc::new(Disk::default());
        lock(&registry).insert(id, disk.clone());
        let service = Service { id, registry, disk: disk.clone() };
        let server =
            transport::server().add_service(StorageServiceServer::new(service).max_decoding_message_size(usize::MAX));
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                served = server.serve_with_incoming(transport::incoming(listener)) => served.expect("serves"),
                () = stopped.cancelled() => {}
            }
        });
        Self { id, disk, host, stop }
    }

    pub(crate) fn address(&self) -> v1::NodeAddress {
        v1::NodeAddress {
            node_id: self.id,
            address: self.host.clone(),
            name: format!("storage-{}", self.id),
            state: v1::NodeState::Alive.into(),
        }
    }

    pub(crate) fn kill(&self) {
        self.disk.down.store(true, Ordering::SeqCst);
        self.stop.cancel();
    }
}

impl Service {
    async fn enter(&self) {
        if self.disk.down.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(self.disk.delay_ms.load(Ordering::SeqCst))).await;
    }
}

fn fail<T>(code: ErrorCode) -> Result<T, Status> {
    Err(RpcError::from(code).into())
}

#[tonic::async_trait]
impl StorageService for Service {
    async fn put_chunk(
        &self,
        request: Request<Streaming<v1::PutChunkRequest>>,
    ) -> Result<Response<v1::PutChunkResponse>, Status> {
        self.enter().await;
        self.disk.puts.fetch_add(1, Ordering::SeqCst);
        let left = |left: u32| left.checked_sub(1);
        if self.disk.fail_puts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            let code = ErrorCode::from_wire(self.disk.put_code.load(Ordering::SeqCst)).unwrap_or(ErrorCode::Io);
            return fail(code);
        }
        let mut stream = request.into_inner();
        let (mut header, mut data) = (None, Vec::new());
        while let Some(message) = stream.message().await? {
            header = header.or(message.header);
            data.extend_from_slice(&message.data);
        }
        let header = header.expect("a header");
        assert_eq!(header.length as usize, data.len());
        assert_eq!(header.sha256, checksum::sha256(&data)[..]);
        assert_eq!(header.block_crc32c, checksum::block_crcs(&data));
        assert_eq!((header.node_id, header.cluster_id.as_ref()), (self.id, &[7u8; 16][..]));
        let data = Bytes::from(data);
        let mut response = v1::PutChunkResponse::default();
        for id in std::iter::once(self.id).chain(header.forward.iter().map(|to| to.node_id)) {
            let disk = lock(&self.registry).get(&id).expect("registered").clone();
            if disk.down.load(Ordering::SeqCst) {
                let code = ErrorCode::Unavailable as u32;
                response.failed.push(v1::ReplicaFailure { node_id: id, code, message: "down".into() });
                continue;
            }
            let before = lock(&disk.chunks).insert(header.chunk_id.clone(), data.clone());
            assert!(before.is_none(), "a chunk id is used once");
            response.stored.push(id);
        }
        Ok(Response::new(response))
    }

    type GetChunkStream = Pin<Box<dyn Stream<Item = Result<v1::GetChunkResponse, Status>> + Send>>;

    async fn get_chunk(&self, request: Request<v1::GetChunkRequest>) -> Result<Response<Self::GetChunkStream>, Status> {
        self.enter().await;
        self.disk.gets.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        let Some(data) = lock(&self.disk.chunks).get(&request.chunk_id).cloned() else {
            return fail(ErrorCode::ChunkMissing);
        };
        let start = request.offset as usize / checksum::BLOCK_BYTES * checksum::BLOCK_BYTES;
        let end = match request.length {
            0 => data.len(),
            length => (request.offset + length) as usize,
        };
        let end = end.next_multiple_of(checksum::BLOCK_BYTES).min(data.len());
        let wanted = data.slice(start..end);
        let header = v1::GetChunkHeader {
            chunk_length: u32::try_from(data.len()).expect("small"),
            offset: u32::try_from(start).expect("small"),
            length: u32::try_from(wanted.len()).expect("small"),
            sha256: id_bytes(&checksum::sha256(&data)),
            block_crc32c: checksum::block_crcs(&wanted),
        };
        let mut sent = wanted.to_vec();
        if self.disk.corrupt.load(Ordering::SeqCst)
            && let Some(byte) = sent.last_mut()
        {
            *byte ^= 1;
        }
        let pieces = sent.chunks(10_000).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        let first = v1::GetChunkResponse { header: Some(header), data: Bytes::new() };
        let rest = pieces.into_iter().map(|data| v1::GetChunkResponse { header: None, data });
        let messages: Vec<_> = std::iter::once(first).chain(rest).map(Ok).collect();
        Ok(Response::new(tokio_stream::iter(messages).boxed_stream()))
    }

    async fn delete_chunk(
        &self,
        _: Request<v1::DeleteChunkRequest>,
    ) -> Result<Response<v1::DeleteChunkResponse>, Status> {
        fail(ErrorCode::NotSupported)
    }

    async fn verify_chunk(
        &self,
        _: Request<v1::VerifyChunkRequest>,
    ) -> Result<Response<v1::VerifyChunkResponse>, Status> {
        fail(ErrorCode::NotSupported)
    }

    async fn stat_chunks(
        &self,
        request: Request<v1::StatChunksRequest>,
    ) -> Result<Response<v1::StatChunksResponse>, Status> {
        self.enter().await;
        let chunks = lock(&self.disk.chunks);
        let present = request.into_inner().chunk_ids.iter().map(|id| chunks.contains_key(id)).collect();
        Ok(Response::new(v1::StatChunksResponse { present, ..Default::default() }))
    }

    async fn node_status(&self, _: Request<v1::NodeStatusRequest>) -> Result<Response<v1::NodeStatusResponse>, Status> {
        Ok(Response::new(v1::NodeStatusResponse { node_id: self.id, ..Default::default() }))
    }
}

trait BoxedStream: Stream + Sized + Send + 'static {
    fn boxed_stream(self) -> Pin<Box<dyn Stream<Item = Self::Item> + Send>> {
        Box::pin(self.map(|item| item))
    }
}

impl<S: Stream + Send + 'static> BoxedStream for S {}
