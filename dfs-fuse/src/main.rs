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
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::error::ErrorKind;
use dfs_common::{config::ParseError, crash};
use tracing_subscriber::EnvFilter;

use config::{Args, LogFormat, Mistake};
use daemon::Side;

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
            eprintln!("mount.dfs: {error:#}");
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
    let mountpoint = mount::check_mountpoint(&args.mountpoint())?;
    if args.mount_flags.remount {
        return mount::change_flags(args, &mountpoint);
    }
    // SAFETY: the pointer is to a NUL-terminated string; the kernel copies it.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"mount.dfs".as_ptr()) };
    if args.foreground {
        start_log(args, true)?;
        if let Some(armed) = armed {
            tracing::warn!("{armed}");
        }
        return serve(args, &mountpoint, || {});
    }
    // Opened here, so that a bad path is told on the terminal and a relative one means what the user thinks.
    start_log(args, false)?;
    match daemon::split().context("cannot go to the background")? {
        Side::Parent(outcome) => outcome.map_err(anyhow::Error::msg),
        Side::Child(report) => {
            let mut report = Some(report);
            let outcome = serve(args, &mountpoint, || {
                if let Some(report) = report.take() {
                    report.ready();
                }
            });
            if let Err(error) = &outcome {
                tracing::error!("{error:#}");
                if let Some(report) = report.take() {
                    report.failed(&format!("{error:#}"));
                }
            }
            outcome
        }
    }
}

fn serve(args: &Args, mountpoint: &Path, on_ready: impl FnOnce()) -> anyhow::Result<()> {
    let runtime = dfs_proto::runtime::builder(args.worker_threads)
        .thread_name("mount.dfs")
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(mount::run(args, mountpoint, on_ready));
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
