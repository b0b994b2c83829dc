//! Servers stop answering while programs are in the middle of each kind of operation: nothing hangs, nothing becomes
//! unkillable, and everything works again afterwards without a new mount.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use dfs_tests::{
    Cluster, Mount, cluster,
    files::{self, CHUNK},
    process, wait,
};
use serde_json::Value;

/// Deadline of the mounts here: longer than an election, short for a test.
const TIMEOUT: Duration = Duration::from_secs(3);
/// What a program may take that does a few operations in a row, each of which may take four times the deadline.
const BOUND: Duration = Duration::from_secs(45);
/// What a person takes for at once.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Programs that do one thing with the mount in `$D` when they are told to. What is in front of `|` is done before.
/// Each is one process, not a shell and its child: the child of a killed shell would live on and go on writing.
const PROGRAMS: [(&str, &str); 10] = [
    ("read", "exec 3<$D/big | exec cat <&3 >/dev/null"),
    ("write and close", "exec 3>$D/half | exec head -c 9000000 /dev/zero >&3"),
    ("append", ": | echo more >>$D/small"),
    ("list", ": | exec ls $D/dir"),
    ("stat", ": | exec stat $D/dir/inner/f"),
    ("create", ": | echo x >$D/new"),
    ("make a directory", ": | exec mkdir $D/newdir"),
    ("rename", ": | exec mv $D/from $D/to"),
    ("remove", ": | exec rm -f $D/gone"),
    ("df", ": | exec df $D"),
];

/// A program that waits for its word, and its name.
struct Waiting {
    name: &'static str,
    child: Child,
}

impl Waiting {
    fn start(name: &'static str, script: &str, dir: &Path) -> Result<Self> {
        let (before, then) = script.split_once(" | ").context("two parts")?;
        let script = format!("{before}; echo ready; read go; {then}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).env("D", dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = shell.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "{name}: {line:?}");
        Ok(Self { name, child })
    }

    fn go(&mut self) -> Result<()> {
        Ok(self.child.stdin.take().context("told once")?.write_all(b"go\n")?)
    }

    fn ends_within(&mut self, limit: Duration) -> Result<()> {
        let (name, child) = (self.name, &mut self.child);
        wait::until(&format!("the end of {name}"), limit, || child.try_wait().is_ok_and(|status| status.is_some()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn prepare(mount: &Mount) -> Result<()> {
    fs::create_dir_all(mount.join("dir/inner"))?;
    for name in ["small", "from", "gone", "dir/inner/f"] {
        files::write(&mount.join(name), b"x")?;
    }
    files::write(&mount.join("big"), &files::noise(1, 2 * CHUNK + 5))?;
    Ok(())
}

/// A mount whose caches are empty, on a tree with something for each of the programs.
fn mount(cluster: &mut Cluster) -> Result<Mount> {
    let mut mount = cluster.mount_with(&format!("timeout={}s,cache=none", TIMEOUT.as_secs()))?;
    prepare(&mount)?;
    mount.remount()?;
    Ok(mount)
}

fn programs(mount: &Mount) -> Result<Vec<Waiting>> {
    PROGRAMS.iter().map(|(name, script)| Waiting::start(name, script, mount.path())).collect()
}

/// Everything works: also what a program was interrupted in.
fn works(mount: &Mount) -> Result<()> {
    wait::until("the mount works again", Duration::from_secs(30), || files::write(&mount.join("again"), b"y").is_ok())?;
    ensure!(fs::read(mount.join("big"))? == files::noise(1, 2 * CHUNK + 5));
    fs::write(mount.join("half"), b"whole")?;
    ensure!(fs::read(mount.join("half"))? == b"whole");
    let _ = fs::remove_dir(mount.join("newdir"));
    prepare(mount)
}

/// What `dfsctl mount status` says about a mount, asked in bounded time.
fn status(mount: &Mount) -> Result<Value> {
    let path = mount.path().display().to_string();
    let begun = Instant::now();
    let output = cluster::dfsctl(&["mount", "status", "--json", &path])?;
    ensure!(begun.elapsed() < Duration::from_secs(8), "status took {:?}", begun.elapsed());
    let all: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok(all[0].clone())
}

fn signal(cluster: &mut Cluster, role: &str, signal: i32) -> Result<()> {
    cluster.nodes().filter(|node| node.name().starts_with(role)).try_for_each(|node| node.signal(signal))
}

/// With every server of `role` (all of them: "") paused or killed: all programs end by their deadlines, then all works again.
fn all_end(role: &str, is_killed: bool) -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = mount(&mut cluster)?;
    let mut programs = programs(&mount)?;
    if is_killed {
        cluster.nodes().filter(|node| node.name().starts_with(role)).try_for_each(|node| node.kill())?;
    } else {
        signal(&mut cluster, role, libc::SIGSTOP)?;
    }
    programs.iter_mut().try_for_each(Waiting::go)?;
    programs.iter_mut().try_for_each(|program| program.ends_within(BOUND))?;
    if is_killed {
        cluster.start_all()?
    } else {
        signal(&mut cluster, role, libc::SIGCONT)?
    }
    works(&mount)?;
    cluster.wait_alive(3)?;
    cluster.finish([mount])
}

#[test]
fn operations_end_while_metadata_is_paused() -> Result<()> {
    all_end("meta", false)
}

#[test]
fn operations_end_while_metadata_is_killed() -> Result<()> {
    all_end("meta", true)
}

#[test]
fn operations_end_while_storage_is_paused() -> Result<()> {
    all_end("storage", false)
}

#[test]
fn operations_end_while_everything_is_killed() -> Result<()> {
    all_end("", true)
}

#[test]
fn operations_end_while_storage_is_killed() -> Result<()> {
    all_end("storage", true)
}

/// Whatever a program waits for, it can be killed at once.
fn all_can_be_killed(role: &str) -> Result<()> {
    let mut cluster = Cluster::builder().faults().meta_flag("--session-lease", "60s").start()?;
    let mut mount = cluster.mount_with("timeout=60s,cache=none")?;
    prepare(&mount)?;
    mount.remount()?;
    let mut programs = programs(&mount)?;
    signal(&mut cluster, role, libc::SIGSTOP)?;
    programs.iter_mut().try_for_each(Waiting::go)?;
    // With storage away only what moves bytes waits; df does not wait for long.
    let wanted = if role == "storage" { 2 } else { PROGRAMS.len() as u64 - 1 };
    wait::until("the programs wait", Duration::from_secs(10), || {
        status(&mount).is_ok_and(|status| status["report"]["operations_waiting"].as_u64() >= Some(wanted))
    })?;
    for program in &programs {
        process::send(program.child.id(), libc::SIGKILL)?;
    }
    programs.iter_mut().try_for_each(|program| program.ends_within(AT_ONCE))?;
    signal(&mut cluster, role, libc::SIGCONT)?;
    works(&mount)?;
    cluster.wait_alive(3)?;
    cluster.finish([mount])
}

#[test]
fn waiting_programs_can_be_killed_while_metadata_is_away() -> Result<()> {
    all_can_be_killed("meta")
}

#[test]
fn waiting_programs_can_be_killed_while_storage_is_away() -> Result<()> {
    all_can_be_killed("storage")
}

#[test]
fn df_ls_of_the_parent_and_umount_never_hang() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mount = mount(&mut cluster)?;
    let path = mount.path().display().to_string();
    let parent = cluster.dir().display().to_string();
    files::run("df", &[&path])?;
    signal(&mut cluster, "", libc::SIGSTOP)?;
    for args in [&["df", path.as_str()][..], &["ls", "-la", &parent], &["umount", &path]] {
        let begun = Instant::now();
        let output = cluster::run(Path::new("timeout"), &[&["10"], args].concat())?;
        ensure!(output.code == 0, "{args:?}: {output:?}");
        ensure!(begun.elapsed() < Duration::from_secs(6), "{args:?} took {:?}", begun.elapsed());
    }
    signal(&mut cluster, "", libc::SIGCONT)?;
    cluster.wait_alive(3)?;
    drop(mount);
    cluster.finish([])
}

#[test]
fn the_status_socket_answers_and_abort_ends_what_waits() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mut mount = cluster.mount_with("timeout=60s,cache=none,mem=64M")?;
    prepare(&mount)?;
    mount.remount()?;
    let now = status(&mount)?;
    ensure!(now["state"] == "serving" && now["pid"] == mount.process().pid().context("it runs")?, "{now}");
    ensure!(now["report"]["memory_max_bytes"] == 64 << 20 && now["report"]["operations_waiting"] == 0, "{now}");
    signal(&mut cluster, "", libc::SIGSTOP)?;
    let mut list = Waiting::start("list", ": | exec ls $D/dir", mount.path())?;
    list.go()?;
    wait::until("the operation is told", Duration::from_secs(10), || {
        status(&mount)
            .is_ok_and(|now| now["state"] == "cluster-away" && now["report"]["operations"][0]["age_ms"].is_u64())
    })?;
    let path = mount.path().display().to_string();
    let aborted = cluster::dfsctl(&["mount", "abort", &path])?;
    ensure!(aborted.code == 0 && aborted.stdout.contains("1 operation"), "{aborted:?}");
    // It may ask once more before it gives up.
    wait::until("the program ends", Duration::from_secs(5), || {
        cluster::dfsctl(&["mount", "abort", &path]).is_ok()
            && list.child.try_wait().is_ok_and(|status| status.is_some())
    })?;
    let now = status(&mount)?;
    ensure!(now["report"]["last_error"]["text"].as_str().is_some_and(|text| text.contains("administrator")), "{now}");
    signal(&mut cluster, "", libc::SIGCONT)?;
    works(&mount)?;
    let listed = cluster::dfsctl(&["mount", "list"])?;
    ensure!(listed.code == 0 && listed.stdout.contains(&path), "{listed:?}");
    cluster.finish([mount])
}

#[test]
fn a_mount_whose_process_hangs_or_died_is_told_and_detached() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let path = mount.path().display().to_string();
    mount.process().signal(libc::SIGSTOP)?;
    let hung = cluster::dfsctl(&["mount", "status", &path])?;
    ensure!(hung.code == 5 && hung.stderr.contains("kill -9"), "{hung:?}");
    ensure!(cluster::dfsctl(&["mount", "abort", &path])?.code == 1);
    let detached = cluster::dfsctl(&["mount", "abort", "--detach", &path])?;
    ensure!(detached.code == 0, "{detached:?}");
    let gone = cluster::dfsctl(&["mount", "status", &path])?;
    ensure!(gone.code == 3 && gone.stderr.contains("no mount of dfs"), "{gone:?}");
    mount.process().signal(libc::SIGCONT)?;
    mount.kill()?;
    mount.start_again()?;
    // The mount answers a moment before its socket does.
    wait::until("the new process serves", Duration::from_secs(5), || {
        status(&mount).is_ok_and(|now| now["state"] == "serving")
    })?;
    let pid = mount.process().pid().context("it runs")?;
    process::send(pid, libc::SIGKILL)?;
    let mut last = String::new();
    let told = wait::until("its death is told", Duration::from_secs(5), || {
        last =
            cluster::dfsctl(&["mount", "status", &path]).map_or_else(|error| error.to_string(), |output| output.stderr);
        last.contains("has ended")
    });
    told.with_context(|| last)?;
    mount.kill()?;
    cluster.finish([])
}
