//! `sim`: runs seeds, or one of them again with its trace.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Instant,
};

use clap::Parser;
use dfs_sim::{Defect, Settings, run};

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

fn main() -> ExitCode {
    let args = Args::parse();
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("DFS_SIM_LOG") {
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    }
    match args.reproduce {
        Some(seed) => reproduce(seed, args.defect),
        None => many(&args),
    }
}

fn reproduce(seed: u64, defect: Option<Defect>) -> ExitCode {
    let report = run(&Settings { seed, keep_trace: true, defect });
    for line in &report.trace {
        println!("{line}");
    }
    println!("--- faults");
    for fault in &report.faults {
        println!("{fault}");
    }
    println!("--- errors that clients saw: {:?}", report.failures);
    println!("--- {report}");
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn many(args: &Args) -> ExitCode {
    let next = AtomicU64::new(args.from);
    let (bad, operations, undecided) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.from + args.count {
                        return;
                    }
                    let outcome =
                        std::panic::catch_unwind(|| run(&Settings { seed, keep_trace: false, defect: args.defect }));
                    match outcome {
                        Ok(report) => {
                            operations.fetch_add(report.operations.0, Ordering::Relaxed);
                            undecided.fetch_add(report.undecided, Ordering::Relaxed);
                            if !report.violations.is_empty() {
                                bad.fetch_add(1, Ordering::Relaxed);
                            }
                            if args.verbose || !report.violations.is_empty() {
                                println!("{report} ({} turns)", report.turns);
                            }
                        }
                        Err(_) => {
                            bad.fetch_add(1, Ordering::Relaxed);
                            println!("seed {seed}: panicked");
                        }
                    }
                }
            });
        }
    });
    let (bad, operations) = (bad.into_inner(), operations.into_inner());
    println!(
        "{} seeds, {operations} operations, {} histories undecided, {bad} seeds with violations, {:.1} s",
        args.count,
        undecided.into_inner(),
        started.elapsed().as_secs_f64()
    );
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
