//! Mounts of this machine: `mount list`, `mount status`, `mount abort`, `mount upgrade`.
//!
//! No cluster is asked: the kernel lists the mounts, and each of them tells about itself over its socket, also while the
//! cluster is away. A mount whose process does not answer is told as such.
//!
//! JSON: `list` and `status` print an array of `{path, source, device, state, pid?, report?}`; `state` is `serving`,
//! `cluster-away`, `not-responding`, `dead` or `unknown`, and `report` is [`dfs_client::mounts::Report`]. `abort` prints
//! `{path, operations, detached}`, `upgrade` prints `{path, before: {pid, version}, now: {pid, version}}`.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use clap::{Args, Subcommand};
use dfs_client::mounts::{self, ASK_ABORT, ASK_STATUS, ASK_UPGRADE, Aborted, Cache, Mounted, Report, Upgraded};
use dfs_common::units::Span;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

use crate::{
    context::Context,
    failure::Failure,
    text::{Align, Table, bytes, counted, utc},
};

/// How long a mount may take to answer; it gives the cluster one second itself.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// How long a mount may take to be left by its process, and the next one to answer: everything that is written and not closed
/// is stored before.
const UPGRADE_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks at a mount that another process takes over.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Operations of one mount that `status` prints.
const SHOWN_MAX: usize = 20;

/// `dfsctl mount`.
#[derive(Args, Debug)]
#[command(long_about = "\
Mounts of this machine. No cluster is asked, so this answers while it is away.

Only who mounted, and root, may ask a mount. `abort` gives EIO to every program that waits for one; the mount stays, and
works again when the cluster does. With --detach it is taken out of the tree as well, for when nothing else helps.

`upgrade` has the program that is installed now take the mount over from the one that runs: nothing is unmounted, open files
and locks stay.")]
pub struct Mount {
    /// What to do.
    #[command(subcommand)]
    pub verb: MountVerb,
    /// Directory of the status sockets [default: /run/dfs and those of all users]
    #[arg(long, env = "DFS_RUN_DIR", value_name = "DIR", global = true)]
    pub run_dir: Option<PathBuf>,
}

/// What to do with mounts.
#[derive(Subcommand, Debug)]
pub enum MountVerb {
    /// List the mounts of this machine
    List,
    /// Tell what a mount is doing, or all of them: operations in flight, memory, last error
    Status(StatusArgs),
    /// Give EIO to all programs that wait for a mount
    Abort(Abort),
    /// Have the installed version of mount.dfs take a mount over, with all open files
    Upgrade(Upgrade),
}

/// `dfsctl mount status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Mount point [default: all]
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
}

/// `dfsctl mount upgrade`.
#[derive(Args, Debug)]
pub struct Upgrade {
    /// Mount point
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
}

/// `dfsctl mount abort`.
#[derive(Args, Debug)]
pub struct Abort {
    /// Mount point
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Unmount it, too; lazily, so that it goes away even when its process hangs
    #[arg(long)]
    pub detach: bool,
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: &Mount) -> Result<(), Failure> {
    let dirs = args.run_dir.clone().map_or_else(mounts::run_dirs, |dir| vec![dir]);
    match &args.verb {
        MountVerb::List => list(context, &dirs),
        MountVerb::Status(args) => status(context, &dirs, args),
        MountVerb::Abort(args) => abort(context, &dirs, args),
        MountVerb::Upgrade(args) => upgrade(context, &dirs, args),
    }
}

/// How a mount is.
#[derive(Debug)]
enum State {
    /// It answered.
    Answered(Box<Report>),
    /// Its process is there and silent.
    Silent(Option<i32>),
    /// Its process has ended.
    Dead,
    /// It has no socket here, or one that we may not ask.
    Unknown(String),
}

impl State {
    fn word(&self) -> &'static str {
        match self {
            Self::Answered(report) if report.is_reachable => "serving",
            Self::Answered(_) => "cluster-away",
            Self::Silent(_) => "not-responding",
            Self::Dead => "dead",
            Self::Unknown(_) => "unknown",
        }
    }

    fn advice(&self, path: &Path) -> Option<String> {
        let path = path.display();
        match self {
            Self::Answered(report) => report.unreachable.as_ref().map(|why| format!("the cluster is away: {why}")),
            Self::Silent(Some(pid)) => {
                Some(format!("process {pid} does not answer; to give it up: kill -9 {pid}; umount -l {path}"))
            }
            Self::Silent(None) => Some(format!("its process does not answer; to give it up: umount -l {path}")),
            Self::Dead => {
                Some(format!("its process has ended; free the mount point: umount -l {path}, and mount again"))
            }
            Self::Unknown(why) => Some(why.clone()),
        }
    }
}

/// Mounts in the order of the table, a bind mount once.
fn find(path: Option<&Path>) -> Result<Vec<Mounted>, Failure> {
    let mut all = mounts::mounted().map_err(|error| Failure::io("cannot read the table of mounts", &error))?;
    if let Some(path) = path {
        // Not by canonicalize, which asks the mount itself and would wait for it.
        let full = std::path::absolute(path).map_err(|error| Failure::io(path.display(), &error))?;
        all.retain(|mounted| mounted.path == full);
        // What is mounted last is what is seen.
        all.drain(..all.len().saturating_sub(1));
        if all.is_empty() {
            return Err(Failure::not_found(format!("{} is no mount of dfs", full.display()))
                .hint("`dfsctl mount list` shows the mounts; give the path as it stands there"));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    all.retain(|mounted| seen.insert(mounted.device));
    Ok(all)
}

/// One question and its answer over the socket of a mount.
async fn ask<T: DeserializeOwned>(dirs: &[PathBuf], mounted: &Mounted, question: &str) -> Result<T, State> {
    let sockets = dirs.iter().map(|dir| mounts::socket(dir, mounted.device));
    let mut trouble = State::Unknown("it has no status socket here (--run-dir)".to_owned());
    for path in sockets {
        let mut stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                trouble = State::Dead;
                continue;
            }
            Err(error) => {
                trouble = State::Unknown(format!("{}: {error}", path.display()));
                continue;
            }
        };
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        let exchange = async {
            stream.write_all(format!("{question}\n").as_bytes()).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            serde_json::from_str(&text).map_err(io::Error::from)
        };
        let limit = if question == ASK_UPGRADE { UPGRADE_LIMIT } else { ANSWER_LIMIT };
        return match timeout(limit, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(State::Unknown(format!("{} answers nonsense: {error}", path.display()))),
            Err(_) => Err(State::Silent(pid)),
        };
    }
    Err(trouble)
}

async fn state(dirs: &[PathBuf], mounted: &Mounted) -> State {
    ask(dirs, mounted, ASK_STATUS).await.map_or_else(|state| state, |report| State::Answered(Box::new(report)))
}

fn states(context: &Context, dirs: &[PathBuf], found: Vec<Mounted>) -> Vec<(Mounted, State)> {
    context.block_on(async {
        let mut states = Vec::with_capacity(found.len());
        for mounted in found {
            let state = state(dirs, &mounted).await;
            states.push((mounted, state));
        }
        states
    })
}

fn to_json(mounted: &Mounted, state: &State) -> Value {
    let mut object = json!({
        "path": mounted.path.to_string_lossy(),
        "source": mounted.source,
        "device": mounted.device,
        "state": state.word(),
    });
    match state {
        State::Answered(report) => {
            object["pid"] = json!(report.pid);
            object["report"] = json!(report);
        }
        State::Silent(Some(pid)) => object["pid"] = json!(pid),
        State::Silent(None) | State::Dead | State::Unknown(_) => {}
    }
    object
}

fn list(context: &Context, dirs: &[PathBuf]) -> Result<(), Failure> {
    let states = states(context, dirs, find(None)?);
    if context.out.json {
        return context.out.value(&states.iter().map(|(mounted, state)| to_json(mounted, state)).collect::<Vec<_>>());
    }
    let mut table = Table::new(&[
        ("PATH", Align::Left),
        ("SOURCE", Align::Left),
        ("STATE", Align::Left),
        ("PID", Align::Right),
        ("WAITING", Align::Right),
    ]);
    for (mounted, state) in &states {
        let (pid, waiting) = match state {
            State::Answered(report) => (report.pid.to_string(), report.operations_waiting.to_string()),
            State::Silent(Some(pid)) => (pid.to_string(), "?".to_owned()),
            State::Silent(None) | State::Dead | State::Unknown(_) => ("-".to_owned(), "-".to_owned()),
        };
        let path = mounted.path.display().to_string();
        table.row(vec![path, mounted.source.clone(), state.word().to_owned(), pid, waiting]);
    }
    context.out.lines(&table.lines())
}

fn status(context: &Context, dirs: &[PathBuf], args: &StatusArgs) -> Result<(), Failure> {
    let states = states(context, dirs, find(args.path.as_deref())?);
    if context.out.json {
        context.out.value(&states.iter().map(|(mounted, state)| to_json(mounted, state)).collect::<Vec<_>>())?;
    } else {
        for (mounted, state) in &states {
            context.out.lines(&lines(mounted, state))?;
        }
    }
    let bad: Vec<_> = states.iter().filter(|(_, state)| state.word() != "serving").collect();
    match bad.as_slice() {
        [] => Ok(()),
        [(mounted, state), ..] => {
            let failure = Failure::unhealthy(format!("{} is {}", mounted.path.display(), state.word()));
            Err(match state.advice(&mounted.path) {
                Some(advice) => failure.hint(advice),
                None => failure,
            })
        }
    }
}

fn lines(mounted: &Mounted, state: &State) -> Vec<String> {
    let mut lines = vec![format!("{}  {}  {}", mounted.path.display(), mounted.source, state.word())];
    let State::Answered(report) = state else { return lines };
    let span = |seconds: u64| Span(Duration::from_secs(seconds)).to_string();
    lines.push(format!("  process    {} (version {}), for {}", report.pid, report.version, span(report.age_s)));
    lines.push(format!("  supervisor {}", supervisor_words(report)));
    if let Some(why) = &report.unreachable {
        lines.push(format!("  cluster    away: {why}"));
    } else {
        lines.push("  cluster    answers".to_owned());
    }
    lines.push(format!(
        "  memory     {} of {} in use, at most {} so far",
        bytes(report.memory_used_bytes),
        bytes(report.memory_max_bytes),
        bytes(report.memory_peak_bytes)
    ));
    lines.push(format!("  cache      {}", cache_words(report.cache)));
    lines.push(format!(
        "  so far     {}, {} refused, {} failed",
        counted(report.requests, "operation"),
        report.refused,
        report.failed
    ));
    if let Some(why) = &report.upgrade_refused {
        lines.push(format!("  upgrade    {why}"));
    }
    if let Some(error) = &report.last_error {
        let at = utc(i64::try_from(error.at_s).unwrap_or(i64::MAX).saturating_mul(1_000_000_000));
        lines.push(format!("  last error {at}  {} of inode {}: {}", error.operation, error.ino, error.text));
    }
    lines.push(format!("  waiting    {}", counted(report.operations_waiting, "operation")));
    for operation in report.operations.iter().take(SHOWN_MAX) {
        let age = Span(Duration::from_millis(operation.age_ms));
        lines.push(format!("    {age} {} of inode {} for process {}", operation.name, operation.ino, operation.pid));
    }
    lines
}

fn supervisor_words(report: &Report) -> String {
    match (report.is_supervised, report.predecessors) {
        (false, _) => "none: should the process die, the mount does".to_owned(),
        (true, 0) => "another process takes over should this one die".to_owned(),
        (true, count) => format!("this process took over from the one before ({} so far)", counted(count, "takeover")),
    }
}

fn cache_words(cache: Cache) -> String {
    match cache {
        Cache::Leased => "names and attributes are kept: the cluster tells what others change".to_owned(),
        Cache::Brief => "names and attributes are kept for as long as `cache=` says".to_owned(),
        Cache::Lost { since_ms } => {
            let since = Span(Duration::from_millis(since_ms));
            format!("everything older was dropped: for {since} the cluster has not told what others change")
        }
    }
}

fn abort(context: &Context, dirs: &[PathBuf], args: &Abort) -> Result<(), Failure> {
    let mounted = find(Some(&args.path))?.pop().expect("find refuses when there is none");
    let asked = context.block_on(ask::<Aborted>(dirs, &mounted, ASK_ABORT));
    let operations = asked.as_ref().map_or(0, |aborted| aborted.operations);
    if let Err(state) = &asked
        && !args.detach
    {
        let failure = Failure::local(format!("{} is {}", mounted.path.display(), state.word()));
        return Err(failure.hint(state.advice(&mounted.path).unwrap_or_default()));
    }
    if args.detach {
        detach(&mounted.path)?;
    }
    if context.out.json {
        let path = mounted.path.to_string_lossy();
        return context.out.value(&json!({ "path": path, "operations": operations, "detached": args.detach }));
    }
    let detached = if args.detach { ", and the mount is detached" } else { "" };
    context.out.line(format!("{} ended with EIO{detached}", counted(operations, "operation")))
}

fn upgrade(context: &Context, dirs: &[PathBuf], args: &Upgrade) -> Result<(), Failure> {
    let mounted = find(Some(&args.path))?.pop().expect("find refuses when there is none");
    let told = |state: &State| {
        let failure = Failure::local(format!("{} is {}", mounted.path.display(), state.word()));
        failure.hint(state.advice(&mounted.path).unwrap_or_default())
    };
    let (before, now) = context.block_on(async {
        let before = ask::<Report>(dirs, &mounted, ASK_STATUS).await.map_err(|state| told(&state))?;
        let answer = ask::<Upgraded>(dirs, &mounted, ASK_UPGRADE).await.map_err(|state| told(&state))?;
        if let Some(why) = answer.refused {
            let failure =
                Failure::local(format!("{} stays with process {}: {why}", mounted.path.display(), before.pid));
            return Err(failure.hint("nothing was changed; try again, or unmount and mount again"));
        }
        let next = async {
            loop {
                match ask::<Report>(dirs, &mounted, ASK_STATUS).await {
                    Ok(now) if now.pid != before.pid => return now,
                    Ok(_) | Err(_) => tokio::time::sleep(LOOK_PAUSE).await,
                }
            }
        };
        let now = timeout(UPGRADE_LIMIT, next).await.map_err(|_| {
            let failure = Failure::local(format!("no process has taken {} over yet", mounted.path.display()));
            failure.hint("the log of the mount says why (-o log_file=FILE); `dfsctl mount status` shows how it is")
        })?;
        if let Some(why) = &now.upgrade_refused {
            let path = mounted.path.display();
            let failure =
                Failure::local(format!("{path} goes on with the program that served it, process {}: {why}", now.pid));
            return Err(
                failure.hint("open files and locks are as they were; to change the program, unmount and mount again")
            );
        }
        Ok((before, now))
    })?;
    if context.out.json {
        let process = |report: &Report| json!({ "pid": report.pid, "version": report.version });
        let path = mounted.path.to_string_lossy();
        return context.out.value(&json!({ "path": path, "before": process(&before), "now": process(&now) }));
    }
    context.out.line(format!(
        "process {} (version {}) has left {} to process {} (version {})",
        before.pid,
        before.version,
        mounted.path.display(),
        now.pid,
        now.version
    ))
}

/// Unmounts lazily, which does not ask the process of the mount.
fn detach(path: &Path) -> Result<(), Failure> {
    let mut words = String::new();
    for (program, flags) in [("umount", &["-l"][..]), ("fusermount3", &["-u", "-z"])] {
        match Command::new(program).args(flags).arg("--").arg(path).stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => words = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => words = format!("{program}: {error}"),
        }
    }
    Err(Failure::local(format!("cannot unmount {}: {words}", path.display())))
}
