//! Why a file is slow or unavailable, and what to do: `explain`.
//!
//! JSON: `{path, ino, kind, size, nlink, file_id, verdict, reasons, advice, chunks, holes, writers: [{client, session,
//! opened_ns, publications, chunks}], readers: [{client, session}], earlier: [{file_id, size, reason, at_ns, expires_ns,
//! readers}], nodes: [{node, state, silent_ms, copies, answer_ms, verified_ns}], not_asked, findings: [{index, chunk, standing,
//! good, missing, corrupt, not_asked, unrecorded}]}`. `verdict` is `good`, `slow`, `at-risk`, `unknown`, `unavailable`
//! or `not-a-file`. `verified_ns` is since when all copies on the node are known to be whole, `null` if its scrub has not come to
//! one of them yet.

use std::{collections::BTreeMap, ffi::OsString, time::Duration};

use clap::Args;
use dfs_client::{
    Dfs,
    fsck::{Fsck as Check, Standing, Subject},
};
use dfs_common::{Attr, FileId, FileKind, Layout, NodeId};
use dfs_proto::v1::{FileReader, FileWriter, TrashEntry};
use serde_json::{Map, Value, json};

use super::{
    fsck::{Total, copies_word, finding_json, finding_words, not_asked_json},
    trash::{self, hex},
};
use crate::{
    context::{Context, On, cluster_path},
    failure::Failure,
    health::{Node, Status, seconds},
    text::{Align, Table, bytes, counted, escape, json_name, utc},
};

/// A node that needs longer to say what it has makes readers wait.
const SLOW: Duration = Duration::from_millis(250);
/// Earlier versions that are looked at, the newest of them.
const EARLIER_MAX: usize = 100;
/// Those that are shown to people.
const EARLIER_SHOWN: usize = 10;

/// `dfsctl explain`.
#[derive(Args, Debug)]
#[command(long_about = "\
Why a file is slow or unavailable, and what to do.

Shows the version, who writes it and who has it open, the earlier versions that the trash keeps, and for every chunk what
the storage nodes say they hold, with the nodes' states and how long they took to answer. With --verify the nodes read every byte.

Exit codes: 0 every chunk can be read from all its copies; 5 it can be read, and copies are missing, bad or on nodes that are
not well; 6 no metadata leader answers; 7 chunks have no good copy; 8 copies are only on nodes that could not be asked.")]
pub struct Explain {
    /// File
    #[arg(value_name = "PATH")]
    pub path: OsString,
    /// Make the storage nodes read every byte
    #[arg(long)]
    pub verify: bool,
}

/// What is known of a file.
struct Picture {
    path: Vec<u8>,
    attr: Attr,
    layout: Option<Layout>,
    writers: Vec<FileWriter>,
    /// Of the version and of the earlier ones.
    readers: Vec<FileReader>,
    /// What the trash keeps of this path, the newest first.
    earlier: Vec<TrashEntry>,
    nodes: Vec<Holder>,
    total: Total,
    verdict: &'static str,
    reasons: Vec<String>,
    advice: Vec<String>,
}

/// A node with copies of the file.
struct Holder {
    node: Node,
    copies: u64,
    answer: Option<Duration>,
    /// Since when all of them are known to be whole.
    verified_ns: Option<i64>,
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Explain) -> Result<(), Failure> {
    let path = cluster_path(&args.path)?;
    context.with_dfs(async |dfs| {
        let attr = dfs.resolve(&path).await.on("cannot explain", &path)?;
        let check = Check::new(dfs, args.verify).await?;
        let picture = Picture::take(dfs, path.clone(), attr, &check).await?;
        if context.out.json {
            context.out.value(&picture.json(&check))?;
        } else {
            context.out.lines(&picture.lines(&check))?;
        }
        let not_well = picture.reasons.first().filter(|_| picture.verdict == "at-risk" || picture.verdict == "slow");
        picture.total.verdict(&check)?;
        match not_well {
            Some(reason) => Err(Failure::unhealthy(reason)),
            None => Ok(()),
        }
    })
}

impl Picture {
    async fn take(dfs: &Dfs, path: Vec<u8>, attr: Attr, check: &Check) -> Result<Self, Failure> {
        let status = Status::new(dfs.cluster_status().await?);
        let mut picture = Self {
            path,
            layout: None,
            writers: vec![],
            readers: vec![],
            earlier: vec![],
            nodes: vec![],
            total: Total::default(),
            verdict: "not-a-file",
            reasons: vec![],
            advice: vec![],
            attr,
        };
        if picture.attr.kind != FileKind::File {
            picture.reasons.push("it has no content of its own".into());
            return Ok(picture);
        }
        picture.earlier = trash::earlier(dfs, &[b"/", &picture.path[..]].concat(), EARLIER_MAX).await?;
        let earlier = picture.earlier.iter().filter_map(|entry| FileId::from_slice(&entry.file_id));
        let versions: Vec<FileId> = picture.attr.file_id.into_iter().chain(earlier).collect();
        let users = dfs.file_users(picture.attr.ino, &versions).await?;
        (picture.writers, picture.readers) = (users.writers, users.readers);
        if picture.attr.file_id.is_some() {
            picture.look(dfs, check, &status).await?;
        }
        picture.judge(check, &status);
        Ok(picture)
    }

    async fn look(&mut self, dfs: &Dfs, check: &Check, status: &Status) -> Result<(), Failure> {
        let (_, layout, _) = dfs.layout(self.attr.ino).await.on("cannot explain", &self.path)?;
        let mut held: BTreeMap<NodeId, u64> = BTreeMap::new();
        let Layout::Replicated { chunks, .. } = &layout;
        chunks.iter().flat_map(|chunk| &chunk.replicas).for_each(|node| *held.entry(*node).or_default() += 1);
        self.layout = Some(layout);
        let subject = Subject { path: self.path.clone(), ino: self.attr.ino };
        let total = &mut self.total;
        let found = check.check(&[subject], |looked| total.look(looked)).await?;
        found.into_iter().for_each(|file| total.take(file));
        let answers: BTreeMap<NodeId, Duration> = check.answer_times().into_iter().collect();
        let verified: BTreeMap<NodeId, i64> = check.verified().into_iter().collect();
        for node in &status.nodes {
            let id = NodeId(node.id);
            if let Some(copies) = held.get(&id) {
                let (node, answer) = (node.clone(), answers.get(&id).copied());
                let verified_ns = verified.get(&id).copied().filter(|ns| *ns > 0);
                self.nodes.push(Holder { node, copies: *copies, answer, verified_ns });
            }
        }
        Ok(())
    }

    /// What it comes to.
    fn judge(&mut self, check: &Check, status: &Status) {
        let Total { lost, unknown, under_replicated, missing_copies, corrupt_copies, .. } = self.total;
        let unwell: Vec<&Holder> = self.nodes.iter().filter(|holder| holder.node.state != "alive").collect();
        let slow: Vec<&Holder> = self.nodes.iter().filter(|h| h.answer.is_some_and(|answer| answer > SLOW)).collect();
        let mut reasons = Vec::new();
        let mut advice = Vec::new();
        if self.attr.file_id.is_none() {
            reasons.push("nothing of it was published yet: its writer has not closed it".to_owned());
        }
        if lost > 0 {
            reasons.push(format!("{} without any good copy: reading there fails with EIO", counted(lost, "chunk")));
            advice
                .push("bring back the nodes or disks that held the copies, or restore the file from elsewhere".into());
            advice
                .push("bad copies are kept in the directory `quarantine` of the data directories they were in".into());
        }
        if unknown > 0 && check.not_asked().is_empty() {
            reasons.push(format!("{} only in copies that are not recorded", counted(unknown, "chunk")));
            advice.push("`--verify` tells whether these copies are good".into());
        } else if unknown > 0 {
            reasons.push(format!("{} only on nodes that could not be asked", counted(unknown, "chunk")));
        }
        if under_replicated > 0 {
            reasons.push(format!("{} with too few good copies", counted(under_replicated, "chunk")));
        }
        if missing_copies + corrupt_copies > 0 {
            reasons
                .push(format!("{missing_copies} copies are missing and {corrupt_copies} corrupt where they should be"));
            advice.push("these copies were reported and are being replaced: `dfsctl status` shows the repair".into());
        }
        for holder in &unwell {
            let Node { name, state, silent_ms, .. } = &holder.node;
            let silent = seconds(*silent_ms);
            reasons.push(format!("{name} with {} copies is {state}, silent for {silent}", holder.copies));
            if state == "suspect" || state == "dead" {
                advice.push(format!("start {name} again, or let repair replace its copies"));
            }
        }
        for holder in &slow {
            let took = holder.answer.unwrap_or_default();
            let ms = took.as_millis();
            reasons
                .push(format!("{} took {ms} ms to say what it has: its disk or its network is busy", holder.node.name));
        }
        if !status.meta.quorum {
            reasons.push("less than a majority of the metadata nodes is reachable".into());
        }
        self.verdict = match () {
            () if lost > 0 => "unavailable",
            () if unknown > 0 => "unknown",
            () if under_replicated + missing_copies + corrupt_copies > 0 => "at-risk",
            () if !unwell.is_empty() || !slow.is_empty() => "slow",
            () => "good",
        };
        if self.verdict == "good" && self.attr.file_id.is_some() {
            let chunks = self.total.looked.chunks;
            reasons.push(match chunks {
                0 => "it has no chunk".to_owned(),
                n => format!("{} with {} {} each", counted(n, "chunk"), check.wanted(), copies_word(check)),
            });
        }
        (self.reasons, self.advice) = (reasons, advice);
    }

    fn readers_of<'a>(&'a self, version: &'a [u8]) -> impl Iterator<Item = &'a FileReader> {
        self.readers.iter().filter(move |reader| reader.file_id == version)
    }

    fn lines(&self, check: &Check) -> Vec<String> {
        let mut lines = vec![format!("/{}: {}", escape(&self.path), self.verdict)];
        lines.extend(self.reasons.iter().map(|reason| format!("  - {}", escape(reason.as_bytes()))));
        lines.extend(self.advice.iter().map(|advice| format!("  > {}", escape(advice.as_bytes()))));
        lines.push(String::new());
        let mut facts = Table::bare(&[Align::Left, Align::Left]);
        let mut row = |key: &str, value: String| facts.row(vec![key.into(), value]);
        row("inode", format!("{}, {}", self.attr.ino, counted(u64::from(self.attr.nlink), "name")));
        row("size", format!("{} ({})", self.attr.size, bytes(self.attr.size)));
        row("modified", format!("{} UTC", utc(self.attr.mtime_ns)));
        if let (Some(id), Some(Layout::Replicated { chunk_size, chunks, .. })) = (self.attr.file_id, &self.layout) {
            row(
                "version",
                format!("{id}, {} of {}", counted(chunks.len() as u64, "chunk"), bytes(u64::from(*chunk_size))),
            );
        }
        for writer in &self.writers {
            let client = escape(writer.client.as_bytes());
            let since = utc(writer.opened_ns);
            row("writer", format!("{client} (session {}) since {since} UTC", writer.session_id));
        }
        for reader in self.readers_of(self.attr.file_id.as_ref().map_or(&[], |id| id.as_bytes())) {
            row("reader", format!("{} (session {})", escape(reader.client.as_bytes()), reader.session_id));
        }
        for entry in self.earlier.iter().take(EARLIER_SHOWN) {
            let (size, reason, at) = (bytes(entry.size), trash::reason(entry), utc(entry.at_ns));
            let open = match self.readers_of(&entry.file_id).count() {
                0 => String::new(),
                n => format!(", open in {}", counted(n as u64, "client")),
            };
            row("earlier", format!("{}, {size}, {reason} {at} UTC{open}", hex(&entry.file_id)));
        }
        if let Some(more @ 1..) = self.earlier.len().checked_sub(EARLIER_SHOWN) {
            row("", format!("and {more} more: `dfsctl trash list --prefix /{}`", escape(&self.path)));
        }
        lines.extend(facts.lines());
        if !self.nodes.is_empty() {
            lines.push(String::new());
            lines.extend(self.node_lines());
        }
        let shown = self.total.findings.iter().filter(|(_, f)| f.is_fault() || f.standing != Standing::Full);
        for (_, finding) in shown {
            lines.push(format!("chunk {} ({}): {}", finding.index, finding.chunk, finding_words(check, finding)));
        }
        for (name, state, error) in check.not_asked() {
            lines.push(format!("could not ask {} ({state}): {}", escape(name.as_bytes()), escape(error.as_bytes())));
        }
        lines
    }

    fn node_lines(&self) -> Vec<String> {
        let columns =
            [("STORAGE", Align::Left), ("STATE", Align::Left), ("SILENT", Align::Right), ("COPIES", Align::Right)];
        let more = [("ANSWERED IN", Align::Right), ("LAST VERIFIED (UTC)", Align::Left)];
        let mut table = Table::new(&[&columns[..], &more].concat());
        for Holder { node, copies, answer, verified_ns } in &self.nodes {
            table.row(vec![
                escape(node.name.as_bytes()),
                if node.state == "alive" { node.state.clone() } else { node.state.to_uppercase() },
                seconds(node.silent_ms),
                copies.to_string(),
                answer.map_or_else(|| "-".into(), |took| format!("{:.1} ms", took.as_secs_f64() * 1000.0)),
                verified_ns.map_or_else(|| "when written".into(), utc),
            ]);
        }
        table.lines()
    }

    fn json(&self, check: &Check) -> Value {
        let mut object = Map::new();
        json_name(&mut object, "path", &[b"/", self.path.as_slice()].concat());
        let holes = match &self.layout {
            Some(Layout::Replicated { chunks, .. }) => chunks.iter().filter(|chunk| chunk.is_hole()).count(),
            None => 0,
        };
        let writer = |writer: &FileWriter| {
            json!({
                "client": writer.client, "session": writer.session_id, "opened_ns": writer.opened_ns,
                "publications": writer.publications, "chunks": writer.chunks,
            })
        };
        let current = self.attr.file_id.map(|id| id.as_bytes().to_vec()).unwrap_or_default();
        let reader = |reader: &FileReader| json!({ "client": reader.client, "session": reader.session_id });
        let earlier = |entry: &TrashEntry| {
            json!({
                "file_id": hex(&entry.file_id), "size": entry.size, "reason": trash::reason(entry), "at_ns": entry.at_ns,
                "expires_ns": entry.expires_ns, "readers": self.readers_of(&entry.file_id).map(reader).collect::<Vec<_>>(),
            })
        };
        let node = |holder: &Holder| {
            json!({
                "node": holder.node.name, "state": holder.node.state, "silent_ms": holder.node.silent_ms,
                "copies": holder.copies, "answer_ms": holder.answer.map(|took| took.as_secs_f64() * 1000.0),
                "verified_ns": holder.verified_ns,
            })
        };
        let finding = |(_, finding): &(Vec<u8>, dfs_client::fsck::Finding)| {
            let mut object = Map::new();
            finding_json(&mut object, check, finding);
            Value::Object(object)
        };
        let facts = json!({
            "ino": self.attr.ino.0,
            "kind": super::namespace::kind_name(self.attr.kind),
            "size": self.attr.size,
            "nlink": self.attr.nlink,
            "file_id": self.attr.file_id.map(|id| id.to_string()),
            "verdict": self.verdict,
            "reasons": self.reasons,
            "advice": self.advice,
            "chunks": self.total.looked.chunks,
            "holes": holes,
            "writers": self.writers.iter().map(writer).collect::<Vec<_>>(),
            "readers": self.readers_of(&current).map(reader).collect::<Vec<_>>(),
            "earlier": self.earlier.iter().map(earlier).collect::<Vec<_>>(),
            "nodes": self.nodes.iter().map(node).collect::<Vec<_>>(),
            "not_asked": not_asked_json(check),
            "findings": self.total.findings.iter().map(finding).collect::<Vec<_>>(),
        });
        if let Value::Object(facts) = facts {
            object.extend(facts);
        }
        Value::Object(object)
    }
}
