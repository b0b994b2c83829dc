//! Reports to metadata that nobody waits for: copies that came late, results of repairs.
//!
//! Each kind has a bounded queue and a task that sends it with retries for a while. What is lost when a queue is full or
//! metadata is away for long is found again otherwise: copies by the heartbeat's differences, repairs by the end of their
//! lease.

use std::{future::Future, sync::Arc, time::Duration};

use dfs_proto::v1;
use tokio::{sync::mpsc, time::timeout};

use crate::{meta_client::MetaClient, node::Node};

/// Reports of a kind that may wait.
const QUEUE: usize = 4096;
/// Receipts in one call.
const BATCH_MAX: usize = 512;
/// How long a batch waits for more. Each call costs metadata an entry of its log, and readers have enough copies meanwhile.
const LINGER: Duration = Duration::from_millis(100);
/// How long a report is retried.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// Where reports are put.
#[derive(Clone, Debug)]
pub struct Outbox {
    receipts: mpsc::Sender<v1::ChunkReceipt>,
    repairs: mpsc::Sender<v1::RepairOutcome>,
}

/// Where reports are taken from.
#[derive(Debug)]
pub struct Queues {
    receipts: mpsc::Receiver<v1::ChunkReceipt>,
    repairs: mpsc::Receiver<v1::RepairOutcome>,
}

impl Outbox {
    /// An outbox and its queues.
    #[must_use]
    pub fn new() -> (Self, Queues) {
        let (receipts, receipts_rx) = mpsc::channel(QUEUE);
        let (repairs, repairs_rx) = mpsc::channel(QUEUE);
        (Self { receipts, repairs }, Queues { receipts: receipts_rx, repairs: repairs_rx })
    }

    /// A copy became durable after the upload was answered.
    pub fn receipt(&self, receipt: v1::ChunkReceipt) {
        dropped(self.receipts.try_send(receipt).is_err(), "receipt of a late copy");
    }

    /// A repair ended.
    pub fn repaired(&self, outcome: v1::RepairOutcome) {
        dropped(self.repairs.try_send(outcome).is_err(), "result of a repair");
    }
}

fn dropped(full: bool, what: &str) {
    if full {
        tracing::debug!(what, "too many reports wait for metadata, one is dropped");
    }
}

impl Queues {
    /// Sends reports until the node stops. Runs as tasks of the node.
    pub fn run(self, node: &Arc<Node>, meta: &Arc<MetaClient>) {
        let Self { receipts, repairs } = self;
        spawn(node, send_receipts(receipts, node.clone(), meta.clone()));
        spawn(node, send_repairs(repairs, node.clone(), meta.clone()));
    }
}

fn spawn(node: &Arc<Node>, task: impl Future<Output = ()> + Send + 'static) {
    let stop = node.stop.clone();
    node.tasks.spawn(async move {
        stop.run_until_cancelled(task).await;
    });
}

async fn send_receipts(mut queue: mpsc::Receiver<v1::ChunkReceipt>, node: Arc<Node>, meta: Arc<MetaClient>) {
    while let Some(first) = queue.recv().await {
        let mut receipts = vec![first];
        // Ends early when the batch is full; a closed queue is noticed by the loop above.
        let _ = timeout(LINGER, async {
            while receipts.len() < BATCH_MAX {
                match queue.recv().await {
                    Some(receipt) => receipts.push(receipt),
                    None => break,
                }
            }
        })
        .await;
        let Ok(member) = node.member() else { continue };
        let request = v1::CommitChunkRequest { receipts, node_id: member.node.0 };
        let sent = meta
            .call(RETRY_FOR, |mut client| {
                let request = request.clone();
                async move { client.commit_chunk(request).await }
            })
            .await;
        if let Err(error) = sent {
            tracing::info!(%error, receipts = request.receipts.len(), "late copies could not be reported; heartbeats will");
        }
    }
}

/// Outcomes are told as they come; those that come while a call is on its way go together with the next one.
async fn send_repairs(mut queue: mpsc::Receiver<v1::RepairOutcome>, node: Arc<Node>, meta: Arc<MetaClient>) {
    let mut outcomes = Vec::new();
    while queue.recv_many(&mut outcomes, BATCH_MAX).await > 0 {
        let outcomes = std::mem::take(&mut outcomes);
        let Ok(member) = node.member() else { continue };
        let request = v1::ReportRepairResultRequest { node_id: member.node.0, outcomes };
        let sent = meta
            .call(RETRY_FOR, |mut client| {
                let request = request.clone();
                async move { client.report_repair_result(request).await }
            })
            .await;
        if let Err(error) = sent {
            tracing::info!(%error, jobs = request.outcomes.len(), "repairs could not be reported; their lease will end");
        }
    }
}
