//! States of a storage node.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the failure detector says of a storage node, as the metadata cluster has agreed on it.
///
/// Positions are persisted and agree with those of [`NodeState`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Health {
    /// Heartbeats arrive.
    Alive,
    /// Silent for a while or unreachable for peers.
    Suspect,
    /// Silent for so long that its copies count as lost until it returns.
    Dead,
}

impl From<Health> for NodeState {
    fn from(health: Health) -> Self {
        match health {
            Health::Alive => Self::Alive,
            Health::Suspect => Self::Suspect,
            Health::Dead => Self::Dead,
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        NodeState::from(*self).fmt(f)
    }
}

/// Health and admin state of a storage node in one word: what stands most in the way of using it.
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
    /// Alive, and expected to fall silent for a while: it takes no new chunks.
    Maintenance,
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Draining => "draining",
            Self::Decommissioned => "decommissioned",
            Self::Maintenance => "maintenance",
        })
    }
}
