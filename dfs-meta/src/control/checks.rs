//! Copies that somebody reported as bad or missing, until their node has looked.
//!
//! A client's word is not enough to give a copy up: it may have read through a bad cable, or lie. So the node that holds the
//! copy is asked to read it in full, and what the node then says counts: whole, set aside, or not there. Soft: what a new
//! leader has not heard of is reported again by the next reader. Pure but for its clock, which comes in.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use dfs_common::{ChunkId, NodeId};

/// Copies remembered. What does not fit is reported again by the next reader.
const CHECKS_MAX: usize = 10_000;
/// Copies of one node asked for by one answer.
const ASK_MAX: usize = 64;
/// How long a node is asked; one that has not answered by then is away, or has no time for it.
const ASK_FOR: Duration = Duration::from_secs(600);

/// What is known of a report.
#[derive(Clone, Debug)]
struct Report {
    since: Instant,
    reason: String,
}

/// Copies that their nodes are to look at.
#[derive(Debug, Default)]
pub struct Checks {
    open: BTreeMap<(NodeId, ChunkId), Report>,
}

impl Checks {
    /// Somebody could not use the copy of `chunk` on `node`. `false` if that is known, or does not fit.
    pub fn report(&mut self, node: NodeId, chunk: ChunkId, reason: &str, now: Instant) -> bool {
        if self.open.len() >= CHECKS_MAX || self.open.contains_key(&(node, chunk)) {
            return false;
        }
        self.open.insert((node, chunk), Report { since: now, reason: reason.to_owned() });
        true
    }

    /// The copies that `node` is to look at now.
    pub fn asks(&self, node: NodeId) -> impl Iterator<Item = ChunkId> + '_ {
        let of_node = (node, ChunkId([0; 32]))..=(node, ChunkId([0xff; 32]));
        self.open.range(of_node).map(|((_, chunk), _)| *chunk).take(ASK_MAX)
    }

    /// The node has looked. Gives what had been reported.
    pub fn settle(&mut self, node: NodeId, chunk: ChunkId) -> Option<String> {
        self.open.remove(&(node, chunk)).map(|report| report.reason)
    }

    /// How many copies on `node` wait.
    #[must_use]
    pub fn waiting(&self, node: NodeId) -> usize {
        let of_node = (node, ChunkId([0; 32]))..=(node, ChunkId([0xff; 32]));
        self.open.range(of_node).count()
    }

    /// Forgets what no node has answered for too long.
    pub fn expire(&mut self, now: Instant) {
        self.open.retain(|_, report| now.saturating_duration_since(report.since) < ASK_FOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_asked_about_until_it_is_settled_or_too_old() {
        let (mut checks, now) = (Checks::default(), Instant::now());
        let (node, chunk) = (NodeId(1), ChunkId([1; 32]));
        assert!(checks.report(node, chunk, "first", now) && !checks.report(node, chunk, "second", now));
        assert!(checks.report(NodeId(2), chunk, "other", now));
        assert_eq!((checks.asks(node).collect::<Vec<_>>(), checks.waiting(node)), (vec![chunk], 1));
        assert_eq!(checks.settle(node, chunk).as_deref(), Some("first"));
        assert_eq!((checks.settle(node, chunk), checks.asks(node).count()), (None, 0));
        checks.expire(now + ASK_FOR);
        assert_eq!(checks.waiting(NodeId(2)), 0);
    }

    #[test]
    fn memory_and_answers_are_bounded() {
        let (mut checks, now) = (Checks::default(), Instant::now());
        let id = |n: u32| ChunkId(std::array::from_fn(|at| n.to_be_bytes()[at % 4]));
        let taken = (0..2 * CHECKS_MAX as u32).filter(|n| checks.report(NodeId(1), id(*n), "", now)).count();
        assert_eq!((taken, checks.asks(NodeId(1)).count()), (CHECKS_MAX, ASK_MAX));
    }
}
