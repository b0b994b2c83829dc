//! The directory of a local cluster: its paths, its lock, its file for shells.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use dfs_common::durable::{self, DirLock};

use super::{
    plan::{Name, Plan},
    process::{find_program, shell_quote},
};
use crate::{failure::Failure, output::Output};

/// How long to wait for another dfsctl; longer than a start or stop takes.
const LOCK_PATIENCE: Duration = Duration::from_secs(90);

/// A program with its arguments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Program {
    /// Absolute path.
    pub(super) executable: PathBuf,
    /// Arguments behind the program's name.
    pub(super) arguments: Vec<OsString>,
}

/// Where the programs are.
#[derive(Clone, Debug)]
pub(super) struct Programs {
    meta: PathBuf,
    storage: PathBuf,
    mount: Option<PathBuf>,
}

impl Programs {
    /// Looks beside dfsctl, then in `PATH`.
    pub(super) fn find(mount_needed: bool) -> Result<Self, Failure> {
        let find = |names: &[&str]| {
            find_program(names).ok_or_else(|| {
                Failure::not_found(format!("cannot find the program {}", names[0]))
                    .hint("it must be in the directory of dfsctl or in PATH; `cargo build --release --bins` builds all")
            })
        };
        // Cargo cannot give a program the name that mount(8) wants.
        let mount = find(&["mount.dfs", "mount-dfs"]);
        Ok(Self {
            meta: find(&["dfs-meta"])?,
            storage: find(&["dfs-storage"])?,
            mount: if mount_needed { Some(mount?) } else { mount.ok() },
        })
    }

    /// The program of a process; the mount's is there if [`Programs::find`] was asked for it.
    pub(super) fn executable(&self, name: Name) -> Result<PathBuf, Failure> {
        match name {
            Name::Meta(_) => Ok(self.meta.clone()),
            Name::Storage(_) => Ok(self.storage.clone()),
            Name::Mount => self.mount.clone().ok_or_else(|| Failure::not_found("cannot find the program mount.dfs")),
        }
    }
}

/// The directory of a local cluster.
#[derive(Debug)]
pub(super) struct Home {
    /// Absolute, without symbolic links, UTF-8.
    dir: PathBuf,
}

impl Home {
    /// The directory, made if it is missing.
    pub(super) fn create(dir: &Path) -> Result<Self, Failure> {
        let shown = dir.display();
        durable::create_dir_all(dir).map_err(|error| Failure::io(format!("cannot make {shown}"), &error))?;
        let home = Self::open(dir)?;
        for sub in ["data", "log", "run"] {
            let path = home.dir.join(sub);
            let made = durable::create_dir_all(&path);
            made.map_err(|error| Failure::io(format!("cannot make {}", path.display()), &error))?;
        }
        Ok(home)
    }

    /// The directory, which must exist.
    pub(super) fn open(dir: &Path) -> Result<Self, Failure> {
        let dir = match fs::canonicalize(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_cluster(dir)),
            other => other.map_err(|error| Failure::io(format!("cannot use {}", dir.display()), &error))?,
        };
        if dir.to_str().is_none() {
            return Err(Failure::usage(format!("{}: the path of --dir must be UTF-8", dir.display())));
        }
        Ok(Self { dir })
    }

    /// The directory and its cluster, which must both exist.
    pub(super) fn with_plan(dir: &Path) -> Result<(Self, Plan), Failure> {
        let home = Self::open(dir)?;
        let plan = Plan::load(&home.plan_file())?.ok_or_else(|| no_cluster(&home.dir))?;
        Ok((home, plan))
    }

    /// Excludes other dfsctl processes while the value lives.
    pub(super) fn lock(&self, out: Output) -> Result<DirLock, Failure> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        let mut told = false;
        loop {
            let lock = durable::lock_dir(&self.dir);
            let lock = lock.map_err(|error| Failure::io(format!("cannot lock {}", self.dir.display()), &error))?;
            if let Some(lock) = lock {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(Failure::local(format!("another dfsctl works on {}", self.dir.display())));
            }
            if !std::mem::replace(&mut told, true) {
                out.note("waiting for another dfsctl that works on this cluster ...");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The directory itself.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the cluster is made of.
    pub(super) fn plan_file(&self) -> PathBuf {
        self.dir.join("cluster.json")
    }

    /// For a shell to source.
    pub(super) fn env_file(&self) -> PathBuf {
        self.dir.join("env")
    }

    /// Data directory of a process.
    pub(super) fn data(&self, name: Name) -> PathBuf {
        self.dir.join("data").join(name.to_string())
    }

    /// Output of a process.
    pub(super) fn log(&self, name: Name) -> PathBuf {
        self.dir.join("log").join(format!("{name}.log"))
    }

    /// Pid of a process.
    pub(super) fn pid_file(&self, name: Name) -> PathBuf {
        self.dir.join("run").join(format!("{name}.pid"))
    }

    /// Writes what a shell needs to use the cluster.
    pub(super) fn write_env(&self, plan: &Plan) -> Result<(), Failure> {
        let programs = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
        let path = self.env_file();
        let written = durable::write_file(&path, &env_text(plan, programs.as_deref()));
        written.map_err(|error| Failure::io(format!("cannot write {}", path.display()), &error))
    }

    /// Removes the data of a cluster that never served, so that a new one can be made.
    pub(super) fn clear_data(&self) -> Result<(), Failure> {
        let data = self.dir.join("data");
        let cleared = fs::remove_dir_all(&data).and_then(|()| fs::create_dir(&data));
        cleared.map_err(|error| Failure::io(format!("cannot clear {}", data.display()), &error))
    }

    /// Whether there is data of any process.
    pub(super) fn has_data(&self) -> bool {
        fs::read_dir(self.dir.join("data")).is_ok_and(|mut entries| entries.next().is_some())
    }
}

fn no_cluster(dir: &Path) -> Failure {
    Failure::not_found(format!("there is no cluster in {}", dir.display()))
        .hint("`dfsctl dev up` makes one; --dir says where")
}

/// The file in the language of POSIX shells. Sourcing it twice does not make `PATH` longer.
fn env_text(plan: &Plan, programs: Option<&Path>) -> Vec<u8> {
    let quoted = |word: &str| shell_quote(word.as_ref());
    let mut text = OsString::from("# Written by dfsctl dev up. Use: . ./env\nexport DFS_META_ADDRS=");
    text.push(quoted(&plan.meta_addresses().join(",")));
    match &plan.mount {
        Some(mount) => {
            text.push("\nexport DFS_MOUNT=");
            text.push(quoted(mount));
        }
        None => text.push("\nunset DFS_MOUNT"),
    }
    if let Some(programs) = programs {
        let directory = shell_quote(programs.as_os_str());
        text.push("\ncase \":$PATH:\" in *:");
        text.push(&directory);
        text.push(":*) ;; *) export PATH=");
        text.push(&directory);
        text.push(":\"$PATH\" ;; esac");
    }
    text.push("\n");
    text.into_encoded_bytes()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::cmd::dev::plan::tests::plan;

    /// Sources the file in a real shell and prints a variable.
    fn sourced(plan: &Plan, programs: &Path, script: &str) -> String {
        let dir = tempfile::tempdir().expect("tmp");
        let file = dir.path().join("env");
        fs::write(&file, env_text(plan, Some(programs))).expect("write");
        let output = Command::new("/bin/sh")
            .args(["-c", &format!(". \"$1\"; . \"$1\"; {script}"), "sh"])
            .arg(&file)
            .env("DFS_MOUNT", "/old")
            .env("PATH", "/bin:/usr/bin")
            .output()
            .expect("runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[test]
    fn a_shell_gets_addresses_mount_and_path_once() {
        let mut plan = plan();
        plan.mount = Some("/mnt/it's here".into());
        let programs = Path::new("/opt/my dfs");
        assert_eq!(sourced(&plan, programs, "printf %s \"$DFS_META_ADDRS\""), "127.0.0.1:11001,127.0.0.1:11002");
        assert_eq!(sourced(&plan, programs, "printf %s \"$DFS_MOUNT\""), "/mnt/it's here");
        assert_eq!(sourced(&plan, programs, "printf %s \"$PATH\""), "/opt/my dfs:/bin:/usr/bin");
    }

    #[test]
    fn without_a_mount_an_older_one_is_forgotten() {
        assert_eq!(sourced(&plan(), Path::new("/x"), "printf %s \"${DFS_MOUNT-unset}\""), "unset");
    }

    #[test]
    fn a_missing_cluster_is_not_found() {
        let dir = tempfile::tempdir().expect("tmp");
        assert_eq!(Home::with_plan(dir.path()).expect_err("empty").exit, crate::exit::Exit::NotFound);
        let missing = dir.path().join("no");
        assert_eq!(Home::with_plan(&missing).expect_err("missing").exit, crate::exit::Exit::NotFound);
    }
}
