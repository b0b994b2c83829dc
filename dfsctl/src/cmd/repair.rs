//! How lost copies are replaced: `repair status`, `repair queue`, `repair now`, `repair limits`.
//!
//! JSON: `status` prints `{limits, active, lacking, endangered, missing, under_replicated, rate, eta_ms, over_replicated, trimming,
//! nodes, failures}`, `queue` `{total, end, chunks}`, `now` `{forgiven, active_copies, lacking_copies, chunks}`, `limits` `{streams_per_node,
//! streams_total, bytes_per_s}` (0 bytes a second: no limit). A chunk is `{chunk_id, length, live, wanted, holders, wait, source,
//! target, failure}` where `wait` is one of `next`, `in_work`, `fresh`, `no_source`, `no_target`, `paused`, `busy`, `throttled`, `enough`,
//! and a failure is `{chunk_id, node_id, failures, ago_ms, again_in_ms, code, message}`.

use std::ffi::OsString;

use clap::{Args, Subcommand};
use dfs_client::Dfs;
use dfs_common::{ChunkId, ErrorCode, Layout, units::ByteSize};
use dfs_proto::v1::{self, RepairWait};
use serde_json::{Value, json};

use crate::{
    context::{Context, On, cluster_path},
    failure::Failure,
    health::{hex, seconds},
    text::{Align, Table, bytes, counted, escape},
};

/// Failures shown.
const FAILURES: u32 = 20;
/// Chunks named in one call.
const NOW_PAGE: usize = 1024;

/// `dfsctl repair`.
#[derive(Args, Debug)]
pub struct Repair {
    /// What to do.
    #[command(subcommand)]
    pub verb: RepairVerb,
}

/// What to do about repair.
#[derive(Subcommand, Debug)]
pub enum RepairVerb {
    /// What is being copied, how fast, until when, and what failed
    Status,
    /// The chunks that lack copies, the most endangered first, and why each waits
    Queue(Queue),
    /// Try at once what was put off after a failure: of one file or chunk, or everything
    Now(Now),
    /// Show the limits of repair, or change them while it runs
    Limits(Limits),
}

/// `dfsctl repair queue`.
#[derive(Args, Debug)]
pub struct Queue {
    /// Chunks shown
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub limit: u32,
}

/// `dfsctl repair now`.
#[derive(Args, Debug)]
pub struct Now {
    /// A path in the cluster, or a chunk id of 64 hexadecimal digits [default: everything]
    #[arg(value_name = "PATH|CHUNK")]
    pub what: Option<OsString>,
}

/// `dfsctl repair limits`.
#[derive(Args, Debug)]
#[command(long_about = "\
Show the limits of repair, or change them while it runs

Chunks with one copy left have as many streams of their own and are outside of the rate. The limits are kept by the
metadata nodes: they hold for every leader, until they are changed again.")]
pub struct Limits {
    /// Copies that one storage node sends at once; small chunks share a stream
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub streams: Option<u32>,
    /// Copies that all storage nodes together send at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub total: Option<u32>,
    /// Bytes a second over all storage nodes; 0 for no limit
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<ByteSize>,
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Repair) -> Result<(), Failure> {
    match &args.verb {
        RepairVerb::Status => status(context),
        RepairVerb::Queue(args) => queue(context, args),
        RepairVerb::Now(args) => now(context, args),
        RepairVerb::Limits(args) => limits(context, args),
    }
}

fn status(context: &Context) -> Result<(), Failure> {
    let status = context.with_dfs(async |dfs| Ok(dfs.repair_status(FAILURES).await?))?;
    if context.out.json {
        return context.out.value(&status_json(&status));
    }
    context.out.lines(&status_lines(&status))
}

fn status_json(status: &v1::RepairStatusResponse) -> Value {
    let progress = status.progress.unwrap_or_default();
    let chunks = status.chunks.unwrap_or_default();
    let nodes: Vec<Value> = status
        .nodes
        .iter()
        .map(|node| {
            json!({
                "node_id": node.node_id, "name": node.name,
                "sending": node.sending, "sending_bytes": node.sending_bytes,
                "receiving": node.receiving, "receiving_bytes": node.receiving_bytes,
            })
        })
        .collect();
    json!({
        "limits": limits_json(status.limits.unwrap_or_default()),
        "active": { "copies": progress.active_copies, "urgent": progress.active_urgent, "bytes": progress.active_bytes },
        "lacking": { "copies": progress.lacking_copies, "bytes": progress.lacking_bytes },
        "endangered": chunks.endangered,
        "missing": chunks.missing,
        "under_replicated": chunks.under_replicated,
        "rate": { "copies_per_s": progress.chunks_per_s, "bytes_per_s": progress.bytes_per_s },
        "eta_ms": progress.eta_ms,
        "over_replicated": progress.over_replicated,
        "trimming": progress.trimming,
        "nodes": nodes,
        "failures": status.failures.iter().map(failure_json).collect::<Vec<_>>(),
    })
}

fn status_lines(status: &v1::RepairStatusResponse) -> Vec<String> {
    let progress = status.progress.unwrap_or_default();
    let chunks = status.chunks.unwrap_or_default();
    let limits = status.limits.unwrap_or_default();
    let mut lines = vec![headline(&progress), String::new()];
    let mut facts = Table::bare(&[Align::Left, Align::Left]);
    let mut row = |subject: &str, words: String| facts.row(vec![subject.into(), words]);
    row("no copy left", counted(chunks.missing, "chunk"));
    row("one copy left", counted(chunks.endangered, "chunk"));
    row("more copies left", counted(chunks.under_replicated - chunks.endangered.min(chunks.under_replicated), "chunk"));
    row(
        "in work",
        format!(
            "{}, {} of them urgent, {}",
            progress.active_copies,
            progress.active_urgent,
            bytes(progress.active_bytes)
        ),
    );
    row(
        "too many copies",
        format!("{}, {} being confirmed", counted(progress.over_replicated, "chunk"), progress.trimming),
    );
    row("limits", limits_words(limits));
    lines.extend(facts.lines());
    if !status.nodes.is_empty() {
        let mut table = Table::new(&[
            ("STORAGE", Align::Left),
            ("SENDS", Align::Right),
            ("BYTES", Align::Right),
            ("RECEIVES", Align::Right),
            ("BYTES", Align::Right),
        ]);
        for node in &status.nodes {
            table.row(vec![
                escape(node.name.as_bytes()),
                node.sending.to_string(),
                bytes(node.sending_bytes),
                node.receiving.to_string(),
                bytes(node.receiving_bytes),
            ]);
        }
        lines.push(String::new());
        lines.extend(table.lines());
    }
    if !status.failures.is_empty() {
        lines.push(String::new());
        lines.push("what failed and is put off (`dfsctl repair now` tries it at once):".into());
        lines.extend(status.failures.iter().map(failure_words));
    }
    lines
}

fn headline(progress: &v1::RepairProgress) -> String {
    if progress.lacking_copies == 0 {
        return "nothing lacks a copy that could be made".into();
    }
    let copies = if progress.lacking_copies == 1 { "copy" } else { "copies" };
    let left = format!("{} {copies} to make, {}", progress.lacking_copies, bytes(progress.lacking_bytes));
    match progress.eta_ms {
        Some(eta) => format!(
            "{left}, at {}/s and {:.0} copies/s: done in {}",
            bytes(progress.bytes_per_s as u64),
            progress.chunks_per_s,
            seconds(eta)
        ),
        None => format!("{left}; nothing moves at the moment: `dfsctl repair queue` says why"),
    }
}

fn queue(context: &Context, args: &Queue) -> Result<(), Failure> {
    let page = context.with_dfs(async |dfs| Ok(dfs.repair_queue(args.limit, None).await?))?;
    if context.out.json {
        return context.out.value(&json!({
            "total": page.total, "end": page.end, "chunks": page.chunks.iter().map(chunk_json).collect::<Vec<_>>(),
        }));
    }
    if page.chunks.is_empty() {
        return context.out.line("no chunk lacks a copy");
    }
    let mut lines = chunk_lines(&page.chunks);
    let shown = page.chunks.len() as u64;
    if !page.end {
        lines.push(format!("and {} more", counted(page.total.saturating_sub(shown), "chunk")));
    }
    context.out.lines(&lines)
}

fn now(context: &Context, args: &Now) -> Result<(), Failure> {
    let mut answer = context.with_dfs(async |dfs| {
        let Some(what) = &args.what else { return Ok(dfs.repair_now(&[]).await?) };
        let mut sum = v1::RepairNowResponse::default();
        for some in named(dfs, what).await?.chunks(NOW_PAGE) {
            let answer = dfs.repair_now(some).await?;
            sum.forgiven += answer.forgiven;
            sum.chunks.extend(answer.chunks);
            (sum.active_copies, sum.lacking_copies) = (answer.active_copies, answer.lacking_copies);
        }
        Ok(sum)
    })?;
    if context.out.json {
        return context.out.value(&json!({
            "forgiven": answer.forgiven, "active_copies": answer.active_copies, "lacking_copies": answer.lacking_copies,
            "chunks": answer.chunks.iter().map(chunk_json).collect::<Vec<_>>(),
        }));
    }
    let mut lines = vec![format!(
        "{} forgotten; {} being made of {} that lack",
        counted(answer.forgiven, "pause"),
        answer.active_copies,
        answer.lacking_copies
    )];
    answer.chunks.retain(|chunk| chunk.wait() != RepairWait::Enough);
    if !answer.chunks.is_empty() {
        lines.extend(chunk_lines(&answer.chunks));
    } else if args.what.is_some() {
        lines.push("every chunk of it has all its copies".into());
    }
    context.out.lines(&lines)
}

/// The chunks that a path or a chunk id stands for.
async fn named(dfs: &Dfs, what: &OsString) -> Result<Vec<ChunkId>, Failure> {
    if let Some(id) = what.to_str().and_then(|text| text.parse().ok()) {
        return Ok(vec![id]);
    }
    let path = cluster_path(what)?;
    let attr = dfs.resolve(&path).await.on("cannot repair", &path)?;
    if attr.file_id.is_none() {
        return Err(Failure::of(ErrorCode::NotFound, format!("/{} has no content of its own", escape(&path)))
            .hint("name a file; `dfsctl repair now` without a path tries everything"));
    }
    let (_, Layout::Replicated { chunks, .. }, _) = dfs.layout(attr.ino).await.on("cannot repair", &path)?;
    Ok(chunks.into_iter().filter(|chunk| !chunk.is_hole()).map(|chunk| chunk.id).collect())
}

fn limits(context: &Context, args: &Limits) -> Result<(), Failure> {
    let request = v1::SetRepairLimitsRequest {
        streams_per_node: args.streams,
        streams_total: args.total,
        bytes_per_s: args.rate.map(|rate| rate.0),
    };
    let limits = context.with_dfs(async |dfs| Ok(dfs.set_repair_limits(request).await?))?;
    if context.out.json {
        return context.out.value(&limits_json(limits));
    }
    context.out.line(limits_words(limits))
}

fn limits_json(limits: v1::RepairLimits) -> Value {
    json!({
        "streams_per_node": limits.streams_per_node,
        "streams_total": limits.streams_total,
        "bytes_per_s": limits.bytes_per_s,
    })
}

fn limits_words(limits: v1::RepairLimits) -> String {
    let rate = if limits.bytes_per_s == 0 { "any rate".into() } else { format!("{}/s", bytes(limits.bytes_per_s)) };
    format!("{} a node, {} in all, {rate}", counted(limits.streams_per_node.into(), "stream"), limits.streams_total)
}

fn chunk_json(chunk: &v1::QueuedChunk) -> Value {
    json!({
        "chunk_id": hex(&chunk.chunk_id),
        "length": chunk.length,
        "live": chunk.live,
        "wanted": chunk.wanted,
        "holders": chunk.holders,
        "wait": wait_name(chunk.wait()),
        "source": Some(chunk.source).filter(|id| *id != 0),
        "target": Some(chunk.target).filter(|id| *id != 0),
        "failure": chunk.failure.as_ref().map(failure_json),
    })
}

fn chunk_lines(chunks: &[v1::QueuedChunk]) -> Vec<String> {
    let mut table = Table::new(&[
        ("CHUNK", Align::Left),
        ("SIZE", Align::Right),
        ("COPIES", Align::Right),
        ("ON", Align::Left),
        ("WAITS", Align::Left),
    ]);
    for chunk in chunks {
        let holders: Vec<String> = chunk.holders.iter().map(u32::to_string).collect();
        table.row(vec![
            hex(&chunk.chunk_id),
            bytes(chunk.length.into()),
            format!("{}/{}", chunk.live, chunk.wanted),
            holders.join(","),
            wait_words(chunk),
        ]);
    }
    table.lines()
}

fn wait_words(chunk: &v1::QueuedChunk) -> String {
    let why = match chunk.wait() {
        RepairWait::Unspecified => "for a reason this dfsctl does not know",
        RepairWait::Next => "is next",
        RepairWait::InWork => return format!("in work, from node {} to node {}", chunk.source, chunk.target),
        RepairWait::Fresh => "fresh: its last copy is usually on its way",
        RepairWait::NoSource => "NO SOURCE: no live node holds it",
        RepairWait::NoTarget => "NO TARGET: no live node without a copy has room",
        RepairWait::Paused => "paused after a failure",
        RepairWait::Busy => "its nodes are busy with others",
        RepairWait::Throttled => "for the limit of bytes a second",
        RepairWait::Enough => "no longer: it has all its copies",
    };
    match &chunk.failure {
        Some(failure) => format!("{why}; {}", failure_words(failure)),
        None => why.into(),
    }
}

fn wait_name(wait: RepairWait) -> &'static str {
    match wait {
        RepairWait::Unspecified => "unknown",
        RepairWait::Next => "next",
        RepairWait::InWork => "in_work",
        RepairWait::Fresh => "fresh",
        RepairWait::NoSource => "no_source",
        RepairWait::NoTarget => "no_target",
        RepairWait::Paused => "paused",
        RepairWait::Busy => "busy",
        RepairWait::Throttled => "throttled",
        RepairWait::Enough => "enough",
    }
}

fn failure_json(failure: &v1::RepairFailure) -> Value {
    json!({
        "chunk_id": hex(&failure.chunk_id),
        "node_id": failure.node_id,
        "failures": failure.failures,
        "ago_ms": failure.ago_ms,
        "again_in_ms": failure.again_in_ms,
        "code": code_name(failure.code),
        "message": failure.message,
    })
}

fn failure_words(failure: &v1::RepairFailure) -> String {
    format!(
        "chunk {} with node {}: failed {} ago ({}), again in {}: {}",
        &hex(&failure.chunk_id)[..12.min(failure.chunk_id.len() * 2)],
        failure.node_id,
        seconds(failure.ago_ms),
        counted(failure.failures.into(), "time"),
        seconds(failure.again_in_ms),
        escape(failure.message.as_bytes())
    )
}

fn code_name(code: u32) -> String {
    ErrorCode::from_wire(code).map_or_else(|| code.to_string(), |code| code.to_string())
}
