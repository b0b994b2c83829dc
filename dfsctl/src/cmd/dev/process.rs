//! Local processes: started in their own session, found again by another dfsctl, signalled without mistake.
//!
//! A pid file holds just the pid, so that `kill $(cat run/storage-1.pid)` works, and is only a hint: a process is ours when
//! the arguments in its `/proc/PID/cmdline` are the ones we start it with (its data directory or its mount point, both
//! absolute). If the file is missing or names another process, `/proc` is searched. Signals go through a pidfd taken before
//! that check, so that a pid reused in between is not hit.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStringExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::home::Program;

/// How often a process that should end is looked at.
const POLL: Duration = Duration::from_millis(10);
/// Longest part of a log that is read to show its end, bytes.
const TAIL_BYTES: u64 = 64 << 10;

/// What a process of ours is known by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    /// Arguments that follow each other in its command line.
    pub(super) arguments: Vec<OsString>,
}

/// A process that runs and is ours.
#[derive(Debug)]
pub(super) struct Running {
    /// Its pid.
    pub(super) pid: i32,
    /// Stopped by SIGSTOP.
    pub(super) paused: bool,
    pidfd: Option<OwnedFd>,
}

/// A signal that dfsctl sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Signal {
    /// End cleanly.
    Terminate,
    /// End now.
    Kill,
    /// Freeze.
    Pause,
    /// Go on.
    Resume,
}

impl Signal {
    fn number(self) -> i32 {
        match self {
            Self::Terminate => libc::SIGTERM,
            Self::Kill => libc::SIGKILL,
            Self::Pause => libc::SIGSTOP,
            Self::Resume => libc::SIGCONT,
        }
    }
}

impl Identity {
    /// Whether a process with this command line (each argument ended by NUL) is the one.
    fn matches(&self, cmdline: &[u8]) -> bool {
        let words: Vec<&[u8]> = cmdline.split(|b| *b == 0).collect();
        !self.arguments.is_empty()
            && words.windows(self.arguments.len()).any(|window| {
                window.iter().zip(&self.arguments).all(|(word, argument)| *word == argument.as_encoded_bytes())
            })
    }

    /// The process, if it runs.
    pub(super) fn find(&self, pid_file: &Path) -> Option<Running> {
        let hinted = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
        hinted.and_then(|pid| self.check(pid)).or_else(|| self.search())
    }

    /// All processes that it is, the one of the file first: a mount is two, its supervisor and the one that serves.
    pub(super) fn find_all(&self, pid_file: &Path) -> Vec<Running> {
        let mut all: Vec<Running> = self.find(pid_file).into_iter().collect();
        let known = all.first().map(|first| first.pid);
        for pid in pids() {
            all.extend(self.check(pid).filter(|found| Some(found.pid) != known));
        }
        all
    }

    /// Looks through all processes.
    fn search(&self) -> Option<Running> {
        self.search_where(|_| true)
    }

    /// Looks through all processes that run a program of this name.
    pub(super) fn search_running(&self, program: &str) -> Option<Running> {
        self.search_where(|pid| {
            let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let path = cmdline.split(|b| *b == 0).next().unwrap_or_default();
            path.split(|b| *b == b'/').next_back() == Some(program.as_bytes())
        })
    }

    fn search_where(&self, wanted: impl Fn(i32) -> bool) -> Option<Running> {
        pids().find_map(|pid| if wanted(pid) { self.check(pid) } else { None })
    }

    fn check(&self, pid: i32) -> Option<Running> {
        let own = i32::try_from(std::process::id()).ok()?;
        if pid <= 1 || pid == own {
            return None;
        }
        let pidfd = open_pidfd(pid);
        // A zombie has an empty command line and so is not running.
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        if !self.matches(&cmdline) {
            return None;
        }
        let paused = matches!(state(pid)?, 'T');
        Some(Running { pid, paused, pidfd })
    }
}

fn pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

impl Running {
    /// Sends a signal; a process that ended meanwhile is no error.
    ///
    /// # Errors
    /// The kernel refuses, for example because the process is another user's.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let number = signal.number();
        // SAFETY: plain system calls on a descriptor that we own, or on a pid that was just verified.
        let result = unsafe {
            match &self.pidfd {
                Some(fd) => libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), number, 0, 0),
                None => i64::from(libc::kill(self.pid, number)),
            }
        };
        match io::Error::last_os_error() {
            error if result < 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether it has ended; a zombie that nobody reaps has.
    pub(super) fn is_gone(&self) -> bool {
        if let Some(fd) = &self.pidfd {
            let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd, no waiting.
            return unsafe { libc::poll(&raw mut poll, 1, 0) } > 0;
        }
        matches!(state(self.pid), None | Some('Z' | 'X'))
    }

    /// Waits until it has ended; `false` if it has not by `deadline`.
    pub(super) fn wait_gone(&self, deadline: Instant) -> bool {
        while !self.is_gone() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(POLL);
        }
        true
    }
}

fn open_pidfd(pid: i32) -> Option<OwnedFd> {
    // SAFETY: the system call gives a new descriptor, which is owned from here on, or an error.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        i32::try_from(fd).ok().filter(|fd| *fd >= 0).map(|fd| OwnedFd::from_raw_fd(fd))
    }
}

/// State letter in `/proc/PID/stat`; the name before it may hold any character, so the last `)` counts.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|b| *b == b')')?;
    stat.get(end + 2).map(|b| char::from(*b))
}

/// Resident memory of `pid` in bytes.
pub(super) fn resident_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// A process that was just started.
#[derive(Debug)]
pub(super) struct Started {
    /// The process; it lives on when this is dropped.
    pub(super) child: Child,
    /// Where its output goes.
    pub(super) log: PathBuf,
    log_start: u64,
}

/// Starts `program` in its own session with its output appended to `log`, and writes its pid file.
///
/// # Errors
/// The program cannot be started, or a file not written.
pub(super) fn start(program: &Program, directory: &Path, log: &Path, pid_file: &Path) -> io::Result<Started> {
    let output = OpenOptions::new().create(true).append(true).open(log)?;
    let log_start = output.metadata()?.len();
    let mut command = Command::new(&program.executable);
    command.args(&program.arguments).current_dir(directory).stdin(Stdio::null());
    command.stdout(output.try_clone()?).stderr(output);
    // What `dfsctl` itself is told by the environment must not reach the servers, whose prefixes are longer forms of it.
    command.env_remove("DFS_META_ADDRS").env_remove("DFS_MOUNT").env_remove("DFS_CONFIG");
    command.env_remove(dfs_common::crash::VARIABLE);
    // A log file is no terminal, but tracing colours its lines unless told not to.
    command.env("NO_COLOR", "1");
    // SAFETY: setsid is async-signal-safe and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    let mut child = command.spawn()?;
    if let Err(error) = write_pid(pid_file, child.id()) {
        // A process that could not be noted is not left behind.
        drop(child.kill());
        drop(child.wait());
        return Err(error);
    }
    Ok(Started { child, log: log.to_owned(), log_start })
}

/// Readers of a pid file see a whole number or none.
fn write_pid(path: &Path, pid: u32) -> io::Result<()> {
    let tmp = dfs_common::durable::tmp_sibling(path);
    fs::write(&tmp, format!("{pid}\n"))?;
    fs::rename(tmp, path)
}

impl Started {
    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(status.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// The last `count` lines that it wrote.
    pub(super) fn log_tail(&self, count: usize) -> Vec<String> {
        tail(&self.log, self.log_start, count).unwrap_or_default()
    }

    /// Asks it to end.
    pub(super) fn terminate(&mut self) {
        if self.ended().is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            // SAFETY: the child has not been waited for, so its pid is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }

    /// Waits for its end, and kills it at `deadline`.
    pub(super) fn reap(&mut self, deadline: Instant) {
        while self.ended().is_none() {
            if Instant::now() >= deadline {
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            thread::sleep(POLL);
        }
    }
}

fn tail(log: &Path, from: u64, count: usize) -> io::Result<Vec<String>> {
    let mut file = File::open(log)?;
    let start = from.max(file.metadata()?.len().saturating_sub(TAIL_BYTES));
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![];
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(count)..].iter().map(|line| crate::text::escape(line.as_bytes())).collect())
}

/// Finds a program by one of its names: beside dfsctl itself, else in `PATH`.
pub(in crate::cmd) fn find_program(names: &[&str]) -> Option<PathBuf> {
    let own = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = own.into_iter().chain(std::env::split_paths(&path)).collect();
    directories.iter().flat_map(|dir| names.iter().map(move |name| dir.join(name))).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// `word` as a shell reads it back, quoted only if it must be.
#[must_use]
pub(super) fn shell_quote(word: &OsStr) -> OsString {
    let bytes = word.as_encoded_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-:,=+@%".contains(b);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return word.to_owned();
    }
    let mut quoted = vec![b'\''];
    for byte in bytes {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path, mark: &str) -> (Started, Identity, PathBuf) {
        // `sh -c SCRIPT ARG0 ARG...`: the arguments stand in the command line and mean nothing.
        let arguments = ["-c", "sleep 60; :", "sh", "--data-dir", mark].map(OsString::from).to_vec();
        let program = Program { executable: "/bin/sh".into(), arguments };
        let pid_file = dir.join("x.pid");
        let started = start(&program, dir, &dir.join("x.log"), &pid_file).expect("starts");
        let identity = Identity { arguments: vec!["--data-dir".into(), mark.into()] };
        (started, identity, pid_file)
    }

    #[test]
    fn a_process_is_found_by_its_pid_file_and_without_it() {
        let dir = tempfile::tempdir().expect("tmp");
        let mark = dir.path().join("d").display().to_string();
        let (mut started, identity, pid_file) = sleeper(dir.path(), &mark);
        let pid = i32::try_from(started.child.id()).expect("small");
        // The command line changes with exec, shortly after the fork.
        let deadline = Instant::now() + Duration::from_secs(5);
        while identity.find(&pid_file).is_none() && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        assert_eq!(identity.find(&pid_file).expect("by file").pid, pid);
        fs::remove_file(&pid_file).expect("remove");
        assert_eq!(identity.find(&pid_file).expect("by search").pid, pid);
        started.terminate();
        started.reap(Instant::now() + Duration::from_secs(5));
        assert!(identity.find(&pid_file).is_none());
    }

    #[test]
    fn a_reused_pid_is_not_ours() {
        let dir = tempfile::tempdir().expect("tmp");
        let (mut started, _, pid_file) = sleeper(dir.path(), "/somebody/else");
        let ours = Identity { arguments: vec!["--data-dir".into(), "/ours".into()] };
        assert!(ours.find(&pid_file).is_none(), "the pid file names a process with other arguments");
        fs::write(&pid_file, "1\n").expect("write");
        assert!(ours.find(&pid_file).is_none(), "init is never ours");
        fs::write(&pid_file, "-1\n").expect("write");
        assert!(ours.find(&pid_file).is_none(), "a negative pid would be a process group");
        started.terminate();
        started.reap(Instant::now() + Duration::from_secs(5));
    }

    #[test]
    fn pause_resume_and_kill() {
        let dir = tempfile::tempdir().expect("tmp");
        let mark = dir.path().join("p").display().to_string();
        let (mut started, identity, pid_file) = sleeper(dir.path(), &mark);
        let until = |paused: bool| {
            let deadline = Instant::now() + Duration::from_secs(5);
            while identity.find(&pid_file).is_none_or(|running| running.paused != paused) {
                assert!(Instant::now() < deadline, "paused = {paused} never came");
                thread::sleep(POLL);
            }
            identity.find(&pid_file).expect("runs")
        };
        until(false).signal(Signal::Pause).expect("signal");
        until(true).signal(Signal::Resume).expect("signal");
        let running = until(false);
        running.signal(Signal::Kill).expect("signal");
        assert!(running.wait_gone(Instant::now() + Duration::from_secs(5)), "a zombie counts as gone");
        assert!(running.signal(Signal::Kill).is_ok(), "ended already");
        assert!(started.ended().is_some());
    }

    #[test]
    fn part_of_an_argument_is_no_match() {
        let identity = Identity { arguments: vec!["--data-dir".into(), "/d/storage-1".into()] };
        assert!(identity.matches(b"dfs-storage\0--data-dir\0/d/storage-1\0--rack\0r\0"));
        assert!(!identity.matches(b"dfs-storage\0--data-dir\0/d/storage-11\0"));
        assert!(!identity.matches(b"dfs-storage\0--data-dir\0x\0/d/storage-1\0"));
        assert!(!identity.matches(b""));
    }

    #[test]
    fn the_end_of_a_log_starts_where_the_process_did() {
        let dir = tempfile::tempdir().expect("tmp");
        let log = dir.path().join("l");
        fs::write(&log, "old\nnew 1\nnew 2\nnew 3\n").expect("write");
        assert_eq!(tail(&log, 4, 2).expect("reads"), ["new 2", "new 3"]);
        assert_eq!(tail(&log, 4, 9).expect("reads").len(), 3);
    }

    #[test]
    fn quoting_for_a_shell() {
        assert_eq!(shell_quote(OsStr::new("/plain/path-1.x")), "/plain/path-1.x");
        assert_eq!(shell_quote(OsStr::new("it's a $HOME")), "'it'\\''s a $HOME'");
        assert_eq!(shell_quote(OsStr::new("")), "''");
    }
}
