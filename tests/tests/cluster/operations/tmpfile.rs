//! open(2) with O_TMPFILE: not offered, and said so; programs fall back to a file with a name.

use anyhow::{Result, ensure};
use dfs_tests::files;
use rustix::{fs::OFlags, io::Errno};

use super::{mounted, open, refused};

#[test]
fn it_is_refused_and_programs_fall_back() -> Result<()> {
    let (cluster, mount) = mounted()?;
    refused(Errno::OPNOTSUPP, open(mount.path(), OFlags::TMPFILE | OFlags::RDWR))?;
    let script = "python3 -c '
import sys, tempfile
with tempfile.TemporaryFile(dir=sys.argv[1]) as file:
    file.write(b\"kept\")
    file.seek(0)
    print(file.read())
' \"$1\"";
    ensure!(files::sh(script, &[mount.path()])?.trim() == "b'kept'");
    ensure!(files::names(mount.path())?.is_empty(), "nothing is left");
    cluster.finish([mount])
}
