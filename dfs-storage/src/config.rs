//! The command line of `dfs-storage`: flag over environment over TOML file over default.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, ValueEnum};
use dfs_common::{
    config::{ParseError, parse},
    units::{ByteSize, Span},
};
use dfs_proto::transport::{check_address, check_own};

/// Most data directories of a node: more than a machine has disks.
const DATA_DIRS_MAX: usize = 128;
/// Shortest time between two scrubs: those of an empty disk end at once.
const SCRUB_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Form of the log on standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A storage node of dfs: keeps chunks on disk and copies them to other storage nodes.
#[derive(Clone, Debug, Parser)]
#[command(name = "dfs-storage", version)]
pub struct Config {
    /// TOML file with values for these options
    #[arg(long, env = "DFS_STORAGE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this node, unique in the cluster
    #[arg(long, env = "DFS_STORAGE_NAME", default_value = "storage-1", value_name = "NAME")]
    pub name: String,
    /// Address to listen on
    #[arg(long, env = "DFS_STORAGE_LISTEN", default_value_t = default_listen(), value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Address under which clients and other nodes reach this one [default: the listen address]
    #[arg(long, env = "DFS_STORAGE_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Directory for chunks; several, one for each disk, separated by commas or given one by one
    #[arg(long, env = "DFS_STORAGE_DATA_DIR", value_delimiter = ',', required = true, value_name = "DIR,...")]
    pub data_dir: Vec<PathBuf>,
    /// Metadata nodes, separated by commas
    #[arg(long, env = "DFS_STORAGE_META", value_delimiter = ',', required = true, value_name = "HOST:PORT,...")]
    pub meta: Vec<String>,
    /// Failure domain: copies of a chunk go to different ones
    #[arg(long, env = "DFS_STORAGE_RACK", default_value = "", value_name = "RACK")]
    pub rack: String,
    /// Most bytes of chunks to keep in each data directory [default: the size of the file system]
    #[arg(long, env = "DFS_STORAGE_CAPACITY", value_name = "SIZE")]
    pub capacity: Option<ByteSize>,
    /// Bytes to leave free in each data directory [default: 1G or 1 % of the capacity, whichever is smaller]
    #[arg(long, env = "DFS_STORAGE_RESERVE", value_name = "SIZE")]
    pub reserve: Option<ByteSize>,
    /// Memory for chunk bytes in flight, at least 16M
    #[arg(long, env = "DFS_STORAGE_MEMORY", default_value = "128M", value_name = "SIZE")]
    pub memory: ByteSize,
    /// Threads for network and protocol; more than one pay only for a node that a single one cannot serve
    #[arg(long, env = "DFS_STORAGE_WORKER_THREADS", default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub worker_threads: u16,
    /// Threads for disk work
    #[arg(long, env = "DFS_STORAGE_BLOCKING_THREADS", default_value_t = 16, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub blocking_threads: u16,
    /// Most repairs sent at once, whatever `dfsctl repair limits` says; as many more for chunks with one copy left
    #[arg(long, env = "DFS_STORAGE_REPAIR_STREAMS", default_value_t = 64, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub repair_streams: u16,
    /// A peer or client without progress for this long is given up
    #[arg(long, env = "DFS_STORAGE_STALL_TIMEOUT", default_value = "10s", value_name = "TIME")]
    pub stall_timeout: Span,
    /// Time for one answer of a metadata node
    #[arg(long, env = "DFS_STORAGE_RPC_TIMEOUT", default_value = "3s", value_name = "TIME")]
    pub rpc_timeout: Span,
    /// First pause between attempts to reach metadata
    #[arg(long, env = "DFS_STORAGE_BACKOFF_INITIAL", default_value = "100ms", value_name = "TIME")]
    pub backoff_initial: Span,
    /// Longest pause between attempts to reach metadata
    #[arg(long, env = "DFS_STORAGE_BACKOFF_MAX", default_value = "2s", value_name = "TIME")]
    pub backoff_max: Span,
    /// Check block checksums of what is sent to readers, who check them in any case
    #[arg(long, env = "DFS_STORAGE_VERIFY_READS")]
    pub verify_reads: bool,
    /// Time from the start of one scrub, which verifies every chunk, to the start of the next; 0: only when it is ordered
    #[arg(long, env = "DFS_STORAGE_SCRUB_INTERVAL", default_value = "14d", value_name = "TIME")]
    pub scrub_interval: Span,
    /// Pauses of a scrub are so many times as long as its reads; shorter if it would not be done in time
    #[arg(long, env = "DFS_STORAGE_SCRUB_TRANQUILITY", default_value_t = 4, value_name = "N",
          value_parser = clap::value_parser!(u16).range(0..=1000))]
    pub scrub_tranquility: u16,
    /// How long bad copies are kept in quarantine; longer if no good copy of the chunk is left
    #[arg(long, env = "DFS_STORAGE_QUARANTINE_KEEP", default_value = "30d", value_name = "TIME")]
    pub quarantine_keep: Span,
    /// Most bytes of bad copies kept in the quarantine of a data directory; more if no good copy of a chunk is left
    #[arg(long, env = "DFS_STORAGE_QUARANTINE_SIZE", default_value = "4G", value_name = "SIZE")]
    pub quarantine_size: ByteSize,
    /// Log filter, as of the Rust crate tracing-subscriber
    #[arg(long, env = "DFS_STORAGE_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Form of the log
    #[arg(long, env = "DFS_STORAGE_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], dfs_common::ports::STORAGE))
}

/// The command, for documentation and its tests.
#[must_use]
pub fn command() -> clap::Command {
    Config::command()
}

impl Config {
    /// Reads the configuration from `args`, the environment and the file they name.
    ///
    /// # Errors
    /// A mistake, or a call for help; [`ParseError::exit`] tells the user.
    pub fn load(args: impl IntoIterator<Item = OsString>) -> Result<Self, ParseError> {
        let config = Self::from_arg_matches(&parse(command(), args)?)?;
        config.check().map_err(|message| command().error(clap::error::ErrorKind::ValueValidation, message))?;
        Ok(config)
    }

    /// The address that others use.
    #[must_use]
    pub fn advertised(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }

    fn check(&self) -> Result<(), String> {
        check_own(self.listen, self.advertise.as_deref())?;
        for address in &self.meta {
            check_address(address).map_err(|error| format!("--meta: {error}"))?;
        }
        if self.data_dir.len() > DATA_DIRS_MAX || self.data_dir.iter().any(|dir| dir.as_os_str().is_empty()) {
            return Err(format!("--data-dir names 1 to {DATA_DIRS_MAX} directories, and none of them is empty"));
        }
        if self.name.is_empty() || self.name.len() > 255 {
            return Err("--name must have 1 to 255 bytes".into());
        }
        if !(16 << 20..=64 << 30).contains(&self.memory.0) {
            return Err(format!("--memory {} is not between 16M and 64G", self.memory));
        }
        let interval = self.scrub_interval.0;
        if !interval.is_zero() && interval < SCRUB_INTERVAL_MIN {
            return Err(format!("--scrub-interval {} is neither 0 nor at least 1s", self.scrub_interval));
        }
        for (option, span) in [("--stall-timeout", self.stall_timeout), ("--rpc-timeout", self.rpc_timeout)] {
            if span.0.is_zero() {
                return Err(format!("{option} must not be 0"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str]) -> Result<Config, String> {
        let base = ["dfs-storage", "--data-dir", "/d", "--meta", "a:1,b:2"];
        Config::load(base.iter().chain(args).map(OsString::from)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_is_sound_and_has_defaults() {
        command().debug_assert();
        let config = load(&[]).expect("good");
        assert_eq!(config.meta, ["a:1", "b:2"]);
        let several = load(&["--data-dir", "/e,/f"]).expect("good").data_dir;
        assert_eq!(several, ["/d", "/e", "/f"].map(PathBuf::from));
        assert_eq!((config.advertised().as_str(), config.memory.0), ("127.0.0.1:4000", 128 << 20));
    }

    #[test]
    fn mistakes_are_named() {
        for (args, expected) in [
            (&["--listen", "0.0.0.0:4000"][..], "--advertise"),
            (&["--listen", "127.0.0.1:0"], "--listen 127.0.0.1:0"),
            (&["--advertise", "host"], "--advertise"),
            (&["--advertise", "0.0.0.0:4000"], "--advertise"),
            (&["--advertise", "[::]:4000"], "--advertise"),
            (&["--advertise", "h:0"], "--advertise"),
            (&["--memory", "1M"], "--memory"),
            (&["--capacity", "lots"], "--capacity"),
            (&["--worker-threads", "0"], "--worker-threads"),
            (&["--data-dir", "/e,"], "--data-dir"),
            (&["--scrub-interval", "500ms"], "--scrub-interval"),
            (&["--scrub-tranquility", "1001"], "--scrub-tranquility"),
            (&["--meta", "nonsense"], "--meta"),
        ] {
            let error = load(args).expect_err("refused");
            assert!(error.contains(expected), "{args:?}: {error}");
        }
    }

    #[test]
    fn every_option_has_an_environment_variable() {
        for arg in command().get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
            let env = format!("DFS_STORAGE_{}", arg.get_id().as_str().to_uppercase());
            assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(env.as_str()));
        }
    }
}
