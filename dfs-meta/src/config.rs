//! The command line of `dfs-meta`: flag over environment over TOML file over default.

use std::{collections::HashSet, ffi::OsString, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, ValueEnum};
use dfs_common::{
    checksum::sha256,
    config::{ParseError, parse},
    layout::{CHUNK_SIZE_MAX, CHUNK_SIZE_MIN},
    units::{ByteSize, Span},
};
use dfs_proto::transport::{check_address, check_own};

use crate::{
    control, fsm,
    raft::{self, Member},
};

/// Smallest file of the log, in bytes: a handful of commands.
const LOG_FILE_SIZE_MIN: u64 = 64 << 10;
/// Largest, in bytes: so much is read at once at the start.
const LOG_FILE_SIZE_MAX: u64 = 1 << 30;

/// Form of the log on standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// One entry of `--peers`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// `host:port`.
    pub address: String,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once('=').ok_or("expected NAME=HOST:PORT")?;
        check_name(name)?;
        check_address(address).map_err(|error| error.to_string())?;
        Ok(Self { name: name.to_owned(), address: address.to_owned() })
    }
}

/// A metadata node of dfs: keeps the file tree and knows where the chunks are.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "dfs-meta",
    version,
    after_help = "While no node runs on a data directory: `dfs-meta restore --help` makes one from a backup, `dfs-meta rescue --help` \
                  makes the last node that is left the only one."
)]
pub struct Config {
    /// TOML file with values for these options
    #[arg(long, env = "DFS_META_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Name of this node, unique in the cluster; its id in the group is the number at its end, from 1, or else follows from the
    /// whole name
    #[arg(long, env = "DFS_META_NAME", default_value = "meta-1", value_name = "NAME")]
    pub name: String,
    /// Address to listen on
    #[arg(long, env = "DFS_META_LISTEN", default_value_t = default_listen(), value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Address under which clients and other nodes reach this one [default: the listen address]
    #[arg(long, env = "DFS_META_ADVERTISE", value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// Directory for the log and the snapshots; one node, one directory
    #[arg(long, env = "DFS_META_DATA_DIR", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// All metadata nodes, this one included: 1, 3 or 5 [default: this one alone]
    #[arg(long, env = "DFS_META_PEERS", value_delimiter = ',', value_name = "NAME=HOST:PORT,...")]
    pub peers: Vec<Peer>,
    /// Metadata nodes of a cluster that this one is to be added to with `dfsctl meta add`; it never forms a cluster itself
    #[arg(long, env = "DFS_META_JOIN", value_delimiter = ',', value_name = "HOST:PORT,...", conflicts_with = "peers")]
    pub join: Vec<String>,
    /// Copies of each chunk; fixed when the cluster is formed
    #[arg(long, env = "DFS_META_REPLICATION", default_value_t = 3, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=16))]
    pub replication: u32,
    /// Copies that must be durable before a write is acknowledged [default: a majority]; fixed when the cluster is formed
    #[arg(long, env = "DFS_META_WRITE_QUORUM", value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=16))]
    pub write_quorum: Option<u32>,
    /// Bytes of a chunk, 64K to 64M; fixed when the cluster is formed
    #[arg(long, env = "DFS_META_CHUNK_SIZE", default_value = "4M", value_name = "SIZE")]
    pub chunk_size: ByteSize,
    /// How often storage nodes report
    #[arg(long, env = "DFS_META_HEARTBEAT", default_value = "3s", value_name = "TIME")]
    pub heartbeat: Span,
    /// Silence after which a storage node is avoided
    #[arg(long, env = "DFS_META_SUSPECT", default_value = "10s", value_name = "TIME")]
    pub suspect: Span,
    /// Silence after which the copies on a storage node count as lost
    #[arg(long, env = "DFS_META_DEAD", default_value = "30s", value_name = "TIME")]
    pub dead: Span,
    /// How often the metadata leader makes itself heard by the others
    #[arg(long, env = "DFS_META_RAFT_HEARTBEAT", default_value = "100ms", value_name = "TIME")]
    pub raft_heartbeat: Span,
    /// Shortest silence of the leader after which another one is elected
    #[arg(long, env = "DFS_META_ELECTION_MIN", default_value = "400ms", value_name = "TIME")]
    pub election_min: Span,
    /// Longest silence of the leader after which another one is elected
    #[arg(long, env = "DFS_META_ELECTION_MAX", default_value = "800ms", value_name = "TIME")]
    pub election_max: Span,
    /// Log entries after which a snapshot is made
    #[arg(long, env = "DFS_META_SNAPSHOT_THRESHOLD", default_value_t = 8192, value_name = "N",
          value_parser = clap::value_parser!(u64).range(100..))]
    pub snapshot_threshold: u64,
    /// Log entries that stay behind a snapshot, so that a metadata node that was away briefly needs none
    #[arg(long, env = "DFS_META_LOG_KEEP", default_value_t = 1000, value_name = "N",
          value_parser = clap::value_parser!(u64).range(10..))]
    pub log_keep: u64,
    /// Bytes of a file of the log beyond which another one is begun, 64K to 1G; what is purged gives its space back by files
    #[arg(long, env = "DFS_META_LOG_FILE_SIZE", default_value = "16M", value_name = "SIZE")]
    pub log_file_size: ByteSize,
    /// Silence after which a client's session ends
    #[arg(long, env = "DFS_META_SESSION_LEASE", default_value = "60s", value_name = "TIME")]
    pub session_lease: Span,
    /// How long replaced and removed content stays readable for those who have it open
    #[arg(long, env = "DFS_META_GC_GRACE", default_value = "60s", value_name = "TIME")]
    pub gc_grace: Span,
    /// How long removed and replaced content can be restored, 0 to keep nothing; set when the cluster is formed, changed by
    /// `dfsctl trash retention`
    #[arg(long, env = "DFS_META_TRASH_RETENTION", default_value = "24h", value_name = "TIME")]
    pub trash_retention: Span,
    /// How long storage nodes must have been in their state before a copy that is one too many is dropped
    #[arg(long, env = "DFS_META_TRIM_GRACE", default_value = "60s", value_name = "TIME")]
    pub trim_grace: Span,
    /// How long a chunk that no file lists stays on its disk: its writer may still list it, so twice --session-lease at least
    #[arg(long, env = "DFS_META_UNKNOWN_GRACE", default_value = "10m", value_name = "TIME")]
    pub unknown_grace: Span,
    /// How long after a change of leader storage nodes are asked for full inventories, spread over as long again
    #[arg(long, env = "DFS_META_INVENTORY_DELAY", default_value = "2m", value_name = "TIME")]
    pub inventory_delay: Span,
    /// Threads for network and protocol; more than one pay only for a node that a single one cannot serve
    #[arg(long, env = "DFS_META_WORKER_THREADS", default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub worker_threads: u16,
    /// Log filter, as of the Rust crate tracing-subscriber
    #[arg(long, env = "DFS_META_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// Form of the log
    #[arg(long, env = "DFS_META_LOG_FORMAT", default_value = "text", value_enum)]
    pub log_format: LogFormat,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], dfs_common::ports::META))
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

    /// Settings of the consensus group.
    #[must_use]
    pub fn raft(&self) -> raft::Settings {
        let member = |name: &str, address: String| Member { raft_id: raft_id(name), name: name.to_owned(), address };
        let me = member(&self.name, self.advertised());
        let mut peers: Vec<_> = self.peers.iter().map(|peer| member(&peer.name, peer.address.clone())).collect();
        if peers.is_empty() {
            peers.push(me.clone());
        }
        raft::Settings {
            me,
            peers,
            join: self.join.clone(),
            data_dir: self.data_dir.clone(),
            heartbeat: self.raft_heartbeat.0,
            election_min: self.election_min.0,
            election_max: self.election_max.0,
            snapshot_threshold: self.snapshot_threshold,
            log_keep: self.log_keep,
            log_file_bytes: self.log_file_size.0,
            log_bytes_max: raft::LOG_BYTES_MAX,
            trash_retention: self.trash_retention.0,
            cluster: fsm::Settings {
                chunk_size: u32::try_from(self.chunk_size.0).unwrap_or(CHUNK_SIZE_MAX),
                replication: self.replication,
                write_quorum: self.write_quorum.unwrap_or(self.replication / 2 + 1),
            },
        }
    }

    /// Settings of the control loops.
    #[must_use]
    pub fn control(&self) -> control::Settings {
        let settings = control::Settings {
            heartbeat: self.heartbeat.0,
            suspect: self.suspect.0,
            dead: self.dead.0,
            gc_grace: self.gc_grace.0,
            trim_grace: self.trim_grace.0,
            unknown_grace: self.unknown_grace.0,
            inventory_delay: self.inventory_delay.0,
            ..control::Settings::default()
        };
        settings.with_session_lease(self.session_lease.0)
    }

    fn check(&self) -> Result<(), String> {
        check_name(&self.name).map_err(|error| format!("--name: {error}"))?;
        check_own(self.listen, self.advertise.as_deref())?;
        self.check_peers()?;
        for address in &self.join {
            check_address(address).map_err(|error| format!("--join: {error}"))?;
        }
        if let Some(quorum) = self.write_quorum.filter(|quorum| *quorum > self.replication) {
            return Err(format!("--write-quorum {quorum} is more than --replication {}", self.replication));
        }
        if !(u64::from(CHUNK_SIZE_MIN)..=u64::from(CHUNK_SIZE_MAX)).contains(&self.chunk_size.0) {
            return Err(format!("--chunk-size {} is not between 64K and 64M", self.chunk_size));
        }
        if !(LOG_FILE_SIZE_MIN..=LOG_FILE_SIZE_MAX).contains(&self.log_file_size.0) {
            return Err(format!("--log-file-size {} is not between 64K and 1G", self.log_file_size));
        }
        if self.heartbeat.0.is_zero() || self.suspect.0 < self.heartbeat.0 * 2 {
            return Err(format!("--suspect {} must be at least twice --heartbeat {}", self.suspect, self.heartbeat));
        }
        if self.dead.0 <= self.suspect.0 {
            return Err(format!("--dead {} must be longer than --suspect {}", self.dead, self.suspect));
        }
        if self.session_lease.0 < Duration::from_secs(1) {
            return Err(format!("--session-lease {} is too short: at least 1s", self.session_lease));
        }
        self.raft().check()
    }

    fn check_peers(&self) -> Result<(), String> {
        if self.peers.is_empty() {
            return Ok(());
        }
        let count = self.peers.len();
        if !matches!(count, 1 | 3 | 5) {
            let why = if count.is_multiple_of(2) {
                "an even number survives no more failures than one less"
            } else {
                "each change waits for a majority, and more than 5 make it slower for little"
            };
            return Err(format!("--peers names {count} nodes: use 1, 3 or 5; {why}"));
        }
        let ids: HashSet<_> = self.peers.iter().map(|peer| raft_id(&peer.name)).collect();
        let addresses: HashSet<_> = self.peers.iter().map(|peer| &peer.address).collect();
        if ids.len() < self.peers.len() || addresses.len() < self.peers.len() {
            return Err("--peers names a node, its number or its address twice".into());
        }
        let Some(me) = self.peers.iter().find(|peer| peer.name == self.name) else {
            return Err(format!("--peers must name this node too: {}={}", self.name, self.advertised()));
        };
        if me.address != self.advertised() {
            let (there, here) = (&me.address, self.advertised());
            return Err(format!("--peers says that this node is at {there}, --advertise says {here}"));
        }
        Ok(())
    }
}

pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    if name.is_empty() || name.len() > 255 || !name.chars().all(good) {
        return Err(format!("{name:?} is no name: use letters, digits, '-', '_' and '.'"));
    }
    if raft_id(name) == 0 {
        return Err(format!("{name:?}: the number at the end is the node's id in the group, and they count from 1"));
    }
    Ok(())
}

/// The id of a node in the consensus group: the number at the end of its name, as in `meta-1`, else a hash of the name. It must
/// not change while the node exists, so it follows from nothing else.
#[must_use]
pub fn raft_id(name: &str) -> u64 {
    let number = name.rsplit_once('-').filter(|(_, digits)| digits.bytes().all(|b| b.is_ascii_digit()));
    if let Some(id) = number.and_then(|(_, digits)| digits.parse().ok()) {
        return id;
    }
    let hash = sha256(name.as_bytes());
    let head = hash.first_chunk().expect("a hash has 32 bytes");
    u64::from_be_bytes(*head) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str]) -> Result<Config, String> {
        let base = ["dfs-meta", "--data-dir", "/d"];
        Config::load(base.iter().chain(args).map(OsString::from)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_is_sound_and_has_defaults() {
        command().debug_assert();
        let settings = load(&[]).unwrap().raft();
        assert_eq!(settings.peers, std::slice::from_ref(&settings.me));
        assert_eq!((settings.me.raft_id, settings.me.address.as_str()), (1, "127.0.0.1:4001"));
        assert_eq!(settings.cluster, fsm::Settings::default());
        assert_eq!(settings.lease(), Duration::from_millis(300));
    }

    #[test]
    fn mistakes_are_named() {
        for (args, expected) in [
            (&["--listen", "0.0.0.0:4001"][..], "--advertise"),
            (&["--listen", "127.0.0.1:0"], "--listen 127.0.0.1:0"),
            (&["--advertise", "0.0.0.0:4001"], "--advertise"),
            (&["--advertise", "[::]:4001"], "--advertise"),
            (&["--advertise", "h:0"], "--advertise"),
            (&["--name", "a b"], "--name"),
            (&["--name", "meta-0"], "--name"),
            (&["--peers", "meta-1=a:1,meta-2=b:1,meta-3=c:1,meta-4=d:1"], "1, 3 or 5"),
            (&["--peers", "meta-1=a:1,meta-2=b:1,meta-3=c:1,meta-4=d:1,meta-5=e:1,meta-6=f:1,meta-7=g:1"], "1, 3 or 5"),
            (&["--peers", "meta-1"], "--peers"),
            (&["--peers", "meta-1=127.0.0.1:4001,meta-2=h:1"], "1, 3 or 5"),
            (&["--peers", "meta-2=h:1"], "must name this node"),
            (&["--peers", "meta-1=h:1"], "--advertise says"),
            (&["--peers", "meta-1=127.0.0.1:4001,x-1=h:1,meta-3=h:2"], "twice"),
            (&["--join", "nowhere"], "--join"),
            (&["--join", "h:1", "--peers", "meta-1=127.0.0.1:4001"], "--join"),
            (&["--replication", "0"], "--replication"),
            (&["--replication", "2", "--write-quorum", "3"], "--write-quorum"),
            (&["--chunk-size", "1K"], "--chunk-size"),
            (&["--suspect", "4s"], "--suspect"),
            (&["--dead", "5s"], "--dead"),
            (&["--election-min", "900ms"], "--election-min"),
            (&["--election-max", "500ms"], "--election-max"),
            (&["--raft-heartbeat", "soon"], "--raft-heartbeat"),
            (&["--snapshot-threshold", "1"], "--snapshot-threshold"),
            (&["--log-file-size", "4K"], "--log-file-size"),
            (&["--log-file-size", "2G"], "--log-file-size"),
        ] {
            let error = load(args).expect_err("refused");
            assert!(error.contains(expected), "{args:?}: {error}");
        }
    }

    #[test]
    fn ids_follow_from_names() {
        assert_eq!((raft_id("meta-1"), raft_id("a-b-12")), (1, 12));
        assert_eq!(raft_id("alpha"), raft_id("alpha"));
        assert_ne!(raft_id("alpha"), raft_id("beta"));
        assert!(raft_id("x-99999999999999999999999") < 1 << 63);
    }

    #[test]
    fn every_option_has_an_environment_variable() {
        for arg in command().get_arguments().filter(|arg| !["help", "version"].contains(&arg.get_id().as_str())) {
            let env = format!("DFS_META_{}", arg.get_id().as_str().to_uppercase());
            assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(env.as_str()));
        }
    }
}
