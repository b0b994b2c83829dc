//! poll(2), select(2), epoll(7): a file is always ready.

use anyhow::{Result, ensure};
use dfs_tests::files;

use super::{file, mounted};

#[test]
fn a_file_is_ready_for_whoever_asks() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    // How many are ready to be read and to be written, and by epoll, which refuses the files of a local disk.
    let script = "timeout 20 python3 -c '
import select, sys
file = open(sys.argv[1], \"r+b\")
print(*(len(ready) for ready in select.select([file], [file], [], 10)))
epoll = select.epoll()
epoll.register(file)
print(len(epoll.poll(10)))
' \"$1\"";
    let told = files::sh(script, &[&path])?;
    ensure!(told == "1 1 0\n1\n", "{told}");
    cluster.finish([mount])
}
