//! Even filling of the storage nodes: `rebalance start`, `rebalance stop`, `rebalance status`.
//!
//! JSON of each: `{running, started_ns, ended_ns, chunks, bytes, active, bytes_per_s, even, nodes: [{id, name, bytes, capacity_bytes, even}]}`;
//! times are nanoseconds since the Unix epoch, 0 where there is none.

use clap::{Args, Subcommand};
use dfs_proto::v1::{self, RebalanceVerb as Wire};
use serde_json::json;

use crate::{
    context::Context,
    failure::Failure,
    text::{Align, Table, bytes, counted, escape, utc},
};

/// `dfsctl rebalance`.
#[derive(Args, Debug)]
#[command(long_about = "\
Move chunks from full storage nodes to empty ones

Until every node in service is within a tenth of the mean fill, or nothing can move without leaving fewer copies apart. Moves have a
quarter of the limits of repair, and wait for repairs. The other copy of a moved chunk is deleted when the rest are confirmed.")]
pub struct Rebalance {
    /// What to do.
    #[command(subcommand)]
    pub verb: RebalanceVerb,
}

/// What to do about the filling of the storage nodes.
#[derive(Subcommand, Clone, Copy, Debug)]
pub enum RebalanceVerb {
    /// Begin to move chunks; it ends by itself
    Start,
    /// Move no more; what is copied already is finished
    Stop,
    /// How evenly the nodes are filled, and how far it is
    Status,
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Rebalance) -> Result<(), Failure> {
    let verb = match args.verb {
        RebalanceVerb::Start => Wire::Start,
        RebalanceVerb::Stop => Wire::Stop,
        RebalanceVerb::Status => Wire::Status,
    };
    let answer = context.with_dfs(async |dfs| Ok(dfs.rebalance(verb).await?))?;
    if !context.out.json {
        return context.out.lines(&lines(&answer));
    }
    let node = |node: &v1::NodeFill| {
        json!({
            "id": node.node_id, "name": node.name, "bytes": node.bytes, "capacity_bytes": node.capacity_bytes, "even": node.even,
        })
    };
    context.out.value(&json!({
        "running": answer.running,
        "started_ns": answer.started_ns,
        "ended_ns": answer.ended_ns,
        "chunks": answer.chunks,
        "bytes": answer.bytes,
        "active": answer.active,
        "bytes_per_s": answer.bytes_per_s,
        "even": answer.nodes.iter().all(|node| node.even),
        "nodes": answer.nodes.iter().map(node).collect::<Vec<_>>(),
    }))
}

fn lines(answer: &v1::RebalanceResponse) -> Vec<String> {
    let moved = format!("{} ({}) moved", counted(answer.chunks, "chunk"), bytes(answer.bytes));
    let mut lines = vec![match (answer.running, answer.started_ns) {
        (true, started) => format!(
            "running since {} UTC: {moved}, {} on the way at {}/s",
            utc(started),
            answer.active,
            // A rate is not negative; what is beyond 64 bits is no rate.
            bytes(answer.bytes_per_s as u64)
        ),
        (false, 0) => "not running".to_owned(),
        (false, _) => format!("not running; the last one ended at {} UTC: {moved}", utc(answer.ended_ns)),
    }];
    let mut table = Table::new(&[
        ("STORAGE", Align::Left),
        ("CHUNKS' BYTES", Align::Right),
        ("CAPACITY", Align::Right),
        ("FILL", Align::Right),
        ("EVEN", Align::Left),
    ]);
    for node in &answer.nodes {
        table.row(vec![
            escape(node.name.as_bytes()),
            bytes(node.bytes),
            bytes(node.capacity_bytes),
            format!("{:.2} %", node.bytes as f64 * 100.0 / node.capacity_bytes.max(1) as f64),
            if node.even { "yes" } else { "NO" }.into(),
        ]);
    }
    lines.extend(table.lines());
    lines
}
