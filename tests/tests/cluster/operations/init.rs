//! What the kernel and the mount agree on at the start.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::mounted;

#[test]
fn rights_are_checked_by_the_kernel_and_requests_are_large() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let read_only = cluster.mount_with("ro")?;
    for (at, is_read_only) in [(&mount, false), (&read_only, true)] {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let path = at.path().to_str().context("a path in UTF-8")?;
        let line = table.lines().find(|line| line.split(' ').nth(4) == Some(path)).context("it is mounted")?;
        let (place, file_system) = line.split_once(" - ").context("the two halves of a line")?;
        let fields: Vec<_> = file_system.split(' ').collect();
        ensure!(fields[0] == "fuse.dfs", "{line}");
        for option in ["default_permissions", "allow_other"] {
            ensure!(fields[2].split(',').any(|found| found == option), "{option}: {line}");
        }
        let options = place.split(' ').nth(5).context("options")?;
        ensure!(options.split(',').any(|option| option == "ro") == is_read_only, "{line}");
        // Data is read ahead by more than the kernel's 128 KiB.
        let device = place.split(' ').nth(2).context("a device")?;
        let read_ahead: u64 = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb"))?.trim().parse()?;
        ensure!(read_ahead >= 1024, "{read_ahead} KiB");
    }
    cluster.finish([mount, read_only])
}
