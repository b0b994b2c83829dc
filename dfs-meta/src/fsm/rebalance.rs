//! Whether chunks are being moved from full nodes to empty ones. Which ones is the leader's business, and soft; that it goes on
//! under the next leader is kept here.

use serde::{Deserialize, Serialize};

use super::{command::Reply, event::Fact, state::State};

/// What is to become of the rebalance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RebalanceChange {
    /// It begins. One that runs goes on.
    Start,
    /// It ends; `why` is empty if the nodes are even. One that does not run is left alone.
    End {
        /// In words.
        why: String,
    },
}

/// The rebalance that runs, or the last one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rebalance {
    /// It goes on.
    pub running: bool,
    /// When it began, the leader's clock in nanoseconds since the Unix epoch; 0 if there never was one.
    pub started_ns: i64,
    /// When it ended; 0 while it runs.
    pub ended_ns: i64,
    /// Chunks moved, as far as recorded.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl State {
    pub(super) fn change_rebalance(&mut self, now_ns: i64, change: &RebalanceChange) -> Reply {
        match (change, self.rebalance.running) {
            (RebalanceChange::Start, true) | (RebalanceChange::End { .. }, false) => {}
            (RebalanceChange::Start, false) => {
                self.rebalance = Rebalance { running: true, started_ns: now_ns, ..Rebalance::default() };
                self.event(now_ns, Fact::RebalanceStarted {});
            }
            (RebalanceChange::End { why }, true) => {
                (self.rebalance.running, self.rebalance.ended_ns) = (false, now_ns);
                let Rebalance { chunks, bytes, .. } = self.rebalance;
                self.event(
                    now_ns,
                    match why.as_str() {
                        "" => Fact::RebalanceDone { chunks, bytes },
                        why => Fact::RebalanceStopped { chunks, bytes, reason: why.to_owned() },
                    },
                );
            }
        }
        Reply::Done
    }

    /// Takes over what the leader saw of the rebalance.
    pub(super) fn note_moved(&mut self, fact: &Fact) {
        if let Fact::RebalanceProgress { chunks, bytes, .. } = fact
            && self.rebalance.running
        {
            self.rebalance.chunks = self.rebalance.chunks.saturating_add(*chunks);
            self.rebalance.bytes = self.rebalance.bytes.saturating_add(*bytes);
        }
    }

    /// The rebalance that runs, or the last one.
    #[must_use]
    pub fn rebalance(&self) -> Rebalance {
        self.rebalance
    }
}
