//! `dev`: a whole cluster of real processes on this machine, under one directory.
//!
//! ```text
//! DIR/cluster.json      what the cluster is made of: names, ports, options (`plan`)
//! DIR/env               for a shell to source
//! DIR/data/NAME/        data directory of each process
//! DIR/log/NAME.log      its standard output and error, appended
//! DIR/run/NAME.pid      its pid, and nothing else
//! DIR/LOCK              held by the dfsctl that changes something
//! ```
//!
//! Processes outlive dfsctl: nothing watches them, and what is written down is only a hint. What runs is asked from `/proc`
//! (`process`), what is mounted from the kernel's table (`mounts`), what serves from the cluster (`probe`).
//!
//! JSON: `up`, `status` and `down` print `{dir, running, replication, meta_addrs, leader, mount: {path, mounted, answers} or
//! null, processes: [{name, state, pid, address, resident_bytes, log}]}`; the state of a process is `running`, `paused` or
//! `dead`. `start`, `stop`, `kill`, `pause` and `resume` print the one process in that form.

mod down;
mod home;
mod launch;
mod mounts;
mod one;
mod plan;
mod ports;
mod probe;
mod process;
mod status;
mod up;

pub(in crate::cmd) use process::find_program;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use dfs_common::units::{ByteSize, Span};

pub use self::plan::{Name, ParseNameError};
use crate::{context::Context, failure::Failure};

/// `dfsctl dev`.
#[derive(Args, Debug)]
pub struct Dev {
    /// What to do.
    #[command(subcommand)]
    pub verb: DevVerb,
}

/// What to do with a local cluster.
#[derive(Subcommand, Debug)]
pub enum DevVerb {
    /// Start what does not run, and wait until the cluster serves
    Up(Box<Up>),
    /// Show the processes; exit code 5 if one of them is not running
    Status(Where),
    /// End all processes; the data stays
    Down(Where),
    /// Start one process and wait until it answers
    Start(One),
    /// End one process cleanly
    Stop(One),
    /// Kill one process
    Kill(One),
    /// Freeze one process
    Pause(One),
    /// Let a frozen process go on
    Resume(One),
}

/// Where the cluster is.
#[derive(Args, Clone, Debug)]
pub struct Where {
    /// Directory of the cluster
    #[arg(long, env = "DFS_DEV_DIR", value_name = "DIR", default_value = "./.dfs")]
    pub dir: PathBuf,
}

/// One process of the cluster.
#[derive(Args, Debug)]
pub struct One {
    /// The cluster.
    #[command(flatten)]
    pub place: Where,
    /// meta-N, storage-N or mount
    #[arg(value_name = "NAME")]
    pub name: Name,
}

/// `dfsctl dev up`.
#[derive(Args, Debug)]
pub struct Up {
    /// The cluster.
    #[command(flatten)]
    pub place: Where,
    /// Metadata nodes [default: 1, or as the cluster was made]
    #[arg(short = 'm', long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=9))]
    pub meta_nodes: Option<u32>,
    /// Storage nodes [default: 3, or as the cluster was made]
    #[arg(short = 's', long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub storage_nodes: Option<u32>,
    /// Data directories of each storage node [default: 1, or as the cluster was made]
    #[arg(long, value_name = "D", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub disks: Option<u32>,
    /// Mount the cluster there [default: no mount, or as before]
    #[arg(long, value_name = "PATH")]
    pub mount: Option<PathBuf>,
    /// Forget an earlier --mount
    #[arg(long, conflicts_with = "mount")]
    pub no_mount: bool,
    /// Copies of each chunk; at most S [default: 3, or as the cluster was made]
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub replication: Option<u32>,
    /// Time between heartbeats of storage nodes
    #[arg(long, value_name = "TIME")]
    pub heartbeat: Option<Span>,
    /// Silence after which a storage node is suspect
    #[arg(long, value_name = "TIME")]
    pub suspect: Option<Span>,
    /// Silence after which a storage node is dead
    #[arg(long, value_name = "TIME")]
    pub dead: Option<Span>,
    /// Bytes that each storage node may use
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<ByteSize>,
    /// One more argument for each dfs-meta; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub meta_arg: Vec<String>,
    /// One more argument for each dfs-storage; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub storage_arg: Vec<String>,
    /// One more option (-o) of the mount; may be repeated
    #[arg(long, value_name = "OPT")]
    pub mount_opt: Vec<String>,
    /// How long to wait until the cluster serves
    #[arg(long, value_name = "TIME", default_value = "60s")]
    pub ready_timeout: Span,
}

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, args: Dev) -> Result<(), Failure> {
    match args.verb {
        DevVerb::Up(args) => up::run(context, &args),
        DevVerb::Status(place) => status::run(context, &place),
        DevVerb::Down(place) => down::run(context, &place),
        DevVerb::Start(one) => one::start(context, &one),
        DevVerb::Stop(one) => one::stop(context, &one),
        DevVerb::Kill(one) => one::kill(context, &one),
        DevVerb::Pause(one) => one::pause(context, &one),
        DevVerb::Resume(one) => one::resume(context, &one),
    }
}
