//! `sim`: runs seeds, each in a process of its own, or one of them again with its trace.

mod many;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use dfs_sim::{Defect, Settings, repeatable, run};

/// Runs the simulated cluster with many seeds.
#[derive(Parser)]
struct Args {
    /// How many seeds
    #[arg(default_value_t = 500)]
    count: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Run this seed only, and print what happened
    #[arg(long, value_name = "SEED")]
    reproduce: Option<u64>,
    /// Run this seed only, and print how it went
    #[arg(long, value_name = "SEED", conflicts_with = "reproduce")]
    only: Option<u64>,
    /// Seeds run at a time
    #[arg(long, default_value_t = 2)]
    jobs: u64,
    /// Put in a mistake
    #[arg(long, value_enum)]
    defect: Option<Defect>,
    /// Print a line for every seed
    #[arg(long)]
    verbose: bool,
}

/// Exit code when a promise was not kept; 1 is left to errors of the program itself.
const VIOLATED: u8 = 3;
/// A seed takes seconds; what takes this long will not end. In seconds.
const WALL_MAX_S: u32 = 300;

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let well = match args.reproduce.or(args.only) {
        Some(seed) => one(seed, &args)?,
        None => many::run(&args)?,
    };
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(VIOLATED) })
}

fn one(seed: u64, args: &Args) -> anyhow::Result<bool> {
    repeatable().context("cannot start again with memory at fixed addresses")?;
    // SAFETY: it has the kernel end this process with SIGALRM after that time, and touches no memory.
    unsafe { libc::alarm(WALL_MAX_S) };
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("DFS_SIM_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    }
    let report = run(&Settings { seed, keep_trace: args.reproduce.is_some(), defect: args.defect });
    if args.reproduce.is_some() {
        report.trace.iter().for_each(|line| println!("{line}"));
        println!("--- faults");
        report.faults.iter().for_each(|fault| println!("{fault}"));
        println!("--- errors that clients saw: {:?}", report.failures);
    }
    println!("{report}");
    Ok(report.violations.is_empty())
}
