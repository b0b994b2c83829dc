//! Many seeds, each in a process of its own, several at a time.

use std::{
    fs,
    process::{Command, Output, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::ValueEnum as _;

use crate::{Args, VIOLATED};

/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(60);

/// Runs the seeds, prints what went wrong and how to repeat it. `false`: some seed broke a promise or did not end.
///
/// # Errors
/// A seed cannot be started.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    let round = Round {
        args,
        next: AtomicU64::new(args.from),
        tally: Mutex::default(),
        started: Instant::now(),
        said: Mutex::new(Instant::now()),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(|| round.work())).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("workers do not panic"))
    })?;
    Ok(round.finish())
}

#[derive(Default)]
struct Tally {
    seeds: u64,
    bad: Vec<u64>,
    operations: u64,
    reads: u64,
    faults: u64,
}

struct Round<'a> {
    args: &'a Args,
    next: AtomicU64,
    tally: Mutex<Tally>,
    started: Instant,
    said: Mutex<Instant>,
}

impl Round<'_> {
    fn work(&self) -> anyhow::Result<()> {
        loop {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.args.from.saturating_add(self.args.count) {
                return Ok(());
            }
            self.judge(seed, &self.one(seed)?);
            self.say_progress();
        }
    }

    fn one(&self, seed: u64) -> anyhow::Result<Output> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(["--only", &seed.to_string()]).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(defect) = self.args.defect.and_then(|defect| defect.to_possible_value()) {
            command.args(["--defect", defect.get_name()]);
        }
        let child = command.spawn().context("cannot start a seed")?;
        let directory = dfs_sim::directory(child.id());
        let output = child.wait_with_output().context("cannot wait for a seed")?;
        // Only there if the process was killed.
        let _ = fs::remove_dir_all(directory);
        Ok(output)
    }

    fn judge(&self, seed: u64, output: &Output) {
        let text = String::from_utf8_lossy(&output.stdout);
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.seeds += 1;
        let count = |what: &str| number_before(&text, what);
        tally.operations += count(" operations");
        tally.reads += count(" reads");
        tally.faults += count(" faults");
        let well = output.status.success();
        if !well {
            tally.bad.push(seed);
        }
        if self.args.verbose || !well {
            print!("{text}");
        }
        if !well && output.status.code() != Some(i32::from(VIOLATED)) {
            println!("seed {seed} failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
    }

    fn say_progress(&self) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.elapsed() >= PROGRESS {
            *said = Instant::now();
            let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
            let (seeds, bad, seconds) = (tally.seeds, tally.bad.len(), self.started.elapsed().as_secs());
            println!("{seeds} of {} seeds, {bad} with violations, {seconds} s", self.args.count);
        }
    }

    fn finish(self) -> bool {
        let mut tally = self.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        tally.bad.sort_unstable();
        println!(
            "{} seeds from {} on, {} with violations: {} operations, {} reads, {} faults, {:.1} s",
            tally.seeds,
            self.args.from,
            tally.bad.len(),
            tally.operations,
            tally.reads,
            tally.faults,
            self.started.elapsed().as_secs_f64()
        );
        for seed in &tally.bad {
            println!("  again, with everything that happened: scripts/sim.sh --reproduce {seed}");
        }
        tally.bad.is_empty()
    }
}

/// The number before `what` in a report; 0 if there is none.
fn number_before(text: &str, what: &str) -> u64 {
    let before = text.split(what).next().filter(|before| before.len() < text.len());
    before.and_then(|before| before.rsplit(' ').next()).and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::number_before;

    #[test]
    fn reports_are_read() {
        let report = "seed 7: 120 operations (3 unknown), 55 reads, 9 faults, healed in 1.0 s";
        assert_eq!(number_before(report, " operations"), 120);
        assert_eq!(number_before(report, " reads"), 55);
        assert_eq!(number_before(report, " faults"), 9);
        assert_eq!(number_before("", " faults"), 0);
    }
}
