//! Gathers commands into entries.
//!
//! openraft makes one append and one flush for each proposal, one after the other. So commands that arrive while an entry is
//! under way are gathered into the next one: under load an entry has dozens of commands, alone a command waits for nothing.

use std::{sync::Arc, time::Duration};

use dfs_common::ErrorCode;
use dfs_proto::status::RpcError;
use openraft::error::ClientWriteError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::{
    core::Core,
    types::{Applied, Raft},
};
use crate::fsm::{Batch, Command, Outcome};

/// Commands that wait to be gathered.
pub(crate) const QUEUE_MAX: usize = 4096;
/// Entries under way at a time. One is being flushed while the next is gathered; more only make smaller entries.
const IN_FLIGHT_MAX: usize = 2;
/// Commands of one entry.
const COMMANDS_MAX: usize = 512;
/// Encoded bytes of the commands of one entry, unless a single one is larger: what a follower flushes well within a heartbeat.
const BYTES_MAX: usize = 1 << 20;
/// A command that is not agreed on after this time is answered as indeterminate.
const DEADLINE: Duration = Duration::from_secs(10);

/// A command on its way.
pub(crate) struct Proposal {
    command: Command,
    bytes: usize,
    reply: oneshot::Sender<Result<Outcome, RpcError>>,
}

/// Queues a command and waits for its outcome.
pub(crate) async fn propose(core: &Core, command: Command) -> Result<Outcome, RpcError> {
    core.settled().await;
    core.serving()?;
    let size = postcard::serialize_with_flavor(&command, postcard::ser_flavors::Size::default());
    let bytes = size.map_err(|e| RpcError::new(ErrorCode::Internal, format!("command: {e}")))?;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let (reply, outcome) = oneshot::channel();
    match tokio::time::timeout_at(deadline, core.proposals.send(Proposal { command, bytes, reply })).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => return Err(RpcError::new(ErrorCode::Unavailable, "the node is stopping")),
        Err(_) => return Err(RpcError::new(ErrorCode::Overloaded, "too many commands are queued")),
    }
    match tokio::time::timeout_at(deadline, outcome).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(indeterminate(core, "the node is stopping")),
        Err(_) => Err(indeterminate(core, "not agreed on within the deadline")),
    }
}

fn indeterminate(core: &Core, why: &str) -> RpcError {
    RpcError { leader: core.not_leader().leader, ..RpcError::new(ErrorCode::Indeterminate, why) }
}

/// Gathers and proposes until the node stops.
pub(crate) async fn run(core: Arc<Core>, mut queue: mpsc::Receiver<Proposal>) {
    let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut gatherer = Gatherer { held: None, last_ns: 0 };
    loop {
        let next = async {
            let first = match gatherer.held.take() {
                Some(held) => held,
                None => queue.recv().await?,
            };
            let slot = slots.clone().acquire_owned().await.ok()?;
            Some((first, slot))
        };
        let (first, slot) = tokio::select! {
            () = core.cancel.cancelled() => return,
            next = next => match next {
                Some(next) => next,
                None => return,
            },
        };
        let (batch, replies) = gatherer.gather(&core, first, &mut queue);
        submit(&core, batch, replies, slot).await;
    }
}

type Replies = Vec<oneshot::Sender<Result<Outcome, RpcError>>>;

struct Gatherer {
    /// Did not fit into the last entry.
    held: Option<Proposal>,
    /// Time of the last entry.
    last_ns: i64,
}

impl Gatherer {
    fn gather(&mut self, core: &Core, first: Proposal, queue: &mut mpsc::Receiver<Proposal>) -> (Batch, Replies) {
        let mut commands = Vec::new();
        let mut replies = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(proposal) = next.take().or_else(|| queue.try_recv().ok()) {
            // Who has given up was told that the outcome is unknown; not proposing it is one of the two.
            if proposal.reply.is_closed() {
                continue;
            }
            if !commands.is_empty() && bytes + proposal.bytes > BYTES_MAX {
                self.held = Some(proposal);
                break;
            }
            bytes += proposal.bytes;
            commands.push(proposal.command);
            replies.push(proposal.reply);
            if commands.len() == COMMANDS_MAX {
                break;
            }
        }
        // Time never runs backwards in the log, whatever the clocks of successive leaders say.
        self.last_ns = core.clock.now_ns(self.last_ns.max(core.replica.now_ns()));
        (Batch { now_ns: self.last_ns, entropy: rand::random(), commands }, replies)
    }
}

/// Proposes a batch, and has its outcomes handed out by a task of its own.
async fn submit(core: &Arc<Core>, batch: Batch, replies: Replies, slot: OwnedSemaphorePermit) {
    if batch.commands.is_empty() {
        return;
    }
    core.settled().await;
    let (term, raft) = match (core.serving(), core.raft.get()) {
        (Ok(term), Some(raft)) => (term, raft),
        (Err(error), _) => return refuse(replies, &error),
        (Ok(_), None) => return refuse(replies, &core.not_leader()),
    };
    // openraft keeps the order in which this is called.
    let answer = match raft.client_write_ff(Arc::new(batch)).await {
        Ok(answer) => answer,
        Err(fatal) => return refuse(replies, &indeterminate(core, &fatal.to_string())),
    };
    let core = core.clone();
    core.clone().tasks.spawn(async move {
        let answer = tokio::select! {
            answer = answer => answer.map_err(|_| "the node is stopping".to_owned()),
            () = leadership_ends(&core, term) => Err("the leader was replaced".to_owned()),
            () = tokio::time::sleep(DEADLINE) => Err("not agreed on within the deadline".to_owned()),
        };
        match answer {
            Ok(Ok(write)) => hand_out(&core, write.data, replies),
            // The entry may have been in the log already when another leader took over, and may survive elsewhere.
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => {
                refuse(replies, &indeterminate(&core, "the leader was replaced"));
            }
            Ok(Err(error)) => refuse(replies, &indeterminate(&core, &error.to_string())),
            Err(why) => refuse(replies, &indeterminate(&core, &why)),
        }
        drop(slot);
    });
}

async fn leadership_ends(core: &Core, term: u64) {
    let mut leadership = core.leadership.subscribe();
    // The sender lives as long as the core.
    drop(leadership.wait_for(|now| !now.is_leader || now.term != term).await);
}

fn hand_out(core: &Core, applied: Applied, replies: Replies) {
    if applied.0.len() != replies.len() {
        let message = format!("{} outcomes of {} commands", applied.0.len(), replies.len());
        tracing::error!("{message}");
        return refuse(replies, &RpcError { code: ErrorCode::Internal, ..indeterminate(core, &message) });
    }
    for (reply, outcome) in replies.into_iter().zip(applied.0) {
        // Who has given up does not need it.
        drop(reply.send(Ok(outcome)));
    }
}

fn refuse(replies: Replies, error: &RpcError) {
    for reply in replies {
        drop(reply.send(Err(error.clone())));
    }
}

/// Proposes the commands that give the cluster its id and its first settings. Until then nothing else is proposed, so it goes past the queue.
pub(crate) async fn name_cluster(core: &Core, raft: &Raft, commands: Vec<Command>) -> Result<(), String> {
    let now_ns = core.clock.now_ns(core.replica.now_ns());
    let batch = Batch { now_ns, entropy: rand::random(), commands };
    let answer = raft.client_write_ff(Arc::new(batch)).await.map_err(|e| e.to_string())?;
    let answer = tokio::time::timeout(DEADLINE, answer).await.map_err(|e| e.to_string())?;
    let written = answer.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    match written.data.0.into_iter().next() {
        Some(Ok(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    }
}

/// Takes a snapshot soon.
pub(crate) async fn trigger_snapshot(raft: &Raft) -> Result<(), RpcError> {
    raft.trigger().snapshot().await.map_err(|e| RpcError::new(ErrorCode::Unavailable, e.to_string()))
}
