//! ReplicateChunk: takes a copy from another node.

use std::sync::Arc;

use dfs_common::{
    ErrorCode,
    crash::{self, Point},
};
use dfs_proto::{
    status::RpcError,
    stream::{self, Reader, Sender},
    v1::{PutChunkHeader, ReplicateChunkResponse},
};
use http::Response;
use tokio::{sync::mpsc, time::timeout};
use tonic::body::Body;

use super::check;
use crate::{
    ingest::{self, Batch, Feed, batch_bytes},
    node::Node,
    writes::WriteMark,
};

/// Bytes between two answers.
const ACK_BYTES: usize = 1 << 20;
/// Batches that wait for the disk; more waits in the stream's window, at the sender.
const QUEUE: usize = 8;
/// Bytes of one copy in memory: a write in work, what waits for it and what is being gathered.
const COPY_BYTES_MAX: usize = ingest::WRITE_BYTES_MAX + (QUEUE + 2) * ingest::BATCH_BYTES;
/// Answers that wait to be sent: as many as a chunk of 64 MiB has, so that answering never waits for the sender.
const ANSWERS: usize = 72;

pub(super) fn replicate_chunk(node: &Arc<Node>, body: Body) -> Response<Body> {
    let (mut answers, answer_body) = stream::body(ANSWERS);
    let task = {
        let node = node.clone();
        async move {
            let _mark = node.stream_mark();
            // If the sender is gone nobody wants the outcome, so a failing answer is no error.
            let _ = match receive(&node, body, &mut answers).await {
                Ok(()) => answers.finish().await,
                Err(error) => {
                    tracing::debug!(%error, "a copy from another node failed");
                    answers.fail(error).await
                }
            };
        }
    };
    // The head of the answer goes out at once, so that the sender can watch the progress while it sends.
    node.tasks.spawn(task);
    stream::response(answer_body)
}

async fn receive(node: &Arc<Node>, body: Body, answers: &mut Sender) -> Result<(), RpcError> {
    let mut reader = Reader::<PutChunkHeader>::new(body);
    let stall = node.limits.stall;
    let header = timeout(stall, reader.header())
        .await
        .map_err(|_| RpcError::new(ErrorCode::TimedOut, "the header of a copy did not come"))??;
    let facts = check::put_header(node, &header)?;
    let length = facts.length;
    let _grant = node.budgets.copies.take(COPY_BYTES_MAX.min(length as usize)).await?;
    let mark = WriteMark::begin(node, facts.id)?;
    let (queue, incoming) = mpsc::channel(QUEUE);
    let write = ingest::write_local(node, facts, incoming, &mark);
    let feed = pass_on(Feed::new(&mut reader, length, stall), queue, answers);
    let (written, fed) = tokio::join!(write, feed);
    // A write that failed ends the feed and is its cause; a feed that failed ends the write as one that was given up.
    match (written, fed) {
        (Err(error), Ok(())) => return Err(error),
        (_, Err(error)) => return Err(error),
        (Ok(_), Ok(())) => {}
    }
    crash::point(Point::ReplicaStored);
    mark.acknowledged();
    // If the sender is gone the copy is still good; the heartbeat reports it.
    let _ = answers.send_message(&ReplicateChunkResponse { received: length, done: true }).await;
    Ok(())
}

/// Puts the batches into the disk's queue and answers with the progress, until the stream or the write ends.
async fn pass_on(mut feed: Feed<'_>, queue: mpsc::Sender<Batch>, answers: &mut Sender) -> Result<(), RpcError> {
    let (mut received, mut acknowledged) = (0, 0);
    while let Some(batch) = feed.next().await? {
        received += batch_bytes(&batch);
        if queue.send(batch).await.is_err() {
            return Ok(());
        }
        if received - acknowledged >= ACK_BYTES {
            acknowledged = received;
            let received = u32::try_from(received).expect("at most the chunk's length");
            answers
                .send_message(&ReplicateChunkResponse { received, done: false })
                .await
                .map_err(|_| RpcError::new(ErrorCode::Unavailable, "the sender went away"))?;
        }
    }
    Ok(())
}
