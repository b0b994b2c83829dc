//! Every chunk of every file, asked of the storage nodes: `fsck`.
//!
//! JSON: `{path, verified, files, chunks, copies, bytes, lost, unknown, under_replicated, missing_copies, corrupt_copies,
//! unrecorded_copies, not_asked: [{node, state, error}], findings: [{path, index, chunk, standing, good, missing, corrupt,
//! not_asked, unrecorded}], findings_left_out}`. `standing` is `full`, `under-replicated`, `unknown` or `lost`; the lists are
//! names of nodes.

use std::{ffi::OsString, time::Duration};

use clap::Args;
use dfs_client::{
    Dfs,
    fsck::{FileFindings, Finding, Fsck as Check, Looked, Standing, Subject},
};
use dfs_common::{FileKind, NodeId};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::{
    context::{Context, On, cluster_path},
    failure::Failure,
    text::{bytes, counted, escape, json_name},
};

/// Files checked in one go: their layouts are asked for together.
const PAGE: u32 = 256;
/// Findings that are kept for the report; more are counted.
const FINDINGS_MAX: usize = 10_000;

/// `dfsctl fsck`.
#[derive(Args, Debug)]
#[command(long_about = "\
Ask the storage nodes for every chunk of every file below PATH, and compare with the record.

The storage nodes say which chunks they have; with --verify they read every byte and compare checksums. A copy that is not
recorded, as one that was found bad, counts only if --verify finds it good. What is missing or corrupt is named with its file and reported to the metadata nodes, which start the repair. Nodes that do not answer
are named, and their copies count as unknown. Files may be used meanwhile.

Exit codes:
  0  every chunk has all its copies; only with --verify is it known that they are good
  5  chunks lack good copies, and all have at least one: repair is on its way
  6  no metadata leader answers
  7  chunks without any good copy: these files cannot be read in full
  8  nothing wrong was found, but storage nodes could not be asked")]
pub struct Fsck {
    /// File or directory
    #[arg(value_name = "PATH", default_value = "/")]
    pub path: OsString,
    /// Make the storage nodes read every byte
    #[arg(long)]
    pub verify: bool,
}

/// What was found in all.
#[derive(Default)]
pub(super) struct Total {
    pub(super) looked: Looked,
    pub(super) lost: u64,
    pub(super) unknown: u64,
    pub(super) under_replicated: u64,
    pub(super) missing_copies: u64,
    pub(super) corrupt_copies: u64,
    pub(super) unrecorded_copies: u64,
    pub(super) findings: Vec<(Vec<u8>, Finding)>,
    pub(super) left_out: u64,
}

impl Total {
    pub(super) fn look(&mut self, looked: Looked) {
        self.looked.files += looked.files;
        self.looked.chunks += looked.chunks;
        self.looked.copies += looked.copies;
        self.looked.bytes += looked.bytes;
    }

    pub(super) fn take(&mut self, file: FileFindings) {
        for finding in file.findings {
            match finding.standing {
                Standing::Lost => self.lost += 1,
                Standing::Unknown => self.unknown += 1,
                Standing::UnderReplicated => self.under_replicated += 1,
                Standing::Full => {}
            }
            self.missing_copies += finding.missing.len() as u64;
            self.corrupt_copies += finding.corrupt.len() as u64;
            self.unrecorded_copies += finding.unrecorded.len() as u64;
            if self.findings.len() < FINDINGS_MAX {
                self.findings.push((file.path.clone(), finding));
            } else {
                self.left_out += 1;
            }
        }
    }

    /// How the check ends.
    pub(super) fn verdict(&self, check: &Check) -> Result<(), Failure> {
        let not_asked = check.not_asked();
        let names: Vec<_> = not_asked.iter().map(|(name, ..)| name.as_str()).collect();
        if self.lost > 0 {
            let message = format!("{} without any good copy", counted(self.lost, "chunk"));
            return Err(Failure::damaged(message).hint(
                "bring back the storage nodes and disks that held them; otherwise restore these files from elsewhere",
            ));
        }
        let faults = self.under_replicated + self.missing_copies + self.corrupt_copies;
        if self.unknown > 0 && names.is_empty() {
            let message = format!("{} whose only copies are not recorded", counted(self.unknown, "chunk"));
            return Err(Failure::incomplete(message).hint("`--verify` tells whether these copies are good"));
        }
        if self.unknown > 0 || (faults == 0 && !names.is_empty()) {
            let chunks = if self.unknown > 0 {
                format!("{} whose copies are on nodes that could not be asked: ", counted(self.unknown, "chunk"))
            } else {
                "could not ask ".to_owned()
            };
            return Err(Failure::incomplete(format!("{chunks}{}", names.join(", ")))
                .hint("start these nodes, or wait until they are dead and repaired, then run it again"));
        }
        if faults > 0 {
            let message = format!(
                "{} with too few good copies, {} missing, {} corrupt",
                counted(self.under_replicated, "chunk"),
                self.missing_copies,
                self.corrupt_copies
            );
            return Err(Failure::unhealthy(message).hint("it was reported; `dfsctl wait healthy` waits for the repair"));
        }
        Ok(())
    }
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Fsck) -> Result<(), Failure> {
    let path = cluster_path(&args.path)?;
    context.with_dfs(async |dfs| {
        let bar = Bar::new(context, dfs, path.is_empty()).await;
        let check = Check::new(dfs, args.verify).await?;
        let mut total = Total::default();
        let done = walk(dfs, &path, &check, &mut total, &bar).await;
        bar.0.finish_and_clear();
        done?;
        if context.out.json {
            context.out.value(&report_json(&path, args.verify, &check, &total))?;
        } else {
            context.out.lines(&lines(&check, &total, args.verify))?;
        }
        total.verdict(&check)
    })
}

async fn walk(dfs: &Dfs, path: &[u8], check: &Check, total: &mut Total, bar: &Bar) -> Result<(), Failure> {
    let attr = dfs.resolve(path).await.on("cannot check", path)?;
    if attr.kind != FileKind::Directory {
        let subject = Subject { path: path.to_vec(), ino: attr.ino };
        let subjects = if attr.kind == FileKind::File { vec![subject] } else { vec![] };
        return check_some(&subjects, check, total, bar).await;
    }
    let prefix = if path.is_empty() { vec![] } else { [path, b"/"].concat() };
    let mut after = vec![];
    loop {
        let page = dfs.list_files(&prefix, &after, PAGE).await?;
        let subject = |file: &dfs_client::ListedFile| Subject {
            path: file.path.strip_prefix(b"/").unwrap_or(&file.path).to_vec(),
            ino: file.attr.ino,
        };
        // Links and special files have no chunks.
        let subjects: Vec<Subject> =
            page.files.iter().filter(|file| file.attr.kind == FileKind::File).map(subject).collect();
        check_some(&subjects, check, total, bar).await?;
        match page.files.last() {
            Some(last) if !page.end => after.clone_from(&last.path),
            _ => return Ok(()),
        }
    }
}

async fn check_some(subjects: &[Subject], check: &Check, total: &mut Total, bar: &Bar) -> Result<(), Failure> {
    let found = check
        .check(subjects, |looked| {
            total.look(looked);
            bar.0.set_position(total.looked.chunks);
            bar.0.set_message(counted(total.looked.files, "file"));
        })
        .await?;
    found.into_iter().for_each(|file| total.take(file));
    Ok(())
}

struct Bar(ProgressBar);

impl Bar {
    async fn new(context: &Context, dfs: &Dfs, is_whole: bool) -> Self {
        if !context.out.shows_progress() {
            return Self(ProgressBar::hidden());
        }
        let status = if is_whole { dfs.cluster_status().await.ok() } else { None };
        let total = status.and_then(|status| status.chunks).map(|chunks| chunks.total);
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
        let template = match total {
            Some(_) => "{msg} {wide_bar} {pos}/{len} chunks {per_sec} ETA {eta}",
            None => "{msg} {spinner} {pos} chunks {per_sec}",
        };
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self(bar)
    }
}

fn names(check: &Check, nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(|node| check.name(*node)).collect()
}

pub(super) fn standing_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Full => "full",
        Standing::UnderReplicated => "under-replicated",
        Standing::Unknown => "unknown",
        Standing::Lost => "lost",
    }
}

/// What copies are called: only those that were read are known to be good.
pub(super) fn copies_word(check: &Check) -> &'static str {
    if check.verifies() { "good copies" } else { "copies found" }
}

/// One finding in words.
pub(super) fn finding_words(check: &Check, finding: &Finding) -> String {
    let mut parts = vec![match finding.standing {
        Standing::Lost => "NO GOOD COPY".to_owned(),
        Standing::Unknown if finding.not_asked.is_empty() => "only copies that are not recorded".to_owned(),
        Standing::Unknown => "no good copy found, not all could be asked".to_owned(),
        Standing::UnderReplicated => format!("{} of {} {}", finding.good.len(), check.wanted(), copies_word(check)),
        Standing::Full => format!("{} {}", finding.good.len(), copies_word(check)),
    }];
    let lists = [
        ("missing on", &finding.missing),
        ("corrupt on", &finding.corrupt),
        ("could not ask", &finding.not_asked),
        ("not recorded on", &finding.unrecorded),
    ];
    for (what, nodes) in lists.into_iter().filter(|(_, nodes)| !nodes.is_empty()) {
        parts.push(format!("{what} {}", names(check, nodes).join(", ")));
    }
    parts.join("; ")
}

fn lines(check: &Check, total: &Total, verified: bool) -> Vec<String> {
    let mut lines = Vec::new();
    // Copies that are only not recorded yet are counted below: the next inventory takes them in.
    let shown = total.findings.iter().filter(|(_, f)| f.is_fault() || f.standing != Standing::Full);
    for (path, finding) in shown {
        let words = finding_words(check, finding);
        lines.push(format!("/{} chunk {} ({}): {words}", escape(path), finding.index, finding.chunk));
    }
    if total.left_out > 0 {
        lines.push(format!("... and {}", counted(total.left_out, "more finding")));
    }
    for (name, state, error) in check.not_asked() {
        lines.push(format!("could not ask {} ({state}): {}", escape(name.as_bytes()), escape(error.as_bytes())));
    }
    let how = if verified { "verified on the nodes" } else { "found on the nodes" };
    let Looked { files, chunks, copies, bytes: size } = total.looked;
    lines.push(format!(
        "{}, {} ({}), {} {how}: {} lost, {} unknown, {} under-replicated; copies: {} missing, {} corrupt, {} not recorded",
        counted(files, "file"),
        counted(chunks, "chunk"),
        bytes(size),
        if copies == 1 { "1 copy".to_owned() } else { format!("{copies} copies") },
        total.lost,
        total.unknown,
        total.under_replicated,
        total.missing_copies,
        total.corrupt_copies,
        total.unrecorded_copies
    ));
    lines
}

/// One finding as JSON, without its path.
pub(super) fn finding_json(object: &mut Map<String, Value>, check: &Check, finding: &Finding) {
    object.insert("index".into(), finding.index.into());
    object.insert("chunk".into(), finding.chunk.to_string().into());
    object.insert("standing".into(), standing_word(finding.standing).into());
    for (key, nodes) in [
        ("good", &finding.good),
        ("missing", &finding.missing),
        ("corrupt", &finding.corrupt),
        ("not_asked", &finding.not_asked),
        ("unrecorded", &finding.unrecorded),
    ] {
        object.insert(key.into(), names(check, nodes).into());
    }
}

/// The nodes that could not be asked, as JSON.
pub(super) fn not_asked_json(check: &Check) -> Value {
    let node = |(name, state, error): (String, dfs_common::node::NodeState, String)| json!({ "node": name, "state": state.to_string(), "error": error });
    check.not_asked().into_iter().map(node).collect()
}

fn report_json(path: &[u8], verified: bool, check: &Check, total: &Total) -> Value {
    let finding = |(path, finding): &(Vec<u8>, Finding)| {
        let mut object = Map::new();
        json_name(&mut object, "path", &[b"/", path.as_slice()].concat());
        finding_json(&mut object, check, finding);
        Value::Object(object)
    };
    let mut object = Map::new();
    json_name(&mut object, "path", &[b"/", path].concat());
    let figures = json!({
        "verified": verified,
        "files": total.looked.files,
        "chunks": total.looked.chunks,
        "copies": total.looked.copies,
        "bytes": total.looked.bytes,
        "lost": total.lost,
        "unknown": total.unknown,
        "under_replicated": total.under_replicated,
        "missing_copies": total.missing_copies,
        "corrupt_copies": total.corrupt_copies,
        "unrecorded_copies": total.unrecorded_copies,
        "not_asked": not_asked_json(check),
        "findings": total.findings.iter().map(finding).collect::<Vec<_>>(),
        "findings_left_out": total.left_out,
    });
    if let Value::Object(figures) = figures {
        object.extend(figures);
    }
    Value::Object(object)
}
