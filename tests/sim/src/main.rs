//! `sim`: runs seeds, each in a process of its own, or one of them again with its trace.

use std::{
    process::{Command, ExitCode},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::Context as _;
use clap::{Parser, ValueEnum as _};
use dfs_sim::{Defect, Settings, repeatable, run};

/// Runs the simulated cluster with many seeds.
#[derive(Parser)]
struct Args {
    /// How many seeds
    #[arg(default_value_t = 100)]
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

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    match args.reproduce.or(args.only) {
        Some(seed) => one(seed, &args),
        None => many(&args),
    }
}

fn one(seed: u64, args: &Args) -> anyhow::Result<ExitCode> {
    repeatable().context("cannot start again with memory at fixed addresses")?;
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
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(VIOLATED) })
}

fn many(args: &Args) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let (next, bad) = (AtomicU64::new(args.from), AtomicU64::new(0));
    let started = Instant::now();
    let work = || -> anyhow::Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= args.from + args.count {
                return Ok(());
            }
            let mut command = Command::new(&program);
            command.args(["--only", &seed.to_string()]);
            if let Some(defect) = args.defect.and_then(|defect| defect.to_possible_value()) {
                command.args(["--defect", defect.get_name()]);
            }
            let output = command.output().context("cannot start a seed")?;
            if !output.status.success() {
                bad.fetch_add(1, Ordering::Relaxed);
            }
            if args.verbose || !output.status.success() {
                print!("{}", String::from_utf8_lossy(&output.stdout));
            }
            if ![Some(0), Some(i32::from(VIOLATED))].contains(&output.status.code()) {
                println!("seed {seed} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("workers do not panic"))
    })?;
    let bad = bad.into_inner();
    println!("{} seeds, {bad} with violations, {:.1} s", args.count, started.elapsed().as_secs_f64());
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::from(VIOLATED) })
}
