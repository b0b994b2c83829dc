//! What goes wrong, and when.
//!
//! Anything may happen to any number of nodes at a time, but for what destroys data: a disk is wiped or damaged on one storage
//! node and one metadata node of a run only, since the promise is to survive the loss of one copy until it is replaced.

use std::{fs, os::unix::fs::FileExt as _, path::PathBuf};

use dfs_tests::rng::Rng;

use crate::{
    cluster::{Cluster, Role},
    world::{Bypass, DiskFault, MS, Ns, SECOND, World},
};

/// Something that ends later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    Start(usize),
    Heal(usize),
    Disk(usize),
}

/// The faults of a run.
pub(crate) struct Faults {
    rng: Rng,
    remedies: Vec<(Ns, Remedy)>,
    /// The nodes whose data may be destroyed.
    victims: [Option<usize>; 2],
    pub(crate) log: Vec<String>,
}

impl Faults {
    pub(crate) fn new(seed: u64, cluster: &Cluster) -> Self {
        let mut rng = Rng::new(seed, 20);
        let victims = [Role::Storage, Role::Meta].map(|role| {
            let nodes = cluster.of(role);
            // A group of one has nobody to be filled from.
            (nodes.len() > 2 && rng.once_in(2)).then(|| *rng.pick(&nodes))
        });
        Self { rng, remedies: Vec::new(), victims, log: Vec::new() }
    }

    /// Until when to wait before the next step.
    pub(crate) fn pause(&mut self) -> Ns {
        self.rng.range(50 * MS, 1500 * MS)
    }

    fn note(&mut self, world: &World, line: String) {
        world.note(&line);
        self.log.push(format!("{:>9.3} {line}", world.now() as f64 / SECOND as f64));
    }

    fn later(&mut self, world: &World, from: Ns, to: Ns, remedy: Remedy) {
        let at = world.now() + self.rng.range(from, to);
        self.remedies.push((at, remedy));
    }

    /// Ends what is due to end; everything, at the end of the chaos. Restarts what ended by itself.
    pub(crate) fn remedy(&mut self, world: &World, cluster: &mut Cluster, all: bool) {
        let now = world.now();
        let (due, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.remedies).into_iter().partition(|(at, _)| all || *at <= now);
        self.remedies = rest;
        for (_, remedy) in due {
            match remedy {
                Remedy::Start(at) => {
                    if !world.is_up(cluster.processes[at].node) {
                        cluster.start(world, at);
                    }
                }
                Remedy::Heal(at) => world.net().heal_node(world, cluster.processes[at].node),
                Remedy::Disk(at) => {
                    let mut machine = world.machine(cluster.processes[at].node);
                    (machine.disk_fault, machine.disk_ns) = (DiskFault::None, MS / 2);
                }
            }
        }
        if all {
            world.net().heal(world);
        }
        for at in 0..cluster.processes.len() {
            if cluster.processes[at].window().ended.is_some() && world.is_up(cluster.processes[at].node) {
                self.supervise(world, cluster, at);
            }
        }
    }

    /// A process ended by itself: it is started again, as an init system would.
    fn supervise(&mut self, world: &World, cluster: &mut Cluster, at: usize) {
        world.kill(cluster.processes[at].node, false);
        cluster.processes[at].window().ended = None;
        self.later(world, 500 * MS, 1500 * MS, Remedy::Start(at));
    }

    /// Does one thing.
    pub(crate) fn strike(&mut self, world: &World, cluster: &mut Cluster) {
        let at = self.rng.below(cluster.processes.len() as u64) as usize;
        let (node, name) = (cluster.processes[at].node, cluster.processes[at].name.clone());
        match self.rng.below(20) {
            0..=3 => self.crash(world, cluster, at),
            // The lights go out for everybody.
            4 if self.rng.once_in(3) => {
                for at in 0..cluster.processes.len() {
                    self.crash(world, cluster, at);
                }
            }
            5 | 6 => self.cut_off(world, cluster, at),
            7 | 8 => self.cut_one_way(world, cluster, at),
            9 | 10 => {
                let typical = self.rng.range(5 * MS, 400 * MS);
                for other in cluster.processes.iter().map(|process| process.node) {
                    world.net().slow_down(node, other, typical);
                    if self.rng.once_in(2) {
                        world.net().slow_down(other, node, typical);
                    }
                }
                self.note(world, format!("{name}: slow network"));
                self.later(world, SECOND, 5 * SECOND, Remedy::Heal(at));
            }
            11 | 12 => {
                let woken = world.net().break_some(world, node);
                woken.into_iter().for_each(std::task::Waker::wake);
                self.note(world, format!("{name}: connections break"));
            }
            13 => {
                let time = self.rng.range(50 * MS, 4 * SECOND);
                if world.is_up(node) {
                    world.pause(node, time);
                    self.note(world, format!("{name}: stands still"));
                }
            }
            14 => self.disk_trouble(world, cluster, at),
            15 => {
                let offset = self.rng.below(240 * SECOND) as i64 - 120 * SECOND as i64;
                world.machine(node).wall_offset_ns = offset;
                self.note(world, format!("{name}: the wall clock jumps"));
            }
            16 => self.pause_leader(world, cluster),
            17 => self.damage(world, cluster),
            18 => self.wipe(world, cluster),
            _ => {}
        }
    }

    fn crash(&mut self, world: &World, cluster: &mut Cluster, at: usize) {
        let (node, name) = (cluster.processes[at].node, cluster.processes[at].name.clone());
        if !world.is_up(node) {
            return;
        }
        let power = self.rng.once_in(2);
        world.kill(node, power);
        *cluster.processes[at].window() = crate::cluster::Window::default();
        let lost = if power { world.disks().crash(&cluster.disk(at), &mut self.rng) } else { String::new() };
        self.note(world, format!("{name}: {}", if power { format!("loses power, {lost}") } else { "killed".into() }));
        self.later(world, 50 * MS, 6 * SECOND, Remedy::Start(at));
    }

    fn cut_off(&mut self, world: &World, cluster: &Cluster, at: usize) {
        let node = cluster.processes[at].node;
        for other in &cluster.processes {
            if self.rng.below(4) > 0 {
                world.net().cut(node, other.node);
                world.net().cut(other.node, node);
            }
        }
        let name = &cluster.processes[at].name;
        self.note(world, format!("{name}: cut off"));
        self.later(world, 200 * MS, 7 * SECOND, Remedy::Heal(at));
    }

    fn cut_one_way(&mut self, world: &World, cluster: &Cluster, at: usize) {
        let node = cluster.processes[at].node;
        let outward = self.rng.once_in(2);
        for other in &cluster.processes {
            if self.rng.below(3) > 0 {
                let (from, to) = if outward { (node, other.node) } else { (other.node, node) };
                world.net().cut(from, to);
            }
        }
        let name = &cluster.processes[at].name;
        self.note(world, format!("{name}: cut off one way, {}", if outward { "outward" } else { "inward" }));
        self.later(world, 200 * MS, 7 * SECOND, Remedy::Heal(at));
    }

    fn disk_trouble(&mut self, world: &World, cluster: &Cluster, at: usize) {
        let kind = self.rng.below(4);
        let (role, name) = (cluster.processes[at].role, &cluster.processes[at].name);
        let mut machine = world.machine(cluster.processes[at].node);
        match (kind, role) {
            (0, _) => machine.disk_fault = DiskFault::Full,
            (1, Role::Storage) => machine.disk_fault = DiskFault::Broken,
            _ => machine.disk_ns = self.rng.range(20 * MS, 300 * MS),
        }
        let line = format!("{name}: disk {:?}, {} ms", machine.disk_fault, machine.disk_ns / MS);
        drop(machine);
        self.note(world, line);
        self.later(world, SECOND, 5 * SECOND, Remedy::Disk(at));
    }

    fn pause_leader(&mut self, world: &World, cluster: &Cluster) {
        let leader = cluster.of(Role::Meta).into_iter().find(|at| {
            let window = cluster.processes[*at].window();
            window.raft.as_ref().is_some_and(|raft| raft.leadership().borrow().is_leader)
        });
        let Some(at) = leader else { return };
        let time = self.rng.range(300 * MS, 5 * SECOND);
        world.pause(cluster.processes[at].node, time);
        self.note(world, format!("{}: leader stands still", cluster.processes[at].name));
    }

    /// Flips a bit in some chunks of the one node where that is allowed.
    fn damage(&mut self, world: &World, cluster: &Cluster) {
        let Some(at) = self.victims[0] else { return };
        let _bypass = Bypass::new();
        let mut flipped = 0;
        for path in chunk_files(cluster.disk(at)) {
            if !self.rng.once_in(4) {
                continue;
            }
            let Ok(file) = fs::OpenOptions::new().read(true).write(true).open(&path) else { continue };
            let length = file.metadata().map_or(0, |meta| meta.len());
            let mut byte = [0];
            let offset = self.rng.below(length.max(1));
            if file.read_exact_at(&mut byte, offset).is_ok() {
                byte[0] ^= 1 << self.rng.below(8);
                flipped += usize::from(file.write_all_at(&byte, offset).is_ok());
            }
        }
        self.note(world, format!("{}: {flipped} chunks damaged", cluster.processes[at].name));
    }

    /// Takes the disk of the one node of a kind where that is allowed.
    fn wipe(&mut self, world: &World, cluster: &mut Cluster) {
        let which = self.rng.below(2) as usize;
        let Some(at) = self.victims[which].take() else { return };
        world.kill(cluster.processes[at].node, true);
        *cluster.processes[at].window() = crate::cluster::Window::default();
        world.disks().wipe(&cluster.disk(at));
        self.note(world, format!("{}: disk replaced by an empty one", cluster.processes[at].name));
        self.later(world, SECOND, 4 * SECOND, Remedy::Start(at));
    }
}

/// The chunk files of a storage node, in order.
pub(crate) fn chunk_files(disk: PathBuf) -> Vec<PathBuf> {
    let mut dirs = vec![disk];
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|ext| ext == "chunk") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
