//! Every moment between two durable steps: a process dies exactly there, is started again, and nothing acknowledged is lost, nothing
//! is left over. The table in docs/architecture.md says for each point what must happen; each of its rows names a test here.

mod clients;
mod metadata;
mod repair;
mod storage;

use std::{
    fs::{self, File},
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{Builder, Cluster, Mount, cluster::alive, files, wait};
use serde_json::Value;

/// Longest time for what takes a moment on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of the files, in turn: through the page cache and past it.
const SIZES: [usize; 2] = [9000, 200_000];

/// A cluster in which nothing waits for long: garbage goes within seconds.
fn builder() -> Builder {
    [
        ("--session-lease", "2s"),
        ("--unknown-grace", "4s"),
        ("--gc-grace", "1s"),
        ("--trim-grace", "1s"),
        ("--inventory-delay", "1s"),
        ("--trash-retention", "0s"),
    ]
    .into_iter()
    .fold(Cluster::builder().faults(), |builder, (flag, value)| builder.meta_flag(flag, value))
}

/// A cluster with a mount, and the files that were acknowledged.
struct Case {
    cluster: Cluster,
    mount: Mount,
    /// Storage nodes.
    nodes: usize,
    stored: Vec<u64>,
    next: u64,
}

fn name(number: u64) -> String {
    format!("f{number}")
}

fn content(number: u64) -> Vec<u8> {
    files::noise(number, SIZES[usize::try_from(number % 2).expect("small")])
}

/// Writes a file of one chunk that must be new.
fn write(mount: &Mount, number: u64) -> Result<()> {
    let written = File::create_new(mount.join(name(number))).and_then(|mut file| {
        file.write_all(&content(number))?;
        files::close(file)
    });
    written.with_context(|| name(number))
}

impl Case {
    fn start(builder: Builder) -> Result<Self> {
        Self::over(builder.start()?)
    }

    /// Over a cluster that runs.
    fn over(mut cluster: Cluster) -> Result<Self> {
        let mount = cluster.mount()?;
        let nodes = alive(&cluster.status()?);
        Ok(Self { cluster, mount, nodes, stored: Vec::new(), next: 0 })
    }

    /// Writes one more file of one chunk.
    fn write(&mut self) -> Result<()> {
        let number = self.next;
        self.next += 1;
        write(&self.mount, number)?;
        self.stored.push(number);
        Ok(())
    }

    fn write_many(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|_| self.write())
    }

    /// Removes the newest file.
    fn remove(&mut self) -> Result<()> {
        let number = self.stored.pop().context("no file is left")?;
        fs::remove_file(self.mount.join(name(number))).with_context(|| name(number))
    }

    /// Starts `node` with `point`, writes until it has died there, and starts it again. Every write must succeed meanwhile.
    fn crash_while_writing(&mut self, node: &str, point: &str) -> Result<()> {
        self.cluster.arm(node, point)?;
        let begun = Instant::now();
        while self.cluster.node(node).ended().is_none() && begun.elapsed() < LIMIT {
            self.write()?;
        }
        self.back(node, point)
    }

    /// The same while one file after the other is written meanwhile: for a node without which nothing goes on.
    fn crash_under_load(&mut self, node: &str, point: &str) -> Result<()> {
        let crashed = self.under_load(|cluster| {
            cluster.arm(node, point)?;
            cluster.await_crash(node, point)
        });
        crashed.with_context(|| point.to_owned())
    }

    /// Runs `crashes` while one file after the other is written, all of which must succeed.
    fn under_load(&mut self, crashes: impl FnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
        let (stop, first, nodes) = (AtomicBool::new(false), self.next, self.nodes);
        let Self { cluster, mount, .. } = self;
        let (crashed, next) = thread::scope(|scope| {
            let writer = scope.spawn(|| -> Result<u64> {
                let mut next = first;
                while !stop.load(Ordering::Relaxed) {
                    write(mount, next)?;
                    next += 1;
                }
                Ok(next)
            });
            let crashed = crashes(cluster).and_then(|()| cluster.wait_alive(nodes));
            stop.store(true, Ordering::Relaxed);
            (crashed, writer.join().expect("the writer does not panic"))
        });
        crashed?;
        self.next = next?;
        self.stored.extend(first..self.next);
        Ok(())
    }

    /// Writes one more file while `slow` is stopped, and lets it go on when the file is written, or when nothing happens. It may fail
    /// if all of the `armed` nodes died meanwhile.
    fn write_beside_a_slow_node(&mut self, slow: &str, armed: [&str; 2]) -> Result<()> {
        let number = self.next;
        self.next += 1;
        let Self { cluster, mount, .. } = self;
        let written = thread::scope(|scope| {
            cluster.node(slow).signal(libc::SIGSTOP)?;
            let writer = scope.spawn(|| write(mount, number));
            // If it is the primary, the file waits for it.
            let written = wait::until("the file is written", Duration::from_secs(1), || writer.is_finished());
            cluster.node(slow).signal(libc::SIGCONT)?;
            drop(written);
            anyhow::Ok(writer.join().expect("the writer does not panic"))
        })?;
        let is_acknowledged = written.is_ok();
        if is_acknowledged {
            self.stored.push(number);
        } else if !armed.into_iter().all(|node| self.cluster.node(node).ended().is_some()) {
            written?;
        }
        Ok(())
    }

    /// Waits until `node` has died at `point`, starts it again, and waits until all are there.
    fn back(&mut self, node: &str, point: &str) -> Result<()> {
        self.cluster.await_crash(node, point)?;
        self.cluster.wait_alive(self.nodes)
    }

    /// Every acknowledged file has its bytes, on as many disks as wanted, and the disks hold nothing else.
    fn check(&mut self) -> Result<()> {
        self.cluster.wait_alive(self.nodes)?;
        self.mount.remount()?;
        for number in &self.stored {
            let got = fs::read(self.mount.join(name(*number))).with_context(|| name(*number))?;
            ensure!(files::sha256_of(&got) == files::sha256_of(&content(*number)), "{} differs", name(*number));
        }
        self.cluster.wait_healthy(LIMIT)?;
        self.until_tidy()?;
        self.cluster.dfsctl_ok(&["fsck", "--verify"]).map(drop)
    }

    /// Waits until the disks hold three copies of each chunk and no file besides, and nothing waits to be deleted.
    fn until_tidy(&self) -> Result<()> {
        let wanted = 3 * self.stored.len();
        let mut found = 0;
        let tidy = wait::until("nothing is left over on the disks", LIMIT, || {
            found = chunk_files(&self.cluster).unwrap_or(0);
            found == wanted && self.cluster.status().is_ok_and(|status| holds_nothing(&status))
        });
        tidy.with_context(|| format!("{found} chunk files and leftovers, wanted {wanted}"))
    }

    fn finish(mut self) -> Result<()> {
        self.check()?;
        self.cluster.finish([self.mount])
    }
}

/// Waits until each of the nodes has died at its point, in whatever order, and starts each again.
fn back_in_any_order(cluster: &mut Cluster, mut armed: Vec<(&str, &str)>) -> Result<()> {
    let mut failed = None;
    wait::until("all have died", LIMIT, || {
        armed.retain(|(node, point)| {
            let is_down = cluster.node(node).ended().is_some();
            if is_down && let Err(error) = cluster.await_crash(node, point) {
                failed = Some(error);
            }
            !is_down
        });
        armed.is_empty() || failed.is_some()
    })
    .with_context(|| format!("{armed:?} are left"))?;
    failed.map_or(Ok(()), Err)
}

/// Whether there is neither garbage nor a deletion that is not confirmed.
fn holds_nothing(status: &Value) -> bool {
    let held = &status["space_held"];
    held["garbage"]["versions"] == 0 && held["doomed"].as_array().is_some_and(Vec::is_empty)
}

/// Chunk files and temporary files of all storage nodes.
fn chunk_files(cluster: &Cluster) -> Result<usize> {
    let script = "find \"$1\"/storage-*/chunks \"$1\"/storage-*/tmp -type f | wc -l";
    Ok(files::sh(script, &[cluster.dir()])?.trim().parse()?)
}
