//! One run: start, chaos, peace, judgement.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Once, PoisonError, atomic::Ordering},
};

use dfs_common::{ChunkId, node::NodeState};
use dfs_meta::fsm::{Node, State, check::check};
use dfs_tests::history::{self, Object, Operation, Verdict};

use crate::{
    cluster::{Cluster, Role, Simulated},
    faults::{Faults, chunk_files},
    shim, workload,
    world::{Bypass, MS, Ns, SECOND, World},
};

/// A mistake that is put in on purpose, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Defect {
    /// Storage nodes acknowledge chunks that are not on disk.
    ChunksNotSynced,
    /// Metadata nodes acknowledge entries and votes that are not on disk.
    LogNotSynced,
    /// One copy of a chunk is enough for an acknowledgement.
    QuorumOfOne,
    /// A leader's clock runs at a quarter of its speed: it answers reads long after its lease.
    SlowClock,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The number from which everything follows.
    pub seed: u64,
    /// Whether to keep the trace as text.
    pub keep_trace: bool,
    /// A mistake to put in.
    pub defect: Option<Defect>,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What was promised and not kept.
    pub violations: Vec<String>,
    /// Checksum over everything that happened.
    pub hash: u64,
    /// The trace, if wanted.
    pub trace: Vec<String>,
    /// The faults.
    pub faults: Vec<String>,
    /// Operations of clients, and how many of them have no answer.
    pub operations: (usize, usize),
    /// Files read and compared.
    pub reads: u64,
    /// Virtual seconds until everything was well again after the faults, and in all.
    pub seconds: (f64, f64),
    /// Histories that were too long to judge.
    pub undecided: usize,
    /// Errors that clients saw, by kind.
    pub failures: BTreeMap<String, u64>,
    /// Times that a runtime was run.
    pub turns: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operations, unknown) = self.operations;
        write!(
            f,
            "seed {}: {operations} operations ({unknown} unknown), {} reads, {} faults, healed in {:.1} s, {:.1} s in all, \
             trace {:016x}",
            self.seed,
            self.reads,
            self.faults.len(),
            self.seconds.0,
            self.seconds.1,
            self.hash
        )?;
        for violation in &self.violations {
            write!(f, "\n  VIOLATION: {violation}")?;
        }
        Ok(())
    }
}

/// Between two looks of the script at the world.
const LOOK: Ns = 500 * MS;
/// The cluster is up within this time.
const START_MAX: Ns = 30 * SECOND;
/// Everything is well within this time after the last fault.
const HEAL_MAX: Ns = 150 * SECOND;
/// The last reads take at most this time.
const AUDIT_MAX: Ns = 90 * SECOND;

static INSTALL: Once = Once::new();

/// Runs one seed, on a thread of its own. A process runs one seed only if it is to repeat exactly: libraries count some things for
/// a process, and addresses of memory decide some orders, see [`repeatable`].
///
/// # Panics
/// The thread cannot be made, or the simulation itself fails.
#[must_use]
pub fn run(settings: &Settings) -> Report {
    INSTALL.call_once(|| {
        assert!(shim::installed() > 0);
        dfs_proto::machine::simulate(&Simulated);
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            World::with(|world| world.panics.borrow_mut().push(panic.to_string()));
            print(panic);
        }));
    });
    let settings = settings.clone();
    let thread = std::thread::Builder::new().name(format!("seed-{}", settings.seed)).stack_size(16 << 20);
    let seed = settings.seed;
    let running = thread.spawn(move || go(&settings)).expect("a thread can be made");
    match running.join() {
        Ok(report) => report,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            panic!("seed {seed}: {}", text.unwrap_or_default())
        }
    }
}

/// Makes this process repeat exactly: restarts it with memory at fixed addresses, unless it has been.
///
/// # Errors
/// The program cannot be started again.
pub fn repeatable() -> std::io::Result<()> {
    use std::os::unix::process::CommandExt as _;
    if shim::fix_addresses() {
        return Ok(());
    }
    Err(std::process::Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).exec())
}

/// Where the process of that number keeps the disks of its run. Always of the same length: paths are part of messages.
#[must_use]
pub fn directory(process: u32) -> PathBuf {
    PathBuf::from(format!("/dev/shm/dfs-sim/{process:07}"))
}

/// The nodes but for those whose disk was replaced: a new disk is a new node of the same name.
fn present(state: &State) -> impl Iterator<Item = &Node> {
    state.nodes().filter(|node| !state.nodes().any(|other| other.name == node.name && other.id > node.id))
}

struct Run {
    cluster: Cluster,
    faults: Faults,
    settings: Settings,
    violations: Vec<String>,
    healed_in: Ns,
    undecided: usize,
}

fn go(settings: &Settings) -> Report {
    let (seed, process) = (settings.seed, std::process::id());
    let root = directory(process);
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join(".removed")).expect("a directory in memory");
    let world = World::new(seed, &root, settings.keep_trace);
    // Everything that draws random numbers must be made under its rule, each hash map among them.
    let run = world.rule(|world| {
        let mut run = Run::new(world, settings, &root);
        run.play(world);
        run.judge(world);
        run
    });
    let _ = fs::remove_dir_all(&root);
    run.report(world)
}

impl Run {
    fn new(world: &World, settings: &Settings, root: &Path) -> Self {
        let (settings, seed) = (settings.clone(), settings.seed);
        let quorum = if settings.defect == Some(Defect::QuorumOfOne) { 1 } else { 2 };
        let cluster = Cluster::new(world, seed, root, [3, 4, 3], quorum);
        let faults = Faults::new(seed, &cluster);
        let run = Self { cluster, faults, settings, violations: Vec::new(), healed_in: 0, undecided: 0 };
        run.plant(world);
        run
    }

    fn plant(&self, world: &World) {
        for (at, process) in self.cluster.processes.iter().enumerate() {
            let mut machine = world.machine(process.node);
            match (self.settings.defect, process.role) {
                (Some(Defect::ChunksNotSynced), Role::Storage) | (Some(Defect::LogNotSynced), Role::Meta) => {
                    machine.lies_about_sync = true;
                }
                (Some(Defect::SlowClock), Role::Meta) if at % 2 == 0 => machine.drift_ppm = -900_000,
                _ => {}
            }
        }
    }

    fn play(&mut self, world: &World) {
        if self.start(world) {
            self.chaos(world);
            self.peace(world);
        }
        for at in 0..self.cluster.processes.len() {
            *self.cluster.processes[at].window() = crate::cluster::Window::default();
            world.kill(self.cluster.processes[at].node, true);
        }
    }

    /// Lets time pass until the next look.
    fn wait(&mut self, world: &World, time: Ns) {
        world.script_at(world.now() + time);
        world.run();
    }

    /// Waits until `done`, looking now and then. `false`: it took too long.
    fn wait_for(&mut self, world: &World, max: Ns, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = world.now() + max;
        while world.now() < end {
            if done(self) {
                return true;
            }
            self.wait(world, LOOK);
            self.faults.remedy(world, &mut self.cluster, false);
        }
        done(self)
    }

    fn start(&mut self, world: &World) -> bool {
        for at in [self.cluster.of(Role::Meta), self.cluster.of(Role::Storage)].concat() {
            self.cluster.start(world, at);
        }
        let storages = self.cluster.of(Role::Storage).len();
        let up = self.wait_for(world, START_MAX, |run| {
            run.cluster.leader().is_some_and(|leader| leader.peek(|state| state.nodes().count()) == storages)
        });
        if !up {
            self.violations.push("the cluster did not come up".into());
            return false;
        }
        let clients: Vec<_> = self.cluster.of(Role::Client);
        let names: Vec<_> = clients.iter().map(|at| self.cluster.processes[*at].name.clone()).collect();
        let (meta, shared) = (self.cluster.meta_addresses(), self.cluster.shared.clone());
        let prepared = self.on_client(world, START_MAX, async move {
            let dfs = workload::connect(&meta, "first").await?;
            workload::prepare(&dfs, &shared, &names).await?;
            dfs.close().await;
            Ok(())
        });
        if let Err(error) = prepared {
            self.violations.push(format!("nothing could be prepared: {error}"));
            return false;
        }
        for at in clients {
            self.cluster.start(world, at);
        }
        true
    }

    /// Runs something on the machine of a client that is down.
    fn on_client(
        &mut self,
        world: &World,
        max: Ns,
        task: impl Future<Output = Result<(), dfs_client::Error>> + Send + 'static,
    ) -> Result<(), String> {
        let node = self.cluster.processes[self.cluster.of(Role::Client)[0]].node;
        world.kill(node, false);
        let outcome = Arc::new(Mutex::new(None));
        let set = outcome.clone();
        world.boot(node, async move {
            let done = task.await.map_err(|error| format!("{error} {:?}", error.tried));
            *set.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        });
        let get = || outcome.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.wait_for(world, max, |_| get().is_some());
        world.kill(node, false);
        get().unwrap_or_else(|| Err("no answer within the time given".into()))
    }

    fn chaos(&mut self, world: &World) {
        self.wait(world, SECOND);
        let end = world.now() + 15 * SECOND;
        while world.now() < end {
            self.faults.strike(world, &mut self.cluster);
            let pause = self.faults.pause();
            self.wait(world, pause);
            self.faults.remedy(world, &mut self.cluster, false);
        }
    }

    fn peace(&mut self, world: &World) {
        world.note("peace");
        self.faults.remedy(world, &mut self.cluster, true);
        self.cluster.shared.stop.store(true, Ordering::Relaxed);
        let since = world.now();
        let mut missing = String::new();
        let well = self.wait_for(world, HEAL_MAX, |run| match run.troubles() {
            None => true,
            Some(trouble) => {
                missing = trouble;
                false
            }
        });
        self.healed_in = world.now() - since;
        if !well {
            self.violations.push(format!("not well {} s after the last fault: {missing}", HEAL_MAX / SECOND));
        }
        // Clients end before somebody else reads, so that nothing they do comes in between unrecorded.
        for at in self.cluster.of(Role::Client) {
            world.kill(self.cluster.processes[at].node, false);
        }
        let (meta, shared) = (self.cluster.meta_addresses(), self.cluster.shared.clone());
        let audited = self.on_client(world, AUDIT_MAX, async move { workload::audit(&meta, &shared).await });
        if let Err(error) = audited {
            self.violations.push(format!("the last read fails: {error}"));
        }
        let agree = self.wait_for(world, 10 * SECOND, |run| run.replicas_differ().is_none());
        if !agree {
            let how = self.replicas_differ().unwrap_or_default();
            self.violations.push(format!("the metadata nodes do not agree: {how}"));
        }
        self.check_state();
    }

    /// What is not as it should be yet; `None`: all is well.
    fn troubles(&self) -> Option<String> {
        let Some(leader) = self.cluster.leader() else { return Some("no leader".into()) };
        let trouble = leader.peek(|state| {
            let figures = state.counters();
            if let Some(node) = present(state).find(|node| node.state() != NodeState::Alive) {
                return Some(format!("node {} is {}", node.name, node.state()));
            }
            if figures.under_replicated + figures.missing > 0 {
                return Some(format!("{figures:?}"));
            }
            if let Some((_, version)) = state.garbage().next() {
                return Some(format!("version {version} is not released"));
            }
            let doomed =
                present(state).find_map(|node| state.doomed(node.id, None).next().map(|chunk| (node.id, chunk)));
            doomed.map(|(node, chunk)| format!("chunk {chunk} is to be deleted on node {node}"))
        });
        trouble.or_else(|| leader.peek(|state| self.disks_differ(state)))
    }

    /// What the disks hold against what the state says.
    fn disks_differ(&self, state: &State) -> Option<String> {
        let _bypass = Bypass::new();
        for at in self.cluster.of(Role::Storage) {
            let name = &self.cluster.processes[at].name;
            let Some(node) = present(state).find(|node| node.name == *name) else { continue };
            let recorded: BTreeSet<ChunkId> = state.chunks_on(node.id, None).collect();
            let mut held = BTreeSet::new();
            for path in chunk_files(self.cluster.disk(at)) {
                let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
                held.extend(stem.parse::<ChunkId>().ok());
            }
            if let Some(chunk) = recorded.difference(&held).next() {
                return Some(format!("{name} does not hold chunk {chunk}, which is recorded"));
            }
            if let Some(chunk) = held.difference(&recorded).next() {
                return Some(format!("{name} holds chunk {chunk}, which is not recorded"));
            }
        }
        None
    }

    fn replicas_differ(&self) -> Option<String> {
        let mut first: Option<(String, u64, State)> = None;
        for at in self.cluster.of(Role::Meta) {
            let process = &self.cluster.processes[at];
            let Some(raft) = process.window().raft.clone() else { return Some(format!("{} is down", process.name)) };
            let (index, state) = (raft.status().applied_index, raft.peek(State::clone));
            match &first {
                None => first = Some((process.name.clone(), index, state)),
                Some((name, known, expected)) => {
                    if *known != index {
                        return Some(format!("{name} has applied {known}, {} {index}", process.name));
                    }
                    if *expected != state {
                        return Some(format!("{name} and {} hold different states at {index}", process.name));
                    }
                }
            }
        }
        None
    }

    /// The invariants of the state, and that a snapshot of it reads back as the same.
    fn check_state(&mut self) {
        for at in self.cluster.of(Role::Meta) {
            let name = self.cluster.processes[at].name.clone();
            let Some(raft) = self.cluster.processes[at].window().raft.clone() else { continue };
            let state = raft.peek(State::clone);
            if let Err(faults) = check(&state) {
                self.violations.push(format!("the state of {name} contradicts itself: {}", faults.join("; ")));
            }
        }
    }

    fn judge(&mut self, world: &World) {
        self.violations.extend(world.panics.borrow_mut().drain(..).map(|text| format!("panic: {text}")));
        let mut shared = self.cluster.shared.lock();
        self.violations.append(&mut shared.violations);
        let mut objects: BTreeMap<Object, Vec<Operation>> = BTreeMap::new();
        for operation in &shared.operations {
            objects.entry(operation.object).or_default().push(operation.clone());
        }
        for (object, operations) in objects {
            match history::check(operations) {
                Verdict::Linearizable => {}
                Verdict::Violated(why) => self.violations.push(format!("{object:?} is not linearizable: {why}")),
                Verdict::TooLong => self.undecided += 1,
            }
        }
    }

    fn report(self, world: World) -> Report {
        let seconds = |ns: Ns| ns as f64 / SECOND as f64;
        let shared = self.cluster.shared.lock();
        let unknown = shared.operations.iter().filter(|o| o.answer == history::Answer::Unknown).count();
        let operations = (shared.operations.len(), unknown);
        let (reads, failures) = (shared.reads, shared.failures.clone());
        drop(shared);
        let total = seconds(world.now());
        let turns = world.turns.get();
        let (hash, trace) = world.into_trace();
        Report {
            seed: self.settings.seed,
            violations: self.violations,
            hash,
            trace,
            faults: self.faults.log,
            operations,
            reads,
            seconds: (seconds(self.healed_in), total),
            undecided: self.undecided,
            failures,
            turns,
        }
    }
}
