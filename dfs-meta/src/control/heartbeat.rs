//! What storage nodes report and what they are told.
//!
//! ```text
//!   node ── heartbeat: figures, differences, deletions and confirmations done, inventory page ──► leader
//!        ◄── orders: deletions, repair jobs, copies to confirm, the next inventory page ──────────
//! ```
//!
//! A difference is acknowledged only after what follows from it was agreed on, so a node repeats it until then. Orders are
//! derived anew for each answer: a lost answer loses nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use dfs_common::{
    ChunkId, ErrorCode, NodeId, Uuid,
    crash::{self, Point},
    disk::{DiskNotice, DiskReport, ScrubOrder},
    node::{Health, NodeState},
};
use dfs_proto::status::RpcError;

use super::{
    Handle,
    detector::Accuser,
    disks::Quarantined,
    inventory::{self, Held, Page},
    repair::Job,
    soft::{Report, Soft},
    space,
    trim::Ready,
    unix_now_ns,
};
use crate::fsm::{Command, Fact, Reply, Settings, State};

/// Chunks in one command: about 200 KiB in the log.
const BATCH: usize = 4096;

/// How long the heartbeat of a node that repairs, or may have to at any moment, waits for the next job. Well below the deadline
/// of a heartbeat.
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
    /// Copies that it was asked to confirm, read and found whole.
    pub confirmed: Vec<ChunkId>,
    /// Bad copies that it has set aside.
    pub quarantined: Vec<Quarantined>,
    /// What happened to its disks.
    pub notices: Vec<DiskNotice>,
    /// How its disks are.
    pub disks: Vec<DiskReport>,
    /// The last order about scrubs that it has carried out.
    pub scrub_order: u64,
    /// Its inventory has changed in a way that no difference tells.
    pub inventory_due: bool,
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
    /// Copies to send at once, urgent ones not counted.
    pub streams: u32,
    /// Copies to read and confirm.
    pub confirm: Vec<ChunkId>,
    /// About its scrubs.
    pub scrub: Option<ScrubOrder>,
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
        let was_away = self.inner.raft.peek(|state| {
            let known = state.nodes().find(|node| node.uuid == asked.uuid);
            known.is_some_and(|node| node.health != Health::Alive)
        });
        let Registration { uuid, name, address, rack, capacity_bytes, used_bytes, chunk_count, incarnation } = asked;
        let command = Command::RegisterNode {
            uuid,
            name: name.clone(),
            address: address.clone(),
            rack: rack.clone(),
            capacity_bytes,
            incarnation,
        };
        let reply = self.apply(command).await.inspect_err(|error| {
            if error.code == ErrorCode::AlreadyExists {
                self.displaced(uuid, &address);
            }
        })?;
        crash::point(Point::RegistrationApplied);
        let Reply::Node { node, created } = reply else {
            return Err(RpcError::new(ErrorCode::Internal, "registration was answered with something else"));
        };
        self.lead(|soft, now| {
            if was_away {
                self.note_return(soft, node, now);
            }
            self.note_space(soft, node, capacity_bytes, used_bytes);
            soft.heard(node, Report { capacity_bytes, used_bytes, chunk_count, active_streams: 0 }, now);
            soft.inventories.restart(node, now);
            // Its disk may be another one: the inventory says what is there.
            soft.unknown.forget_node(node);
        })?;
        tracing::info!(%node, name, address, rack, capacity_bytes, chunk_count, created, "storage node registered");
        self.judge(node).await?;
        Ok((node, self.inner.raft.peek(State::settings)))
    }

    /// A node with a new identity wants the address of one that is taken for alive: most likely the same machine with another
    /// disk. If that one has missed a heartbeat it is suspect at once, and the next attempt to register finds it replaced.
    fn displaced(&self, uuid: Uuid, address: &str) {
        let rivals: Vec<NodeId> = self.inner.raft.peek(|state| {
            let is_rival = |n: &&crate::fsm::Node| n.uuid != uuid && n.address == address;
            state.nodes().filter(is_rival).map(|n| n.id).collect()
        });
        // Without leadership there is nothing to note.
        let _ = self.lead(|soft, now| {
            rivals.iter().for_each(|rival| soft.detector.accuse(*rival, Accuser::Successor, now));
        });
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
            .read(|state| state.node(beat.node).map(|node| (node.incarnation, node.is_member())))
            .await?
            .is_some_and(|(incarnation, is_member)| incarnation == beat.incarnation && is_member);
        let term = self.term();
        if !known {
            return Ok(Orders { register_again: true, term, ..Orders::default() });
        }
        self.note_report(&beat)?;
        self.judge(beat.node).await?;
        self.take_difference(&beat).await?;
        self.take_disks(beat.node, beat.quarantined, beat.notices).await?;
        self.take_confirmed(beat.node, &beat.confirmed).await?;
        if let Some(page) = beat.page {
            self.take_page(beat.node, page).await?;
        }
        let mut orders = self.orders(beat.node)?;
        if self.may_repair(beat.node)? {
            orders = self.await_jobs(beat.node, orders).await?;
            orders.more = true;
        }
        orders.acked_seq = beat.seq;
        Ok(orders)
    }

    /// Whether `node` has repair jobs in work, or may get some at any moment: another node is suspect, and when it is found
    /// dead the copying must not wait for the next heartbeat.
    fn may_repair(&self, node: NodeId) -> Result<bool, RpcError> {
        let alarm = self.inner.raft.peek(|state| {
            let now_ns = unix_now_ns();
            let is_alarming =
                |n: &crate::fsm::Node| n.health == Health::Suspect && n.chunk_count > 0 && !n.is_excused(now_ns);
            state.nodes().any(is_alarming) && state.node(node).is_some_and(|n| n.chunk_count > 0)
        });
        Ok(alarm || self.lead(|soft, _| soft.planner.has_jobs(node))?)
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
            self.note_space(soft, node, capacity_bytes, used_bytes);
            soft.heard(node, Report { capacity_bytes, used_bytes, chunk_count, active_streams }, now);
            soft.disks.heard(node, beat.disks.clone(), beat.scrub_order);
            if beat.inventory_due {
                soft.inventories.restart(node, now);
            }
            accused.iter().for_each(|peer| soft.detector.accuse(*peer, Accuser::Node(node), now));
        })
    }

    /// A node that was away is back: it goes into the event log if it comes and goes.
    pub(super) fn note_return(&self, soft: &mut Soft, node: NodeId, now: Instant) {
        if let Some(times) = soft.detector.returned(node, now) {
            tracing::warn!(%node, times, "storage node comes and goes: nothing new is placed on it for a while");
            self.record_event(Fact::NodeFlapping { node, times: times.into() });
        }
    }

    /// Whether a node has become nearly full, or has room again, since its last report to this leader.
    fn note_space(&self, soft: &mut Soft, node: NodeId, capacity_bytes: u64, used_bytes: u64) {
        let was_low = soft.low_on_space.contains(&node);
        match space::is_low(was_low, used_bytes, capacity_bytes) {
            true if !was_low => {
                soft.low_on_space.insert(node);
                tracing::info!(%node, used_bytes, capacity_bytes, "storage node is nearly full");
                self.record_event(Fact::SpaceLow { node, used_bytes, capacity_bytes });
            }
            false if was_low => {
                soft.low_on_space.remove(&node);
                tracing::info!(%node, used_bytes, capacity_bytes, "storage node has room again");
                self.record_event(Fact::SpaceRecovered { node, used_bytes, capacity_bytes });
            }
            _ => {}
        }
    }

    async fn take_difference(&self, beat: &Heartbeat) -> Result<(), RpcError> {
        let node = beat.node;
        self.take_held(node, &beat.added).await?;
        let lost: Vec<ChunkId> = self.inner.raft.peek(|state| {
            let recorded = |chunk: &ChunkId| state.chunk(*chunk).is_some_and(|c| c.replicas.contains(&node));
            // A copy that was to be evicted may have been recorded again before the order was carried out.
            beat.removed.iter().chain(&beat.deleted).copied().filter(recorded).collect()
        });
        self.lose(node, lost, "the node reported them gone").await?;
        let confirmed: Vec<ChunkId> = self
            .inner
            .raft
            .peek(|state| beat.deleted.iter().copied().filter(|chunk| state.is_doomed(node, *chunk)).collect());
        for chunks in confirmed.chunks(BATCH) {
            crash::point(Point::DeletionHeard);
            self.apply(Command::ConfirmDeleted { node, chunks: chunks.to_vec() }).await?;
        }
        self.lead(|soft, _| {
            for chunk in beat.removed.iter().chain(&beat.deleted) {
                soft.unknown.forget(node, *chunk);
                soft.checks.settle(node, *chunk);
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
        crash::point(Point::InventoryCompared);
        let taken = self.take_held(node, &findings.present).await;
        let missing: Vec<ChunkId> = self.inner.raft.peek(|state| {
            let recorded = |chunk: &ChunkId| state.chunk(*chunk).is_some_and(|c| c.replicas.contains(&node));
            findings.missing.iter().copied().filter(recorded).collect()
        });
        let result = match taken {
            Ok(()) => self.lose(node, missing, "its inventory does not have them").await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            // The page was compared but not taken over: take the whole inventory again.
            self.lead(|soft, now| soft.inventories.restart(node, now))?;
        }
        crash::point(Point::InventoryApplied);
        result
    }

    pub(super) async fn lose(&self, node: NodeId, chunks: Vec<ChunkId>, why: &str) -> Result<(), RpcError> {
        if chunks.is_empty() {
            return Ok(());
        }
        tracing::warn!(%node, chunks = chunks.len(), first = %chunks[0], why, "copies of chunks are lost");
        self.lead(|soft, now| {
            soft.planner.lost(&chunks, now);
            soft.trimmer.forget_all(&chunks);
            // Reported a moment ago and not looked up since: what is gone now must not be recorded then.
            chunks.iter().for_each(|chunk| soft.unknown.forget(node, *chunk));
        })?;
        for chunks in chunks.chunks(BATCH) {
            self.apply(Command::ReplicasLost { node, chunks: chunks.to_vec() }).await?;
            self.record_event(Fact::CopiesLost { node, copies: chunks.len() as u64, reason: why.to_owned() });
        }
        // The copies are replaced from now on, not from the next round on.
        self.inner.finished.notify_one();
        Ok(())
    }

    /// Copies that were read and found whole, so that one too many elsewhere may go.
    async fn take_confirmed(&self, node: NodeId, chunks: &[ChunkId]) -> Result<(), RpcError> {
        if chunks.is_empty() {
            return Ok(());
        }
        let ready = self.lead(|soft, _| {
            for chunk in chunks {
                if let Some(reason) = soft.checks.settle(node, *chunk) {
                    tracing::info!(%chunk, %node, reason, "a copy that was reported as bad is whole");
                }
            }
            soft.trimmer.confirmed(node, chunks)
        })?;
        let mut by_victim: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
        self.inner.raft.peek(|state| {
            for Ready { chunk, victim, .. } in ready.iter().filter(|ready| is_still_excessive(state, ready)) {
                by_victim.entry(*victim).or_default().push(*chunk);
            }
        });
        for (victim, chunks) in by_victim {
            self.trim(victim, chunks).await?;
        }
        Ok(())
    }

    /// Drops copies whose others were confirmed: out of the record, then off the disk.
    async fn trim(&self, victim: NodeId, mut chunks: Vec<ChunkId>) -> Result<(), RpcError> {
        self.lead(|soft, now| {
            let wanted = self.inner.raft.peek(|state| state.settings().replication);
            chunks.retain(|chunk| soft.evict(victim, *chunk, wanted));
            for chunk in &chunks {
                soft.planner.distrust(*chunk, victim, "a copy that is one too many is being deleted", now);
            }
        })?;
        if chunks.is_empty() {
            return Ok(());
        }
        tracing::info!(node = %victim, chunks = chunks.len(), "copies beyond the wanted number are dropped");
        crash::point(Point::TrimConfirmed);
        let dropped = self.apply(Command::ReplicasLost { node: victim, chunks: chunks.clone() }).await;
        if dropped.is_err() {
            // What is still in the record is not deleted; the next round finds it again.
            self.lead(|soft, _| {
                for chunk in &chunks {
                    soft.evictions.remove(&(victim, *chunk));
                    soft.planner.trust(*chunk, victim);
                }
            })?;
        } else {
            crash::point(Point::TrimRecorded);
            let length =
                |chunk: &ChunkId| self.inner.raft.peek(|state| state.chunk(*chunk).map_or(0, |c| u64::from(c.length)));
            let bytes = chunks.iter().map(length).sum();
            self.record_event(Fact::CopiesTrimmed { node: victim, copies: chunks.len() as u64, bytes });
        }
        dropped.map(drop)
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
                let (streams, mut confirm) = (soft.planner.streams(), soft.trimmer.asks(node));
                confirm.extend(soft.checks.asks(node));
                let scrub = soft.disks.order(node);
                Orders { delete, repair, streams, confirm, scrub, inventory, more, term, ..Orders::default() }
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

/// Whether a copy may be deleted now: it is not in the record, and enough others on nodes that are surely there are, or nobody
/// needs any.
fn may_evict(state: &State, node: NodeId, chunk: ChunkId, others: u32) -> bool {
    let is_sure = |id: &&NodeId| state.node(**id).is_some_and(|node| node.is_member() && node.health == Health::Alive);
    state.chunk(chunk).is_none_or(|chunk| {
        let sure = chunk.replicas.iter().filter(is_sure).count();
        !chunk.replicas.contains(&node) && sure >= others as usize
    })
}

/// Whether the copies that were confirmed are all still recorded, on nodes that are alive, beside the one that is to go.
fn is_still_excessive(state: &State, ready: &Ready) -> bool {
    let Ready { chunk, victim, confirmed } = ready;
    let is_alive = |id: &NodeId| state.node(*id).is_some_and(|node| node.state() == NodeState::Alive);
    state.chunk(*chunk).is_some_and(|found| {
        found.counted() > state.settings().replication
            && found.replicas.contains(victim)
            && confirmed.iter().all(|id| found.replicas.contains(id) && is_alive(id))
    })
}

/// Whether the copy that a job makes is still missing.
fn is_wanted(state: &State, job: &Job) -> bool {
    state.chunk(job.chunk).is_some_and(|chunk| {
        let is_moved = job.moving && state.rebalance().running && chunk.is_published();
        let missing = chunk.counted() < state.settings().replication || job.urgent || is_moved;
        missing && chunk.is_wanted() && chunk.replicas.contains(&job.source) && !chunk.replicas.contains(&job.target)
    })
}
