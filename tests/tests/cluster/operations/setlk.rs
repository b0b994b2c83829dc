//! flock(2) and fcntl(2) with F_SETLK: what one program sees. That locks hold between mounts is shown in `locks`.

use anyhow::{Result, ensure};
use rustix::{
    fs::{FlockOperation, OFlags, fcntl_lock, flock},
    io::Errno,
};
use std::time::Duration;

use super::{file, mounted, open, refused};

#[test]
fn shared_and_exclusive_locks_of_two_descriptors() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let (one, two) = (open(&path, OFlags::RDONLY)?, open(&path, OFlags::RDONLY)?);
    let (shared, exclusive, free) =
        (FlockOperation::NonBlockingLockShared, FlockOperation::NonBlockingLockExclusive, FlockOperation::Unlock);
    flock(&one, shared)?;
    flock(&two, shared)?;
    refused(Errno::WOULDBLOCK, flock(&two, exclusive))?;
    flock(&one, free)?;
    // Unlocking what is not locked is no error.
    flock(&one, free)?;
    flock(&two, exclusive)?;
    refused(Errno::WOULDBLOCK, flock(&one, shared))?;
    flock(&two, shared)?;
    flock(&one, shared)?;
    drop((one, two));
    cluster.finish([mount])
}

#[test]
fn a_waiter_gets_the_lock_when_it_becomes_free() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let (one, two) = (open(&path, OFlags::RDWR)?, open(&path, OFlags::RDWR)?);
    flock(&one, FlockOperation::LockExclusive)?;
    let (told, waits) = std::sync::mpsc::channel();
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(move || told.send(flock(&two, FlockOperation::LockExclusive)));
        ensure!(waits.recv_timeout(Duration::from_millis(300)).is_err(), "it waits while the lock is held");
        flock(&one, FlockOperation::Unlock)?;
        Ok(waits.recv_timeout(Duration::from_secs(10))??)
    })?;
    cluster.finish([mount])
}

#[test]
fn record_locks_need_the_right_descriptor_and_a_file() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let path = mount.join("f");
    file(&path, b"x")?;
    let (exclusive, shared) = (FlockOperation::NonBlockingLockExclusive, FlockOperation::NonBlockingLockShared);
    refused(Errno::BADF, fcntl_lock(open(&path, OFlags::RDONLY)?, exclusive))?;
    refused(Errno::BADF, fcntl_lock(open(&path, OFlags::WRONLY)?, shared))?;
    let both = open(&path, OFlags::RDWR)?;
    // One process never disturbs itself.
    fcntl_lock(&both, exclusive)?;
    fcntl_lock(&both, shared)?;
    fcntl_lock(open(&path, OFlags::RDWR)?, exclusive)?;
    cluster.finish([mount])
}
