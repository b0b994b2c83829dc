//! listxattr(2).

use anyhow::{Result, ensure};
use rustix::{
    fs::{XattrFlags, listxattr, listxattr_query, removexattr, setxattr},
    io::Errno,
};

use super::{as_stranger, file, mounted, refused};

#[test]
fn all_names_and_no_others() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let list = || -> Result<Vec<String>> {
        let mut room = vec![0_u8; 65536];
        let size = listxattr(&path, &mut room[..])?;
        ensure!(listxattr_query(&path)? == size);
        let mut names: Vec<_> = room[..size]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        names.retain(|name| !name.starts_with("user.dfs."));
        names.sort();
        Ok(names)
    };
    ensure!(list()?.is_empty());
    let mut want = vec!["security.b".to_owned(), "trusted.c".to_owned()];
    want.extend((0..50).map(|i| format!("user.{i:02}")));
    for name in &want {
        setxattr(&path, name, b"v", XattrFlags::empty())?;
    }
    ensure!(list()? == want);
    refused(Errno::RANGE, listxattr(&path, &mut [0_u8; 20][..]))?;
    refused(Errno::NOENT, listxattr(mount.join("missing"), &mut [0_u8; 20][..]))?;
    // Those of the `trusted` name space are for root.
    let told = as_stranger("python3 -c 'import os, sys; print(*os.listxattr(sys.argv[1]))' \"$1\"", &path)?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure!(told.contains("user.07") && !told.contains("trusted.c"), "{told}");
    for name in want.drain(1..) {
        removexattr(&path, &name)?;
    }
    ensure!(list()? == want);
    cluster.finish([mount])
}
