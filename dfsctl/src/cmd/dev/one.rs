//! `dev start`, `stop`, `kill`, `pause`, `resume`: one process of a local cluster.

use std::{fs, time::Duration};

use dfs_common::durable::DirLock;

use super::{
    One,
    down::{end, kill as kill_running, send},
    home::{Home, Programs},
    launch::{Launch, check_ports},
    plan::{Name, Plan},
    probe::Probe,
    process::{Running, Signal},
    status::Process,
};
use crate::{context::Context, failure::Failure};

/// How long a started process may take to answer.
const START: Duration = Duration::from_secs(30);

/// One process, under the cluster's lock.
struct Target {
    home: Home,
    plan: Plan,
    name: Name,
    _lock: DirLock,
}

impl Target {
    fn new(context: &Context, one: &One) -> Result<Self, Failure> {
        let home = Home::open(&one.place.dir)?;
        let lock = home.lock(context.out)?;
        let (home, plan) = Home::with_plan(home.dir())?;
        if !plan.has(one.name) {
            let names: Vec<_> = plan.names().iter().map(ToString::to_string).collect();
            let failure = Failure::not_found(format!("the cluster has no process {}", one.name));
            return Err(match one.name {
                Name::Mount => failure.hint("`dfsctl dev up --mount PATH` makes one"),
                _ => failure.hint(format!("it has {}", names.join(", "))),
            });
        }
        Ok(Self { home, plan, name: one.name, _lock: lock })
    }

    fn running(&self) -> Option<Running> {
        self.plan.identity(self.name, &self.home).find(&self.home.pid_file(self.name))
    }

    fn all_running(&self) -> Vec<Running> {
        self.plan.identity(self.name, &self.home).find_all(&self.home.pid_file(self.name))
    }

    fn must_run(&self) -> Result<Running, Failure> {
        let hint = format!("`dfsctl dev start {} --dir {}` starts it", self.name, self.home.dir().display());
        self.running().ok_or_else(|| Failure::local(format!("{} is not running", self.name)).hint(hint))
    }
}

impl Target {
    /// Prints the outcome: the sentence, or the process as `dev status --json` shows it.
    fn say(&self, context: &Context, text: String) -> Result<(), Failure> {
        if context.out.json {
            return context.out.value(&Process::new(&self.home, &self.plan, self.name));
        }
        if context.out.quiet { Ok(()) } else { context.out.line(text) }
    }
}

/// # Errors
/// What the user is told.
pub(super) fn start(context: &Context, one: &One) -> Result<(), Failure> {
    let mut target = Target::new(context, one)?;
    let name = target.name;
    if let Some(running) = target.running().filter(|running| !running.paused) {
        return target.say(context, format!("{name} is running already (pid {})", running.pid));
    }
    let reserved = check_ports(&mut target.plan, &target.home, &[name], context.out)?;
    target.plan.save(&target.home.plan_file())?;
    let programs = Programs::find(name == Name::Mount)?;
    let mut launch = Launch::new(context, &target.home, programs, START);
    let started = start_and_wait(context, &mut launch, &target.plan, &target.home, name);
    drop(reserved);
    if let Err(failure) = started {
        if launch.began(name) {
            launch.roll_back();
        }
        return Err(failure);
    }
    let pid = target.running().map(|running| running.pid.to_string()).unwrap_or_default();
    target.say(context, format!("{name} is running (pid {pid})"))
}

fn start_and_wait(
    context: &Context,
    launch: &mut Launch<'_>,
    plan: &Plan,
    home: &Home,
    name: Name,
) -> Result<(), Failure> {
    launch.ensure(plan, name)?;
    let probe = Probe::new(context, plan)?;
    match name {
        Name::Meta(_) => {
            let up =
                plan.metas().iter().filter(|n| plan.identity(**n, home).find(&home.pid_file(**n)).is_some()).count();
            if up * 2 > plan.meta_ports.len() {
                launch.until_metas_serve(plan, &probe, &[name])
            } else {
                context.out.note("less than a majority of the metadata nodes is running: there is no leader yet");
                launch.until_meta_answers(plan, &probe, name)
            }
        }
        Name::Storage(_) => launch.until_storages_serve(plan, &probe, &[name], false),
        Name::Mount => launch.until_mount_answers(plan),
    }
}

/// # Errors
/// What the user is told.
pub(super) fn stop(context: &Context, one: &One) -> Result<(), Failure> {
    let target = Target::new(context, one)?;
    match end(&target.home, &target.plan, &[target.name], context.out)? {
        0 => target.say(context, format!("{} was not running", target.name)),
        _ => target.say(context, format!("{} has ended", target.name)),
    }
}

/// # Errors
/// What the user is told.
pub(super) fn kill(context: &Context, one: &One) -> Result<(), Failure> {
    let target = Target::new(context, one)?;
    target.must_run()?;
    // Of a mount the supervisor first, which would start another process in place of the one that serves.
    for running in target.all_running() {
        kill_running(target.name, &running)?;
    }
    drop(fs::remove_file(target.home.pid_file(target.name)));
    target.say(context, format!("{} was killed", target.name))
}

/// # Errors
/// What the user is told.
pub(super) fn pause(context: &Context, one: &One) -> Result<(), Failure> {
    let target = Target::new(context, one)?;
    target.must_run()?;
    target.all_running().iter().try_for_each(|running| send(target.name, running, Signal::Pause))?;
    target.say(context, format!("{} is paused", target.name))
}

/// # Errors
/// What the user is told.
pub(super) fn resume(context: &Context, one: &One) -> Result<(), Failure> {
    let target = Target::new(context, one)?;
    target.must_run()?;
    target.all_running().iter().try_for_each(|running| send(target.name, running, Signal::Resume))?;
    target.say(context, format!("{} goes on", target.name))
}
