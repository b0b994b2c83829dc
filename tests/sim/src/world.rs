//! Virtual time and the one thread that everything runs on.
//!
//! Every node has a tokio runtime of its own, so that a crash can drop it with all its tasks at any moment. The scheduler
//! takes the earliest event, sets the clock, and runs each runtime that has something to do until it waits for events
//! ([`World::runtime_waits`]); how long it would wait is when its next event is. Nothing takes time but what says so: network
//! and disk. Each seed runs on a fresh thread, so that everything that the standard library keeps for a thread is fresh, too.

use std::{
    cell::{Cell, RefCell, RefMut},
    cmp::Reverse,
    collections::BinaryHeap,
    path::Path,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use dfs_tests::rng::Rng;
use tokio::runtime::{Builder, Runtime};

use crate::{disk::Disks, net::Net};

/// Nanoseconds of virtual time.
pub(crate) type Ns = u64;

pub(crate) const MS: Ns = 1_000_000;
pub(crate) const SECOND: Ns = 1_000 * MS;

/// Where monotonic clocks start: a machine that has been up for a while.
const UPTIME: Ns = 100_000 * SECOND;
/// Where wall clocks start: 2026-01-01.
const EPOCH: Ns = 1_767_225_600 * SECOND;
/// Turns of one runtime without the clock moving, after which something is taken to spin.
const SPIN_MAX: u32 = 200_000;

/// Index of a node.
pub(crate) type NodeIndex = usize;

thread_local! {
    static WORLD: Cell<*const World> = const { Cell::new(std::ptr::null()) };
    static BYPASS: Cell<u32> = const { Cell::new(0) };
}

/// While it lives, files are used as they are: the simulation looks at them itself.
#[derive(Debug)]
pub(crate) struct Bypass;

impl Bypass {
    pub(crate) fn new() -> Self {
        BYPASS.set(BYPASS.get() + 1);
        Self
    }
}

impl Drop for Bypass {
    fn drop(&mut self) {
        BYPASS.set(BYPASS.get() - 1);
    }
}

/// Something that happens at a time.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A timer of a node's runtime ends. Void if another generation of it runs by then.
    Wake { node: NodeIndex, generation: u64 },
    /// Bytes or the end of them arrive at one end of a connection.
    Deliver { link: u64, end: usize },
    /// The schedule of faults goes on.
    Script,
}

/// A fault of a node's disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DiskFault {
    None,
    Full,
    Broken,
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: String,
    runtime: Option<Runtime>,
    generation: u64,
    runnable: bool,
    wake_at: Option<Ns>,
    paused_until: Option<Ns>,
    /// Deviation of its monotonic clock's speed, millionths.
    pub(crate) drift_ppm: i64,
    /// Deviation of its wall clock.
    pub(crate) wall_offset_ns: i64,
    pub(crate) disk_fault: DiskFault,
    /// Typical time of a disk operation.
    pub(crate) disk_ns: Ns,
    /// Whether a sync does nothing: a defect that is put in on purpose.
    pub(crate) lies_about_sync: bool,
}

/// Everything of one run.
#[derive(Debug)]
pub(crate) struct World {
    now: Cell<Ns>,
    sequence: Cell<u64>,
    current: Cell<Option<NodeIndex>>,
    dying: Cell<bool>,
    events: RefCell<BinaryHeap<Reverse<(Ns, u64, Event)>>>,
    machines: RefCell<Vec<Machine>>,
    net: RefCell<Net>,
    disks: RefCell<Disks>,
    entropy: RefCell<Rng>,
    delays: RefCell<Rng>,
    /// Of the runtime that runs now: who waits for it to be idle, and how long it would wait.
    idle: Cell<Option<i32>>,
    waker: RefCell<Option<Waker>>,
    trace: RefCell<Trace>,
    pub(crate) turns: Cell<u64>,
    /// What programs died of.
    pub(crate) panics: RefCell<Vec<String>>,
}

/// What happened, as a checksum and, if wanted, as text.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    fn add(&mut self, now: Ns, line: &str) {
        for byte in now.to_le_bytes().iter().chain(line.as_bytes()) {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.6} {line}", now as f64 / SECOND as f64));
        }
    }
}

impl World {
    pub(crate) fn new(seed: u64, root: &Path, keep_trace: bool) -> Self {
        Self {
            now: Cell::new(0),
            sequence: Cell::new(0),
            current: Cell::new(None),
            dying: Cell::new(false),
            events: RefCell::default(),
            machines: RefCell::default(),
            net: RefCell::new(Net::new(Rng::new(seed, 1))),
            disks: RefCell::new(Disks::new(root.to_owned())),
            entropy: RefCell::new(Rng::new(seed, 2)),
            delays: RefCell::new(Rng::new(seed, 3)),
            idle: Cell::new(None),
            waker: RefCell::new(None),
            trace: RefCell::new(Trace { hash: 0xcbf2_9ce4_8422_2325, lines: keep_trace.then(Vec::new) }),
            turns: Cell::new(0),
            panics: RefCell::default(),
        }
    }

    /// Runs `f` with this world in charge of the thread.
    pub(crate) fn rule<R>(&self, f: impl FnOnce(&Self) -> R) -> R {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                WORLD.set(std::ptr::null());
            }
        }
        let _reset = Reset;
        WORLD.set(self);
        f(self)
    }

    /// Runs `f` on the world in charge of this thread, if there is one.
    pub(crate) fn with<R>(f: impl FnOnce(&Self) -> R) -> Option<R> {
        let world = WORLD.get();
        // SAFETY: `rule` sets the pointer to a world that lives while it runs, and takes it away again; only this thread
        // sees it, and everything in it that changes is in a cell.
        unsafe { world.as_ref() }.map(f)
    }

    /// The same for files, unless the simulation itself looks at them; meanwhile they are used as they are.
    pub(crate) fn on_files<R>(f: impl FnOnce(&Self) -> R) -> Option<R> {
        if BYPASS.get() > 0 {
            return None;
        }
        Self::with(|world| {
            let _bypass = Bypass::new();
            f(world)
        })
    }

    // What a node sees.

    pub(crate) fn now(&self) -> Ns {
        self.now.get()
    }

    pub(crate) fn current(&self) -> Option<NodeIndex> {
        self.current.get()
    }

    pub(crate) fn monotonic_ns(&self) -> Ns {
        let drift = self.current.get().map_or(0, |node| self.machines.borrow()[node].drift_ppm);
        let now = i128::from(self.now.get());
        UPTIME + u64::try_from(now + now * i128::from(drift) / 1_000_000).unwrap_or(0)
    }

    pub(crate) fn wall_ns(&self) -> Ns {
        let offset = self.current.get().map_or(0, |node| self.machines.borrow()[node].wall_offset_ns);
        EPOCH.saturating_add(self.now.get()).saturating_add_signed(offset)
    }

    pub(crate) fn entropy(&self, bytes: &mut [u8]) {
        let mut rng = self.entropy.borrow_mut();
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&rng.next().to_le_bytes()[..part.len()]);
        }
    }

    pub(crate) fn disk_delay(&self) -> Duration {
        let typical = self.current.get().map_or(MS, |node| self.machines.borrow()[node].disk_ns);
        Duration::from_nanos(self.delays.borrow_mut().delay(typical))
    }

    /// A runtime has nothing to do for `timeout_ms` (below 0: until something comes in). `false`: it is none of ours.
    pub(crate) fn runtime_waits(&self, timeout_ms: i32) -> bool {
        if self.current.get().is_none() {
            return false;
        }
        if timeout_ms != 0 {
            self.idle.set(Some(timeout_ms));
            if let Some(waker) = self.waker.borrow().as_ref() {
                waker.wake_by_ref();
            }
        }
        true
    }

    pub(crate) fn is_dying(&self) -> bool {
        self.dying.get()
    }

    pub(crate) fn disks(&self) -> RefMut<'_, Disks> {
        self.disks.borrow_mut()
    }

    pub(crate) fn net(&self) -> RefMut<'_, Net> {
        self.net.borrow_mut()
    }

    /// The error that the disk under `path` gives now.
    pub(crate) fn disk_fault(&self, path: &Path, needs_space: bool) -> Option<i32> {
        let fault = self.machine_of(path).map_or(DiskFault::None, |machine| machine.disk_fault);
        match fault {
            DiskFault::Full if needs_space => Some(libc::ENOSPC),
            // Not every operation meets a bad sector.
            DiskFault::Broken if self.delays.borrow_mut().once_in(4) => Some(libc::EIO),
            DiskFault::None | DiskFault::Full | DiskFault::Broken => None,
        }
    }

    pub(crate) fn ignores_sync(&self, path: &Path) -> bool {
        self.machine_of(path).is_some_and(|machine| machine.lies_about_sync)
    }

    fn machine_of(&self, path: &Path) -> Option<RefMut<'_, Machine>> {
        let disk = self.disks.borrow().disk_of(path)?;
        let name = disk.file_name()?.to_str()?.to_owned();
        let machines = self.machines.borrow_mut();
        RefMut::filter_map(machines, |machines| machines.iter_mut().find(|machine| machine.name == name)).ok()
    }

    // The scheduler.

    pub(crate) fn add_machine(&self, name: &str, drift_ppm: i64, wall_offset_ns: i64) -> NodeIndex {
        let mut machines = self.machines.borrow_mut();
        machines.push(Machine {
            name: name.to_owned(),
            runtime: None,
            generation: 0,
            runnable: false,
            wake_at: None,
            paused_until: None,
            drift_ppm,
            wall_offset_ns,
            disk_fault: DiskFault::None,
            disk_ns: MS / 2,
            lies_about_sync: false,
        });
        machines.len() - 1
    }

    pub(crate) fn machine(&self, node: NodeIndex) -> RefMut<'_, Machine> {
        RefMut::map(self.machines.borrow_mut(), |machines| &mut machines[node])
    }

    pub(crate) fn is_up(&self, node: NodeIndex) -> bool {
        self.machines.borrow()[node].runtime.is_some()
    }

    /// Starts a process on a machine.
    pub(crate) fn boot(&self, node: NodeIndex, main: impl Future<Output = ()> + Send + 'static) {
        assert!(!self.is_up(node), "one process a machine");
        self.current.set(Some(node));
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
        drop(runtime.spawn(main));
        self.current.set(None);
        let mut machine = self.machine(node);
        machine.runtime = Some(runtime);
        machine.generation += 1;
        machine.runnable = true;
    }

    /// Ends the process of a machine between two instructions. `power`: its machine, too, so that nobody tells its peers.
    pub(crate) fn kill(&self, node: NodeIndex, power: bool) {
        let runtime = {
            let mut machine = self.machine(node);
            (machine.wake_at, machine.paused_until, machine.runnable) = (None, None, false);
            machine.generation += 1;
            machine.runtime.take()
        };
        let Some(runtime) = runtime else { return };
        self.net().node_dies(self, node, power);
        self.dying.set(true);
        self.current.set(Some(node));
        drop(runtime);
        self.current.set(None);
        self.dying.set(false);
    }

    /// Stops a process for a while, as SIGSTOP does.
    pub(crate) fn pause(&self, node: NodeIndex, time: Ns) {
        let until = self.now() + time;
        self.machine(node).paused_until = Some(until);
        let generation = self.machine(node).generation;
        self.at(until, Event::Wake { node, generation });
    }

    fn at(&self, time: Ns, event: Event) {
        let sequence = self.sequence.get();
        self.sequence.set(sequence + 1);
        self.events.borrow_mut().push(Reverse((time.max(self.now()), sequence, event)));
    }

    pub(crate) fn deliver_at(&self, time: Ns, link: u64, end: usize) {
        self.at(time, Event::Deliver { link, end });
    }

    pub(crate) fn script_at(&self, time: Ns) {
        self.at(time, Event::Script);
    }

    /// Notes that a task of a machine was woken from outside of it.
    pub(crate) fn touch(&self, node: NodeIndex) {
        self.machine(node).runnable = true;
    }

    /// Runs until the next event of the script, whose time becomes the present. `false`: there is none.
    pub(crate) fn run(&self) -> bool {
        loop {
            self.run_runnable();
            let Some(Reverse((time, _, event))) = self.events.borrow_mut().pop() else { return false };
            self.now.set(time);
            match event {
                Event::Script => {
                    self.run_runnable();
                    return true;
                }
                Event::Wake { node, generation } => {
                    let mut machine = self.machine(node);
                    if machine.generation == generation {
                        machine.runnable = true;
                        if machine.wake_at.is_some_and(|at| at <= time) {
                            machine.wake_at = None;
                        }
                        if machine.paused_until.is_some_and(|until| until <= time) {
                            machine.paused_until = None;
                        }
                    }
                }
                Event::Deliver { link, end } => {
                    let woken = self.net().deliver(self, link, end);
                    woken.into_iter().for_each(Waker::wake);
                }
            }
        }
    }

    fn run_runnable(&self) {
        let count = self.machines.borrow().len();
        let mut spins = 0;
        loop {
            let mut ran = false;
            for node in 0..count {
                let ready = {
                    let machine = self.machine(node);
                    machine.runnable && machine.paused_until.is_none() && machine.runtime.is_some()
                };
                if ready {
                    self.turn(node);
                    ran = true;
                }
            }
            if !ran {
                return;
            }
            spins += 1;
            assert!(spins < SPIN_MAX, "something runs for ever without time passing");
        }
    }

    /// Runs one runtime until it is idle.
    fn turn(&self, node: NodeIndex) {
        let (runtime, generation, drift) = {
            let mut machine = self.machine(node);
            machine.runnable = false;
            (machine.runtime.take(), machine.generation, machine.drift_ppm)
        };
        let runtime = runtime.expect("only called for what is up");
        self.turns.set(self.turns.get() + 1);
        self.current.set(Some(node));
        self.idle.set(None);
        let timeout_ms = runtime.block_on(UntilIdle { world: self });
        self.current.set(None);
        self.waker.borrow_mut().take();
        let mut machine = self.machine(node);
        machine.runtime = Some(runtime);
        if timeout_ms < 0 {
            return;
        }
        let wait = i128::from(timeout_ms) * i128::from(MS);
        let wait = wait * 1_000_000 / (1_000_000 + i128::from(drift));
        let at = self.now() + u64::try_from(wait).unwrap_or(0).max(1);
        if machine.wake_at.is_none_or(|known| at < known || known <= self.now()) {
            machine.wake_at = Some(at);
            drop(machine);
            self.at(at, Event::Wake { node, generation });
        }
    }

    /// Notes what happened.
    pub(crate) fn note(&self, line: &str) {
        self.trace.borrow_mut().add(self.now(), line);
    }

    /// Whether lines are kept.
    pub(crate) fn keeps_lines(&self) -> bool {
        self.trace.borrow().lines.is_some()
    }

    pub(crate) fn into_trace(self) -> (u64, Vec<String>) {
        let trace = self.trace.into_inner();
        (trace.hash, trace.lines.unwrap_or_default())
    }
}

/// Ends when the runtime that it runs on has nothing to do.
struct UntilIdle<'a> {
    world: &'a World,
}

impl Future for UntilIdle<'_> {
    type Output = i32;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<i32> {
        match self.world.idle.take() {
            Some(timeout_ms) => Poll::Ready(timeout_ms),
            None => {
                *self.world.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
