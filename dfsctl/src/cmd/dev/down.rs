//! `dev down`: ends all processes, those that need the others first.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Where,
    home::Home,
    launch::mount_process,
    mounts,
    plan::{Name, Plan},
    process::{Running, Signal},
    status::Report,
};
use crate::{context::Context, failure::Failure, output::Output};

/// How long a process may take to end cleanly.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a killed process may take; longer only in uninterruptible disk waits.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// # Errors
/// What the user is told.
pub(super) fn run(context: &Context, place: &Where) -> Result<(), Failure> {
    let home = Home::open(&place.dir)?;
    let _lock = home.lock(context.out)?;
    let (home, plan) = Home::with_plan(home.dir())?;
    let mut ended = 0;
    for group in [vec![Name::Mount], plan.storages(), plan.metas()] {
        let group: Vec<_> = group.into_iter().filter(|name| plan.has(*name)).collect();
        ended += end(&home, &plan, &group, context.out)?;
    }
    if context.out.json {
        return context.out.value(&Report::new(context, &home, &plan)?);
    }
    match ended {
        _ if context.out.quiet => Ok(()),
        0 => context.out.line("nothing was running"),
        1 => context.out.line(format!("ended 1 process; the data stays in {}", home.dir().display())),
        n => context.out.line(format!("ended {n} processes; the data stays in {}", home.dir().display())),
    }
}

/// Ends processes together and cleanly, and kills those that do not end in time. Gives how many ran.
pub(super) fn end(home: &Home, plan: &Plan, names: &[Name], out: Output) -> Result<u64, Failure> {
    let found: Vec<(Name, Running)> = names
        .iter()
        .filter_map(|name| Some((*name, plan.identity(*name, home).find(&home.pid_file(*name))?)))
        .collect();
    for (name, running) in &found {
        send(*name, running, Signal::Terminate)?;
        // A frozen process sees the signal when it goes on.
        send(*name, running, Signal::Resume)?;
    }
    let deadline = Instant::now() + PATIENCE;
    for (name, running) in &found {
        if !running.wait_gone(deadline) {
            out.warn(format!("{name} (pid {}) did not end within {} s: killed", running.pid, PATIENCE.as_secs()));
            kill(*name, running)?;
        }
    }
    for name in names {
        drop(fs::remove_file(home.pid_file(*name)));
    }
    if names.contains(&Name::Mount) {
        unmount(plan)?;
    }
    Ok(found.len() as u64)
}

/// Kills a process and waits until it is gone.
pub(super) fn kill(name: Name, running: &Running) -> Result<(), Failure> {
    send(name, running, Signal::Kill)?;
    if running.wait_gone(Instant::now() + KILL_PATIENCE) {
        return Ok(());
    }
    Err(Failure::local(format!("{name} (pid {}) does not end although it was killed", running.pid))
        .hint("it waits for a disk or a file system; see /proc/PID/wchan"))
}

/// Sends a signal.
pub(super) fn send(name: Name, running: &Running, signal: Signal) -> Result<(), Failure> {
    let sent = running.signal(signal);
    sent.map_err(|error| Failure::io(format!("cannot signal {name} (pid {})", running.pid), &error))
}

/// Takes away a mount that its process left behind.
fn unmount(plan: &Plan) -> Result<(), Failure> {
    let Some(point) = &plan.mount else { return Ok(()) };
    let point = Path::new(point);
    let left = mounts::at(point).map_err(|error| Failure::io("cannot read the mount table", &error))?;
    // Another cluster may have been mounted there meanwhile.
    if left.last().is_some_and(mounts::Mount::is_dfs) && mount_process(point).is_none() {
        mounts::detach(point).map_err(|error| Failure::io(format!("cannot unmount {}", point.display()), &error))?;
    }
    Ok(())
}
