//! Going to the background: three processes instead of one.
//!
//! ```text
//!   mount.dfs … DIR          starts the supervisor, waits for its word, prints an error, ends
//!     └ dfs-supervisor … DIR keeps the mount's descriptors, starts the server, and another one when it dies (`supervisor`)
//!         └ mount.dfs … DIR  serves the mount
//! ```
//!
//! Each is the same program, started anew: the word is a zero byte on the supervisor's standard output when the mount is ready,
//! or the text of the error, which the first process prints, so that `mount` shows it and fails.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::OpenOptions,
    io::{self, Read, Write as _},
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::config::Args;

/// Sent when the mount is ready.
const READY: u8 = 0;
/// What a process is told to be, by its environment, and where the mount is.
const ROLE: &str = "DFS_MOUNT_ROLE";
const PLACE: &str = "DFS_MOUNT_PLACE";
/// The program that runs.
const SELF: &str = "/proc/self/exe";

/// Who this process is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// The one that was started by somebody.
    Starter,
    /// Keeps the mount on this directory.
    Supervisor(PathBuf),
    /// Serves it.
    Server(PathBuf),
}

impl Role {
    /// As the environment says it.
    pub(crate) fn of_process() -> Self {
        let place = || env::var_os(PLACE).map(PathBuf::from).unwrap_or_default();
        match env::var_os(ROLE).as_deref().and_then(OsStr::to_str) {
            Some("supervisor") => Self::Supervisor(place()),
            Some("server") => Self::Server(place()),
            Some(_) | None => Self::Starter,
        }
    }
}

/// The supervisor's way to tell who started it.
pub(crate) struct Report(());

impl Report {
    /// Over standard output.
    pub(crate) fn of_process() -> Self {
        Self(())
    }

    /// The mount answers.
    pub(crate) fn ready(self) -> io::Result<()> {
        self.say(&[READY])
    }

    /// It came to nothing.
    pub(crate) fn failed(self, error: &str) -> io::Result<()> {
        self.say(error.as_bytes())
    }

    /// Whoever listens hears the end afterwards.
    fn say(self, words: &[u8]) -> io::Result<()> {
        // They may have been killed; the mount goes on.
        let _ = io::stdout().write_all(words).and_then(|()| io::stdout().flush());
        leave_terminal()
    }
}

/// Starts the supervisor for `mountpoint` and waits for its word; the inner error is that word.
///
/// # Errors
/// The operating system refuses.
pub(crate) fn start(args: &Args, mountpoint: &Path) -> io::Result<Result<(), String>> {
    let mut command = command(Path::new(SELF), "dfs-supervisor", "supervisor", mountpoint, &arguments(args)?);
    command.stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let word = child.stdout.take().map_or_else(|| Err("it has no output".to_owned()), wait);
    if word.is_err() {
        child.wait()?;
    }
    Ok(word)
}

/// The command line of this process for one that runs in `/`.
pub(crate) fn arguments(args: &Args) -> io::Result<Vec<OsString>> {
    let mut all: Vec<OsString> = env::args_os().skip(1).collect();
    let at = all.iter().position(|arg| arg == "--").unwrap_or(all.len());
    // The last one counts.
    let paths = [("--run-dir", &args.run_dir), ("--log-file", &args.log_file), ("--config", &args.config)];
    let paths = paths.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?)));
    let absolute = paths.map(|(flag, path)| {
        let mut text = OsString::from(format!("{flag}="));
        text.push(std::path::absolute(path)?);
        Ok(text)
    });
    let absolute = absolute.collect::<io::Result<Vec<_>>>()?;
    all.splice(at..at, absolute);
    Ok(all)
}

/// A process of the mount on `mountpoint`, in the background.
pub(crate) fn server(program: Option<&Path>, mountpoint: &Path, arguments: &[OsString]) -> Command {
    command(program.unwrap_or(Path::new(SELF)), "mount.dfs", "server", mountpoint, arguments)
}

fn command(program: &Path, name: &str, role: &str, mountpoint: &Path, arguments: &[OsString]) -> Command {
    let mut command = Command::new(program);
    command.arg0(name).args(arguments).env(ROLE, role).env(PLACE, mountpoint);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn wait(mut reading: impl Read) -> Result<(), String> {
    let mut said = Vec::new();
    let mut byte = [0];
    loop {
        match reading.read(&mut byte) {
            Ok(1) if said.is_empty() && byte[0] == READY => return Ok(()),
            Ok(1) => said.push(byte[0]),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    if said.is_empty() {
        return Err("the mounting process ended without a word; run with -f to see its log".to_owned());
    }
    Err(String::from_utf8_lossy(&said).into_owned())
}

/// Leads a session without a terminal, in a directory that nobody wants to unmount.
///
/// # Errors
/// The operating system refuses.
pub(crate) fn leave_session() -> io::Result<()> {
    // SAFETY: plain system call without pointers. It fails only in a process that leads a group, which leads a session then.
    unsafe { libc::setsid() };
    env::set_current_dir("/")
}

/// No longer keeps the terminal, or a pipe behind the starter's output, open.
fn leave_terminal() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for standard in 0..=2 {
        // SAFETY: both are descriptors; the standard ones are replaced on purpose.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(words: &[u8]) -> Result<(), String> {
        let (reading, mut writing) = io::pipe().expect("pipe");
        writing.write_all(words).expect("room in the pipe");
        drop(writing);
        wait(reading)
    }

    #[test]
    fn the_starter_hears_success_errors_and_silence() {
        assert_eq!(heard(&[READY]), Ok(()));
        assert_eq!(heard(b"no such cluster"), Err("no such cluster".to_owned()));
        assert!(heard(b"").is_err_and(|error| error.contains("-f")));
    }

    #[test]
    fn a_process_without_a_role_is_the_starter() {
        assert_eq!(Role::of_process(), Role::Starter);
    }
}
