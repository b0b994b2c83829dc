//! What is mounted, for whom, and how: rights of users, parts of the tree, mount(8) and fstab, `-o write_once`.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dfs_tests::{
    Cluster, Mount, bins, cluster,
    files::{self, errno},
    mount::is_mounted,
    wait,
};

/// Where mount(8) looks for the program: to mount the type dfs, and to change a mount, whose type the kernel calls fuse.dfs.
const HELPERS: [&str; 2] = ["/sbin/mount.dfs", "/sbin/mount.fuse.dfs"];

/// Runs a program as user and group `id`, also in the group `also`.
fn as_user(id: u32, also: u32, program: &str, args: &[&str]) -> Result<cluster::Output> {
    let (uid, gid, groups) = (format!("--reuid={id}"), format!("--regid={id}"), format!("--groups={also}"));
    cluster::run(Path::new("setpriv"), &[&[&uid, &gid, &groups, program][..], args].concat())
}

/// Lets other users than root walk into the directory of the test.
fn open_to_all(cluster: &Cluster) -> Result<()> {
    Ok(fs::set_permissions(cluster.dir(), fs::Permissions::from_mode(0o755))?)
}

fn chmod(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}

/// The options of a mount as the kernel tells them.
fn mount_options(path: &Path) -> Result<String> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let place = text(path).replace(' ', "\\040");
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(&place));
    Ok(line.with_context(|| format!("{} is not mounted", path.display()))?.to_owned())
}

#[test]
fn a_mount_by_root_serves_all_users_and_the_kernel_checks_their_rights() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    open_to_all(&cluster)?;
    let mount = cluster.mount()?;
    chmod(mount.path(), 0o755)?;
    let (open, closed, shared) = (mount.join("open"), mount.join("closed"), mount.join("shared"));
    for (path, mode) in [(&open, 0o644), (&closed, 0o600), (&shared, 0o660)] {
        files::write(path, b"words")?;
        chmod(path, mode)?;
    }
    std::os::unix::fs::chown(&shared, Some(0), Some(3))?;
    let reads = |path: &Path, also| as_user(1, also, "cat", &[text(path)]).map(|output| output.code == 0);
    ensure!(reads(&open, 1)? && !reads(&closed, 1)?, "bits for others count");
    ensure!(!reads(&shared, 1)? && reads(&shared, 3)?, "supplementary groups count");
    let denied = as_user(1, 1, "touch", &[text(&mount.join("new"))])?;
    ensure!(denied.stderr.contains("Permission denied"), "{denied:?}");
    // A directory for all, in which each may remove only what is his.
    let tmp = mount.join("tmp");
    fs::create_dir(&tmp)?;
    chmod(&tmp, 0o1777)?;
    let own = tmp.join("own");
    ensure!(as_user(1, 1, "touch", &[text(&own)])?.code == 0);
    ensure!(fs::metadata(&own)?.uid() == 1, "a new file belongs to its maker");
    ensure!(as_user(2, 2, "rm", &["-f", text(&own)])?.code != 0, "the sticky bit protects it");
    ensure!(as_user(2, 2, "chown", &["2", text(&own)])?.code != 0, "only root gives files away");
    ensure!(as_user(1, 1, "rm", &[text(&own)])?.code == 0);
    cluster.finish([mount])
}

#[test]
fn set_user_id_and_devices_count_unless_switched_off() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    open_to_all(&cluster)?;
    let mut mount = cluster.mount()?;
    chmod(mount.path(), 0o755)?;
    let (id, null) = (mount.join("id"), mount.join("null"));
    fs::copy("/usr/bin/id", &id)?;
    chmod(&id, 0o4755)?;
    files::run("mknod", &["-m", "666", text(&null), "c", "1", "3"])?;
    ensure!(as_user(1, 1, text(&id), &["-u"])?.stdout.trim() == "0", "set-user-id counts");
    fs::write(&null, b"gone")?;
    // A write to a program takes the bit away, as everywhere.
    let writable = mount.join("writable");
    files::write(&writable, b"x")?;
    chmod(&writable, 0o4777)?;
    ensure!(as_user(1, 1, "sh", &["-c", &format!("echo y >> {}", text(&writable))])?.code == 0);
    ensure!(fs::metadata(&writable)?.mode() & 0o7777 == 0o777, "{:o}", fs::metadata(&writable)?.mode());
    mount.stop()?;
    let mount = cluster.mount_with("nosuid,nodev,noexec,noatime")?;
    let line = mount_options(mount.path())?;
    ensure!(["nosuid", "nodev", "noexec", "noatime"].iter().all(|option| line.contains(option)), "{line}");
    ensure!(errno(File::open(mount.join("null"))) == libc::EACCES);
    ensure!(as_user(1, 1, text(&mount.join("id")), &["-u"])?.code != 0);
    cluster.finish([mount])
}

#[test]
fn noallow_other_keeps_a_mount_to_root() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    open_to_all(&cluster)?;
    let mount = cluster.mount_with("noallow_other")?;
    chmod(mount.path(), 0o755)?;
    files::write(&mount.join("f"), b"x")?;
    ensure!(as_user(1, 1, "ls", &[text(mount.path())])?.code != 0);
    cluster.finish([mount])
}

/// Ends a mount that a test did not start through [`Cluster::mount`], also when the test has failed.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        if is_mounted(&self.0) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
}

/// `/dev/fuse` open to all users, as udev makes it, for the time of a test.
struct OpenDevice(u32);

impl OpenDevice {
    fn new() -> Result<Self> {
        let before = fs::metadata("/dev/fuse")?.mode() & 0o7777;
        chmod(Path::new("/dev/fuse"), 0o666)?;
        Ok(Self(before))
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        let _ = chmod(Path::new("/dev/fuse"), self.0);
    }
}

#[test]
fn a_mount_by_an_ordinary_user_is_private() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let _device = OpenDevice::new()?;
    open_to_all(&cluster)?;
    let place = cluster.dir().join("of-a-user");
    fs::create_dir(&place)?;
    std::os::unix::fs::chown(&place, Some(1), Some(1))?;
    // Where the user can reach it.
    let program = cluster.dir().join("mount.dfs");
    fs::copy(bins::path("mount.dfs")?, &program)?;
    // fusermount3 with the right that its package gives it, whatever was done to the installed one.
    let tools = cluster.dir().join("tools");
    fs::create_dir(&tools)?;
    fs::copy("/usr/bin/fusermount3", tools.join("fusermount3"))?;
    chmod(&tools.join("fusermount3"), 0o4755)?;
    let search = format!("PATH={}:/usr/bin:/bin", text(&tools));
    let _unmount = Unmount(place.clone());
    let mounted = as_user(1, 1, "env", &[&search, text(&program), &cluster.meta_addresses(), text(&place)])?;
    ensure!(mounted.code == 0, "{mounted:?}");
    let line = mount_options(&place)?;
    ensure!(line.contains("nosuid") && line.contains("nodev") && line.contains("user_id=1"), "{line}");
    ensure!(as_user(1, 1, "ls", &[text(&place)])?.code == 0);
    ensure!(as_user(2, 2, "ls", &[text(&place)])?.code != 0 && fs::read_dir(&place).is_err(), "not even root");
    let refused = as_user(1, 1, text(&program), &[&cluster.meta_addresses(), text(&place), "-o", "remount,ro"])?;
    ensure!(refused.code != 0, "{refused:?}");
    // The descriptor that fusermount3 gave is good for the next process, too.
    ensure!(as_user(1, 1, "touch", &[text(&place.join("f"))])?.code == 0);
    let pid = |line: &str| line.split_whitespace().last().and_then(|pid| pid.parse().ok());
    let server = files::run("pgrep", &["-u", "1", "-x", "mount.dfs"])?;
    dfs_tests::process::send(server.lines().find_map(pid).context("a process of the mount")?, libc::SIGKILL)?;
    ensure!(as_user(1, 1, "rm", &[text(&place.join("f"))])?.code == 0);
    let unmounted = as_user(1, 1, "env", &[&search, "fusermount3", "-u", text(&place)])?;
    ensure!(unmounted.code == 0, "{unmounted:?}");
    cluster.finish([])
}

#[test]
fn published_files_cannot_be_written_with_write_once() -> Result<()> {
    let mut cluster = Cluster::builder().expect_log("write_once").start()?;
    let mount = cluster.mount_with("write_once")?;
    let (path, new) = (mount.join("f"), mount.join("f.new"));
    let mut file = File::create(&path)?;
    file.write_all(b"one")?;
    file.sync_all()?;
    file.write_all(b" two")?;
    file.set_len(6)?;
    files::close(file)?;
    ensure!(fs::read(&path)? == b"one tw", "its maker may go on writing until it closes");
    for (what, outcome) in [
        ("append", File::options().append(true).open(&path)),
        ("in place", File::options().write(true).open(&path)),
        ("read and write", File::options().read(true).write(true).open(&path)),
        ("empty it", File::create(&path)),
    ] {
        ensure!(errno(outcome) == libc::EPERM, "{what}");
    }
    let truncated = Command::new("truncate").args(["-s", "1"]).arg(&path).output()?;
    ensure!(String::from_utf8_lossy(&truncated.stderr).contains("not permitted"), "{truncated:?}");
    ensure!(fs::read(&path)? == b"one tw");
    let log = fs::read_to_string(cluster.log("mnt-1"))?;
    let lines: Vec<_> = log.lines().filter(|line| line.contains("write_once")).collect();
    ensure!(lines.len() == 1 && lines[0].contains("rename"), "one line with the cause and the cure: {lines:?}");
    // The cure; removing, renaming and the attributes are as ever.
    files::write(&new, b"two")?;
    fs::rename(&new, &path)?;
    ensure!(fs::read(&path)? == b"two");
    chmod(&path, 0o600)?;
    fs::remove_file(&path)?;
    cluster.finish([mount])
}

#[test]
fn a_part_of_the_tree_can_be_mounted() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let whole = cluster.mount()?;
    fs::create_dir_all(whole.join("a/b/c"))?;
    files::write(&whole.join("a/b/c/f"), b"x")?;
    files::write(&whole.join("a/file"), b"x")?;
    let source = format!("{}:/a/b", cluster.meta_addresses());
    let part = Mount::start(&source, &cluster.dir().join("part"), "", cluster.log("part"))?;
    ensure!(mount_options(part.path())?.contains(&source));
    ensure!(fs::read(part.join("c/f"))? == b"x");
    ensure!(files::names(part.path())? == ["c"]);
    // Neither `..` nor its inode number leads out.
    ensure!(part.join("c/../../of-nobody").parent().is_some_and(|path| !path.join("file").exists()));
    let above = fs::metadata(part.join(".."))?;
    ensure!(above.ino() == fs::metadata(cluster.dir())?.ino() && above.dev() == fs::metadata(cluster.dir())?.dev());
    let listed = files::run("ls", &["-ai", text(part.path())])?;
    let numbers: Vec<_> = listed.lines().filter_map(|line| line.split_whitespace().next()).take(2).collect();
    ensure!(numbers[0] == fs::metadata(whole.join("a/b"))?.ino().to_string(), "{listed}");
    files::write(&part.join("g"), b"y")?;
    wait::until("the other mount sees it", Duration::from_secs(5), || fs::read(whole.join("a/b/g")).is_ok())?;
    for (path, word) in [("/a/none", "/a/none"), ("/a/file", "directory"), ("/a/../a", "..")] {
        let source = format!("{}:{path}", cluster.meta_addresses());
        let refused = cluster::run(&bins::path("mount.dfs")?, &[&source, text(&cluster.scratch()?)])?;
        ensure!(refused.code != 0 && refused.stderr.contains(word), "{path}: {refused:?}");
    }
    // The directory goes away under the mount: an error that says so, and umount works.
    fs::remove_dir_all(whole.join("a/b"))?;
    wait::until("the mount notices", Duration::from_secs(5), || errno(fs::metadata(part.path())) == libc::ESTALE)?;
    cluster.finish([part, whole])
}

/// The links that mount(8) needs, made where there are none and removed again.
#[derive(Default)]
struct Helpers(Vec<&'static str>);

impl Helpers {
    fn install() -> Result<Self> {
        let mut made = Self::default();
        for path in HELPERS {
            if !Path::new(path).exists() {
                symlink(bins::path("mount.dfs")?, path)?;
                made.0.push(path);
            }
        }
        Ok(made)
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

#[test]
fn mount_fstab_remount_and_umount_work() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let _helpers = Helpers::install()?;
    let (place, source) = (cluster.dir().join("a place"), format!("{}:/", cluster.meta_addresses()));
    fs::create_dir(&place)?;
    let _unmount = Unmount(place.clone());
    files::run("mount", &["-t", "dfs", &source, text(&place), "-o", "rw,noatime,nofail,_netdev,x-systemd.automount"])?;
    files::write(&place.join("f"), b"x")?;
    let mountpoint = cluster::run(Path::new("mountpoint"), &["-q", text(&place)])?;
    ensure!(mountpoint.code == 0, "{mountpoint:?}");
    files::run("mount", &["-o", "remount,ro", text(&place)])?;
    ensure!(errno(File::create(place.join("g"))) == libc::EROFS);
    let program = bins::path("mount.dfs")?;
    let own = cluster::run(&program, &[&source, text(&place), "-o", "remount,rw,nodev"])?;
    ensure!(own.code == 0, "{own:?}");
    files::write(&place.join("g"), b"y")?;
    files::run("umount", &[text(&place)])?;
    // A line of fstab, read from a file of its own; blanks are written as \040 there.
    let fstab = cluster.dir().join("fstab");
    let options = "_netdev,nofail,user,noexec,x-systemd.automount,x-systemd.idle-timeout=60,cache=5,timeout=10s";
    let blank = text(&place).replace(' ', "\\040");
    fs::write(&fstab, format!("{source} {blank} dfs {options} 0 0\n"))?;
    files::run("mount", &["-T", text(&fstab), text(&place)])?;
    ensure!(fs::read(place.join("g"))? == b"y");
    ensure!(mount_options(&place)?.contains("noexec"));
    files::run("umount", &[text(&place)])?;
    let unknown = cluster::run(Path::new("mount"), &["-t", "dfs", &source, text(&place), "-o", "colour=red"])?;
    ensure!(unknown.code != 0 && unknown.stderr.contains("colour=red"), "{unknown:?}");
    let none = cluster::run(&program, &[&source, text(&place), "-o", "remount,ro"])?;
    ensure!(none.code != 0 && none.stderr.contains("no mount of dfs"), "{none:?}");
    cluster.finish([])
}

#[test]
fn what_is_missing_is_said() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let program = bins::path("mount.dfs")?;
    let place = text(dir.path());
    let away = cluster::run(&program, &["127.0.0.1:1:/x", place, "-o", "timeout=2s"])?;
    ensure!(away.code == 32 && away.stderr.contains("127.0.0.1:1") && away.stderr.contains("dfsctl"), "{away:?}");
    // Without the device: a mount name space in which /dev is empty.
    let cluster = Cluster::builder().start()?;
    let empty_dev = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3";
    let without_device = format!("{empty_dev} && exec {} {} {place}", text(&program), cluster.meta_addresses());
    let output = cluster::run(Path::new("unshare"), &["-m", "sh", "-c", &without_device])?;
    ensure!(output.code == 32 && output.stderr.contains("/dev/fuse is missing"), "{output:?}");
    // Without fusermount3, as a user who needs it.
    open_to_all(&cluster)?;
    let copy = cluster.dir().join("mount.dfs");
    fs::copy(&program, &copy)?;
    let mine = cluster.dir().join("mine");
    fs::create_dir(&mine)?;
    std::os::unix::fs::chown(&mine, Some(1), Some(1))?;
    let args = [text(&copy), &cluster.meta_addresses(), text(&mine)];
    let output = as_user(1, 1, "env", &[&["PATH=/nowhere"][..], &args].concat())?;
    ensure!(output.code == 32 && output.stderr.contains("install the package fuse3"), "{output:?}");
    cluster.finish([])
}
