//! Copies that move no data, holes, and direct I/O.

use std::{
    fs::{self, File, OpenOptions},
    os::fd::AsRawFd,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{
    Cluster,
    files::{self, CHUNK},
};

/// Chunk files on the disks of all storage nodes: a copy of data would add some.
fn chunk_files(cluster: &Cluster) -> Result<usize> {
    fn count(dir: &Path) -> Result<usize> {
        let mut sum = 0;
        for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            sum += match entry.file_type()?.is_dir() {
                true => count(&entry.path())?,
                false => usize::from(entry.path().extension().is_some_and(|extension| extension == "chunk")),
            };
        }
        Ok(sum)
    }
    (1..=3).map(|i| count(&cluster.data_dir(&format!("storage-{i}")).join("chunks"))).sum()
}

/// Waits until every chunk has its three copies, so that none comes later.
fn settled(cluster: &Cluster) -> Result<usize> {
    cluster.wait_healthy(std::time::Duration::from_secs(20))?;
    chunk_files(cluster)
}

fn copy_range(from: &File, from_offset: i64, to: &File, to_offset: i64, len: usize) -> Result<usize> {
    let (mut at_from, mut at_to, mut done) = (from_offset, to_offset, 0);
    while done < len {
        // SAFETY: the descriptors are open and the offsets live through the call.
        let copied =
            unsafe { libc::copy_file_range(from.as_raw_fd(), &mut at_from, to.as_raw_fd(), &mut at_to, len - done, 0) };
        match usize::try_from(copied).map_err(|_| std::io::Error::last_os_error())? {
            0 => break,
            copied => done += copied,
        }
    }
    Ok(done)
}

fn seek(file: &File, offset: i64, whence: i32) -> std::io::Result<i64> {
    // SAFETY: the descriptor is open.
    match unsafe { libc::lseek(file.as_raw_fd(), offset, whence) } {
        -1 => Err(std::io::Error::last_os_error()),
        at => Ok(at),
    }
}

#[test]
fn cp_within_the_mount_moves_no_data() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let content = files::noise(1, 5 * CHUNK + 1234);
    files::write(&mount.join("a"), &content)?;
    let before = settled(&cluster)?;
    files::sh("cp -a \"$1/a\" \"$1/b\" && cp \"$1/b\" \"$1/c\"", &[mount.path()])?;
    ensure!(fs::read(mount.join("b"))? == content && fs::read(mount.join("c"))? == content);
    ensure!(settled(&cluster)? == before, "a copy stored chunks");

    // The copies are files of their own.
    let mut changed = content.clone();
    changed[CHUNK..CHUNK + 5].copy_from_slice(b"other");
    let file = OpenOptions::new().write(true).open(mount.join("b"))?;
    std::os::unix::fs::FileExt::write_all_at(&file, b"other", CHUNK as u64)?;
    files::close(file)?;
    fs::remove_file(mount.join("a"))?;
    let other = cluster.mount()?;
    ensure!(fs::read(other.join("b"))? == changed);
    ensure!(fs::read(other.join("c"))? == content);
    cluster.finish([mount, other])
}

#[test]
fn ranges_are_copied_at_any_offset() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let source = files::noise(2, 3 * CHUNK + 500);
    files::write(&mount.join("from"), &source)?;
    let from = File::open(mount.join("from"))?;
    let chunk = CHUNK as i64;
    for (number, (at_from, at_to, len)) in [
        (0, 0, 3 * CHUNK + 500),
        (100, 100, 2 * CHUNK),
        (100, 7, CHUNK + 3),
        (chunk, 3 * chunk, CHUNK),
        (chunk - 1, 2 * chunk - 1, CHUNK + 2),
        (3 * chunk + 499, 5, 1),
        (3 * chunk + 500, 0, 10),
    ]
    .into_iter()
    .enumerate()
    {
        let path = mount.join(format!("to-{number}"));
        let mut expected = files::noise(3, CHUNK + CHUNK / 2);
        files::write(&path, &expected)?;
        let to = OpenOptions::new().write(true).open(&path)?;
        let copied = copy_range(&from, at_from, &to, at_to, len)?;
        files::close(to)?;
        let (at_from, at_to) = (usize::try_from(at_from)?, usize::try_from(at_to)?);
        ensure!(copied == len.min(source.len() - at_from), "case {number}: {copied} bytes");
        if copied > 0 {
            expected.resize(expected.len().max(at_to + copied), 0);
            expected[at_to..at_to + copied].copy_from_slice(&source[at_from..at_from + copied]);
        }
        ensure!(fs::read(&path)? == expected, "case {number}");
    }
    cluster.finish([mount])
}

#[test]
fn holes_are_punched_found_and_take_no_space() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let path = mount.join("sparse");
    let mut expected = files::noise(4, 4 * CHUNK);
    files::write(&path, &expected)?;
    files::sh(
        "fallocate --punch-hole --offset 4190000 --length 4300000 \"$1\" && fallocate -l 20000000 \"$1\"",
        &[&path],
    )?;
    expected[4_190_000..8_490_000].fill(0);
    expected.resize(20_000_000, 0);
    ensure!(fs::read(&path)? == expected);
    let file = File::open(&path)?;
    let chunk = CHUNK as i64;
    ensure!(seek(&file, 0, libc::SEEK_HOLE)? == chunk, "the second chunk is a hole now");
    ensure!(seek(&file, chunk + 5, libc::SEEK_DATA)? == 2 * chunk);
    ensure!(seek(&file, 2 * chunk, libc::SEEK_HOLE)? == 4 * chunk);
    ensure!(files::errno(seek(&file, 4 * chunk, libc::SEEK_DATA)) == libc::ENXIO);
    let refused = files::sh("fallocate --collapse-range --offset 0 --length 4096 \"$1\" 2>&1", &[&path]);
    ensure!(refused.is_err(), "{refused:?}");
    ensure!(fs::read(&path)? == expected, "a refused request changes nothing");
    cluster.finish([mount])
}

#[test]
fn direct_io_works() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let source = cluster.scratch()?.join("source");
    fs::write(&source, files::noise(5, 2 * CHUNK))?;
    files::sh(
        "dd if=\"$1\" of=\"$2/d\" bs=1M oflag=direct status=none && dd if=\"$2/d\" bs=1M iflag=direct status=none | cmp - \"$1\"",
        &[&source, mount.path()],
    )?;
    cluster.finish([mount])
}

#[test]
fn a_tree_is_cloned_by_dfsctl() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let tree = mount.join("tree");
    fs::create_dir_all(tree.join("sub/deep"))?;
    for i in 0..100 {
        files::write(&tree.join(format!("sub/f{i}")), &files::noise(i, 3000))?;
    }
    files::write(&tree.join("sub/deep/large"), &files::noise(7, 2 * CHUNK + 5))?;
    files::write(&tree.join("empty"), b"")?;
    files::sh(
        "cd \"$1\" && ln -s sub/f1 link && mkfifo pipe && chmod 640 sub/f3 && touch -d @1234567890 sub/f4 sub",
        &[&tree],
    )?;
    let before = settled(&cluster)?;
    let answer = cluster.dfsctl_ok(&["clone", "-r", "/tree", "/copy", "--json"])?;
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    ensure!(answer["files"] == 102 && answer["directories"] == 3 && answer["others"] == 2, "{answer}");
    ensure!(answer["copied_bytes"] == 0, "{answer}");
    ensure!(settled(&cluster)? == before, "a clone stored chunks");
    let other = cluster.mount()?;
    files::sh(
        "diff -r --no-dereference --exclude pipe \"$1/tree\" \"$1/copy\" && test -p \"$1/copy/pipe\"",
        &[other.path()],
    )?;
    files::same_attributes(&other.join("tree"), &other.join("copy"), "%P %y %m %U %G %T@ %s\\n", "")?;
    let again = cluster.dfsctl(&["clone", "-r", "/tree", "/copy/sub/f1"])?;
    ensure!(again.code == 4 && again.stderr.contains("overwrites nothing"), "{again:?}");
    let plain = cluster.dfsctl(&["clone", "/tree", "/another"])?;
    ensure!(plain.code == 1 && plain.stderr.contains("-r"), "{plain:?}");
    let inside = cluster.dfsctl_ok(&["clone", "-r", "/tree", "/tree/sub/self", "--json"])?;
    let inside: serde_json::Value = serde_json::from_str(&inside)?;
    ensure!(inside["files"] == 102, "a tree is not cloned into its own clone: {inside}");
    cluster.finish([mount, other])
}
