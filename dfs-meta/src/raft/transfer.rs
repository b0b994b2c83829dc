//! Snapshots on their way to a node that lags: a stream of parts of [`PART_BYTES`], read from the file and written to a file, so
//! that memory stays at a few parts on either side whatever the size of the snapshot.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use dfs_common::{
    ErrorCode,
    crash::{self, Point},
};
use dfs_proto::{
    status::RpcError,
    v1::{RaftRequest, SnapshotPart},
};
use openraft::{Snapshot, raft::SnapshotResponse};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    peers::Peer,
    types::{RaftId, SnapshotMeta, TypeConfig, Vote},
};
use crate::store::{SnapshotDir, SnapshotFile};

/// Bytes of one part.
const PART_BYTES: usize = 1 << 20;
/// Parts read ahead of the network.
const QUEUE_PARTS: usize = 2;
/// The peer must take a part within this time.
const STALL_MAX: Duration = Duration::from_secs(10);
/// The whole transfer, with its installation. Only an end for what the stall limit does not see.
const TRANSFER_MAX: Duration = Duration::from_secs(3600);

/// Why a snapshot did not arrive.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The peer refused or went away.
    Peer(RpcError),
    /// Our own file cannot be read.
    Local(io::Error),
}

/// Sends `snapshot` and waits until the peer has installed it.
pub(crate) async fn send(
    peer: &Peer,
    vote: Vote,
    snapshot: Snapshot<TypeConfig>,
) -> Result<SnapshotResponse<RaftId>, SendError> {
    let internal = |e: postcard::Error| SendError::Local(io::Error::other(e));
    let header = postcard::to_allocvec(&(vote, &snapshot.meta)).map_err(internal)?;
    let header = peer.request(header.into());
    let (parts, stream) = mpsc::channel(QUEUE_PARTS);
    tracing::info!(peer = peer.member().name, bytes = snapshot.snapshot.length(), meta = %snapshot.meta, "sending a snapshot");
    let feed = feed(Arc::new(*snapshot.snapshot), header, parts);
    let install = peer.install(ReceiverStream::new(stream), TRANSFER_MAX);
    tokio::pin!(feed, install);
    // An answer before the last part is a refusal; a failure to read ends the stream early and matters more than the answer.
    let mut fed = false;
    let reply = loop {
        tokio::select! {
            read = &mut feed, if !fed => {
                read?;
                fed = true;
            }
            reply = &mut install => break reply.map_err(SendError::Peer)?,
        }
    };
    postcard::from_bytes(&reply.payload).map_err(internal)
}

async fn feed(
    file: Arc<SnapshotFile>,
    header: RaftRequest,
    parts: mpsc::Sender<SnapshotPart>,
) -> Result<(), SendError> {
    let mut part = SnapshotPart { header: Some(header), data: Bytes::new() };
    let mut offset = 0;
    loop {
        match tokio::time::timeout(STALL_MAX, parts.send(std::mem::take(&mut part))).await {
            Ok(Ok(())) => {}
            // The call ended; its answer says why.
            Ok(Err(_)) => return Ok(()),
            Err(_) => return Err(SendError::Peer(RpcError::new(ErrorCode::TimedOut, "the snapshot is not taken"))),
        }
        let source = file.clone();
        let read = dfs_proto::machine::spawn_blocking(move || source.read_at(offset, PART_BYTES)).await;
        let bytes = read.map_err(io::Error::other).and_then(|read| read).map_err(SendError::Local)?;
        if bytes.is_empty() {
            return Ok(());
        }
        offset += bytes.len() as u64;
        part.data = bytes.into();
    }
}

/// Receives snapshots, one at a time.
#[derive(Debug)]
pub(crate) struct Receiver {
    dir: Arc<SnapshotDir>,
    turn: Arc<Semaphore>,
}

/// A snapshot that arrived whole.
pub(crate) struct Received {
    pub(crate) vote: Vote,
    pub(crate) snapshot: Snapshot<TypeConfig>,
    /// Held until it is installed.
    pub(crate) turn: OwnedSemaphorePermit,
}

impl Receiver {
    pub(crate) fn new(dir: Arc<SnapshotDir>) -> Self {
        Self { dir, turn: Arc::new(Semaphore::new(1)) }
    }

    /// Receives the rest of a stream whose first part was `header`. The file is checked as a whole here, because a failure to
    /// install it later would end the node.
    pub(crate) async fn receive(
        &self,
        header: &RaftRequest,
        mut parts: Streaming<SnapshotPart>,
    ) -> Result<Received, RpcError> {
        let busy = |_| RpcError::new(ErrorCode::Unavailable, "another snapshot is being received");
        let turn = self.turn.clone().try_acquire_owned().map_err(busy)?;
        let malformed = |e| RpcError::new(ErrorCode::InvalidArgument, format!("snapshot header: {e}"));
        let (vote, meta): (Vote, SnapshotMeta) = postcard::from_bytes(&header.payload).map_err(malformed)?;
        let dir = self.dir.clone();
        let mut incoming = blocking(move || dir.receive().map_err(io::Error::from)).await?;
        loop {
            let next = tokio::time::timeout(STALL_MAX, parts.message()).await;
            let next = next.map_err(|_| RpcError::new(ErrorCode::TimedOut, "the snapshot stopped coming"))?;
            let Some(part) = next? else { break };
            incoming = blocking(move || incoming.push(&part.data).map(|()| incoming)).await?;
        }
        let announced = meta.last_log_id;
        let file = blocking(move || {
            let file = incoming.finish()?;
            if file.head()?.meta.last_log_id != announced {
                return Err(io::Error::other("it is not the one that was announced"));
            }
            Ok(file)
        })
        .await?;
        crash::point(Point::SnapshotReceived);
        tracing::info!(bytes = file.length(), %meta, "received a snapshot");
        Ok(Received { vote, snapshot: Snapshot { meta, snapshot: Box::new(file) }, turn })
    }
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, RpcError> {
    let done = dfs_proto::machine::spawn_blocking(f).await.map_err(io::Error::other).and_then(|done| done);
    done.map_err(|e| RpcError::new(ErrorCode::Io, format!("snapshot: {e}")))
}
