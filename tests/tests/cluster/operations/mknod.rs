//! mknod(2).

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    thread,
};

use anyhow::{Result, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, lstat, makedev, mknodat},
    io::Errno,
};

use super::{file, mounted, refused};

#[test]
fn pipes_and_sockets_carry_bytes() -> Result<()> {
    let (cluster, mut mount) = mounted()?;
    let (pipe, socket) = (mount.join("pipe"), mount.join("socket"));
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let reader = {
        let pipe = pipe.clone();
        thread::spawn(move || fs::read(pipe))
    };
    File::options().write(true).open(&pipe)?.write_all(b"through the pipe")?;
    ensure!(reader.join().expect("no panic")? == b"through the pipe");
    let listener = UnixListener::bind(&socket)?;
    ensure!(fs::symlink_metadata(&socket)?.file_type().is_socket());
    UnixStream::connect(&socket)?.write_all(b"through the socket")?;
    let mut told = String::new();
    listener.accept()?.0.read_to_string(&mut told)?;
    ensure!(told == "through the socket");
    drop(listener);
    mount.remount()?;
    ensure!(fs::symlink_metadata(&pipe)?.file_type().is_fifo());
    ensure!(UnixStream::connect(&socket).is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused));
    cluster.finish([mount])
}

#[test]
fn devices_and_plain_files() -> Result<()> {
    let (cluster, mount) = mounted()?;
    for (name, kind, device) in [
        ("null", FileType::CharacterDevice, makedev(1, 3)),
        ("large", FileType::BlockDevice, makedev(4000, 1_000_000)),
        ("plain", FileType::RegularFile, 0),
    ] {
        mknodat(CWD, mount.join(name), kind, Mode::RUSR | Mode::WUSR, device)?;
        let attr = lstat(mount.join(name))?;
        ensure!((FileType::from_raw_mode(attr.st_mode), attr.st_rdev) == (kind, device), "{name}: {attr:?}");
        ensure!(attr.st_mode & 0o7777 == 0o600, "{name}: {attr:?}");
    }
    fs::write(mount.join("null"), b"to /dev/null")?;
    ensure!(lstat(mount.join("null"))?.st_size == 0);
    fs::write(mount.join("plain"), b"content")?;
    ensure!(fs::read(mount.join("plain"))? == b"content");
    cluster.finish([mount])
}

#[test]
fn what_is_refused() -> Result<()> {
    let (cluster, mount) = mounted()?;
    file(&mount.join("f"), b"x")?;
    let make = |name: &str| mknodat(CWD, mount.join(name), FileType::Fifo, Mode::RUSR, 0);
    refused(Errno::EXIST, make("f"))?;
    refused(Errno::NOENT, make("missing/p"))?;
    refused(Errno::NOTDIR, make("f/p"))?;
    refused(Errno::NAMETOOLONG, make(&"n".repeat(256)))?;
    ensure!(
        mknodat(CWD, mount.join("d"), FileType::Directory, Mode::RUSR, 0).is_err(),
        "directories are made by mkdir"
    );
    cluster.finish([mount])
}
