//! One storage node as `dfsctl status` and `dfsctl nodes` show it.

use dfs_proto::v1;
use serde::Serialize;

use super::{Repair, hex, seconds};
use crate::text::{bytes, counted, utc};

/// One storage node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Node {
    /// Number given by metadata.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `host:port`.
    pub address: String,
    /// Failure domain.
    pub rack: String,
    /// Health and admin state in one word: `alive`, `suspect`, `dead`, `draining`, `maintenance`.
    pub state: String,
    /// What an administrator has decided: `in service`, `draining`, `drained`, `maintenance`.
    pub admin: String,
    /// When its maintenance ends, nanoseconds since the Unix epoch; 0 without maintenance.
    pub maintenance_until_ns: i64,
    /// While it is drained: chunks that have too few copies elsewhere.
    pub rests_chunks: u64,
    /// Bytes of these.
    pub rests_bytes: u64,
    /// Bytes it can hold.
    pub capacity_bytes: u64,
    /// Bytes it holds.
    pub used_bytes: u64,
    /// Chunks it holds.
    pub chunk_count: u64,
    /// Milliseconds since its last heartbeat.
    pub silent_ms: u64,
    /// When it came into its state, nanoseconds since the Unix epoch; 0 if unknown.
    pub since_ns: i64,
    /// What its loss would cost.
    pub if_it_fails: Cost,
    /// Its data directories, as it last said; empty until the leader has heard from it.
    pub disks: Vec<Disk>,
}

/// One data directory of a storage node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Disk {
    /// Kept in the directory; hexadecimal.
    pub disk_id: String,
    /// The directory.
    pub path: String,
    /// It was taken out.
    pub failed: bool,
    /// Why; empty if it works.
    pub reason: String,
    /// Bytes it can hold.
    pub capacity_bytes: u64,
    /// Bytes it holds.
    pub used_bytes: u64,
    /// Chunks it holds.
    pub chunk_count: u64,
    /// Bad copies set aside on it.
    pub quarantined_copies: u64,
}

impl From<v1::DiskReport> for Disk {
    fn from(wire: v1::DiskReport) -> Self {
        Self {
            disk_id: hex(&wire.disk_id),
            path: wire.path,
            failed: wire.failed,
            reason: wire.reason,
            capacity_bytes: wire.capacity_bytes,
            used_bytes: wire.used_bytes,
            chunk_count: wire.chunk_count,
            quarantined_copies: wire.quarantined_copies,
        }
    }
}

/// What the loss of a storage node would cost, beyond what is lost already.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct Cost {
    /// Chunks whose only live copy is on it.
    pub lost_chunks: u64,
    /// Bytes of these.
    pub lost_bytes: u64,
    /// Chunks that would have one live copy left.
    pub endangered_chunks: u64,
    /// Bytes of these.
    pub endangered_bytes: u64,
}

impl Cost {
    pub(super) fn words(self) -> String {
        let Self { lost_chunks, lost_bytes, endangered_chunks, .. } = self;
        let lost = match lost_chunks {
            0 => "0 chunks lost".to_owned(),
            n => format!("{} LOST ({})", counted(n, "chunk"), bytes(lost_bytes)),
        };
        format!("{lost}, {endangered_chunks} endangered")
    }
}

impl Node {
    pub(crate) fn new(wire: v1::NodeStatus) -> Self {
        let state = dfs_proto::convert::state(wire.state).map_or_else(|_| "unknown".into(), |state| state.to_string());
        let admin = admin_name(wire.admin());
        Self {
            id: wire.node_id,
            name: wire.name,
            address: wire.address,
            rack: wire.rack,
            state,
            admin: admin.into(),
            maintenance_until_ns: wire.maintenance_until_ns,
            rests_chunks: wire.rests.unwrap_or_default().chunks,
            rests_bytes: wire.rests.unwrap_or_default().bytes,
            capacity_bytes: wire.capacity_bytes,
            used_bytes: wire.used_bytes,
            chunk_count: wire.chunk_count,
            silent_ms: wire.silent_ms,
            since_ns: wire.since_ns,
            disks: wire.disks.into_iter().map(Disk::from).collect(),
            if_it_fails: Cost {
                lost_chunks: wire.if_lost.unwrap_or_default().chunks,
                lost_bytes: wire.if_lost.unwrap_or_default().bytes,
                endangered_chunks: wire.if_endangered.unwrap_or_default().chunks,
                endangered_bytes: wire.if_endangered.unwrap_or_default().bytes,
            },
        }
    }

    /// What its loss would cost, in words; nothing for a node that does not serve.
    #[must_use]
    pub(crate) fn cost(&self) -> String {
        if self.serves() { self.if_it_fails.words() } else { String::new() }
    }

    /// Whether its copies count.
    pub(super) fn serves(&self) -> bool {
        matches!(self.state.as_str(), "alive" | "suspect" | "draining" | "maintenance")
    }

    /// What an administrator has decided about it, and how far that is.
    pub(super) fn decision(&self, repair: Repair) -> Option<String> {
        match self.admin.as_str() {
            // It does not go on before it returns.
            "draining" | "drained" if self.state == "dead" => None,
            "draining" => {
                let left = format!(
                    "{} ({}) left to copy elsewhere",
                    counted(self.rests_chunks, "chunk"),
                    bytes(self.rests_bytes)
                );
                // What is drained is copied last: it is done when everything is.
                let eta = repair.eta_ms.filter(|_| self.rests_chunks > 0);
                let eta = eta.map_or_else(String::new, |ms| format!(", done in {}", seconds(ms)));
                Some(format!("{} is being drained: {left} at {}/s{eta}", self.name, bytes(repair.bytes_per_s)))
            }
            "drained" => {
                Some(format!("{0} is drained: `dfsctl node remove {0}` takes it out of the cluster", self.name))
            }
            "maintenance" => {
                let silent = if self.state == "suspect" {
                    format!(": silent for {}", seconds(self.silent_ms))
                } else {
                    String::new()
                };
                Some(format!("{} is in maintenance until {} UTC{silent}", self.name, utc(self.maintenance_until_ns)))
            }
            _ => None,
        }
    }

    /// Health and admin state for a table: the one that does not show in the other in brackets.
    #[must_use]
    pub(crate) fn state_words(&self) -> String {
        let state = if self.state == "alive" { self.state.clone() } else { self.state.to_uppercase() };
        if self.admin == "in service" || self.admin == self.state { state } else { format!("{state} ({})", self.admin) }
    }

    /// Since when it is in its state, for the middle of a sentence.
    pub(super) fn since(&self) -> String {
        if self.since_ns == 0 { String::new() } else { format!(" since {} UTC", utc(self.since_ns)) }
    }
}

fn admin_name(admin: v1::AdminState) -> &'static str {
    match admin {
        // A leader of an older version knows no other.
        v1::AdminState::Unspecified | v1::AdminState::InService => "in service",
        v1::AdminState::Draining => "draining",
        v1::AdminState::Drained => "drained",
        v1::AdminState::Maintenance => "maintenance",
        v1::AdminState::Decommissioned => "decommissioned",
    }
}
