//! The cluster: which processes there are, how they are started, asked and ended.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Mount, bins,
    disk::Disk,
    logs::{self, Expectations},
    network::{self, Network, Site},
    process::Process,
    program::run_on,
    wait,
};

pub use crate::program::{Output, dfsctl, run};

/// How long a cluster may take from its start to its first answer.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// Which cluster a test wants. Times are shorter than the defaults, so that tests of failures do not wait long.
#[derive(Clone, Debug)]
pub struct Builder {
    metas: usize,
    storages: usize,
    meta_flags: Vec<(String, String)>,
    storage_flags: Vec<(String, String)>,
    expected: Expectations,
    /// Machines for mounts, if each process has one of its own.
    machines: Option<usize>,
}

impl Builder {
    /// Number of metadata nodes (1 by default).
    #[must_use]
    pub fn metas(mut self, count: usize) -> Self {
        self.metas = count;
        self
    }

    /// Number of storage nodes (3 by default).
    #[must_use]
    pub fn storages(mut self, count: usize) -> Self {
        self.storages = count;
        self
    }

    /// A flag of every metadata node, like `("--snapshot-threshold", "100")`.
    #[must_use]
    pub fn meta_flag(mut self, flag: &str, value: &str) -> Self {
        set(&mut self.meta_flags, flag, value);
        self
    }

    /// A flag of every storage node.
    #[must_use]
    pub fn storage_flag(mut self, flag: &str, value: &str) -> Self {
        set(&mut self.storage_flags, flag, value);
        self
    }

    /// Something will fail in this test: WARN lines are no defect. ERROR lines and panics still are.
    #[must_use]
    pub fn faults(mut self) -> Self {
        self.expected.warnings = true;
        self
    }

    /// Log lines with this text are part of the test, ERROR or not.
    #[must_use]
    pub fn expect_log(mut self, text: &str) -> Self {
        self.expected.lines.push(text.to_owned());
        self
    }

    /// Each process gets a machine of its own, and so do as many mounts: see [`Network`]. It takes root.
    #[must_use]
    pub fn machines(mut self, mounts: usize) -> Self {
        self.machines = Some(mounts);
        self
    }

    /// Starts everything and waits until all storage nodes are alive.
    ///
    /// # Errors
    /// It does not come up in time.
    pub fn start(self) -> Result<Cluster> {
        let mut cluster = self.describe()?;
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Prepares everything and starts nothing.
    ///
    /// # Errors
    /// No temporary directory, or the programs are not built.
    pub fn describe(self) -> Result<Cluster> {
        let dir = tempfile::Builder::new().prefix("dfs-test-").tempdir()?;
        let site = match self.machines {
            None => Site::new(),
            Some(mounts) => Site::Network(Network::new(&self.names(mounts))?),
        };
        let mut cluster = Cluster {
            metas: (1..=self.metas).map(|i| site.address(&format!("meta-{i}"), 4100 + i)).collect(),
            storages: (1..=self.storages).map(|i| site.address(&format!("storage-{i}"), 4000 + i)).collect(),
            processes: Vec::new(),
            mounts: 0,
            expected: self.expected.clone(),
            finished: false,
            meta_flags: self.meta_flags.clone(),
            site,
            disks: BTreeMap::new(),
            dir,
        };
        fs::create_dir_all(cluster.dir().join("log"))?;
        for i in 1..=self.metas {
            let process = cluster.describe_meta(i, &self.meta_flags)?;
            cluster.processes.push(process);
        }
        for i in 1..=self.storages {
            let process = cluster.describe_storage(i, &self.storage_flags)?;
            cluster.processes.push(process);
        }
        Ok(cluster)
    }

    fn names(&self, mounts: usize) -> Vec<String> {
        let counts = [("meta", self.metas), ("storage", self.storages), ("mnt", mounts)];
        counts.iter().flat_map(|(kind, count)| (1..=*count).map(move |i| format!("{kind}-{i}"))).collect()
    }
}

fn set(flags: &mut Vec<(String, String)>, flag: &str, value: &str) {
    flags.retain(|(known, _)| known != flag);
    flags.push((flag.to_owned(), value.to_owned()));
}

/// A running cluster. End it with [`Cluster::finish`].
#[derive(Debug)]
pub struct Cluster {
    metas: Vec<String>,
    storages: Vec<String>,
    processes: Vec<Process>,
    mounts: usize,
    expected: Expectations,
    finished: bool,
    meta_flags: Vec<(String, String)>,
    site: Site,
    disks: BTreeMap<String, Disk>,
    // After the disks, which are mounted in it.
    dir: TempDir,
}

impl Cluster {
    /// One metadata node and three storage nodes, if nothing else is said.
    #[must_use]
    pub fn builder() -> Builder {
        let times = [("--suspect", "1500ms"), ("--dead", "4s"), ("--heartbeat", "300ms")];
        Builder {
            metas: 1,
            storages: 3,
            meta_flags: times.map(|(flag, value)| (flag.to_owned(), value.to_owned())).to_vec(),
            storage_flags: Vec::new(),
            expected: Expectations::default(),
            machines: None,
        }
    }

    /// The directory of everything: data of the nodes, logs, mount points.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A new directory outside of the cluster's file tree, for files to compare with.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn scratch(&self) -> Result<PathBuf> {
        let path = self.dir().join("scratch");
        fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Addresses of the metadata nodes as clients take them.
    #[must_use]
    pub fn meta_addresses(&self) -> String {
        self.metas.join(",")
    }

    /// The data directory of a node, like `storage-1`.
    #[must_use]
    pub fn data_dir(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Gives a node that was never started a small disk of its own: see [`Disk`].
    ///
    /// # Errors
    /// As [`Disk::new`].
    pub fn small_disk(&mut self, name: &str, bytes: u64) -> Result<()> {
        let disk = Disk::new(&self.data_dir(name), bytes)?;
        self.disks.insert(name.to_owned(), disk);
        Ok(())
    }

    /// The small disk of a node.
    ///
    /// # Errors
    /// It has none.
    pub fn disk(&self, name: &str) -> Result<&Disk> {
        self.disks.get(name).with_context(|| format!("{name} has no disk of its own"))
    }

    /// The directory stays when the cluster is gone.
    pub fn keep(&mut self) {
        self.dir.disable_cleanup(true);
    }

    /// The log of a node.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir().join("log").join(format!("{name}.log"))
    }

    fn describe_meta(&self, i: usize, flags: &[(String, String)]) -> Result<Process> {
        let name = format!("meta-{i}");
        let peers: Vec<_> = self.metas.iter().enumerate().map(|(at, addr)| format!("meta-{}={addr}", at + 1)).collect();
        let address = &self.metas[i - 1];
        let own = [("--peers", peers.join(","))];
        self.describe_node("dfs-meta", &name, address, &own, flags)
    }

    fn describe_storage(&self, i: usize, flags: &[(String, String)]) -> Result<Process> {
        let own = [("--meta", self.meta_addresses()), ("--rack", format!("rack-{i}"))];
        self.describe_node("dfs-storage", &format!("storage-{i}"), &self.storages[i - 1], &own, flags)
    }

    fn describe_node(
        &self,
        program: &str,
        name: &str,
        address: &str,
        own: &[(&str, String)],
        flags: &[(String, String)],
    ) -> Result<Process> {
        let data = self.data_dir(name).display().to_string();
        let common = [("--name", name), ("--listen", address), ("--advertise", address), ("--data-dir", &data)];
        let mut args: Vec<String> = Vec::new();
        args.extend(common.iter().flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()]));
        args.extend(own.iter().flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]));
        args.extend(flags.iter().flat_map(|(flag, value)| [flag.clone(), value.clone()]));
        let process = Process::new(name, bins::path(program)?, args, Vec::new(), self.log(name));
        Ok(process.on(self.site.namespace(name)))
    }

    /// Starts a further metadata node, `meta-i`, which waits to be added. Returns its address.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn join_meta(&mut self, i: usize) -> Result<String> {
        let (name, address) = (format!("meta-{i}"), self.meta_address(i));
        let own = [("--join", self.meta_addresses())];
        let process = self.describe_node("dfs-meta", &name, &address, &own, &self.meta_flags)?;
        self.processes.insert(0, process);
        self.start(&name)?;
        Ok(address)
    }

    /// `address` is from now on one of the metadata nodes that `dfsctl` and new mounts are told of.
    pub fn use_meta(&mut self, address: &str) {
        self.metas.push(address.to_owned());
    }

    /// A metadata node is gone for good: nobody is told of its address any more.
    pub fn forget_meta(&mut self, i: usize) {
        let address = self.meta_address(i);
        self.metas.retain(|known| *known != address);
    }

    /// The address of the metadata node `meta-i`.
    #[must_use]
    pub fn meta_address(&self, i: usize) -> String {
        self.site.address(&format!("meta-{i}"), 4100 + i)
    }

    /// The network, if each process has a machine of its own.
    ///
    /// # Errors
    /// The cluster was built without machines.
    pub fn network(&self) -> Result<&Network> {
        match &self.site {
            Site::Network(network) => Ok(network),
            Site::Loopback(_) => bail!("the processes of this cluster share one machine"),
        }
    }

    /// The process of a node.
    ///
    /// # Panics
    /// There is no node of that name.
    pub fn node(&mut self, name: &str) -> &mut Process {
        let found = self.processes.iter_mut().find(|process| process.name() == name);
        found.unwrap_or_else(|| panic!("no node {name}"))
    }

    /// All nodes: metadata first.
    pub fn nodes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.processes.iter_mut()
    }

    /// Starts every node that does not run, and waits until all are up.
    ///
    /// # Errors
    /// Not in time.
    pub fn start_all(&mut self) -> Result<()> {
        for process in &mut self.processes {
            if process.pid().is_none() {
                process.start()?;
            }
        }
        self.wait_alive(self.storages.len())
    }

    /// Starts one node.
    ///
    /// # Errors
    /// It runs already.
    pub fn start(&mut self, name: &str) -> Result<()> {
        self.node(name).start()
    }

    /// `kill -9` of one node.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.node(name).kill()
    }

    /// Clean stop of one node.
    ///
    /// # Errors
    /// It does not run, or does not end cleanly.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        self.node(name).stop()
    }

    /// Waits until the cluster answers and `count` storage nodes are alive.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_alive(&mut self, count: usize) -> Result<()> {
        let mut last = String::new();
        let waited = wait::until(&format!("{count} storage nodes are alive"), READY_LIMIT, || match self.status() {
            Ok(status) => {
                last = status.to_string();
                alive(&status) == count
            }
            Err(error) => {
                last = error.to_string();
                false
            }
        });
        for process in &mut self.processes {
            if let Some(status) = process.ended() {
                bail!("{} ended with {status}: {}", process.name(), logs::tail(process.log(), 20));
            }
        }
        waited.with_context(|| last)
    }

    /// Waits until every chunk has all its copies.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_healthy(&self, limit: Duration) -> Result<()> {
        let timeout = format!("{}s", limit.as_secs());
        self.dfsctl_ok(&["wait", "healthy", "--timeout", &timeout]).map(|_| ())
    }

    /// What `dfsctl status --json` says.
    ///
    /// # Errors
    /// It fails, or says no JSON.
    pub fn status(&self) -> Result<Value> {
        // `status` reports an unhealthy cluster by its exit code as well, and prints all the same.
        let output = self.dfsctl(&["status", "--json"])?;
        serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
    }

    /// The name of the metadata leader, once there is one.
    ///
    /// # Errors
    /// Not in time.
    pub fn leader(&self) -> Result<String> {
        wait::until_some("a metadata leader", READY_LIMIT, || {
            let leader = self.status().ok()?["meta"]["leader"].as_str()?.to_owned();
            (!leader.is_empty()).then_some(leader)
        })
    }

    /// Runs `dfsctl` against this cluster.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn dfsctl(&self, args: &[&str]) -> Result<Output> {
        let meta = self.meta_addresses();
        let args = [&["--meta", meta.as_str()], args].concat();
        run_on(self.site.namespace(network::HUB).as_deref(), &bins::path("dfsctl")?, &args)
    }

    /// Runs `dfsctl` and demands exit code 0.
    ///
    /// # Errors
    /// It fails; what it said is in the message.
    pub fn dfsctl_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.dfsctl(args)?;
        ensure!(output.code == 0, "dfsctl {args:?}: {output:?}");
        Ok(output.stdout)
    }

    /// A new mount.
    ///
    /// # Errors
    /// It does not come up.
    pub fn mount(&mut self) -> Result<Mount> {
        self.mount_with("")
    }

    /// A new mount with `-o options`.
    ///
    /// # Errors
    /// It does not come up.
    pub fn mount_with(&mut self, options: &str) -> Result<Mount> {
        self.mount_by(options, &[])
    }

    /// A new mount with `-o options` and a supervisor, which starts another process when the one that serves dies.
    ///
    /// # Errors
    /// It does not come up.
    pub fn mount_supervised(&mut self, options: &str) -> Result<Mount> {
        self.mount_by(options, &["--supervise"])
    }

    fn mount_by(&mut self, options: &str, more: &[&str]) -> Result<Mount> {
        self.mounts += 1;
        let name = format!("mnt-{}", self.mounts);
        let (path, log) = (self.dir().join(&name), self.log(&name));
        Mount::start_on(self.site.namespace(&name), &self.meta_addresses(), &path, options, more, log)
    }

    /// Ends the test: unmounts, stops every node that runs, and looks through all logs.
    ///
    /// # Errors
    /// Something does not end cleanly, or a log holds what the test did not announce.
    pub fn finish(mut self, mounts: impl IntoIterator<Item = Mount>) -> Result<()> {
        for mut mount in mounts {
            mount.stop()?;
        }
        // Storage first, as an administrator would: metadata takes their farewell.
        for process in self.processes.iter_mut().rev() {
            if let Some(status) = process.ended() {
                bail!("{} had ended with {status}", process.name());
            }
            if process.pid().is_some() {
                process.stop()?;
            }
        }
        self.check_logs()?;
        self.finished = true;
        Ok(())
    }

    fn check_logs(&self) -> Result<()> {
        for entry in fs::read_dir(self.dir().join("log"))? {
            let path = entry?.path();
            let lines = logs::unexpected(&path, &self.expected);
            ensure!(lines.is_empty(), "unexpected in {}:\n{}", path.display(), lines.join("\n"));
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            if process.pid().is_some() {
                let _ = process.kill();
            }
        }
        if self.finished {
            return;
        }
        let logs = fs::read_dir(self.dir().join("log")).into_iter().flatten().flatten();
        for entry in logs {
            eprintln!("---- end of {}\n{}", entry.file_name().display(), logs::tail(&entry.path(), 15));
        }
        if std::env::var_os("DFS_TEST_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("kept {}", self.dir().display());
        }
    }
}

/// How many storage nodes a status says are alive.
#[must_use]
pub fn alive(status: &Value) -> usize {
    let nodes = status["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().filter(|node| node["state"] == "alive").count()
}
