//! `dev up`: starts what does not run, waits until the cluster serves, says what to do next.

use std::{path::Path, time::Instant};

use super::{
    Up,
    home::{Home, Programs},
    launch::{Launch, check_ports},
    plan::{Name, Plan},
    ports::Reserved,
    probe::Probe,
    process::shell_quote,
    status::Report,
};
use crate::{context::Context, failure::Failure, health::Status, text::counted};

/// # Errors
/// What the user is told. What was started is stopped again.
pub(super) fn run(context: &Context, args: &Up) -> Result<(), Failure> {
    let begin = Instant::now();
    let home = Home::create(&args.place.dir)?;
    let _lock = home.lock(context.out)?;
    let (mut plan, reserved) = plan(context, &home, args)?;
    if let Some(mount) = &plan.mount {
        check_mount_point(Path::new(mount), &home)?;
    }
    let programs = Programs::find(plan.mount.is_some())?;
    plan.save(&home.plan_file())?;
    home.write_env(&plan)?;
    let mut launch = Launch::new(context, &home, programs, args.ready_timeout.0);
    let brought_up = bring_up(context, &home, &mut plan, &mut launch);
    drop(reserved);
    let status = match brought_up {
        Ok(status) => status,
        Err(failure) => {
            launch.roll_back();
            let logs = home.dir().join("log");
            let stopped = format!("what was started has been stopped again; logs are in {}", logs.display());
            return Err(if failure.hint.is_none() { failure.hint(stopped) } else { failure });
        }
    };
    if context.out.json {
        return context.out.value(&Report::new(context, &home, &plan)?);
    }
    if context.out.quiet {
        return Ok(());
    }
    context.out.lines(&words(&home, &plan, &status, begin))
}

/// The plan on disk, or a new one, with the ports that are about to be used.
fn plan(context: &Context, home: &Home, args: &Up) -> Result<(Plan, Vec<Reserved>), Failure> {
    let Some(mut plan) = Plan::load(&home.plan_file())? else {
        if home.has_data() {
            return Err(Failure::local(format!("{} holds data, but cluster.json is missing", home.dir().display()))
                .hint("name another --dir, or remove its sub-directory data"));
        }
        return Plan::make(args, context.out);
    };
    let runs = |name: &Name| plan.identity(*name, home).find(&home.pid_file(*name)).is_some();
    let any_runs = plan.names().iter().any(runs);
    if !plan.served && !any_runs {
        home.clear_data()?;
        return Plan::make(args, context.out);
    }
    let mount = plan.mount.clone();
    let mount_runs = mount.is_some() && runs(&Name::Mount);
    let changed = plan.agree(args, home.dir())?;
    if mount_runs && plan.mount != mount {
        let mounted = mount.unwrap_or_default();
        return Err(Failure::local(format!("the cluster is mounted at {mounted}"))
            .hint("`dfsctl dev stop mount` unmounts it; then it can be mounted elsewhere"));
    }
    if changed && any_runs {
        context
            .out
            .note("the new options hold for processes that are started from now on; `dev down` and `dev up` for all");
    }
    let names = plan.names();
    let reserved = check_ports(&mut plan, home, &names, context.out)?;
    Ok((plan, reserved))
}

/// A mount that hides the cluster's own files would make it unusable.
fn check_mount_point(point: &Path, home: &Home) -> Result<(), Failure> {
    let own = [home.dir().join("data"), home.dir().join("run"), home.dir().join("log")];
    if home.dir().starts_with(point) || own.iter().any(|dir| point.starts_with(dir)) {
        return Err(Failure::usage(format!("a mount at {} would hide the cluster's own files", point.display())));
    }
    Ok(())
}

fn bring_up(context: &Context, home: &Home, plan: &mut Plan, launch: &mut Launch<'_>) -> Result<Status, Failure> {
    let (metas, storages) = (plan.metas(), plan.storages());
    for name in &metas {
        launch.ensure(plan, *name)?;
    }
    let probe = Probe::new(context, plan)?;
    launch.until_metas_serve(plan, &probe, &metas)?;
    for name in &storages {
        launch.ensure(plan, *name)?;
    }
    launch.until_storages_serve(plan, &probe, &storages, true)?;
    if !plan.served {
        plan.served = true;
        plan.save(&home.plan_file())?;
    }
    if plan.mount.is_some() {
        launch.ensure(plan, Name::Mount)?;
        launch.until_mount_answers(plan)?;
    }
    probe.cluster().ok_or_else(|| Failure::unreachable("the metadata leader stopped answering"))
}

fn words(home: &Home, plan: &Plan, status: &Status, begin: Instant) -> Vec<String> {
    let show = |path: &Path| shell_quote(path.as_os_str()).to_string_lossy().into_owned();
    let leader = status.meta.leader.as_deref().unwrap_or("unknown");
    let mut lines = vec![format!(
        "cluster in {} serves: {} (leader {leader}), {}, {} [{:.1} s]",
        show(home.dir()),
        counted(plan.meta_ports.len() as u64, "metadata node"),
        counted(plan.storage_ports.len() as u64, "storage node"),
        if plan.replication == 1 { "1 copy".to_owned() } else { format!("{} copies", plan.replication) },
        begin.elapsed().as_secs_f64()
    )];
    if let Some(mount) = &plan.mount {
        lines.push(format!("mounted at {}", show(Path::new(mount))));
    }
    lines.push("next:".into());
    let dir = show(home.dir());
    lines.push(format!("  . {}    # addresses, mount point and programs for this shell", show(&home.env_file())));
    match &plan.mount {
        Some(mount) => lines.push(format!("  cp FILE {}/", show(Path::new(mount)))),
        None => {
            lines.push("  dfsctl upload --file FILE --name NAME".into());
            lines.push(format!("  dfsctl dev up --dir {dir} --mount PATH    # mount it"));
        }
    }
    lines.push("  dfsctl status".into());
    lines.push(format!("  dfsctl dev down --dir {dir}"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_may_not_hide_the_cluster() {
        let dir = tempfile::tempdir().expect("tmp");
        let home = Home::create(dir.path()).expect("home");
        let inside = home.dir().to_owned();
        assert!(check_mount_point(&inside, &home).is_err());
        assert!(check_mount_point(inside.parent().expect("has one"), &home).is_err());
        assert!(check_mount_point(&inside.join("data/x"), &home).is_err());
        assert!(check_mount_point(&inside.join("mnt"), &home).is_ok());
    }
}
