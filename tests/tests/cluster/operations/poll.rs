//! poll(2): a file is always ready.

use std::time::Duration;

use anyhow::{Result, ensure};
use dfs_tests::files;

use super::{file, mounted};

#[test]
fn files_are_ready_and_are_not_offered_to_epoll() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    // What select() tells of a file, and the error with which epoll refuses one, as on a local disk.
    let script = "timeout 20 python3 -c '
import errno, select, sys
file = open(sys.argv[1], \"r+b\")
print(*(len(ready) for ready in select.select([file], [file], [], 10)))
try:
    select.epoll().register(file)
except OSError as error:
    print(errno.errorcode[error.errno])
' \"$1\"";
    let begun = std::time::Instant::now();
    let told = files::sh(script, &[&path])?;
    ensure!(told.starts_with("1 1 0\n"), "{told}");
    ensure!(begun.elapsed() < Duration::from_secs(9), "ready without waiting");
    cluster.finish([mount])
}
