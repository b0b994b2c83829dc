//! What a node of the group is started with, and how the timings follow from it.

use std::{path::PathBuf, time::Duration};

use super::Member;
use crate::fsm;

/// Settings of a node.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub me: Member,
    /// All nodes that a new cluster starts with, this one included; afterwards only a help to find the others.
    pub peers: Vec<Member>,
    /// Addresses of members of a cluster that this node is to be added to; if there are any it never forms one itself.
    pub join: Vec<String>,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// How often the leader makes itself heard.
    pub heartbeat: Duration,
    /// Shortest silence of the leader after which a follower stands for election.
    pub election_min: Duration,
    /// Longest such silence.
    pub election_max: Duration,
    /// Entries after which a snapshot is made.
    pub snapshot_threshold: u64,
    /// Entries that stay in the log behind a snapshot, so that a follower that was away briefly needs no snapshot.
    pub log_keep: u64,
    /// Bytes of a file of the log beyond which another one is begun; files whose entries are all purged are removed.
    pub log_file_bytes: u64,
    /// Encoded bytes of the log beyond which it is cut by a snapshot, however few entries it has.
    pub log_bytes_max: u64,
    /// How long removed and replaced content stays restorable in a cluster that this node forms.
    pub trash_retention: std::time::Duration,
    /// What a new cluster is set up with.
    pub cluster: fsm::Settings,
}

/// [`Settings::log_bytes_max`] of real nodes: far more than a healthy log has.
pub const LOG_BYTES_MAX: u64 = 256 << 20;

/// Purged together, if so many are kept at all: each purge is a durable record.
const PURGE_BATCH: u64 = 256;
/// Entries in one message to a follower; their bytes are limited by the log.
const MESSAGE_ENTRIES_MAX: u64 = 256;

impl Settings {
    /// How long a follower that heard from a leader refuses to vote for another, which is what the leader's lease rests on.
    ///
    /// openraft waits this long and then a random time of up to as much again before it stands for election, so half of
    /// the longest election timeout keeps the whole within what was asked for.
    #[must_use]
    pub fn vote_silence(&self) -> Duration {
        self.election_max / 2
    }

    /// How long a quorum round entitles the leader to answer reads, counted from its start.
    ///
    /// Three quarters of [`Settings::vote_silence`]: the rest is the margin for clocks that run at different speeds.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.vote_silence() * 3 / 4
    }

    /// Smallest random part of the election timeout. Also how long a vote is waited for, so not too short.
    fn random_min(&self) -> Duration {
        let wanted = self.election_min.saturating_sub(self.vote_silence());
        wanted.max(self.heartbeat + self.heartbeat / 2).max(self.vote_silence() / 2)
    }

    /// What is wrong with the timings, for the person who gave them.
    ///
    /// # Errors
    /// A message that names the options.
    pub fn check(&self) -> Result<(), String> {
        let (heartbeat, min, max) = (self.heartbeat, self.election_min, self.election_max);
        if heartbeat < Duration::from_millis(10) {
            return Err(format!("--raft-heartbeat {heartbeat:?} is too short: at least 10ms"));
        }
        if min >= max {
            return Err(format!("--election-min {min:?} must be shorter than --election-max {max:?}"));
        }
        if max < heartbeat * 6 {
            return Err(format!("--election-max {max:?} must be at least six times --raft-heartbeat {heartbeat:?}"));
        }
        if self.random_min() >= self.vote_silence() {
            return Err(format!(
                "--election-min {min:?} is too close to --election-max {max:?}: leave a quarter between"
            ));
        }
        Ok(())
    }

    /// openraft's own configuration. `elect`: whether it may stand for election from the start.
    pub(crate) fn openraft(&self, elect: bool) -> openraft::Config {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        openraft::Config {
            cluster_name: "dfs".into(),
            heartbeat_interval: ms(self.heartbeat),
            election_timeout_min: ms(self.random_min()),
            election_timeout_max: ms(self.vote_silence()),
            max_payload_entries: MESSAGE_ENTRIES_MAX,
            replication_lag_threshold: self.log_keep,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_threshold),
            max_in_snapshot_log_to_keep: self.log_keep,
            purge_batch_size: PURGE_BATCH.min(self.log_keep),
            enable_elect: elect,
            ..openraft::Config::default()
        }
    }
}
