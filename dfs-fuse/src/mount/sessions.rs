//! Sessions of fuser on a mount, the first time and after another process.
//!
//! Every thread that reads requests has a descriptor and a session of its own. fuser begins a session by reading FUSE_INIT and
//! answering it, but the kernel says that once a mount. So the conversation is led over a socket: fuser reads there what the
//! kernel said when the mount began, its answer is taken from there, and then the device takes the socket's place. The first
//! process gives the first answer to the kernel; a successor must come to the same one, since the kernel still acts on it.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, bail};
use fuser::{Config, Session, SessionACL};

use super::channel::packets;
use crate::fuse::Adapter;

/// `FUSE_MIN_READ_BUFFER` of include/uapi/linux/fuse.h.
const READ_MIN: usize = 8192;
/// `FUSE_DEV_IOC_CLONE`: `_IOR(229, 0, uint32_t)`.
const CLONE: libc::c_ulong = 0x8004_e500;
/// Where `struct fuse_init_in` with its `flags` and `flags2` lies in a FUSE_INIT request.
const INIT_AT: usize = 40;
/// `FUSE_INIT_EXT`, bit 30 of `flags`: there is a `flags2`.
const INIT_EXT: u32 = 1 << 30;
/// `FUSE_HAS_RESEND`, bit 39, so bit 7 of `flags2`: Linux 6.9 and later.
const HAS_RESEND: u32 = 1 << 7;
/// `FUSE_NOTIFY_RESEND`.
const NOTIFY_RESEND: i32 = 7;

/// What the kernel says first about a new mount.
pub(super) fn read_init(device: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut request = vec![0; READ_MIN];
    let mut device = File::from(device.try_clone()?);
    loop {
        match device.read(&mut request) {
            Ok(length) => {
                request.truncate(length);
                return Ok(request);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether the kernel can ask again for what a dead process had taken: else nobody can take its place.
pub(super) fn can_resend(init: &[u8]) -> bool {
    let word = |at: usize| init.get(at..at + 4).map_or(0, |word| u32::from_ne_bytes(word.try_into().expect("4 bytes")));
    word(INIT_AT + 12) & INIT_EXT != 0 && word(INIT_AT + 16) & HAS_RESEND != 0
}

/// Has the kernel ask again for everything that was read and not answered. To be said before anything is read.
pub(super) fn resend(device: &OwnedFd) -> io::Result<()> {
    let mut device = File::from(device.try_clone()?);
    device.write_all(&crate::fuse::notification(NOTIFY_RESEND))
}

/// One more descriptor of a mount, with requests of its own under way; the same one again where the device cannot be opened.
pub(super) fn another(device: &OwnedFd) -> io::Result<OwnedFd> {
    let Ok(another) = super::device::open() else { return device.try_clone() };
    let mut number = u32::try_from(device.as_raw_fd()).expect("descriptors are not negative");
    // SAFETY: the pointer is to a local that lives across the call.
    match unsafe { libc::ioctl(another.as_raw_fd(), CLONE, &raw mut number) } {
        0 => Ok(another.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Begins a session on `device` with what the kernel said when the mount began; also fuser's answer.
pub(super) fn begin(adapter: Adapter, device: OwnedFd, init: &[u8]) -> anyhow::Result<(Session<Adapter>, Vec<u8>)> {
    let (kernel, ours) = packets().context("cannot make sockets")?;
    let mut kernel = File::from(kernel);
    kernel.write_all(init).context("cannot tell the session what the kernel said")?;
    let number: RawFd = ours.as_raw_fd();
    // The kernel itself checks who may use the mount.
    let session = Session::from_fd(adapter, ours, SessionACL::All, Config::default());
    let session = session.context("the kernel refused the FUSE handshake")?;
    let mut answer = vec![0; READ_MIN];
    let length = kernel.read(&mut answer).context("the session has not answered the kernel")?;
    answer.truncate(length);
    // SAFETY: `number` is the session's own descriptor, which it keeps: what is behind the number is replaced, and nobody reads
    // from it yet.
    if unsafe { libc::dup3(device.as_raw_fd(), number, libc::O_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error()).context("the session cannot have the device");
    }
    Ok((session, answer))
}

/// Gives the kernel the first answer.
pub(super) fn answer(device: &OwnedFd, answer: &[u8]) -> anyhow::Result<()> {
    let mut device = File::from(device.try_clone().context("cannot write to the device")?);
    device.write_all(answer).context("the kernel refused the FUSE handshake")
}

/// Whether this process would deal with the kernel as the mount's first one did.
pub(super) fn check_answer(first: &[u8], ours: &[u8]) -> anyhow::Result<()> {
    if first != ours {
        bail!(
            "this version of mount.dfs speaks with the kernel in another way than the one that mounted: unmount, and mount \
             again"
        );
    }
    Ok(())
}

/// Whether the kernel still has the mount.
pub(crate) fn is_connected(device: &OwnedFd) -> bool {
    let mut poll = libc::pollfd { fd: device.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: the pointer is to one such structure that lives across the call.
    let outcome = unsafe { libc::poll(&raw mut poll, 1, 0) };
    outcome != 1 || poll.revents & (libc::POLLERR | libc::POLLHUP) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_cannot_resend_are_known() {
        let mut init = vec![0; 104];
        assert!(!can_resend(&init));
        init[INIT_AT + 16..INIT_AT + 20].copy_from_slice(&HAS_RESEND.to_ne_bytes());
        assert!(!can_resend(&init), "an old kernel has no flags2");
        init[INIT_AT + 12..INIT_AT + 16].copy_from_slice(&INIT_EXT.to_ne_bytes());
        assert!(can_resend(&init));
        assert!(!can_resend(&[]));
    }

    #[test]
    fn another_way_of_speaking_is_refused() {
        assert!(check_answer(&[1, 2], &[1, 2]).is_ok());
        assert!(check_answer(&[1, 2], &[1, 3]).is_err_and(|error| error.to_string().contains("mount again")));
    }
}
