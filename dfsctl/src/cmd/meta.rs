//! The metadata nodes, asked one by one: `meta status`, `meta snapshot`.
//!
//! JSON: `meta status` prints an array of `{address, reachable, error, name, role, leader, raft_id, term, last_log_index,
//! applied_index, snapshot_index, purged_index, log_disk_bytes, cluster_id}`; `meta snapshot` prints `{applied_index}`.

use clap::{Args, Subcommand};
use dfs_client::Dfs;
use dfs_proto::v1::MetaStatusResponse;
use serde_json::{Value, json};

use crate::{
    context::Context,
    failure::Failure,
    text::{Align, Table, bytes, escape},
};

/// `dfsctl meta`.
#[derive(Args, Debug)]
pub struct Meta {
    /// What to do.
    #[command(subcommand)]
    pub verb: MetaVerb,
}

/// What to do with the metadata nodes.
#[derive(Subcommand, Debug)]
pub enum MetaVerb {
    /// Ask every metadata node how it is; works without a leader
    Status,
    /// Make the leader write a snapshot now
    Snapshot,
}

/// What one node answered.
pub(super) struct Answer {
    /// Who was asked.
    pub(super) address: String,
    /// What it said.
    pub(super) result: Result<MetaStatusResponse, dfs_client::Error>,
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Meta) -> Result<(), Failure> {
    match args.verb {
        MetaVerb::Status => status(context),
        MetaVerb::Snapshot => {
            let index = context.with_dfs(async |dfs| Ok(dfs.trigger_snapshot().await?))?;
            if context.out.json {
                return context.out.value(&json!({ "applied_index": index }));
            }
            context.out.line(format!("the leader's snapshot covers the log up to entry {index}"))
        }
    }
}

fn status(context: &Context) -> Result<(), Failure> {
    let answers = context.with_dfs(async |dfs| Ok(ask(dfs, &context.global.client.meta).await))?;
    if context.out.json {
        context.out.value(&answers.iter().map(answer_json).collect::<Vec<_>>())?;
    } else {
        context.out.lines(&lines(&answers))?;
    }
    if answers.iter().all(|answer| answer.result.is_err()) {
        return Err(Failure::unreachable("no metadata node answers")
            .hint("check --meta or DFS_META_ADDRS, and that dfs-meta runs there"));
    }
    Ok(())
}

/// Asks all at the same time, so that one that is down costs its timeout once.
pub(super) async fn ask(dfs: &Dfs, addresses: &[String]) -> Vec<Answer> {
    let calls: Vec<_> = addresses
        .iter()
        .map(|address| {
            let (dfs, address) = (dfs.clone(), address.clone());
            tokio::spawn(async move {
                let result = dfs.meta_status(&address).await;
                Answer { address, result }
            })
        })
        .collect();
    let mut answers = Vec::with_capacity(calls.len());
    for call in calls {
        answers.extend(call.await);
    }
    answers
}

fn answer_json(answer: &Answer) -> Value {
    match &answer.result {
        Err(error) => json!({ "address": answer.address, "reachable": false, "error": error.to_string() }),
        Ok(node) => json!({
            "address": answer.address,
            "reachable": true,
            "error": null,
            "name": node.name,
            "role": node.role,
            "leader": Some(&node.leader).filter(|leader| !leader.is_empty()),
            "raft_id": node.raft_id,
            "term": node.term,
            "last_log_index": node.last_log_index,
            "applied_index": node.applied_index,
            "snapshot_index": node.snapshot_index,
            "purged_index": node.purged_index,
            "log_disk_bytes": node.log_disk_bytes,
            "cluster_id": node.cluster_id.iter().map(|b| format!("{b:02x}")).collect::<String>(),
        }),
    }
}

fn lines(answers: &[Answer]) -> Vec<String> {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("ADDRESS", Align::Left),
        ("ROLE", Align::Left),
        ("LEADER", Align::Left),
        ("TERM", Align::Right),
        ("LOG", Align::Right),
        ("APPLIED", Align::Right),
        ("SNAPSHOT", Align::Right),
        ("PURGED", Align::Right),
        ("DISK", Align::Right),
    ]);
    let mut errors = vec![];
    for answer in answers {
        let address = escape(answer.address.as_bytes());
        match &answer.result {
            Err(error) => {
                table.row(["?", &address, "NOT REACHABLE", "", "", "", "", "", "", ""].map(String::from).to_vec());
                errors.push(format!("{address}: {error}"));
            }
            Ok(node) => table.row(vec![
                escape(node.name.as_bytes()),
                address,
                node.role.clone(),
                if node.leader.is_empty() { "none".into() } else { escape(node.leader.as_bytes()) },
                node.term.to_string(),
                node.last_log_index.to_string(),
                node.applied_index.to_string(),
                node.snapshot_index.to_string(),
                node.purged_index.to_string(),
                bytes(node.log_disk_bytes),
            ]),
        }
    }
    let mut lines = table.lines();
    lines.extend(errors);
    lines
}
