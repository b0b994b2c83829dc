//! mkdir(2).

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
};

use anyhow::{Result, ensure};
use rustix::{
    fs::{Mode, OFlags, mkdir, mkdirat, stat},
    io::Errno,
};

use super::{STRANGER, as_stranger, file, mounted, open, refused, stranger_refused};

#[test]
fn what_cannot_be_made() -> Result<()> {
    let (cluster, mount) = mounted()?;
    file(&mount.join("f"), b"x")?;
    fs::create_dir(mount.join("d"))?;
    symlink("nowhere", mount.join("dangling"))?;
    for taken in ["f", "d", "d/.", "dangling", ""] {
        refused(Errno::EXIST, mkdir(mount.join(taken), Mode::RWXU))?;
    }
    refused(Errno::NOENT, mkdir(mount.join("missing/d"), Mode::RWXU))?;
    refused(Errno::NOTDIR, mkdir(mount.join("f/d"), Mode::RWXU))?;
    refused(Errno::NAMETOOLONG, mkdir(mount.join("n".repeat(256)), Mode::RWXU))?;
    stranger_refused("Permission denied", "mkdir \"$1\"/s", mount.path())?;
    let gone = open(&mount.join("d"), OFlags::RDONLY)?;
    fs::remove_dir(mount.join("d"))?;
    refused(Errno::NOENT, mkdirat(&gone, "below", Mode::RWXU))?;
    cluster.finish([mount])
}

#[test]
fn mode_owner_group_and_what_changes_above() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let top = mount.join("top");
    fs::create_dir(&top)?;
    chown(&top, None, Some(99))?;
    fs::set_permissions(&top, Permissions::from_mode(0o2777))?;
    let before = stat(&top)?;
    ensure!(as_stranger("umask 027; mkdir \"$1\"/d", &top)?.status.success());
    let attr = fs::metadata(top.join("d"))?;
    // The set-group-id bit is handed down, and with it the group.
    ensure!((attr.mode() & 0o7777, attr.uid(), attr.gid()) == (0o2750, STRANGER, 99), "{attr:?}");
    ensure!((attr.nlink(), attr.is_dir()) == (2, true), "{attr:?}");
    let after = stat(&top)?;
    ensure!(after.st_nlink == before.st_nlink + 1);
    ensure!((after.st_mtime, after.st_mtime_nsec) > (before.st_mtime, before.st_mtime_nsec));
    ensure!(after.st_ctime >= after.st_mtime);
    cluster.finish([mount])
}

#[test]
fn of_many_who_make_one_directory_one_succeeds() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    for round in 0..10 {
        let name = format!("d{round}");
        let made = std::thread::scope(|scope| {
            let threads: Vec<_> = [&mount, &other, &mount, &other]
                .map(|at| at.join(&name))
                .map(|path| scope.spawn(move || mkdir(path, Mode::RWXU)))
                .into_iter()
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        ensure!(made.iter().filter(|outcome| outcome.is_ok()).count() == 1, "{made:?}");
        ensure!(made.iter().filter(|outcome| **outcome == Err(Errno::EXIST)).count() == 3, "{made:?}");
    }
    cluster.finish([mount, other])
}
