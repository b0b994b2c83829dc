//! Open files: what closing, dying, duplicating and replacing do to them.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{fd::AsRawFd, unix::process::CommandExt as _},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster,
    files::{self, CHUNK},
    wait,
};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_program_that_starts_another_while_it_writes_goes_on() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    files::write(&mount.join("f"), b"")?;
    for turn in 0..3 {
        // The child's copy of the descriptor is closed in the middle of its execve.
        let mut file = fs::OpenOptions::new().append(true).open(mount.join("f"))?;
        file.write_all(b"x")?;
        ensure!(Command::new("true").process_group(0).status()?.success(), "turn {turn}");
        file.write_all(b"y")?;
        files::close(file)?;
    }
    ensure!(fs::read(mount.join("f"))? == b"xyxyxy");
    cluster.finish([mount])
}

#[test]
fn shell_redirects() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let script = "cd \"$1\" && echo one | sh -c 'cat > cat.txt' && echo first > f && echo second >> f && \
                  { echo a; (echo b); echo c; } > group && echo gone > g && : > g && \
                  ( echo sub; sh -c 'echo nested'; echo end ) > sub && printf x > ow && echo y > ow";
    files::sh(script, &[mount.path()])?;
    mount.remount()?;
    for (name, want) in [
        ("cat.txt", "one\n"),
        ("f", "first\nsecond\n"),
        ("group", "a\nb\nc\n"),
        ("g", ""),
        ("sub", "sub\nnested\nend\n"),
        ("ow", "y\n"),
    ] {
        let got = fs::read_to_string(mount.join(name))?;
        ensure!(got == want, "{name}: {got:?}");
    }
    cluster.finish([mount])
}

#[test]
fn close_of_a_duplicate_publishes_and_writes_go_on() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let other = cluster.mount()?;
    let path = mount.join("f");
    let mut file = File::create(&path)?;
    file.write_all(b"first ")?;
    files::close(file.try_clone()?)?;
    ensure!(fs::read(other.join("f"))? == b"first ", "the close of a duplicate is a close");
    file.write_all(b"second")?;
    files::close(file)?;
    wait::until("the second close is visible", SOON, || fs::read(other.join("f")).is_ok_and(|b| b == b"first second"))?;
    cluster.finish([mount, other])
}

#[test]
fn a_forked_child_that_exits_does_not_end_the_parents_file() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let script = "exec 3>\"$1/f\"; echo before >&3; (exit 0); sh -c 'echo child >&3; exit 3'; echo after >&3";
    files::sh(script, &[mount.path()])?;
    mount.remount()?;
    ensure!(fs::read_to_string(mount.join("f"))? == "before\nchild\nafter\n");
    cluster.finish([mount])
}

#[test]
fn fsync_publishes() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let other = cluster.mount()?;
    let mut file = File::create(mount.join("f"))?;
    let bytes = files::noise(1, CHUNK + 10);
    file.write_all(&bytes)?;
    file.sync_all()?;
    ensure!(fs::read(other.join("f"))? == bytes);
    // A crash of the mount now takes nothing back that fsync promised.
    mount.kill()?;
    drop(file);
    ensure!(fs::read(other.join("f"))? == bytes);
    cluster.finish([other])
}

#[test]
fn exit_without_close_publishes() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    // `exec cat` ends without closing standard output itself; the kernel closes it at exit.
    files::sh(
        "printf 'left open' | (exec cat > \"$1/f\"); sh -c 'echo code > \"$1/g\"; exit 3' sh \"$1\" || true",
        &[mount.path()],
    )?;
    mount.remount()?;
    ensure!(fs::read_to_string(mount.join("f"))? == "left open");
    ensure!(fs::read_to_string(mount.join("g"))? == "code\n");
    cluster.finish([mount])
}

#[test]
fn a_writer_killed_by_a_signal_publishes_nothing() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    files::write(&mount.join("old"), b"whole old content")?;
    for (name, signal) in [("new", libc::SIGKILL), ("old", libc::SIGKILL), ("terminated", libc::SIGTERM)] {
        let path = mount.join(name);
        // cat takes what it gets and waits for more, with the file open and half written.
        let mut writer =
            Command::new("sh").args(["-c", "exec cat > \"$1\"", "sh"]).arg(&path).stdin(Stdio::piped()).spawn()?;
        let mut input = writer.stdin.take().context("stdin")?;
        input.write_all(&files::noise(1, CHUNK + 100_000))?;
        let pid = writer.id();
        wait::until("cat has written it all", SOON, || written(pid) >= CHUNK as u64 + 100_000)?;
        dfs_tests::process::send(pid, signal)?;
        writer.wait()?;
        drop(input);
    }
    // The release of the file comes after the death of the process.
    wait::until("no new name appears", SOON, || files::names(mount.path()).is_ok_and(|names| names == ["old"]))?;
    ensure!(fs::read(mount.join("old"))? == b"whole old content");
    mount.remount()?;
    ensure!(files::names(mount.path())? == ["old"]);
    ensure!(fs::read(mount.join("old"))? == b"whole old content");
    cluster.finish([mount])
}

/// Bytes that a process has handed to write(2) so far.
fn written(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0)
}

#[test]
fn a_reader_keeps_its_version_when_the_path_is_replaced_or_removed() -> Result<()> {
    let mut cluster = Cluster::builder().meta_flag("--gc-grace", "1s").meta_flag("--trash-retention", "0").start()?;
    let mount = cluster.mount()?;
    let writer = cluster.mount()?;
    let old = files::noise(1, 3 * CHUNK);
    for name in ["unlinked", "replaced", "truncated"] {
        files::write(&mount.join(name), &old)?;
    }
    let mut open: Vec<_> = ["unlinked", "replaced", "truncated"]
        .map(|name| File::open(mount.join(name)))
        .into_iter()
        .collect::<Result<_, _>>()?;
    let mut start = [0; 1000];
    for file in &mut open {
        file.read_exact(&mut start)?;
    }
    files::write(&writer.join("tmp"), b"new")?;
    fs::remove_file(writer.join("unlinked"))?;
    fs::rename(writer.join("tmp"), writer.join("replaced"))?;
    files::write(&writer.join("truncated"), b"short")?;
    for (which, mut file) in open.into_iter().enumerate() {
        let mut rest = Vec::new();
        file.read_to_end(&mut rest)?;
        ensure!(rest == old[1000..], "reader {which} goes on with its version");
    }
    ensure!(fs::read(writer.join("replaced"))? == b"new");
    ensure!(fs::read(writer.join("truncated"))? == b"short");
    cluster.finish([mount, writer])
}

#[test]
fn unlink_and_rename_over_an_open_file_on_one_mount() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let old = files::noise(5, CHUNK + 5);
    files::write(&mount.join("a"), &old)?;
    files::write(&mount.join("b"), &old)?;
    let (mut a, mut b) = (File::open(mount.join("a"))?, File::open(mount.join("b"))?);
    fs::remove_file(mount.join("a"))?;
    files::write(&mount.join("c"), b"other")?;
    fs::rename(mount.join("c"), mount.join("b"))?;
    let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
    a.read_to_end(&mut from_a)?;
    b.read_to_end(&mut from_b)?;
    ensure!(from_a == old && from_b == old);
    ensure!(fs::read(mount.join("b"))? == b"other");
    ensure!(files::errno(fs::metadata(mount.join("a"))) == libc::ENOENT);
    drop((a, b));
    cluster.finish([mount])
}

#[test]
fn exclusive_create_on_two_mounts_has_one_winner() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mounts = [cluster.mount()?, cluster.mount()?];
    for round in 0..50 {
        let wins = AtomicUsize::new(0);
        let name = format!("lock-{round}");
        thread::scope(|scope| {
            for mount in &mounts {
                for _ in 0..2 {
                    scope.spawn(|| match File::create_new(mount.join(&name)) {
                        Ok(_) => {
                            wins.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "{error}"),
                    });
                }
            }
        });
        ensure!(wins.load(Ordering::Relaxed) == 1, "round {round}: {wins:?} winners");
    }
    cluster.finish(mounts)
}

#[test]
fn an_error_of_a_write_handle_is_repeated() -> Result<()> {
    let mut cluster = Cluster::builder().faults().expect_log("no space").start()?;
    let mount = cluster.mount_with("timeout=3s")?;
    let mut file = File::create(mount.join("f"))?;
    file.write_all(&files::noise(1, 100_000))?;
    for i in 1..=3 {
        cluster.kill(&format!("storage-{i}"))?;
    }
    let first = files::errno(file.sync_all());
    ensure!(first == libc::EIO || first == libc::ENOSPC, "errno {first}");
    cluster.start_all()?;
    // The servers are back, but the program was told that its bytes are lost: it must not hear of success now.
    ensure!(files::errno(file.write(b"more")) == first);
    ensure!(files::errno(file.sync_all()) == first);
    // SAFETY: the descriptor is open; its number is used again by nobody in between.
    let closed = unsafe { libc::close(libc::dup(file.as_raw_fd())) };
    ensure!(closed == -1, "the close of a failed handle fails");
    ensure!(files::close(file).is_err());
    wait::until("nothing half visible", SOON, || fs::metadata(mount.join("f")).is_err())?;
    files::write(&mount.join("f"), b"again")?;
    ensure!(fs::read(mount.join("f"))? == b"again");
    cluster.finish([mount])
}
