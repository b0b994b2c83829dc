//! A worker: a process of its own that uses mounts as programs do, and writes down what it did and saw.
//!
//! It gives up nothing because of an error: during faults any operation may fail. What it must never see are wrong bytes, and
//! the absence of what was acknowledged.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    journal::{Journal, now},
    register, tree,
};
use crate::{history::Ns, rng::Rng};

/// What a worker does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Kind {
    /// Small files: create, rename, delete, read.
    Register,
    /// Trees: cp, sha256sum, mv, rm.
    Tree,
    /// Reads everything once more when all is well.
    Audit,
}

/// The command line of a worker.
#[derive(Clone, Debug, clap::Args)]
pub struct Task {
    /// What to do
    #[arg(long, value_enum)]
    pub kind: Kind,
    /// Its number: no other worker of this cluster has it
    #[arg(long)]
    pub number: u64,
    /// Seed of its choices
    #[arg(long)]
    pub seed: u64,
    /// The mount that it uses, and the other one
    #[arg(long, value_delimiter = ',')]
    pub mounts: Vec<PathBuf>,
    /// Directory for its journal, outside of the cluster
    #[arg(long)]
    pub state: PathBuf,
}

impl Task {
    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{:?}-{}", self.kind, self.number).to_lowercase()
    }

    /// Its journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.state.join(format!("{}.journal", self.name()))
    }

    /// Where it says which operation it is in.
    #[must_use]
    pub fn pulse(&self) -> PathBuf {
        self.state.join(format!("{}.pulse", self.name()))
    }
}

/// The file whose presence ends all workers.
#[must_use]
pub fn stop_file(state: &Path) -> PathBuf {
    state.join("stop")
}

/// What every worker has.
pub(super) struct Worker {
    pub(super) task: Task,
    pub(super) journal: Journal,
    pub(super) rng: Rng,
}

/// Does the work until the file [`stop_file`] appears.
///
/// # Errors
/// Its own files cannot be written, or something outside of the cluster fails.
pub fn work(task: Task) -> Result<()> {
    let journal = Journal::open(&task.journal())?;
    let rng = Rng::new(task.seed, task.number);
    let worker = Worker { journal, rng, task };
    match worker.task.kind {
        Kind::Register => register::work(worker),
        Kind::Tree => tree::work(worker),
        Kind::Audit => super::audit::work(worker),
    }
}

impl Worker {
    pub(super) fn is_over(&self) -> bool {
        stop_file(&self.task.state).exists()
    }

    pub(super) fn pause(&mut self, from_ms: u64, to_ms: u64) {
        std::thread::sleep(std::time::Duration::from_millis(self.rng.range(from_ms, to_ms)));
    }

    /// Says that an operation begins, runs it, and says that it is over: who watches sees it when it hangs.
    pub(super) fn timed<T>(&self, what: &str, operation: impl FnOnce() -> T) -> Result<T> {
        fs::write(self.task.pulse(), format!("{} {what}", now()))?;
        let result = operation();
        fs::write(self.task.pulse(), "")?;
        Ok(result)
    }
}

/// The operation that a pulse file shows, and when it began.
#[must_use]
pub fn pulse(path: &Path) -> Option<(Ns, String)> {
    let text = fs::read_to_string(path).ok()?;
    let (at, what) = text.split_once(' ')?;
    Some((at.parse().ok()?, what.to_owned()))
}

/// Number of FUSE file systems in `statfs(2)`.
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;

/// A directory of a mount, held open: what is done through it happens there and nowhere else, also when the mount dies and
/// its mount point is a plain directory for a while.
#[derive(Debug)]
pub(super) struct Place(File);

impl Place {
    /// Opens a directory.
    ///
    /// # Errors
    /// The file system's; `ENOTCONN` if nothing is mounted there now.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let dir = File::open(path)?;
        // SAFETY: statfs is plain numbers, for which zero is a value.
        let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
        // SAFETY: the call fills the structure that it is given.
        if unsafe { libc::fstatfs(dir.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if u64::try_from(stat.f_type).ok() != Some(FUSE_SUPER_MAGIC) {
            return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
        }
        Ok(Self(dir))
    }

    /// A path that leads through the open directory.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}/{name}", std::process::id(), self.0.as_raw_fd()))
    }

    /// A directory in this one, made if it is not there.
    pub(super) fn dir(&self, name: &str) -> io::Result<Self> {
        let path = self.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Self::open(&path),
        }
    }
}

/// The error of the system.
pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// `renameat2(2)`.
pub(super) fn rename(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    use std::{ffi::CString, os::unix::ffi::OsStrExt as _};
    let (from, to) = (CString::new(from.as_os_str().as_bytes())?, CString::new(to.as_os_str().as_bytes())?);
    // SAFETY: both are C strings that live through the call.
    let done = unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Adds what is known to an error that ends the worker.
pub(super) fn own<T>(result: io::Result<T>, what: &str) -> Result<T> {
    result.with_context(|| format!("{what} (outside of the cluster)"))
}
