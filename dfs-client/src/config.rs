//! The client's options as command line arguments, environment variables and keys of a configuration file.

use clap::Args;
use dfs_common::{
    backoff::Policy,
    units::{ByteSize, Span},
};

use crate::Options;

/// Options that every client program takes; flatten them into its own.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Client")]
pub struct ClientArgs {
    /// Metadata nodes, as host:port separated by commas
    #[arg(long, env = "DFS_META_ADDRS", value_name = "HOST:PORT,...", value_delimiter = ',', global = true,
          value_parser = parse_address)]
    pub meta: Vec<String>,
    /// Longest time one operation may take, retries included, before the program sees an error
    #[arg(long, env = "DFS_DEADLINE", value_name = "TIME", default_value = "30s", global = true)]
    pub deadline: Span,
    /// Longest time one call to a server may take before it is tried again elsewhere
    #[arg(long, env = "DFS_RPC_TIMEOUT", value_name = "TIME", default_value = "10s", global = true)]
    pub rpc_timeout: Span,
    /// Longest time making a connection may take
    #[arg(long, env = "DFS_CONNECT_TIMEOUT", value_name = "TIME", default_value = "2s", global = true)]
    pub connect_timeout: Span,
    /// Most attempts of one operation; 0 means until its deadline
    #[arg(long, env = "DFS_RETRY_ATTEMPTS", value_name = "COUNT", default_value_t = 0, global = true)]
    pub retry_attempts: u32,
    /// Upper bound of the first delay between attempts
    #[arg(long, env = "DFS_RETRY_BACKOFF_MIN", value_name = "TIME", default_value = "100ms", global = true)]
    pub retry_backoff_min: Span,
    /// Upper bound of every delay between attempts
    #[arg(long, env = "DFS_RETRY_BACKOFF_MAX", value_name = "TIME", default_value = "5s", global = true)]
    pub retry_backoff_max: Span,
    /// Chunks of one file uploaded at a time
    #[arg(long, env = "DFS_PARALLEL_UPLOADS", value_name = "COUNT", default_value_t = 4, global = true,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallel_uploads: u16,
    /// Chunks of one file downloaded at a time
    #[arg(long, env = "DFS_PARALLEL_DOWNLOADS", value_name = "COUNT", default_value_t = 4, global = true,
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub parallel_downloads: u16,
    /// Bytes read from or written to a local file at a time (4K to 4M)
    #[arg(long, env = "DFS_FRAME_SIZE", value_name = "SIZE", default_value = "1M", global = true,
          value_parser = parse_frame_size)]
    pub frame_size: ByteSize,
    /// Memory for write buffers and read-ahead of all open files together (at least 16M)
    #[arg(long, env = "DFS_MEMORY", value_name = "SIZE", default_value = "256M", global = true,
          value_parser = parse_memory)]
    pub memory: ByteSize,
    /// Largest read-ahead of one open file
    #[arg(long, env = "DFS_READ_AHEAD", value_name = "SIZE", default_value = "32M", global = true)]
    pub read_ahead: ByteSize,
    /// Name of this host as storage nodes spell it in their addresses: copies on it are preferred
    #[arg(long, env = "DFS_LOCAL_HOST", value_name = "HOST", global = true)]
    pub local_host: Option<String>,
}

impl ClientArgs {
    /// The options these arguments ask for. `description` is what the administrator sees.
    #[must_use]
    pub fn options(&self, description: impl Into<String>) -> Options {
        Options {
            meta: self.meta.clone(),
            description: description.into(),
            deadline: self.deadline.0,
            rpc_timeout: self.rpc_timeout.0,
            connect_timeout: self.connect_timeout.0,
            retry: Policy {
                initial: self.retry_backoff_min.0,
                max: self.retry_backoff_max.0.max(self.retry_backoff_min.0),
            },
            retry_attempts_max: (self.retry_attempts > 0).then_some(self.retry_attempts),
            memory_bytes: self.memory.0,
            parallel_uploads: self.parallel_uploads.into(),
            parallel_downloads: self.parallel_downloads.into(),
            frame_bytes: usize::try_from(self.frame_size.0).unwrap_or(1 << 20),
            read_ahead_max_bytes: self.read_ahead.0,
            local_host: self.local_host.clone(),
        }
    }
}

fn parse_address(text: &str) -> Result<String, String> {
    let text = text.trim();
    dfs_proto::transport::check_address(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn parse_frame_size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: dfs_common::units::ParseUnitError| error.to_string())?;
    if (4 << 10..=4 << 20).contains(&size.0) { Ok(size) } else { Err(format!("{size} is not between 4K and 4M")) }
}

fn parse_memory(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|error: dfs_common::units::ParseUnitError| error.to_string())?;
    // Less than four chunks of the default size leaves no room for a pipeline.
    if size.0 >= 16 << 20 { Ok(size) } else { Err(format!("{size} is less than 16M")) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        client: ClientArgs,
    }

    fn parse(args: &[&str]) -> Result<Options, clap::Error> {
        Ok(Program::try_parse_from(std::iter::once("x").chain(args.iter().copied()))?.client.options("test"))
    }

    #[test]
    fn defaults_are_those_of_options() {
        let parsed = parse(&["--meta", "a:1,b:2"]).expect("parses");
        let expected = Options { description: "test".into(), ..Options::new(vec!["a:1".into(), "b:2".into()]) };
        assert_eq!(parsed, expected);
    }

    #[test]
    fn bad_values_are_named() {
        for (flag, value) in [("--meta", "nonsense"), ("--frame-size", "1K"), ("--memory", "1M"), ("--deadline", "5")] {
            let error = parse(&[flag, value]).expect_err("refused").to_string();
            assert!(error.contains(value), "{error}");
        }
        assert_eq!(parse(&["--deadline", "5s"]).expect("parses").deadline, Duration::from_secs(5));
    }
}
