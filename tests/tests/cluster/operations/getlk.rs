//! fcntl(2) with F_GETLK: who holds a lock that is in the way.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;
use std::io::{BufRead, BufReader};

use super::{file, mounted, open};

/// Holds locks as `sqlite3` and others do until its standard input ends; says so when it has them.
const HOLDER: &str = r"
import fcntl, struct, sys
file = open(sys.argv[1], 'r+')
fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)
fcntl.lockf(file, fcntl.LOCK_SH, 50, 200)
print('held', flush=True)
sys.stdin.read()
";

#[test]
fn the_holder_and_its_range_are_told() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, &[0; 1000])?;
    let mut holder = Command::new("python3")
        .args(["-c", HOLDER])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("python3")?;
    let mut line = String::new();
    BufReader::new(holder.stdout.take().context("piped")?).read_line(&mut line)?;
    ensure!(line == "held\n", "{line:?}");
    let both = open(&path, OFlags::RDWR)?;
    let ask = |kind: i32, start: i64, length: i64| -> Result<libc::flock> {
        let mut lock = libc::flock {
            l_type: i16::try_from(kind)?,
            l_whence: i16::try_from(libc::SEEK_SET)?,
            l_start: start,
            l_len: length,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open, and F_GETLK reads and writes the structure that the pointer names.
        let code = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&both), libc::F_GETLK, &raw mut lock) };
        ensure!(code == 0, "{}", std::io::Error::last_os_error());
        Ok(lock)
    };
    let found = ask(libc::F_WRLCK, 0, 0)?;
    ensure!((i32::from(found.l_type), found.l_start, found.l_len) == (libc::F_WRLCK, 100, 10), "{found:?}");
    ensure!(u32::try_from(found.l_pid)? == holder.id(), "{found:?} of {}", holder.id());
    let found = ask(libc::F_WRLCK, 240, 1)?;
    ensure!((i32::from(found.l_type), found.l_start, found.l_len) == (libc::F_RDLCK, 200, 50), "{found:?}");
    // Readers do not disturb each other, and elsewhere nothing is locked.
    for (kind, start, length) in
        [(libc::F_RDLCK, 200, 50), (libc::F_WRLCK, 0, 100), (libc::F_WRLCK, 250, 0), (libc::F_WRLCK, 110, 90)]
    {
        ensure!(i32::from(ask(kind, start, length)?.l_type) == libc::F_UNLCK, "{kind} at {start}");
    }
    drop(holder.stdin.take());
    ensure!(holder.wait()?.success());
    ensure!(i32::from(ask(libc::F_WRLCK, 0, 0)?.l_type) == libc::F_UNLCK, "free when the holder has ended");
    cluster.finish([mount])
}
