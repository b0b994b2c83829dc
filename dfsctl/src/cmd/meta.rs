//! The metadata nodes: how they are, who they are, who leads, and a copy of what they know.
//!
//! JSON: `meta status` prints an array of `{address, reachable, error, name, role, leader, raft_id, term, last_log_index,
//! applied_index, snapshot_index, purged_index, log_disk_bytes, cluster_id, epoch, restored: null or {as_of_ns, done_ns, rescued,
//! unknown_chunks}, members: [{name, address, voter, leader, reachable, lag}]}`; `meta snapshot` prints `{applied_index}`; `meta
//! add` one line for each step `{step, have_index, want_index}`, then `{added, address, replaced}`; `meta remove` `{removed, voters}`;
//! `meta transfer-leader` `{leader, pause_us}`; `meta backup` `{file, bytes, backup: {..}}`; `meta restore-finish` `{was_restored}`.

mod backup;
mod change;

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand};
use dfs_client::Dfs;
use dfs_common::units::utc;
use dfs_proto::v1::{MetaMember, MetaStatusResponse, Restored};
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
    /// Make a node that was started with --join a metadata node
    Add(Add),
    /// Take a metadata node out of the cluster for good
    Remove(Remove),
    /// Put a new metadata node in the place of a dead one, in one step
    Replace(Replace),
    /// Make another metadata node the leader
    TransferLeader(TransferLeader),
    /// Copy everything the metadata nodes know into a file, while they run
    Backup(Backup),
    /// Make the data directory of a first metadata node from a backup: calls `dfs-meta restore` on this machine
    Restore(Restore),
    /// After a restore: let chunks that the tree does not know be deleted again
    RestoreFinish,
}

/// `dfsctl meta add`.
#[derive(Args, Debug)]
pub struct Add {
    /// Name it was started with
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Address under which the others reach it
    #[arg(value_name = "HOST:PORT")]
    pub address: String,
}

/// `dfsctl meta remove`.
#[derive(Args, Debug)]
pub struct Remove {
    /// Who leaves
    #[arg(value_name = "NAME")]
    pub name: String,
}

/// `dfsctl meta replace`.
#[derive(Args, Debug)]
pub struct Replace {
    /// Who leaves
    #[arg(value_name = "OLD")]
    pub old: String,
    /// Name of the new one
    #[arg(value_name = "NEW")]
    pub name: String,
    /// Address of the new one
    #[arg(value_name = "HOST:PORT")]
    pub address: String,
}

/// `dfsctl meta transfer-leader`.
#[derive(Args, Debug)]
pub struct TransferLeader {
    /// Who is to lead [default: whoever has most of the log]
    #[arg(value_name = "NAME")]
    pub to: Option<String>,
}

/// `dfsctl meta backup`.
#[derive(Args, Debug)]
pub struct Backup {
    /// File to write, `-` for standard output; with --verify the file to check
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Check a backup instead of making one, and print what it says of itself; needs no cluster
    #[arg(long)]
    pub verify: bool,
}

/// `dfsctl meta restore`.
#[derive(Args, Debug)]
pub struct Restore {
    /// Options of `dfs-meta restore`: --from FILE --data-dir DIR --name NAME --advertise HOST:PORT
    #[arg(value_name = "OPTION", trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<OsString>,
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
    match &args.verb {
        MetaVerb::Status => status(context),
        MetaVerb::Snapshot => {
            let index = context.with_dfs(async |dfs| Ok(dfs.trigger_snapshot().await?))?;
            if context.out.json {
                return context.out.value(&json!({ "applied_index": index }));
            }
            context.out.line(format!("the leader's snapshot covers the log up to entry {index}"))
        }
        MetaVerb::Add(Add { name, address }) => change::add(context, name, address, None),
        MetaVerb::Replace(Replace { old, name, address }) => change::add(context, name, address, Some(old)),
        MetaVerb::Remove(Remove { name }) => change::remove(context, name),
        MetaVerb::TransferLeader(TransferLeader { to }) => change::transfer_leader(context, to.as_deref()),
        MetaVerb::Backup(Backup { file, verify: true }) => backup::verify(context, file),
        MetaVerb::Backup(Backup { file, verify: false }) => backup::backup(context, file),
        MetaVerb::Restore(Restore { options }) => backup::restore(options),
        MetaVerb::RestoreFinish => backup::restore_finish(context),
    }
}

fn status(context: &Context) -> Result<(), Failure> {
    let answers = context.with_dfs(async |dfs| {
        let mut answers = ask(dfs, &context.global.client.meta).await;
        // Members that are not among the addresses given here are asked too.
        let known = |address: &String| answers.iter().any(|answer| answer.address == *address);
        let mut others: Vec<String> = answers
            .iter()
            .filter_map(|answer| answer.result.as_ref().ok())
            .flat_map(|node| &node.members)
            .map(|member| member.address.clone())
            .filter(|address| !known(address))
            .collect();
        others.sort();
        others.dedup();
        answers.extend(ask(dfs, &others).await);
        Ok(answers)
    })?;
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
            "epoch": node.epoch,
            "restored": node.restored.as_ref().map(restored_json),
            "members": node.members.iter().map(member_json).collect::<Vec<_>>(),
        }),
    }
}

fn restored_json(restored: &Restored) -> Value {
    json!({
        "as_of_ns": restored.as_of_ns,
        "done_ns": restored.done_ns,
        "rescued": restored.rescued,
        "unknown_chunks": restored.unknown_chunks,
    })
}

fn member_json(member: &MetaMember) -> Value {
    json!({
        "name": member.name,
        "address": member.address,
        "voter": member.voter,
        "leader": member.leader,
        "reachable": member.reachable,
        "lag": member.lag,
    })
}

/// The leader's view of the membership, where it says more than the answers themselves.
fn membership_lines(answers: &[Answer]) -> Vec<String> {
    let leader = answers.iter().filter_map(|answer| answer.result.as_ref().ok()).find(|node| node.role == "leader");
    let Some(leader) = leader else { return vec!["no metadata node leads".into()] };
    let voters = leader.members.iter().filter(|member| member.voter).count();
    let up = leader.members.iter().filter(|member| member.voter && member.reachable).count();
    let spare = up.saturating_sub(voters / 2 + 1);
    let mut lines =
        vec![format!("{up} of {voters} voters answer the leader; {spare} more may fail before nothing is served")];
    for member in leader.members.iter().filter(|member| !member.voter) {
        let (name, lag) = (escape(member.name.as_bytes()), member.lag);
        lines.push(format!(
            "{name} has no vote yet and is {lag} entries behind: `dfsctl meta add` it again, or `dfsctl meta remove` it"
        ));
    }
    if let Some(restored) = &leader.restored {
        let how = if restored.rescued { "rescued" } else { "restored from a backup" };
        lines.push(format!("the metadata was {how}: it is as of {} UTC", utc(restored.as_of_ns)));
        lines.push(format!(
            "{} copies of chunks on storage nodes are not known to it and are kept; `dfsctl meta restore-finish` lets them be deleted",
            restored.unknown_chunks
        ));
    }
    lines
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
    lines.push(String::new());
    lines.extend(membership_lines(answers));
    lines
}
