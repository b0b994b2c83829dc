//! A mount that this process serves: made here, or taken over.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use dfs_client::Dfs;
use dfs_common::{
    InodeId,
    ledger::{Entry, Ledger},
    lock::Class,
};
use tokio::{sync::oneshot, task::spawn_blocking};

use super::{
    channel::{Channel, FORMAT, Facts as Mounted, Handover, Word},
    detach, device, find_root, first_look, open_socket, request, sessions,
};
use crate::{
    config::Args,
    fs::{
        self, Fs,
        legacy::{Legacies, Legacy},
    },
    fuse::{Adapter, Counters, Kernel, keep_lease},
    status::{Facts, Socket},
};

/// Threads that read requests. Two keep a reader and a writer from waiting for each other's copies; more gained nothing.
const REQUEST_THREADS: usize = 2;
/// Numbers of handles that one process may give out: more than it can before it ends.
const HANDLES_PER_LIFE: u64 = 1 << 40;

/// Tells the end of the sessions.
type Ended = oneshot::Receiver<std::io::Result<()>>;

/// What it takes.
pub(super) struct Served<'a> {
    pub(super) args: &'a Args,
    pub(super) mountpoint: &'a Path,
    pub(super) dfs: &'a Dfs,
    pub(super) counters: Arc<Counters>,
    pub(super) supervisor: Option<&'a Arc<Channel>>,
}

/// The kernel's end, and a session of fuser on each descriptor of it.
struct Connected {
    devices: Vec<OwnedFd>,
    sessions: Vec<fuser::Session<Adapter>>,
    answer: Vec<u8>,
}

impl Served<'_> {
    /// Mounts.
    ///
    /// # Errors
    /// There is no such directory in the cluster, the mount cannot be made, or its root does not answer.
    pub(super) async fn attach(&self, ledger: Option<Arc<Ledger>>) -> anyhow::Result<(Ended, Option<Socket>)> {
        let root = find_root(self.dfs, &self.args.subtree).await?;
        let fs = self.file_system(root, ledger.clone());
        let adapter = self.adapter(&fs);
        let mut facts = self.facts(&fs, &adapter, 0);
        let request = request(self.args, self.mountpoint);
        let (connected, init) = spawn_blocking(move || -> anyhow::Result<_> {
            let first = device::attach(&request)?;
            let init = sessions::read_init(&first).context("the kernel says nothing about the mount")?;
            let mut devices = vec![first];
            while devices.len() < REQUEST_THREADS {
                devices.push(sessions::another(&devices[0]).context("no second descriptor of the device")?);
            }
            let connected = connect(&adapter, devices, &init)?;
            sessions::answer(&connected.devices[0], &connected.answer)?;
            Ok((connected, init))
        })
        .await
        .context("the mounting thread panicked")??;
        let ended = self.serve(&fs, &connected.devices, connected.sessions)?;
        let outcome = first_look(self.mountpoint, self.args.client.deadline.0).await;
        if outcome.is_err() {
            detach(self.mountpoint).await?;
        }
        let device = outcome?;
        if let (Some(supervisor), Some(ledger)) = (self.supervisor, ledger) {
            let Connected { devices, answer, .. } = Connected { sessions: Vec::new(), ..connected };
            if sessions::can_resend(&init) {
                let mounted = Mounted {
                    format: FORMAT,
                    init,
                    answer,
                    root: root.0,
                    device,
                    lives: 1,
                    is_orderly: false,
                    refusal: None,
                };
                let descriptors: Vec<_> =
                    devices.iter().map(|device| device.as_fd()).chain([ledger.descriptor()]).collect();
                supervisor.send(&Word::Mounted(mounted), &descriptors).context("the supervisor is gone")?;
            } else {
                tracing::info!("before Linux 6.9 nobody can go on with a mount whose process has died");
                facts.supervisor = None;
            }
        }
        Ok((ended, open_socket(self.args, device, facts)))
    }

    /// Takes over the mount of a process that has died, and what it left.
    ///
    /// # Errors
    /// It was made by a program that speaks with the kernel in another way.
    pub(super) async fn take_over(
        &self,
        left: Handover,
        ledger: Option<Arc<Ledger>>,
        found: Vec<(Legacy, Entry)>,
        locks: &[(InodeId, Class, u64)],
    ) -> anyhow::Result<(Ended, Option<Socket>)> {
        let Handover { facts: mounted, devices, .. } = left;
        ensure!(
            mounted.format == FORMAT,
            "this version of mount.dfs does not know what the one that mounted has left (format {}): unmount, and mount again",
            mounted.format
        );
        let fs = self.file_system(InodeId(mounted.root), ledger.clone());
        let mut adapter = self.adapter(&fs);
        if mounted.is_orderly {
            adapter.repeat_everything();
        }
        let mut facts = self.facts(&fs, &adapter, mounted.lives);
        facts.refusal.clone_from(&mounted.refusal);
        let connected = connect(&adapter, devices, &mounted.init)?;
        sessions::check_answer(&mounted.answer, &connected.answer)?;
        // Before anything is read, which would be asked again as well.
        sessions::resend(&connected.devices[0]).context("the kernel does not ask again")?;
        // Nothing refuses any more: what was left is this process's now.
        if let Some(ledger) = &ledger {
            ledger.take_over();
        }
        fs.inherit(found, mounted.lives * HANDLES_PER_LIFE);
        fs.inherit_locks(locks);
        let ended = self.serve(&fs, &connected.devices, connected.sessions)?;
        let heir = Arc::clone(&fs);
        spawn_blocking(move || heir.take_over_kernel()).await.context("the thread that tells the kernel panicked")?;
        tracing::info!(mountpoint = %self.mountpoint.display(), lives = mounted.lives + 1, "took the mount over");
        Ok((ended, open_socket(self.args, mounted.device, facts)))
    }

    fn file_system(&self, root: InodeId, ledger: Option<Arc<Ledger>>) -> Arc<Fs<Dfs>> {
        let options = fs::Options { root, write_once: self.args.write_once, cache_ttl: self.args.cache.0 };
        Arc::new(Fs::new(self.dfs.clone(), options, Legacies::new(ledger)))
    }

    fn adapter(&self, fs: &Arc<Fs<Dfs>>) -> Adapter {
        let runtime = tokio::runtime::Handle::current();
        let deadline = self.args.client.deadline.0;
        let mut adapter = Adapter::new(Arc::clone(fs), runtime, deadline, Arc::clone(&self.counters));
        adapter.set_local_locks(self.args.local_locks);
        adapter
    }

    fn facts(&self, fs: &Arc<Fs<Dfs>>, adapter: &Adapter, predecessors: u64) -> Facts {
        Facts {
            dfs: self.dfs.clone(),
            fs: Arc::clone(fs),
            flights: adapter.flights(),
            counters: Arc::clone(&self.counters),
            since: Instant::now(),
            gate: adapter.gate(),
            supervisor: self.supervisor.cloned(),
            predecessors,
            refusal: None,
        }
    }

    /// Reads requests from now on.
    fn serve(
        &self,
        fs: &Arc<Fs<Dfs>>,
        devices: &[OwnedFd],
        sessions: Vec<fuser::Session<Adapter>>,
    ) -> anyhow::Result<Ended> {
        let for_notes = devices[0].try_clone().context("cannot keep a second descriptor of the device")?;
        fs.coherence().connect(Box::new(Kernel::new(fs.inode(InodeId::ROOT.0), sessions[0].notifier(), for_notes)));
        let (tell, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("fuse".into())
            .spawn(move || tell.send(run_all(sessions)))
            .context("cannot start the request threads")?;
        if fs.coherence().can_lease() {
            tokio::spawn(keep_lease(Arc::downgrade(fs), self.dfs.clone()));
        }
        Ok(ended)
    }
}

fn connect(adapter: &Adapter, devices: Vec<OwnedFd>, init: &[u8]) -> anyhow::Result<Connected> {
    let mut sessions = Vec::new();
    let mut answer = Vec::new();
    for device in &devices {
        let device = device.try_clone().context("cannot keep a second descriptor of the device")?;
        let (session, said) = sessions::begin(adapter.clone(), device, init)?;
        sessions.push(session);
        answer = said;
    }
    Ok(Connected { devices, sessions, answer })
}

/// Until the kernel lets the mount go; the first error of a session, if any.
fn run_all(sessions: Vec<fuser::Session<Adapter>>) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        let all: Vec<_> = sessions.into_iter().map(|session| scope.spawn(|| session.run())).collect();
        let ended = all.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(std::io::Error::other("it panicked"))));
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}
