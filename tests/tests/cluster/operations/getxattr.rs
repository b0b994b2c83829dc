//! getxattr(2).

use std::fs;

use anyhow::{Result, ensure};
use rustix::{
    fs::{XattrFlags, getxattr, getxattr_query, lgetxattr, setxattr},
    io::Errno,
};

use super::{file, mounted, refused, stranger_refused};

#[test]
fn sizes_and_buffers() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let get = |name: &str, room: usize| {
        let mut value = vec![0xEE; room];
        getxattr(&path, name, &mut value[..]).map(|size| {
            value.truncate(size);
            (size, value)
        })
    };
    for value in [&b""[..], b"v", &[7; 65536]] {
        setxattr(&path, "user.a", value, XattrFlags::empty())?;
        ensure!(getxattr_query(&path, "user.a")? == value.len());
        ensure!(get("user.a", value.len().max(1))? == (value.len(), value.to_vec()));
        ensure!(get("user.a", 65536)? == (value.len(), value.to_vec()));
    }
    refused(Errno::RANGE, get("user.a", 100))?;
    refused(Errno::NODATA, get("user.b", 100))?;
    refused(Errno::OPNOTSUPP, get("nowhere.a", 100))?;
    refused(Errno::RANGE, get(&format!("user.{}", "n".repeat(251)), 100))?;
    refused(Errno::NOENT, getxattr(mount.join("missing"), "user.a", &mut [0_u8; 8][..]))?;
    cluster.finish([mount])
}

#[test]
fn of_directories_links_and_to_strangers() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let (dir, link) = (mount.join("d"), mount.join("l"));
    fs::create_dir(&dir)?;
    std::os::unix::fs::symlink("d", &link)?;
    setxattr(&dir, "user.a", b"of the directory", XattrFlags::empty())?;
    let mut value = [0_u8; 100];
    ensure!(getxattr(&link, "user.a", &mut value[..])? == 16, "through the link");
    // The kernel keeps `user` attributes away from links themselves.
    ensure!(matches!(lgetxattr(&link, "user.a", &mut value[..]), Err(Errno::PERM | Errno::NODATA)));
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let script = "python3 -c 'import os, sys; os.getxattr(sys.argv[1], \"user.a\")' \"$1\"";
    stranger_refused("Permission denied", script, &dir)?;
    cluster.finish([mount])
}
