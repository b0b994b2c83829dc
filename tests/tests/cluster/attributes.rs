//! Attributes: owner, mode, times, size.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Result, ensure};
use dfs_tests::{
    Cluster,
    files::{self, CHUNK},
};

#[test]
fn closing_an_empty_new_file_changes_no_times() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount_with("cache=none")?;
    for (name, options) in [
        ("read", File::options().read(true).custom_flags(libc::O_CREAT)),
        ("write", File::options().write(true).create_new(true)),
    ] {
        let path = mount.join(name);
        let file = options.open(&path)?;
        let times = |path: &Path| -> Result<_> {
            let attr = fs::metadata(path)?;
            Ok(((attr.mtime(), attr.mtime_nsec()), (attr.ctime(), attr.ctime_nsec())))
        };
        let before = times(&path)?;
        files::close(file)?;
        ensure!(times(&path)? == before, "{name}: {before:?}, {:?}", times(&path)?);
    }
    cluster.finish([mount])
}

#[test]
fn mode_owner_and_times_last() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let (file, dir) = (mount.join("f"), mount.join("d"));
    files::write(&file, b"x")?;
    fs::create_dir(&dir)?;
    let old = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for path in [&file, &dir] {
        fs::set_permissions(path, Permissions::from_mode(0o2751))?;
        chown(path, Some(1234), Some(4321))?;
        File::open(path)?.set_times(fs::FileTimes::new().set_accessed(old).set_modified(old))?;
    }
    let check = |path: &Path| -> Result<()> {
        let attr = fs::metadata(path)?;
        ensure!((attr.uid(), attr.gid()) == (1234, 4321), "{attr:?}");
        ensure!(attr.modified()? == old && attr.accessed()? == old, "{attr:?}");
        Ok(())
    };
    check(&file)?;
    check(&dir)?;
    ensure!(fs::metadata(&dir)?.mode() & 0o777 == 0o751);
    mount.remount()?;
    check(&file)?;
    check(&dir)?;
    cluster.finish([mount])
}

#[test]
fn a_write_changes_the_modification_time() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let path = mount.join("f");
    files::write(&path, b"one")?;
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::open(&path)?.set_modified(old)?;
    ensure!(fs::metadata(&path)?.modified()? == old);
    files::write(&path, b"two")?;
    ensure!(fs::metadata(&path)?.modified()? > old);
    cluster.finish([mount])
}

#[test]
fn times_at_the_ends_of_what_there_is_do_no_harm() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let path = mount.join("f");
    files::write(&path, b"x")?;
    // What a cluster keeps: 64 bits of nanoseconds, so about 292 years around 1970. Beyond, the nearest.
    for (seconds, kept) in [(i64::MIN, i64::MIN / 1_000_000_000 - 1), (i64::MAX, i64::MAX / 1_000_000_000), (-7, -7)] {
        let time = libc::timespec { tv_sec: seconds, tv_nsec: 0 };
        let name = std::ffi::CString::new(path.to_string_lossy().as_bytes())?;
        // SAFETY: the name ends in a zero byte and the array has the two times that utimensat(2) reads.
        let code = unsafe { libc::utimensat(libc::AT_FDCWD, name.as_ptr(), [time, time].as_ptr(), 0) };
        ensure!(code == 0, "{seconds}: {}", std::io::Error::last_os_error());
        let found = fs::metadata(&path)?.mtime();
        ensure!(found == kept, "{found} seconds instead of {kept}");
    }
    cluster.finish([mount])
}

#[test]
fn truncate_shorter_longer_and_to_nothing() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let bytes = files::noise(1, 2 * CHUNK + 100);
    let mut want = Vec::new();
    for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 100, 3 * CHUNK, 5 * CHUNK + 7] {
        let path = mount.join(format!("t{size}"));
        files::write(&path, &bytes)?;
        files::sh("truncate -s \"$2\" \"$1\"", &[&path, Path::new(&size.to_string())])?;
        let mut content = bytes.clone();
        content.resize(size, 0);
        ensure!(fs::metadata(&path)?.len() == size as u64);
        ensure!(fs::read(&path)? == content, "truncated to {size}");
        want.push((path, content));
    }
    mount.remount()?;
    for (path, content) in want {
        ensure!(fs::read(&path)? == content, "{} after remount", path.display());
    }
    cluster.finish([mount])
}

#[test]
fn truncated_bytes_do_not_come_back() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let path = mount.join("f");
    files::write(&path, &files::noise(1, CHUNK + 5000))?;
    let file = File::options().write(true).open(&path)?;
    file.set_len(100)?;
    file.set_len(CHUNK as u64 + 5000)?;
    files::close(file)?;
    let mut want = files::noise(1, 100);
    want.resize(CHUNK + 5000, 0);
    ensure!(fs::read(&path)? == want);
    mount.remount()?;
    ensure!(fs::read(&path)? == want);
    cluster.finish([mount])
}

#[test]
fn cp_and_rsync_keep_attributes() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    let source = cluster.scratch()?.join("src");
    fs::create_dir_all(source.join("sub"))?;
    files::write(&source.join("f"), &files::noise(1, 10_000))?;
    files::write(&source.join("sub/g"), b"g")?;
    fs::set_permissions(source.join("f"), Permissions::from_mode(0o640))?;
    chown(source.join("f"), Some(7), Some(8))?;
    files::sh(
        "cd \"$1\" && ln -s f link && ln f hard && touch -h -d '2001-02-03 04:05:06.789' f link sub/g sub .",
        &[&source],
    )?;
    files::sh("cp -a \"$1\" \"$2\"/cp", &[&source, mount.path()])?;
    let mut copies = vec!["cp"];
    if dfs_tests::tools::have("rsync")? {
        files::sh("rsync -a \"$1\"/ \"$2\"/rsync && rsync -a \"$1\"/ \"$2\"/rsync", &[&source, mount.path()])?;
        copies.push("rsync");
    }
    mount.remount()?;
    for copy in copies {
        let copy = mount.join(copy);
        files::same_tree(&source, &copy)?;
        files::same_attributes(&source, &copy, "%p %y %m %U %G %T@ %l\\n", "")?;
    }
    ensure!(fs::metadata(mount.join("cp/f"))?.nlink() == 2, "cp -a keeps hard links");
    cluster.finish([mount])
}

#[test]
fn special_files() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mut mount = cluster.mount()?;
    files::sh("mkfifo \"$1\"/fifo && mknod \"$1\"/null c 1 3", &[mount.path()])?;
    mount.remount()?;
    let text = files::sh("stat -c '%F %t %T' \"$1\"/fifo \"$1\"/null", &[mount.path()])?;
    ensure!(text == "fifo 0 0\ncharacter special file 1 3\n", "{text}");
    cluster.finish([mount])
}

#[test]
fn sizes_of_trees_as_du_and_find_see_them() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    fs::create_dir_all(mount.join("a/b"))?;
    files::write(&mount.join("a/f"), &files::noise(1, 100_000))?;
    let attr = fs::metadata(mount.join("a/f"))?;
    ensure!(attr.blocks() * 512 >= 100_000, "du would count {} bytes", attr.blocks() * 512);
    ensure!(fs::metadata(mount.join("a"))?.nlink() == 3, "find relies on 2 + sub-directories");
    cluster.finish([mount])
}
