//! `dfs-meta restore` and `dfs-meta rescue`: what is done to a data directory while no node runs on it.
//!
//! They belong to `dfs-meta` and not to `dfsctl`, because they make its files; `dfsctl meta restore` only calls them.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand};
use dfs_proto::transport::check_address;

use crate::{
    config::{check_name, raft_id},
    raft::{Member, Remains, remains, rescue, restore},
};

/// Work on the data directory of a metadata node that does not run
#[derive(Debug, Parser)]
#[command(name = "dfs-meta", version)]
pub struct Offline {
    /// What to do.
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the data directory of the first node of a cluster from a backup, under the old cluster's id
    Restore {
        /// The backup, as `dfsctl meta backup` wrote it
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// New or empty directory
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Name of the node
        #[arg(long, default_value = "meta-1", value_name = "NAME")]
        name: String,
        /// Address under which others will reach the node
        #[arg(long, value_name = "HOST:PORT")]
        advertise: String,
    },
    /// Make the last metadata node of a cluster its only member, when the majority is lost for good
    Rescue {
        /// Directory of the node that is left; no process may run on it
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Address under which others will reach the node [default: the one it had]
        #[arg(long, value_name = "HOST:PORT")]
        advertise: Option<String>,
        /// Do it: the last log index that the command without this option prints [default: ask]
        #[arg(long, value_name = "INDEX")]
        confirm: Option<u64>,
    },
}

/// Whether the arguments (with the program's name) are for this module.
#[must_use]
pub fn is_asked(args: &[std::ffi::OsString]) -> bool {
    args.get(1).is_some_and(|verb| verb == "restore" || verb == "rescue")
}

/// Runs one verb.
///
/// # Errors
/// What the administrator is told.
pub fn run(args: &[std::ffi::OsString]) -> anyhow::Result<()> {
    let offline = Offline::parse_from(args);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    match offline.verb {
        Verb::Restore { from, data_dir, name, advertise } => {
            check_name(&name).map_err(|error| anyhow::anyhow!("--name: {error}"))?;
            check_address(&advertise).map_err(|error| anyhow::anyhow!("--advertise: {error}"))?;
            let me = Member { raft_id: raft_id(&name), name, address: advertise };
            let (head, epoch) = runtime.block_on(restore(&from, &data_dir, &me))?;
            println!("restored cluster {} into {}, epoch {epoch}", head.cluster_id, data_dir.display());
            println!("  the tree is as of {} ({} ago)", utc(head.created_ns), ago(head.created_ns));
            println!("  {} files and directories, {} chunks, {} storage nodes", head.inodes, head.chunks, head.nodes);
            if head.pending > 0 {
                println!("  {} files were being written at that time; they are not in it", head.pending);
            }
            println!(
                "lost: every change of the tree since then. Content that was removed since may be missing; `dfsctl status` tells."
            );
            println!(
                "kept: chunks that were written since then stay on the storage nodes until `dfsctl meta restore-finish`."
            );
            println!("next: see that no metadata node of the former cluster runs, then");
            println!("  dfs-meta --name {} --advertise {} --data-dir {} ...", me.name, me.address, data_dir.display());
            println!("  the storage nodes find it by their --meta; add more metadata nodes with `dfsctl meta add`");
            Ok(())
        }
        Verb::Rescue { data_dir, advertise, confirm } => {
            if let Some(address) = &advertise {
                check_address(address).map_err(|error| anyhow::anyhow!("--advertise: {error}"))?;
            }
            let found = runtime.block_on(remains(&data_dir))?;
            tell(&found);
            confirmed(&found, confirm)?;
            let epoch = runtime.block_on(rescue(&data_dir, advertise.as_deref()))?;
            let me = &found.me;
            let address = advertise.as_ref().unwrap_or(&me.address);
            println!("{} is the only metadata node now, epoch {epoch}. Next:", me.name);
            println!("  dfs-meta --name {} --advertise {address} --data-dir {} ...", me.name, data_dir.display());
            println!(
                "  empty the directories of the other metadata nodes, start them with --join {address}, and `dfsctl meta add` each"
            );
            println!("  chunks that the tree does not know are kept until `dfsctl meta restore-finish`");
            Ok(())
        }
    }
}

fn tell(found: &Remains) {
    let others: Vec<_> = found.voters.iter().filter(|name| **name != found.me.name).map(String::as_str).collect();
    println!("metadata node {} of cluster {}", found.me.name, found.cluster);
    println!("  other metadata nodes: {}", if others.is_empty() { "none".into() } else { others.join(", ") });
    println!("  its log ends with entry {} of term {}", found.last_index, found.last_term);
    println!("  of these, {} are known to be agreed on; the rest is kept too", found.committed_index);
    println!("  its last change is of {} ({} ago)", utc(found.last_ns), ago(found.last_ns));
    println!("  {} files and directories, {} chunks", found.inodes, found.chunks);
    if !found.complete {
        println!("  it was still being filled: it may lack entries that it had acknowledged before");
    }
    println!(
        "what may be lost: every change that the other nodes agreed on after entry {}, without this one:",
        found.last_index
    );
    println!("files made, replaced, renamed or removed after {}.", utc(found.last_ns));
    println!("If one of the others can be brought back with its data, do that instead: nothing is lost then.");
}

fn confirmed(found: &Remains, confirm: Option<u64>) -> anyhow::Result<()> {
    let typed = match confirm {
        Some(index) => index,
        None => {
            ensure!(
                std::io::stdin().is_terminal(),
                "nothing was changed: run it with --confirm {} to go on",
                found.last_index
            );
            print!("type the index of the last entry to go on: ");
            std::io::stdout().flush().context("standard output")?;
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("standard input")?;
            line.trim().parse().context("nothing was changed: that is no index")?
        }
    };
    if typed != found.last_index {
        bail!("nothing was changed: {typed} is not {}", found.last_index);
    }
    Ok(())
}

/// A time as `2026-01-31 12:34:56 UTC`.
fn utc(unix_ns: i64) -> String {
    format!("{} UTC", dfs_common::units::utc(unix_ns))
}

fn ago(unix_ns: i64) -> String {
    let then = UNIX_EPOCH + Duration::from_nanos(u64::try_from(unix_ns).unwrap_or(0));
    let seconds = SystemTime::now().duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
