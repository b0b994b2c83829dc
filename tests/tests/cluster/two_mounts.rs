//! What one mount sees of the other: whole versions.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use dfs_tests::{
    Cluster,
    files::{self, CHUNK},
    wait,
};

/// The longest time for which a mount may answer from what it knew before.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn a_file_appears_when_it_is_closed() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (writer, reader) = (cluster.mount()?, cluster.mount()?);
    let mut file = File::create(writer.join("f"))?;
    file.write_all(&files::noise(1, 2 * CHUNK))?;
    ensure!(fs::metadata(writer.join("f"))?.len() == 2 * CHUNK as u64, "the creating mount sees it at once");
    ensure!(fs::metadata(reader.join("f")).is_err(), "others do not see what is not published");
    ensure!(files::names(reader.path())?.is_empty());
    files::close(file)?;
    wait::until("published file is visible", SEEN_WITHIN, || fs::metadata(reader.join("f")).is_ok())?;
    ensure!(fs::read(reader.join("f"))? == files::noise(1, 2 * CHUNK));
    cluster.finish([writer, reader])
}

#[test]
fn a_replaced_name_is_never_missing() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (writer, reader) = (cluster.mount()?, cluster.mount()?);
    files::write(&writer.join("f"), b"0")?;
    wait::until("the file is visible", SEEN_WITHIN, || fs::metadata(reader.join("f")).is_ok())?;
    for round in 0..60 {
        // As an editor saves.
        fs::read(reader.join("f"))?;
        files::write(&writer.join("f~"), format!("{round}").as_bytes())?;
        fs::rename(writer.join("f~"), writer.join("f"))?;
        fs::read(reader.join("f"))?;
        fs::metadata(reader.join("f"))?;
    }
    cluster.finish([writer, reader])
}

#[test]
fn a_directory_with_an_unpublished_file_is_not_removed() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (writer, other) = (cluster.mount()?, cluster.mount()?);
    fs::create_dir(writer.join("d"))?;
    let mut file = File::create(writer.join("d/new"))?;
    file.write_all(b"x")?;
    wait::until("the directory is visible", SEEN_WITHIN, || fs::metadata(other.join("d")).is_ok())?;
    let errno = files::errno(fs::remove_dir(other.join("d")));
    ensure!(errno == libc::ENOTEMPTY, "errno {errno}");
    files::close(file)?;
    ensure!(fs::read(writer.join("d/new"))? == b"x");
    cluster.finish([writer, other])
}

#[test]
fn a_reader_sees_the_old_version_or_the_new_one() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (writer, reader) = (cluster.mount()?, cluster.mount()?);
    // Version n is (n + 1) chunks of the byte n, so that any mixture shows.
    let version = |n: u8| vec![n; (usize::from(n) % 3 + 1) * CHUNK];
    files::write(&writer.join("f"), &version(0))?;
    ensure!(fs::read(reader.join("f"))? == version(0));
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let rewriting = scope.spawn(|| -> std::io::Result<()> {
            let outcome = (1..12).try_for_each(|n| files::write(&writer.join("f"), &version(n)));
            done.store(true, Ordering::Relaxed);
            outcome
        });
        let mut last = 0;
        while !done.load(Ordering::Relaxed) {
            let seen = fs::read(reader.join("f"))?;
            let n = *seen.first().unwrap_or(&255);
            ensure!(seen == version(n), "{} bytes that begin with {n} are no version", seen.len());
            ensure!(n >= last, "version {n} after version {last}");
            last = n;
        }
        rewriting.join().expect("writer does not panic")?;
        Ok(())
    })?;
    wait::until("the last version is visible", SEEN_WITHIN, || {
        fs::read(reader.join("f")).is_ok_and(|b| b == version(11))
    })?;
    cluster.finish([writer, reader])
}

#[test]
fn changes_of_the_tree_are_seen() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, two) = (cluster.mount()?, cluster.mount()?);
    fs::create_dir(one.join("d"))?;
    wait::until("mkdir", SEEN_WITHIN, || two.join("d").is_dir())?;
    files::write(&two.join("d/f"), b"x")?;
    wait::until("create", SEEN_WITHIN, || one.join("d/f").is_file())?;
    fs::rename(one.join("d/f"), one.join("d/g"))?;
    wait::until("rename", SEEN_WITHIN, || two.join("d/g").is_file() && !two.join("d/f").exists())?;
    fs::remove_file(two.join("d/g"))?;
    wait::until("unlink", SEEN_WITHIN, || !one.join("d/g").exists())?;
    fs::remove_dir(one.join("d"))?;
    wait::until("rmdir", SEEN_WITHIN, || !two.join("d").exists())?;
    cluster.finish([one, two])
}

#[test]
fn what_was_closed_is_read_by_the_next_open() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, other) = (cluster.mount()?, cluster.mount()?);
    files::write(&one.join("f"), b"0")?;
    wait::until("the file", SEEN_WITHIN, || other.join("f").exists())?;
    for round in 1..100 {
        let (writer, reader) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let text = "x".repeat(round);
        files::write(&writer.join("f"), text.as_bytes())?;
        // At once, whatever the kernel knows of its size.
        ensure!(fs::read_to_string(reader.join("f"))? == text, "round {round}");
    }
    cluster.finish([one, other])
}

#[test]
fn tail_follows_what_is_appended_on_any_mount() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, other) = (cluster.mount()?, cluster.mount()?);
    // More than a chunk, so that whole ones and a part are there before.
    let mut lines: String = (0..400_000).map(|n| format!("line {n:010}\n")).collect();
    files::write(&one.join("log"), lines.as_bytes())?;
    wait::until("the file", SEEN_WITHIN, || other.join("log").exists())?;
    let mut tails = Vec::new();
    for (mount, out) in [(&one, "one"), (&other, "other")] {
        let out = cluster.scratch()?.join(out);
        let mut tail = Command::new("tail");
        tail.args(["-c", "+1", "-s", "0.1", "-f"]).arg(mount.join("log")).stdout(File::create(&out)?);
        tails.push((tail.spawn()?, out));
    }
    let outcome = (0..10).try_for_each(|round| {
        // A little, and more than the kernel reads at once.
        let more = format!("round {round}\n").repeat(if round % 2 == 0 { 1 } else { 50_000 });
        let writer = if round % 3 == 0 { &other } else { &one };
        File::options().append(true).open(writer.join("log"))?.write_all(more.as_bytes())?;
        lines.push_str(&more);
        tails.iter().try_for_each(|(_, out)| {
            let length = lines.len() as u64;
            wait::until("tail tells it", Duration::from_secs(20), || {
                fs::metadata(out).is_ok_and(|meta| meta.len() >= length)
            })?;
            ensure!(fs::read_to_string(out)? == lines, "round {round}: other bytes");
            Ok(())
        })
    });
    for (tail, _) in &mut tails {
        tail.kill()?;
        tail.wait()?;
    }
    outcome?;
    cluster.finish([one, other])
}

#[test]
fn the_last_of_two_writers_wins_whole() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, two) = (cluster.mount()?, cluster.mount()?);
    files::write(&one.join("f"), b"begin")?;
    let (a, b) = (files::noise(1, 2 * CHUNK), files::noise(2, CHUNK + 50));
    let mut first = File::create(one.join("f"))?;
    let mut second = File::create(two.join("f"))?;
    first.write_all(&a)?;
    second.write_all(&b)?;
    files::close(second)?;
    files::close(first)?;
    for mount in [&one, &two] {
        wait::until("the last publisher wins", SEEN_WITHIN, || fs::read(mount.join("f")).is_ok_and(|seen| seen == a))?;
    }
    // Appends are no exception, synced or not.
    let append = |mount: &Path| File::options().append(true).open(mount.join("f"));
    let (mut first, mut second) = (append(one.path())?, append(two.path())?);
    first.write_all(b"first")?;
    second.write_all(b"second")?;
    second.sync_all()?;
    files::close(second)?;
    files::close(first)?;
    let want = [&a[..], b"first"].concat();
    for mount in [&one, &two] {
        wait::until("the last publisher wins", SEEN_WITHIN, || {
            fs::read(mount.join("f")).is_ok_and(|seen| seen == want)
        })?;
    }
    cluster.finish([one, two])
}

#[test]
fn a_crashed_mount_leaves_nothing_half_visible() -> Result<()> {
    let mut cluster = Cluster::builder().meta_flag("--session-lease", "2s").meta_flag("--gc-grace", "1s").start()?;
    let (mut dying, other) = (cluster.mount()?, cluster.mount()?);
    let mut file = File::create(dying.join("half"))?;
    file.write_all(&files::noise(1, 3 * CHUNK))?;
    dying.kill()?;
    drop(file);
    ensure!(fs::metadata(other.join("half")).is_err());
    // The name is free again once the session has ended.
    wait::until("the reservation ends", Duration::from_secs(15), || File::create_new(other.join("half")).is_ok())?;
    wait::until("the orphaned session ends", Duration::from_secs(15), || {
        cluster.status().is_ok_and(|status| status["healthy"] == true)
    })?;
    cluster.finish([other])
}
