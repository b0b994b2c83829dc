//! Sends a chunk to another node: for uploads while their bytes arrive, and for repairs.
//!
//! ```text
//! this node                          the other node
//!   header + bytes  ───────────────►
//!   bytes           ───────────────►
//!                   ◄───────────────  received = 1 MiB
//!   ...                               ...
//!                   ◄───────────────  received = length, done = true: durable
//! ```
//!
//! The answers are the window: what was sent and not received yet is what the other end owes. If it owes something and does
//! not move for a while it is given up; while it owes nothing, time is not counted against it.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dfs_common::ErrorCode;
use dfs_proto::{
    status::RpcError,
    stream::{self, MessageReader, Sender},
    v1::{PutChunkHeader, ReplicateChunkResponse},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tonic::{body::Body, transport::Channel};

use crate::{
    budget::Budget,
    ingest::{Batch, batch_bytes},
};

/// Path of the call.
pub const PATH: &str = "/dfs.v1.ReplicationService/ReplicateChunk";
/// HTTP/2 pieces that wait between us and the connection; the window of the stream bounds the rest.
const FRAMES: usize = 8;
/// How often a stall is looked for.
const TICK: Duration = Duration::from_millis(100);
/// No copy takes longer than this, however steadily it creeps.
const COPY_MAX: Duration = Duration::from_secs(120);

/// When a receiver is given up.
pub struct StallRule<'a> {
    /// After this time without progress.
    pub patience: Duration,
    /// After this time while others wait for the memory of this budget.
    pub contended: Option<(&'a Budget, Duration)>,
}

impl StallRule<'_> {
    fn patience_now(&self) -> Duration {
        match self.contended {
            Some((budget, patience)) if budget.contended() => patience,
            _ => self.patience,
        }
    }
}

struct Progress {
    sent: AtomicU64,
    received: AtomicU64,
    /// All bytes were handed over; what is owed now is the outcome.
    complete: AtomicBool,
    /// When the other end last moved, or began to owe.
    since: Mutex<Instant>,
}

impl Progress {
    fn new() -> Self {
        Self {
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            since: Mutex::new(Instant::now()),
        }
    }

    fn owes(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
            || self.sent.load(Ordering::Relaxed) > self.received.load(Ordering::Relaxed)
    }

    fn moved(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn still_for(&self) -> Duration {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    fn sending(&self, bytes: usize) {
        if !self.owes() {
            self.moved();
        }
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Sends the chunk of `header`, whose bytes come in `queue`, and returns when the other node has it durably.
///
/// # Errors
/// The other node's refusal; [`ErrorCode::Indeterminate`] if the connection broke; [`ErrorCode::TimedOut`] if it stalled;
/// [`ErrorCode::Unavailable`] if the queue ended early.
pub async fn send(
    mut channel: Channel,
    header: PutChunkHeader,
    queue: mpsc::Receiver<Batch>,
    rule: StallRule<'_>,
) -> Result<(), RpcError> {
    let progress = Progress::new();
    let (sender, body) = stream::body(FRAMES);
    let exchange = async {
        let receive = async {
            let answers = stream::call(&mut channel, stream::request(PATH, body)).await?;
            receive(answers, &progress).await
        };
        tokio::pin!(receive);
        tokio::select! {
            biased;
            // An outcome before everything is sent is a refusal.
            outcome = &mut receive => return outcome,
            pumped = pump(sender, header, queue, &progress) => match pumped {
                Ok(()) => {}
                Err(Pump::Abandoned) => return Err(RpcError::new(ErrorCode::Unavailable, "the sender gave up")),
                // The answer says why the other end closed.
                Err(Pump::Closed) => {}
            },
        }
        receive.await
    };
    tokio::select! {
        outcome = exchange => outcome,
        stalled = watch(&progress, &rule) => Err(stalled),
    }
}

enum Pump {
    Abandoned,
    Closed,
}

async fn pump(
    mut sender: Sender,
    header: PutChunkHeader,
    mut queue: mpsc::Receiver<Batch>,
    progress: &Progress,
) -> Result<(), Pump> {
    let length = u64::from(header.length);
    let mut header = Some(header);
    let mut sent = 0;
    while sent < length {
        let batch = queue.recv().await.ok_or(Pump::Abandoned)?;
        sent += batch_bytes(&batch) as u64;
        for piece in batch {
            progress.sending(piece.len());
            sender.send::<PutChunkHeader>(header.take().as_ref(), piece).await.map_err(|_| Pump::Closed)?;
        }
    }
    sender.end();
    progress.moved();
    progress.complete.store(true, Ordering::Relaxed);
    Ok(())
}

async fn receive(answers: Body, progress: &Progress) -> Result<(), RpcError> {
    let mut answers = MessageReader::new(answers);
    while let Some(answer) = stream::read_message::<ReplicateChunkResponse>(&mut answers).await? {
        progress.received.fetch_max(answer.received.into(), Ordering::Relaxed);
        progress.moved();
        if answer.done {
            return Ok(());
        }
    }
    Err(RpcError::new(ErrorCode::Indeterminate, "the other node ended the copy without an outcome"))
}

async fn watch(progress: &Progress, rule: &StallRule<'_>) -> RpcError {
    let start = Instant::now();
    loop {
        sleep(TICK).await;
        let patience = rule.patience_now();
        if progress.owes() && progress.still_for() >= patience {
            return RpcError::new(ErrorCode::TimedOut, format!("no progress for {patience:?}"));
        }
        if start.elapsed() >= COPY_MAX {
            return RpcError::new(ErrorCode::TimedOut, format!("the copy took more than {COPY_MAX:?}"));
        }
    }
}
