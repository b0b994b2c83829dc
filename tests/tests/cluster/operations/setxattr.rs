//! setxattr(2).

use std::fs;

use anyhow::{Result, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, XattrFlags, getxattr, mknodat, setxattr, stat},
    io::Errno,
};

use super::{file, mounted, refused, stranger_refused};

#[test]
fn made_replaced_or_either() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let set = |value: &[u8], flags| setxattr(&path, "user.a", value, flags);
    let before = stat(&path)?;
    refused(Errno::NODATA, set(b"0", XattrFlags::REPLACE))?;
    set(b"first", XattrFlags::CREATE)?;
    refused(Errno::EXIST, set(b"0", XattrFlags::CREATE))?;
    set(b"second", XattrFlags::REPLACE)?;
    set(b"3", XattrFlags::empty())?;
    for at in [&path, &other.join("f")] {
        let mut value = [0_u8; 16];
        ensure!(getxattr(at, "user.a", &mut value[..])? == 1 && value[0] == b'3');
    }
    let after = stat(&path)?;
    ensure!((after.st_ctime, after.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec));
    ensure!((after.st_mtime, after.st_mtime_nsec) == (before.st_mtime, before.st_mtime_nsec));
    cluster.finish([mount, other])
}

#[test]
fn what_is_refused() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let set = |name: &str, size: usize| setxattr(&path, name, &vec![1; size], XattrFlags::empty());
    set(&format!("user.{}", "n".repeat(250)), 65536)?;
    refused(Errno::RANGE, set(&format!("user.{}", "n".repeat(251)), 1))?;
    refused(Errno::TOOBIG, set("user.large", 65537))?;
    refused(Errno::OPNOTSUPP, set("nowhere.a", 1))?;
    refused(Errno::OPNOTSUPP, set("a", 1))?;
    // What the mount itself tells.
    refused(Errno::PERM, set("user.dfs.sha256", 1))?;
    refused(Errno::NOENT, setxattr(mount.join("missing"), "user.a", b"v", XattrFlags::empty()))?;
    // The kernel keeps `user` attributes to files and directories.
    mknodat(CWD, mount.join("pipe"), FileType::Fifo, Mode::RWXU, 0)?;
    refused(Errno::PERM, setxattr(mount.join("pipe"), "user.a", b"v", XattrFlags::empty()))?;
    let script = "python3 -c 'import os, sys; os.setxattr(sys.argv[1], sys.argv[2], b\"v\")' \"$1\" NAME";
    stranger_refused("Permission denied", &script.replace("NAME", "user.a"), &path)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    stranger_refused("not permitted", &script.replace("NAME", "trusted.a"), &path)?;
    cluster.finish([mount])
}
