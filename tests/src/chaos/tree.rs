//! Trees: `cp -a` of a tree whose checksums are kept outside of the cluster, `sha256sum -c` of it on both mounts, `mv`, and
//! `rm -r`. What a program without an error has done is acknowledged.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    journal::{Line, Standing},
    worker::{Place, Worker, errno, own},
};
use crate::{files, wait};

/// Where they are.
pub(super) const ROOT: &str = "trees";
/// Trees of one worker in the cluster at a time.
const KEPT: usize = 4;
/// After this time a program is killed, as a person would: each of its many operations may take its deadline.
const PATIENCE: Duration = Duration::from_secs(45);
/// A program that was killed is gone after this time, even if the mount must give up an operation first.
pub(super) const KILL_MAX: Duration = Duration::from_secs(60);

pub(super) fn work(worker: Worker) -> Result<()> {
    let mut trees = Trees { worker, made: 0, kept: Vec::new() };
    while !trees.worker.is_over() {
        trees.worker.pause(50, 400);
        trees.step()?;
    }
    Ok(())
}

/// A tree that is acknowledged, or that nothing is known of any more.
struct Tree {
    number: u64,
    name: String,
    manifest: PathBuf,
    /// Whether its copy was acknowledged.
    whole: bool,
}

struct Trees {
    worker: Worker,
    made: u64,
    kept: Vec<Tree>,
}

/// How a program ended.
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Trees {
    fn step(&mut self) -> Result<()> {
        if self.kept.len() >= KEPT || (!self.kept.is_empty() && self.worker.rng.once_in(5)) {
            let at = usize::try_from(self.worker.rng.below(self.kept.len() as u64))?;
            return self.remove(at);
        }
        if self.kept.is_empty() || self.worker.rng.once_in(3) {
            return self.copy();
        }
        let at = usize::try_from(self.worker.rng.below(self.kept.len() as u64))?;
        match self.worker.rng.below(4) {
            _ if !self.kept[at].whole => self.remove(at),
            0 => self.rename(at),
            _ => self.check(at),
        }
    }

    fn place(&mut self, mount: usize) -> Result<Option<Place>> {
        let path = self.worker.task.mounts[mount].clone();
        let opened = self.worker.timed("open trees", || Place::open(&path).and_then(|root| root.dir(ROOT)))?;
        if opened.is_err() {
            self.worker.pause(50, 300);
        }
        Ok(opened.ok())
    }

    fn now(&mut self, tree: &Tree, standing: Standing) -> Result<()> {
        let (number, manifest) = (tree.number, tree.manifest.clone());
        Ok(self.worker.journal.add(&Line::Tree { number, manifest, standing })?)
    }

    fn step_done(&mut self, what: &str, well: bool) -> Result<()> {
        Ok(self.worker.journal.add(&Line::Step { what: what.to_owned(), well })?)
    }

    /// Runs a program in a directory of a mount; kills it when it takes too long.
    fn run(&mut self, dir: &Place, program: &str, args: &[&str]) -> Result<Ended> {
        let mut command = Command::new(program);
        command.args(args).env("LC_ALL", "C").current_dir(dir.join("."));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // It ends with this worker.
        // SAFETY: one system call between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let begun = Instant::now();
        let mut child = match command.spawn() {
            Ok(child) => child,
            // The directory went with its mount.
            Err(error) => {
                let status = std::os::unix::process::ExitStatusExt::from_raw(1 << 8);
                return Ok(Ended { status, stdout: String::new(), stderr: error.to_string() });
            }
        };
        let readers = [drain(child.stdout.take()), drain(child.stderr.take())];
        let status = match wait::until_some(program, PATIENCE, || child.try_wait().ok().flatten()) {
            Ok(status) => status,
            Err(_) => self.give_up(&mut child, program, begun)?,
        };
        let [stdout, stderr] = readers.map(|reader| reader.and_then(|reader| reader.join().ok()).unwrap_or_default());
        Ok(Ended { status, stdout, stderr })
    }

    fn give_up(&mut self, child: &mut Child, program: &str, begun: Instant) -> Result<ExitStatus> {
        child.kill()?;
        match wait::until_some(program, KILL_MAX, || child.try_wait().ok().flatten()) {
            Ok(status) => Ok(status),
            Err(_) => {
                let stack = fs::read_to_string(format!("/proc/{}/stack", child.id())).unwrap_or_default();
                let text = format!("{program} cannot be killed, begun {:?} ago; it waits in\n{stack}", begun.elapsed());
                self.worker.journal.violation(text)?;
                Ok(child.wait()?)
            }
        }
    }

    fn copy(&mut self) -> Result<()> {
        let Some(place) = self.place(0)? else { return Ok(()) };
        self.made += 1;
        let number = (self.worker.task.number << 32) | ((self.worker.task.seed & 0xffff) << 16) | self.made;
        let source = self.worker.task.state.join(format!("source-{number:x}"));
        let manifest = source.with_extension("sha256");
        own(make(&source, &manifest, number), "make a tree")?;
        let mut tree = Tree { number, name: format!("t{number:x}"), manifest, whole: false };
        self.now(&tree, Standing::Unsure)?;
        let source = source.display().to_string();
        let ended = self.run(&place, "cp", &["-a", &source, &tree.name])?;
        let well = ended.status.success();
        self.step_done("cp", well)?;
        fs::remove_dir_all(source)?;
        if well {
            self.now(&tree, Standing::Whole(tree.name.clone()))?;
        }
        // Of the others nothing is known, and something is to be removed.
        tree.whole = well;
        self.kept.push(tree);
        if well { self.check(self.kept.len() - 1) } else { self.remove(self.kept.len() - 1) }
    }

    /// Reads a tree on one of the mounts.
    fn check(&mut self, at: usize) -> Result<()> {
        let mount = usize::try_from(self.worker.rng.below(2))?;
        let Some(place) = self.place(mount)? else { return Ok(()) };
        let (name, manifest) = (self.kept[at].name.clone(), self.kept[at].manifest.display().to_string());
        let path = place.join(&name);
        let dir = match self.worker.timed("open tree", || Place::open(&path))? {
            Ok(dir) => dir,
            Err(error) => {
                if errno(&error) == libc::ENOENT {
                    self.worker.journal.violation(format!("tree {name} is missing on mount {mount}"))?;
                }
                return self.step_done("sha256sum", false);
            }
        };
        let ended = self.run(&dir, "sha256sum", &["--check", "--quiet", &manifest])?;
        if let Some(what) = verdict(&ended) {
            self.worker.journal.violation(format!("tree {name} on mount {mount}: {what}"))?;
        }
        self.step_done("sha256sum", ended.status.success())
    }

    fn rename(&mut self, at: usize) -> Result<()> {
        let Some(place) = self.place(0)? else { return Ok(()) };
        let mut tree = self.kept.swap_remove(at);
        let to = format!("t{:x}-{:x}", tree.number, self.worker.rng.below(1 << 32));
        let from = std::mem::replace(&mut tree.name, to.clone());
        self.now(&tree, Standing::Either(from.clone(), to.clone()))?;
        let ended = self.run(&place, "mv", &["-T", &from, &to])?;
        let well = ended.status.success();
        self.step_done("mv", well)?;
        if well {
            self.now(&tree, Standing::Whole(to))?;
            self.kept.push(tree);
        }
        // Else it stays where it is, under one of the names, and is read when all is well.
        Ok(())
    }

    fn remove(&mut self, at: usize) -> Result<()> {
        let Some(place) = self.place(0)? else { return Ok(()) };
        let tree = self.kept.swap_remove(at);
        self.now(&tree, Standing::Unsure)?;
        let ended = self.run(&place, "rm", &["-r", "-f", &tree.name])?;
        let well = ended.status.success();
        self.step_done("rm", well)?;
        if !well {
            return Ok(());
        }
        self.now(&tree, Standing::Gone(tree.name.clone()))?;
        let path = place.join(&tree.name);
        if self.worker.timed("look", || fs::symlink_metadata(&path))?.is_ok() {
            self.worker.journal.violation(format!("tree {} is there after rm -r", tree.name))?;
        }
        Ok(())
    }
}

fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> Option<std::thread::JoinHandle<String>> {
    let mut pipe = pipe?;
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is all there is.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }))
}

/// What in the words of `sha256sum` no fault excuses: other bytes, or no file.
fn verdict(ended: &Ended) -> Option<String> {
    let wrong = ended.stdout.lines().find(|line| line.ends_with(": FAILED"));
    let lost = ended.stderr.lines().find(|line| line.contains("No such file or directory"));
    wrong.or(lost).map(|line| format!("{line} ({})", ended.status))
}

/// Makes a tree of noise with sizes from nothing to several chunks, and the file with its checksums.
fn make(dir: &Path, manifest: &Path, seed: u64) -> std::io::Result<()> {
    let mut rng = crate::rng::Rng::new(seed, 3);
    let mut sums = String::new();
    for sub in ["a", "b/c"] {
        fs::create_dir_all(dir.join(sub))?;
        for file in 0..rng.range(3, 9) {
            let length = match rng.below(16) {
                0 => rng.range(4 << 20, 10 << 20),
                1..=4 => rng.range(60_000, 900_000),
                5 => 0,
                _ => rng.range(1, 9000),
            };
            let (name, bytes) = (format!("{sub}/f{file}"), files::noise(seed ^ (file << 8), length as usize));
            fs::write(dir.join(&name), &bytes)?;
            sums.push_str(&format!("{}  {name}\n", files::sha256_of(&bytes)));
        }
    }
    fs::write(manifest, sums)
}

/// Checks a tree when all is well: every failure counts.
pub(super) fn audit(worker: &mut Worker, mount: &Place, name: &str, manifest: &Path) -> Result<Option<String>> {
    let dir = match worker.timed("open tree", || Place::open(&mount.join(&format!("{ROOT}/{name}"))))? {
        Ok(dir) => dir,
        Err(error) => return Ok(Some(error.to_string())),
    };
    let program = Command::new("sha256sum")
        .args(["--check", "--quiet"])
        .arg(manifest)
        .env("LC_ALL", "C")
        .current_dir(dir.join("."))
        .output();
    let output = program.context("sha256sum")?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Ok((!output.status.success()).then_some(said))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn checksums_of_trees_hold_and_differences_are_seen() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let (tree, manifest) = (dir.path().join("tree"), dir.path().join("sums"));
        make(&tree, &manifest, 5)?;
        let check = || -> Result<Ended> {
            let mut command = Command::new("sha256sum");
            command.args(["--check", "--quiet"]).arg(&manifest).env("LC_ALL", "C").current_dir(&tree);
            let output = command.output()?;
            let [stdout, stderr] =
                [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
            Ok(Ended { status: output.status, stdout, stderr })
        };
        assert_eq!(verdict(&check()?), None);
        fs::write(tree.join("a/f0"), b"other bytes")?;
        assert!(verdict(&check()?).is_some_and(|what| what.starts_with("a/f0: FAILED")));
        fs::remove_file(tree.join("a/f0"))?;
        assert!(verdict(&check()?).is_some_and(|what| what.contains("No such file")));
        let unreadable = Ended {
            status: ExitStatus::from_raw(1 << 8),
            stdout: "a/f1: FAILED open or read\n".into(),
            stderr: "sha256sum: a/f1: Input/output error\n".into(),
        };
        assert_eq!(verdict(&unreadable), None, "faults may keep a file from being read");
        Ok(())
    }
}
