//! The event log: what happened to the cluster, for its administrator.
//!
//! A bounded ring in the replicated state: the newest [`EVENTS_MAX`] events of at most [`BYTES_MAX`] bytes. Numbers start at 1,
//! grow by one and are never reused; times are the leader's clock and never fall. An event is a [`Fact`] with fields of fixed
//! types; its words are made when it is shown.
//!
//! What a command does itself is recorded while it is applied (`State::event`). What only the leader sees (a repaired
//! chunk, a finished scrub) is proposed by `control::events`, gathered, so that a storm costs one entry a second.
//!
//! Facts are stored with postcard: variants and fields are only ever appended.

mod words;

use std::sync::Arc;

use dfs_common::{ChunkId, NodeId, node::NodeState};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::state::State;

/// Events kept: some days of a quiet cluster, some hours of one that is being repaired.
pub const EVENTS_MAX: usize = 4096;
/// Encoded bytes of the events kept. A mean event has 60 bytes; this bounds those with long texts.
pub const BYTES_MAX: u64 = 1 << 20;
/// Longest text in a fact, bytes. Longer ones are cut.
const TEXT_MAX: usize = 400;

/// How much a person should care.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// For the record.
    Info,
    /// Something failed, and dfs is dealing with it.
    Warning,
    /// A person must look.
    Error,
}

/// A field of a fact, for those who show it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Field {
    /// A count, bytes, a time in nanoseconds.
    Number(i64),
    /// Anything in words.
    Text(String),
    /// A storage node.
    Node(NodeId),
}

/// A type that facts are made of.
trait Value {
    fn field(&self) -> Field;
    fn clip(&mut self) {}
}

impl Value for u64 {
    fn field(&self) -> Field {
        Field::Number(i64::try_from(*self).unwrap_or(i64::MAX))
    }
}

impl Value for i64 {
    fn field(&self) -> Field {
        Field::Number(*self)
    }
}

impl Value for u32 {
    fn field(&self) -> Field {
        Field::Number(i64::from(*self))
    }
}

impl Value for bool {
    fn field(&self) -> Field {
        Field::Number(i64::from(*self))
    }
}

impl Value for NodeId {
    fn field(&self) -> Field {
        Field::Node(*self)
    }
}

impl Value for NodeState {
    fn field(&self) -> Field {
        Field::Text(self.to_string())
    }
}

impl Value for ChunkId {
    fn field(&self) -> Field {
        Field::Text(self.to_string())
    }
}

impl Value for String {
    fn field(&self) -> Field {
        Field::Text(self.clone())
    }

    fn clip(&mut self) {
        if self.len() > TEXT_MAX {
            let end = (0..=TEXT_MAX).rev().find(|at| self.is_char_boundary(*at)).unwrap_or(0);
            self.truncate(end);
        }
    }
}

/// Defines [`Fact`] with the name and the fields of each variant.
macro_rules! facts {
    ($($(#[$doc:meta])* $variant:ident $kind:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty),* $(,)? })*) => {
        /// What happened. Variants and fields are only ever appended; the names are stable in `dfsctl events --json`.
        #[expect(missing_docs, reason = "most fields say by their names what they are; the others are explained")]
        #[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
        pub enum Fact {
            $($(#[$doc])* $variant { $($(#[$field_doc])* $field: $type),* },)*
        }

        impl Fact {
            /// Every kind there is.
            pub const KINDS: &[&str] = &[$($kind),*];

            /// Name of the kind, stable.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => $kind,)*
                }
            }

            /// The fields by name, in the order of their definition.
            #[must_use]
            pub fn fields(&self) -> Vec<(&'static str, Field)> {
                match self {
                    $(Self::$variant { $($field),* } => vec![$((stringify!($field), $field.field())),*],)*
                }
            }

            /// Cuts texts that are too long for the log.
            fn clip(&mut self) {
                match self {
                    $(Self::$variant { $($field),* } => { $($field.clip();)* })*
                }
            }
        }
    };
}

facts! {
    /// The cluster was made.
    ClusterMade "cluster-made" { replication: u32, write_quorum: u32, chunk_size: u32 }
    /// A storage node joined, or started again.
    NodeRegistered "node-registered" { node: NodeId, address: String, created: bool }
    /// A storage node changed state. The figures are of the moment behind the change.
    NodeState "node-state" {
        node: NodeId,
        from: NodeState,
        to: NodeState,
        /// Referenced chunks recorded on it.
        copies: u64,
        /// Chunks of files that have one live copy now.
        endangered: u64,
        /// Chunks of files that have no live copy now.
        missing: u64,
    }
    /// A storage node came back under its name with another, empty data directory.
    NodeWiped "node-wiped" { node: NodeId, copies: u64 }
    /// A data directory of a storage node failed.
    DiskFailed "disk-failed" { node: NodeId, disk: String, reason: String, copies: u64 }
    /// A data directory of a storage node works again, or is new.
    DiskReturned "disk-returned" { node: NodeId, disk: String }
    /// A storage node comes and goes; it has to behave for a while before it counts as alive.
    NodeFlapping "node-flapping" { node: NodeId, times: u64 }
    /// A bad copy of a chunk was found; `last` if no other live copy is known.
    CopyCorrupt "copy-corrupt" { chunk: ChunkId, node: NodeId, reason: String, last: bool }
    /// A bad copy was set aside on its node, so that nobody reads it.
    CopyQuarantined "copy-quarantined" { chunk: ChunkId, node: NodeId, disk: String }
    /// A node turned out not to hold copies that were recorded there.
    CopiesLost "copies-lost" { node: NodeId, copies: u64, reason: String }
    /// Copies that nothing references are deleted.
    CopiesEvicted "copies-evicted" { node: NodeId, copies: u64, reason: String }
    /// Copies beyond the wanted number are deleted.
    CopiesTrimmed "copies-trimmed" { node: NodeId, copies: u64, bytes: u64 }
    /// Chunks got one more copy each. Gathered by the live copies that they had before.
    RepairProgress "repair-progress" { live: u32, chunks: u64, bytes: u64, from_ns: i64, to_ns: i64 }
    /// A copy could not be made. It is tried again; `failures` are those since the last event of this kind.
    RepairFailed "repair-failed" { chunk: ChunkId, source: NodeId, target: NodeId, reason: String, failures: u64 }
    /// Every chunk that can have all its copies has them again.
    RepairDone "repair-done" { chunks: u64, bytes: u64, from_ns: i64, to_ns: i64 }
    /// An administrator changed a setting.
    SettingChanged "setting-changed" { name: String, from: String, to: String }
    /// All copies of a draining node are elsewhere.
    DrainDone "drain-done" { node: NodeId, chunks: u64, bytes: u64 }
    /// A node is in maintenance: its absence is expected until then.
    MaintenanceStarted "maintenance-started" { node: NodeId, until_ns: i64 }
    /// Maintenance of a node is over.
    MaintenanceEnded "maintenance-ended" { node: NodeId, reason: String }
    /// A node was removed for good, with the chunks that this endangered or lost.
    NodeRemoved "node-removed" { node: NodeId, endangered: u64, lost: u64 }
    /// Chunks moved from full nodes to empty ones.
    RebalanceProgress "rebalance-progress" { chunks: u64, bytes: u64, from_ns: i64, to_ns: i64 }
    /// The nodes are evenly filled.
    RebalanceDone "rebalance-done" { chunks: u64, bytes: u64 }
    /// Every chunk of a data directory was verified.
    ScrubPass "scrub-pass" { node: NodeId, disk: String, chunks: u64, bytes: u64, bad: u64, took_s: u64 }
    /// Trash was emptied by an administrator.
    TrashEmptied "trash-emptied" { versions: u64, bytes: u64 }
    /// Something was restored from the trash.
    TrashRestored "trash-restored" { name: String, bytes: u64 }
    /// Trash was freed before its time, because space ran out.
    TrashFreedEarly "trash-freed-early" { versions: u64, bytes: u64, reason: String }
    /// Another metadata node leads.
    LeaderChanged "leader-changed" { raft_id: u64, name: String, term: u64 }
    /// A metadata node was added.
    MemberAdded "member-added" { raft_id: u64, name: String, address: String }
    /// A metadata node was removed.
    MemberRemoved "member-removed" { raft_id: u64, name: String, address: String }
    /// The state was written to a backup.
    BackupMade "backup-made" { index: u64, bytes: u64 }
    /// This cluster was made from a backup.
    BackupRestored "backup-restored" { index: u64, taken_ns: i64 }
    /// A storage node is nearly full.
    SpaceLow "space-low" { node: NodeId, used_bytes: u64, capacity_bytes: u64 }
    /// A storage node has room again.
    SpaceRecovered "space-recovered" { node: NodeId, used_bytes: u64, capacity_bytes: u64 }
    /// More happened than the log takes.
    EventsDropped "events-dropped" { events: u64 }
    /// A node is to be emptied; `chunks` have too few copies elsewhere.
    DrainStarted "drain-started" { node: NodeId, chunks: u64, bytes: u64 }
    /// A node is not to be emptied after all; `chunks` were still to be copied.
    DrainCancelled "drain-cancelled" { node: NodeId, chunks: u64 }
    /// Chunks are moved from full nodes to empty ones from now on.
    RebalanceStarted "rebalance-started" {}
    /// They are moved no further, although the nodes are not evenly filled.
    RebalanceStopped "rebalance-stopped" { chunks: u64, bytes: u64, reason: String }
}

/// An entry of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// 1, 2, 3 ...
    pub number: u64,
    /// The leader's clock, nanoseconds since the Unix epoch.
    pub at_ns: i64,
    /// What happened.
    pub fact: Fact,
}

impl Event {
    fn encoded_bytes(&self) -> u64 {
        let size = postcard::serialize_with_flavor(self, postcard::ser_flavors::Size::default());
        size.expect("a fact is made of numbers and texts, which have a size") as u64
    }
}

/// The ring.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct EventLog {
    /// By number, without gaps.
    kept: OrdMap<u64, Arc<Event>>,
    /// Number of the newest event ever, 0 before the first.
    last: u64,
    /// Derived: encoded bytes of `kept`.
    bytes: u64,
}

impl EventLog {
    fn push(&mut self, now_ns: i64, mut fact: Fact) {
        fact.clip();
        let newest_ns = self.kept.get_max().map_or(i64::MIN, |(_, event)| event.at_ns);
        self.last += 1;
        let event = Event { number: self.last, at_ns: now_ns.max(newest_ns), fact };
        self.bytes += event.encoded_bytes();
        self.kept.insert(self.last, Arc::new(event));
        while self.kept.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some((number, oldest)) = self.kept.get_min().map(|(number, event)| (*number, Arc::clone(event))) else {
                break;
            };
            self.kept.remove(&number);
            self.bytes -= oldest.encoded_bytes();
        }
    }

    pub(super) fn events(&self) -> impl Iterator<Item = &Arc<Event>> {
        self.kept.values()
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// An empty log whose newest event had the number `last`: [`EventLog::restore`] puts the events in.
    pub(super) fn behind(last: u64) -> Self {
        Self { last, ..Self::default() }
    }

    /// Takes an event from a snapshot, in order.
    pub(super) fn restore(&mut self, event: Arc<Event>) -> Result<(), &'static str> {
        let follows = self.kept.get_max().is_none_or(|(last, _)| last + 1 == event.number);
        if !follows || event.number > self.last {
            return Err("an event out of order");
        }
        self.bytes += event.encoded_bytes();
        self.kept.insert(event.number, event);
        Ok(())
    }

    /// Violated invariants.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let numbers: Vec<u64> = self.kept.keys().copied().collect();
        if !numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]) || numbers.last().is_some_and(|n| *n != self.last) {
            faults.push(format!("event numbers have gaps or do not end with {}", self.last));
        }
        if !self.kept.values().zip(self.kept.values().skip(1)).all(|(a, b)| a.at_ns <= b.at_ns) {
            faults.push("the times of events fall".to_owned());
        }
        let bytes: u64 = self.kept.values().map(|event| event.encoded_bytes()).sum();
        if bytes != self.bytes || bytes > BYTES_MAX || numbers.len() > EVENTS_MAX {
            faults.push(format!("{} events of {bytes} bytes, {} said", numbers.len(), self.bytes));
        }
        faults
    }
}

impl State {
    /// Enters what happened into the event log.
    pub(super) fn event(&mut self, now_ns: i64, fact: Fact) {
        self.events.push(now_ns, fact);
    }

    /// Events behind number `after`, oldest first.
    pub fn events_after(&self, after: u64) -> impl Iterator<Item = &Event> + '_ {
        let start = std::ops::Bound::Excluded(after);
        self.events.kept.range::<_, u64>((start, std::ops::Bound::Unbounded)).map(|(_, event)| event.as_ref())
    }

    /// Number of the newest event, 0 before the first.
    #[must_use]
    pub fn last_event(&self) -> u64 {
        self.events.last
    }

    /// Number of the oldest event that is kept, 0 if there is none.
    #[must_use]
    pub fn first_event(&self) -> u64 {
        self.events.kept.get_min().map_or(0, |(number, _)| *number)
    }
}
