//! mount(2) and umount2(2) for FUSE, done here and not by fuser: it gives up where `/dev/fuse` is closed to users although
//! fusermount3 could help, cannot name the file system type, and cannot unmount what is in use.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};

use super::fusermount;
use crate::config::MountFlags;

/// The kernel's end of FUSE.
const DEVICE: &str = "/dev/fuse";

/// What to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    /// Absolute path of the directory.
    pub(crate) mountpoint: PathBuf,
    /// What stands in the first column of mount(8).
    pub(crate) source: String,
    pub(crate) read_only: bool,
    pub(crate) allow_other: bool,
    pub(crate) default_permissions: bool,
    pub(crate) flags: MountFlags,
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid(2) only returns a number and never fails.
    unsafe { libc::geteuid() == 0 }
}

/// The device, not mounted yet.
///
/// # Errors
/// It is missing or closed to this user.
pub(super) fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// Mounts and gives the connection to the kernel: by mount(2) where that is allowed, else by fusermount3.
///
/// # Errors
/// With what to do about it.
pub(crate) fn attach(request: &Request) -> anyhow::Result<OwnedFd> {
    match open() {
        Ok(device) => match mount(request, &device) {
            Ok(()) => Ok(device.into()),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => fusermount::attach(request),
            Err(error) => Err(anyhow!(error).context(format!("cannot mount on {}", request.mountpoint.display()))),
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => fusermount::attach(request),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => Err(
            anyhow!("{DEVICE} is missing; load the module (modprobe fuse), or give the container --device {DEVICE}"),
        ),
        Err(error) => Err(anyhow!(error).context(format!("cannot open {DEVICE}"))),
    }
}

fn mount(request: &Request, device: &File) -> io::Result<()> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    // SAFETY: both only return a number and never fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    // The file system is a directory whatever is mounted over: mode bits of the root come from the cluster.
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    if request.allow_other {
        data.push_str(",allow_other");
    }
    if request.default_permissions {
        data.push_str(",default_permissions");
    }
    let (source, target) = (text(request.source.as_bytes())?, text(request.mountpoint.as_os_str().as_bytes())?);
    let data = text(data.as_bytes())?;
    // SAFETY: all pointers are to NUL-terminated strings that live across the call.
    let outcome = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), c"fuse.dfs".as_ptr(), flags(request), data.as_ptr().cast())
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Changes the flags of a mount.
///
/// # Errors
/// mount(2) refuses.
pub(crate) fn change_flags(request: &Request) -> anyhow::Result<()> {
    let target = CString::new(request.mountpoint.as_os_str().as_bytes()).context("a path without NUL")?;
    let flags = flags(request) | libc::MS_REMOUNT;
    // SAFETY: the pointers are null, which means none, or to a NUL-terminated string that lives across the call.
    let outcome = unsafe { libc::mount(std::ptr::null(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    if outcome == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    let hint = if is_root() { "" } else { " (only root may)" };
    Err(anyhow!(error).context(format!("cannot change the flags of {}{hint}", request.mountpoint.display())))
}

fn flags(request: &Request) -> libc::c_ulong {
    [
        (request.read_only, libc::MS_RDONLY),
        (request.flags.no_dev, libc::MS_NODEV),
        (request.flags.no_suid, libc::MS_NOSUID),
        (request.flags.no_exec, libc::MS_NOEXEC),
        (request.flags.no_atime, libc::MS_NOATIME),
    ]
    .into_iter()
    .filter_map(|(wanted, flag)| wanted.then_some(flag))
    .fold(0, |all, flag| all | flag)
}

/// Unmounts; lazily if programs still use it.
///
/// # Errors
/// Neither umount2(2) nor fusermount3 could do it.
pub(crate) fn detach(mountpoint: &Path) -> anyhow::Result<()> {
    let outcome = match unmount(mountpoint, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            tracing::info!("the mount is in use: it goes away for new users now, and ends for the others");
            unmount(mountpoint, libc::MNT_DETACH)
        }
        outcome => outcome,
    };
    match outcome {
        Ok(()) => Ok(()),
        // Somebody else was faster.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => fusermount::detach(mountpoint),
        Err(error) => Err(error).with_context(|| format!("cannot unmount {}", mountpoint.display())),
    }
}

fn unmount(mountpoint: &Path, flags: libc::c_int) -> io::Result<()> {
    let Ok(path) = CString::new(mountpoint.as_os_str().as_bytes()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    // SAFETY: the pointer is to a NUL-terminated string that lives across the call.
    let outcome = unsafe { libc::umount2(path.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The options as fusermount3 takes them.
pub(super) fn option_text(request: &Request) -> anyhow::Result<String> {
    if request.source.contains(['\\', '\n', '"']) {
        bail!("the cluster's address contains characters that a mount table cannot hold");
    }
    // A comma separates options unless escaped.
    let mut options = vec![format!("fsname={}", request.source.replace(',', "\\,")), "subtype=dfs".to_owned()];
    let flags = request.flags;
    for (wanted, name) in [
        (request.read_only, "ro"),
        (request.allow_other, "allow_other"),
        (request.default_permissions, "default_permissions"),
        (flags.no_exec, "noexec"),
        (flags.no_atime, "noatime"),
    ] {
        if wanted {
            options.push(name.to_owned());
        }
    }
    Ok(options.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            mountpoint: "/m".into(),
            source: "a:1,b:2".into(),
            read_only: true,
            allow_other: false,
            default_permissions: true,
            flags: MountFlags::default(),
        }
    }

    #[test]
    fn options_for_fusermount_escape_commas() {
        let text = option_text(&request()).expect("good");
        assert_eq!(text, "fsname=a:1\\,b:2,subtype=dfs,ro,default_permissions");
    }

    #[test]
    fn flags_for_mount() {
        assert_eq!(flags(&request()), libc::MS_RDONLY);
        let flags = flags(&Request {
            flags: MountFlags { no_dev: true, no_suid: true, ..MountFlags::default() },
            read_only: false,
            ..request()
        });
        assert_eq!(flags, libc::MS_NODEV | libc::MS_NOSUID);
    }
}
