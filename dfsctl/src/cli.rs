//! Every option of dfsctl.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use dfs_client::config::ClientArgs;

use crate::{
    cmd::{
        change, clone, cluster, dev, events, explain, fsck, meta, mount, namespace, node, rebalance, repair, scrub,
        transfer, trash, wait,
    },
    exit,
};

/// Looks after a dfs cluster and its files
#[derive(Parser, Debug)]
#[command(name = "dfsctl", version, after_help = exit::HELP, propagate_version = true, infer_subcommands = false)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Every verb")]
pub struct Global {
    /// TOML file with defaults for the options that every verb takes
    #[arg(long, env = "DFS_CONFIG", value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Print JSON; errors too, on standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress bar and no remarks
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// What to log to standard error: a level, or a filter like `dfs_client=debug`
    #[arg(long, env = "DFS_LOG", value_name = "FILTER", default_value = "warn", global = true)]
    pub log: String,
    /// How to log
    #[arg(long, env = "DFS_LOG_FORMAT", value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// Where `upload` notes which chunks are stored, for --resume [default: $XDG_STATE_HOME/dfs/uploads]
    #[arg(long, env = "DFS_MANIFEST_DIR", value_name = "DIR", global = true)]
    pub manifest_dir: Option<PathBuf>,
    /// Where `download` puts files without --out
    #[arg(long, env = "DFS_OUTPUT_DIR", value_name = "DIR", default_value = ".", global = true)]
    pub output_dir: PathBuf,
    /// The cluster and how to talk to it.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Form of a log line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Copy a local file into the cluster
    Upload(transfer::Upload),
    /// Copy a file out of the cluster
    Download(transfer::Download),
    /// List files by prefix, with their ids
    List(transfer::List),
    /// Remove a file by name or id
    Delete(transfer::Delete),
    /// List a directory
    Ls(namespace::Ls),
    /// Show the attributes of a file or directory and where its bytes are
    Stat(namespace::Stat),
    /// Print a file
    Cat(namespace::Cat),
    /// Make directories
    Mkdir(change::Mkdir),
    /// Remove files and directories
    Rm(change::Rm),
    /// Rename
    Mv(change::Mv),
    /// Get removed and replaced content back
    Trash(trash::Trash),
    /// Copy files and trees inside the cluster without moving data
    Clone(clone::Clone),
    /// Is anything at risk?
    Status(cluster::StatusArgs),
    /// List the storage nodes
    Nodes(cluster::NodesArgs),
    /// Show the space
    Df(cluster::DfArgs),
    /// Ask the storage nodes for every chunk of every file
    Fsck(fsck::Fsck),
    /// Why a file is slow or unavailable, and what to do
    Explain(explain::Explain),
    /// Show what happened: nodes, copies, repairs, changes
    Events(events::Events),
    /// Block until the cluster is in a state
    Wait(wait::Wait),
    /// Look at the metadata nodes
    Meta(meta::Meta),
    /// Look at the mounts of this machine
    Mount(mount::Mount),
    /// Watch and steer how lost copies are replaced
    Repair(repair::Repair),
    /// Watch and steer how stored bytes are verified
    Scrub(scrub::Scrub),
    /// Empty a storage node, let it be away for a while, or remove it
    Node(node::Node),
    /// Move chunks from full storage nodes to empty ones
    Rebalance(rebalance::Rebalance),
    /// Run a whole cluster on this machine
    Dev(dev::Dev),
}
