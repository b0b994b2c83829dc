//! Every tunable of the leader's control loops, in one place. What the whole cluster must agree on (replication, chunk
//! size, write quorum) is not here but in the replicated state.

use std::time::Duration;

/// Tunables of the control loops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often the leader looks at nodes, sessions, repairs and garbage.
    pub tick: Duration,
    /// How often storage nodes are asked to report.
    pub heartbeat: Duration,
    /// Silence after which a storage node is suspect.
    pub suspect: Duration,
    /// Silence after which its copies count as lost.
    pub dead: Duration,
    /// Silence after which a session ends.
    pub session_lease: Duration,
    /// How often clients renew; garbage waits for two of these after a change of leader.
    pub renewal: Duration,
    /// Age at which an unreferenced version is released.
    pub gc_grace: Duration,
    /// Age at which a chunk that no version lists is deleted from the node that reported it. Longer than the session lease,
    /// so that the writer it may belong to is gone.
    pub unknown_grace: Duration,
    /// How often a node is asked for its full inventory although nothing happened.
    pub inventory_interval: Duration,
    /// How long after a change of leader the first full inventory of a node that did not restart is taken: failover must not
    /// cost a scan.
    pub inventory_delay: Duration,
    /// Entries of one page of an inventory.
    pub inventory_page: u32,
    /// Deletions that ride on one heartbeat answer.
    pub delete_page: usize,
    /// Versions released by one command.
    pub release_batch: usize,
    /// Share of its capacity, in thousandths, that must stay free on as many nodes as a chunk has copies: short of that, the
    /// oldest trash is given up before its time.
    pub trash_spare: u64,
    /// How long a placement may be used.
    pub placement_valid: Duration,
    /// Bytes of a storage node that placement leaves free, above what the node itself keeps back.
    pub reserve_bytes: u64,
    /// How long a storage node must have been in its state before a copy that is one too many is dropped because of it:
    /// who came back may leave again.
    pub trim_grace: Duration,
    /// Limits of repair.
    pub repair: RepairSettings,
}

/// Limits of repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairSettings {
    /// Jobs that one source has, in work and waiting, of each kind (endangered or not). Enough that a source of small
    /// chunks does not run dry between two heartbeats; what it works on at once is limited by streams.
    pub queue_jobs: usize,
    /// Bytes of these jobs.
    pub queue_bytes: u64,
    /// Jobs altogether; bounds the leader's memory.
    pub total: usize,
    /// A job without a result is issued again after this time.
    pub lease: Duration,
    /// How long a chunk whose recorded holders are all well may lack copies before it is repaired: the third copy of a
    /// fresh chunk is usually on its way.
    pub fresh: Duration,
    /// First pause after a failed job for that chunk and target; doubled by each further failure.
    pub backoff: Duration,
    /// Longest such pause.
    pub backoff_max: Duration,
    /// Chunks looked at in one round, from the most endangered on, and once more from where the last round stopped.
    pub window: usize,
}

impl Default for RepairSettings {
    fn default() -> Self {
        Self {
            queue_jobs: 512,
            queue_bytes: 64 << 20,
            total: 65_536,
            lease: Duration::from_secs(30),
            fresh: Duration::from_secs(5),
            backoff: Duration::from_secs(5),
            backoff_max: Duration::from_secs(300),
            window: 1024,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(500),
            heartbeat: Duration::from_secs(3),
            suspect: Duration::from_secs(10),
            dead: Duration::from_secs(30),
            session_lease: Duration::from_secs(60),
            renewal: Duration::from_secs(10),
            gc_grace: Duration::from_secs(60),
            unknown_grace: Duration::from_secs(600),
            inventory_interval: Duration::from_secs(6 * 3600),
            inventory_delay: Duration::from_secs(120),
            inventory_page: 1000,
            delete_page: 1000,
            release_batch: 1024,
            trash_spare: 50,
            placement_valid: Duration::from_secs(10),
            reserve_bytes: 0,
            trim_grace: Duration::from_secs(60),
            repair: RepairSettings::default(),
        }
    }
}

impl Settings {
    /// The renewal interval that goes with a session lease: a sixth of it, so that five renewals may be lost.
    #[must_use]
    pub fn with_session_lease(mut self, lease: Duration) -> Self {
        self.session_lease = lease;
        self.renewal = lease / 6;
        self.unknown_grace = self.unknown_grace.max(lease * 2);
        self
    }
}
