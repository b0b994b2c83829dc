//! Content that was removed or replaced: `trash list`, `trash restore`, `trash empty`, `trash retention`.
//!
//! JSON: `list` prints an array of `{id, path, path_hex?, reason, at_ns, expires_ns, size, mode, uid, gid, mtime_ns, inode}` in
//! the order of paths, of one path the oldest first; `restore` prints `{restored: [{id, path, path_hex?}]}`; `empty` prints
//! `{versions, bytes}`; `retention` prints `{retention_ms, versions}`.

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufRead, IsTerminal, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand};
use dfs_client::Dfs;
use dfs_common::{
    ErrorCode, FileId,
    units::{Span, utc},
};
use dfs_proto::{
    convert,
    v1::{TrashCursor, TrashEntry, TrashFilter, TrashReason},
};
use serde_json::{Map, Value, json};

use super::change::make_all;
use crate::{
    context::{Context, On, cluster_path, masked, parent_and_name},
    failure::Failure,
    output::Output,
    text::{bytes, counted, escape, json_name},
};

/// Entries asked for at a time.
const PAGE: u32 = 1024;

/// `dfsctl trash`.
#[derive(Args, Debug)]
#[command(long_about = "\
Content that was removed or replaced stays restorable for a while (24 hours unless changed).

Kept is a file that lost its last name, and what a file held before it was replaced or overwritten. Of what one open
file writes, flush by flush, only the state before it was opened is kept; and content that was current for less than
ten seconds is kept only while the trash has fewer than eight entries of the same path. Directories are not kept:
`restore --parents` makes them again. When space is short the oldest entries are given up before their time.")]
pub struct Trash {
    /// What to do.
    #[command(subcommand)]
    pub verb: TrashVerb,
}

/// What to do with the trash.
#[derive(Subcommand, Debug)]
pub enum TrashVerb {
    /// Show what can be restored
    List(List),
    /// Make removed or replaced content a file again; never overwrites
    Restore(Restore),
    /// Give up content before its time
    Empty(Empty),
    /// Show or change how long content stays restorable
    Retention(Retention),
}

/// `dfsctl trash list`.
#[derive(Args, Debug)]
pub struct List {
    /// Only entries whose path starts with this
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<OsString>,
    /// Only what was removed or replaced within this time
    #[arg(long, value_name = "TIME")]
    pub since: Option<Span>,
}

/// `dfsctl trash restore`.
#[derive(Args, Debug)]
pub struct Restore {
    /// Path it had (the newest content of that path is taken), or an id as `trash list` shows it
    #[arg(value_name = "WHAT")]
    pub what: OsString,
    /// Where to put it [default: where it was]
    #[arg(long, value_name = "PATH", conflicts_with = "recursive")]
    pub to: Option<OsString>,
    /// Make missing parents
    #[arg(short, long)]
    pub parents: bool,
    /// Everything below PATH: of each path the newest content, except where a file is now
    #[arg(short, long)]
    pub recursive: bool,
}

/// `dfsctl trash empty`.
#[derive(Args, Debug)]
pub struct Empty {
    /// Only what was removed or replaced longer ago than this
    #[arg(long, value_name = "TIME")]
    pub older: Option<Span>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Only this path and what is below it
    #[arg(value_name = "PATH")]
    pub path: Option<OsString>,
}

/// `dfsctl trash retention`.
#[derive(Args, Debug)]
pub struct Retention {
    /// New retention, like 12h or 7d; 0 keeps nothing and gives up what is there
    #[arg(value_name = "TIME")]
    pub time: Option<Span>,
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Trash) -> Result<(), Failure> {
    match &args.verb {
        TrashVerb::List(args) => list(context, args),
        TrashVerb::Restore(args) => restore(context, args),
        TrashVerb::Empty(args) => empty(context, args),
        TrashVerb::Retention(args) => retention(context, args),
    }
}

/// The time `ago` before now, nanoseconds since the Unix epoch; at least 1, because 0 means no bound.
fn before_now(ago: Span) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.saturating_sub(ago.0).as_nanos()).unwrap_or(i64::MAX).max(1)
}

fn list(context: &Context, args: &List) -> Result<(), Failure> {
    let out = context.out;
    let filter = TrashFilter {
        path: args.prefix.as_deref().unwrap_or_default().as_bytes().to_vec().into(),
        since_ns: args.since.map_or(0, before_now),
        ..TrashFilter::default()
    };
    context.with_dfs(async |dfs| {
        let mut first = true;
        out.line(if out.json { "[" } else { HEADING })?;
        each_page(dfs, filter, |entries| {
            let lines: Vec<String> =
                entries.iter().map(|entry| listed(out, entry, std::mem::take(&mut first))).collect();
            out.lines(&lines)
        })
        .await?;
        if out.json { out.line("]") } else { Ok(()) }
    })
}

/// What the trash has of the file at `path`, which starts with a slash: at most `limit` versions, the newest first.
pub(super) async fn earlier(dfs: &Dfs, path: &[u8], limit: usize) -> Result<Vec<TrashEntry>, Failure> {
    let filter = TrashFilter { path: path.to_vec().into(), whole: true, ..TrashFilter::default() };
    let mut found = Vec::new();
    each_page(dfs, filter, |entries| {
        // Those of one path come one after the other, oldest first, before what was below it.
        found.extend(entries.into_iter().filter(|entry| entry.path == path));
        found.drain(..found.len().saturating_sub(limit));
        Ok(())
    })
    .await?;
    found.reverse();
    Ok(found)
}

const HEADING: &str = "TIME (UTC)           REASON            SIZE  ID                                PATH";

fn listed(out: Output, entry: &TrashEntry, first: bool) -> String {
    if out.json {
        return format!("{}{}", if first { "" } else { "," }, Value::Object(entry_json(entry)));
    }
    let (at, id, path) = (utc(entry.at_ns), hex(&entry.file_id), escape(&entry.path));
    format!("{at}  {:<8}  {:>12}  {id}  {path}", reason(entry), entry.size)
}

pub(super) fn reason(entry: &TrashEntry) -> &'static str {
    match entry.reason() {
        TrashReason::Removed => "removed",
        TrashReason::Replaced => "replaced",
        TrashReason::Unspecified => "unknown",
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn entry_json(entry: &TrashEntry) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("id".into(), hex(&entry.file_id).into());
    json_name(&mut object, "path", &entry.path);
    object.insert("reason".into(), reason(entry).into());
    object.insert("at_ns".into(), entry.at_ns.into());
    object.insert("expires_ns".into(), entry.expires_ns.into());
    object.insert("size".into(), entry.size.into());
    object.insert("mode".into(), entry.mode.into());
    object.insert("uid".into(), entry.uid.into());
    object.insert("gid".into(), entry.gid.into());
    object.insert("mtime_ns".into(), entry.mtime_ns.into());
    object.insert("inode".into(), entry.ino.into());
    object
}

/// Calls `each` with the entries of every page.
async fn each_page(
    dfs: &Dfs,
    filter: TrashFilter,
    mut each: impl FnMut(Vec<TrashEntry>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut after: Option<TrashCursor> = None;
    loop {
        let page = dfs.list_trash(filter.clone(), after, PAGE).await?;
        if !page.entries.is_empty() {
            each(page.entries)?;
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

fn restore(context: &Context, args: &Restore) -> Result<(), Failure> {
    let done = context.with_dfs(async |dfs| {
        if args.recursive {
            return restore_below(context, dfs, args).await;
        }
        let entry = find(dfs, &args.what).await?;
        let to = args.to.clone().unwrap_or_else(|| OsString::from_vec(entry.path.to_vec()));
        restore_one(dfs, &entry, &to, args.parents).await?;
        Ok(vec![(entry, to)])
    })?;
    if context.out.json {
        let restored = done.iter().map(|(entry, to)| {
            let mut object = Map::new();
            object.insert("id".into(), hex(&entry.file_id).into());
            json_name(&mut object, "path", to.as_bytes());
            Value::Object(object)
        });
        return context.out.value(&json!({ "restored": restored.collect::<Vec<_>>() }));
    }
    if context.out.quiet {
        return Ok(());
    }
    if args.recursive {
        return context.out.line(format!("{} restored", counted(done.len() as u64, "file")));
    }
    done.iter().try_for_each(|(entry, to)| {
        let (at, to) = (utc(entry.at_ns), escape(to.as_bytes()));
        context.out.line(format!("restored {to}: {} as they were {} at {at} UTC", bytes(entry.size), reason(entry)))
    })
}

/// The entry of an id, or the newest one of a path.
async fn find(dfs: &Dfs, what: &OsStr) -> Result<TrashEntry, Failure> {
    let id = what.to_str().filter(|text| !text.starts_with('/')).and_then(|text| text.parse::<FileId>().ok());
    let filter = match id {
        Some(id) => TrashFilter { file_id: id.as_bytes().to_vec().into(), ..TrashFilter::default() },
        None => TrashFilter { path: cluster_path(what)?.into(), whole: true, ..TrashFilter::default() },
    };
    let wanted = [b"/", &filter.path[..]].concat();
    let (mut newest, mut below) = (None, 0_u64);
    each_page(dfs, filter, |entries| {
        for entry in entries {
            if id.is_some() || entry.path == wanted {
                newest = Some(entry);
            } else {
                below += 1;
            }
        }
        Ok(())
    })
    .await?;
    newest.ok_or_else(|| {
        let shown = escape(what.as_bytes());
        let failure = Failure::not_found(format!("{shown} is not in the trash"));
        match below {
            0 => failure.hint("`dfsctl trash list` shows what is; ids change with every publication of a file"),
            n => failure.hint(format!(
                "{} from below it can be restored: `dfsctl trash restore --recursive {shown}`",
                counted(n, "file")
            )),
        }
    })
}

async fn restore_one(dfs: &Dfs, entry: &TrashEntry, to: &OsStr, parents: bool) -> Result<(), Failure> {
    let (parent, name) = parent_and_name(to)?;
    let path = cluster_path(to)?;
    let dir = match dfs.resolve(&parent).await {
        Err(error) if error.code == ErrorCode::NotFound && parents => {
            make_all(dfs, OsStr::from_bytes(&parent), masked(0o777)).await?;
            dfs.resolve(&parent).await.on("cannot find", &parent)?
        }
        Err(error) if error.code == ErrorCode::NotFound => {
            return Err(Failure::not_found(format!("cannot restore /{}: its directory is gone", escape(&path)))
                .hint("--parents makes it again, --to PATH restores to another place"));
        }
        found => found.on("cannot find", &parent)?,
    };
    let id = convert::file_id(&entry.file_id).map_err(|error| Failure::of(error.code, error))?;
    match dfs.restore(id, dir.ino, &name).await {
        Err(error) if error.code == ErrorCode::AlreadyExists => {
            Err(Failure::of(ErrorCode::AlreadyExists, format!("cannot restore /{}: a file is there", escape(&path)))
                .hint("nothing is overwritten: restore it beside with --to PATH, or rename what is there first"))
        }
        Err(error) if error.code == ErrorCode::NotFound => Err(Failure::not_found(format!(
            "cannot restore /{}: it left the trash, or its directory is gone",
            escape(&path)
        ))),
        restored => restored.on("cannot restore", &path).map(drop),
    }
}

/// The newest content of every path below one. What has a file now is left alone and named.
async fn restore_below(context: &Context, dfs: &Dfs, args: &Restore) -> Result<Vec<(TrashEntry, OsString)>, Failure> {
    let filter = TrashFilter { path: cluster_path(&args.what)?.into(), whole: true, ..TrashFilter::default() };
    // Of one path the newest comes last, and may come on the next page.
    let mut newest: Vec<TrashEntry> = Vec::new();
    each_page(dfs, filter, |entries| {
        for entry in entries {
            match newest.last_mut() {
                Some(last) if last.path == entry.path => *last = entry,
                Some(_) | None => newest.push(entry),
            }
        }
        Ok(())
    })
    .await?;
    if newest.is_empty() {
        return Err(Failure::not_found(format!("nothing below {} is in the trash", escape(args.what.as_bytes()))));
    }
    let (mut done, mut there) = (Vec::new(), 0_u64);
    for entry in newest {
        let to = OsString::from_vec(entry.path.to_vec());
        match restore_one(dfs, &entry, &to, args.parents).await {
            Ok(()) => done.push((entry, to)),
            Err(failure) if failure.exit == crate::exit::Exit::AlreadyExists => {
                there += 1;
                context.out.warn(&failure.message);
            }
            Err(failure) => return Err(failure),
        }
    }
    if done.is_empty() {
        return Err(Failure::of(ErrorCode::AlreadyExists, format!("{} there already", counted(there, "file")))
            .hint("nothing is overwritten: restore single files with --to PATH"));
    }
    Ok(done)
}

fn empty(context: &Context, args: &Empty) -> Result<(), Failure> {
    let filter = TrashFilter {
        path: args.path.as_deref().map(cluster_path).transpose()?.unwrap_or_default().into(),
        whole: true,
        until_ns: args.older.map_or(0, before_now),
        ..TrashFilter::default()
    };
    let out = context.out;
    let (versions, size) = context.with_dfs(async |dfs| {
        if !args.yes {
            let (versions, size) = give_up(dfs, &filter, true).await?;
            if versions == 0 {
                return Ok((0, 0));
            }
            confirm(out, versions, size)?;
        }
        give_up(dfs, &filter, false).await
    })?;
    if out.json {
        return out.value(&json!({ "versions": versions, "bytes": size }));
    }
    if out.quiet {
        return Ok(());
    }
    match versions {
        0 => out.line("nothing to give up"),
        _ => out.line(format!("gave up {} of {}", counted(versions, "version"), bytes(size))),
    }
}

/// All pages; with `dry_run` only their figures.
async fn give_up(dfs: &Dfs, filter: &TrashFilter, dry_run: bool) -> Result<(u64, u64), Failure> {
    let (mut versions, mut size, mut after) = (0, 0_u64, None);
    loop {
        let page = dfs.empty_trash(filter.clone(), after, dry_run).await?;
        (versions, size) = (versions + page.versions, size.saturating_add(page.bytes));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok((versions, size)),
        }
    }
}

fn confirm(out: Output, versions: u64, size: u64) -> Result<(), Failure> {
    let what = format!("{} of {}", counted(versions, "version"), bytes(size));
    if out.json || !io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{what} would be given up for good")).hint("--yes does it without asking"));
    }
    let mut err = io::stderr().lock();
    let asked = write!(err, "give up {what} for good? [y/N] ").and_then(|()| err.flush());
    asked.map_err(|error| Failure::io("cannot ask", &error))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::io("cannot read the answer", &error))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::local("nothing was given up")),
    }
}

fn retention(context: &Context, args: &Retention) -> Result<(), Failure> {
    let time = args.time.map(|time| time.0);
    let (retention, versions) = context.with_dfs(async |dfs| Ok(dfs.trash_retention(time).await?))?;
    if context.out.json {
        let ms = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        return context.out.value(&json!({ "retention_ms": ms, "versions": versions }));
    }
    let kept = counted(versions, "version");
    match retention {
        Duration::ZERO => context.out.line(format!("nothing is kept; {kept} in the trash")),
        time => {
            context.out.line(format!("removed and replaced content is kept for {}; {kept} in the trash", Span(time)))
        }
    }
}
