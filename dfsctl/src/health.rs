//! What a cluster status means: the document of `dfsctl status --json`, and the words for people.
//!
//! Healthy is about data, not about machines. A cluster is healthy when
//! - a leader answers and a majority of the metadata voters is reachable,
//! - every chunk that a file references has all its live copies (none is under-replicated, endangered or missing), and
//! - no storage node that holds chunks is suspect outside of maintenance: its copies still count, and nobody knows yet whether
//!   they should.
//!
//! A storage node that is dead while its chunks are fully replicated elsewhere, and a metadata node that is down while a
//! majority is up, and nodes that are drained or in maintenance, are shown as remarks and do not make the cluster unhealthy.

mod node;
mod space;

use dfs_proto::v1;
use serde::Serialize;

pub use node::{Cost, Disk, Node};
pub use space::SpaceHeld;

use crate::text::{bytes, counted, percent};

/// The document of `dfsctl status --json`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Status {
    /// See the module.
    pub healthy: bool,
    /// Why it is not healthy; empty if it is.
    pub problems: Vec<String>,
    /// What else an administrator should know.
    pub remarks: Vec<String>,
    /// Hexadecimal; empty if no leader answered.
    pub cluster_id: String,
    /// Metadata nodes.
    pub meta: Meta,
    /// Storage nodes.
    pub nodes: Vec<Node>,
    /// Chunks that files reference, by live copies; `null` if no leader answered.
    pub chunks: Option<Chunks>,
    /// The same chunks by live copies: none, one, two, three, more (`live` 4).
    pub copies: Vec<CopyClass>,
    /// Copies that wait to be made and that are being made.
    pub repair: Repair,
    /// Bytes (one copy counted) and chunks that nothing references and that are not deleted yet.
    pub garbage: Garbage,
    /// Space that no file uses and that is not free yet, and why.
    pub space_held: SpaceHeld,
    /// Files, directories and other inodes.
    pub inodes: u64,
    /// Client processes.
    pub sessions: u64,
    /// Versions that are being written.
    pub pending_files: u64,
    /// What the cluster is set to.
    pub settings: Settings,
}

/// Metadata nodes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Meta {
    /// Name of the leader.
    pub leader: Option<String>,
    /// A majority of the voters is reachable.
    pub quorum: bool,
    /// All members.
    pub members: Vec<Member>,
}

/// One metadata node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// `leader`, `follower`, `learner`, or `unknown` if it does not answer and no leader tells.
    pub role: String,
    /// Entries behind the leader.
    pub lag: u64,
    /// Answers the leader (or, without one, us).
    pub reachable: bool,
    /// Number in the Raft group.
    pub raft_id: u64,
    /// Last entry it holds, as the leader knows.
    pub matched_index: u64,
}

/// Chunks of files with so many live copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct CopyClass {
    /// Live copies; 4 stands for more than three.
    pub live: u32,
    /// Chunks.
    pub chunks: u64,
    /// Bytes of these, one copy counted.
    pub bytes: u64,
}

/// Chunks that files reference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Chunks {
    /// All.
    pub total: u64,
    /// With every copy.
    pub full: u64,
    /// With fewer copies than wanted, more than one.
    pub under_replicated: u64,
    /// With one copy left.
    pub endangered: u64,
    /// With none.
    pub missing: u64,
    /// Those of `full` that need copies elsewhere because nodes are drained.
    pub moving: u64,
}

/// Repair work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Repair {
    /// Chunks that wait.
    pub queue: u64,
    /// Chunks being copied.
    pub active: u64,
    /// Copies that lack and can be made.
    pub lacking_copies: u64,
    /// Their bytes.
    pub lacking_bytes: u64,
    /// Bytes a second over the last seconds.
    pub bytes_per_s: u64,
    /// Milliseconds until nothing lacks; `null` while nothing moves.
    pub eta_ms: Option<u64>,
}

impl Repair {
    fn new(wire: &v1::ClusterStatusResponse) -> Self {
        let progress = wire.repair.unwrap_or_default();
        Self {
            queue: wire.repair_queue,
            active: wire.repair_active,
            lacking_copies: progress.lacking_copies,
            lacking_bytes: progress.lacking_bytes,
            // A rate is not negative; what is beyond 64 bits is no rate.
            bytes_per_s: progress.bytes_per_s as u64,
            eta_ms: progress.eta_ms,
        }
    }

    fn words(self) -> String {
        if self.lacking_copies == 0 {
            return format!("{} running, {} waiting", self.active, self.queue);
        }
        let left = format!("{} copies ({}) to make", self.lacking_copies, bytes(self.lacking_bytes));
        let eta = self.eta_ms.map_or_else(|| "no ETA yet".to_owned(), |ms| format!("done in {}", seconds(ms)));
        format!("{} running, {left} at {}/s, {eta}", self.active, bytes(self.bytes_per_s))
    }
}

/// What waits for deletion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Garbage {
    /// Bytes, one copy counted.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
}

/// What the cluster is set to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Settings {
    /// Copies of each chunk.
    pub replication: u32,
    /// Copies before a write is acknowledged.
    pub write_quorum: u32,
    /// Bytes.
    pub chunk_size: u32,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence until suspect.
    pub suspect_ms: u64,
    /// Milliseconds of silence until dead.
    pub dead_ms: u64,
}

impl From<v1::DetectorSettings> for Settings {
    fn from(wire: v1::DetectorSettings) -> Self {
        Self {
            replication: wire.replication,
            write_quorum: wire.write_quorum,
            chunk_size: wire.chunk_size,
            heartbeat_ms: wire.heartbeat_ms,
            suspect_ms: wire.suspect_ms,
            dead_ms: wire.dead_ms,
        }
    }
}

impl Status {
    /// Judges the leader's answer.
    #[must_use]
    pub fn new(wire: v1::ClusterStatusResponse) -> Self {
        let repair = Repair::new(&wire);
        let chunks = wire.chunks.unwrap_or_default();
        let members: Vec<_> = wire.members.into_iter().map(|member| (member.voter, Member::new(member))).collect();
        let voters = members.iter().filter(|(voter, _)| *voter).count();
        let reachable = members.iter().filter(|(voter, member)| *voter && member.reachable).count();
        let mut status = Self {
            healthy: false,
            problems: vec![],
            remarks: vec![],
            cluster_id: hex(&wire.cluster_id),
            meta: Meta {
                leader: Some(wire.leader).filter(|leader| !leader.is_empty()),
                quorum: reachable * 2 > voters,
                members: members.into_iter().map(|(_, member)| member).collect(),
            },
            nodes: wire.nodes.into_iter().map(Node::new).collect(),
            chunks: Some(Chunks {
                total: chunks.total,
                full: chunks.full,
                under_replicated: chunks.under_replicated,
                endangered: chunks.endangered,
                missing: chunks.missing,
                moving: chunks.moving,
            }),
            copies: wire
                .copies
                .into_iter()
                .map(|class| CopyClass { live: class.live, chunks: class.chunks, bytes: class.bytes })
                .collect(),
            repair,
            garbage: Garbage { bytes: wire.garbage_bytes, chunks: wire.garbage_chunks },
            space_held: wire.space_held.unwrap_or_default().into(),
            inodes: wire.inodes,
            sessions: wire.sessions,
            pending_files: wire.pending_files,
            settings: wire.detector.unwrap_or_default().into(),
        };
        status.problems = status.find_problems();
        status.healthy = status.problems.is_empty();
        status.remarks = status.find_remarks();
        status
    }

    /// The document when no leader answers: only the metadata nodes that could be asked are known.
    #[must_use]
    pub fn without_leader(members: Vec<Member>) -> Self {
        let mut status = Self::new(v1::ClusterStatusResponse::default());
        let up = members.iter().filter(|member| member.reachable).count();
        status.chunks = None;
        status.problems = vec![format!("no metadata leader: {up} of {} named nodes answer", members.len())];
        status.remarks.clear();
        status.meta = Meta { leader: None, quorum: false, members };
        status
    }

    fn find_problems(&self) -> Vec<String> {
        let mut problems = vec![];
        let chunks = self.chunks.unwrap_or_default();
        if self.meta.leader.is_none() {
            problems.push("there is no metadata leader".into());
        } else if !self.meta.quorum {
            problems.push("less than a majority of the metadata nodes is reachable".into());
        }
        if chunks.missing > 0 {
            problems.push(format!("{} missing: no live copy is known", counted(chunks.missing, "chunk")));
        }
        if chunks.endangered > 0 {
            problems.push(format!("{} endangered: one live copy is left", counted(chunks.endangered, "chunk")));
        }
        if chunks.under_replicated > 0 {
            problems.push(format!(
                "{} under-replicated: fewer than {} live copies",
                counted(chunks.under_replicated, "chunk"),
                self.settings.replication
            ));
        }
        for node in self
            .nodes
            .iter()
            .filter(|node| node.state == "suspect" && node.chunk_count > 0 && node.maintenance_until_ns == 0)
        {
            problems.push(format!("{} is suspect{}: silent for {}", node.name, node.since(), seconds(node.silent_ms)));
        }
        problems
    }

    fn find_remarks(&self) -> Vec<String> {
        let mut remarks = vec![];
        for node in self.nodes.iter().filter(|node| node.serves()) {
            let failed = node.disks.iter().filter(|disk| disk.failed);
            remarks.extend(failed.map(|disk| format!("{}: disk {} has failed: {}", node.name, disk.path, disk.reason)));
        }
        for node in self.nodes.iter().filter(|node| node.state == "dead") {
            remarks.push(format!("{} is dead{}: silent for {}", node.name, node.since(), seconds(node.silent_ms)));
        }
        remarks.extend(self.nodes.iter().filter_map(|node| node.decision(self.repair)));
        let down: Vec<_> = self.meta.members.iter().filter(|m| !m.reachable).map(|m| m.name.as_str()).collect();
        if !down.is_empty() {
            remarks.push(format!("metadata nodes not reachable: {}", down.join(", ")));
        }
        let alive = self.alive();
        if alive < u64::from(self.settings.write_quorum) {
            remarks.push(format!(
                "writes fail: {} alive, a write needs {}",
                counted(alive, "storage node"),
                self.settings.write_quorum
            ));
        } else if alive < u64::from(self.settings.replication) {
            remarks.push(format!(
                "{} alive: new chunks cannot have {} copies",
                counted(alive, "storage node"),
                self.settings.replication
            ));
        }
        remarks
    }

    fn alive(&self) -> u64 {
        self.nodes.iter().filter(|node| node.state == "alive").count() as u64
    }

    /// What the next failure would cost, in words.
    #[must_use]
    pub fn next_failure(&self) -> String {
        let up = self.meta.members.iter().filter(|m| m.reachable && m.role != "learner").count();
        let voters = self.meta.members.iter().filter(|m| m.role != "learner").count();
        let spare = up.saturating_sub(voters / 2 + 1);
        let meta = match spare {
            0 => "the loss of one more metadata node stops the cluster until it is back".to_owned(),
            1 => "one more metadata node may fail".to_owned(),
            n => format!("{n} more metadata nodes may fail"),
        };
        format!("{}; {meta}", self.next_storage_failure())
    }

    fn next_storage_failure(&self) -> String {
        if self.chunks.unwrap_or_default().total == 0 {
            return "no chunk is stored yet".to_owned();
        }
        let worst = self.nodes.iter().filter(|node| node.serves()).max_by_key(|node| node.if_it_fails);
        let Some(worst) = worst else { return "no storage node serves".to_owned() };
        let mut text = match worst.if_it_fails.lost_chunks + worst.if_it_fails.endangered_chunks {
            0 => "if any storage node fails: 0 chunks lost, 0 endangered".to_owned(),
            _ => format!("if {} fails: {}", worst.name, worst.if_it_fails.words()),
        };
        if self.alive() <= u64::from(self.settings.replication) {
            text += ", and too few nodes are left for all copies";
        }
        text
    }

    /// Chunks by live copies, with every class that there is.
    fn copies_words(&self) -> String {
        let class = |class: &CopyClass| {
            let copies = match class.live {
                1 => "1 copy".to_owned(),
                4 => "more".to_owned(),
                n => format!("{n} copies"),
            };
            format!("{} with {copies} ({})", class.chunks, bytes(class.bytes))
        };
        let classes: Vec<_> = self.copies.iter().filter(|class| class.chunks > 0).map(class).collect();
        if classes.is_empty() { "none".to_owned() } else { classes.join(", ") }
    }

    /// The answer at a glance.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        let chunks = self.chunks.unwrap_or_default();
        let mut lines = vec![match self.healthy {
            true if chunks.total == 0 => "healthy: no chunk is stored yet".to_owned(),
            true => format!("healthy: {} all their copies", has(chunks.total)),
            false => "NOT HEALTHY".to_owned(),
        }];
        lines.extend(self.problems.iter().map(|problem| format!("  ! {problem}")));
        lines.extend(self.remarks.iter().map(|remark| format!("  - {remark}")));
        lines
    }

    fn storage_words(&self) -> String {
        let state = |name: &str| self.nodes.iter().filter(|node| node.state == name).count();
        let others: String = ["draining", "maintenance"]
            .into_iter()
            .filter(|name| state(name) > 0)
            .map(|name| format!(", {} {name}", state(name)))
            .collect();
        let used: u64 = self.nodes.iter().map(|node| node.used_bytes).fold(0, u64::saturating_add);
        let capacity: u64 = self.nodes.iter().map(|node| node.capacity_bytes).fold(0, u64::saturating_add);
        format!(
            "{} alive, {} suspect, {} dead{}; {} of {} used ({} %)",
            state("alive"),
            state("suspect"),
            state("dead"),
            others,
            bytes(used),
            bytes(capacity),
            percent(used, capacity)
        )
    }

    /// One line a subject.
    #[must_use]
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let up = self.meta.members.iter().filter(|member| member.reachable).count();
        let leader = self.meta.leader.as_deref().unwrap_or("none");
        let mut facts = vec![("metadata", format!("leader {leader}, {up} of {} reachable", self.meta.members.len()))];
        let Some(chunks) = self.chunks else { return facts };
        facts.push(("storage", self.storage_words()));
        facts.push((
            "chunks",
            format!(
                "{}: {} full, {} under-replicated, {} endangered, {} missing{}",
                chunks.total,
                chunks.full,
                chunks.under_replicated,
                chunks.endangered,
                chunks.missing,
                if chunks.moving > 0 {
                    format!("; {} on nodes that are drained", chunks.moving)
                } else {
                    String::new()
                }
            ),
        ));
        facts.push(("copies", self.copies_words()));
        facts.push(("repair", self.repair.words()));
        facts.push(("garbage", format!("{} in {}", bytes(self.garbage.bytes), counted(self.garbage.chunks, "chunk"))));
        facts.push(("trash", self.space_held.trash_words()));
        facts.push((
            "use",
            format!(
                "{}, {}, {} being written",
                counted(self.inodes, "inode"),
                counted(self.sessions, "session"),
                counted(self.pending_files, "file")
            ),
        ));
        facts.push(("next", self.next_failure()));
        facts
    }
}

fn has(chunks: u64) -> String {
    if chunks == 1 { "the one chunk has".into() } else { format!("all {chunks} chunks have") }
}

impl Member {
    fn new(wire: v1::MetaMember) -> Self {
        let role = if wire.leader {
            "leader"
        } else if wire.voter {
            "follower"
        } else {
            "learner"
        };
        Self {
            role: role.into(),
            reachable: wire.reachable || wire.leader,
            name: wire.name,
            address: wire.address,
            lag: wire.lag,
            raft_id: wire.raft_id,
            matched_index: wire.matched_index,
        }
    }
}

/// Milliseconds in words.
pub(crate) fn seconds(ms: u64) -> String {
    match ms {
        0..10_000 => format!("{:.1} s", ms as f64 / 1000.0),
        10_000..600_000 => format!("{} s", ms / 1000),
        _ => format!("{} min", ms / 60_000),
    }
}

/// Hexadecimal digits of an identifier.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
#[path = "health/tests.rs"]
mod tests;
