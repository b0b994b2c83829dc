//! GetChunk: sends a chunk or a range of it.
//!
//! A range is widened to whole 64 KiB blocks, so that the reader can check it with the block checksums in the header. Small
//! ranges are read by one call into the engine and sent as one message; larger ones are read ahead of the network by a few
//! messages.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use dfs_common::{ChunkId, ErrorCode, checksum::BLOCK_BYTES};
use dfs_proto::{
    status::RpcError,
    stream::{self, Closed, MESSAGE_BYTES, MessageReader, Sender},
    v1::{GetChunkHeader, GetChunkRequest},
};
use http::Response;
use tokio::time::{Instant, sleep, timeout};
use tonic::body::Body;

use super::check;
use crate::{
    buffers::Held,
    engine::{ChunkEngine, ChunkFacts, EngineError, StoredChunk},
    node::Node,
};

/// Ranges up to this many bytes take the short way.
const SMALL_BYTES: u32 = 128 << 10;
/// HTTP/2 pieces between the disk and the network: two a message, so four messages are read ahead.
const FRAMES: usize = 8;
/// A reader that takes nothing for so many times the stall limit is given up. Longer than for writers: it may wait for its
/// own consumer.
const READER_PATIENCE: u32 = 6;
/// How long a stream waits for memory before it looks again whether it has any message in work.
const MEMORY_WAIT: Duration = Duration::from_millis(20);

pub(super) async fn get_chunk(node: Arc<Node>, body: Body) -> Response<Body> {
    match handle(&node, body).await {
        Ok(body) => stream::response(body),
        Err(error) => stream::error_response(error),
    }
}

async fn handle(node: &Arc<Node>, body: Body) -> Result<Body, RpcError> {
    let mut reader = MessageReader::new(body);
    let request = timeout(node.limits.stall, stream::read_message::<GetChunkRequest>(&mut reader))
        .await
        .map_err(|_| RpcError::new(ErrorCode::TimedOut, "the request did not come"))??
        .ok_or_else(|| RpcError::new(ErrorCode::InvalidArgument, "an empty request"))?;
    check::addressee(node, &request.cluster_id, request.node_id)?;
    let id = check::chunk_id(&request.chunk_id)?;
    let opened = {
        let (node, verify) = (node.clone(), node.limits.verify_reads);
        let engine = node.engine.clone();
        node.disk.run(move || open_and_read_small(engine.as_ref(), id, request.offset, request.length, verify)).await?
    };
    let Opened { chunk, range, small } = opened.map_err(|error| failed(node, id, error))?;
    let header = range.header(chunk.facts());
    let (mut sender, body) = stream::body(FRAMES);
    if let Some(data) = small {
        node.counters.bytes_read.fetch_add(data.len() as u64, Ordering::Relaxed);
        let sent = async {
            sender.send(Some(&header), data).await?;
            sender.finish().await
        };
        // The body takes these few frames without waiting, and nobody can have closed it yet.
        let _: Result<(), Closed> = sent.await;
        return Ok(body);
    }
    let task_node = node.clone();
    node.tasks.spawn(async move {
        let _mark = task_node.stream_mark();
        if let Err(error) = send_range(&task_node, chunk, range, header, &mut sender).await {
            match error {
                Sending::Closed => {}
                Sending::Failed(error) => {
                    let _ = sender.fail(error).await;
                }
            }
            return;
        }
        let _ = sender.finish().await;
    });
    Ok(body)
}

fn failed(node: &Node, id: ChunkId, error: EngineError) -> RpcError {
    let error = node.wire_error(error);
    node.note_bad_copy(id, &error);
    error
}

/// Bytes of a chunk, whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    offset: u32,
    length: u32,
}

impl Range {
    /// Widens what was asked for; `length` 0 means to the end.
    fn widened(facts: &ChunkFacts, offset: u32, length: u32) -> Result<Self, EngineError> {
        let block = BLOCK_BYTES as u64;
        let end = if length == 0 { u64::from(facts.length) } else { u64::from(offset) + u64::from(length) };
        if offset >= facts.length || end > u64::from(facts.length) {
            return Err(EngineError::Length { id: facts.id, expected: end, found: facts.length.into() });
        }
        let start = u64::from(offset) / block * block;
        let end = end.next_multiple_of(block).min(facts.length.into());
        let narrow = |number: u64| u32::try_from(number).expect("at most the chunk's length");
        Ok(Self { offset: narrow(start), length: narrow(end - start) })
    }

    fn header(self, facts: &ChunkFacts) -> GetChunkHeader {
        let first = self.offset as usize / BLOCK_BYTES;
        let blocks = (self.length as usize).div_ceil(BLOCK_BYTES);
        GetChunkHeader {
            chunk_length: facts.length,
            offset: self.offset,
            length: self.length,
            sha256: Bytes::copy_from_slice(&facts.sha256),
            block_crc32c: facts.block_crcs[first..first + blocks].to_vec(),
        }
    }
}

struct Opened {
    chunk: Arc<dyn StoredChunk>,
    range: Range,
    small: Option<Bytes>,
}

fn open_and_read_small(
    engine: &dyn ChunkEngine,
    id: ChunkId,
    offset: u32,
    length: u32,
    verify: bool,
) -> Result<Opened, EngineError> {
    let chunk = engine.open(id)?;
    let range = Range::widened(chunk.facts(), offset, length)?;
    if range.length > SMALL_BYTES {
        return Ok(Opened { chunk, range, small: None });
    }
    let mut bytes = vec![0; range.length as usize];
    read(chunk.as_ref(), range.offset, &mut bytes, verify)?;
    Ok(Opened { chunk, range, small: Some(bytes.into()) })
}

fn read(chunk: &dyn StoredChunk, offset: u32, buffer: &mut [u8], verify: bool) -> Result<(), EngineError> {
    chunk.read_at(buffer, offset)?;
    if verify {
        let facts = chunk.facts();
        facts
            .check_blocks(offset, buffer)
            .map_err(|mismatch| EngineError::Corrupt { id: facts.id, reason: mismatch.to_string() })?;
    }
    Ok(())
}

enum Sending {
    Closed,
    Failed(RpcError),
}

async fn send_range(
    node: &Arc<Node>,
    chunk: Arc<dyn StoredChunk>,
    range: Range,
    header: GetChunkHeader,
    sender: &mut Sender,
) -> Result<(), Sending> {
    let (mut header, stream_mark) = (Some(header), Arc::new(()));
    let (mut offset, end) = (range.offset, range.offset + range.length);
    let verify = node.limits.verify_reads;
    while offset < end {
        let length = (end - offset).min(MESSAGE_BYTES as u32);
        let grant = memory(node, length as usize, &stream_mark).await.map_err(Sending::Failed)?;
        let held = Held { grant, stream: stream_mark.clone() };
        let mut buffer = node.buffers.take(length as usize, held);
        let part = chunk.clone();
        let filled = node.disk.run(move || read(part.as_ref(), offset, buffer.as_mut_slice(), verify).map(|()| buffer));
        let buffer = filled
            .await
            .map_err(Sending::Failed)?
            .map_err(|error| Sending::Failed(failed(node, chunk.facts().id, error)))?;
        let patience = node.limits.stall * READER_PATIENCE;
        match timeout(patience, sender.send(header.take().as_ref(), buffer.freeze())).await {
            Ok(Ok(())) => {}
            Ok(Err(Closed)) => return Err(Sending::Closed),
            Err(_) => {
                let message = format!("the reader took nothing for {patience:?}");
                return Err(Sending::Failed(RpcError::new(ErrorCode::TimedOut, message)));
            }
        }
        node.counters.bytes_read.fetch_add(length.into(), Ordering::Relaxed);
        offset += length;
    }
    Ok(())
}

/// Memory for one message. A stream that has none in work always gets it in the end, over the budget if need be: readers that
/// stand still must not stop the others.
async fn memory(node: &Node, bytes: usize, stream_mark: &Arc<()>) -> Result<Option<crate::budget::Grant>, RpcError> {
    let budget = &node.budgets.reads;
    let deadline = Instant::now() + node.limits.stall * READER_PATIENCE;
    while Instant::now() < deadline {
        if let Some(grant) = budget.try_take(bytes) {
            return Ok(Some(grant));
        }
        let alone = Arc::strong_count(stream_mark) == 1;
        match timeout(MEMORY_WAIT, budget.take(bytes)).await {
            Ok(Ok(grant)) => return Ok(Some(grant)),
            _ if alone => return Ok(None),
            Ok(Err(_)) => sleep(MEMORY_WAIT).await, // too many wait
            Err(_) => {}
        }
    }
    Err(RpcError::new(ErrorCode::Overloaded, "no memory for this read within the deadline"))
}

#[cfg(test)]
mod tests {
    use dfs_common::FileId;

    use super::*;

    #[test]
    fn ranges_are_widened_to_blocks_and_checked() {
        let facts = ChunkFacts {
            id: ChunkId([1; 32]),
            file_id: FileId([0; 16]),
            length: 200_000,
            sha256: [0; 32],
            block_crcs: vec![1, 2, 3, 4],
        };
        let range = |offset, length| Range::widened(&facts, offset, length).map(|r| (r.offset, r.length)).ok();
        assert_eq!(range(0, 0), Some((0, 200_000)));
        assert_eq!(range(65_535, 2), Some((0, 131_072)));
        assert_eq!(range(65_536, 1), Some((65_536, 65_536)));
        assert_eq!(range(199_999, 1), Some((196_608, 3_392)));
        assert_eq!(range(199_999, 2), None);
        assert_eq!(range(200_000, 0), None);
        assert_eq!(range(1, u32::MAX), None);
        let header = Range::widened(&facts, 70_000, 70_000).expect("inside").header(&facts);
        assert_eq!((header.offset, header.length, header.block_crc32c), (65_536, 131_072, vec![2, 3]));
    }
}
