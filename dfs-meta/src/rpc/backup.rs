//! Backups: the state as of a moment, streamed while the cluster goes on.

use std::{
    io::{self, Write},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use dfs_common::backup;
use dfs_proto::{status::RpcError, v1};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

use super::Service;
use crate::{
    control::unix_now_ns,
    fsm::{Fact, State},
};

/// Bytes of one message.
const PART_BYTES: usize = 1 << 20;
/// Messages that wait for the client.
const QUEUE_PARTS: usize = 4;
/// A client that takes nothing for this long is given up: a clone of the state costs memory while it is changed.
const STALL_MAX: Duration = Duration::from_secs(30);

type Part = Result<v1::BackupPart, Status>;

impl Service {
    pub(super) async fn handle_backup(
        &self,
        _: v1::BackupRequest,
    ) -> Result<impl Stream<Item = Part> + Send + use<>, RpcError> {
        // Everything that was acknowledged before is in it.
        self.raft.read(|_| ()).await?;
        let (state, last_index, last_term) = self.raft.freeze();
        let head = self.head(&state, last_index, last_term);
        let (parts, stream) = mpsc::channel::<Part>(QUEUE_PARTS);
        let (runtime, control) = (Handle::current(), self.control.clone());
        tokio::task::spawn_blocking(move || {
            let mut sink = Parts { parts: parts.clone(), buffer: BytesMut::new(), runtime: runtime.clone(), sent: 0 };
            let written = backup::write(&mut sink, &head, |out| state.write_snapshot(out));
            match written {
                Ok(()) => {
                    tracing::info!(last_index, inodes = head.inodes, bytes = sink.sent, "a backup was taken");
                    control.record_event(Fact::BackupMade { index: last_index, bytes: sink.sent });
                }
                Err(error) => {
                    tracing::info!(%error, "a backup was not finished");
                    // The client takes an end without a trailer for no backup anyway.
                    drop(runtime.block_on(tokio::time::timeout(
                        STALL_MAX,
                        parts.send(Err(Status::aborted(error.to_string()))),
                    )));
                }
            }
        });
        Ok(ReceiverStream::new(stream))
    }

    fn head(&self, state: &State, last_index: u64, last_term: u64) -> backup::Head {
        let (counters, settings) = (state.counters(), state.settings());
        backup::Head {
            cluster_id: state.cluster_id().map(|id| id.to_string()).unwrap_or_default(),
            epoch: self.raft.epoch(),
            created_ns: unix_now_ns(),
            made_by: self.raft.status().me.name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            last_index,
            last_term,
            chunk_size: settings.chunk_size,
            replication: settings.replication,
            write_quorum: settings.write_quorum,
            inodes: counters.inodes,
            chunks: counters.chunks,
            nodes: state.nodes().count() as u64,
            pending: counters.pending,
        }
    }
}

/// Cuts what is written into messages.
struct Parts {
    parts: mpsc::Sender<Part>,
    buffer: BytesMut,
    runtime: Handle,
    sent: u64,
}

impl Parts {
    fn send(&mut self) -> io::Result<()> {
        let data: Bytes = self.buffer.split().freeze();
        self.sent += data.len() as u64;
        if data.is_empty() {
            return Ok(());
        }
        let sent = self.parts.send(Ok(v1::BackupPart { data }));
        match self.runtime.block_on(tokio::time::timeout(STALL_MAX, sent)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::other("the client has gone")),
            Err(_) => Err(io::Error::other(format!("the client took nothing for {STALL_MAX:?}"))),
        }
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PART_BYTES - self.buffer.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.buffer.extend_from_slice(taken);
        if self.buffer.len() == PART_BYTES {
            self.send()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
