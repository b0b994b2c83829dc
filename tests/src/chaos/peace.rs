//! After the faults: everything must come right by itself, within bounds.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::{field::Field, judge, watch, worker::Kind};
use crate::{cluster::alive, files, wait};

/// All nodes and mounts are up, and all metadata nodes have caught up.
const UP_MAX: Duration = Duration::from_secs(60);
/// Every worker has done something without an error.
const PROGRESS_MAX: Duration = Duration::from_secs(90);
/// All workers have ended once they were asked to.
const END_MAX: Duration = Duration::from_secs(120);
/// Every chunk has all its copies.
const HEAL_MAX: Duration = Duration::from_secs(150);
/// The disks hold what is recorded, byte for byte; damage that was not noticed before is found and mended.
const WHOLE_MAX: Duration = Duration::from_secs(150);
/// Everything is read once more.
const AUDIT_MAX: Duration = Duration::from_secs(240);
/// The number of the worker that reads everything.
const AUDITOR: u64 = 30;

impl Field {
    pub(super) fn peace(&mut self) -> Result<()> {
        let begun = Instant::now();
        let mut trouble = String::new();
        self.demand("all nodes are there", UP_MAX, &mut trouble, Self::all_there)?;
        self.excuse_nothing();
        let before = self.workers.successes()?;
        self.demand("every worker gets on", PROGRESS_MAX, &mut trouble, |field, trouble| {
            let now = field.workers.successes()?;
            *trouble =
                now.iter().zip(&before).filter(|(now, old)| now.1 <= old.1).map(|(now, _)| now.0.clone()).collect();
            Ok(trouble.is_empty())
        })?;
        self.workers.ask_to_end()?;
        self.demand("the workers end", END_MAX, &mut trouble, |field, _| Ok(field.workers.are_over()))?;
        for finding in self.workers.collect()? {
            self.finding(finding);
        }
        self.demand("every chunk has its copies", HEAL_MAX, &mut trouble, |field, trouble| {
            field.asked(&["wait", "healthy", "--timeout", "3s"], trouble)
        })?;
        self.demand("fsck finds nothing", WHOLE_MAX, &mut trouble, |field, trouble| {
            field.asked(&["fsck", "--verify"], trouble)
        })?;
        let healed = begun.elapsed();
        self.say(&format!("all is well after {:.1} s", healed.as_secs_f64()));
        self.report.healed_in = self.report.healed_in.max(healed);
        self.workers.launch(Kind::Audit, AUDITOR, 0)?;
        self.demand("everything is read", AUDIT_MAX, &mut trouble, |field, _| Ok(field.workers.are_over()))?;
        for finding in self.workers.collect()? {
            self.finding(finding);
        }
        let mut verdict = judge::judge(&watch::journals(&self.workers.state)?);
        for finding in std::mem::take(&mut verdict.findings) {
            self.finding(finding);
        }
        self.report.add(verdict);
        self.clear()
    }

    /// Waits until something holds, and notes a finding if it does not in time.
    fn demand(
        &mut self,
        what: &str,
        max: Duration,
        trouble: &mut String,
        mut holds: impl FnMut(&mut Self, &mut String) -> Result<bool>,
    ) -> Result<()> {
        let begun = Instant::now();
        trouble.clear();
        loop {
            self.tick()?;
            if holds(self, trouble)? {
                self.say(&format!("{what} after {:.1} s", begun.elapsed().as_secs_f64()));
                return Ok(());
            }
            if begun.elapsed() > max {
                self.finding(format!("{what}: not {} s after the faults ended: {trouble}", max.as_secs()));
                return Ok(());
            }
        }
    }

    fn all_there(&mut self, trouble: &mut String) -> Result<bool> {
        if !self.all_up() {
            "a process is not up".clone_into(trouble);
            return Ok(false);
        }
        let output = self.cluster.dfsctl(&["--deadline", "3s", "status", "--json"])?;
        let Ok(status) = serde_json::from_str::<Value>(&output.stdout) else {
            *trouble = output.stderr;
            return Ok(false);
        };
        let members = status["meta"]["members"].as_array().cloned().unwrap_or_default();
        let caught_up =
            members.len() == 3 && members.iter().all(|member| member["reachable"] == true && member["lag"] == 0);
        *trouble = format!("{} {}", status["meta"], status["nodes"]);
        Ok(caught_up && alive(&status) == 4)
    }

    fn asked(&mut self, args: &[&str], trouble: &mut String) -> Result<bool> {
        let output = self.cluster.dfsctl(args)?;
        *trouble = format!("{}{}", output.stdout, output.stderr);
        Ok(output.code == 0)
    }

    /// Removes what the workers left, so that the next round begins with an empty tree.
    fn clear(&mut self) -> Result<()> {
        if !self.report.findings.is_empty() {
            return Ok(());
        }
        let path = self.mount_path();
        // A mount that was killed keeps the names of what it was writing, and with them their directories, until its session ends.
        let script = "cd \"$1\" && { timeout 60 sh -c 'until rm -rf trees registers 2>/dev/null; do sleep 1; done' || rm -rf trees registers; }";
        if let Err(error) = files::sh(script, &[&path]) {
            self.finding(format!("the files of the round cannot be removed: {error:#}"));
        }
        let is_empty = || files::names(&path).is_ok_and(|names| names.is_empty());
        if wait::until("an empty tree", Duration::from_secs(5), is_empty).is_err() {
            self.finding(format!("what was removed is still listed: {:?}", files::names(&path)));
        }
        Ok(())
    }
}
