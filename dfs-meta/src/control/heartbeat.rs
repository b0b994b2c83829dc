//! What storage nodes report and what they are told.
//!
//! ```text
//!   node ── heartbeat: figures, differences, deletions done, inventory page ──► leader
//!        ◄── orders: deletions, repair jobs, the next inventory page ──────────
//! ```
//!
//! A difference is acknowledged only after what follows from it was agreed on, so a node repeats it until then. Orders are
//! derived anew for each answer: a lost answer loses nothing.

use std::time::Duration;

use dfs_common::{ChunkId, ErrorCode, NodeId, Uuid, node::NodeState};
use dfs_proto::status::RpcError;

use super::{
    Handle,
    detector::Accuser,
    inventory::{self, Held, Page},
    repair::Job,
    soft::Report,
};
use crate::fsm::{Command, Reply, Settings, State};

/// Chunks in one command: about 200 KiB in the log.
const BATCH: usize = 4096;

/// How long the heartbeat of a node that repairs waits for the next job. Well below the deadline of a heartbeat.
const JOB_WAIT: Duration = Duration::from_millis(250);

/// A storage node starts.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Kept in its data directory.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Failure domain; may be empty.
    pub rack: String,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes it holds.
    pub used_bytes: u64,
    /// Chunks it holds.
    pub chunk_count: u64,
    /// Random number of its process start.
    pub incarnation: u64,
}

/// A heartbeat.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// Who.
    pub node: NodeId,
    /// Of its process start.
    pub incarnation: u64,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes it holds.
    pub used_bytes: u64,
    /// Chunks it holds.
    pub chunk_count: u64,
    /// Streams it serves.
    pub active_streams: u32,
    /// Stored since the last acknowledged heartbeat.
    pub added: Vec<Held>,
    /// Deleted or found lost since then.
    pub removed: Vec<ChunkId>,
    /// Deletions done.
    pub deleted: Vec<ChunkId>,
    /// Nodes it could not reach.
    pub unreachable: Vec<NodeId>,
    /// Number of this difference.
    pub seq: u64,
    /// A page of its full inventory.
    pub page: Option<Page>,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    /// The node must register again.
    pub register_again: bool,
    /// Difference that was taken over.
    pub acked_seq: u64,
    /// Chunks to delete.
    pub delete: Vec<ChunkId>,
    /// Copies to send, with the address of each target.
    pub repair: Vec<(Job, String)>,
    /// Page of the inventory to send.
    pub inventory: Option<inventory::Request>,
    /// More deletions wait than fit.
    pub more: bool,
    /// Term of the leader.
    pub term: u64,
}

/// What a node's report says about one chunk that it holds.
enum Sighting {
    /// Recorded, or to be deleted anyway.
    Nothing,
    /// Referenced, and the record does not have this copy.
    Unrecorded,
    /// No version lists it.
    Unknown,
    /// It is not as long as the chunk is.
    WrongLength,
}

impl Handle {
    /// Registers a storage node. Returns its number and the cluster's settings.
    ///
    /// # Errors
    /// The state machine's refusals, or what [`crate::raft::Handle::propose`] says.
    pub async fn register(&self, asked: Registration) -> Result<(NodeId, Settings), RpcError> {
        let Registration { uuid, name, address, rack, capacity_bytes, used_bytes, chunk_count, incarnation } = asked;
        let command = Command::RegisterNode {
            uuid,
            name: name.clone(),
            address: address.clone(),
            rack: rack.clone(),
            capacity_bytes,
            incarnation,
        };
        let Reply::Node { node, created } = self.apply(command).await? else {
            return Err(RpcError::new(ErrorCode::Internal, "registration was answered with something else"));
        };
        self.lead(|soft, now| {
            soft.heard(node, Report { capacity_bytes, used_bytes, chunk_count, active_streams: 0 }, now);
            soft.inventories.restart(node, now);
        })?;
        tracing::info!(%node, name, address, rack, capacity_bytes, chunk_count, created, "storage node registered");
        self.judge(node).await?;
        Ok((node, self.inner.raft.peek(State::settings)))
    }

    /// A storage node stops in good order.
    ///
    /// # Errors
    /// As [`Handle::register`].
    pub async fn deregister(&self, node: NodeId, incarnation: u64) -> Result<(), RpcError> {
        self.apply(Command::DeregisterNode { node, incarnation }).await?;
        tracing::info!(%node, "storage node stopped");
        self.lead(|soft, _| soft.detector.left(node))
    }

    /// Takes a heartbeat over and says what to do.
    ///
    /// # Errors
    /// What [`crate::raft::Handle::propose`] says: the node then repeats the same difference.
    pub async fn heartbeat(&self, beat: Heartbeat) -> Result<Orders, RpcError> {
        let known = self
            .inner
            .raft
            .read(|state| state.node(beat.node).map(|node| (node.incarnation, node.state)))
            .await?
            .is_some_and(|(incarnation, state)| incarnation == beat.incarnation && state != NodeState::Decommissioned);
        let term = self.term();
        if !known {
            return Ok(Orders { register_again: true, term, ..Orders::default() });
        }
        self.note_report(&beat)?;
        self.judge(beat.node).await?;
        self.take_difference(&beat).await?;
        if let Some(page) = beat.page {
            self.take_page(beat.node, page).await?;
        }
        let mut orders = self.orders(beat.node)?;
        if self.is_repairing(beat.node)? {
            orders = self.await_jobs(beat.node, orders).await?;
            orders.more = true;
        }
        orders.acked_seq = beat.seq;
        Ok(orders)
    }

    /// Whether `node` has repair jobs in work.
    fn is_repairing(&self, node: NodeId) -> Result<bool, RpcError> {
        self.lead(|soft, _| soft.planner.jobs().any(|job| job.source == node))
    }

    /// A node that repairs is told at once to come again, and gets its answer when there is a next job for it: chunks take
    /// milliseconds, heartbeats seconds.
    async fn await_jobs(&self, node: NodeId, orders: Orders) -> Result<Orders, RpcError> {
        if !orders.repair.is_empty() || orders.inventory.is_some() || orders.more {
            return Ok(orders);
        }
        let planned = self.inner.planned.notified();
        // Passing without a word is the normal end.
        let _ = tokio::time::timeout(JOB_WAIT, planned).await;
        self.orders(node)
    }

    fn note_report(&self, beat: &Heartbeat) -> Result<(), RpcError> {
        let Heartbeat { node, capacity_bytes, used_bytes, chunk_count, active_streams, .. } = *beat;
        let accused: Vec<NodeId> = self
            .inner
            .raft
            .peek(|state| beat.unreachable.iter().copied().filter(|id| state.node(*id).is_some()).collect());
        self.lead(|soft, now| {
            soft.heard(node, Report { capacity_bytes, used_bytes, chunk_count, active_streams }, now);
            accused.iter().for_each(|peer| soft.detector.accuse(*peer, Accuser::Node(node), now));
        })
    }

    async fn take_difference(&self, beat: &Heartbeat) -> Result<(), RpcError> {
        let node = beat.node;
        self.take_held(node, &beat.added).await?;
        let lost: Vec<ChunkId> = self.inner.raft.peek(|state| {
            let recorded = |chunk: &ChunkId| state.chunk(*chunk).is_some_and(|c| c.replicas.contains(&node));
            beat.removed.iter().copied().filter(recorded).collect()
        });
        self.lose(node, lost, "the node reported them gone").await?;
        let confirmed: Vec<ChunkId> = self
            .inner
            .raft
            .peek(|state| beat.deleted.iter().copied().filter(|chunk| state.is_doomed(node, *chunk)).collect());
        for chunks in confirmed.chunks(BATCH) {
            self.apply(Command::ConfirmDeleted { node, chunks: chunks.to_vec() }).await?;
        }
        self.lead(|soft, _| {
            for chunk in beat.removed.iter().chain(&beat.deleted) {
                soft.unknown.forget(node, *chunk);
                if soft.evictions.remove(&(node, *chunk)).is_some() {
                    soft.planner.trust(*chunk, node);
                }
            }
        })
    }

    /// Records copies that the record lacks and remembers chunks that it does not know.
    async fn take_held(&self, node: NodeId, held: &[Held]) -> Result<(), RpcError> {
        let mut unrecorded = Vec::new();
        let mut unknown = Vec::new();
        self.inner.raft.peek(|state| {
            for held in held {
                match sighting(state, node, held) {
                    Sighting::Nothing => {}
                    Sighting::Unrecorded => unrecorded.push((held.chunk, node)),
                    Sighting::Unknown => unknown.push((held.chunk, held.file)),
                    Sighting::WrongLength => {
                        tracing::warn!(%node, chunk = %held.chunk, length = held.length, "a copy has the wrong length");
                    }
                }
            }
        });
        self.lead(|soft, now| {
            unrecorded.retain(|(chunk, node)| !soft.is_evicted(*chunk, &[*node]));
            unknown.iter().for_each(|(chunk, file)| soft.unknown.note(node, *chunk, *file, now));
        })?;
        for replicas in unrecorded.chunks(BATCH) {
            self.apply(Command::ReplicasAdded { replicas: replicas.to_vec() }).await?;
        }
        Ok(())
    }

    async fn take_page(&self, node: NodeId, page: Page) -> Result<(), RpcError> {
        let again = self.settings().inventory_interval;
        let Some(findings) = self.lead(|soft, now| soft.inventories.page(node, page, now + again))?? else {
            return Ok(());
        };
        let taken = self.take_held(node, &findings.present).await;
        let missing: Vec<ChunkId> = self.inner.raft.peek(|state| {
            let recorded = |chunk: &ChunkId| state.chunk(*chunk).is_some_and(|c| c.replicas.contains(&node));
            findings.missing.iter().copied().filter(recorded).collect()
        });
        let result = match taken {
            Ok(()) => self.lose(node, missing, "its inventory does not have them").await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(()) => self.trim(node, &findings.present).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            // The page was compared but not taken over: take the whole inventory again.
            self.lead(|soft, now| soft.inventories.restart(node, now))?;
        }
        result
    }

    async fn lose(&self, node: NodeId, chunks: Vec<ChunkId>, why: &str) -> Result<(), RpcError> {
        if chunks.is_empty() {
            return Ok(());
        }
        tracing::warn!(%node, chunks = chunks.len(), first = %chunks[0], why, "copies of chunks are lost");
        for chunks in chunks.chunks(BATCH) {
            self.apply(Command::ReplicasLost { node, chunks: chunks.to_vec() }).await?;
        }
        Ok(())
    }

    /// Drops copies beyond the wanted number from a node: it was away, and they were replaced meanwhile. Of each chunk one
    /// copy at a time, so that two nodes that return together do not both drop theirs.
    async fn trim(&self, node: NodeId, present: &[Held]) -> Result<(), RpcError> {
        let chunks: Vec<ChunkId> = self.lead(|soft, _| {
            self.inner.raft.peek(|state| {
                let wanted = state.settings().replication;
                let is_excess = |held: &&Held| {
                    state.chunk(held.chunk).is_some_and(|chunk| {
                        chunk.live > wanted
                            && chunk.replicas.contains(&node)
                            && !soft.is_evicted(held.chunk, &chunk.replicas)
                    })
                };
                let excess: Vec<ChunkId> = present.iter().filter(is_excess).map(|held| held.chunk).collect();
                excess.into_iter().filter(|chunk| soft.evict(node, *chunk, wanted)).collect()
            })
        })?;
        if chunks.is_empty() {
            return Ok(());
        }
        tracing::info!(%node, chunks = chunks.len(), "copies beyond the wanted number are dropped");
        for some in chunks.chunks(BATCH) {
            let dropped = self.apply(Command::ReplicasLost { node, chunks: some.to_vec() }).await;
            if let Err(error) = dropped {
                // What is still in the record is not deleted; the next inventory finds it again.
                self.lead(|soft, _| {
                    for chunk in &chunks {
                        soft.evictions.remove(&(node, *chunk));
                    }
                })?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn orders(&self, node: NodeId) -> Result<Orders, RpcError> {
        let term = self.term();
        let page = self.settings().delete_page;
        let limit = self.settings().inventory_page;
        self.lead(|soft, now| {
            self.inner.raft.peek(|state| {
                let mut delete: Vec<ChunkId> = state.doomed(node, None).take(page).collect();
                let more = delete.len() >= page;
                let room = page - delete.len();
                let of_node = (node, ChunkId([0; 32]))..=(node, ChunkId([0xff; 32]));
                let evictions = soft.evictions.range(of_node).map(|((_, chunk), others)| (*chunk, *others));
                delete.extend(evictions.filter(|(c, n)| may_evict(state, node, *c, *n)).map(|(c, _)| c).take(room));
                let repair = soft
                    .planner
                    .issue(node, now, |job| is_wanted(state, job))
                    .into_iter()
                    .filter_map(|job| state.node(job.target).map(|target| (job, target.address.clone())))
                    .collect();
                let recorded = |after| state.chunks_on(node, after).take(limit as usize).collect();
                let inventory = soft.inventories.request(node, now, limit, recorded);
                Orders { delete, repair, inventory, more, term, ..Orders::default() }
            })
        })
    }
}

fn sighting(state: &State, node: NodeId, held: &Held) -> Sighting {
    match state.chunk(held.chunk) {
        Some(chunk) if chunk.length != held.length => Sighting::WrongLength,
        Some(chunk) if chunk.replicas.contains(&node) => Sighting::Nothing,
        Some(_) => Sighting::Unrecorded,
        None if state.is_doomed(node, held.chunk) => Sighting::Nothing,
        None => Sighting::Unknown,
    }
}

/// Whether a copy may be deleted now: it is not in the record, and enough others are or nobody needs any.
fn may_evict(state: &State, node: NodeId, chunk: ChunkId, others: u32) -> bool {
    state.chunk(chunk).is_none_or(|chunk| !chunk.replicas.contains(&node) && chunk.live >= others)
}

/// Whether the copy that a job makes is still missing.
fn is_wanted(state: &State, job: &Job) -> bool {
    state.chunk(job.chunk).is_some_and(|chunk| {
        let missing = chunk.live < state.settings().replication || job.urgent;
        missing && chunk.is_wanted() && chunk.replicas.contains(&job.source) && !chunk.replicas.contains(&job.target)
    })
}
