//! Whole files: `upload`, `download`, `list`, `delete`.
//!
//! JSON: `upload` and `download` print `{path, size, file_id, ino}`, `upload` also `{reused_chunks, reused_bytes, sent_chunks,
//! sent_bytes, remarks}`; `list` prints an array of `{path, size, file_id, ino,
//! mtime_ns}`, one element a line; `delete` prints `{deleted: [{path}]}`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use clap::{ArgGroup, Args};
use dfs_client::{Dfs, ListedFile};
use dfs_common::{Attr, FileId, FileKind, units::utc};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::{
    context::{Context, On, cluster_path, parent_and_name},
    failure::Failure,
    output::Output,
    text::{bytes, escape, json_name},
};

/// Files asked for at a time.
const PAGE: u32 = 1000;

/// `dfsctl upload`.
#[derive(Args, Debug)]
pub struct Upload {
    /// Local file to copy
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    /// Path in the cluster; missing directories are made, an existing file is replaced
    #[arg(long, value_name = "NAME")]
    pub name: OsString,
    /// Go on where an earlier upload of the same file was interrupted
    #[arg(long)]
    pub resume: bool,
}

/// `dfsctl download`.
#[derive(Args, Debug)]
pub struct Download {
    /// Path in the cluster
    #[arg(long, value_name = "NAME")]
    pub name: OsString,
    /// Local file to write [default: the name's last part in the output directory]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `dfsctl list`.
#[derive(Args, Debug)]
pub struct List {
    /// Only files whose path starts with this
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<OsString>,
}

/// `dfsctl delete`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("which").required(true).args(["name", "id"]))]
pub struct Delete {
    /// Path in the cluster
    #[arg(long, value_name = "NAME")]
    pub name: Option<OsString>,
    /// File id, as `list` and `stat` show it
    #[arg(long, value_name = "ID")]
    pub id: Option<FileId>,
}

/// # Errors
/// What the user is told.
pub(super) fn upload(context: &Context, args: &Upload) -> Result<(), Failure> {
    let remote = cluster_path(&args.name)?;
    parent_and_name(&args.name)?;
    let manifests = manifest_dir(context)?;
    let bar = Bar::new(context.out, &args.name);
    let uploaded = context.with_dfs(async |dfs| {
        let progress = |done, total| bar.set(done, total);
        Ok(dfs_client::transfer::upload(dfs, &args.file, &remote, &manifests, args.resume, progress).await?)
    });
    bar.clear();
    let uploaded = uploaded.map_err(|failure| match &failure.hint {
        None if !args.resume && failure.code == "failed" => {
            failure.hint("`--resume` goes on where this upload stopped")
        }
        _ => failure,
    })?;
    uploaded.remarks.iter().for_each(|remark| context.out.warn(remark));
    if context.out.json {
        let mut object = file_json(&remote, &uploaded.attr);
        object.insert("reused_chunks".into(), uploaded.reused_chunks.into());
        object.insert("reused_bytes".into(), uploaded.reused_bytes.into());
        object.insert("sent_chunks".into(), uploaded.sent_chunks.into());
        object.insert("sent_bytes".into(), uploaded.sent_bytes.into());
        object.insert("remarks".into(), uploaded.remarks.into());
        return context.out.value(&object);
    }
    if args.resume && uploaded.reused_chunks > 0 {
        let (kept, sent) = (bytes(uploaded.reused_bytes), bytes(uploaded.sent_bytes));
        context.out.note(format!("resumed: {kept} were stored already, {sent} were sent"));
    }
    transferred(context.out, "uploaded", &remote, &uploaded.attr)
}

/// # Errors
/// What the user is told.
pub(super) fn download(context: &Context, args: &Download) -> Result<(), Failure> {
    let remote = cluster_path(&args.name)?;
    let (_, name) = parent_and_name(&args.name)?;
    let default = || context.global.output_dir.join(OsStr::from_bytes(&name));
    let out = args.out.clone().unwrap_or_else(default);
    let bar = Bar::new(context.out, &args.name);
    let attr = context.with_dfs(async |dfs| {
        let progress = |done, total| bar.set(done, total);
        Ok(dfs_client::transfer::download(dfs, &remote, &out, progress).await?)
    });
    bar.clear();
    transferred(context.out, "downloaded", &remote, &attr?)
}

/// Where manifests are kept unless told otherwise: state that outlives a reboot, as the XDG base directories have it.
fn manifest_dir(context: &Context) -> Result<PathBuf, Failure> {
    if let Some(dir) = &context.global.manifest_dir {
        return Ok(dir.clone());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let message = "no directory for upload manifests: neither XDG_STATE_HOME nor HOME is set";
    state.map(|dir| dir.join("dfs/uploads")).ok_or_else(|| Failure::usage(message).hint("give --manifest-dir DIR"))
}

fn transferred(out: Output, done: &str, path: &[u8], attr: &Attr) -> Result<(), Failure> {
    if out.json {
        return out.value(&file_json(path, attr));
    }
    if out.quiet {
        return Ok(());
    }
    out.line(format!("{done} /{} ({})", escape(path), bytes(attr.size)))
}

/// A path with its leading slash, whether it had one or not.
fn from_root(path: &[u8]) -> Vec<u8> {
    let bare = path.strip_prefix(b"/").unwrap_or(path);
    [b"/", bare].concat()
}

fn file_json(path: &[u8], attr: &Attr) -> Map<String, Value> {
    let mut object = Map::new();
    json_name(&mut object, "path", &from_root(path));
    object.insert("size".into(), attr.size.into());
    object.insert("file_id".into(), attr.file_id.map(|id| id.to_string()).into());
    object.insert("ino".into(), attr.ino.0.into());
    object.insert("mtime_ns".into(), attr.mtime_ns.into());
    object
}

/// # Errors
/// What the user is told.
pub(super) fn list(context: &Context, args: &List) -> Result<(), Failure> {
    let prefix = args.prefix.as_deref().unwrap_or_default().as_bytes();
    let prefix = &prefix[prefix.iter().take_while(|b| **b == b'/').count()..];
    let out = context.out;
    context.with_dfs(async |dfs| {
        let mut first = true;
        if out.json {
            out.line("[")?;
        }
        each_page(dfs, prefix, |files| {
            // Links and special files are no files of the cluster: they have no content and no id.
            let files = files.iter().filter(|file| file.attr.kind == FileKind::File);
            let lines: Vec<String> = files.map(|file| listed(out, file, std::mem::take(&mut first))).collect();
            out.lines(&lines)
        })
        .await?;
        if out.json { out.line("]") } else { Ok(()) }
    })
}

fn listed(out: Output, file: &ListedFile, first: bool) -> String {
    if out.json {
        return format!("{}{}", if first { "" } else { "," }, Value::Object(file_json(&file.path, &file.attr)));
    }
    let id = file.attr.file_id.map_or_else(|| "-".repeat(32), |id| id.to_string());
    format!("{:>14}  {}  {id}  {}", file.attr.size, utc(file.attr.mtime_ns), escape(&from_root(&file.path)))
}

/// Calls `each` with the files of every page.
async fn each_page(
    dfs: &Dfs,
    prefix: &[u8],
    mut each: impl FnMut(&[ListedFile]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut after = vec![];
    loop {
        let page = dfs.list_files(prefix, &after, PAGE).await?;
        each(&page.files)?;
        match page.files.last() {
            Some(last) if !page.end => after.clone_from(&last.path),
            _ => return Ok(()),
        }
    }
}

/// # Errors
/// What the user is told.
pub(super) fn delete(context: &Context, args: &Delete) -> Result<(), Failure> {
    let paths = context.with_dfs(async |dfs| {
        let paths = match (&args.name, args.id) {
            (Some(name), _) => vec![name.clone()],
            (None, Some(id)) => names_of(dfs, id).await?,
            (None, None) => return Err(Failure::usage("--name or --id is needed")),
        };
        for path in &paths {
            let (parent, name) = parent_and_name(path)?;
            let parent = dfs.resolve(&parent).await.on("cannot find", &parent)?;
            dfs.unlink(parent.ino, &name).await.on("cannot delete", &cluster_path(path)?)?;
        }
        Ok(paths)
    })?;
    if context.out.json {
        let deleted = paths.iter().map(|path| {
            let mut object = Map::new();
            json_name(&mut object, "path", &from_root(path.as_bytes()));
            Value::Object(object)
        });
        return context.out.value(&json!({ "deleted": deleted.collect::<Vec<_>>() }));
    }
    if context.out.quiet {
        return Ok(());
    }
    paths.iter().try_for_each(|path| context.out.line(format!("deleted {}", escape(&from_root(path.as_bytes())))))
}

/// Every path of the version `id`. The cluster keeps no index from versions to names, so all files are looked through.
async fn names_of(dfs: &Dfs, id: FileId) -> Result<Vec<OsString>, Failure> {
    let mut found = vec![];
    each_page(dfs, b"", |files| {
        let matching = files.iter().filter(|file| file.attr.file_id == Some(id));
        found.extend(matching.map(|file| OsStr::from_bytes(&file.path).to_owned()));
        Ok(())
    })
    .await?;
    if found.is_empty() {
        return Err(Failure::not_found(format!("no file has the id {id}"))
            .hint("ids change when a file is replaced; see the present ones with `dfsctl list`"));
    }
    Ok(found)
}

/// A progress bar, made when the size is known.
struct Bar {
    bar: OnceLock<ProgressBar>,
    shown: bool,
    name: String,
}

impl Bar {
    fn new(out: Output, name: &OsStr) -> Self {
        let name = Path::new(name).file_name().unwrap_or(name);
        Self { bar: OnceLock::new(), shown: out.shows_progress(), name: escape(name.as_bytes()) }
    }

    fn set(&self, done: u64, total: u64) {
        if !self.shown {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            // Ten drawings a second: smooth for the eye, nothing for the terminal.
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(self.name.clone());
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    fn clear(&self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
