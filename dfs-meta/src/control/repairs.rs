//! What an administrator asks about repair, and tells it.

use std::time::Duration;

use dfs_common::{ChunkId, NodeId, layout::Replicas};
use dfs_proto::status::RpcError;

use super::{
    Handle,
    repair::{Failure, Need, Verdict, progress::Rate},
    runner,
};
use crate::fsm::{Command, Counters, Node, RepairLimits, State};

/// How repair gets on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Copies being made, or told to a node.
    pub active: u64,
    /// Those of them for chunks with one live copy.
    pub urgent: u64,
    /// Bytes of the active ones.
    pub active_bytes: u64,
    /// Copies that can be made from a live one, active ones included.
    pub lacking: u64,
    /// Bytes of these.
    pub lacking_bytes: u64,
    /// Over the last seconds.
    pub rate: Rate,
    /// Until nothing lacks; `None` while nothing moves.
    pub eta: Option<Duration>,
    /// Chunks with more live copies than wanted.
    pub over_replicated: u64,
    /// Those whose other copies are being confirmed.
    pub trimming: u64,
}

/// Repair work of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLoad {
    /// Which.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Copies it sends or will send, and their bytes.
    pub sending: (u64, u64),
    /// Copies it receives or will receive, and their bytes.
    pub receiving: (u64, u64),
}

/// A chunk that lacks copies.
#[derive(Clone, Debug)]
pub struct Queued {
    /// Which.
    pub chunk: ChunkId,
    /// Its length in bytes.
    pub length: u32,
    /// Copies that count.
    pub live: u32,
    /// Copies wanted.
    pub wanted: u32,
    /// Recorded holders, whatever their state.
    pub holders: Replicas,
    /// Why it waits.
    pub verdict: Verdict,
    /// Source and target of the job in work.
    pub route: Option<(NodeId, NodeId)>,
    /// What last went wrong.
    pub failure: Option<Failure>,
}

/// Limits to change; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitChange {
    /// Streams of one node.
    pub streams_per_node: Option<u32>,
    /// Streams in all.
    pub streams_total: Option<u32>,
    /// Bytes a second, 0 for no limit.
    pub bytes_per_s: Option<u64>,
}

/// Outcome of [`Handle::repair_now`].
#[derive(Clone, Debug)]
pub struct Begun {
    /// Pauses that were forgotten.
    pub forgiven: usize,
    /// The named chunks as they stand now.
    pub chunks: Vec<Queued>,
}

impl Handle {
    /// How repair gets on, by the leader's clock and the figures of the state.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn repair_figures(&self, counters: &Counters) -> Result<Figures, RpcError> {
        self.lead(|soft, now| {
            let mut figures = Figures {
                lacking: counters.lacking_copies,
                lacking_bytes: counters.lacking_bytes,
                rate: soft.planner.progress().rate(now),
                over_replicated: counters.over_replicated,
                trimming: soft.trimmer.active() as u64,
                ..Figures::default()
            };
            for job in soft.planner.jobs().filter(|job| !job.moving) {
                figures.active += 1;
                figures.urgent += u64::from(job.urgent);
                figures.active_bytes += u64::from(job.length);
            }
            let (chunks, bytes) = soft.planner.part_made();
            let left = (counters.lacking_copies.saturating_sub(chunks), counters.lacking_bytes.saturating_sub(bytes));
            // Something lacks as long as one copy does.
            let chunks = left.0.max(counters.lacking_copies.min(1));
            figures.eta = soft.planner.progress().eta(chunks, left.1, now);
            figures
        })
    }

    /// Repair work of each node that has some.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn repair_loads(&self, nodes: &[Node]) -> Result<Vec<NodeLoad>, RpcError> {
        self.lead(|soft, _| {
            let mut loads: Vec<NodeLoad> = nodes
                .iter()
                .map(|node| NodeLoad { node: node.id, name: node.name.clone(), sending: (0, 0), receiving: (0, 0) })
                .collect();
            let mut add = |node: NodeId, of: fn(&mut NodeLoad) -> &mut (u64, u64), length: u32| {
                if let Ok(at) = loads.binary_search_by_key(&node, |load| load.node) {
                    let (jobs, bytes) = of(&mut loads[at]);
                    (*jobs, *bytes) = (*jobs + 1, *bytes + u64::from(length));
                }
            };
            for job in soft.planner.jobs() {
                add(job.source, |load| &mut load.sending, job.length);
                add(job.target, |load| &mut load.receiving, job.length);
            }
            loads.retain(|load| load.sending.0 + load.receiving.0 > 0);
            loads
        })
    }

    /// The latest failures that hold chunks back.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn repair_failures(&self, limit: usize) -> Result<Vec<Failure>, RpcError> {
        self.lead(|soft, now| soft.planner.failures(limit, now))
    }

    /// A page of the chunks that lack copies behind `after` (live copies, chunk), fewest copies first, and whether it is the
    /// last one.
    ///
    /// # Errors
    /// What [`crate::raft::Handle::read`] says.
    pub async fn repair_queue(
        &self,
        after: Option<(u32, ChunkId)>,
        limit: usize,
    ) -> Result<(Vec<Queued>, bool), RpcError> {
        let mut chunks: Vec<ChunkId> = self
            .inner
            .raft
            .read(|state| state.under_replicated(after).take(limit + 1).map(|(_, chunk)| chunk).collect())
            .await?;
        let is_end = chunks.len() <= limit;
        chunks.truncate(limit);
        Ok((self.queued(&chunks)?, is_end))
    }

    /// Forgets why the named chunks (all, if none is named) were put off, and plans at once.
    ///
    /// # Errors
    /// What [`crate::raft::Handle::read`] says.
    pub async fn repair_now(&self, chunks: &[ChunkId]) -> Result<Begun, RpcError> {
        self.inner.raft.read(|_| ()).await?;
        let forgiven = self.lead(|soft, now| {
            let (planner, evictions) = (&mut soft.planner, &soft.evictions);
            planner.forgive(chunks, now, |chunk, node| evictions.contains_key(&(node, chunk)))
        })?;
        self.plan_these(chunks)?;
        self.plan_repairs()?;
        Ok(Begun { forgiven, chunks: self.queued(chunks)? })
    }

    /// Changes the limits of repair. Returns those that are in force.
    ///
    /// # Errors
    /// `InvalidArgument`, or what [`crate::raft::Handle::propose`] says.
    pub async fn change_repair_limits(&self, change: LimitChange) -> Result<RepairLimits, RpcError> {
        let limits = self.inner.raft.read(State::repair_limits).await?;
        let new = RepairLimits {
            streams_per_node: change.streams_per_node.unwrap_or(limits.streams_per_node),
            streams_total: change.streams_total.unwrap_or(limits.streams_total),
            bytes_per_s: change.bytes_per_s.unwrap_or(limits.bytes_per_s),
        };
        if new != limits {
            self.apply(Command::SetRepairLimits { limits: new }).await?;
            let RepairLimits { streams_per_node, streams_total, bytes_per_s } = new;
            tracing::info!(streams_per_node, streams_total, bytes_per_s, "limits of repair were changed");
            self.setting_changed("repair-streams-per-node", limits.streams_per_node.into(), streams_per_node.into());
            self.setting_changed("repair-streams-total", limits.streams_total.into(), streams_total.into());
            self.setting_changed("repair-bytes-per-s", limits.bytes_per_s, bytes_per_s);
            self.inner.finished.notify_one();
        }
        Ok(new)
    }

    /// Plans the named chunks before all others.
    fn plan_these(&self, chunks: &[ChunkId]) -> Result<(), RpcError> {
        let nodes: Vec<Node> = self.inner.raft.peek(|state| state.nodes().cloned().collect());
        self.lead(|soft, now| {
            let mut candidates = soft.candidates(&nodes, self.settings().placement_valid, now);
            self.inner.raft.peek(|state| {
                let wanted = self.wanted(state);
                soft.planner.begin_round(state.repair_limits(), now);
                for chunk in chunks.iter().filter(|id| state.chunk(**id).is_some_and(|c| c.is_published())) {
                    let Some(need) = runner::need(state, *chunk) else { continue };
                    soft.planner.consider(&need, &mut candidates, wanted, now, &mut soft.rng);
                }
            });
        })
    }

    fn queued(&self, chunks: &[ChunkId]) -> Result<Vec<Queued>, RpcError> {
        let nodes: Vec<Node> = self.inner.raft.peek(|state| state.nodes().cloned().collect());
        self.lead(|soft, now| {
            let candidates = soft.candidates(&nodes, self.settings().placement_valid, now);
            self.inner.raft.peek(|state| {
                let wanted = self.wanted(state);
                let explain = |id: &ChunkId| {
                    let found = state.chunk(*id)?;
                    let need: Need = runner::need(state, *id)?;
                    let verdict = soft.planner.explain(&need, &candidates, wanted, now, &mut soft.rng);
                    Some(Queued {
                        chunk: *id,
                        length: found.length,
                        live: found.live(),
                        wanted: state.settings().replication,
                        holders: need.holders,
                        verdict,
                        route: soft.planner.job_of(*id).map(|job| (job.source, job.target)),
                        failure: soft.planner.failure(*id, now),
                    })
                };
                chunks.iter().filter_map(explain).collect()
            })
        })
    }
}
