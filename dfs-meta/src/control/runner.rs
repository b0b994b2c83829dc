//! The background task: a round of all control loops every tick, on the leader only.

use std::time::Duration;

use dfs_common::{
    ChunkId, FileId, NodeId, SessionId,
    crash::{self, Point},
    node::NodeState,
};
use dfs_proto::status::RpcError;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{
    Handle,
    garbage::{self, Due, Gate, Pinned},
    repair::{self, Need, Verdict, Wanted},
    soft::Soft,
};
use crate::{
    fsm::{Command, Fact, Node, Reply, State},
    raft::Leadership,
};

/// Least time between a repair's end and the planning of the next ones.
const REPLAN_GAP: Duration = Duration::from_millis(25);
/// Unknown chunks looked up in one round.
const UNKNOWN_BATCH: usize = 1000;
/// Batches of versions released, and of trash given up, in one round: a tree of a million files is gone in minutes, and no
/// round holds the others up for long.
const BATCHES_MAX: usize = 8;
/// Chunks of suspect nodes looked at in one round while several are suspect.
const SUSPECT_WINDOW: usize = 4096;
/// Chunks in a row for which nothing could be planned because all are busy, after which a round ends: the others wait for the
/// same nodes.
const BUSY_MAX: usize = 128;
/// Over-replicated chunks looked at in one round.
const TRIM_WINDOW: usize = 512;

/// Runs the control loops until `cancel`. Rests while this node does not lead.
pub async fn run(handle: Handle, cancel: CancellationToken) {
    tokio::join!(run_rounds(&handle, &cancel), handle.propose_events(&cancel));
}

async fn run_rounds(handle: &Handle, cancel: &CancellationToken) {
    let mut leadership = handle.inner.leadership.clone();
    let mut ticks = tokio::time::interval(handle.settings().tick);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = leadership.changed() => match changed {
                Ok(()) => handle.observe(&mut leadership),
                // The consensus group has stopped; so does the process.
                Err(_) => return,
            },
            () = handle.inner.finished.notified() => {
                // Results of the next moment are planned for together.
                tokio::time::sleep(REPLAN_GAP).await;
                // Whether a rebalance is over, the next round finds out.
                if let Err(error) = handle.plan_repairs().and_then(|()| handle.plan_moves().map(|_| ())) {
                    tracing::debug!(%error, "no repairs are planned");
                }
            }
            _ = ticks.tick() => {
                let round = async {
                    if let Err(error) = handle.round().await {
                        // Leadership was lost in between, or no majority answers: the next round, here or at the next
                        // leader, starts from the state again.
                        tracing::debug!(%error, "a round of the control loops was cut short");
                    }
                };
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = round => {}
                }
            }
        }
    }
}

impl Handle {
    fn observe(&self, leadership: &mut watch::Receiver<Leadership>) {
        let Leadership { is_leader, term, leader } = leadership.borrow_and_update().clone();
        if is_leader {
            // The soft state is made now, so that grace periods count from here.
            if self.lead(|_, _| ()).is_ok() {
                tracing::info!(term, "control loops start");
                if let Some(me) = leader {
                    self.record_event(Fact::LeaderChanged { raft_id: me.raft_id, name: me.name, term });
                }
            }
        } else {
            self.step_down();
        }
    }

    async fn round(&self) -> Result<(), RpcError> {
        if !self.inner.leadership.borrow().is_leader {
            return Ok(());
        }
        let nodes: Vec<Node> = self.inner.raft.peek(|state| state.nodes().cloned().collect());
        self.lead(|soft, now| soft.settle(&nodes, self.settings(), now))?;
        // First: whose maintenance is over is judged as one whose silence counts.
        self.end_decisions().await?;
        for node in &nodes {
            self.judge(node.id).await?;
        }
        self.expire_sessions().await?;
        self.expire_repairs(&nodes)?;
        self.plan_repairs()?;
        self.plan_trims(&nodes)?;
        self.rebalance_round().await?;
        self.give_up_trash().await?;
        self.release_garbage().await?;
        self.look_up_unknown().await
    }

    async fn expire_sessions(&self) -> Result<(), RpcError> {
        let expired: Vec<SessionId> = self.lead(|soft, now| {
            self.inner.raft.peek(|state| {
                soft.sessions.retain(|id| state.session(id).is_some());
                if soft.locks.retain(|id| state.session(id).is_some()) {
                    self.inner.unlocked.notify_waiters();
                }
                soft.sessions.expired(state.sessions().map(|session| session.id), now)
            })
        })?;
        if expired.is_empty() {
            return Ok(());
        }
        for session in &expired {
            let who = self.inner.raft.peek(|state| state.session(*session).map(|s| s.description.clone()));
            tracing::info!(%session, client = who.unwrap_or_default(), "session was not renewed, it ends");
        }
        let left: Vec<_> =
            self.inner.raft.peek(|state| expired.iter().flat_map(|id| state.held_by_session(*id)).collect());
        self.apply(Command::ExpireSessions { sessions: expired.clone() }).await?;
        self.left_behind(left);
        self.lead(|soft, _| {
            soft.locks.retain(|session| !expired.contains(&session));
            expired.into_iter().for_each(|session| soft.sessions.closed(session));
        })?;
        self.inner.unlocked.notify_waiters();
        Ok(())
    }

    /// Forgets repairs and trims that took too long or rest on nodes that are gone.
    fn expire_repairs(&self, nodes: &[Node]) -> Result<(), RpcError> {
        let window = self.settings().placement_valid;
        self.lead(|soft, now| {
            let candidates = soft.candidates(nodes, window, now);
            for job in soft.planner.expire(now, &candidates) {
                tracing::info!(chunk = %job.chunk, source = %job.source, target = %job.target, "repair job timed out");
            }
            soft.trimmer.expire(&candidates, now);
        })
    }

    /// Plans copies for what lacks some, the most endangered first. The state's lock is held for two windows of chunks at most.
    pub(super) fn plan_repairs(&self) -> Result<(), RpcError> {
        let window = self.settings().placement_valid;
        self.lead(|soft, now| {
            let nodes: Vec<Node> = self.inner.raft.peek(|state| state.nodes().cloned().collect());
            let mut candidates = soft.candidates(&nodes, window, now);
            self.inner.raft.peek(|state| {
                soft.planner.begin_round(state.repair_limits(), now);
                let wanted = self.wanted(state);
                let mut consider = |soft: &mut Soft, chunk: ChunkId| {
                    let need = need(state, chunk)?;
                    let Soft { planner, rng, .. } = soft;
                    Some(planner.consider(&need, &mut candidates, wanted, now, rng))
                };
                scan_under_replicated(soft, state, self.settings().repair.window, &mut consider);
                let suspects: Vec<NodeId> =
                    nodes.iter().filter(|n| n.state() == NodeState::Suspect).map(|n| n.id).collect();
                scan_suspects(soft, state, &suspects, &mut consider);
                if state.counters().lacking_copies == 0
                    && let Some(made) = soft.planner.end_of_repair()
                {
                    let repair::progress::Made { chunks, bytes, took } = made;
                    tracing::info!(copies = chunks, bytes, ?took, "every chunk has all its copies again");
                    let to_ns = self.inner.raft.now_ns();
                    let from_ns = to_ns.saturating_sub(i64::try_from(took.as_nanos()).unwrap_or(i64::MAX));
                    self.record_event(Fact::RepairDone { chunks, bytes, from_ns, to_ns });
                }
            });
        })?;
        self.inner.planned.notify_waiters();
        Ok(())
    }

    /// Gives up trash whose time is over, and the oldest before its time while space is short.
    pub(super) async fn give_up_trash(&self) -> Result<(), RpcError> {
        let batch = self.settings().release_batch;
        for _ in 0..BATCHES_MAX {
            let now_ns = self.inner.raft.now_ns();
            let file_ids = self
                .inner
                .raft
                .peek(|state| garbage::expired(state.trash_by_age(), state.trash_retention_ns(), now_ns, batch));
            if file_ids.is_empty() {
                break;
            }
            tracing::debug!(versions = file_ids.len(), "trash has expired");
            self.apply(Command::DropTrash { file_ids }).await?;
            crash::point(Point::TrashDropped);
        }
        let mut lacking = self.space_lacking()?;
        for _ in 0..BATCHES_MAX {
            let (file_ids, bytes) = self.inner.raft.peek(|state| oldest_trash(state, lacking, batch));
            if file_ids.is_empty() {
                break;
            }
            tracing::warn!(
                versions = file_ids.len(),
                bytes,
                "space is short: the oldest trash is given up before its time"
            );
            if let Reply::TrashDropped { versions, bytes } = self.apply(Command::DropTrash { file_ids }).await? {
                crash::point(Point::TrashDropped);
                self.lead(|soft, now| soft.trash_given_up(versions, now))?;
                let reason = "space was short".to_owned();
                self.record_event(Fact::TrashFreedEarly { versions, bytes, reason });
            }
            lacking = lacking.saturating_sub(bytes);
        }
        Ok(())
    }

    /// Bytes of copies that must still be given up for enough nodes to have room; what is on its way out counts as free.
    fn space_lacking(&self) -> Result<u64, RpcError> {
        let settings = self.settings();
        self.lead(|soft, now| {
            self.inner.raft.peek(|state| {
                if state.counters().trash_versions == 0 {
                    return 0;
                }
                let nodes: Vec<Node> = state.nodes().cloned().collect();
                let candidates = soft.candidates(&nodes, settings.placement_valid, now);
                let replication = state.settings().replication as usize;
                // Two chunks at least, or a small node would be full before it is short.
                let reserve = settings.reserve_bytes + 2 * u64::from(state.settings().chunk_size);
                let lacking = garbage::shortage(&candidates, replication, settings.trash_spare, reserve);
                let doomed: u64 = state.doomed_on().map(|(_, on)| on.bytes).sum();
                lacking.saturating_sub(state.counters().garbage_copy_bytes).saturating_sub(doomed)
            })
        })
    }

    /// What repair wants of every chunk.
    pub(super) fn wanted(&self, state: &State) -> Wanted {
        Wanted { replication: state.settings().replication as usize, reserve_bytes: self.settings().reserve_bytes }
    }

    /// Begins to trim chunks that have too many copies, when their nodes have been at rest for the grace time.
    fn plan_trims(&self, nodes: &[Node]) -> Result<(), RpcError> {
        let window = self.settings().placement_valid;
        let grace = self.settings().trim_grace;
        let rested_since = self.inner.raft.now_ns().saturating_sub(i64::try_from(grace.as_nanos()).unwrap_or(i64::MAX));
        self.lead(|soft, now| {
            if now.saturating_duration_since(soft.since) < grace || !soft.trimmer.has_room() {
                return;
            }
            let is_at_rest = |id: &NodeId| nodes.iter().any(|node| node.id == *id && node.since_ns <= rested_since);
            self.inner.raft.peek(|state| {
                if state.counters().over_replicated == 0 {
                    return;
                }
                let candidates = soft.candidates(nodes, window, now);
                let wanted = state.settings().replication as usize;
                let mut last = None;
                let mut looked = 0;
                for id in state.over_replicated(soft.trimmer.cursor).take(TRIM_WINDOW) {
                    (last, looked) = (Some(id), looked + 1);
                    let Some(chunk) = state.chunk(id) else { continue };
                    let is_busy = soft.planner.is_in_work(id) || soft.is_evicted(id, &chunk.replicas);
                    if !is_busy && chunk.replicas.iter().all(is_at_rest) {
                        let moved_from = soft.rebalancer.of(id).map(|moved| moved.from);
                        soft.trimmer.consider(id, &chunk.replicas, &candidates, wanted, now, moved_from);
                    }
                }
                soft.trimmer.cursor = last.filter(|_| looked == TRIM_WINDOW);
            });
        })
    }

    async fn release_garbage(&self) -> Result<(), RpcError> {
        for _ in 0..BATCHES_MAX {
            if self.release_batch().await? < self.settings().release_batch {
                break;
            }
        }
        Ok(())
    }

    async fn release_batch(&self) -> Result<usize, RpcError> {
        let settings = self.settings();
        let now_ns = self.inner.raft.now_ns();
        let file_ids = self.lead(|soft, now| {
            self.inner.raft.peek(|state| {
                let gate = Gate {
                    grace: settings.gc_grace,
                    led_for: now.saturating_duration_since(soft.since),
                    settle: settings.renewal * 2,
                    all_pins_heard: soft.sessions.all_heard(state.sessions().map(|session| session.id)),
                };
                let mut held = Pinned::default();
                let is_pinned = |since, file| {
                    let is_pinned = soft.sessions.is_pinned(file);
                    if is_pinned {
                        held.add(since, file, state.version_size(file).unwrap_or(0));
                    }
                    is_pinned
                };
                let found = garbage::releasable(state.garbage(), gate, now_ns, is_pinned, settings.release_batch);
                soft.pinned = held;
                found
            })
        })?;
        let count = file_ids.len();
        if count > 0 {
            tracing::debug!(versions = count, "garbage is released");
            self.apply(Command::ReleaseVersions { file_ids }).await?;
            crash::point(Point::GarbageReleased);
        }
        Ok(count)
    }

    /// Chunks that were unknown when a node reported them: most are published a moment later, the rest is deleted after the
    /// grace time.
    async fn look_up_unknown(&self) -> Result<(), RpcError> {
        let grace = self.settings().unknown_grace;
        let due = self.lead(|soft, now| soft.unknown.take_due(grace, UNKNOWN_BATCH, now))?;
        let mut found = Vec::new();
        let mut doom: Vec<Due> = Vec::new();
        let mut settled = Vec::new();
        self.inner.raft.peek(|state| {
            // After a restore they may be what was written since the backup.
            let kept = state.restored().is_some();
            for due in due {
                match state.chunk(due.chunk) {
                    Some(chunk) if chunk.replicas.contains(&due.node) => settled.push((due.node, due.chunk)),
                    Some(_) => found.push((due.chunk, due.node)),
                    None if state.is_doomed(due.node, due.chunk) => settled.push((due.node, due.chunk)),
                    None if due.overdue && !kept && state.pending(due.file).is_none() => doom.push(due),
                    None => {}
                }
            }
        });
        if !found.is_empty() {
            settled.extend(found.iter().map(|(chunk, node)| (*node, *chunk)));
            self.apply(Command::ReplicasAdded { replicas: found }).await?;
        }
        settled.extend(self.doom(doom).await?);
        self.lead(|soft, _| settled.iter().for_each(|(node, chunk)| soft.unknown.forget(*node, *chunk)))
    }

    async fn doom(&self, mut doom: Vec<Due>) -> Result<Vec<(NodeId, ChunkId)>, RpcError> {
        let mut settled = Vec::new();
        doom.sort_by_key(|due| due.node);
        for of_node in doom.chunk_by(|a, b| a.node == b.node) {
            let Some(node) = of_node.first().map(|due| due.node) else { continue };
            let chunks: Vec<_> = of_node.iter().map(|due| (due.chunk, due.file)).collect();
            tracing::info!(%node, chunks = chunks.len(), "chunks that no version lists are deleted");
            let found = chunks.len() as u64;
            if let Reply::Chunks { skipped } = self.apply(Command::DoomUnknown { node, chunks }).await? {
                let copies = found.saturating_sub(skipped.len() as u64);
                if copies > 0 {
                    crash::point(Point::UnknownDoomed);
                    self.record_event(Fact::CopiesEvicted { node, copies, reason: "no version lists them".into() });
                }
                settled.extend(of_node.iter().filter(|due| !skipped.contains(&due.chunk)).map(|d| (node, d.chunk)));
            }
        }
        Ok(settled)
    }
}

/// The chunks in danger from the worst on, and as many more from where the last round stopped: chunks that cannot be helped
/// at the moment must not hide those behind them.
fn scan_under_replicated(
    soft: &mut Soft,
    state: &State,
    window: usize,
    consider: &mut impl FnMut(&mut Soft, ChunkId) -> Option<Verdict>,
) {
    // Chunks without a live copy come first and cannot be repaired.
    let worst = (0, ChunkId([0xff; 32]));
    let Some(end) = scan_window(soft, state, worst, window, consider) else { return };
    let start = soft.cursors.repair.filter(|cursor| *cursor > end).unwrap_or(end);
    soft.cursors.repair = scan_window(soft, state, start, window, consider);
}

/// Looks at `window` chunks behind `start`. Returns the last one, or `None` at the end.
fn scan_window(
    soft: &mut Soft,
    state: &State,
    start: (u32, ChunkId),
    window: usize,
    consider: &mut impl FnMut(&mut Soft, ChunkId) -> Option<Verdict>,
) -> Option<(u32, ChunkId)> {
    let mut last = None;
    let (mut looked, mut busy) = (0, 0);
    for entry in state.under_replicated(Some(start)).take(window) {
        match consider(soft, entry.1) {
            Some(Verdict::Busy | Verdict::Throttled) => busy += 1,
            Some(Verdict::Planned) => busy = 0,
            Some(_) | None => {}
        }
        (last, looked) = (Some(entry), looked + 1);
        if busy >= BUSY_MAX {
            return last;
        }
    }
    last.filter(|_| looked == window)
}

/// Chunks whose other holders are all suspect have one copy that surely serves. The state counts suspects as copies, so
/// these are looked for among the chunks of suspect nodes, and only while several are suspect.
fn scan_suspects(
    soft: &mut Soft,
    state: &State,
    suspects: &[NodeId],
    consider: &mut impl FnMut(&mut Soft, ChunkId) -> Option<Verdict>,
) {
    let replication = state.settings().replication as usize;
    if replication < 2 || suspects.len() + 1 < replication {
        soft.cursors.suspects = None;
        return;
    }
    let start = soft.cursors.suspects.filter(|(node, _)| suspects.contains(node));
    let node = start.map_or(suspects[0], |(node, _)| node);
    let mut last = None;
    for chunk in state.chunks_on(node, start.map(|(_, chunk)| chunk)).take(SUSPECT_WINDOW) {
        if !soft.planner.has_capacity() {
            return;
        }
        if state.chunk(chunk).is_some_and(|c| c.is_wanted() && c.counted() as usize >= replication) {
            consider(soft, chunk);
        }
        last = Some((node, chunk));
    }
    soft.cursors.suspects = last.or_else(|| {
        let next = suspects.iter().find(|id| **id > node).unwrap_or(&suspects[0]);
        Some((*next, ChunkId([0; 32])))
    });
}

/// The oldest entries of the trash whose copies have `bytes`, at most `limit`, and the bytes. Content that other files share
/// frees less: the next round sees it.
fn oldest_trash(state: &State, bytes: u64, limit: usize) -> (Vec<FileId>, u64) {
    let copies = u64::from(state.settings().replication);
    let (mut file_ids, mut found) = (Vec::new(), 0_u64);
    for (_, id) in state.trash_by_age().take(limit) {
        if found >= bytes {
            break;
        }
        found = found.saturating_add(state.trashed(id).map_or(0, |(_, size)| size.saturating_mul(copies)));
        file_ids.push(id);
    }
    (file_ids, found)
}

pub(super) fn need(state: &State, chunk: ChunkId) -> Option<Need> {
    let found = state.chunk(chunk)?;
    Some(Need { chunk, length: found.length, sha256: found.sha256, holders: found.replicas.iter().copied().collect() })
}
