//! `mount.dfs`: a dfs cluster as a directory.
//!
//! Kernel matters only: requests, handles, flags, cache policy, errno, mounting. Everything that talks to the cluster is
//! `dfs-client`. Rooms: `fs` (the file system, without FUSE), `fuse` (the adapter), `mount`, `status`, `daemon`, `config`.
//!
//! Exit codes, as mount(8) knows them: 0 mounted (in the background) or unmounted (in the foreground), 1 wrong usage,
//! 32 the mount failed.

mod config;
mod daemon;
mod fs;
mod fuse;
mod mount;
mod status;

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use clap::error::ErrorKind;
use dfs_common::{config::ParseError, crash};
use tracing_subscriber::EnvFilter;

use config::{Args, LogFormat, Mistake};
use daemon::{Report, Role};
use mount::channel::{Channel, Word};

const USAGE: u8 = 1;
const FAILED: u8 = 32;

fn main() -> ExitCode {
    let args = match Args::parse_from_args(std::env::args_os()) {
        Ok(args) => args,
        Err(mistake) => return explain(&mistake),
    };
    let armed = match crash::arm() {
        Ok(armed) => armed,
        Err(error) => {
            eprintln!("mount.dfs: {error}");
            return ExitCode::from(USAGE);
        }
    };
    if let Some(armed) = armed.filter(|_| !args.foreground) {
        eprintln!("mount.dfs: warning: {armed}");
    }
    match start(&args, armed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A server has told its supervisor, which says it here.
            if !matches!(Role::of_process(), Role::Server(_)) {
                eprintln!("mount.dfs: {error:#}");
            }
            ExitCode::from(FAILED)
        }
    }
}

fn explain(mistake: &Mistake) -> ExitCode {
    match mistake {
        Mistake::Parse(ParseError::Clap(error)) => {
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nothing can be done about a closed terminal.
            let _ = error.print();
            if asked { ExitCode::SUCCESS } else { ExitCode::from(USAGE) }
        }
        mistake => {
            eprintln!("mount.dfs: {mistake}");
            ExitCode::from(USAGE)
        }
    }
}

fn start(args: &Args, armed: Option<crash::Armed>) -> anyhow::Result<()> {
    let mountpoint = match Role::of_process() {
        Role::Starter => mount::check_mountpoint(&args.mountpoint())?,
        Role::Supervisor(mountpoint) => {
            start_log(args, false)?;
            daemon::leave_session().context("cannot go to the background")?;
            return mount::supervise(args, &mountpoint, Some(Report::of_process()));
        }
        Role::Server(mountpoint) => {
            start_log(args, args.foreground)?;
            if !args.foreground {
                daemon::leave_session().context("cannot leave the directory where it was started")?;
            }
            return serve_supervised(args, &mountpoint);
        }
    };
    if args.mount_flags.remount {
        return mount::change_flags(args, &mountpoint);
    }
    if args.foreground {
        start_log(args, true)?;
        if let Some(armed) = armed {
            tracing::warn!("{armed}");
        }
        return match args.supervise {
            true => mount::supervise(args, &mountpoint, None),
            false => serve(args, &mountpoint, None),
        };
    }
    // Opened here as well, so that a bad path is told on the terminal.
    start_log(args, false)?;
    daemon::start(args, &mountpoint).context("cannot go to the background")?.map_err(anyhow::Error::msg)
}

/// Serves for a supervisor, at the other end of standard input.
fn serve_supervised(args: &Args, mountpoint: &Path) -> anyhow::Result<()> {
    let line = io::stdin().as_fd().try_clone_to_owned().context("there is no supervisor")?;
    let supervisor = Arc::new(Channel::inherited(line));
    let outcome = serve(args, mountpoint, Some(&supervisor));
    let word = match &outcome {
        Ok(()) => Word::Ended,
        Err(error) => {
            tracing::error!("{error:#}");
            Word::Failed(format!("{error:#}"))
        }
    };
    if let Err(error) = supervisor.send(&word, &[]) {
        tracing::info!(%error, "the supervisor is gone");
    }
    outcome
}

fn serve(args: &Args, mountpoint: &Path, supervisor: Option<&Arc<Channel>>) -> anyhow::Result<()> {
    // Also where it was started under the name of its file.
    // SAFETY: the pointer is to a NUL-terminated string; the kernel copies it.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"mount.dfs".as_ptr()) };
    let runtime = dfs_proto::runtime::builder(args.worker_threads)
        .thread_name("mount.dfs")
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(mount::run(args, mountpoint, supervisor));
    // Tasks that still wait for a dead cluster must not keep the process.
    runtime.shutdown_background();
    outcome
}

fn start_log(args: &Args, to_terminal: bool) -> anyhow::Result<()> {
    let filter = if args.verbose { "debug,h2=info,hyper=info,hyper_util=info,tower=info" } else { args.log.as_str() };
    // fuser logs every reply that came too late, which is normal when a program was killed.
    let filter = EnvFilter::try_new(format!("fuser=off,{filter}")).with_context(|| format!("--log {filter:?}"))?;
    // A log that cannot be written (its disk is full) is told by eprintln, which panics: the process would end with its log.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    match &args.log_file {
        Some(path) => {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("cannot write the log file {}", path.display()))?;
            let builder = builder.with_ansi(false).with_writer(file);
            match args.log_format {
                LogFormat::Text => builder.init(),
                LogFormat::Json => builder.json().init(),
            }
        }
        None if to_terminal => {
            let builder = builder.with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
            match args.log_format {
                LogFormat::Text => builder.init(),
                LogFormat::Json => builder.json().init(),
            }
        }
        None => {}
    }
    Ok(())
}
