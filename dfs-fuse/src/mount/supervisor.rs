//! Keeps a mount alive when the process that serves it dies.
//!
//! The supervisor does next to nothing, so that nothing can end it: it keeps the descriptors of the mount, of which the kernel
//! keeps the mount as long as one is open, and starts a process that serves. When that dies without having said that the mount
//! is over, another one gets the descriptors. Programs wait meanwhile, as for any slow answer; what they had asked the dead one
//! is asked again by the kernel (`sessions::resend`).
//!
//! ```text
//!            Mounted            Ready               dies
//!   STARTING ───────► MOUNTED ─────────► SERVING ──────────► STARTING, with the descriptors
//!      │ dies, Failed                       │ Ended, or the kernel has let the mount go
//!      ▼                                    ▼
//!     END                                  END
//! ```
//!
//! | the supervisor dies       | and                                                                          |
//! |---------------------------|------------------------------------------------------------------------------|
//! | while the server serves   | the server goes on, and its own death ends the mount                         |
//! | between two servers       | the kernel ends the mount: programs get ENOTCONN, and `umount` frees the place |

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use dfs_common::crash;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::spawn_blocking,
    time::sleep,
};

use super::{
    channel::{Channel, Handover, Order, Word},
    sessions,
};
use crate::{
    config::Args,
    daemon::{self, Report},
};

/// How many servers in a row may die without having come to serve.
const TRIES_MAX: u32 = 10;
/// A server that dies sooner after its start was perhaps ended by what the kernel asked it, and the next one is asked the same.
const STEADY: Duration = Duration::from_secs(1);
/// Hasty deaths in a row that are nothing to wait for.
const HASTY_MAX: u32 = 2;
/// Pause after the next one; it doubles with each.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Characters of what a process that was refused may say: it goes to the next one in one message.
const REFUSAL_MAX: usize = 1000;
/// How often the server is looked at. A killed process that waits in the kernel for a directory, to have a name forgotten there,
/// stays until a program that works in that directory is answered, which nobody does before another process is started. Of all
/// that can be waited for, nothing comes before the last of its threads has ended.
const LOOK: Duration = Duration::from_millis(100);

/// How a server ended.
struct End {
    status: Option<ExitStatus>,
    /// It said so.
    is_over: bool,
    /// It had come to answer.
    was_ready: bool,
}

struct Supervisor {
    mountpoint: PathBuf,
    arguments: Vec<OsString>,
    /// What to start; this program itself if nothing else was said.
    program: Option<PathBuf>,
    /// What to start should that not come to serve.
    last_program: Option<PathBuf>,
    /// What the last process said that did not come to serve.
    refusal: Option<String>,
    handover: Option<Handover>,
    report: Option<Report>,
    in_foreground: bool,
    is_told_to_stop: bool,
}

/// Runs until the mount is over. Tells whoever started it by `report`, in the background.
///
/// # Errors
/// There never was a mount, which is reported as well, or its servers died again and again.
pub(crate) fn run(args: &Args, mountpoint: &Path, report: Option<Report>) -> anyhow::Result<()> {
    // SAFETY: the pointer is to a NUL-terminated string; the kernel copies it.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"dfs-supervisor".as_ptr()) };
    let arguments = daemon::arguments(args).context("cannot tell the serving process its arguments")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let mut supervisor = Supervisor {
        mountpoint: mountpoint.to_owned(),
        arguments,
        program: None,
        last_program: None,
        refusal: None,
        handover: None,
        report,
        in_foreground: args.foreground,
        is_told_to_stop: false,
    };
    let outcome = runtime.block_on(supervisor.supervise());
    if let (Err(error), Some(report)) = (&outcome, supervisor.report.take()) {
        report.failed(&format!("{error:#}")).context("cannot leave the terminal")?;
    }
    runtime.shutdown_background();
    outcome
}

fn words(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "killed while the kernel held it".to_owned(), |status| status.to_string())
}

/// Whether a child has ended, perhaps but for threads that the kernel holds.
fn has_ended(pid: u32) -> bool {
    // A child that was not waited for is there; state `Z` means that its first thread has ended.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('Z'))
}

impl Supervisor {
    async fn supervise(&mut self) -> anyhow::Result<()> {
        let (mut tries, mut hasty) = (0, 0);
        loop {
            let begun = Instant::now();
            let end = self.serve_once().await?;
            if end.is_over {
                return Ok(());
            }
            let Some(handover) = &self.handover else {
                match end.was_ready {
                    true => bail!(
                        "the process that served the mount died ({}), and Linux is too old for another one",
                        words(end.status)
                    ),
                    false => {
                        bail!("the process that was to mount ended ({}); run with -f to see its log", words(end.status))
                    }
                }
            };
            if self.is_told_to_stop || !sessions::is_connected(&handover.devices[0]) {
                return Ok(());
            }
            tries = if end.was_ready { 0 } else { tries + 1 };
            hasty = if begun.elapsed() < STEADY { hasty + 1 } else { 0 };
            if !end.was_ready && self.program != self.last_program {
                self.go_back(end.status);
            }
            if tries >= TRIES_MAX {
                let last = self.refusal.take().unwrap_or_else(|| words(end.status));
                bail!("{TRIES_MAX} processes in a row could not serve the mount; the last one: {last}");
            }
            if !self.handover.as_ref().is_some_and(|handover| handover.facts.is_orderly) {
                tracing::error!(
                    status = words(end.status),
                    "the process that served the mount died: starting another one"
                );
            }
            if hasty > HASTY_MAX {
                sleep(PAUSE.saturating_mul(2_u32.saturating_pow(hasty - HASTY_MAX - 1)).min(PAUSE_MAX)).await;
            }
        }
    }

    /// Goes on with the program that served before, and lets it tell why.
    fn go_back(&mut self, status: Option<ExitStatus>) {
        let program = self.program.as_deref().unwrap_or(Path::new("")).display().to_string();
        let why = self.refusal.take().unwrap_or_else(|| format!("it ended ({}) without a word", words(status)));
        let why: String = why.chars().take(REFUSAL_MAX).collect();
        tracing::error!(program, "the new program does not come to serve, going on with the old one: {why}");
        self.program.clone_from(&self.last_program);
        if let Some(handover) = &mut self.handover {
            handover.facts.refusal = Some(format!("{program} does not take it over: {why}"));
        }
    }

    fn start(&self) -> anyhow::Result<(Child, Channel)> {
        let (ours, theirs) = Channel::pair().context("cannot make sockets")?;
        let mut command = daemon::server(self.program.as_deref(), &self.mountpoint, &self.arguments);
        if self.handover.is_some() {
            // That was for the first one: the next is asked for the same again.
            command.env_remove(crash::VARIABLE);
        }
        if self.in_foreground {
            // Where the supervisor's own log goes.
            command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
        }
        let child = command.stdin(theirs.into_descriptor()).spawn().context("cannot start the serving process")?;
        match &self.handover {
            None => ours.send(&Order::Mount, &[]),
            Some(handover) => ours.send(&Order::TakeOver(handover.facts.clone()), &handover.descriptors()),
        }
        .context("cannot tell the serving process what to do")?;
        Ok((child, ours))
    }

    async fn serve_once(&mut self) -> anyhow::Result<End> {
        let (mut child, channel) = match self.start() {
            Ok(started) => started,
            // Perhaps another program, or a later moment, does better.
            Err(error) if self.handover.is_some() => {
                tracing::error!("no process to serve the mount: {error:#}");
                self.refusal = Some(format!("{error:#}"));
                return Ok(End { status: None, is_over: false, was_ready: false });
            }
            Err(error) => return Err(error),
        };
        if let Some(handover) = &mut self.handover {
            handover.facts.lives += 1;
        }
        let pid = child.id();
        let (tell, mut words) = mpsc::unbounded_channel();
        let channel = Arc::new(channel);
        let listening = Arc::clone(&channel);
        spawn_blocking(move || {
            // Ends with the process at the other end.
            while let Ok(Some(word)) = listening.receive::<Word>() {
                if tell.send(word).is_err() {
                    return;
                }
            }
        });
        let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        let (mut is_over, mut was_ready, mut is_stuck) = (false, false, false);
        loop {
            let word = tokio::select! {
                word = words.recv() => word,
                _ = terminate.recv() => { self.stop(pid); continue }
                _ = interrupt.recv() => { self.stop(pid); continue }
                () = sleep(LOOK), if !is_stuck => {
                    is_stuck = has_ended(pid);
                    if is_stuck {
                        channel.hang_up().context("cannot end the line to a dead process")?;
                    }
                    continue;
                }
            };
            match word {
                None => break,
                Some((Word::Mounted(facts), descriptors)) => {
                    self.handover = Some(Handover::from_parts(facts, descriptors).context("the serving process")?);
                }
                Some((Word::Ready, _)) => {
                    was_ready = true;
                    self.refusal = None;
                    self.last_program.clone_from(&self.program);
                    if let Some(handover) = &mut self.handover {
                        handover.facts.is_orderly = false;
                    }
                    if let Some(report) = self.report.take() {
                        report.ready().context("cannot leave the terminal")?;
                    }
                }
                // Of a mount that never was. In the foreground the process has told it itself.
                Some((Word::Failed(text), _)) if self.handover.is_none() => bail!(text),
                Some((Word::Failed(text), _)) => {
                    tracing::error!("the process that was to serve the mount: {text}");
                    self.refusal = Some(text);
                }
                Some((Word::Ended, _)) => is_over = true,
                Some((Word::Next(program), _)) => {
                    self.program = Some(program);
                    if let Some(handover) = &mut self.handover {
                        handover.facts.is_orderly = true;
                        handover.facts.refusal = None;
                    }
                }
            }
        }
        let ended = spawn_blocking(move || child.wait());
        let status = match is_stuck {
            // Some of its threads are there as long as the kernel holds them; then it is waited for.
            true => None,
            false => Some(ended.await?.context("cannot wait for the serving process")?),
        };
        Ok(End { status, is_over, was_ready })
    }

    fn stop(&mut self, pid: u32) {
        self.is_told_to_stop = true;
        let pid = libc::pid_t::try_from(pid).expect("process ids are small");
        // SAFETY: plain system call without pointers, to a child that was not waited for.
        if unsafe { libc::kill(pid, libc::SIGTERM) } == -1 {
            tracing::debug!(error = %io::Error::last_os_error(), "the serving process is gone already");
        }
    }
}
