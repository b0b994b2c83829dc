//! Facts in words, and how they add up.

use dfs_common::{NodeId, node::NodeState, units::utc};

use super::{super::state::State, Fact, Severity};

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

fn counted(count: u64, noun: &str) -> String {
    match (count, noun) {
        (1, noun) => format!("1 {noun}"),
        (n, "copy") => format!("{n} copies"),
        (n, noun) => format!("{n} {noun}s"),
    }
}

/// A span of the leader's clock.
fn span(from_ns: i64, to_ns: i64) -> String {
    format!("{:.1} s", to_ns.saturating_sub(from_ns).max(0) as f64 / 1e9)
}

impl Fact {
    /// How much a person should care.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::NodeState { to, missing, .. } => match to {
                NodeState::Dead if *missing > 0 => Severity::Error,
                NodeState::Dead | NodeState::Suspect => Severity::Warning,
                NodeState::Alive | NodeState::Draining | NodeState::Maintenance | NodeState::Decommissioned => {
                    Severity::Info
                }
            },
            Self::CopyCorrupt { last, .. } => {
                if *last {
                    Severity::Error
                } else {
                    Severity::Warning
                }
            }
            Self::NodeRemoved { lost, .. } => {
                if *lost > 0 {
                    Severity::Error
                } else {
                    Severity::Info
                }
            }
            Self::ScrubPass { bad, .. } => {
                if *bad > 0 {
                    Severity::Warning
                } else {
                    Severity::Info
                }
            }
            Self::DiskFailed { .. } => Severity::Error,
            Self::NodeWiped { .. }
            | Self::NodeFlapping { .. }
            | Self::CopyQuarantined { .. }
            | Self::CopiesLost { .. }
            | Self::RepairFailed { .. }
            | Self::TrashFreedEarly { .. }
            | Self::SpaceLow { .. }
            | Self::EventsDropped { .. } => Severity::Warning,
            Self::ClusterMade { .. }
            | Self::NodeRegistered { .. }
            | Self::DiskReturned { .. }
            | Self::CopiesEvicted { .. }
            | Self::CopiesTrimmed { .. }
            | Self::RepairProgress { .. }
            | Self::RepairDone { .. }
            | Self::SettingChanged { .. }
            | Self::DrainStarted { .. }
            | Self::DrainCancelled { .. }
            | Self::DrainDone { .. }
            | Self::MaintenanceStarted { .. }
            | Self::MaintenanceEnded { .. }
            | Self::RebalanceProgress { .. }
            | Self::RebalanceDone { .. }
            | Self::RebalanceStarted {}
            | Self::RebalanceStopped { .. }
            | Self::TrashEmptied { .. }
            | Self::TrashRestored { .. }
            | Self::LeaderChanged { .. }
            | Self::MemberAdded { .. }
            | Self::MemberRemoved { .. }
            | Self::BackupMade { .. }
            | Self::BackupRestored { .. }
            | Self::SpaceRecovered { .. } => Severity::Info,
        }
    }

    /// The fact in words; nodes by the names they have in `state`.
    #[must_use]
    pub fn text(&self, state: &State) -> String {
        let name =
            |node: &NodeId| state.node(*node).map_or_else(|| format!("storage node {node}"), |node| node.name.clone());
        let copies = |n: &u64| counted(*n, "copy");
        let chunks = |n: &u64| counted(*n, "chunk");
        match self {
            Self::ClusterMade { replication, write_quorum, chunk_size } => format!(
                "the cluster was made: {replication} copies, {write_quorum} before a write is acknowledged, chunks of {}",
                size(u64::from(*chunk_size))
            ),
            Self::NodeRegistered { node, address, created } => {
                let what = if *created { "joined" } else { "started again" };
                format!("{} {what} at {address}", name(node))
            }
            Self::NodeState { node, from, to, copies: held, endangered, missing } => {
                let mut text = format!("{} is {to}, was {from}; {} recorded there", name(node), copies(held));
                if *missing > 0 {
                    text += &format!(", {} without a live copy", chunks(missing));
                }
                if *endangered > 0 {
                    text += &format!(", {} with one live copy left", chunks(endangered));
                }
                text
            }
            Self::NodeWiped { node, copies: lost } => {
                format!("{} came back with an empty data directory, {} are gone", name(node), copies(lost))
            }
            Self::DiskFailed { node, disk, reason, copies: lost } => {
                format!("disk {disk} of {} failed: {reason}; {} recorded there", name(node), copies(lost))
            }
            Self::DiskReturned { node, disk } => format!("disk {disk} of {} is in use", name(node)),
            Self::NodeFlapping { node, times } => format!("{} came and went {times} times lately", name(node)),
            Self::CopyCorrupt { chunk, node, reason, last } => {
                let what = if *last { "the last live copy, it is kept" } else { "it is replaced" };
                let node = name(node);
                // Nodes begin what they say with their name.
                let reason = reason.strip_prefix(&format!("{node}: ")).unwrap_or(reason);
                format!("bad copy of chunk {chunk} on {node}: {reason}; {what}")
            }
            Self::CopyQuarantined { chunk, node, disk } => {
                let place = if disk.is_empty() { name(node) } else { format!("{} ({disk})", name(node)) };
                format!("the bad copy of chunk {chunk} was set aside on {place}")
            }
            Self::CopiesLost { node, copies: lost, reason } => {
                format!("{} does not have {} that were recorded there: {reason}", name(node), copies(lost))
            }
            Self::CopiesEvicted { node, copies: gone, reason } => {
                format!("{} on {} are deleted: {reason}", copies(gone), name(node))
            }
            Self::CopiesTrimmed { node, copies: gone, bytes } => {
                format!("{} ({}) beyond the wanted number on {} are deleted", copies(gone), size(*bytes), name(node))
            }
            Self::RepairProgress { live, chunks: done, bytes, from_ns, to_ns } => {
                let danger = if *live == 1 { "one live copy".to_owned() } else { format!("{live} live copies") };
                let (done, bytes, span) = (chunks(done), size(*bytes), span(*from_ns, *to_ns));
                format!("{done} with {danger} got one more ({bytes} in {span})")
            }
            Self::RepairFailed { chunk, source, target, reason, failures } => {
                let more = if *failures > 1 { format!(" ({failures} failures)") } else { String::new() };
                format!("copying chunk {chunk} from {} to {} failed: {reason}{more}", name(source), name(target))
            }
            Self::RepairDone { chunks: done, bytes, from_ns, to_ns } => {
                format!("repair is done: {} copied ({}) in {}", chunks(done), size(*bytes), span(*from_ns, *to_ns))
            }
            Self::SettingChanged { name, from, to } => format!("{name} is {to}, was {from}"),
            Self::DrainStarted { node, chunks: left, bytes } => {
                format!("{} is being drained: {} ({}) to copy elsewhere", name(node), chunks(left), size(*bytes))
            }
            Self::DrainCancelled { node, chunks: left } => {
                format!("{} is in service again; {} were still to be copied elsewhere", name(node), chunks(left))
            }
            Self::DrainDone { node, chunks: moved, bytes } => {
                format!("{} is drained: {} ({}) are elsewhere", name(node), chunks(moved), size(*bytes))
            }
            Self::MaintenanceStarted { node, until_ns } => {
                format!("{} is in maintenance until {} UTC", name(node), utc(*until_ns))
            }
            Self::MaintenanceEnded { node, reason } => format!("maintenance of {} is over: {reason}", name(node)),
            Self::NodeRemoved { node, endangered, lost } => {
                format!("{} was removed; {} lost, {endangered} endangered", name(node), chunks(lost))
            }
            Self::RebalanceProgress { chunks: moved, bytes, from_ns, to_ns } => {
                format!("{} moved to emptier nodes ({} in {})", chunks(moved), size(*bytes), span(*from_ns, *to_ns))
            }
            Self::RebalanceStarted {} => "chunks are moved from full nodes to empty ones".to_owned(),
            Self::RebalanceStopped { chunks: moved, bytes, reason } => {
                format!("the rebalance ended after {} ({}): {reason}", chunks(moved), size(*bytes))
            }
            Self::RebalanceDone { chunks: moved, bytes } => {
                format!("the nodes are evenly filled: {} moved ({})", chunks(moved), size(*bytes))
            }
            Self::ScrubPass { node, disk, chunks: seen, bytes, bad, took_s } => {
                let place = if disk.is_empty() { name(node) } else { format!("{} ({disk})", name(node)) };
                format!("scrub of {place}: {} ({}) verified in {took_s} s, {bad} bad", chunks(seen), size(*bytes))
            }
            Self::TrashEmptied { versions, bytes } => {
                format!("the trash was emptied: {} ({})", counted(*versions, "version"), size(*bytes))
            }
            Self::TrashRestored { name, bytes } => format!("{name} was restored from the trash ({})", size(*bytes)),
            Self::TrashFreedEarly { versions, bytes, reason } => {
                format!("{} in the trash ({}) freed early: {reason}", counted(*versions, "version"), size(*bytes))
            }
            Self::LeaderChanged { raft_id, name, term } => format!("{name} ({raft_id}) leads in term {term}"),
            Self::MemberAdded { raft_id, name, address } => {
                format!("metadata node {name} ({raft_id}) at {address} was added")
            }
            Self::MemberRemoved { raft_id, name, address } => {
                format!("metadata node {name} ({raft_id}) at {address} was removed")
            }
            Self::BackupMade { index, bytes } => {
                format!("the metadata up to entry {index} was written to a backup ({})", size(*bytes))
            }
            Self::BackupRestored { index, .. } => {
                format!("the cluster was made from a backup of the metadata up to entry {index}")
            }
            Self::SpaceLow { node, used_bytes, capacity_bytes } => {
                format!("{} is nearly full: {} of {}", name(node), size(*used_bytes), size(*capacity_bytes))
            }
            Self::SpaceRecovered { node, used_bytes, capacity_bytes } => {
                format!("{} has room again: {} of {}", name(node), size(*used_bytes), size(*capacity_bytes))
            }
            Self::EventsDropped { events } => {
                format!("{} happened too fast for the log and left no trace", counted(*events, "more event"))
            }
        }
    }

    /// Adds a later fact to this one if both are of one kind about the same thing. Gives it back if not.
    ///
    /// # Errors
    /// The later fact, which stands for itself.
    pub fn absorb(&mut self, later: Self) -> Result<(), Self> {
        match (self, later) {
            (
                Self::RepairProgress { live, chunks, bytes, to_ns, .. },
                Self::RepairProgress { live: same, chunks: more, bytes: more_bytes, to_ns: end, .. },
            ) if *live == same => {
                (*chunks, *bytes, *to_ns) = (*chunks + more, *bytes + more_bytes, end);
                Ok(())
            }
            (
                Self::RebalanceProgress { chunks, bytes, to_ns, .. },
                Self::RebalanceProgress { chunks: more, bytes: more_bytes, to_ns: end, .. },
            ) => {
                (*chunks, *bytes, *to_ns) = (*chunks + more, *bytes + more_bytes, end);
                Ok(())
            }
            (
                Self::RepairFailed { source, target, failures, .. },
                Self::RepairFailed { source: same_source, target: same_target, failures: more, .. },
            ) if (*source, *target) == (same_source, same_target) => {
                *failures += more;
                Ok(())
            }
            (Self::CopiesLost { node, copies, reason }, Self::CopiesLost { node: same, copies: more, reason: why })
            | (
                Self::CopiesEvicted { node, copies, reason },
                Self::CopiesEvicted { node: same, copies: more, reason: why },
            ) if (*node, &*reason) == (same, &why) => {
                *copies += more;
                Ok(())
            }
            (
                Self::CopiesTrimmed { node, copies, bytes },
                Self::CopiesTrimmed { node: same, copies: more, bytes: more_bytes },
            ) if *node == same => {
                (*copies, *bytes) = (*copies + more, *bytes + more_bytes);
                Ok(())
            }
            (Self::TrashEmptied { versions, bytes }, Self::TrashEmptied { versions: more, bytes: more_bytes }) => {
                (*versions, *bytes) = (*versions + more, *bytes + more_bytes);
                Ok(())
            }
            (
                Self::TrashFreedEarly { versions, bytes, reason },
                Self::TrashFreedEarly { versions: more, bytes: more_bytes, reason: why },
            ) if *reason == why => {
                (*versions, *bytes) = (*versions + more, *bytes + more_bytes);
                Ok(())
            }
            (_, later) => Err(later),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_one_danger_adds_up_and_of_two_does_not() {
        let done = |live, to_ns| Fact::RepairProgress { live, chunks: 1, bytes: 10, from_ns: 5, to_ns };
        let mut fact = done(1, 6);
        assert_eq!(fact.absorb(done(1, 9)), Ok(()));
        assert_eq!(fact, Fact::RepairProgress { live: 1, chunks: 2, bytes: 20, from_ns: 5, to_ns: 9 });
        assert_eq!(fact.absorb(done(2, 10)), Err(done(2, 10)));
    }

    #[test]
    fn words_name_nodes_and_count() {
        let state = State::default();
        let text = Fact::CopiesTrimmed { node: NodeId(3), copies: 1, bytes: 4 << 20 }.text(&state);
        assert_eq!(text, "1 copy (4.0 MiB) beyond the wanted number on storage node 3 are deleted");
    }
}
