//! Chunk bytes on their way from the network to the disk and to other nodes.
//!
//! ```text
//! Reader ─► feed: batches of about 1/4 MiB ─┬─► queue ─► write_local (disk pool)
//!                                           ├─► queue ─► replicate::send (node 2)
//!                                           └─► queue ─► replicate::send (node 3)
//! ```
//!
//! A batch is a list of references to what came from the socket: no byte is copied, however many take it. A queue holds at most
//! one chunk's worth of batches; the bytes were taken from the memory budget before the first one was read, so a slow taker
//! does not hold up the others within a chunk, and cannot hold more than a chunk.
//! A queue that ends before the announced length means that the sender gave up: takers drop what they have.

use std::{mem, sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::{Bytes, BytesMut};
use dfs_common::ErrorCode;
use dfs_proto::{
    status::RpcError,
    stream::{Item, Reader},
    v1::PutChunkHeader,
};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    engine::{ChunkFacts, ChunkWriter, EngineError, Finished, Held},
    node::Node,
    writes::WriteMark,
};

/// Bytes gathered before they are handed on: enough that a batch pays for its thread hop, little enough that replicas start
/// before the primary has half of the chunk.
pub const BATCH_BYTES: usize = 256 << 10;
/// Pieces below this are copied together, so that a sender of tiny pieces cannot make us keep a record for each byte.
const SMALL_PIECE_BYTES: usize = 4 << 10;
/// Bytes awaited before the engine is called: less at a time makes the disk slow, more makes the end of a chunk late.
const WRITE_BYTES_MIN: usize = 2 << 20;
/// Bytes that one call into the engine takes if they are here.
pub const WRITE_BYTES_MAX: usize = 4 << 20;

/// Pieces that belong together, in order.
pub type Batch = Vec<Bytes>;

/// Batches that a queue must take for a chunk of `length` bytes so that putting one in never waits.
#[must_use]
pub fn queue_length(length: u32) -> usize {
    length as usize / BATCH_BYTES + 2
}

/// Bytes in a batch.
#[must_use]
pub fn batch_bytes(batch: &[Bytes]) -> usize {
    batch.iter().map(Bytes::len).sum()
}

/// Gathers pieces into batches.
#[derive(Debug, Default)]
struct Gatherer {
    batch: Batch,
    bytes: usize,
    small: BytesMut,
}

impl Gatherer {
    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len();
        if piece.len() < SMALL_PIECE_BYTES {
            self.small.extend_from_slice(&piece);
        } else {
            self.flush_small();
            self.batch.push(piece);
        }
    }

    fn flush_small(&mut self) {
        if !self.small.is_empty() {
            self.batch.push(self.small.split().freeze());
        }
    }

    fn take(&mut self) -> Batch {
        self.flush_small();
        self.bytes = 0;
        mem::take(&mut self.batch)
    }
}

/// Reads the bytes of one chunk from the network in batches.
pub struct Feed<'a> {
    reader: &'a mut Reader<PutChunkHeader>,
    stall: Duration,
    left: usize,
    gatherer: Gatherer,
}

impl<'a> Feed<'a> {
    /// A feed of exactly `length` bytes from `reader`, which may be silent for `stall`.
    #[must_use]
    pub fn new(reader: &'a mut Reader<PutChunkHeader>, length: u32, stall: Duration) -> Self {
        Self { reader, stall, left: length as usize, gatherer: Gatherer::default() }
    }

    /// The next batch; `None` when the stream ended after exactly the announced bytes.
    ///
    /// # Errors
    /// The stream broke, stalled, or is longer or shorter than announced.
    pub async fn next(&mut self) -> Result<Option<Batch>, RpcError> {
        loop {
            let silent = |_| RpcError::new(ErrorCode::TimedOut, format!("the sender was silent for {:?}", self.stall));
            let item = timeout(self.stall, self.reader.next()).await.map_err(silent)??;
            match item {
                Some(Item::Data(piece)) => {
                    let Some(left) = self.left.checked_sub(piece.len()) else {
                        return Err(RpcError::new(ErrorCode::InvalidArgument, "more bytes than announced"));
                    };
                    self.left = left;
                    self.gatherer.push(piece);
                    if self.gatherer.bytes >= BATCH_BYTES || left == 0 {
                        return Ok(Some(self.gatherer.take()));
                    }
                }
                Some(Item::Header(_)) => return Err(RpcError::new(ErrorCode::InvalidArgument, "a second header")),
                None if self.left == 0 => return Ok(None),
                None => {
                    let message = format!("{} bytes are missing", self.left);
                    return Err(RpcError::new(ErrorCode::InvalidArgument, message));
                }
            }
        }
    }
}

/// A chunk's bytes arriving in a queue, gathered into what one engine call writes.
struct Incoming {
    queue: mpsc::Receiver<Batch>,
    left: usize,
}

impl Incoming {
    async fn next(&mut self) -> Result<Batch, RpcError> {
        let gave_up = || RpcError::new(ErrorCode::Unavailable, "the sender gave up");
        let mut batch = self.queue.recv().await.ok_or_else(gave_up)?;
        let mut bytes = batch_bytes(&batch);
        while bytes < self.left.min(WRITE_BYTES_MAX) {
            let more = if bytes < WRITE_BYTES_MIN {
                self.queue.recv().await.ok_or_else(gave_up)?
            } else if let Ok(more) = self.queue.try_recv() {
                more
            } else {
                break;
            };
            bytes += batch_bytes(&more);
            batch.extend(more);
        }
        self.left = self.left.checked_sub(bytes).ok_or_else(gave_up)?;
        Ok(batch)
    }
}

/// Writes a chunk to the local disk as it arrives in `queue`, and notes it for metadata. A chunk that is here as a whole is
/// written by one call into the engine.
///
/// # Errors
/// The engine's, or the sender gave up; nothing is left behind then.
pub async fn write_local(
    node: &Arc<Node>,
    facts: ChunkFacts,
    queue: mpsc::Receiver<Batch>,
    mark: &WriteMark,
) -> Result<Finished, RpcError> {
    let held = Held { id: facts.id, file_id: facts.file_id, length: facts.length };
    let mut incoming = Incoming { queue, left: facts.length as usize };
    let mut facts = Some(facts);
    let mut writer: Option<Box<dyn ChunkWriter>> = None;
    let finished = loop {
        let batch = match incoming.next().await {
            Ok(batch) => batch,
            Err(error) => {
                // Dropping a writer removes its file, which is disk work too.
                node.disk.run(move || drop(writer)).await?;
                return Err(error);
            }
        };
        let (facts, current, complete) = (facts.take(), writer.take(), incoming.left == 0);
        let step = node
            .on_disk(move |engine| {
                let mut current = match (current, facts) {
                    (Some(writer), _) => writer,
                    (None, Some(facts)) => engine.begin(facts)?,
                    (None, None) => unreachable!("the writer is put back after every step but the last"),
                };
                current.append(&batch)?;
                // Freed here and not at the end of the fsync: others may wait for the memory.
                drop(batch);
                if complete { current.finish().map(Step::Done) } else { Ok::<_, EngineError>(Step::Going(current)) }
            })
            .await?;
        match step {
            Step::Going(current) => writer = Some(current),
            Step::Done(finished) => break finished,
        }
    };
    if finished == Finished::New {
        mark.made();
    }
    node.counters.bytes_written.fetch_add(held.length.into(), Ordering::Relaxed);
    node.changes.added(held);
    Ok(finished)
}

enum Step {
    Going(Box<dyn ChunkWriter>),
    Done(Finished),
}

#[cfg(test)]
mod tests {
    use dfs_proto::stream;

    use super::*;

    fn body_of(pieces: Vec<Vec<u8>>) -> Reader<PutChunkHeader> {
        let (mut sender, body) = stream::body(2 * pieces.len() + 2);
        tokio::spawn(async move {
            for piece in pieces {
                sender.send::<PutChunkHeader>(None, piece.into()).await.expect("open");
            }
            sender.end();
        });
        Reader::new(body)
    }

    async fn fed(pieces: Vec<Vec<u8>>, length: u32) -> Result<Vec<Batch>, RpcError> {
        let mut reader = body_of(pieces);
        let mut feed = Feed::new(&mut reader, length, Duration::from_secs(1));
        let mut batches = vec![];
        while let Some(batch) = feed.next().await? {
            batches.push(batch);
        }
        Ok(batches)
    }

    #[tokio::test]
    async fn tiny_pieces_are_gathered_and_large_ones_kept() {
        let pieces: Vec<Vec<u8>> = (0..1000).map(|i| vec![i as u8; if i == 500 { 300 << 10 } else { 10 }]).collect();
        let all: Vec<u8> = pieces.concat();
        let batches = fed(pieces, all.len() as u32).await.expect("whole");
        assert!(batches.iter().map(Vec::len).sum::<usize>() <= 4, "{batches:?}");
        assert!(batches.len() <= queue_length(all.len() as u32));
        assert_eq!(batches.concat().concat(), all);
    }

    #[tokio::test]
    async fn wrong_lengths_and_silence_are_refused() {
        assert_eq!(fed(vec![vec![1; 10]], 9).await.expect_err("long").code, ErrorCode::InvalidArgument);
        assert_eq!(fed(vec![vec![1; 10]], 11).await.expect_err("short").code, ErrorCode::InvalidArgument);
        let (_sender, body) = stream::body(1);
        let mut reader = Reader::new(body);
        let error = Feed::new(&mut reader, 1, Duration::from_millis(10)).next().await.expect_err("silent");
        assert_eq!(error.code, ErrorCode::TimedOut);
    }
}
