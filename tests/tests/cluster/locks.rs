//! Locks between mounts: flock and the record locks of fcntl.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dfs_tests::{Cluster, Mount, files, process, wait};

/// A waiting lock is granted within this time after it became free.
const SOON: Duration = Duration::from_secs(3);

fn done(outcome: i32) -> io::Result<()> {
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: flock(2) on a descriptor that is open.
    done(unsafe { libc::flock(file.as_raw_fd(), operation) })
}

/// The record lock of some bytes; `command` is `F_SETLK`, `F_SETLKW` or `F_GETLK`. Gives what `F_GETLK` found.
fn record(file: &File, command: i32, kind: i32, start: i64, length: i64) -> io::Result<i16> {
    let mut lock = libc::flock {
        l_type: i16::try_from(kind).expect("small"),
        l_whence: 0,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: the pointer is to a struct flock that lives across the call.
    done(unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) })?;
    Ok(lock.l_type)
}

fn open(mount: &Mount) -> Result<File> {
    Ok(File::options().read(true).write(true).open(mount.join("f"))?)
}

/// Two mounts, and the file that both have open.
fn two(cluster: &mut Cluster) -> Result<(Mount, Mount)> {
    let (one, two) = (cluster.mount()?, cluster.mount()?);
    files::write(&one.join("f"), &[0; 100])?;
    wait::until("the file is seen", Duration::from_secs(5), || two.join("f").exists())?;
    Ok((one, two))
}

const BUSY: i32 = libc::EWOULDBLOCK;

#[test]
fn flock_holds_between_mounts() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, two) = two(&mut cluster)?;
    let (a, b, c) = (open(&one)?, open(&two)?, open(&two)?);
    flock(&a, libc::LOCK_EX)?;
    ensure!(files::errno(flock(&b, libc::LOCK_SH | libc::LOCK_NB)) == BUSY);
    record(&b, libc::F_SETLK, libc::F_WRLCK, 0, 0)?;
    flock(&a, libc::LOCK_SH)?;
    flock(&b, libc::LOCK_SH | libc::LOCK_NB)?;
    ensure!(files::errno(flock(&c, libc::LOCK_EX | libc::LOCK_NB)) == BUSY);
    // Both want more and wait: one gives its own up, so neither waits for ever.
    thread::scope(|scope| -> Result<()> {
        let other = scope.spawn(|| flock(&b, libc::LOCK_EX).and_then(|()| flock(&b, libc::LOCK_UN)));
        flock(&a, libc::LOCK_EX)?;
        flock(&a, libc::LOCK_UN)?;
        Ok(other.join().expect("does not panic")?)
    })?;
    // The end of a program is the end of its lock.
    flock(&a, libc::LOCK_EX)?;
    let waiting = thread::spawn(move || flock(&c, libc::LOCK_EX).map(|()| Instant::now()));
    let closed = Instant::now();
    drop(a);
    let granted = waiting.join().expect("does not panic")?;
    ensure!(granted.saturating_duration_since(closed) < SOON);
    drop(b);
    cluster.finish([one, two])
}

#[test]
fn record_locks_hold_between_mounts() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, two) = two(&mut cluster)?;
    let (a, b) = (open(&one)?, open(&two)?);
    record(&a, libc::F_SETLK, libc::F_WRLCK, 10, 20)?;
    record(&b, libc::F_SETLK, libc::F_WRLCK, 0, 10)?;
    record(&b, libc::F_SETLK, libc::F_WRLCK, 30, 0)?;
    ensure!(files::errno(record(&b, libc::F_SETLK, libc::F_RDLCK, 29, 1)) == libc::EAGAIN);
    ensure!(record(&b, libc::F_GETLK, libc::F_RDLCK, 15, 1)? == i16::try_from(libc::F_WRLCK)?);
    flock(&b, libc::LOCK_EX | libc::LOCK_NB).context("flock and fcntl do not see each other")?;
    record(&a, libc::F_SETLK, libc::F_UNLCK, 15, 5)?;
    record(&b, libc::F_SETLK, libc::F_WRLCK, 15, 5)?;
    ensure!(files::errno(record(&b, libc::F_SETLK, libc::F_RDLCK, 20, 1)) == libc::EAGAIN);
    // Any close by the process gives all of its record locks on the file up.
    let again = open(&one)?;
    files::close(again)?;
    record(&b, libc::F_SETLKW, libc::F_WRLCK, 0, 0)?;
    ensure!(files::errno(record(&a, libc::F_SETLK, libc::F_RDLCK, 99, 1)) == libc::EAGAIN);
    drop(b);
    record(&a, libc::F_SETLKW, libc::F_WRLCK, 0, 0)?;
    drop(a);
    cluster.finish([one, two])
}

#[test]
fn what_was_written_under_a_lock_is_there_for_the_next() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, two) = two(&mut cluster)?;
    let count = |mount: &Mount| -> Result<()> {
        for _ in 0..15 {
            let guard = open(mount)?;
            flock(&guard, libc::LOCK_EX)?;
            let path = mount.join("count");
            let old: u32 = std::fs::read_to_string(&path).unwrap_or_default().trim().parse().unwrap_or(0);
            let mut file = File::create(&path)?;
            file.write_all((old + 1).to_string().as_bytes())?;
            files::close(file)?;
            flock(&guard, libc::LOCK_UN)?;
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let other = scope.spawn(|| count(&two));
        count(&one)?;
        other.join().expect("does not panic")
    })?;
    wait::until("both have counted", SOON, || {
        std::fs::read_to_string(one.join("count")).is_ok_and(|text| text == "30")
    })?;
    cluster.finish([one, two])
}

#[test]
fn locks_of_a_mount_that_died_become_free() -> Result<()> {
    let mut cluster = Cluster::builder().meta_flag("--session-lease", "2s").start()?;
    let (mut dying, other) = two(&mut cluster)?;
    let (a, b) = (open(&dying)?, open(&other)?);
    flock(&a, libc::LOCK_EX)?;
    ensure!(files::errno(flock(&b, libc::LOCK_EX | libc::LOCK_NB)) == BUSY);
    dying.kill()?;
    let begun = Instant::now();
    flock(&b, libc::LOCK_EX)?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop((a, b));
    cluster.finish([other])
}

#[test]
fn locks_outlive_the_leader() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().meta_flag("--session-lease", "6s").start()?;
    let (one, two) = two(&mut cluster)?;
    let (a, b) = (open(&one)?, open(&two)?);
    flock(&a, libc::LOCK_EX)?;
    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    wait::until("another leader", Duration::from_secs(10), || cluster.leader().is_ok_and(|new| new != leader))?;
    // It may take a renewal of each client until locks are granted again; this one must not be.
    ensure!(files::errno(flock(&b, libc::LOCK_EX | libc::LOCK_NB)) == BUSY);
    let waiting = thread::spawn(move || flock(&b, libc::LOCK_EX).map(|()| b));
    flock(&a, libc::LOCK_UN)?;
    let b = waiting.join().expect("does not panic")?;
    ensure!(files::errno(flock(&a, libc::LOCK_SH | libc::LOCK_NB)) == BUSY);
    cluster.start(&leader)?;
    cluster.wait_alive(3)?;
    drop((a, b));
    cluster.finish([one, two])
}

/// `flock FILE` of util-linux, waiting.
fn waiting(mount: &Mount) -> Result<Child> {
    let mut flock = Command::new("flock");
    Ok(flock.arg(mount.join("f")).arg("true").stdin(Stdio::null()).spawn()?)
}

#[test]
fn who_waits_for_a_lock_can_be_interrupted() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, two) = two(&mut cluster)?;
    let (a, b) = (open(&one)?, open(&two)?);
    flock(&a, libc::LOCK_EX)?;
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL] {
        let mut child = waiting(&two)?;
        wait::until("it waits", Duration::from_secs(5), || {
            std::fs::read_to_string(format!("/proc/{}/wchan", child.id()))
                .is_ok_and(|place| place.contains("fuse") || place.contains("request"))
                || std::fs::read_to_string(format!("/proc/{}/syscall", child.id()))
                    .is_ok_and(|call| call.starts_with(&format!("{} ", libc::SYS_flock)))
        })?;
        process::send(child.id(), signal)?;
        wait::until("it ends", Duration::from_secs(2), || child.try_wait().is_ok_and(|status| status.is_some()))?;
    }
    // Nobody who was interrupted has the lock now.
    flock(&a, libc::LOCK_UN)?;
    flock(&b, libc::LOCK_EX)?;
    drop((a, b));
    cluster.finish([one, two])
}

#[test]
fn local_locks_do_not_leave_the_mount() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, two) = two(&mut cluster)?;
    let private = cluster.mount_with("local_locks")?;
    let (a, b, c) = (open(&one)?, open(&private)?, open(&private)?);
    flock(&a, libc::LOCK_EX)?;
    flock(&b, libc::LOCK_EX | libc::LOCK_NB)?;
    ensure!(files::errno(flock(&c, libc::LOCK_EX | libc::LOCK_NB)) == BUSY);
    drop((a, b, c));
    cluster.finish([one, two, private])
}
