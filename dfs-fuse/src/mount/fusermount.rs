//! Mounting as a user: fusermount3, which has the right to mount, does it and hands the device over a socket.
//!
//! Protocol (libfuse, `util/fusermount.c`): the environment variable `_FUSE_COMMFD` names a socket; on success one byte
//! comes over it with the descriptor of the device as ancillary data, on failure it is closed and the reason is on stderr.

use std::{
    io, mem,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, anyhow, bail};

use super::device::{Request, option_text};

const PROGRAMS: [&str; 2] = ["fusermount3", "fusermount"];

fn missing() -> anyhow::Error {
    anyhow!("fusermount3 is not installed, and only root can mount without it; install the package fuse3")
}

/// Mounts.
///
/// # Errors
/// fusermount3 is missing or refuses; its own words are in the message.
pub(super) fn attach(request: &Request) -> anyhow::Result<OwnedFd> {
    let options = option_text(request)?;
    for program in PROGRAMS {
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket for fusermount3")?;
        let number = theirs.as_raw_fd();
        let mut command = Command::new(program);
        command.arg("-o").arg(&options).arg("--").arg(&request.mountpoint);
        command.env("_FUSE_COMMFD", number.to_string()).stdin(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: between fork and exec only fcntl(2) is called, which is async-signal-safe.
        unsafe { command.pre_exec(move || keep_across_exec(number)) };
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot run {program}")),
        };
        drop(theirs);
        let device = receive_descriptor(&ours);
        let output = child.wait_with_output().with_context(|| format!("cannot wait for {program}"))?;
        return match device {
            Ok(Some(device)) => Ok(device),
            Ok(None) => Err(refused(program, &String::from_utf8_lossy(&output.stderr))),
            Err(error) => Err(error).with_context(|| format!("{program} answered nonsense")),
        };
    }
    Err(missing())
}

fn refused(program: &str, words: &str) -> anyhow::Error {
    let words = words.trim();
    if words.contains("user_allow_other") {
        return anyhow!("{words}: add the line user_allow_other to /etc/fuse.conf, or leave out allow_other");
    }
    if words.contains("Operation not permitted") {
        return anyhow!("{words}: {program} must be set-user-id root (chmod u+s), or mount as root");
    }
    if words.contains("/dev/fuse") {
        return anyhow!("{words}: let users open it (chmod 666 /dev/fuse), or mount as root");
    }
    anyhow!("{}", if words.is_empty() { format!("{program} failed without a reason") } else { words.to_owned() })
}

/// Unmounts; lazily if it is in use.
///
/// # Errors
/// fusermount3 is missing or refuses.
pub(super) fn detach(mountpoint: &Path) -> anyhow::Result<()> {
    for program in PROGRAMS {
        for flags in [&["-u"][..], &["-u", "-z"]] {
            match Command::new(program).args(flags).arg("--").arg(mountpoint).stdin(Stdio::null()).output() {
                Ok(output) if output.status.success() => return Ok(()),
                Ok(output) if flags.len() == 2 => {
                    bail!("{}", refused(program, &String::from_utf8_lossy(&output.stderr)))
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error).with_context(|| format!("cannot run {program}")),
            }
        }
    }
    Err(missing())
}

fn keep_across_exec(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: fcntl(2) on a descriptor that the parent keeps open until after the fork.
    let outcome = unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) };
    if outcome == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The descriptor that comes over the socket, `None` if it is closed without one.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = 0u8;
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // Room for one descriptor, aligned as a control message header must be.
    let mut control = [0u64; 4];
    // SAFETY: a msghdr of zeros is valid: no name, no data, no control messages.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    let received = loop {
        // SAFETY: all pointers in the message are to locals that live across the call.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        let error = io::Error::last_os_error();
        if received >= 0 || error.kind() != io::ErrorKind::Interrupted {
            break if received < 0 { Err(error) } else { Ok(received) };
        }
    }?;
    if received == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has filled the control buffer and its length; CMSG_FIRSTHDR checks that a header fits.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    match header {
        Some(header) if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS => {
            // SAFETY: a SCM_RIGHTS message holds at least one descriptor, which is ours now and nobody else's.
            let descriptor = unsafe { libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned() };
            // SAFETY: as above.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }))
        }
        Some(_) | None => Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptor came with the answer")),
    }
}
