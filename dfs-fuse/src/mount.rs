//! The life of a mount: connect, attach, serve, detach.

pub(crate) mod channel;
pub(crate) mod device;
mod fusermount;
mod served;
mod sessions;
mod supervisor;

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use channel::{Channel, Handover, Order, Word};
use dfs_client::{Dfs, Estate, mounts};
use dfs_common::{ErrorCode, FileKind, InodeId, ledger::Ledger};
use served::Served;
pub(crate) use supervisor::run as supervise;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::timeout,
};

use crate::{
    config::Args,
    fs::legacy,
    fuse::Counters,
    status::{self, Facts, Socket},
};

/// Read-ahead of the kernel, KiB. Its default of 128 costs a third of the throughput of a sequential reader.
const READ_AHEAD_KIB: u32 = 1024;
/// How long after an unmount the kernel may take to let go, before the process ends anyway and programs that still have
/// files open get ENOTCONN.
const LET_GO: Duration = Duration::from_secs(2);
/// How long ending the session with the cluster may take. It ends by itself when its lease does.
const GOODBYE: Duration = Duration::from_secs(2);

/// Finds the mount point and makes its path absolute.
///
/// # Errors
/// It does not exist, is no directory, or is a mount whose process has died.
pub(crate) fn check_mountpoint(path: &Path) -> anyhow::Result<PathBuf> {
    let full = path.canonicalize().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => anyhow!("mount point {} does not exist; make it: mkdir -p {0}", path.display()),
        Some(libc::ENOTCONN) => anyhow!(
            "{} is a mount whose process has ended; free it first: umount {0} (or fusermount3 -u {0})",
            path.display()
        ),
        _ => anyhow!("mount point {}: {error}", path.display()),
    })?;
    if !full.is_dir() {
        bail!("mount point {} is not a directory", path.display());
    }
    Ok(full)
}

/// Mounts, or takes over the mount of a process that died, and serves until unmounted or told to stop. A supervisor is told when
/// it is mounted, and when it answers.
///
/// # Errors
/// The cluster did not answer, or the mount could not be made or taken over.
pub(crate) async fn run(args: &Args, mountpoint: &Path, supervisor: Option<&Arc<Channel>>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let told_to_stop = async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(told_to_stop);
    let left = supervisor.map(|supervisor| receive_order(supervisor)).transpose()?.flatten();
    let (mut ledger, mut found) = (None, Vec::new());
    if let Some(left) = &left {
        let file = left.ledger.try_clone().context("cannot keep the ledger")?.into();
        let (opened, records) = Ledger::open(file).context("what the process before this one has left")?;
        (ledger, found) = (Some(opened), records);
    } else if supervisor.is_some() {
        ledger = Some(Ledger::new().context("cannot make a ledger for a successor")?);
    }
    let estate = ledger.clone().map(|ledger| Estate::new(ledger, &mut found));
    let locks = estate.as_ref().map(Estate::locks).unwrap_or_default();
    let dfs = tokio::select! {
        dfs = connect(args, mountpoint, estate) => dfs?,
        signal = &mut told_to_stop => bail!("{signal} before the cluster answered"),
    };
    let counters = Arc::new(Counters::default());
    let outcome = async {
        let served = Served { args, mountpoint, dfs: &dfs, counters: Arc::clone(&counters), supervisor };
        let (mut ended, _socket) = match left {
            Some(left) => served.take_over(left, ledger, legacy::read(found), &locks).await?,
            None => served.attach(ledger).await?,
        };
        if let Some(supervisor) = supervisor {
            supervisor.send(&Word::Ready, &[]).context("the supervisor is gone")?;
        }
        tokio::select! {
            outcome = &mut ended => outcome.unwrap_or(Ok(())).context("the FUSE session failed"),
            signal = &mut told_to_stop => {
                tracing::info!(signal, "unmounting");
                detach(mountpoint).await?;
                let _ = timeout(LET_GO, ended).await;
                Ok(())
            }
        }
    }
    .await;
    if supervisor.is_some() && outcome.is_err() {
        // The next process, if there is one, goes on in the session; else its lease ends it.
        return outcome;
    }
    if timeout(GOODBYE, dfs.close()).await.is_err() {
        tracing::debug!("the cluster did not hear the goodbye; the session ends with its lease");
    }
    tracing::info!(%counters, "unmounted");
    outcome
}

/// What the supervisor wants: a mount that is to be taken over, or a new one.
fn receive_order(supervisor: &Channel) -> anyhow::Result<Option<Handover>> {
    let order = supervisor.receive::<Order>().context("the supervisor's order")?;
    match order.context("the supervisor is gone")? {
        (Order::Mount, _) => Ok(None),
        (Order::TakeOver(facts), descriptors) => {
            Ok(Some(Handover::from_parts(facts, descriptors).context("the supervisor's order")?))
        }
    }
}

/// Changes the kernel's flags of a mount that is there, for `mount -o remount`.
///
/// # Errors
/// It is no mount of dfs, or the kernel refuses.
pub(crate) fn change_flags(args: &Args, mountpoint: &Path) -> anyhow::Result<()> {
    let place = mountpoint.display();
    if mounts::is_mounted(mountpoint).with_context(|| format!("cannot tell what is mounted on {place}"))? {
        device::change_flags(&request(args, mountpoint))
    } else {
        bail!("{place} is no mount of dfs: leave out remount, and it is mounted")
    }
}

fn request(args: &Args, mountpoint: &Path) -> device::Request {
    device::Request {
        mountpoint: mountpoint.to_owned(),
        source: args.source(),
        read_only: args.read_only,
        allow_other: args.serves_others(device::is_root()),
        default_permissions: args.checks_permissions(device::is_root()),
        flags: args.mount_flags,
    }
}

/// The inode of the directory that becomes the root of the mount.
async fn find_root(dfs: &Dfs, names: &[String]) -> anyhow::Result<InodeId> {
    let mut ino = InodeId::ROOT;
    for (i, name) in names.iter().enumerate() {
        let path = || format!("/{}", names[..=i].join("/"));
        let attr = dfs.lookup(ino, name.as_bytes()).await.map_err(|error| match error.code {
            ErrorCode::NotFound => anyhow!(
                "there is no {} in the cluster; make it (dfsctl mkdir {0}), or mount a directory that is there",
                path()
            ),
            _ => anyhow!(error).context(format!("cannot find {} in the cluster", path())),
        })?;
        if attr.kind != FileKind::Directory {
            bail!("{} is no directory of the cluster ({:?}): only directories can be mounted", path(), attr.kind);
        }
        ino = attr.ino;
    }
    Ok(ino)
}

async fn connect(args: &Args, mountpoint: &Path, estate: Option<Estate>) -> anyhow::Result<Dfs> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let description = format!("{} pid {} on {}", host.trim(), std::process::id(), mountpoint.display());
    let options = args.client.options(description);
    let within = options.deadline;
    let cluster = options.meta.join(", ");
    let is_heir = estate.as_ref().is_some_and(Estate::is_inherited);
    let dfs = match estate {
        Some(estate) => Dfs::inherit(options, estate).await,
        None => Dfs::connect_admin(options).await,
    }?;
    if is_heir {
        // The cluster may be away, and programs wait: the mount answers at once, and each operation waits as long as it may.
        tokio::spawn(open_session(dfs.clone()));
        return Ok(dfs);
    }
    // The client keeps its deadlines itself; this is for a defect there.
    let outcome = timeout(within + Duration::from_secs(5), dfs.open_session()).await;
    let hint = format!(
        "cannot reach the cluster at {cluster}; is a metadata node running there? (dfsctl --meta {cluster} status)"
    )
    .replace(", ", ",");
    match outcome {
        Ok(Ok(())) => Ok(dfs),
        Ok(Err(error)) => Err(anyhow!(error).context(hint)),
        Err(_) => Err(anyhow!("no answer within {within:?}").context(hint)),
    }
}

/// Takes the session of the process before up again, while its lease lasts: locks depend on it.
async fn open_session(dfs: Dfs) {
    while let Err(error) = dfs.open_session().await {
        tracing::warn!(%error, "the session of the process before cannot be taken up yet");
    }
}

/// Opens the status socket. A mount without one works, so that its failure is no reason to fail.
fn open_socket(args: &Args, device: u64, facts: Facts) -> Option<Socket> {
    let run_dir = args.run_dir.clone().unwrap_or_else(|| mounts::run_dir(device::is_root()));
    status::serve(&run_dir, libc::minor(device), facts)
        .inspect_err(|error| tracing::warn!("no status socket, so `dfsctl mount` cannot ask this mount: {error:#}"))
        .ok()
}

/// Asks the new mount for its root; gives its device.
async fn first_look(mountpoint: &Path, patience: Duration) -> anyhow::Result<u64> {
    let path = mountpoint.to_owned();
    let look = spawn_blocking(move || -> std::io::Result<u64> {
        let device = std::fs::metadata(&path)?.dev();
        set_read_ahead(device);
        Ok(device)
    });
    match timeout(patience + Duration::from_secs(2), look).await {
        Ok(Ok(outcome)) => outcome.context("the mount was made, but its root directory does not answer"),
        Ok(Err(_)) => bail!("the thread that looked at the mount panicked"),
        Err(_) => bail!("the mount was made, but its root directory did not answer within {patience:?}"),
    }
}

/// The kernel gives every mount 128 KiB and lets root change it.
fn set_read_ahead(device: u64) {
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "the kernel's read-ahead stays as it is");
    }
}

async fn detach(mountpoint: &Path) -> anyhow::Result<()> {
    let path = mountpoint.to_owned();
    spawn_blocking(move || device::detach(&path)).await.context("the unmounting thread panicked")?
}
