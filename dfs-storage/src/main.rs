//! `dfs-storage`: see the library.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use dfs_common::crash;
use dfs_storage::{
    config::{Config, LogFormat},
    server::{Server, ServerError},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Threads that a runtime needs beside those of the disk pool: address look-ups and the start.
const SPARE_THREADS: usize = 4;

fn main() -> ExitCode {
    let config = Config::load(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let armed = match crash::arm() {
        Ok(armed) => armed,
        Err(error) => {
            eprintln!("dfs-storage: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&config, armed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dfs-storage: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: &Config, armed: Option<crash::Armed>) -> anyhow::Result<()> {
    start_log(config)?;
    if let Some(armed) = armed {
        tracing::warn!("{armed}");
    }
    keep_large_buffers();
    let runtime = dfs_proto::runtime::builder(config.worker_threads)
        .max_blocking_threads(usize::from(config.blocking_threads) + SPARE_THREADS)
        .thread_name("dfs-storage")
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(config));
    // A disk that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

/// Keeps the buffers of 1 MiB that every message of the network needs in the process. By default glibc maps and unmaps each, and
/// the page faults cost about a tenth of all CPU time. Few arenas, because freed memory of one is of no use to another.
fn keep_large_buffers() {
    for (option, value) in
        [(libc::M_MMAP_THRESHOLD, 32 << 20), (libc::M_TRIM_THRESHOLD, 64 << 20), (libc::M_ARENA_MAX, 4)]
    {
        // SAFETY: mallopt only sets parameters of the allocator, and no other thread runs yet.
        if unsafe { libc::mallopt(option, value) } == 0 {
            tracing::debug!(option, value, "the allocator refuses an option");
        }
    }
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).with_context(|| format!("--log {:?} is no filter", config.log))?;
    // A log that cannot be written (its disk is full) is told by eprintln, which panics: the process would end with its log.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let mut server = tokio::select! {
        server = Server::start(config) => server.map_err(plain)?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let result = tokio::select! {
        error = server.failed() => Err(plain(error)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!("storage node ends");
    server.stop().await;
    result
}

/// Errors of the server name their causes themselves; a chain would name them twice.
fn plain(error: ServerError) -> anyhow::Error {
    anyhow::Error::msg(error.to_string())
}
