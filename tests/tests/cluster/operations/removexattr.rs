//! removexattr(2).

use anyhow::{Result, ensure};
use rustix::{
    fs::{XattrFlags, getxattr, removexattr, setxattr, stat},
    io::Errno,
};

use super::{file, mounted, refused, stranger_refused};

#[test]
fn what_is_there_goes_once() -> Result<()> {
    let (mut cluster, mount) = mounted()?;
    let other = cluster.mount()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    setxattr(&path, "user.a", b"v", XattrFlags::empty())?;
    let before = stat(&path)?;
    let script = "python3 -c 'import os, sys; os.removexattr(sys.argv[1], \"user.a\")' \"$1\"";
    stranger_refused("Permission denied", script, &path)?;
    removexattr(&path, "user.a")?;
    let after = stat(&path)?;
    ensure!((after.st_ctime, after.st_ctime_nsec) > (before.st_ctime, before.st_ctime_nsec));
    for at in [&path, &other.join("f")] {
        refused(Errno::NODATA, getxattr(at, "user.a", &mut [0_u8; 8][..]))?;
        refused(Errno::NODATA, removexattr(at, "user.a"))?;
    }
    refused(Errno::OPNOTSUPP, removexattr(&path, "nowhere.a"))?;
    refused(Errno::NOENT, removexattr(mount.join("missing"), "user.a"))?;
    // What the mount itself tells cannot be taken away.
    refused(Errno::PERM, removexattr(&path, "user.dfs.sha256"))?;
    cluster.finish([mount, other])
}
