//! closedir(3): thousands of listings leave nothing behind in the mount.

use std::fs;

use anyhow::{Context, Result, ensure};
use dfs_tests::files;

use super::{file, mounted};

#[test]
fn listings_that_were_broken_off_cost_nothing_afterwards() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let dir = mount.join("d");
    fs::create_dir(&dir)?;
    for i in 0..300 {
        file(&dir.join(i.to_string()), b"")?;
    }
    let pid = mount.process().pid().context("it runs")?;
    let resident = || -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("its memory")?;
        Ok(line.split_whitespace().nth(1).context("a figure")?.parse()?)
    };
    let broken_off = |count: usize| -> Result<()> {
        for _ in 0..count {
            ensure!(fs::read_dir(&dir)?.take(3).count() == 3);
        }
        Ok(())
    };
    broken_off(500)?;
    let before = resident()?;
    broken_off(3000)?;
    let after = resident()?;
    // A listing of 300 names that stayed would cost more than 10 KiB.
    ensure!(after < before + 10 * 1024, "{before} KiB, then {after} KiB");
    ensure!(files::names(&dir)?.len() == 300);
    cluster.finish([mount])
}
