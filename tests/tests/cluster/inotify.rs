//! inotify(7): what programs on the same mount do is told, as editors, build tools and file managers expect.

use std::{
    ffi::CString,
    fs::{self, File},
    io::Read as _,
    os::{fd::FromRawFd as _, unix::ffi::OsStrExt as _},
    path::Path,
};

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, files};

/// An inotify descriptor that watches one directory.
struct Watch(File);

impl Watch {
    fn new(dir: &Path, mask: u32) -> Result<Self> {
        // SAFETY: the call takes no pointers; what it returns is a descriptor that nobody else has, or -1.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
        ensure!(fd >= 0, "inotify_init1: {}", std::io::Error::last_os_error());
        // SAFETY: see above.
        let file = unsafe { File::from_raw_fd(fd) };
        let path = CString::new(dir.as_os_str().as_bytes())?;
        // SAFETY: `path` is a NUL-terminated string that lives across the call.
        let watch = unsafe { libc::inotify_add_watch(fd, path.as_ptr(), mask) };
        ensure!(watch >= 0, "inotify_add_watch: {}", std::io::Error::last_os_error());
        Ok(Self(file))
    }

    /// The next events: what happened, to which name. Waits for at least one.
    fn next(&mut self) -> Result<Vec<(u32, String)>> {
        let mut buffer = [0; 4096];
        let length = self.0.read(&mut buffer)?;
        let (mut rest, mut events) = (&buffer[..length], Vec::new());
        // struct inotify_event: watch, mask, cookie, length of the name, name filled up with NUL.
        while let Some((head, behind)) = rest.split_at_checked(16) {
            let field = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let (name, behind) = behind.split_at(usize::try_from(field(12))?);
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            events.push((field(4), String::from_utf8_lossy(name).into_owned()));
            rest = behind;
        }
        Ok(events)
    }
}

#[test]
fn what_happens_on_the_same_mount_is_told() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    fs::create_dir(mount.join("d"))?;
    let mask = libc::IN_CREATE | libc::IN_CLOSE_WRITE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO | libc::IN_DELETE;
    let mut watch = Watch::new(&mount.join("d"), mask)?;
    files::write(&mount.join("d/f"), b"x")?;
    fs::rename(mount.join("d/f"), mount.join("d/g"))?;
    fs::remove_file(mount.join("d/g"))?;
    let mut told = Vec::new();
    while told.len() < 5 {
        told.extend(watch.next()?);
    }
    let wanted = [
        (libc::IN_CREATE, "f"),
        (libc::IN_CLOSE_WRITE, "f"),
        (libc::IN_MOVED_FROM, "f"),
        (libc::IN_MOVED_TO, "g"),
        (libc::IN_DELETE, "g"),
    ];
    ensure!(told.iter().map(|(mask, name)| (*mask, name.as_str())).eq(wanted), "{told:?}");
    cluster.finish([mount])
}
