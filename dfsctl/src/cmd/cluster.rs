//! The cluster at a glance: `status`, `nodes`, `df`.
//!
//! JSON: `status` prints [`crate::health::Status`]; `nodes` prints the array of its `nodes`; `df` prints `{capacity_bytes,
//! used_bytes, available_bytes, replication, storable_bytes, inodes}`, raw bytes but for `storable_bytes`.

use std::time::Duration;

use clap::Args;
use dfs_client::Dfs;
use dfs_proto::v1::MetaStatusResponse;
use serde_json::json;
use tokio::time::timeout;

use super::meta::{Answer, ask};
use crate::{
    context::Context,
    exit::Exit,
    failure::Failure,
    health::{Member, Node, Status, seconds},
    text::{Align, Table, bytes, escape, percent},
};

/// Longest time `status` waits for a leader. Elections take less than 2 s; who waits longer wants to know why.
const GLANCE: Duration = Duration::from_secs(10);

/// `dfsctl status`.
#[derive(Args, Debug)]
#[command(long_about = "\
Is anything at risk?

Healthy is about data, not about machines. The cluster is healthy (exit code 0) when
  - a metadata leader answers and a majority of the metadata nodes is reachable,
  - every chunk of every file has all its live copies, and
  - no storage node with chunks is suspect outside of maintenance.
A storage node that is dead while all its chunks are fully replicated elsewhere, and a metadata node that is down
while a majority is up, and nodes that are drained or in maintenance, are shown and do not make the cluster unhealthy.

Exit code 5: not healthy. Exit code 6: no leader answers within 10 s; what could be learned is shown.")]
pub struct StatusArgs {}

/// `dfsctl nodes`.
#[derive(Args, Debug)]
pub struct NodesArgs {}

/// `dfsctl df`.
#[derive(Args, Debug)]
pub struct DfArgs {}

/// # Errors
/// What the user is told; unhealthy.
pub(super) fn status(context: &Context) -> Result<(), Failure> {
    let (status, failure) = context.with_dfs(async |dfs| match ask_leader(dfs).await {
        Ok(status) => Ok((status, None)),
        Err(failure) if failure.exit == Exit::Unreachable => {
            Ok((Status::without_leader(ask_members(dfs, &context.global.client.meta).await), Some(failure)))
        }
        Err(failure) => Err(failure),
    })?;
    if context.out.json {
        context.out.value(&status)?;
    } else {
        context.out.lines(&status_lines(&status))?;
    }
    match failure {
        Some(failure) => Err(failure),
        None if status.healthy => Ok(()),
        None => Err(Failure::unhealthy(format!("the cluster is not healthy: {}", status.problems.join("; ")))
            .hint("`dfsctl wait healthy` blocks until repair is done")),
    }
}

/// The leader's answer, if it comes in time for a glance.
async fn ask_leader(dfs: &Dfs) -> Result<Status, Failure> {
    match timeout(GLANCE, dfs.cluster_status()).await {
        Ok(answer) => Ok(Status::new(answer?)),
        Err(_) => Err(Failure::unreachable(format!("no metadata leader answered within {} s", GLANCE.as_secs()))),
    }
}

/// Asks every named metadata node how it is, for the time when there is no leader.
async fn ask_members(dfs: &Dfs, addresses: &[String]) -> Vec<Member> {
    let answers = ask(dfs, addresses).await.into_iter();
    let member = |answer: Answer| {
        let (address, answer) = (answer.address, answer.result.ok());
        let reachable = answer.is_some();
        let answer = answer.unwrap_or_else(|| MetaStatusResponse {
            name: "?".into(),
            role: "unknown".into(),
            ..MetaStatusResponse::default()
        });
        Member {
            reachable,
            role: answer.role,
            raft_id: answer.raft_id,
            matched_index: answer.last_log_index,
            lag: 0,
            name: answer.name,
            address,
        }
    };
    answers.map(member).collect()
}

fn status_lines(status: &Status) -> Vec<String> {
    let mut lines = status.summary();
    lines.push(String::new());
    let mut facts = Table::bare(&[Align::Left, Align::Left]);
    status.facts().into_iter().for_each(|(subject, words)| facts.row(vec![subject.into(), words]));
    lines.extend(facts.lines());
    lines.push(String::new());
    let mut members = Table::new(&[
        ("METADATA", Align::Left),
        ("ADDRESS", Align::Left),
        ("ROLE", Align::Left),
        ("REACHABLE", Align::Left),
        ("LAG", Align::Right),
    ]);
    for member in &status.meta.members {
        members.row(vec![
            escape(member.name.as_bytes()),
            escape(member.address.as_bytes()),
            member.role.clone(),
            if member.reachable { "yes" } else { "NO" }.into(),
            member.lag.to_string(),
        ]);
    }
    lines.extend(members.lines());
    if !status.nodes.is_empty() {
        lines.push(String::new());
        lines.extend(node_lines(&status.nodes));
    }
    lines
}

fn node_lines(nodes: &[Node]) -> Vec<String> {
    let mut table = Table::new(&[
        ("STORAGE", Align::Left),
        ("ID", Align::Right),
        ("ADDRESS", Align::Left),
        ("RACK", Align::Left),
        ("STATE", Align::Left),
        ("USED", Align::Right),
        ("CAPACITY", Align::Right),
        ("%", Align::Right),
        ("CHUNKS", Align::Right),
        ("SILENT", Align::Right),
        ("IF IT FAILS", Align::Left),
    ]);
    for node in nodes {
        table.row(vec![
            escape(node.name.as_bytes()),
            node.id.to_string(),
            escape(node.address.as_bytes()),
            escape(node.rack.as_bytes()),
            node.state_words(),
            bytes(node.used_bytes),
            bytes(node.capacity_bytes),
            percent(node.used_bytes, node.capacity_bytes).to_string(),
            node.chunk_count.to_string(),
            seconds(node.silent_ms),
            node.cost(),
        ]);
    }
    table.lines()
}

/// # Errors
/// What the user is told.
pub(super) fn nodes(context: &Context) -> Result<(), Failure> {
    let status = context.with_dfs(async |dfs| Ok(Status::new(dfs.cluster_status().await?)))?;
    if context.out.json {
        return context.out.value(&status.nodes);
    }
    let mut lines = node_lines(&status.nodes);
    // One disk that works is the node itself.
    if status.nodes.iter().any(|node| node.disks.len() > 1 || node.disks.iter().any(|disk| disk.failed)) {
        lines.push(String::new());
        lines.extend(disk_lines(&status.nodes));
    }
    context.out.lines(&lines)
}

fn disk_lines(nodes: &[Node]) -> Vec<String> {
    let mut table = Table::new(&[
        ("STORAGE", Align::Left),
        ("DISK", Align::Left),
        ("USED", Align::Right),
        ("CAPACITY", Align::Right),
        ("%", Align::Right),
        ("CHUNKS", Align::Right),
        ("STATE", Align::Left),
    ]);
    for node in nodes {
        for disk in &node.disks {
            let reason = escape(disk.reason.as_bytes());
            table.row(vec![
                escape(node.name.as_bytes()),
                escape(disk.path.as_bytes()),
                bytes(disk.used_bytes),
                bytes(disk.capacity_bytes),
                percent(disk.used_bytes, disk.capacity_bytes).to_string(),
                disk.chunk_count.to_string(),
                if disk.failed { format!("FAILED: {reason}") } else { "works".into() },
            ]);
        }
    }
    table.lines()
}

/// # Errors
/// What the user is told.
pub(super) fn df(context: &Context) -> Result<(), Failure> {
    let space = context.with_dfs(async |dfs| Ok(dfs.statfs().await?))?;
    let storable = space.available_bytes / u64::from(space.replication.max(1));
    if context.out.json {
        return context.out.value(&json!({
            "capacity_bytes": space.capacity_bytes,
            "used_bytes": space.used_bytes,
            "available_bytes": space.available_bytes,
            "replication": space.replication,
            "storable_bytes": storable,
            "inodes": space.inodes,
        }));
    }
    let mut table = Table::new(&[
        ("CAPACITY", Align::Right),
        ("USED", Align::Right),
        ("AVAILABLE", Align::Right),
        ("USE%", Align::Right),
        ("COPIES", Align::Right),
        ("STORABLE", Align::Right),
        ("INODES", Align::Right),
    ]);
    table.row(vec![
        bytes(space.capacity_bytes),
        bytes(space.used_bytes),
        bytes(space.available_bytes),
        format!("{} %", percent(space.used_bytes, space.capacity_bytes)),
        space.replication.to_string(),
        bytes(storable),
        space.inodes.to_string(),
    ]);
    context.out.lines(&table.lines())
}
