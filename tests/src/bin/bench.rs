//! `dfs-bench`: the same work on any directory, and a table of the results. scripts/bench.sh drives it.
//!
//! `dfs-bench run --name NAME --dir DIR [--procs A,B] [--remount CMD] [--smoke]` prints one line of JSON for each figure: the
//! median of three runs, and the CPU time that the processes named by `--procs` spent in it. "Cold" means: the page cache is
//! dropped and the remount command has run. `dfs-bench table FILE...` prints a Markdown table, first file first.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dfs_tests::files;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;
const RUNS: usize = 3;

struct Settings {
    name: String,
    dir: PathBuf,
    procs: Vec<String>,
    remount: Option<String>,
    size_mib: usize,
    small_files: usize,
    entries: usize,
}

/// One figure: how much was done, in which unit, and what it took.
struct Figure {
    test: &'static str,
    unit: &'static str,
    amount: f64,
    wall: Duration,
    cpu: f64,
    gigabytes: Option<f64>,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("run") => run(&settings(&args[1..])?),
        Some("table") => table(&args[1..]),
        _ => {
            bail!("usage: dfs-bench run --name NAME --dir DIR [--procs A,B] [--remount CMD] [--smoke] | table FILE...")
        }
    }
}

fn settings(args: &[String]) -> Result<Settings> {
    let mut settings = Settings {
        name: String::new(),
        dir: PathBuf::new(),
        procs: Vec::new(),
        remount: None,
        size_mib: 1024,
        small_files: 2000,
        entries: 10_000,
    };
    let mut args = args.iter();
    while let Some(flag) = args.next() {
        if flag == "--smoke" {
            (settings.size_mib, settings.small_files, settings.entries) = (64, 100, 500);
            continue;
        }
        let value = args.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--name" => settings.name = value.clone(),
            "--dir" => settings.dir = PathBuf::from(value),
            "--procs" => settings.procs = value.split(',').map(str::to_owned).collect(),
            "--remount" => settings.remount = Some(value.clone()),
            _ => bail!("unknown option {flag}"),
        }
    }
    ensure!(!settings.name.is_empty() && settings.dir.is_dir(), "--name and an existing --dir are needed");
    Ok(settings)
}

/// CPU time so far, user and system, of each process with one of these names, by its number and start.
fn cpu(names: &[String]) -> HashMap<(OsString, u64), u64> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (head, rest) = stat.rsplit_once(") ")?;
            let name = head.split_once('(')?.1;
            let fields: Vec<&str> = rest.split(' ').collect();
            let spent = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
            let process = (entry.file_name(), fields.get(19)?.parse().ok()?);
            names.iter().any(|wanted| wanted == name).then_some((process, spent))
        })
        .collect()
}

/// CPU seconds spent since `before` by processes that live now: a mount that was replaced may be ending meanwhile.
fn cpu_since(names: &[String], before: &HashMap<(OsString, u64), u64>) -> f64 {
    let spent = |(process, now): (_, u64)| now - before.get(&process).copied().unwrap_or(0).min(now);
    let ticks: u64 = cpu(names).into_iter().map(spent).sum();
    // USER_HZ is 100 on every Linux that dfs runs on.
    #[expect(clippy::cast_precision_loss, reason = "ticks since boot are far below 2^52")]
    let seconds = ticks as f64 / 100.0;
    seconds
}

impl Settings {
    fn measure(
        &self,
        test: &'static str,
        unit: &'static str,
        amount: usize,
        is_data: bool,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Figure> {
        let (before, begun) = (cpu(&self.procs), Instant::now());
        work().with_context(|| test.to_owned())?;
        let wall = begun.elapsed();
        #[expect(clippy::cast_precision_loss, reason = "amounts are far below 2^52")]
        let amount = if is_data { amount as f64 / 1e6 } else { amount as f64 };
        let gigabytes = is_data.then_some(amount / 1e3);
        Ok(Figure { test, unit, amount, wall, cpu: cpu_since(&self.procs, &before), gigabytes })
    }

    fn cold(&self) -> Result<()> {
        files::run("sync", &[])?;
        if let Some(command) = &self.remount {
            files::run("sh", &["-c", command])?;
        }
        fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the page cache needs root")
    }
}

fn run(settings: &Settings) -> Result<()> {
    let root = settings.dir.join("bench");
    let mut all: Vec<Vec<Figure>> = Vec::new();
    for round in 0..RUNS {
        let dir = root.join(format!("run-{round}"));
        fs::create_dir_all(&dir)?;
        let mut figures = small(settings, &dir)?;
        figures.extend(list(settings, &dir)?);
        figures.extend(large(settings, &dir)?);
        all.push(figures);
    }
    fs::remove_dir_all(&root)?;
    for at in 0..all[0].len() {
        report(settings, all.iter().map(|figures| &figures[at]).collect());
    }
    Ok(())
}

fn report(settings: &Settings, mut runs: Vec<&Figure>) {
    runs.sort_by_key(|run| run.wall);
    let median = runs[runs.len() / 2];
    let rate = median.amount / median.wall.as_secs_f64();
    let cpu_per_gb = median.gigabytes.map(|gigabytes| median.cpu / gigabytes);
    let line = json!({
        "system": settings.name, "test": median.test, "unit": median.unit, "median": rate,
        "wall_s": median.wall.as_secs_f64(), "daemon_cpu_s": median.cpu, "daemon_cpu_s_per_gb": cpu_per_gb,
    });
    println!("{line}");
}

fn large(settings: &Settings, dir: &Path) -> Result<Vec<Figure>> {
    let size = settings.size_mib * MIB;
    let noise = files::noise(7, 64 * MIB);
    let path = dir.join("large");
    let write = settings.measure("sequential write", "MB/s", size, true, || {
        let mut file = File::create(&path)?;
        for part in noise.chunks(MIB).cycle().take(settings.size_mib) {
            file.write_all(part)?;
        }
        file.sync_all()?;
        Ok(files::close(file)?)
    })?;
    settings.cold()?;
    let cold = settings.measure("sequential read, cold", "MB/s", size, true, || read_all(&path, size))?;
    let warm = settings.measure("sequential read, warm", "MB/s", size, true, || read_all(&path, size))?;
    fs::remove_file(&path)?;
    Ok(vec![write, cold, warm])
}

fn read_all(path: &Path, size: usize) -> Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; MIB];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            ensure!(total == size, "{total} bytes instead of {size}");
            return Ok(());
        }
        total += count;
    }
}

/// Runs `work` for every path, dealt out to `threads` threads.
fn each(threads: usize, paths: &[PathBuf], work: impl Fn(&Path) -> Result<()> + Sync) -> Result<()> {
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for first in 0..threads {
            let (work, failed) = (&work, &failed);
            scope.spawn(move || {
                let outcome = paths.iter().skip(first).step_by(threads).try_for_each(|path| work(path));
                if let Err(error) = outcome {
                    *failed.lock().expect("nobody panics with this lock") = Some(error);
                }
            });
        }
    });
    failed.into_inner().expect("nobody panics with this lock").map_or(Ok(()), Err)
}

fn small(settings: &Settings, dir: &Path) -> Result<Vec<Figure>> {
    let bytes = files::noise(1, 4096);
    let mut figures = Vec::new();
    for (threads, create, read) in [
        (1, "create 4 KiB files, 1 writer", "read 4 KiB files cold, 1 reader"),
        (8, "create 4 KiB files, 8 writers", "read 4 KiB files cold, 8 readers"),
    ] {
        let sub = dir.join(format!("small-{threads}"));
        fs::create_dir(&sub)?;
        let paths: Vec<_> = (0..settings.small_files).map(|i| sub.join(format!("file-{i:06}"))).collect();
        figures.push(settings.measure(create, "files/s", paths.len(), false, || {
            each(threads, &paths, |path| Ok(files::write(path, &bytes)?))
        })?);
        settings.cold()?;
        figures.push(settings.measure(read, "files/s", paths.len(), false, || {
            each(threads, &paths, |path| {
                ensure!(fs::read(path)?.len() == 4096, "{}", path.display());
                Ok(())
            })
        })?);
    }
    Ok(figures)
}

fn list(settings: &Settings, dir: &Path) -> Result<Vec<Figure>> {
    let sub = dir.join("list");
    fs::create_dir(&sub)?;
    let paths: Vec<_> = (0..settings.entries).map(|i| sub.join(format!("entry-{i:08}"))).collect();
    let create = settings.measure("create empty files, 1 writer", "files/s", paths.len(), false, || {
        each(1, &paths, |path| Ok(files::close(File::create_new(path)?)?))
    })?;
    settings.cold()?;
    let cold = settings.measure("list and stat, cold", "entries/s", paths.len(), false, || scan(&sub, paths.len()))?;
    let warm = settings.measure("list and stat, warm", "entries/s", paths.len(), false, || scan(&sub, paths.len()))?;
    let delete = settings.measure("delete, 1 process", "files/s", paths.len(), false, || {
        each(1, &paths, |path| Ok(fs::remove_file(path)?))
    })?;
    Ok(vec![create, cold, warm, delete])
}

fn scan(dir: &Path, entries: usize) -> Result<()> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        entry?.metadata()?;
        count += 1;
    }
    ensure!(count == entries, "{count} entries instead of {entries}");
    Ok(())
}

/// Prints a table: a row for each test, a column for each file, and the ratio of the first system to each other one.
fn table(paths: &[String]) -> Result<()> {
    let mut systems: Vec<(String, HashMap<String, Value>)> = Vec::new();
    let mut tests: Vec<String> = Vec::new();
    for path in paths {
        let mut results = HashMap::new();
        let mut name = String::new();
        for line in fs::read_to_string(path).with_context(|| path.clone())?.lines() {
            let value: Value = serde_json::from_str(line)?;
            name = value["system"].as_str().unwrap_or_default().to_owned();
            let test = value["test"].as_str().unwrap_or_default().to_owned();
            if !tests.contains(&test) {
                tests.push(test.clone());
            }
            results.insert(test, value);
        }
        systems.push((name, results));
    }
    let (own, others) = systems.split_first().context("no results")?;
    let names: Vec<_> = others.iter().map(|(name, _)| format!(" {name} | ratio |")).collect();
    println!("| | unit | {} |{}", own.0, names.concat());
    println!("|---|---|---:|{}", "---:|---:|".repeat(others.len()));
    for test in &tests {
        let Some(mine) = own.1.get(test) else { continue };
        row(test, mine["unit"].as_str().unwrap_or_default(), "median", own, others);
    }
    for test in &tests {
        if own.1.get(test).is_some_and(|mine| mine["daemon_cpu_s_per_gb"].is_number()) {
            row(&format!("CPU of daemons, {test}"), "s/GB", "daemon_cpu_s_per_gb", own, others);
        }
    }
    Ok(())
}

type Results = (String, HashMap<String, Value>);

fn row(label: &str, unit: &str, field: &str, own: &Results, others: &[Results]) {
    let test = label.rsplit_once("daemons, ").map_or(label, |(_, test)| test);
    let value = |results: &Results| results.1.get(test).and_then(|value| value[field].as_f64());
    let number = |figure: Option<f64>| match figure {
        Some(figure) if figure >= 100.0 => format!("{figure:.0}"),
        Some(figure) if figure > 0.0 => format!("{figure:.2}"),
        _ => "-".to_owned(),
    };
    let mine = value(own);
    let cells: Vec<_> = others
        .iter()
        .map(|other| {
            let theirs = value(other);
            let ratio = mine.zip(theirs).filter(|(_, theirs)| *theirs > 0.0).map(|(mine, theirs)| mine / theirs);
            format!(" {} | {} |", number(theirs), number(ratio))
        })
        .collect();
    println!("| {label} | {unit} | {} |{}", number(mine), cells.concat());
}
