//! 100,000 entries in one directory.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Result, ensure};
use dfs_tests::Cluster;

const ENTRIES: usize = 100_000;
/// The kernel makes one entry of a directory at a time on each mount, so several mounts work side by side.
const MOUNTS: usize = 8;

fn fill(dirs: &[PathBuf]) -> Result<()> {
    let next = &AtomicUsize::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = dirs
            .iter()
            .map(|dir| {
                scope.spawn(move || -> std::io::Result<()> {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= ENTRIES {
                            return Ok(());
                        }
                        // Names of different lengths, so that pages of the listing are cut at odd places.
                        fs::create_dir(dir.join(format!("{:0width$}", i, width = 6 + i % 40)))?;
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("worker does not panic"))
    })
    .context("mkdir")
}

fn listed(dir: &Path) -> Result<HashSet<usize>> {
    let mut seen = HashSet::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number: usize = name.to_str().context("digits")?.parse()?;
        ensure!(seen.insert(number), "{number} is listed twice");
    }
    Ok(seen)
}

#[test]
fn a_hundred_thousand_entries() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let dir = mount.join("big");
    fs::create_dir(&dir)?;
    let helpers = (0..MOUNTS).map(|_| cluster.mount()).collect::<Result<Vec<_>>>()?;
    fill(&helpers.iter().map(|helper| helper.join("big")).collect::<Vec<_>>())?;
    ensure!(listed(&dir)?.len() == ENTRIES);
    mount.remount()?;
    ensure!(listed(&dir)?.len() == ENTRIES, "after remount");
    let text = cluster.dfsctl_ok(&["ls", "/big"])?;
    ensure!(text.lines().count() == ENTRIES, "dfsctl ls lists {} lines", text.lines().count());
    cluster.finish(helpers.into_iter().chain([mount]))
}

#[test]
fn a_listing_during_changes_shows_every_lasting_entry_once() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    for i in 0..5000 {
        fs::create_dir(dir.join(i.to_string()))?;
    }
    let stop = AtomicUsize::new(0);
    thread::scope(|scope| -> Result<()> {
        let changer = scope.spawn(|| -> std::io::Result<()> {
            let mut i = 100_000;
            while stop.load(Ordering::Relaxed) == 0 {
                fs::create_dir(dir.join(i.to_string()))?;
                if i % 2 == 0 {
                    fs::remove_dir(dir.join(i.to_string()))?;
                }
                i += 1;
            }
            Ok(())
        });
        let outcome = (0..10).try_for_each(|_| {
            let seen = listed(&dir)?;
            ensure!((0..5000).all(|i| seen.contains(&i)), "an entry that was there all the time is missing");
            Ok(())
        });
        stop.store(1, Ordering::Relaxed);
        changer.join().expect("changer does not panic")?;
        outcome
    })?;
    cluster.finish([mount])
}
