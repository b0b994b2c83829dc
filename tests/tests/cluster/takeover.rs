//! The process that serves a mount dies, or is replaced by another version: the mount goes on, with everything that is open.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use dfs_tests::{
    Background, Cluster, background, bins,
    files::{self, errno, noise},
    process, program, wait,
};

/// What a log says about a server that a test has killed, and about what was lost with it.
const DIED: [&str; 4] = [
    "the process that served the mount died",
    "was lost when the process that served the mount ended",
    "what was written to a file and not published is lost",
    "the process that was asked before has died",
];

fn cluster() -> Result<Cluster> {
    DIED.iter().fold(Cluster::builder(), |builder, words| builder.expect_log(words)).start()
}

fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: flock(2) on a descriptor that is open.
    if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes, fills, renames, reads and removes things until told to stop; gives how often, and what failed.
fn busy(dir: &Path, me: usize, stop: &AtomicBool, rounds: &AtomicU64) -> Vec<(&'static str, io::Error)> {
    let mut errors = Vec::new();
    let (one, two, sub) = (dir.join(format!("a{me}")), dir.join(format!("b{me}")), dir.join(format!("d{me}")));
    while !stop.load(Ordering::Relaxed) {
        let content = noise(rounds.load(Ordering::Relaxed), 10_000);
        let steps: [(&'static str, &dyn Fn() -> io::Result<()>); 6] = [
            ("write", &|| files::write(&one, &content)),
            ("rename", &|| fs::rename(&one, &two)),
            ("read", &|| (fs::read(&two)? == content).then_some(()).ok_or_else(|| io::Error::other("other bytes"))),
            ("remove", &|| fs::remove_file(&two)),
            ("mkdir", &|| fs::create_dir(&sub)),
            ("rmdir", &|| fs::remove_dir(&sub)),
        ];
        for (name, step) in steps {
            if let Err(error) = step() {
                errors.push((name, error));
                // Whether it was done is not known: begin anew.
                let _ = (fs::remove_file(&one), fs::remove_file(&two), fs::remove_dir(&sub));
                break;
            }
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    errors
}

/// Runs busy programs on the mount while `event` happens to it; what failed.
fn during(mount: &Background, event: impl FnOnce() -> Result<()>) -> Result<Vec<(&'static str, io::Error)>> {
    const PROGRAMS: usize = 4;
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (stop, rounds) = (&stop, &rounds);
        let all: Vec<_> = (0..PROGRAMS).map(|me| scope.spawn(move || busy(mount.path(), me, stop, rounds))).collect();
        let until = |more: u64| {
            let goal = rounds.load(Ordering::Relaxed) + more;
            wait::until("programs go on", std::time::Duration::from_secs(30), || rounds.load(Ordering::Relaxed) >= goal)
        };
        let outcome = until(8).and_then(|()| event()).and_then(|()| until(16));
        stop.store(true, Ordering::Relaxed);
        let errors = all.into_iter().flat_map(|one| one.join().unwrap_or_default()).collect();
        outcome.map(|()| errors)
    })
}

#[test]
fn a_mount_whose_process_is_killed_goes_on() -> Result<()> {
    let cluster = cluster()?;
    let mount = Background::start(&cluster, "m", "")?;
    files::write(&mount.join("before"), &noise(1, 5_000_000))?;
    for round in 1..=3_u64 {
        let errors = during(&mount, || {
            let before = mount.kill_server()?;
            let killed = Instant::now();
            // What the kernel does not know is answered by the next process.
            ensure!(errno(fs::metadata(mount.join(format!("absent-{round}")))) == libc::ENOENT);
            eprintln!("answered {:?} after the kill", killed.elapsed());
            mount.until_served_by_another(before).map(drop)
        })?;
        eprintln!("round {round}: {errors:?}");
        // One operation a program was in flight at most. Of what the dead process had sent, something may be done a moment later,
        // after its program has cleared up.
        let is = |error: &io::Error, errno| error.raw_os_error() == Some(errno);
        ensure!(errors.iter().all(|(_, error)| is(error, libc::EIO) || is(error, libc::EEXIST)), "{errors:?}");
        ensure!(errors.iter().filter(|(_, error)| is(error, libc::EIO)).count() <= 4, "{errors:?}");
        ensure!(mount.report()?["predecessors"] == round, "{}", mount.report()?);
    }
    ensure!(fs::read(mount.join("before"))? == noise(1, 5_000_000));
    ensure!(files::names(mount.path())? == ["before"], "{:?}", files::names(mount.path())?);
    mount.unmount()?;
    cluster.finish([])
}

#[test]
fn open_files_survive_the_process_but_for_what_was_not_published() -> Result<()> {
    let mut cluster = cluster()?;
    let mount = Background::start(&cluster, "m", "")?;
    let other = cluster.mount()?;
    let old = noise(1, 6_000_000);
    for name in ["replaced", "removed", "kept"] {
        files::write(&mount.join(name), &old)?;
    }
    let mut readers = ["replaced", "removed", "kept"].map(|name| File::open(mount.join(name)).expect("it is there"));
    for reader in &mut readers {
        let mut head = vec![0; 1000];
        reader.read_exact(&mut head)?;
        ensure!(head == old[..1000]);
    }
    files::write(&mount.join("new"), &noise(2, 100))?;
    fs::rename(mount.join("new"), mount.join("replaced"))?;
    fs::remove_file(mount.join("removed"))?;
    // Asked before anything is written: a program that is started closes what it inherits, and closing publishes.
    let before = mount.server()?;
    let mut append = OpenOptions::new().append(true).create(true).open(mount.join("log"))?;
    append.write_all(b"one\n")?;
    append.sync_all()?;
    let both = || OpenOptions::new().read(true).write(true).clone();
    let mut lost = both().create_new(true).open(mount.join("lost"))?;
    lost.write_all(&noise(3, 100_000))?;
    let mut changed = both().open(mount.join("kept"))?;
    changed.write_all(b"not synced")?;
    process::send(before, libc::SIGKILL)?;
    for (name, reader) in ["replaced", "removed", "kept"].iter().zip(&mut readers) {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).with_context(|| (*name).to_owned())?;
        ensure!(rest == old[1000..], "{name}: {} bytes", rest.len());
        ensure!(reader.metadata()?.size() == old.len() as u64, "{name}");
    }
    ensure!(readers[1].metadata()?.nlink() == 0);
    append.write_all(b"two\n")?;
    files::close(append)?;
    for file in [lost, changed] {
        let mut file = file;
        ensure!(errno(file.write_all(b"more")) == libc::EIO);
        ensure!(errno(file.sync_all()) == libc::EIO);
        ensure!(errno(file.seek(SeekFrom::Start(0)).and_then(|_| file.read(&mut [0; 10]))) == libc::EIO);
        ensure!(errno(files::close(file)) == libc::EIO, "close must tell");
    }
    ensure!(fs::read(mount.join("log"))? == b"one\ntwo\n");
    ensure!(fs::read(mount.join("kept"))? == old);
    for dir in [mount.path(), other.path()] {
        let names: Vec<_> = files::names(dir)?.into_iter().map(|name| name.to_string_lossy().into_owned()).collect();
        ensure!(names == ["kept", "log", "replaced"], "{names:?}");
    }
    // A handle that lost something is not better after the next death.
    let second = mount.until_served_by_another(before)?;
    let mut again = File::create(mount.join("again"))?;
    again.write_all(b"x")?;
    process::send(second, libc::SIGKILL)?;
    let third = mount.until_served_by_another(second)?;
    ensure!(mount.kill_server()? == third);
    ensure!(errno(again.sync_all()) == libc::EIO);
    drop((again, readers));
    files::write(&mount.join("again"), b"y")?;
    mount.unmount()?;
    cluster.finish([other])
}

#[test]
fn locks_survive_the_process() -> Result<()> {
    let mut cluster = cluster()?;
    let mount = Background::start(&cluster, "m", "")?;
    let other = cluster.mount()?;
    for name in ["flocked", "recorded"] {
        files::write(&mount.join(name), &[0; 100])?;
        wait::until("it is seen", std::time::Duration::from_secs(5), || other.join(name).exists())?;
    }
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let (held, wanted) = (open(&mount.join("flocked"))?, open(&other.join("flocked"))?);
    flock(&held, libc::LOCK_EX)?;
    let record = |file: &File, kind: i32| -> io::Result<()> {
        let kind = i16::try_from(kind).expect("small");
        let lock = libc::flock { l_type: kind, l_whence: 0, l_start: 10, l_len: 20, l_pid: 0 };
        // SAFETY: the pointer is to a struct flock that lives across the call.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let (held_part, wanted_part) = (open(&mount.join("recorded"))?, open(&other.join("recorded"))?);
    record(&held_part, libc::F_WRLCK)?;
    let before = mount.kill_server()?;
    mount.until_served_by_another(before)?;
    ensure!(errno(flock(&wanted, libc::LOCK_EX | libc::LOCK_NB)) == libc::EWOULDBLOCK);
    ensure!(errno(record(&wanted_part, libc::F_WRLCK)) == libc::EAGAIN);
    // A new leader hears of them from the new process.
    cluster.kill("meta-1")?;
    cluster.start("meta-1")?;
    ensure!(errno(flock(&wanted, libc::LOCK_EX | libc::LOCK_NB)) == libc::EWOULDBLOCK);
    record(&held_part, libc::F_UNLCK)?;
    record(&wanted_part, libc::F_WRLCK)?;
    // Closing gives up what was taken in another life of the mount.
    drop(held);
    wait::until("the lock is free", std::time::Duration::from_secs(5), || {
        flock(&wanted, libc::LOCK_EX | libc::LOCK_NB).is_ok()
    })?;
    drop((wanted, wanted_part, held_part));
    mount.unmount()?;
    cluster.finish([other])
}

#[test]
fn an_upgrade_is_not_noticed() -> Result<()> {
    let cluster = cluster()?;
    let mount = Background::start(&cluster, "m", "")?;
    let mut written = File::create(mount.join("written"))?;
    written.write_all(&noise(1, 5_000_000))?;
    let mut read = File::open(mount.join("written"))?;
    let locked = File::create(mount.join("locked"))?;
    flock(&locked, libc::LOCK_EX)?;
    for _ in 0..3 {
        let errors = during(&mount, || {
            let before = mount.server()?;
            let told = program::dfsctl(&["mount", "upgrade", mount.path().to_str().context("text")?, "--json"])?;
            ensure!(told.code == 0, "{told:?}");
            let told: serde_json::Value = serde_json::from_str(&told.stdout)?;
            ensure!(told["before"]["pid"] == before && told["now"]["pid"] == mount.server()?, "{told}");
            Ok(())
        })?;
        ensure!(errors.is_empty(), "{errors:?}");
    }
    written.write_all(&noise(2, 5_000_000))?;
    files::close(written)?;
    let mut content = Vec::new();
    read.read_to_end(&mut content)?;
    ensure!(content == [noise(1, 5_000_000), noise(2, 5_000_000)].concat(), "{} bytes", content.len());
    let again = File::open(mount.join("locked"))?;
    ensure!(errno(flock(&again, libc::LOCK_EX | libc::LOCK_NB)) == libc::EWOULDBLOCK);
    drop((read, locked, again));
    mount.unmount()?;
    cluster.finish([])
}

#[test]
fn an_upgrade_that_would_lose_something_is_refused() -> Result<()> {
    let mut cluster = cluster()?;
    let mount = Background::start(&cluster, "m", "")?;
    let upgrade = |path: &Path| program::dfsctl(&["mount", "upgrade", path.to_str().context("text")?]);
    let path = mount.join("temporary");
    let mut temporary = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    temporary.write_all(b"only here")?;
    fs::remove_file(&path)?;
    let server = mount.server()?;
    let refused = upgrade(mount.path())?;
    ensure!(refused.code != 0 && refused.stderr.contains("without a name"), "{refused:?}");
    ensure!(mount.server()? == server);
    let mut content = String::new();
    temporary.seek(SeekFrom::Start(0))?;
    temporary.read_to_string(&mut content)?;
    ensure!(content == "only here");
    drop(temporary);
    // The same of one that was published, and not written since it was opened.
    files::write(&path, b"published")?;
    let unwritten = OpenOptions::new().write(true).open(&path)?;
    fs::remove_file(&path)?;
    let refused = upgrade(mount.path())?;
    ensure!(refused.code != 0 && refused.stderr.contains("without a name"), "{refused:?}");
    drop(unwritten);
    let done = upgrade(mount.path())?;
    ensure!(done.code == 0, "{done:?}");
    let foreground = cluster.mount()?;
    let refused = upgrade(foreground.path())?;
    ensure!(refused.code != 0 && refused.stderr.contains("no supervisor"), "{refused:?}");
    mount.unmount()?;
    cluster.finish([foreground])
}

#[test]
fn an_upgrade_to_a_program_that_cannot_take_over_leaves_the_old_one() -> Result<()> {
    let said = ["does not come to serve", "to serve the mount", "speaks with the kernel in another way"];
    let cluster = said.iter().fold(Cluster::builder(), |builder, words| builder.expect_log(words)).start()?;
    let mount_dfs = bins::path("mount.dfs")?;
    let installed = cluster.dir().join("mount.dfs");
    fs::copy(&mount_dfs, &installed)?;
    let mount = Background::start_program(&installed, &cluster, "m", "", "")?;
    let mut written = File::create(mount.join("written"))?;
    written.write_all(b"before ")?;
    let mut read = File::open(mount.join("written"))?;
    let locked = File::create(mount.join("locked"))?;
    flock(&locked, libc::LOCK_EX)?;
    let upgrade = || program::dfsctl(&["mount", "upgrade", mount.path().to_str().context("text")?]);
    // One that does not understand its command line, one that finds a mount that was made in another way after it has opened
    // everything that was left, and one that is no program.
    let wrapped = |more: &str| format!("#!/bin/sh\nexec {} \"$@\" {more}\n", mount_dfs.display());
    let aside = cluster.dir().join("next");
    for (next, why) in [
        (wrapped("--unheard-of"), "without a word"),
        (wrapped("-o local_locks"), "speaks with the kernel in another way"),
        ("no program".to_owned(), "cannot start"),
    ] {
        let before = mount.server()?;
        fs::write(&aside, next)?;
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o755))?;
        fs::rename(&aside, &installed)?;
        let told = upgrade()?;
        ensure!(told.code != 0 && told.stderr.contains(why) && told.stderr.contains("goes on with"), "{told:?}");
        ensure!(mount.server()? != before, "another process of the old program");
        let status = program::dfsctl(&["mount", "status", mount.path().to_str().context("text")?])?;
        ensure!(status.stdout.contains("does not take it over"), "{status:?}");
        written.write_all(b"and after ")?;
    }
    // With the program back in its place all is well.
    fs::remove_file(&installed)?;
    fs::copy(&mount_dfs, &installed)?;
    let told = upgrade()?;
    ensure!(told.code == 0, "{told:?}");
    files::close(written)?;
    let mut content = String::new();
    read.read_to_string(&mut content)?;
    ensure!(content == "before and after and after and after ", "{content}");
    let again = File::open(mount.join("locked"))?;
    ensure!(errno(flock(&again, libc::LOCK_EX | libc::LOCK_NB)) == libc::EWOULDBLOCK);
    drop((read, locked, again));
    mount.unmount()?;
    cluster.finish([])
}

#[test]
fn a_mount_is_taken_over_while_the_cluster_is_away() -> Result<()> {
    let builder = DIED.iter().fold(Cluster::builder(), |builder, words| builder.expect_log(words));
    let mut cluster = builder.faults().start()?;
    let mount = Background::start(&cluster, "m", "timeout=3s")?;
    files::write(&mount.join("f"), b"content")?;
    let mut open = File::open(mount.join("f"))?;
    cluster.kill("meta-1")?;
    let before = mount.kill_server()?;
    mount.until_served_by_another(before)?;
    ensure!(errno(fs::metadata(mount.join("g"))) == libc::EIO, "an error, in time");
    cluster.start("meta-1")?;
    wait::until("it works again", std::time::Duration::from_secs(30), || fs::metadata(mount.join("f")).is_ok())?;
    let mut content = String::new();
    open.read_to_string(&mut content)?;
    ensure!(content == "content");
    drop(open);
    mount.unmount()?;
    cluster.finish([])
}

#[test]
fn the_supervisor_is_not_needed_while_the_mount_is_served() -> Result<()> {
    let cluster = cluster()?;
    let mount = Background::start(&cluster, "m", "")?;
    process::send(mount.supervisor(), libc::SIGKILL)?;
    wait::until("it is gone", std::time::Duration::from_secs(5), || !background::runs(mount.supervisor()))?;
    files::write(&mount.join("f"), b"x")?;
    ensure!(fs::read(mount.join("f"))? == b"x");
    mount.unmount()?;
    // Told to end, it ends the mount.
    let second = Background::start(&cluster, "n", "")?;
    let server = second.server()?;
    process::send(second.supervisor(), libc::SIGTERM)?;
    wait::until("both processes end", std::time::Duration::from_secs(10), || {
        !background::runs(server) && !background::runs(second.supervisor())
    })?;
    ensure!(!dfs_tests::mount::is_mounted(second.path()));
    cluster.finish([])
}

/// Words of the log of a process that dies at a crash point, and of the one that says so before.
fn cluster_that_dies() -> Result<Cluster> {
    let builder = DIED.iter().fold(Cluster::builder(), |builder, words| builder.expect_log(words));
    builder.expect_log("crash point").expect_log("DFS_CRASH_POINT is set").start()
}

#[test]
fn a_process_dies_between_the_record_of_a_file_and_its_opening() -> Result<()> {
    let mut cluster = cluster_that_dies()?;
    let other = cluster.mount()?;
    files::write(&other.join("f"), &noise(1, 100_000))?;
    for round in 0..2 {
        let mount = Background::start_to_die(&cluster, &format!("m{round}"), "", "handle-recorded")?;
        let before = mount.server()?;
        match round {
            0 => ensure!(fs::read(mount.join("f"))? == noise(1, 100_000), "what may be done twice is done"),
            _ => ensure!(errno(File::create_new(mount.join("g"))) == libc::EIO, "whether it was made is not known"),
        }
        ensure!(mount.server()? != before);
        files::write(&mount.join("g"), b"x")?;
        ensure!(fs::read(mount.join("g"))? == b"x");
        fs::remove_file(mount.join("g"))?;
        mount.unmount()?;
    }
    cluster.finish([other])
}

#[test]
fn a_process_dies_between_a_publication_and_its_record() -> Result<()> {
    let cluster = cluster_that_dies()?;
    let mount = Background::start_to_die(&cluster, "m", "", "publish-answered")?;
    let before = mount.server()?;
    let content = noise(1, 5_000_000);
    let mut file = File::create(mount.join("f"))?;
    file.write_all(&content)?;
    ensure!(errno(files::close(file)) == libc::EIO, "an error too many, not one too few");
    ensure!(mount.server()? != before);
    ensure!(fs::read(mount.join("f"))? == content, "it is whole");
    mount.unmount()?;
    cluster.finish([])
}

#[test]
fn a_process_dies_between_the_grant_of_a_lock_and_its_record() -> Result<()> {
    let mut cluster = cluster_that_dies()?;
    let other = cluster.mount()?;
    files::write(&other.join("f"), b"x")?;
    let mount = Background::start_to_die(&cluster, "m", "", "lock-granted")?;
    let before = mount.server()?;
    let (held, wanted) = (File::open(mount.join("f"))?, File::open(other.join("f"))?);
    flock(&held, libc::LOCK_EX)?;
    ensure!(mount.server()? != before);
    ensure!(errno(flock(&wanted, libc::LOCK_EX | libc::LOCK_NB)) == libc::EWOULDBLOCK);
    drop(held);
    wait::until("the lock is free", std::time::Duration::from_secs(5), || {
        flock(&wanted, libc::LOCK_EX | libc::LOCK_NB).is_ok()
    })?;
    drop(wanted);
    mount.unmount()?;
    cluster.finish([other])
}
