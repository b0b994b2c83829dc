//! What nodes say of their disks, and what they are told about scrubs.
//!
//! Both are soft. A notice may come twice, when the answer to the heartbeat that brought it was lost; the event log then has it
//! once, as long as one leader hears both. An order that its node has not taken when the leader is lost is lost too: whoever
//! gave it waits for [`ScrubNode::order_taken`] and gives it again.

use std::collections::{HashMap, HashSet, VecDeque};

use dfs_common::{
    ChunkId, ErrorCode, NodeId,
    crash::{self, Point},
    disk::{DiskEvent, DiskNotice, DiskReport, ScrubOrder, ScrubVerb},
};
use dfs_proto::status::RpcError;

use super::Handle;
use crate::fsm::{Command, Fact, Node};

/// Notices remembered for each node, so that one that comes twice is known.
const NOTICES_MAX: usize = 64;
/// Chunks in one command.
const BATCH: usize = 4096;

/// A bad copy that its node has set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The chunk.
    pub chunk: ChunkId,
    /// Data directory that it was in.
    pub disk: String,
    /// What was wrong.
    pub reason: String,
}

/// What is known of the disks of one node.
#[derive(Debug, Default)]
pub(super) struct OfNode {
    pub(super) reports: Vec<DiskReport>,
    notices: VecDeque<DiskNotice>,
    order_taken: u64,
    order: Option<ScrubOrder>,
}

/// What is known of the disks of all nodes.
#[derive(Debug, Default)]
pub(super) struct Disks {
    nodes: HashMap<NodeId, OfNode>,
    orders: u64,
}

/// A node and its scrubs, for the administrator.
#[derive(Clone, Debug)]
pub struct ScrubNode {
    /// Its disks as it last said; empty until it was heard.
    pub disks: Vec<DiskReport>,
    /// Number of the last order that it has carried out.
    pub order_taken: u64,
    /// Number of the order that it is still to be told; 0 for none.
    pub order_pending: u64,
    /// Reported copies that it has not looked at yet.
    pub checks: usize,
}

impl Disks {
    /// A heartbeat said how the disks are.
    pub(super) fn heard(&mut self, node: NodeId, reports: Vec<DiskReport>, order_taken: u64) {
        let known = self.nodes.entry(node).or_default();
        (known.reports, known.order_taken) = (reports, order_taken);
        if known.order.is_some_and(|order| order.number == order_taken) {
            known.order = None;
        }
    }

    /// Those of the notices that were not heard before.
    fn news(&mut self, node: NodeId, notices: Vec<DiskNotice>) -> Vec<DiskNotice> {
        let known = &mut self.nodes.entry(node).or_default().notices;
        let news: Vec<_> = notices.into_iter().filter(|notice| !known.contains(notice)).collect();
        for notice in &news {
            // A disk that comes and goes is news each time.
            if !matches!(notice.what, DiskEvent::Pass(_)) {
                known.retain(|old| old.id != notice.id || matches!(old.what, DiskEvent::Pass(_)));
            }
            known.push_back(notice.clone());
        }
        known.drain(..known.len().saturating_sub(NOTICES_MAX));
        news
    }

    /// What `node` is to do.
    pub(super) fn order(&self, node: NodeId) -> Option<ScrubOrder> {
        self.nodes.get(&node).and_then(|known| known.order)
    }

    pub(super) fn reports(&self, node: NodeId) -> Vec<DiskReport> {
        self.nodes.get(&node).map(|known| known.reports.clone()).unwrap_or_default()
    }

    pub(super) fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|node, _| keep(*node));
    }
}

impl Handle {
    /// Takes over what a heartbeat says of bad copies and disks.
    pub(super) async fn take_disks(
        &self,
        node: NodeId,
        quarantined: Vec<Quarantined>,
        notices: Vec<DiskNotice>,
    ) -> Result<(), RpcError> {
        self.take_quarantined(node, quarantined).await?;
        for DiskNotice { path: disk, what, .. } in self.lead(|soft, _| soft.disks.news(node, notices))? {
            match what {
                DiskEvent::Failed { reason, copies } => {
                    tracing::warn!(%node, disk, reason, copies, "a disk of a storage node failed");
                    self.record_event(Fact::DiskFailed { node, disk, reason, copies });
                }
                DiskEvent::Returned => self.record_event(Fact::DiskReturned { node, disk }),
                DiskEvent::Pass(pass) => {
                    let took_s =
                        u64::try_from(pass.ended_ns.saturating_sub(pass.started_ns) / 1_000_000_000).unwrap_or(0);
                    let (chunks, bytes, bad) = (pass.chunks, pass.bytes, pass.bad);
                    self.record_event(Fact::ScrubPass { node, disk, chunks, bytes, bad, took_s });
                }
            }
        }
        Ok(())
    }

    /// Copies that their node found bad leave the record, also the last one of a chunk: nobody can read it where it is now.
    async fn take_quarantined(&self, node: NodeId, copies: Vec<Quarantined>) -> Result<(), RpcError> {
        let chunks: Vec<ChunkId> = copies.iter().map(|copy| copy.chunk).collect();
        let (known, last): (HashSet<ChunkId>, HashSet<ChunkId>) = self.inner.raft.peek(|state| {
            let known = chunks.iter().filter(|id| state.chunk(**id).is_some_and(|c| c.replicas.contains(&node)));
            let is_last = |id: &&ChunkId| state.chunk(**id).is_some_and(|c| c.live() <= 1);
            (known.clone().copied().collect(), known.filter(is_last).copied().collect())
        });
        self.lead(|soft, now| {
            for chunk in &chunks {
                soft.checks.settle(node, *chunk);
                soft.unknown.forget(node, *chunk);
                if soft.evictions.remove(&(node, *chunk)).is_some() {
                    soft.planner.trust(*chunk, node);
                }
            }
            soft.planner.lost(&chunks, now);
            soft.trimmer.forget_all(&chunks);
        })?;
        for chunks in chunks.iter().copied().filter(|chunk| known.contains(chunk)).collect::<Vec<_>>().chunks(BATCH) {
            self.apply(Command::ReplicasLost { node, chunks: chunks.to_vec() }).await?;
            crash::point(Point::BadCopyDropped);
        }
        for Quarantined { chunk, disk, reason } in copies {
            if known.contains(&chunk) {
                let last = last.contains(&chunk);
                if last {
                    tracing::error!(%chunk, %node, reason, "the last live copy of a chunk is bad and was set aside");
                } else {
                    tracing::warn!(%chunk, %node, reason, "a copy of a chunk is bad and was set aside");
                }
                self.record_event(Fact::CopyCorrupt { chunk, node, reason, last });
            }
            self.record_event(Fact::CopyQuarantined { chunk, node, disk });
        }
        if !known.is_empty() {
            // They are replaced from now on, not from the next round on.
            self.inner.finished.notify_one();
        }
        Ok(())
    }

    /// Disks of `nodes` as their heartbeats described them.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn disks(&self, nodes: &[Node]) -> Result<Vec<Vec<DiskReport>>, RpcError> {
        self.lead(|soft, _| nodes.iter().map(|node| soft.disks.reports(node.id)).collect())
    }

    /// How the scrubs of `nodes` stand.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn scrubs(&self, nodes: &[Node]) -> Result<Vec<ScrubNode>, RpcError> {
        self.lead(|soft, _| {
            let of_node = |node: &Node| ScrubNode {
                disks: soft.disks.reports(node.id),
                order_taken: soft.disks.nodes.get(&node.id).map_or(0, |known| known.order_taken),
                order_pending: soft.disks.order(node.id).map_or(0, |order| order.number),
                checks: soft.checks.waiting(node.id),
            };
            nodes.iter().map(of_node).collect()
        })
    }

    /// Has `nodes`, or all if none is named, told about their scrubs with their next heartbeats. Gives the number of the order
    /// and who gets it.
    ///
    /// # Errors
    /// `NotFound` for a node that is not registered, or what [`crate::raft::Handle::read`] says.
    pub async fn order_scrub(&self, verb: ScrubVerb, nodes: &[NodeId]) -> Result<(u64, Vec<NodeId>), RpcError> {
        let known: Vec<NodeId> = self.inner.raft.read(|state| state.nodes().map(|node| node.id).collect()).await?;
        if let Some(unknown) = nodes.iter().find(|node| !known.contains(node)) {
            return Err(RpcError::new(ErrorCode::NotFound, format!("node {unknown} is not registered")));
        }
        let told = if nodes.is_empty() { known } else { nodes.to_vec() };
        let term = self.term();
        let number = self.lead(|soft, _| {
            soft.disks.orders += 1;
            // Of two leaders the later one has the larger numbers.
            let number = (term << 32) | soft.disks.orders;
            for node in &told {
                soft.disks.nodes.entry(*node).or_default().order = Some(ScrubOrder { number, verb });
            }
            number
        })?;
        tracing::info!(?verb, number, nodes = told.len(), "nodes are told about their scrubs");
        Ok((number, told))
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::{Uuid, disk::ScrubPass};

    use super::*;

    #[test]
    fn a_notice_that_comes_twice_is_news_once_and_a_change_back_is_news() {
        let (mut disks, node) = (Disks::default(), NodeId(1));
        let notice = |what| DiskNotice { id: Uuid([1; 16]), path: "/d".into(), what };
        let failed = || notice(DiskEvent::Failed { reason: "EIO".into(), copies: 1 });
        let pass = || notice(DiskEvent::Pass(ScrubPass { ended_ns: 5, ..ScrubPass::default() }));
        assert_eq!(disks.news(node, vec![failed(), pass()]).len(), 2);
        assert_eq!(disks.news(node, vec![failed(), pass()]).len(), 0);
        assert_eq!(disks.news(node, vec![notice(DiskEvent::Returned)]).len(), 1);
        assert_eq!(disks.news(node, vec![failed(), pass()]).len(), 1, "it failed again");
    }

    #[test]
    fn an_order_is_repeated_until_it_was_taken() {
        let (mut disks, node) = (Disks::default(), NodeId(1));
        let order = ScrubOrder { number: 7, verb: ScrubVerb::Pause };
        disks.nodes.entry(node).or_default().order = Some(order);
        disks.heard(node, vec![], 6);
        assert_eq!(disks.order(node), Some(order));
        disks.heard(node, vec![], 7);
        assert_eq!(disks.order(node), None);
    }
}
