//! `dev status`: which processes of a local cluster run.

use std::{path::Path, time::Duration};

use serde::Serialize;

use super::{
    Where,
    home::Home,
    launch::is_mounted,
    mounts,
    plan::{Name, Plan},
    probe::Probe,
    process::resident_bytes,
};
use crate::{
    context::Context,
    failure::Failure,
    text::{Align, Table, bytes},
};

/// The document of `dfsctl dev status --json`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Directory of the cluster.
    dir: String,
    /// Every process runs and the mount answers.
    running: bool,
    /// Copies of each chunk.
    replication: u32,
    /// Addresses of the metadata nodes.
    meta_addrs: Vec<String>,
    /// Name of the metadata leader.
    leader: Option<String>,
    /// The mount; `null` if there is none.
    mount: Option<Mounted>,
    /// Every process.
    processes: Vec<Process>,
}

/// The mount.
#[derive(Debug, Serialize)]
struct Mounted {
    path: String,
    /// In the kernel's table.
    mounted: bool,
    /// Answers within two seconds.
    answers: bool,
}

/// One process.
#[derive(Debug, Serialize)]
pub(super) struct Process {
    name: String,
    /// `running`, `paused` or `dead`.
    state: &'static str,
    pid: Option<i32>,
    address: Option<String>,
    resident_bytes: Option<u64>,
    log: String,
}

impl Report {
    /// Looks at every process and asks the cluster for its leader.
    pub(super) fn new(context: &Context, home: &Home, plan: &Plan) -> Result<Self, Failure> {
        let processes: Vec<_> = plan.names().into_iter().map(|name| Process::new(home, plan, name)).collect();
        let runs = |name: &str| processes.iter().any(|process| process.name == name && process.state == "running");
        let mount = plan.mount.clone().map(|path| {
            let mounted = is_mounted(Path::new(&path));
            // A mount without a process cannot answer, and one that is paused would only cost the patience.
            let answers = mounted && runs("mount") && mounts::answers(Path::new(&path), Duration::from_secs(2));
            Mounted { path, mounted, answers }
        });
        let any_meta = plan.metas().iter().any(|name| runs(&name.to_string()));
        let leader =
            if any_meta { Probe::new(context, plan)?.cluster().and_then(|status| status.meta.leader) } else { None };
        Ok(Self {
            dir: home.dir().display().to_string(),
            running: processes.iter().all(|process| process.state == "running")
                && mount.as_ref().is_none_or(|mount| mount.answers),
            replication: plan.replication,
            meta_addrs: plan.meta_addresses(),
            leader,
            mount,
            processes,
        })
    }

    fn lines(&self) -> Vec<String> {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("STATE", Align::Left),
            ("PID", Align::Right),
            ("ADDRESS", Align::Left),
            ("MEMORY", Align::Right),
            ("LOG", Align::Left),
        ]);
        for process in &self.processes {
            let leads = self.leader.as_ref() == Some(&process.name);
            table.row(vec![
                process.name.clone(),
                match process.state {
                    "running" if leads => "running, leader".into(),
                    "running" => "running".into(),
                    state => state.to_uppercase(),
                },
                process.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                process.address.clone().unwrap_or_default(),
                process.resident_bytes.map(bytes).unwrap_or_default(),
                process.log.clone(),
            ]);
        }
        let mut lines = table.lines();
        if let Some(mount) = &self.mount {
            let state = match (mount.mounted, mount.answers) {
                (_, true) => "mounted",
                (true, false) => "mounted, but DOES NOT ANSWER",
                (false, false) => "NOT MOUNTED",
            };
            lines.push(format!("{}: {state}", mount.path));
        }
        lines
    }
}

impl Process {
    /// Looks at the process.
    pub(super) fn new(home: &Home, plan: &Plan, name: Name) -> Self {
        let running = plan.identity(name, home).find(&home.pid_file(name));
        let state = match &running {
            None => "dead",
            Some(running) if running.paused => "paused",
            Some(_) => "running",
        };
        let address = match name {
            Name::Mount => plan.mount.clone(),
            Name::Meta(_) | Name::Storage(_) => plan.address(name),
        };
        Self {
            name: name.to_string(),
            state,
            pid: running.as_ref().map(|running| running.pid),
            address,
            resident_bytes: running.as_ref().and_then(|running| resident_bytes(running.pid)),
            log: home.log(name).display().to_string(),
        }
    }
}

/// # Errors
/// What the user is told; something does not run.
pub(super) fn run(context: &Context, place: &Where) -> Result<(), Failure> {
    let (home, plan) = Home::with_plan(&place.dir)?;
    let report = Report::new(context, &home, &plan)?;
    if context.out.json {
        context.out.value(&report)?;
    } else {
        context.out.lines(&report.lines())?;
    }
    if report.running {
        return Ok(());
    }
    let down: Vec<_> = report.processes.iter().filter(|p| p.state != "running").map(|p| p.name.as_str()).collect();
    let message = match down.as_slice() {
        [] => "the mount does not answer".to_owned(),
        names => format!("not running: {}", names.join(", ")),
    };
    Err(Failure::unhealthy(message).hint(format!("`dfsctl dev up --dir {}` starts what is missing", report.dir)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::dev::plan::tests::plan;

    #[test]
    fn dead_processes_have_the_promised_fields() {
        let dir = tempfile::tempdir().expect("tmp");
        let home = Home::create(dir.path()).expect("home");
        let process = serde_json::to_value(Process::new(&home, &plan(), Name::Storage(2))).expect("serializes");
        assert_eq!(process["name"], "storage-2");
        assert_eq!(process["state"], "dead");
        assert_eq!(process["address"], "127.0.0.1:12002");
        assert!(process["pid"].is_null());
        assert!(process["log"].as_str().is_some_and(|log| log.ends_with("/log/storage-2.log")));
    }
}
