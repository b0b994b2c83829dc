//! How stored bytes are verified: `scrub status`, `scrub start`, `scrub pause`, `scrub resume`.
//!
//! JSON: `status` prints `{nodes: [{node_id, node, state, reported, disks: [{disk_id, path, failed, reason, scrub, started_ns, chunks,
//! bytes, bad, done, bytes_per_s, eta_ms, next_ns, last, quarantined_copies, quarantined_bytes}]}]}` where `scrub` is `off`, `waiting`,
//! `running` or `paused`, `reported` counts copies that somebody called bad and that wait to be verified, and `last` is `null` or
//! `{started_ns, ended_ns, chunks, bytes, bad}`. The others print `{order, taken, not_taken}`, names of nodes.

use std::time::Duration;

use clap::{Args, Subcommand};
use dfs_client::Dfs;
use dfs_common::disk::{DiskReport, ScrubPass, ScrubState, ScrubVerb};
use dfs_proto::{convert, v1};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    context::Context,
    failure::Failure,
    health::seconds,
    text::{Align, Table, bytes, counted, escape, utc},
};

/// How long an order may take to all nodes: some heartbeats, and a change of leader.
const TAKEN_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// `dfsctl scrub`.
#[derive(Args, Debug)]
#[command(long_about = "\
Watch and steer how the storage nodes verify what they hold

Each storage node reads every chunk on its disks in full, on a schedule (its option --scrub-interval) and beside other work.
A bad copy is set aside in the directory `quarantine` of its data directory and replaced from a good one.")]
pub struct Scrub {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What to do about scrubs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// How far each disk is, how fast, until when, and what was found
    Status(Nodes),
    /// Begin a full pass now
    Start(Nodes),
    /// Stand still until `resume`, also over restarts of the storage nodes
    Pause(Nodes),
    /// Go on where `pause` stopped
    Resume(Nodes),
}

/// Which nodes are meant.
#[derive(Args, Debug)]
pub struct Nodes {
    /// Names or numbers of storage nodes [default: all]
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Scrub) -> Result<(), Failure> {
    match &args.verb {
        Verb::Status(nodes) => status(context, nodes),
        Verb::Start(nodes) => order(context, ScrubVerb::Start, nodes),
        Verb::Pause(nodes) => order(context, ScrubVerb::Pause, nodes),
        Verb::Resume(nodes) => order(context, ScrubVerb::Resume, nodes),
    }
}

/// One storage node with its disks.
struct Node {
    id: u32,
    name: String,
    state: String,
    reported: u64,
    order_taken: u64,
    order_pending: u64,
    disks: Vec<DiskReport>,
}

impl TryFrom<v1::ScrubNode> for Node {
    type Error = Failure;

    fn try_from(wire: v1::ScrubNode) -> Result<Self, Failure> {
        let malformed = |error: dfs_proto::status::RpcError| Failure::of(error.code, error.message);
        Ok(Self {
            id: wire.node_id,
            name: wire.name,
            state: convert::state(wire.state).map_or_else(|_| "unknown".into(), |state| state.to_string()),
            reported: wire.checks,
            order_taken: wire.order_taken,
            order_pending: wire.order_pending,
            disks: wire.disks.into_iter().map(TryInto::try_into).collect::<Result<_, _>>().map_err(malformed)?,
        })
    }
}

/// The nodes that are meant, as they are now.
async fn ask(dfs: &Dfs, wanted: &Nodes) -> Result<Vec<Node>, Failure> {
    let all = dfs.scrub_status().await?.nodes.into_iter().map(Node::try_from).collect::<Result<Vec<_>, _>>()?;
    let is_meant = |node: &Node, word: &String| node.name == *word || node.id.to_string() == *word;
    if let Some(unknown) = wanted.nodes.iter().find(|word| !all.iter().any(|node| is_meant(node, word))) {
        return Err(Failure::not_found(format!("there is no storage node {unknown}"))
            .hint("`dfsctl nodes` lists them; write a name or a number"));
    }
    let none_named = wanted.nodes.is_empty();
    Ok(all.into_iter().filter(|node| none_named || wanted.nodes.iter().any(|word| is_meant(node, word))).collect())
}

fn status(context: &Context, wanted: &Nodes) -> Result<(), Failure> {
    let nodes = context.with_dfs(async |dfs| ask(dfs, wanted).await)?;
    if context.out.json {
        return context.out.value(&json!({ "nodes": nodes.iter().map(node_json).collect::<Vec<_>>() }));
    }
    context.out.lines(&lines(&nodes))
}

fn lines(nodes: &[Node]) -> Vec<String> {
    let mut table = Table::new(&[
        ("STORAGE", Align::Left),
        ("DISK", Align::Left),
        ("SCRUB", Align::Left),
        ("DONE", Align::Right),
        ("RATE", Align::Right),
        ("ETA", Align::Right),
        ("BAD", Align::Right),
        ("LAST FULL PASS (UTC)", Align::Left),
        ("QUARANTINE", Align::Right),
    ]);
    for node in nodes {
        for disk in &node.disks {
            table.row(disk_row(node, disk));
        }
    }
    let mut lines = table.lines();
    for node in nodes {
        let name = escape(node.name.as_bytes());
        if node.disks.is_empty() {
            lines.push(format!("{name} ({}): nothing heard of its disks yet", node.state));
        }
        if node.reported > 0 {
            let copies = if node.reported == 1 { "1 copy".into() } else { format!("{} copies", node.reported) };
            lines.push(format!("{name}: {copies} reported as bad wait to be verified"));
        }
    }
    lines
}

fn disk_row(node: &Node, disk: &DiskReport) -> Vec<String> {
    let scrub = &disk.scrub;
    let is_under_way = scrub.started_ns != 0;
    let what = match scrub.state {
        _ if disk.failure.is_some() => "DISK FAILED".to_owned(),
        ScrubState::Waiting => format!("next {}", utc(scrub.next_ns)),
        state => state_name(state).to_owned(),
    };
    let last = scrub.last.map_or_else(
        || "-".to_owned(),
        |pass| format!("{}, {}, {} bad", utc(pass.ended_ns), counted(pass.chunks, "chunk"), pass.bad),
    );
    let when_running = |text: String| if is_under_way { text } else { "-".to_owned() };
    vec![
        escape(node.name.as_bytes()),
        escape(disk.path.as_bytes()),
        what,
        when_running(format!("{:.1} %", scrub.done * 100.0)),
        when_running(format!("{}/s", bytes(scrub.bytes_per_s as u64))),
        scrub.eta_ms.map_or_else(|| "-".into(), seconds),
        when_running(scrub.bad.to_string()),
        last,
        format!("{} ({})", disk.quarantined.0, bytes(disk.quarantined.1)),
    ]
}

fn state_name(state: ScrubState) -> &'static str {
    match state {
        ScrubState::Off => "off",
        ScrubState::Waiting => "waiting",
        ScrubState::Running => "running",
        ScrubState::Paused => "paused",
    }
}

fn node_json(node: &Node) -> Value {
    json!({
        "node_id": node.id,
        "node": node.name,
        "state": node.state,
        "reported": node.reported,
        "disks": node.disks.iter().map(disk_json).collect::<Vec<_>>(),
    })
}

fn disk_json(disk: &DiskReport) -> Value {
    let scrub = &disk.scrub;
    let pass = |pass: ScrubPass| {
        json!({
            "started_ns": pass.started_ns, "ended_ns": pass.ended_ns, "chunks": pass.chunks, "bytes": pass.bytes,
            "bad": pass.bad,
        })
    };
    json!({
        "disk_id": disk.id.to_string(),
        "path": disk.path,
        "failed": disk.failure.is_some(),
        "reason": disk.failure,
        "scrub": state_name(scrub.state),
        "started_ns": scrub.started_ns,
        "chunks": scrub.chunks,
        "bytes": scrub.bytes,
        "bad": scrub.bad,
        "done": scrub.done,
        "bytes_per_s": scrub.bytes_per_s as u64,
        "eta_ms": scrub.eta_ms,
        "next_ns": scrub.next_ns,
        "last": scrub.last.map(pass),
        "quarantined_copies": disk.quarantined.0,
        "quarantined_bytes": disk.quarantined.1,
    })
}

fn order(context: &Context, verb: ScrubVerb, wanted: &Nodes) -> Result<(), Failure> {
    let (number, taken, left) = context.with_dfs(async |dfs| give(dfs, verb, wanted).await)?;
    let names = |nodes: &[Node]| nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>();
    if context.out.json {
        context.out.value(&json!({ "order": number, "taken": names(&taken), "not_taken": names(&left) }))?;
    } else {
        let what = match verb {
            ScrubVerb::Start => "begin a pass",
            ScrubVerb::Pause => "stand still",
            ScrubVerb::Resume => "go on",
        };
        let told: Vec<String> = taken.iter().map(|node| escape(node.name.as_bytes())).collect();
        if !told.is_empty() {
            context.out.line(format!("{what}: {}", told.join(", ")))?;
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    let left: Vec<String> = left.iter().map(|n| format!("{} ({})", escape(n.name.as_bytes()), n.state)).collect();
    Err(Failure::incomplete(format!("not taken within {} s by {}", TAKEN_WITHIN.as_secs(), left.join(", ")))
        .hint("it is taken when the node reports again, unless the metadata leader changes before"))
}

/// Gives the order, and waits for the nodes to take it: who has and who has not in time.
async fn give(dfs: &Dfs, verb: ScrubVerb, wanted: &Nodes) -> Result<(u64, Vec<Node>, Vec<Node>), Failure> {
    let ids: Vec<u32> =
        ask(dfs, wanted).await?.iter().filter(|node| node.state != "decommissioned").map(|n| n.id).collect();
    let number = dfs.order_scrub(verb, &ids).await?;
    let mut pending = number;
    let deadline = Instant::now() + TAKEN_WITHIN;
    loop {
        let nodes: Vec<Node> = ask(dfs, wanted).await?.into_iter().filter(|node| ids.contains(&node.id)).collect();
        let (taken, left): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.order_taken >= number);
        // Who is dead takes nothing; there is no use in waiting for it.
        if left.iter().all(|node| node.state == "dead") || Instant::now() >= deadline {
            return Ok((number, taken, left));
        }
        // A new leader does not know the order: it is given again, to those that have not taken it. Its numbers are larger.
        if left.iter().all(|node| node.order_pending != pending) {
            let waiting: Vec<u32> = left.iter().map(|node| node.id).collect();
            pending = dfs.order_scrub(verb, &waiting).await?;
        }
        sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::{Uuid, disk::ScrubReport};

    use super::*;

    #[test]
    fn a_disk_is_one_row_with_what_is_known() {
        let disk = |failure: Option<&str>, scrub| DiskReport {
            id: Uuid([1; 16]),
            path: "/d\n".into(),
            failure: failure.map(Into::into),
            capacity_bytes: 0,
            used_bytes: 0,
            chunk_count: 0,
            quarantined: (2, 8 << 20),
            scrub,
        };
        let (id, order_taken, order_pending, reported) = (1, 0, 0, 1);
        let node =
            |disks| Node { id, name: "s".into(), state: "alive".into(), reported, order_taken, order_pending, disks };
        let running = ScrubReport {
            state: ScrubState::Running,
            started_ns: 1,
            done: 0.25,
            bad: 2,
            eta_ms: Some(90_000),
            ..ScrubReport::default()
        };
        let text = lines(&[node(vec![disk(None, running), disk(Some("EIO"), running)]), node(vec![])]).join("\n");
        for word in
            ["25.0 %", "90 s", "2 (8.00 MiB)", "running", "DISK FAILED", "nothing heard", "1 copy reported", "/d\\n"]
        {
            assert!(text.contains(word), "{word}: {text}");
        }
        let json = disk_json(&disk(Some("EIO"), running));
        assert_eq!(
            (&json["failed"], &json["reason"], &json["scrub"]),
            (&json!(true), &json!("EIO"), &json!("running"))
        );
    }
}
