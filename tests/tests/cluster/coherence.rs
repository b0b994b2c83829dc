//! Names and attributes that the kernel keeps for minutes, and what others change meanwhile.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use dfs_tests::{
    Cluster, Mount, cluster, files,
    network::{self, Way},
    wait,
};
use serde_json::Value;

/// Far below the minute for which the kernel keeps things, far above the second in which changes are told.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// What a mount tells of itself.
fn report(mount: &Mount) -> Result<Value> {
    let output = cluster::dfsctl(&["mount", "status", "--json", &mount.path().display().to_string()])?;
    let all: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok(all[0]["report"].clone())
}

fn is_leased(mount: &Mount) -> bool {
    report(mount).is_ok_and(|report| report["cache"] == "leased")
}

fn wait_leased(mount: &Mount) -> Result<()> {
    wait::until("the cluster tells what others change", SEEN_WITHIN, || is_leased(mount))
}

/// Requests that `work` causes.
fn requests(mount: &Mount, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let count = || report(mount)?["requests"].as_u64().context("requests");
    let before = count()?;
    work()?;
    Ok(count()? - before)
}

/// Everything about a tree. (`ls -l` also asks for extended attributes, which the kernel does not keep.)
fn list(dir: &Path) -> Result<String> {
    files::sh("find \"$1\" -printf '%p %s %m %n %i %T@\\n' | sort", &[dir])
}

/// Two mounts, of which the second is known to keep things.
fn two(cluster: &mut Cluster) -> Result<(Mount, Mount)> {
    let (one, other) = (cluster.mount()?, cluster.mount()?);
    wait_leased(&one)?;
    wait_leased(&other)?;
    Ok((one, other))
}

#[test]
fn a_tree_that_was_seen_is_shown_again_without_a_question() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, other) = two(&mut cluster)?;
    for dir in 0..5 {
        fs::create_dir(one.join(format!("d{dir}")))?;
        for file in 0..20 {
            files::write(&one.join(format!("d{dir}/f{file}")), b"x")?;
        }
    }
    let first = list(other.path())?;
    // The kernel takes attributes with a listing only where it is asked for them, and what was told to be forgotten meanwhile is
    // asked for again: it takes a few times until it has all.
    wait::until("a tree that the kernel knows is shown without a question", SEEN_WITHIN, || {
        let mut shown = String::new();
        let asked = requests(&other, || {
            shown = list(other.path())?;
            Ok(())
        });
        // Six directories are opened and closed; 106 things are looked at.
        shown == first && asked.is_ok_and(|asked| asked < 40)
    })?;
    // Nor does `ls -l` ask for the attributes of security modules of each file.
    let path = other.path().to_str().context("text")?;
    let asked = requests(&other, || files::run("ls", &["-lR", path]).map(drop))?;
    ensure!(asked < 40, "{asked} questions");
    cluster.finish([one, other])
}

#[test]
fn what_another_mount_changes_is_seen_although_it_was_kept() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, other) = two(&mut cluster)?;
    fs::create_dir(one.join("d"))?;
    for name in ["mode", "size", "gone", "from", "linked"] {
        files::write(&one.join("d").join(name), b"x")?;
    }
    let seen = |what: &str, is_so: &dyn Fn(&Path) -> bool| {
        wait::until(what, SEEN_WITHIN, || is_so(&other.join("d")))?;
        // And the other way round, the mount that did it.
        ensure!(is_so(&one.join("d")), "{what} on the mount itself");
        Ok::<_, anyhow::Error>(())
    };
    seen("five files", &|d| files::names(d).is_ok_and(|names| names.len() == 5))?;
    list(other.path())?;

    fs::set_permissions(one.join("d/mode"), fs::Permissions::from_mode(0o600))?;
    seen("a mode", &|d| fs::metadata(d.join("mode")).is_ok_and(|meta| meta.mode() & 0o777 == 0o600))?;
    files::write(&one.join("d/size"), b"longer")?;
    seen("a size", &|d| fs::metadata(d.join("size")).is_ok_and(|meta| meta.len() == 6))?;
    fs::remove_file(one.join("d/gone"))?;
    seen("a removal", &|d| !d.join("gone").exists())?;
    fs::rename(one.join("d/from"), one.join("d/to"))?;
    seen("a rename", &|d| !d.join("from").exists() && d.join("to").exists())?;
    fs::hard_link(one.join("d/linked"), one.join("d/second"))?;
    seen("a link", &|d| fs::metadata(d.join("linked")).is_ok_and(|meta| meta.nlink() == 2))?;
    fs::remove_file(one.join("d/linked"))?;
    seen("a link less", &|d| fs::metadata(d.join("second")).is_ok_and(|meta| meta.nlink() == 1))?;
    fs::create_dir(one.join("d/sub"))?;
    seen("a directory", &|d| fs::metadata(d).is_ok_and(|meta| meta.nlink() == 3))?;
    fs::rename(one.join("d/sub"), one.join("sub"))?;
    seen("a directory less", &|d| fs::metadata(d).is_ok_and(|meta| meta.nlink() == 2))?;
    // "mode size to second" are left.
    seen("the listing", &|d| files::names(d).is_ok_and(|names| names.len() == 4))?;
    cluster.finish([one, other])
}

#[test]
fn a_listing_that_was_kept_is_not_shown_when_another_mount_changed_the_directory() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, other) = two(&mut cluster)?;
    let mut names = Vec::new();
    for round in 0..20 {
        // Nothing but the listing is asked for: neither the directory nor its entries.
        let name = format!("f{round:02}");
        let writer = if round % 2 == 0 { &one } else { &other };
        files::write(&writer.join(&name), b"x")?;
        names.push(std::ffi::OsString::from(name));
        for mount in [&one, &other] {
            wait::until("the listing", SEEN_WITHIN, || files::names(mount.path()).is_ok_and(|found| found == names))?;
        }
    }
    // One that stays open shows what is there when it goes back to its start, which listdir(3) of a descriptor does.
    let script = "import os, sys\nfd = os.open(sys.argv[1], os.O_RDONLY)\n\
                  for line in sys.stdin: print(len(os.listdir(fd)), flush=True)";
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(other.path());
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut asking = child.stdin.take().context("piped")?;
    let mut answers = BufReader::new(child.stdout.take().context("piped")?).lines();
    let mut count = || {
        asking.write_all(b"\n").ok()?;
        answers.next()?.ok()
    };
    ensure!(count().as_deref() == Some("20"));
    files::write(&one.join("more"), b"x")?;
    wait::until("the new name in a listing that stays open", SEEN_WITHIN, || count().as_deref() == Some("21"))?;
    drop(asking);
    ensure!(child.wait()?.success());
    cluster.finish([one, other])
}

#[test]
fn a_name_that_does_not_exist_is_remembered_until_it_does() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, other) = two(&mut cluster)?;
    let asked = requests(&other, || {
        for _ in 0..50 {
            ensure!(!other.join("later").exists());
        }
        Ok(())
    })?;
    ensure!(asked < 10, "{asked} requests for a name that does not exist");
    files::write(&one.join("later"), b"x")?;
    wait::until("the new name", SEEN_WITHIN, || other.join("later").exists())?;
    // The mount itself knows its own at once.
    ensure!(!other.join("mine").exists());
    files::write(&other.join("mine"), b"x")?;
    ensure!(other.join("mine").exists());
    cluster.finish([one, other])
}

#[test]
fn what_a_mount_itself_changes_is_seen_at_once() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    wait_leased(&mount)?;
    let path = mount.join("f");
    files::write(&path, b"x")?;
    let first = fs::metadata(&path)?;
    files::write(&path, b"xy")?;
    let second = fs::metadata(&path)?;
    ensure!((first.len(), second.len()) == (1, 2));
    let changed = |meta: &fs::Metadata| (meta.mtime(), meta.mtime_nsec());
    ensure!(changed(&first) < changed(&second), "{first:?} {second:?}");
    // The times are the cluster's, also on the mount that wrote.
    let stat = cluster.dfsctl_ok(&["stat", "/f", "--json"])?;
    let stat: Value = serde_json::from_str(&stat)?;
    let mtime_ns = second.mtime() * 1_000_000_000 + second.mtime_nsec();
    ensure!(stat["mtime_ns"].as_i64() == Some(mtime_ns), "{stat} {mtime_ns}");
    fs::hard_link(&path, mount.join("g"))?;
    ensure!(fs::metadata(&path)?.nlink() == 2);
    fs::rename(mount.join("g"), mount.join("h"))?;
    ensure!(!mount.join("g").exists() && mount.join("h").exists());
    fs::remove_file(mount.join("h"))?;
    ensure!(!mount.join("h").exists() && fs::metadata(&path)?.nlink() == 1);
    ensure!(files::names(mount.path())? == ["f"]);
    cluster.finish([mount])
}

#[test]
fn without_the_cluster_nothing_old_is_shown() -> Result<()> {
    let mut cluster = Cluster::builder().faults().start()?;
    let mut mount = cluster.mount_with("timeout=2s")?;
    files::write(&mount.join("f"), b"x")?;
    mount.remount()?;
    wait_leased(&mount)?;
    ensure!(fs::metadata(mount.join("f"))?.len() == 1);
    cluster.node("meta-1").signal(libc::SIGSTOP)?;
    wait::until("the lease is over", SEEN_WITHIN, || !is_leased(&mount))?;
    let kept = fs::metadata(mount.join("f"));
    ensure!(files::errno(kept) == libc::EIO, "what may be old was shown");
    ensure!(report(&mount)?["cache"]["lost"]["since_ms"].is_number());
    cluster.node("meta-1").signal(libc::SIGCONT)?;
    wait_leased(&mount)?;
    ensure!(fs::metadata(mount.join("f"))?.len() == 1);
    cluster.finish([mount])
}

#[test]
fn a_mount_that_was_cut_off_does_not_show_what_it_kept() -> Result<()> {
    let mut cluster = Cluster::builder().machines(2).faults().start()?;
    let (one, other) = (cluster.mount_with("timeout=2s")?, cluster.mount_with("timeout=2s")?);
    wait_leased(&one)?;
    wait_leased(&other)?;
    files::write(&one.join("f"), b"x")?;
    wait::until("the file", SEEN_WITHIN, || other.join("f").exists())?;
    let hosts: Vec<String> = cluster.nodes().map(|node| node.name().to_owned()).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    cluster.network()?.cut(&network::ways("mnt-2", &hosts, Way::Both))?;
    files::write(&one.join("f"), b"longer")?;
    wait::until("the lease is over", SEEN_WITHIN, || !is_leased(&other))?;
    ensure!(files::errno(fs::metadata(other.join("f"))) == libc::EIO, "what may be old was shown");
    cluster.network()?.heal()?;
    wait_leased(&other)?;
    ensure!(fs::metadata(other.join("f"))?.len() == 6, "once it is told again it shows what is");
    cluster.finish([one, other])
}

#[test]
fn a_change_of_the_leader_costs_what_was_kept_and_no_more() -> Result<()> {
    let mut cluster = Cluster::builder().metas(3).faults().start()?;
    let (one, other) = two(&mut cluster)?;
    files::write(&one.join("f"), b"x")?;
    wait::until("the file", SEEN_WITHIN, || other.join("f").exists())?;
    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    files::write(&one.join("f"), b"longer")?;
    wait::until("the new size", SEEN_WITHIN, || fs::metadata(other.join("f")).is_ok_and(|meta| meta.len() == 6))?;
    wait_leased(&other)?;
    cluster.start(&leader)?;
    cluster.finish([one, other])
}

#[test]
fn a_short_cache_is_kept_short_without_the_cluster_and_none_is_none() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount_with("cache=none")?;
    files::write(&mount.join("f"), b"x")?;
    ensure!(report(&mount)?["cache"] == "brief");
    let asked =
        requests(&mount, || (0..20).try_for_each(|_| fs::metadata(mount.join("f")).map(drop)).map_err(Into::into))?;
    ensure!(asked >= 20, "{asked} requests: something was kept");
    cluster.finish([mount])
}
