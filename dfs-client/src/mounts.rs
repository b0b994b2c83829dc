//! Mounts of this machine: what the kernel lists, and what each mount tells about itself over its socket.
//!
//! A mount listens on a Unix socket that is named by the number of its device, below a run directory. Whoever asks sends one
//! line, [`ASK_STATUS`], [`ASK_ABORT`] or [`ASK_UPGRADE`], and gets one line of JSON, a [`Report`], [`Aborted`] or [`Upgraded`].

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Asks for a [`Report`].
pub const ASK_STATUS: &str = "status";
/// Ends all operations in flight with EIO.
pub const ASK_ABORT: &str = "abort";

/// Has another process take the mount over, which runs the program that is installed now.
pub const ASK_UPGRADE: &str = "upgrade";

/// A mount of dfs as the kernel lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mounted {
    /// Minor number of its device; the major is 0. Names its socket, and its directory below `/sys/fs/fuse/connections`.
    pub device: u32,
    /// Where.
    pub path: PathBuf,
    /// Metadata nodes, and the part of the tree.
    pub source: String,
}

/// All mounts of dfs, in the order in which they were made. A mount that another one hides is among them.
///
/// # Errors
/// The kernel's table cannot be read.
pub fn mounted() -> io::Result<Vec<Mounted>> {
    Ok(parse_table(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Whether a dfs file system is what is seen at `path` (absolute, without symbolic links).
///
/// # Errors
/// The kernel's table cannot be read.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(is_in_table(&fs::read_to_string("/proc/self/mountinfo")?, path))
}

/// One line of the table, as proc_pid_mountinfo(5) describes it: place, device, type, source.
fn parse_line(line: &str) -> Option<(PathBuf, &str, &str, &str)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut mount = mount.split(' ');
    let (device, place) = (mount.nth(2)?, mount.nth(1)?);
    let mut kind = kind.split(' ');
    Some((unescape(place), device, kind.next()?, kind.next()?))
}

fn parse_table(table: &str) -> Vec<Mounted> {
    let found = table.lines().filter_map(parse_line).filter(|(.., kind, _)| *kind == "fuse.dfs");
    found
        .filter_map(|(path, device, _, source)| {
            let device = device.strip_prefix("0:")?.parse().ok()?;
            Some(Mounted { device, path, source: unescape(source).to_string_lossy().into_owned() })
        })
        .collect()
}

/// The last line of a place is what is seen there.
fn is_in_table(table: &str, wanted: &Path) -> bool {
    let last = table.lines().rev().filter_map(parse_line).find(|(place, ..)| place == wanted);
    last.is_some_and(|(_, _, kind, _)| kind == "fuse.dfs")
}

/// Blanks and backslashes stand in the table as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Where a mount puts its socket if nothing else is said: root's below `/run`, that of others where their session keeps such
/// things.
#[must_use]
pub fn run_dir(is_root: bool) -> PathBuf {
    match env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !is_root && !dir.is_empty() => PathBuf::from(dir).join("dfs"),
        _ if is_root => PathBuf::from("/run/dfs"),
        _ => env::temp_dir().join("dfs-run"),
    }
}

/// All directories where sockets of this machine's mounts may be.
#[must_use]
pub fn run_dirs() -> Vec<PathBuf> {
    let mut dirs = vec![run_dir(true), run_dir(false), env::temp_dir().join("dfs-run")];
    let users = fs::read_dir("/run/user").into_iter().flatten().flatten();
    dirs.extend(users.map(|user| user.path().join("dfs")));
    dirs.dedup();
    dirs
}

/// The socket of the mount on `device` below a run directory.
#[must_use]
pub fn socket(run_dir: &Path, device: u32) -> PathBuf {
    run_dir.join(format!("mount-{device}.sock"))
}

/// What a mount tells about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it began to serve the mount.
    pub age_s: u64,
    /// Whether another process takes over should this one die.
    #[serde(default)]
    pub is_supervised: bool,
    /// Processes that served the mount before this one.
    #[serde(default)]
    pub predecessors: u64,
    /// Why the program that was last installed does not serve it, if it was to and this one had to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade_refused: Option<String>,
    /// Whether a metadata leader answered just now.
    pub is_reachable: bool,
    /// Why not.
    pub unreachable: Option<String>,
    /// Operations that wait, the oldest first; at most a thousand of them.
    pub operations: Vec<Operation>,
    /// How many wait.
    pub operations_waiting: u64,
    /// Bytes of the memory budget in use.
    pub memory_used_bytes: u64,
    /// Most bytes that were in use.
    pub memory_peak_bytes: u64,
    /// The memory budget, bytes.
    pub memory_max_bytes: u64,
    /// Operations since the mount began.
    pub requests: u64,
    /// Those that were refused for everyday reasons, like names that do not exist.
    pub refused: u64,
    /// Those that failed.
    pub failed: u64,
    /// The last that failed.
    pub last_error: Option<Trouble>,
    /// What the kernel may keep of names and attributes.
    pub cache: Cache,
}

/// What the kernel may keep of names and attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// Everything, since the cluster tells what others change.
    Leased,
    /// Nothing for longer than `cache=` says: the kernel cannot forget everything at once, or is to keep nothing, or the
    /// cluster has not told anything yet.
    Brief,
    /// The same, since the cluster does not tell any more what others change. Everything older was dropped.
    Lost {
        /// For so long.
        since_ms: u64,
    },
}

/// An operation that waits.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Operation {
    /// Its name, like `read`.
    pub name: String,
    /// Inode it is about.
    pub ino: u64,
    /// Thread that waits for it; 0 if none does or it cannot be known.
    pub pid: u32,
    /// How long it has waited, milliseconds.
    pub age_ms: u64,
}

/// An operation that failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// The operation, like `read`.
    pub operation: String,
    /// Inode it was about.
    pub ino: u64,
    /// What went wrong.
    pub text: String,
    /// When, in seconds since the Unix epoch.
    pub at_s: u64,
}

/// Answer to [`ASK_UPGRADE`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Upgraded {
    /// Why this process goes on serving; `None` if it has ended.
    pub refused: Option<String>,
}

/// Answer to [`ASK_ABORT`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Aborted {
    /// How many operations were ended.
    pub operations: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        40 22 0:42 / /m\\040x rw,relatime - fuse.dfs a:1,b:2:/c ro,user_id=0\n\
        41 22 0:43 / /n rw - fuse.dfs a:1 rw,user_id=0\n\
        42 22 0:44 / /n rw - tmpfs none rw\n";

    #[test]
    fn mounts_are_found_in_the_table() {
        let found = parse_table(TABLE);
        let first = Mounted { device: 42, path: "/m x".into(), source: "a:1,b:2:/c".into() };
        assert_eq!(found, [first, Mounted { device: 43, path: "/n".into(), source: "a:1".into() }]);
        assert_eq!(parse_table("nonsense\n\n1 2 - x"), []);
    }

    #[test]
    fn what_is_mounted_last_is_what_is_seen() {
        assert!(is_in_table(TABLE, Path::new("/m x")));
        assert!(!is_in_table(TABLE, Path::new("/n")), "something else is mounted over it");
        assert!(!is_in_table(TABLE, Path::new("/")) && !is_in_table(TABLE, Path::new("/o")));
    }
}
