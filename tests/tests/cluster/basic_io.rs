//! Bytes go in and the same bytes come out, at every size where something changes.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
};

use anyhow::{Result, ensure};
use dfs_tests::{
    Cluster,
    files::{self, CHUNK},
};

/// Sizes around the borders of a chunk and of a checksum block, and one with several chunks and a tail.
const SIZES: [usize; 11] =
    [0, 1, 4095, 65_535, 65_536, 65_537, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 12_345];

#[test]
fn every_size_comes_back() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    for (seed, size) in (1..).zip(SIZES) {
        let bytes = files::noise(seed, size);
        let path = mount.join(format!("f{size}"));
        files::write(&path, &bytes)?;
        ensure!(fs::metadata(&path)?.len() == size as u64, "size {size} right after close");
        ensure!(fs::read(&path)? == bytes, "bytes of {size} right after close");
    }
    mount.remount()?;
    for (seed, size) in (1..).zip(SIZES) {
        let path = mount.join(format!("f{size}"));
        ensure!(fs::metadata(&path)?.len() == size as u64, "size {size} after remount");
        ensure!(fs::read(&path)? == files::noise(seed, size), "bytes of {size} after remount");
    }
    cluster.finish([mount])
}

#[test]
fn empty_file() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let path = mount.join("empty");
    files::close(File::create(&path)?)?;
    ensure!(fs::read(&path)?.is_empty());
    mount.remount()?;
    ensure!(fs::metadata(&path)?.len() == 0 && fs::read(&path)?.is_empty());
    let out = cluster.scratch()?.join("out");
    cluster.dfsctl_ok(&["download", "--name", "/empty", "--out", &out.display().to_string()])?;
    ensure!(fs::read(out)?.is_empty());
    cluster.finish([mount])
}

#[test]
fn random_reads_see_the_bytes_at_their_offset() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let bytes = files::noise(7, 5 * CHUNK + 77);
    let path = mount.join("f");
    files::write(&path, &bytes)?;
    mount.remount()?;
    let file = File::open(&path)?;
    let mut place = files::Noise::new(3);
    for _ in 0..300 {
        let mut random = [0; 16];
        place.fill(&mut random);
        let offset = u64::from_le_bytes(random[..8].try_into()?) as usize % bytes.len();
        let length = (u64::from_le_bytes(random[8..].try_into()?) as usize % 300_000).min(bytes.len() - offset);
        let mut buffer = vec![0; length];
        file.read_exact_at(&mut buffer, offset as u64)?;
        ensure!(buffer == bytes[offset..offset + length], "{length} bytes at {offset}");
    }
    let mut past = [0; 10];
    ensure!(file.read_at(&mut past, bytes.len() as u64)? == 0, "the end of the file");
    drop(file);
    cluster.finish([mount])
}

#[test]
fn rewrites_and_writes_out_of_order_before_close() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let path = mount.join("f");
    let mut want = files::noise(1, 2 * CHUNK + 1000);
    let mut file = File::create(&path)?;
    file.write_all(&want)?;
    for (seed, offset, length) in [(2, 10, 50), (3, CHUNK - 7, 20), (4, 2 * CHUNK + 990, 10), (5, 0, 3 * 4096)] {
        let patch = files::noise(seed, length);
        file.write_all_at(&patch, offset as u64)?;
        want[offset..offset + length].copy_from_slice(&patch);
    }
    // What is not published yet is visible through the descriptor that wrote it.
    let mut seen = Vec::new();
    let mut reader = File::options().read(true).write(true).open(&path)?;
    reader.seek(SeekFrom::Start(0))?;
    reader.read_to_end(&mut seen)?;
    ensure!(seen == want, "a writer reads its own writes");
    files::close(reader)?;
    files::close(file)?;
    ensure!(fs::read(&path)? == want);
    mount.remount()?;
    ensure!(fs::read(&path)? == want);
    cluster.finish([mount])
}

#[test]
fn append_and_write_in_place_to_a_published_file() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let path = mount.join("f");
    let mut want = files::noise(1, CHUNK + 100);
    files::write(&path, &want)?;
    for seed in 2..6 {
        let more = files::noise(seed, 70_000);
        let mut file = File::options().append(true).open(&path)?;
        file.write_all(&more)?;
        files::close(file)?;
        want.extend(more);
    }
    let patch = files::noise(9, 5000);
    let file = File::options().write(true).open(&path)?;
    file.write_all_at(&patch, CHUNK as u64 - 2500)?;
    files::close(file)?;
    want[CHUNK - 2500..CHUNK + 2500].copy_from_slice(&patch);
    ensure!(fs::read(&path)? == want);
    mount.remount()?;
    ensure!(fs::read(&path)? == want);
    cluster.finish([mount])
}

#[test]
fn holes_read_as_zeros() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let path = mount.join("sparse");
    let file = File::create(&path)?;
    file.write_all_at(b"begin", 0)?;
    file.write_all_at(b"end", 3 * CHUNK as u64 + 500)?;
    files::close(file)?;
    mount.remount()?;
    let mut want = vec![0; 3 * CHUNK + 503];
    want[..5].copy_from_slice(b"begin");
    want[3 * CHUNK + 500..].copy_from_slice(b"end");
    ensure!(fs::read(&path)? == want);
    cluster.finish([mount])
}

#[test]
fn df_answers() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    files::write(&mount.join("f"), &files::noise(1, CHUNK))?;
    let text = files::sh("timeout 5 df -P \"$1\"", &[mount.path()])?;
    ensure!(text.contains(&mount.path().display().to_string()), "{text}");
    cluster.finish([mount])
}
