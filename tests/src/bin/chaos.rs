//! `dfs-chaos`: real clusters under faults, round after round, and a summary. scripts/chaos.sh drives it.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use dfs_tests::chaos::{self, Report, Settings, worker};

/// Runs clusters of real processes while processes are killed and stopped, ways are cut, disks are filled and data is
/// damaged.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs for some minutes
    Run {
        /// Minutes; a round that has begun is played to its end
        minutes: f64,
        /// The schedule of the first round follows from this number, that of the next from the next number
        #[arg(long)]
        seed: Option<u64>,
        /// Seconds of faults in a round
        #[arg(long, default_value_t = 45)]
        round: u64,
        /// Rounds on one cluster before a new one is made
        #[arg(long, default_value_t = 4)]
        rounds: u64,
        /// Do not print each fault
        #[arg(long)]
        quiet: bool,
    },
    /// Uses the mounts as programs do; started by `run`
    #[command(hide = true)]
    Worker(worker::Task),
}

/// Exit code when a promise was not kept; 1 is left to errors of the program itself.
const VIOLATED: u8 = 3;

fn main() -> Result<ExitCode> {
    match Args::parse().command {
        Command::Worker(task) => worker::work(task).map(|()| ExitCode::SUCCESS),
        Command::Run { minutes, seed, round, rounds, quiet } => {
            let seed = seed.unwrap_or_else(new_seed);
            let settings = Settings { seed, rounds, round: Duration::from_secs(round), verbose: !quiet };
            run(minutes, settings)
        }
    }
}

/// A seed that was probably not used before.
fn new_seed() -> u64 {
    chaos::journal::now() / 1_000_000 % 1_000_000
}

fn run(minutes: f64, mut settings: Settings) -> Result<ExitCode> {
    let (begun, mut total) = (Instant::now(), Report::default());
    let (first, max) = (settings.seed, Duration::from_secs_f64(minutes.max(0.0) * 60.0));
    println!("seed {first}");
    while begun.elapsed() < max && total.findings.is_empty() {
        let report = chaos::run(&settings)?;
        settings.seed += settings.rounds;
        total.add(report);
    }
    let taken = begun.elapsed().as_secs_f64() / 60.0;
    println!("\n{taken:.1} minutes, seeds {first} to {}\n{total}", first + total.rounds.max(1) - 1);
    if total.findings.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("the same schedule again: scripts/chaos.sh 1 --seed {} --rounds 1", first + total.rounds.max(1) - 1);
    Ok(ExitCode::from(VIOLATED))
}
