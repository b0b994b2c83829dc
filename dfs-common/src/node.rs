//! States of a storage node.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Health and administrative state of a storage node, as the metadata cluster has agreed on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum NodeState {
    /// Heartbeats arrive.
    Alive,
    /// Silent for a while or unreachable for peers: reads and placements avoid it, nothing is repaired yet.
    Suspect,
    /// Silent for so long that its copies count as lost until it returns.
    Dead,
    /// Serves reads, takes no new chunks, its copies are being moved away.
    Draining,
    /// Left for good.
    Decommissioned,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Draining => "draining",
            Self::Decommissioned => "decommissioned",
        })
    }
}
