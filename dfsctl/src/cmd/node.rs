//! One storage node: `node drain`, `node undrain`, `node maintenance`, `node remove`.
//!
//! JSON: `{node, verb, dry_run, done, impact, obstacles}`, where `node` is as in `dfsctl nodes --json`, and `impact` is what the
//! absence of the node would have meant before: `{holds, under_replicated, endangered, lost, to_copy, room_bytes, targets,
//! lost_paths, endangered_paths}`, the first five each `{chunks, bytes}`.

use clap::{Args, Subcommand};
use dfs_common::{ErrorCode, units::Span};
use dfs_proto::v1::{self, NodeVerb as Wire};
use serde_json::{Value, json};

use crate::{
    context::Context,
    failure::Failure,
    health,
    text::{bytes, counted, escape, utc},
};

/// `dfsctl node`.
#[derive(Args, Debug)]
pub struct Node {
    /// What to do.
    #[command(subcommand)]
    pub verb: NodeVerb,
}

/// What to do with a storage node.
#[derive(Subcommand, Debug)]
pub enum NodeVerb {
    /// Empty a node: no new chunks go to it, and every chunk on it gets another copy elsewhere
    Drain(Drain),
    /// Keep a node that is being drained
    Undrain(Drain),
    /// Let a node be silent for a while without anything being repaired
    Maintenance(Maintenance),
    /// Take a node out of the cluster for good
    Remove(Remove),
}

/// Which node, and whether anything happens.
#[derive(Args, Debug)]
pub struct Which {
    /// Name or number of the storage node, as in `dfsctl nodes`
    #[arg(value_name = "NAME")]
    pub node: String,
    /// Change nothing, only say what it would mean
    #[arg(long)]
    pub dry_run: bool,
}

/// `dfsctl node drain`, `dfsctl node undrain`.
#[derive(Args, Debug)]
pub struct Drain {
    /// Which.
    #[command(flatten)]
    pub which: Which,
}

/// `dfsctl node maintenance`.
#[derive(Args, Debug)]
#[command(long_about = "\
Let a node be silent for a while without anything being repaired

No new chunks go to it. While it is silent its copies count as if they were there, except for chunks with no other copy that
surely is: those are copied at once. When the time is over silence counts as ever.")]
pub struct Maintenance {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// How long, at most 24h; a second time sets the time anew
    #[arg(long = "for", value_name = "TIME", default_value = "30m")]
    pub time: Span,
    /// End it now
    #[arg(long, conflicts_with = "time")]
    pub end: bool,
}

/// `dfsctl node remove`.
#[derive(Args, Debug)]
#[command(long_about = "\
Take a node out of the cluster for good

Goes without more when the node is drained, or dead with nothing lost by it. Otherwise it is refused with what would be
endangered or lost. The data directory of a removed node cannot come back; the machine can, with an empty one.")]
pub struct Remove {
    /// Which.
    #[command(flatten)]
    pub which: Which,
    /// Go on although chunks are endangered or LOST by it
    #[arg(long)]
    pub lose: bool,
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Node) -> Result<(), Failure> {
    let ask = |which: &Which, verb: Wire| v1::ChangeNodeRequest {
        node: which.node.clone(),
        verb: verb.into(),
        dry_run: which.dry_run,
        ..Default::default()
    };
    let request = match &args.verb {
        NodeVerb::Drain(Drain { which }) => ask(which, Wire::Drain),
        NodeVerb::Undrain(Drain { which }) => ask(which, Wire::Undrain),
        NodeVerb::Maintenance(Maintenance { which, end: true, .. }) => ask(which, Wire::EndMaintenance),
        NodeVerb::Maintenance(Maintenance { which, time, .. }) => {
            let for_ms = u64::try_from(time.0.as_millis()).unwrap_or(u64::MAX);
            v1::ChangeNodeRequest { for_ms, ..ask(which, Wire::Maintenance) }
        }
        NodeVerb::Remove(Remove { which, lose }) => v1::ChangeNodeRequest { lose: *lose, ..ask(which, Wire::Remove) },
    };
    let answer = context.with_dfs(async |dfs| Ok(dfs.change_node(request.clone()).await?))?;
    if context.out.json {
        context.out.value(&to_json(&request, &answer))?;
    } else {
        context.out.lines(&lines(&request, &answer))?;
    }
    if answer.done || request.dry_run {
        return Ok(());
    }
    let name = name_of(&answer);
    Err(Failure::of(ErrorCode::NotPermitted, format!("{name} was not removed: it {}", answer.obstacles.join("; it ")))
        .hint(format!(
            "`dfsctl node drain {name}` empties it first; `dfsctl node remove {name} --lose` accepts what is listed"
        )))
}

fn name_of(answer: &v1::ChangeNodeResponse) -> String {
    escape(answer.node.as_ref().map_or(&[][..], |node| node.name.as_bytes()))
}

fn verb_name(verb: Wire) -> &'static str {
    match verb {
        Wire::Unspecified => "unknown",
        Wire::Drain => "drain",
        Wire::Undrain => "undrain",
        Wire::Maintenance => "maintenance",
        Wire::EndMaintenance => "end-maintenance",
        Wire::Remove => "remove",
    }
}

fn to_json(request: &v1::ChangeNodeRequest, answer: &v1::ChangeNodeResponse) -> Value {
    let impact = answer.impact.clone().unwrap_or_default();
    let class = |class: Option<v1::ChunkClass>| {
        let v1::ChunkClass { chunks, bytes } = class.unwrap_or_default();
        json!({ "chunks": chunks, "bytes": bytes })
    };
    json!({
        "node": answer.node.clone().map(health::Node::new),
        "verb": verb_name(request.verb()),
        "dry_run": request.dry_run,
        "done": answer.done,
        "impact": {
            "holds": class(impact.holds),
            "under_replicated": class(impact.under_replicated),
            "endangered": class(impact.endangered),
            "lost": class(impact.lost),
            "to_copy": class(impact.to_copy),
            "room_bytes": impact.room_bytes,
            "targets": impact.targets,
            "lost_paths": impact.lost_paths,
            "endangered_paths": impact.endangered_paths,
        },
        "obstacles": answer.obstacles,
        "warnings": answer.warnings,
    })
}

fn lines(request: &v1::ChangeNodeRequest, answer: &v1::ChangeNodeResponse) -> Vec<String> {
    let name = name_of(answer);
    let impact = answer.impact.clone().unwrap_or_default();
    let mut lines = Vec::new();
    let tells_absence = request.dry_run || request.verb() == Wire::Remove;
    if tells_absence && request.verb() != Wire::Undrain {
        lines.extend(absence_lines(&name, &impact));
    }
    if matches!(request.verb(), Wire::Drain) {
        lines.extend(copy_lines(&impact, request.dry_run));
        lines.extend(answer.obstacles.iter().map(|why| format!("  ! it will not be empty before that changes: {why}")));
    }
    lines.extend(answer.warnings.iter().map(|what| format!("  ! {what}")));
    if request.dry_run {
        lines.extend(
            answer.obstacles.iter().filter(|_| request.verb() == Wire::Remove).map(|why| format!("  ! {name} {why}")),
        );
        lines.push("nothing was changed".to_owned());
    } else if answer.done {
        lines.push(done_line(request.verb(), &name, answer.node.as_ref()));
    }
    lines
}

/// What its absence would mean.
fn absence_lines(name: &str, impact: &v1::NodeImpact) -> Vec<String> {
    let words = |class: Option<v1::ChunkClass>| {
        let v1::ChunkClass { chunks, bytes: length } = class.unwrap_or_default();
        format!("{} ({})", counted(chunks, "chunk"), bytes(length))
    };
    let mut lines = vec![
        format!("{name} holds {} that are needed; without it now", words(impact.holds)),
        format!("  under-replicated  {}", words(impact.under_replicated)),
        format!("  endangered        {}", words(impact.endangered)),
        format!("  lost              {}", words(impact.lost)),
    ];
    let mut paths = |what: &str, of: &Option<v1::ChunkClass>, paths: &[String]| {
        if of.unwrap_or_default().chunks > 0 {
            lines.extend(paths.iter().map(|path| format!("    {what}: {}", escape(path.as_bytes()))));
        }
    };
    paths("LOST", &impact.lost, &impact.lost_paths);
    paths("endangered", &impact.endangered, &impact.endangered_paths);
    lines
}

/// What a drain has to copy, and whether there is room.
fn copy_lines(impact: &v1::NodeImpact, is_future: bool) -> Vec<String> {
    let v1::ChunkClass { chunks, bytes: length } = impact.to_copy.unwrap_or_default();
    let verb = if is_future { "would be copied" } else { "are copied" };
    vec![format!(
        "{} ({}) {verb} to {} with {} of room",
        counted(chunks, "chunk"),
        bytes(length),
        counted(impact.targets.into(), "other node"),
        bytes(impact.room_bytes)
    )]
}

fn done_line(verb: Wire, name: &str, node: Option<&v1::NodeStatus>) -> String {
    match verb {
        Wire::Drain => {
            format!("{name} is being drained; `dfsctl status` shows how far it is, `dfsctl node remove {name}` ends it")
        }
        Wire::Undrain => format!("{name} is in service"),
        Wire::Maintenance => {
            let until_ns = node.map_or(0, |node| node.maintenance_until_ns);
            format!("{name} is in maintenance until {} UTC", utc(until_ns))
        }
        Wire::EndMaintenance => format!("{name} is in service"),
        Wire::Remove => format!("{name} was removed; its data directory cannot come back, and may be deleted"),
        Wire::Unspecified => String::new(),
    }
}
