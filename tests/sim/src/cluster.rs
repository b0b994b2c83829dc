//! The processes: which there are, how each is started, what it said when it ended.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dfs_common::units::ByteSize;
use dfs_meta::{control, raft};
use dfs_proto::machine::{Connecting, Links, Machine};

use dfs_tests::rng::Rng;

use crate::{
    net,
    workload::{self, Shared},
    world::{NodeIndex, World},
};

/// Of the log of metadata nodes. Less than people may ask for: a run is short, and is to begin and remove some.
const LOG_FILE_SIZE: ByteSize = ByteSize(8 << 10);

/// Hands everything to the world that rules the calling thread.
#[derive(Debug)]
pub(crate) struct Simulated;

impl Machine for Simulated {
    fn connect(&self, address: &str) -> Connecting {
        net::connect(address)
    }

    fn listen(&self, address: SocketAddr) -> std::io::Result<Links> {
        net::listen(address)
    }

    fn disk_delay(&self) -> Duration {
        World::with(World::disk_delay).unwrap_or_default()
    }
}

/// What a process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Meta,
    Storage,
    Client,
}

/// What a process shows to the run.
#[derive(Default)]
pub(crate) struct Window {
    pub(crate) raft: Option<raft::Handle>,
    /// Why it ended by itself.
    pub(crate) ended: Option<String>,
}

/// A process and its machine.
pub(crate) struct Process {
    pub(crate) node: NodeIndex,
    pub(crate) role: Role,
    pub(crate) name: String,
    number: u32,
    pub(crate) starts: u64,
    window: Arc<Mutex<Window>>,
}

impl Process {
    pub(crate) fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All processes of a run.
pub(crate) struct Cluster {
    pub(crate) processes: Vec<Process>,
    root: PathBuf,
    pub(crate) shared: Arc<Shared>,
    seed: u64,
    pub(crate) write_quorum: u32,
    metas: u32,
}

fn address(role: Role, number: u32) -> SocketAddr {
    let (net, port) = match role {
        Role::Meta => (1, 4001),
        Role::Storage => (2, 4000),
        Role::Client => (3, 1),
    };
    SocketAddr::from(([10, 0, net, number as u8], port))
}

impl Cluster {
    pub(crate) fn new(world: &World, seed: u64, root: &Path, counts: [u32; 3], write_quorum: u32) -> Self {
        let mut rng = Rng::new(seed, 10);
        let mut processes = Vec::new();
        for (role, count) in [Role::Meta, Role::Storage, Role::Client].into_iter().zip(counts) {
            for number in 1..=count {
                let prefix = match role {
                    Role::Meta => "meta",
                    Role::Storage => "storage",
                    Role::Client => "client",
                };
                let name = format!("{prefix}-{number}");
                // Quartz is off by tens of millionths; the leases allow for much more than this.
                let drift = rng.below(2001) as i64 - 1000;
                let wall = (rng.below(4_000_000_000) as i64) - 2_000_000_000;
                let node = world.add_machine(&name, drift, wall);
                world.net().add_host(address(role, number).ip(), node);
                processes.push(Process { node, role, name, number, starts: 0, window: Arc::default() });
            }
        }
        let shared = Arc::default();
        Self { processes, root: root.to_owned(), shared, seed, write_quorum, metas: counts[0] }
    }

    pub(crate) fn meta_addresses(&self) -> Vec<String> {
        (1..=self.metas).map(|number| address(Role::Meta, number).to_string()).collect()
    }

    pub(crate) fn disk(&self, at: usize) -> PathBuf {
        self.root.join(&self.processes[at].name)
    }

    pub(crate) fn of(&self, role: Role) -> Vec<usize> {
        (0..self.processes.len()).filter(|at| self.processes[*at].role == role).collect()
    }

    /// Starts a process.
    pub(crate) fn start(&mut self, world: &World, at: usize) {
        let woken = world.net().power_on(world, self.processes[at].node);
        woken.into_iter().for_each(std::task::Waker::wake);
        let (meta, seed) = (self.meta_addresses(), self.seed);
        let disk = self.disk(at);
        let quorum = self.write_quorum;
        let process = &mut self.processes[at];
        process.starts += 1;
        process.window = Arc::default();
        let window = process.window.clone();
        let name = process.name.clone();
        world.note(&format!("{name} starts"));
        match process.role {
            Role::Meta => {
                let trash = if seed % 2 == 0 { "0s" } else { "3s" };
                let args = meta_args(&name, process.number, &meta, &disk, quorum, trash);
                world.boot(process.node, meta_process(args, window));
            }
            Role::Storage => {
                let args = storage_args(&name, process.number, &meta, &disk, seed);
                world.boot(process.node, storage_process(args, window));
            }
            Role::Client => {
                let seed = seed ^ (u64::from(process.number) << 32) ^ (process.starts << 40);
                world.boot(process.node, workload::client(meta, name, seed, self.shared.clone()));
            }
        }
    }

    /// The handle of the metadata node that leads, if one does.
    pub(crate) fn leader(&self) -> Option<raft::Handle> {
        self.of(Role::Meta).into_iter().find_map(|at| {
            let handle = self.processes[at].window().raft.clone()?;
            let leads = handle.leadership().borrow().is_leader;
            leads.then_some(handle)
        })
    }
}

fn meta_args(name: &str, number: u32, meta: &[String], disk: &Path, quorum: u32, trash: &str) -> Vec<OsString> {
    let peers: Vec<_> = (1..).zip(meta).map(|(n, address)| format!("meta-{n}={address}")).collect();
    let listen = address(Role::Meta, number).to_string();
    let (peers, quorum) = (peers.join(","), quorum.to_string());
    let mut args: Vec<OsString> = [
        "dfs-meta",
        "--name",
        name,
        "--listen",
        &listen,
        "--peers",
        &peers,
        "--write-quorum",
        &quorum,
        "--chunk-size",
        "64K",
        "--heartbeat",
        "1s",
        "--suspect",
        "3s",
        "--dead",
        "8s",
        "--session-lease",
        "12s",
        "--raft-heartbeat",
        "200ms",
        "--election-min",
        "800ms",
        "--election-max",
        "1600ms",
        "--gc-grace",
        "4s",
        "--trash-retention",
        trash,
        "--trim-grace",
        "4s",
        "--snapshot-threshold",
        "150",
        "--log-keep",
        "50",
    ]
    .into_iter()
    .map(OsString::from)
    .collect();
    args.extend(["--data-dir".into(), disk.into()]);
    args
}

fn storage_args(name: &str, number: u32, meta: &[String], disk: &Path, seed: u64) -> Vec<OsString> {
    let listen = address(Role::Storage, number).to_string();
    let (meta, rack) = (meta.join(","), format!("rack-{number}"));
    let mut args: Vec<OsString> = [
        "dfs-storage",
        "--name",
        name,
        "--listen",
        &listen,
        "--meta",
        &meta,
        "--rack",
        &rack,
        "--capacity",
        "64M",
        "--reserve",
        "64K",
        "--memory",
        "16M",
        "--stall-timeout",
        "3s",
    ]
    .into_iter()
    .map(OsString::from)
    .collect();
    if seed.is_multiple_of(2) {
        args.extend(["--scrub-interval", "15s", "--scrub-tranquility", "1"].map(OsString::from));
    }
    // A machine loses power with all its disks.
    let disks = if seed.is_multiple_of(3) { vec![disk.join("a"), disk.join("b")] } else { vec![disk.to_owned()] };
    args.extend(disks.into_iter().flat_map(|disk| ["--data-dir".into(), disk.into()]));
    args
}

/// The tunables of the control loops, in proportion to the shorter times.
fn tunables(settings: control::Settings) -> control::Settings {
    let seconds = Duration::from_secs;
    control::Settings {
        unknown_grace: seconds(26),
        inventory_interval: seconds(30),
        inventory_delay: seconds(5),
        placement_valid: seconds(3),
        repair: control::RepairSettings {
            lease: seconds(6),
            fresh: seconds(1),
            backoff: seconds(1),
            backoff_max: seconds(8),
            ..settings.repair
        },
        ..settings
    }
}

fn ended(window: &Mutex<Window>, name: &str, why: String) {
    World::with(|world| world.note(&format!("{name} ends: {why}")));
    let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
    window.raft = None;
    window.ended = Some(why);
}

async fn meta_process(args: Vec<OsString>, window: Arc<Mutex<Window>>) {
    let mut config = dfs_meta::config::Config::load(args).unwrap_or_else(|error| panic!("{error}"));
    config.log_file_size = LOG_FILE_SIZE;
    let started = dfs_meta::server::Server::start_with(&config, tunables(config.control())).await;
    match started {
        Ok(mut server) => {
            window.lock().unwrap_or_else(PoisonError::into_inner).raft = Some(server.raft());
            let why = server.failed().await.to_string();
            server.stop().await;
            ended(&window, &config.name, why);
        }
        Err(error) => ended(&window, &config.name, format!("cannot start: {error}")),
    }
}

async fn storage_process(args: Vec<OsString>, window: Arc<Mutex<Window>>) {
    let config = dfs_storage::config::Config::load(args).unwrap_or_else(|error| panic!("{error}"));
    match dfs_storage::server::Server::start(&config).await {
        Ok(mut server) => {
            let why = server.failed().await.to_string();
            server.stop().await;
            ended(&window, &config.name, why);
        }
        Err(error) => ended(&window, &config.name, format!("cannot start: {error}")),
    }
}
