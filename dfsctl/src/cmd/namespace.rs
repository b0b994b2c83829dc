//! Looking at the tree: `ls`, `stat`, `cat`.
//!
//! JSON: `ls` prints an array of entries, one a line, each as `stat` without the layout: `{name, ino, kind, mode, mode_octal,
//! uid, gid, size, nlink, atime_ns, mtime_ns, ctime_ns, file_id, generation, target}`; `stat` has `path` in place of `name` and
//! adds `layout: {chunk_size, chunks, holes, copies: {"3": 17}, nodes: [..]}` for files.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io::{self, Write},
};

use clap::Args;
use dfs_client::{Dfs, DirEntry};
use dfs_common::{Attr, FileKind, Layout, units::utc};
use dfs_proto::convert::NodeAddress;
use serde_json::{Map, Value, json};

use crate::{
    context::{Context, On, cluster_path},
    failure::Failure,
    output::Output,
    text::{Align, Table, bytes, counted, escape, json_name},
};

/// Entries asked for at a time: the most a server gives.
const PAGE: u32 = 4096;
/// Bytes read at a time by `cat`.
const READ_BYTES: usize = 1 << 20;

/// `dfsctl ls`.
#[derive(Args, Debug)]
pub struct Ls {
    /// Show kind, permissions, owner, size and time
    #[arg(short)]
    pub long: bool,
    /// Directory or file
    #[arg(value_name = "PATH", default_value = "/")]
    pub path: OsString,
}

/// `dfsctl stat`.
#[derive(Args, Debug)]
pub struct Stat {
    /// File or directory
    #[arg(value_name = "PATH")]
    pub path: OsString,
}

/// `dfsctl cat`.
#[derive(Args, Debug)]
pub struct Cat {
    /// File
    #[arg(value_name = "PATH")]
    pub path: OsString,
}

/// # Errors
/// What the user is told.
pub(super) fn ls(context: &Context, args: &Ls) -> Result<(), Failure> {
    let path = cluster_path(&args.path)?;
    let printer = Printer { out: context.out, long: args.long };
    context.with_dfs(async |dfs| {
        let attr = dfs.resolve(&path).await.on("cannot list", &path)?;
        let mut first = true;
        if context.out.json {
            context.out.line("[")?;
        }
        if attr.kind == FileKind::Directory {
            let mut after = vec![];
            loop {
                let page = dfs.readdir(attr.ino, &after, PAGE, args.long || context.out.json).await;
                let page = page.on("cannot list", &path)?;
                printer.print(dfs, &page.entries, &mut first).await?;
                match page.entries.last() {
                    Some(last) if !page.end => after.clone_from(&last.name),
                    _ => break,
                }
            }
        } else {
            let entry =
                DirEntry { name: [b"/", path.as_slice()].concat(), ino: attr.ino, kind: attr.kind, attr: Some(attr) };
            printer.print(dfs, &[entry], &mut first).await?;
        }
        if context.out.json { context.out.line("]") } else { Ok(()) }
    })
}

struct Printer {
    out: Output,
    long: bool,
}

impl Printer {
    /// Prints a page of a directory; pages are aligned one by one, so that any number of entries takes bounded memory.
    async fn print(&self, dfs: &Dfs, entries: &[DirEntry], first: &mut bool) -> Result<(), Failure> {
        if self.out.json {
            return self.print_json(dfs, entries, first).await;
        }
        if !self.long {
            return self.out.lines(&entries.iter().map(short).collect::<Vec<_>>());
        }
        let mut table = Table::bare(&[
            Align::Left,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Right,
            Align::Left,
            Align::Left,
        ]);
        for entry in entries {
            let Some(attr) = &entry.attr else { continue };
            let mut name = escape(&entry.name);
            if attr.kind == FileKind::Symlink {
                name.push_str(" -> ");
                name.push_str(&escape(&dfs.readlink(attr.ino).await?));
            }
            table.row(vec![
                mode_text(attr),
                attr.nlink.to_string(),
                attr.uid.to_string(),
                attr.gid.to_string(),
                attr.size.to_string(),
                utc(attr.mtime_ns),
                name,
            ]);
        }
        self.out.lines(&table.lines())
    }
}

impl Printer {
    async fn print_json(&self, dfs: &Dfs, entries: &[DirEntry], first: &mut bool) -> Result<(), Failure> {
        let mut lines = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut object = Map::new();
            json_name(&mut object, "name", &entry.name);
            if let Some(attr) = &entry.attr {
                attr_json(&mut object, attr);
                add_target(dfs, &mut object, attr).await?;
            }
            lines.push(format!("{}{}", if std::mem::take(first) { "" } else { "," }, Value::Object(object)));
        }
        self.out.lines(&lines)
    }
}

fn short(entry: &DirEntry) -> String {
    let slash = if entry.kind == FileKind::Directory { "/" } else { "" };
    format!("{}{slash}", escape(&entry.name))
}

async fn add_target(dfs: &Dfs, object: &mut Map<String, Value>, attr: &Attr) -> Result<(), Failure> {
    if attr.kind == FileKind::Symlink {
        let target = dfs.readlink(attr.ino).await?;
        json_name(object, "target", &target);
    }
    Ok(())
}

/// # Errors
/// What the user is told.
pub(super) fn stat(context: &Context, args: &Stat) -> Result<(), Failure> {
    let path = cluster_path(&args.path)?;
    context.with_dfs(async |dfs| {
        let attr = dfs.resolve(&path).await.on("cannot stat", &path)?;
        let mut object = Map::new();
        json_name(&mut object, "path", &[b"/", path.as_slice()].concat());
        attr_json(&mut object, &attr);
        add_target(dfs, &mut object, &attr).await?;
        let layout = match attr.file_id {
            Some(_) => {
                let (_, layout, nodes) = dfs.layout(attr.ino).await.on("cannot stat", &path)?;
                Some(Spread::new(&layout, &nodes))
            }
            None => None,
        };
        if context.out.json {
            object.insert("layout".into(), layout.as_ref().map_or(Value::Null, Spread::json));
            return context.out.value(&object);
        }
        context.out.lines(&stat_lines(&path, &attr, object.get("target"), layout.as_ref()))
    })
}

fn stat_lines(path: &[u8], attr: &Attr, target: Option<&Value>, layout: Option<&Spread>) -> Vec<String> {
    let mut table = Table::bare(&[Align::Left, Align::Left]);
    let mut row = |key: &str, value: String| table.row(vec![key.into(), value]);
    row("path", format!("/{}", escape(path)));
    row("kind", kind_name(attr.kind).into());
    row("size", format!("{} ({})", attr.size, bytes(attr.size)));
    row("mode", format!("{} ({:04o})", mode_text(attr), attr.mode));
    row("owner", format!("{}:{}", attr.uid, attr.gid));
    row("links", attr.nlink.to_string());
    row("inode", attr.ino.to_string());
    row("modified", format!("{} UTC", utc(attr.mtime_ns)));
    row("changed", format!("{} UTC", utc(attr.ctime_ns)));
    row("accessed", format!("{} UTC", utc(attr.atime_ns)));
    if let Some(target) = target.and_then(Value::as_str) {
        row("target", escape(target.as_bytes()));
    }
    if let Some(id) = attr.file_id {
        row("file id", id.to_string());
    }
    if let Some(layout) = layout {
        row("chunks", layout.words());
    }
    table.lines()
}

/// Where the bytes of a file are, counted.
struct Spread {
    chunk_size: u32,
    chunks: u64,
    holes: u64,
    copies: BTreeMap<usize, u64>,
    nodes: BTreeSet<String>,
}

impl Spread {
    fn new(layout: &Layout, nodes: &[NodeAddress]) -> Self {
        let Layout::Replicated { chunk_size, chunks, .. } = layout;
        let mut spread = Self {
            chunk_size: *chunk_size,
            chunks: 0,
            holes: 0,
            copies: BTreeMap::new(),
            nodes: nodes.iter().map(|node| node.name.clone()).collect(),
        };
        for chunk in chunks {
            if chunk.is_hole() {
                spread.holes += 1;
            } else {
                spread.chunks += 1;
                *spread.copies.entry(chunk.replicas.len()).or_default() += 1;
            }
        }
        spread
    }

    fn json(&self) -> Value {
        let copies: Map<String, Value> =
            self.copies.iter().map(|(n, count)| (n.to_string(), (*count).into())).collect();
        json!({
            "chunk_size": self.chunk_size, "chunks": self.chunks, "holes": self.holes, "copies": copies, "nodes": self.nodes,
        })
    }

    fn words(&self) -> String {
        let copies = self.copies.iter().map(|(n, count)| format!("{count} with {}", copies_word(*n)));
        let mut parts: Vec<String> = copies.collect();
        if self.holes > 0 {
            parts.push(counted(self.holes, "hole"));
        }
        let detail = if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) };
        let on: Vec<_> = self.nodes.iter().map(String::as_str).collect();
        let on = if on.is_empty() { String::new() } else { format!("; on {}", on.join(", ")) };
        format!("{} of at most {}{detail}{on}", self.chunks, bytes(self.chunk_size.into()))
    }
}

fn copies_word(count: usize) -> String {
    if count == 1 { "1 copy".into() } else { format!("{count} copies") }
}

/// # Errors
/// What the user is told.
pub(super) fn cat(context: &Context, args: &Cat) -> Result<(), Failure> {
    let path = cluster_path(&args.path)?;
    context.with_dfs(async |dfs| {
        let attr = dfs.resolve(&path).await.on("cannot read", &path)?;
        if attr.kind != FileKind::File {
            let code = match attr.kind {
                FileKind::Directory => dfs_common::ErrorCode::IsDirectory,
                _ => dfs_common::ErrorCode::InvalidArgument,
            };
            return Err(Failure::of(code, format!("/{} is a {}", escape(&path), kind_name(attr.kind))));
        }
        let reader = dfs.open_reader(attr.ino).await.on("cannot read", &path)?;
        let mut offset = 0;
        while offset < reader.size() {
            let pieces = reader.read_at(offset, READ_BYTES).await.on("cannot read", &path)?;
            let before = offset;
            for piece in &pieces {
                offset += piece.len() as u64;
                // Blocks this thread only: nothing else of this process has work to do while its reader is slow.
                io::stdout().lock().write_all(piece).map_err(|error| Failure::stdout(&error))?;
            }
            if offset == before {
                break;
            }
        }
        io::stdout().lock().flush().map_err(|error| Failure::stdout(&error))
    })
}

fn attr_json(object: &mut Map<String, Value>, attr: &Attr) {
    let fields = [
        ("ino", json!(attr.ino.0)),
        ("kind", json!(kind_name(attr.kind))),
        ("mode", json!(attr.mode)),
        ("mode_octal", json!(format!("{:04o}", attr.mode))),
        ("uid", json!(attr.uid)),
        ("gid", json!(attr.gid)),
        ("size", json!(attr.size)),
        ("nlink", json!(attr.nlink)),
        ("atime_ns", json!(attr.atime_ns)),
        ("mtime_ns", json!(attr.mtime_ns)),
        ("ctime_ns", json!(attr.ctime_ns)),
        ("file_id", json!(attr.file_id.map(|id| id.to_string()))),
        ("generation", json!(attr.generation)),
    ];
    object.extend(fields.map(|(key, value)| (key.to_owned(), value)));
}

pub(super) fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char device",
        FileKind::BlockDevice => "block device",
    }
}

/// Kind and permissions as `ls -l` writes them.
fn mode_text(attr: &Attr) -> String {
    let kind = match attr.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let mut text = String::from(kind);
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = attr.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (attr.mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use dfs_common::{ChunkId, ChunkRef, FileId, InodeId, NodeId};

    use super::*;

    fn attr(kind: FileKind, mode: u32) -> Attr {
        Attr {
            ino: InodeId(7),
            kind,
            mode,
            uid: 1,
            gid: 2,
            size: 5,
            nlink: 1,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            rdev: 0,
            generation: 1,
            file_id: None,
        }
    }

    #[test]
    fn modes_as_ls_writes_them() {
        for (kind, mode, text) in [
            (FileKind::File, 0o644, "-rw-r--r--"),
            (FileKind::Directory, 0o1777, "drwxrwxrwt"),
            (FileKind::File, 0o4755, "-rwsr-xr-x"),
            (FileKind::File, 0o6600, "-rwS--S---"),
            (FileKind::Symlink, 0o777, "lrwxrwxrwx"),
        ] {
            assert_eq!(mode_text(&attr(kind, mode)), text);
        }
    }

    #[test]
    fn a_layout_is_counted_by_copies() {
        let chunk = |replicas: &[u32]| ChunkRef {
            id: ChunkId([1; 32]),
            length: 1,
            sha256: [0; 32],
            replicas: replicas.iter().copied().map(NodeId).collect(),
        };
        let layout = Layout::Replicated {
            file_id: FileId([0; 16]),
            size: 9,
            chunk_size: 4 << 20,
            chunks: vec![chunk(&[1, 2, 3]), ChunkRef::HOLE, chunk(&[1, 2]), chunk(&[1, 2, 3])],
        };
        let spread = Spread::new(&layout, &[]);
        assert_eq!(spread.words(), "3 of at most 4.00 MiB: 1 with 2 copies, 2 with 3 copies, 1 hole");
        assert_eq!(spread.json()["copies"]["3"], 2);
    }

    #[test]
    fn entries_have_the_promised_fields() {
        let mut object = Map::new();
        attr_json(&mut object, &attr(FileKind::File, 0o644));
        assert_eq!(object["kind"], "file");
        assert_eq!(object["mode_octal"], "0644");
        assert!(object["file_id"].is_null());
    }
}
