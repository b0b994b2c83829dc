//! `dfs-meta`: see the library.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use dfs_common::crash;
use dfs_meta::{
    config::{Config, LogFormat},
    offline,
    server::Server,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// What the libraries underneath report is either reported by ourselves, once, or is not for the person who runs the node:
/// openraft writes several warnings and errors a second while a peer is down. A filter that names them wins.
const QUIET: [&str; 2] = ["openraft", "h2"];

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    let armed = match crash::arm() {
        Ok(armed) => armed,
        Err(error) => {
            eprintln!("dfs-meta: {error}");
            return ExitCode::from(2);
        }
    };
    if offline::is_asked(&args) {
        if let Some(armed) = armed {
            eprintln!("warning: {armed}");
        }
        return ended(offline::run(&args));
    }
    let config = Config::load(std::env::args_os()).unwrap_or_else(|error| error.exit());
    ended(run(&config, armed))
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dfs-meta: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, each once: many name their cause themselves.
fn told(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| match cause.to_string() {
        cause if text.is_empty() => cause,
        cause if text.contains(&cause) => text,
        cause => format!("{text}: {cause}"),
    })
}

fn run(config: &Config, armed: Option<crash::Armed>) -> anyhow::Result<()> {
    start_log(config)?;
    if let Some(armed) = armed {
        tracing::warn!("{armed}");
    }
    let runtime = dfs_proto::runtime::builder(config.worker_threads)
        .max_blocking_threads(16)
        .thread_name("dfs-meta")
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(serve(config));
    // A disk that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let mut directives = config.log.clone();
    for library in QUIET.iter().filter(|library| !config.log.contains(**library)) {
        directives.push_str(&format!(",{library}=off"));
    }
    let filter = EnvFilter::try_new(&directives).with_context(|| format!("--log {:?} is no filter", config.log))?;
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
        server = Server::start(config) => server?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let result = tokio::select! {
        failed = server.failed() => Err(failed.into()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    server.stop().await;
    result
}
