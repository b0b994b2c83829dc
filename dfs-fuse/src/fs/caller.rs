//! How the process that closes a descriptor is doing: closing it, exiting, or killed.
//!
//! A writer that was killed in mid-file must not publish half of it, one that exits without close must publish. FLUSH comes
//! in both cases and looks the same, but at that moment the caller is still there: `/proc/PID/stat` shows PF_EXITING in its
//! flags and the wait status it will have (proc(5): fields 9 and 52; PF_EXITING: include/linux/sched.h).

//!
//! What is asked of `/proc` may not come: a descriptor with FD_CLOEXEC is closed in the middle of execve(2), when the kernel holds
//! the lock that some of these files take, until FLUSH is answered. So every question has a limit of time ([`ask`]).

use std::{
    fs, io,
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use dfs_common::{InodeId, lock::Class};

/// `task_struct.flags`: getting shut down.
const PF_EXITING: u64 = 4;
/// Descriptors looked at before giving up: a process with more is not a shell with a redirection.
const DESCRIPTORS_MAX: usize = 4096;

/// How long an answer of `/proc` is waited for. It takes microseconds, or as long as we wait.
const PATIENCE: Duration = Duration::from_millis(100);

type Question = Box<dyn FnOnce() + Send>;

/// Threads that have answered and wait for the next question.
static IDLE: Mutex<Vec<mpsc::Sender<Question>>> = Mutex::new(Vec::new());

fn idle() -> MutexGuard<'static, Vec<mpsc::Sender<Question>>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer_questions() -> io::Result<mpsc::Sender<Question>> {
    let (sender, questions) = mpsc::channel::<Question>();
    thread::Builder::new().name("ask-proc".into()).spawn(move || questions.iter().for_each(|question| question()))?;
    Ok(sender)
}

/// What `look` finds, or `unknown` if it does not come back in time. A thread that hangs in its question is left to it and ends
/// with it.
fn ask<T: Send + 'static>(unknown: T, look: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::sync_channel(1);
    let free = idle().pop();
    let Ok(thread) = free.map_or_else(answer_questions, Ok) else { return unknown };
    let question = Box::new(move || {
        // Nobody waits for an answer that is late.
        let _ = tell.send(look());
    });
    if thread.send(question).is_err() {
        return unknown;
    }
    match told.recv_timeout(PATIENCE) {
        Ok(found) => {
            idle().push(thread);
            found
        }
        Err(_) => unknown,
    }
}

/// Why a descriptor is being closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Closing {
    /// By close(2), or it cannot be known (another pid namespace, no right to look).
    Explicitly,
    /// The process exits of its own will.
    AtExit,
    /// This signal ended the process.
    Killed(u8),
}

/// Asks why `pid` (a thread id, as FUSE gives it) is closing a descriptor.
pub(crate) fn closing(pid: u32) -> Closing {
    if pid == 0 {
        return Closing::Explicitly;
    }
    ask(Closing::Explicitly, move || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(Closing::Explicitly, |stat| parse_stat(&stat))
    })
}

fn parse_stat(stat: &str) -> Closing {
    // The command's name in field 2 may contain anything, also spaces and parentheses.
    let Some((_, rest)) = stat.rsplit_once(')') else { return Closing::Explicitly };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    if number(9) & PF_EXITING == 0 {
        return Closing::Explicitly;
    }
    match number(52) & 0x7f {
        0 => Closing::AtExit,
        signal => Closing::Killed(u8::try_from(signal).expect("seven bits")),
    }
}

/// What waits to be delivered to a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pending {
    /// Nothing that would end a wait, or it cannot be known.
    Nothing,
    /// A signal that it neither blocks nor ignores.
    Signal,
    /// Its end: SIGKILL, or another signal that ends the process, which the kernel turns into SIGKILL for each thread.
    Kill,
}

/// Asks which signals wait for thread `pid` (proc(5): SigPnd and the others of /proc/PID/status).
pub(crate) fn pending(pid: u32) -> Pending {
    ask(Pending::Nothing, move || {
        fs::read_to_string(format!("/proc/{pid}/status")).map_or(Pending::Nothing, |status| parse_pending(&status))
    })
}

fn parse_pending(status: &str) -> Pending {
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
    };
    let waiting = set("SigPnd") | set("ShdPnd");
    if waiting & 1 << (libc::SIGKILL - 1) != 0 {
        Pending::Kill
    } else if waiting & !set("SigBlk") & !set("SigIgn") != 0 {
        Pending::Signal
    } else {
        Pending::Nothing
    }
}

/// Which call a thread that waits for a lock is in; `None` if it cannot be known. fuser does not hand on FUSE_LK_FLOCK.
pub(crate) fn locking_call(pid: u32) -> Option<Class> {
    ask(None, move || parse_syscall(&fs::read_to_string(format!("/proc/{pid}/syscall")).ok()?))
}

/// proc_pid_syscall(5): the number comes first; a thread that has not gone to sleep yet is `running`.
fn parse_syscall(text: &str) -> Option<Class> {
    match text.split_ascii_whitespace().next()?.parse::<i64>().ok()? {
        libc::SYS_flock => Some(Class::Whole),
        libc::SYS_fcntl => Some(Class::Record),
        _ => None,
    }
}

/// Whether `pid` itself still has a writable descriptor of inode `ino` open: then the close in progress is of a duplicate,
/// as in a shell's `> file`, which opens, dup2s and closes before the command has written anything.
pub(crate) fn holds_another(pid: u32, ino: InodeId) -> bool {
    pid != 0 && ask(false, move || scan_descriptors(pid, ino).unwrap_or(false))
}

fn scan_descriptors(pid: u32, ino: InodeId) -> io::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.take(DESCRIPTORS_MAX) {
        if let Ok(text) = fs::read_to_string(entry?.path())
            && is_writable_of(&text, ino)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_writable_of(fdinfo: &str, ino: InodeId) -> bool {
    let field = |name: &str| fdinfo.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = field("flags:").and_then(|text| i32::from_str_radix(text, 8).ok()).unwrap_or(0);
    field("ino:").and_then(|text| text.parse().ok()) == Some(ino.0) && flags & libc::O_ACCMODE != libc::O_RDONLY
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn an_answer_that_does_not_come_is_unknown_and_holds_nobody_up() {
        let (_open, never) = mpsc::channel::<()>();
        assert_eq!(ask(7, move || never.recv().map_or(8, |()| 9)), 7);
        assert_eq!((ask(1, || 2), ask(1, || 3)), (2, 3));
    }

    fn stat(name: &str, flags: u64, code: u64) -> String {
        let mut fields = vec!["0".to_owned(); 50];
        fields[0] = "R".into();
        fields[9 - 3] = flags.to_string();
        fields[52 - 3] = code.to_string();
        format!("42 ({name}) {}\n", fields.join(" "))
    }

    #[test]
    fn exiting_and_killed_processes_are_told_apart() {
        assert_eq!(parse_stat(&stat("sh", 0x40_0000, 0)), Closing::Explicitly);
        assert_eq!(parse_stat(&stat("sh", 0x40_0004, 0)), Closing::AtExit);
        assert_eq!(parse_stat(&stat("sh", 0x40_0004, 768)), Closing::AtExit);
        assert_eq!(parse_stat(&stat("sh", 0x40_0004, 9)), Closing::Killed(9));
        assert_eq!(parse_stat(&stat("sh", 0x40_0004, 0x80 | 11)), Closing::Killed(11));
        assert_eq!(parse_stat(&stat("a) b (c", 4, 15)), Closing::Killed(15));
    }

    #[test]
    fn what_cannot_be_read_counts_as_a_close() {
        assert_eq!(closing(0), Closing::Explicitly);
        assert_eq!(closing(u32::MAX), Closing::Explicitly);
        assert_eq!(parse_stat(""), Closing::Explicitly);
        assert_eq!(parse_stat("1 (x) R"), Closing::Explicitly);
        assert_eq!(closing(std::process::id()), Closing::Explicitly);
    }

    #[test]
    fn calls_that_lock_are_told_apart() {
        assert_eq!(parse_syscall(&format!("{} 0x3 0x2 0x0\n", libc::SYS_flock)), Some(Class::Whole));
        assert_eq!(parse_syscall(&format!("{} 0x3 0x7 0x0\n", libc::SYS_fcntl)), Some(Class::Record));
        assert_eq!(parse_syscall("0 0x3"), None);
        assert_eq!(parse_syscall("running\n"), None);
    }

    #[test]
    fn signals_that_wait_are_told_apart() {
        let status = |own: u64, shared: u64, blocked: u64, ignored: u64| {
            format!(
                "Name:\tx\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
            )
        };
        assert_eq!(parse_pending(&status(0, 0, 0, 0)), Pending::Nothing);
        assert_eq!(parse_pending(&status(0x100, 0, 0, 0)), Pending::Kill);
        assert_eq!(parse_pending(&status(0, 0x100, 0, 0)), Pending::Kill);
        assert_eq!(parse_pending(&status(0x2000, 0, 0, 0)), Pending::Signal);
        assert_eq!(parse_pending(&status(0x2000, 0x2, 0x2000, 0x2)), Pending::Nothing);
        assert_eq!(parse_pending(""), Pending::Nothing);
        assert_eq!(pending(std::process::id()), Pending::Nothing);
    }

    #[test]
    fn finds_a_writable_duplicate() {
        let file = tempfile::NamedTempFile::new().expect("tmp");
        let ino = InodeId(file.as_file().metadata().expect("metadata").ino());
        assert!(holds_another(std::process::id(), ino));
        let readable = fs::File::open(file.path()).expect("open");
        let path = file.into_temp_path();
        assert!(!holds_another(std::process::id(), ino), "a read-only descriptor does not count");
        drop((readable, path));
    }
}
