//! The kernel's mount table, and getting rid of a mount whose process died.
//!
//! Everything here reads `/proc/self/mountinfo` and never touches the mount itself: a stat of a mount without a process fails
//! with ENOTCONN, one of a hanging mount hangs.

use std::{
    ffi::{CString, OsString},
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// One line of the mount table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mount {
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// File system type, `fuse.dfs` for ours.
    pub(super) kind: String,
    /// What is mounted.
    pub(super) source: String,
}

impl Mount {
    /// Whether this is a mount of dfs.
    pub(super) fn is_dfs(&self) -> bool {
        self.kind == "fuse.dfs" || (self.kind.starts_with("fuse") && self.source.starts_with("dfs"))
    }
}

/// What is mounted at `point`, the uppermost mount last.
///
/// # Errors
/// The table cannot be read.
pub(super) fn at(point: &Path) -> io::Result<Vec<Mount>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(parse(&table).into_iter().filter(|mount| mount.point == point).collect())
}

/// Lines as proc_pid_mountinfo(5) describes them.
fn parse(table: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        // The number of optional fields varies; a lone hyphen ends them.
        let rest = words.iter().skip(6).position(|word| *word == b"-")? + 7;
        Some(Mount {
            point: PathBuf::from(OsString::from_vec(unescape(words.get(4)?))),
            kind: String::from_utf8_lossy(words.get(rest)?).into_owned(),
            source: String::from_utf8_lossy(&unescape(words.get(rest + 1)?)).into_owned(),
        })
    };
    table.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) = (first, tail) {
            out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = tail;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Takes a mount out of the tree at once, although programs may still have files of it open.
///
/// # Errors
/// Neither the system call nor `fusermount3` could.
pub(super) fn detach(point: &Path) -> io::Result<()> {
    let c_point = CString::new(point.as_os_str().as_bytes())?;
    // SAFETY: a valid, NUL-terminated path.
    if unsafe { libc::umount2(c_point.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    for program in ["fusermount3", "fusermount"] {
        let mut command = Command::new(program);
        command.arg("-uz").arg("--").arg(point).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if command.status().is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    Err(error)
}

/// Whether the file system at `point` answers within `patience`.
pub(super) fn answers(point: &Path, patience: Duration) -> bool {
    let (sender, receiver) = mpsc::channel();
    let point = point.to_owned();
    // The thread may hang in the kernel; it ends with the process.
    thread::spawn(move || sender.send(fs::metadata(point).is_ok()));
    receiver.recv_timeout(patience).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table() {
        let table = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
            612 24 0:55 / /tmp/a\\040b\\134 rw,nosuid - fuse.dfs 127.0.0.1:1 rw,user_id=0\n\
            613 24 0:56 / /x rw - fuse sshfs#h:/ rw\ngarbage\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].kind, "ext3");
        assert_eq!(mounts[1].point, Path::new("/tmp/a b\\"));
        assert_eq!(mounts.iter().map(Mount::is_dfs).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(!at(Path::new("/")).expect("reads").is_empty());
        assert!(answers(Path::new("/"), Duration::from_secs(5)));
    }
}
