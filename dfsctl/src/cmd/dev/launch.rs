//! Starting processes and waiting until they serve; what was started is stopped again if that fails.

use std::{
    fs, io,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{
    home::{Home, Programs},
    mounts,
    plan::{Name, Plan},
    ports::{self, Reserved},
    probe::{Probe, is_alive},
    process::{self, Identity, Signal, Started},
};
use crate::{context::Context, exit::Exit, failure::Failure, output::Output};

/// How often the processes are asked.
const POLL: Duration = Duration::from_millis(20);
/// Lines of a log that are shown when its process failed.
const TAIL_LINES: usize = 20;
/// Longest time a process of a failed start may take to end.
const ROLLBACK: Duration = Duration::from_secs(5);
/// Without a leader a storage node is taken as started when it answers by itself for this long.
const LEADERLESS: Duration = Duration::from_secs(3);

/// A start that is under way.
pub(super) struct Launch<'a> {
    context: &'a Context,
    home: &'a Home,
    programs: Programs,
    started: Vec<(Name, Started)>,
    deadline: Instant,
}

impl<'a> Launch<'a> {
    /// A start that must be over within `patience`.
    pub(super) fn new(context: &'a Context, home: &'a Home, programs: Programs, patience: Duration) -> Self {
        Self { context, home, programs, started: vec![], deadline: Instant::now() + patience }
    }

    fn out(&self) -> Output {
        self.context.out
    }

    /// Whether this start began the process.
    pub(super) fn began(&self, name: Name) -> bool {
        self.started.iter().any(|(started, _)| *started == name)
    }

    /// Starts the process unless it runs; one that is paused goes on.
    pub(super) fn ensure(&mut self, plan: &Plan, name: Name) -> Result<(), Failure> {
        let running = plan.identity(name, self.home).find(&self.home.pid_file(name));
        if let Some(running) = running {
            if running.paused {
                self.out().note(format!("{name} was paused: it goes on"));
                let resumed = running.signal(Signal::Resume);
                resumed.map_err(|error| Failure::io(format!("cannot resume {name}"), &error))?;
            }
            return Ok(());
        }
        if name == Name::Mount {
            clear_mount_point(plan, self.out())?;
        }
        let program = plan.program(name, self.home, self.programs.executable(name)?);
        let (log, pid_file) = (self.home.log(name), self.home.pid_file(name));
        let started = process::start(&program, self.home.dir(), &log, &pid_file);
        let message = || format!("cannot start {name} ({})", program.executable.display());
        self.started.push((name, started.map_err(|error| Failure::io(message(), &error))?));
        Ok(())
    }

    /// Ends what was started.
    pub(super) fn roll_back(&mut self) {
        self.started.iter_mut().for_each(|(_, started)| started.terminate());
        let deadline = Instant::now() + ROLLBACK;
        for (name, mut started) in self.started.drain(..) {
            started.reap(deadline);
            drop(fs::remove_file(self.home.pid_file(name)));
        }
    }

    /// Asks `ready` until it is true. `what` completes the sentence "... did not".
    fn until(&mut self, what: &str, mut ready: impl FnMut(Duration) -> bool) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            if ready(begin.elapsed()) {
                return Ok(());
            }
            for (name, started) in &mut self.started {
                if let Some(ended) = started.ended() {
                    return Err(failed(format!("{name} ended at once ({ended})"), *name, started));
                }
            }
            if Instant::now() >= self.deadline {
                let message = format!("{what} within the time given");
                let waited_for = what.split(' ').next().unwrap_or_default();
                let started = self.started.iter().find(|(name, _)| name.to_string() == waited_for);
                let mut failure = match started.or(self.started.last()) {
                    Some((name, started)) => failed(message, *name, started),
                    None => Failure::local(message),
                };
                failure.exit = Exit::Unreachable;
                return Err(failure);
            }
            thread::sleep(POLL);
        }
    }

    /// Waits until every metadata node in `names` answers and knows a leader.
    pub(super) fn until_metas_serve(&mut self, plan: &Plan, probe: &Probe<'_>, names: &[Name]) -> Result<(), Failure> {
        for name in names {
            let address = plan.address(*name).unwrap_or_default();
            self.until(&format!("{name} did not find a leader"), |_| {
                probe.meta(&address).is_some_and(|status| !status.leader.is_empty())
            })?;
        }
        Ok(())
    }

    /// Waits until the metadata node answers, whatever the others do.
    pub(super) fn until_meta_answers(&mut self, plan: &Plan, probe: &Probe<'_>, name: Name) -> Result<(), Failure> {
        let address = plan.address(name).unwrap_or_default();
        self.until(&format!("{name} did not answer"), |_| probe.meta(&address).is_some())
    }

    /// Waits until the storage nodes answer and the leader counts them as alive.
    pub(super) fn until_storages_serve(
        &mut self,
        plan: &Plan,
        probe: &Probe<'_>,
        names: &[Name],
        leader_needed: bool,
    ) -> Result<(), Failure> {
        for name in names {
            let address = plan.address(*name).unwrap_or_default();
            let mut leaderless = false;
            self.until(&format!("{name} did not come alive"), |elapsed| {
                if probe.storage(&address).is_none() {
                    return false;
                }
                match probe.cluster() {
                    Some(status) => is_alive(&status, &name.to_string(), &address),
                    None => {
                        leaderless = !leader_needed && elapsed >= LEADERLESS;
                        leaderless
                    }
                }
            })?;
            if leaderless {
                self.out().note(format!("{name} answers, but no metadata leader does"));
            }
        }
        Ok(())
    }

    /// Waits until the mount is in the kernel's table and answers.
    pub(super) fn until_mount_answers(&mut self, plan: &Plan) -> Result<(), Failure> {
        let Some(point) = plan.mount.clone() else { return Ok(()) };
        let point = Path::new(&point);
        self.until("mount did not answer", |_| is_mounted(point) && mounts::answers(point, Duration::from_secs(2)))
    }
}

/// Whether a file system of ours is mounted at `point`.
pub(super) fn is_mounted(point: &Path) -> bool {
    mounts::at(point).is_ok_and(|mounts| mounts.last().is_some_and(mounts::Mount::is_dfs))
}

fn failed(message: String, name: Name, started: &Started) -> Failure {
    let tail = started.log_tail(TAIL_LINES);
    let log = started.log.display();
    let tail = if tail.is_empty() {
        format!("it wrote nothing to {log}")
    } else {
        format!("end of {log} ({name}):\n  {}", tail.join("\n  "))
    };
    Failure::local(format!("{message}; {tail}"))
}

/// Gives dead storage nodes whose port somebody else took meanwhile a new one; metadata nodes cannot move.
///
/// Gives the ports of all that will be started, kept from other dfsctl processes.
pub(super) fn check_ports(plan: &mut Plan, home: &Home, names: &[Name], out: Output) -> Result<Vec<Reserved>, Failure> {
    let mut reserved = vec![];
    for name in names {
        let Some(port) = plan.port(*name) else { continue };
        if plan.identity(*name, home).find(&home.pid_file(*name)).is_some() {
            continue;
        }
        if let Some(own) = Reserved::take(port) {
            reserved.push(own);
            continue;
        }
        let Name::Storage(n) = *name else {
            return Err(Failure::local(format!("port {port} of {name} is used by another process")).hint(format!(
                "the addresses of metadata nodes belong to the cluster and cannot change: find the other process with \
                     `ss -ltnp 'sport = :{port}'`, end it, and try again"
            )));
        };
        let taken: Vec<u16> = plan.meta_ports.iter().chain(&plan.storage_ports).copied().collect();
        let fresh = ports::choose(1, &taken).map_err(|error| Failure::io("cannot choose a port", &error))?;
        for fresh in fresh {
            out.warn(format!("port {port} of {name} is used by another process: it moves to port {}", fresh.port()));
            if let Some(slot) = plan.storage_ports.get_mut((n - 1) as usize) {
                *slot = fresh.port();
            }
            reserved.push(fresh);
        }
    }
    Ok(reserved)
}

/// Makes the mount point, and takes away what a mount that died left there.
fn clear_mount_point(plan: &Plan, out: Output) -> Result<(), Failure> {
    let Some(point) = &plan.mount else { return Ok(()) };
    let point = Path::new(point);
    let shown = point.display();
    let table = mounts::at(point).map_err(|error| Failure::io("cannot read the mount table", &error))?;
    if let Some(other) = table.last() {
        if !other.is_dfs() {
            return Err(Failure::local(format!("{shown} has another file system mounted ({})", other.kind))
                .hint(format!("umount {shown}, or name another --mount")));
        }
        if let Some(pid) = mount_process(point) {
            return Err(Failure::local(format!("another cluster is mounted at {shown} (pid {pid})"))
                .hint("name another --mount, or end that cluster with `dfsctl dev down --dir ITS_DIR`"));
        }
        out.note(format!("unmounting {shown}, whose process has died"));
        for _ in table {
            mounts::detach(point).map_err(|error| {
                Failure::io(format!("cannot unmount {shown}, whose process has died"), &error)
                    .hint(format!("run `umount -l {shown}` as root"))
            })?;
        }
    }
    match fs::create_dir_all(point) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Failure::io(format!("cannot make the mount point {shown}"), &error))
        }
        _ if !point.is_dir() => Err(Failure::usage(format!("{shown} is not a directory"))),
        _ => Ok(()),
    }
}

/// The process that serves a mount at `point`, of whatever cluster.
pub(super) fn mount_process(point: &Path) -> Option<i32> {
    let serves = |program: &str| Identity { arguments: vec![point.into()] }.search_running(program);
    serves("mount.dfs").or_else(|| serves("mount-dfs")).map(|running| running.pid)
}
