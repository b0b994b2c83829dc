//! The status socket: answers also while the cluster is away, and while every thread of the runtime is busy.
//!
//! A thread of its own serves one caller after the other. Only the user who mounted may connect.

use std::{
    ffi::OsStr,
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use dfs_client::{
    Dfs,
    mounts::{self, ASK_ABORT, ASK_STATUS, ASK_UPGRADE, Aborted, Cache, Operation, Report, Upgraded},
};
use dfs_common::InodeId;
use tokio::runtime::Handle;

use crate::{
    fs::{Fs, coherence::Standing},
    fuse::{Counters, Flights, Gate},
    mount::channel::{Channel, Word},
};

/// How long the cluster may take to answer before it counts as away. Longer than any healthy answer, shorter than the patience
/// of a person.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// How long a caller may take to say what it wants, and to take the answer.
const CALLER_LIMIT: Duration = Duration::from_secs(1);
/// How long operations may take to end before another process takes over.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);
/// Operations in one report.
const OPERATIONS_MAX: usize = 1000;

/// What a report is made of.
pub(crate) struct Facts {
    pub(crate) dfs: Dfs,
    pub(crate) fs: Arc<Fs<Dfs>>,
    pub(crate) flights: Arc<Flights>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) since: Instant,
    pub(crate) gate: Arc<Gate>,
    /// Who starts the next process.
    pub(crate) supervisor: Option<Arc<Channel>>,
    /// Processes that served the mount before.
    pub(crate) predecessors: u64,
    /// Why a newer program does not serve instead.
    pub(crate) refusal: Option<String>,
}

/// An open socket; dropping removes it.
pub(crate) struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "the status socket stays behind");
        }
    }
}

/// Opens the socket of the mount on `device` and serves it.
///
/// # Errors
/// The directory or the socket cannot be made.
pub(crate) fn serve(run_dir: &Path, device: u32, facts: Facts) -> anyhow::Result<Socket> {
    let runtime = Handle::current();
    fs::create_dir_all(run_dir).with_context(|| format!("cannot make {}", run_dir.display()))?;
    let path = mounts::socket(run_dir, device);
    // Left by a mount that was killed: the kernel has given its number to this one.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot keep others from {}", path.display()))?;
    thread::Builder::new()
        .name("status".into())
        .spawn(move || {
            for caller in listener.incoming() {
                if let Err(error) = caller.and_then(|caller| answer(&caller, &runtime, &facts)) {
                    tracing::debug!(%error, "somebody asked for the status and did not get it");
                }
            }
        })
        .context("cannot start the status thread")?;
    Ok(Socket(path))
}

fn answer(caller: &UnixStream, runtime: &Handle, facts: &Facts) -> io::Result<()> {
    caller.set_read_timeout(Some(CALLER_LIMIT))?;
    caller.set_write_timeout(Some(CALLER_LIMIT))?;
    let mut question = String::new();
    BufReader::new(caller.take(64)).read_line(&mut question)?;
    let text = match question.trim() {
        ASK_STATUS => serde_json::to_string(&report(runtime, facts))?,
        ASK_ABORT => {
            let operations = facts.flights.abort() as u64;
            tracing::warn!(operations, "an administrator ended the operations in flight");
            serde_json::to_string(&Aborted { operations })?
        }
        ASK_UPGRADE => return upgrade(caller, runtime, facts),
        other => return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("nobody knows {other:?}"))),
    };
    let mut caller = caller;
    caller.write_all(text.as_bytes())?;
    caller.write_all(b"\n")
}

/// Leaves the mount to another process. Does not come back if that can be.
fn upgrade(mut caller: &UnixStream, runtime: &Handle, facts: &Facts) -> io::Result<()> {
    let outcome = runtime.block_on(leave(facts));
    let refused = outcome.as_ref().err().map(|error| format!("{error:#}"));
    let mut text = serde_json::to_vec(&Upgraded { refused })?;
    text.push(b'\n');
    let told = caller.write_all(&text);
    if outcome.is_ok() {
        tracing::info!("left the mount to the next process");
        // Nothing is dropped: what drops would clear is what the next process needs.
        // SAFETY: ends the process; nothing after it runs.
        unsafe { libc::_exit(0) };
    }
    told
}

/// Brings everything to an end that could be lost with this process, and tells the supervisor.
async fn leave(facts: &Facts) -> anyhow::Result<()> {
    let supervisor = facts.supervisor.as_deref().context(
        "no supervisor starts another process: the mount is in the foreground without --supervise, or Linux is older than 6.9",
    )?;
    let program = std::env::current_exe().context("cannot tell where the program is")?;
    let program = installed_now(&program);
    if !facts.gate.shut(LEAVE_LIMIT).await {
        bail!("operations are still under way after {LEAVE_LIMIT:?}");
    }
    let outcome = match facts.fs.publish_all().await {
        Ok(()) => supervisor.send(&Word::Next(program), &[]).context("the supervisor is gone"),
        Err(error) => Err(error).context("what is open for writing cannot be brought to an end"),
    };
    if outcome.is_err() {
        facts.gate.open();
    }
    outcome
}

/// Where a program is that was perhaps replaced since it was started.
fn installed_now(program: &Path) -> PathBuf {
    let text = program.as_os_str().as_bytes();
    let text = text.strip_suffix(b" (deleted)").unwrap_or(text);
    PathBuf::from(OsStr::from_bytes(text))
}

fn report(runtime: &Handle, facts: &Facts) -> Report {
    let unreachable = probe(runtime, &facts.dfs);
    let waiting = facts.flights.waiting();
    let (memory_used_bytes, memory_peak_bytes) = facts.dfs.memory_usage();
    let (requests, refused, failed) = facts.counters.counts();
    Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        is_supervised: facts.supervisor.is_some(),
        predecessors: facts.predecessors,
        upgrade_refused: facts.refusal.clone(),
        age_s: facts.since.elapsed().as_secs(),
        is_reachable: unreachable.is_none(),
        unreachable,
        operations_waiting: waiting.len() as u64,
        operations: waiting.into_iter().take(OPERATIONS_MAX).map(operation).collect(),
        memory_used_bytes,
        memory_peak_bytes,
        memory_max_bytes: facts.dfs.options().memory_bytes,
        requests,
        refused,
        failed,
        last_error: facts.counters.last_error(),
        cache: cache(facts.fs.coherence().standing()),
    }
}

fn cache(standing: Standing) -> Cache {
    match standing {
        Standing::Off => Cache::Brief,
        Standing::Leased => Cache::Leased,
        Standing::Lost(None) => Cache::Brief,
        Standing::Lost(Some(since)) => Cache::Lost { since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) },
    }
}

fn operation(waiting: crate::fuse::Waiting) -> Operation {
    let age_ms = u64::try_from(waiting.age.as_millis()).unwrap_or(u64::MAX);
    Operation { name: waiting.operation.to_owned(), ino: waiting.ino, pid: waiting.pid, age_ms }
}

/// Asks the cluster for its root; why it did not answer, if so. The runtime may be busy itself, so this thread keeps the time.
fn probe(runtime: &Handle, dfs: &Dfs) -> Option<String> {
    let (tell, told) = mpsc::channel();
    let dfs = dfs.clone();
    let asking = runtime.spawn(async move {
        // Nobody listens after the time is up.
        let _ = tell.send(dfs.getattr(InodeId::ROOT).await.err().map(|error| error.to_string()));
    });
    let answer = told.recv_timeout(PROBE_LIMIT);
    asking.abort();
    answer.unwrap_or_else(|_| Some(format!("no answer within {PROBE_LIMIT:?}")))
}
