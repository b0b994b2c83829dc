//! Going to the background: the process that was started waits until the mount answers, then ends.
//!
//! The fork happens before any thread exists. The child reports over a pipe: a zero byte when the mount is ready, or the
//! text of the error, which the parent prints, so that `mount` shows it and fails.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

/// Sent when the mount is ready.
const READY: u8 = 0;

/// Who this process is after the fork.
pub(crate) enum Side {
    /// The one that was started. What the child said: `Ok` or its error.
    Parent(Result<(), String>),
    /// The one that mounts.
    Child(Report),
}

/// The child's way to tell its parent.
pub(crate) struct Report(File);

impl Report {
    /// The mount answers.
    pub(crate) fn ready(mut self) {
        // The parent may have been killed; the mount goes on.
        let _ = self.0.write_all(&[READY]);
    }

    /// It came to nothing.
    pub(crate) fn failed(mut self, error: &str) {
        let _ = self.0.write_all(error.as_bytes());
    }
}

/// Forks.
///
/// # Errors
/// The operating system refuses.
pub(crate) fn split() -> io::Result<Side> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pipe2(2) has just made them; nobody else has them.
    let (reading, writing) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: there is one thread, so the child may do anything.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reading);
            // SAFETY: plain system call without pointers. It cannot fail: a fresh child leads no process group.
            unsafe { libc::setsid() };
            leave_terminal()?;
            Ok(Side::Child(Report(writing.into())))
        }
        _ => {
            drop(writing);
            Ok(Side::Parent(wait(reading.into())))
        }
    }
}

fn wait(mut reading: File) -> Result<(), String> {
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

/// No longer keeps the terminal, or a pipe behind the parent's output, open.
fn leave_terminal() -> io::Result<()> {
    std::env::set_current_dir("/")?;
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
    use std::os::fd::OwnedFd;

    use super::*;

    fn heard(words: &[u8]) -> Result<(), String> {
        let (reading, mut writing) = io::pipe().expect("pipe");
        writing.write_all(words).expect("room in the pipe");
        drop(writing);
        wait(OwnedFd::from(reading).into())
    }

    #[test]
    fn the_parent_hears_success_errors_and_silence() {
        assert_eq!(heard(&[READY]), Ok(()));
        assert_eq!(heard(b"no such cluster"), Err("no such cluster".to_owned()));
        assert!(heard(b"").is_err_and(|error| error.contains("-f")));
    }
}
