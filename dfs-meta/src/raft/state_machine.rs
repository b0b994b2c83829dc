//! The replica: the pure state machine with the position it stands at, driven by openraft.
//!
//! Entries are applied under the write lock, reads take the read lock. A snapshot is made from a clone of the state, which
//! costs a constant time, and is written by a blocking thread while entries go on being applied.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dfs_common::{
    ClusterId, SessionId,
    crash::{self, Point},
};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, Snapshot, StorageIOError, storage::RaftStateMachine};

use tokio::sync::watch;

use super::{
    changes::Changes,
    types::{Applied, Entry, LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig},
};
use crate::{
    fsm::{Change, State},
    store::{Head, SnapshotDir, SnapshotFile, StoreError},
};

/// The state with its position in the log.
#[derive(Default)]
struct Position {
    state: State,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Time of the last batch applied, nanoseconds since the Unix epoch.
    now_ns: i64,
    /// The newest snapshot on disk.
    snapshot: Option<SnapshotMeta>,
}

/// The replica. Clones share one.
#[derive(Clone)]
pub(crate) struct Replica {
    position: Arc<RwLock<Position>>,
    snapshots: Arc<SnapshotDir>,
    /// Number of the newest event in the state.
    newest_event: Arc<watch::Sender<u64>>,
    pub(crate) changes: Arc<Changes>,
}

impl Replica {
    /// Restores the newest snapshot that is readable; the log is replayed by openraft. Blocks on the disk.
    ///
    /// # Errors
    /// The disk failed, or the log starts behind the newest readable snapshot.
    pub(crate) fn open(
        snapshots: Arc<SnapshotDir>,
        path: &std::path::Path,
        purged: Option<u64>,
    ) -> Result<Self, StoreError> {
        let restored = snapshots.newest()?;
        let found = restored.as_ref().and_then(|(head, _)| head.meta.last_log_id).map(|id| id.index);
        if let Some(purged) = purged.filter(|purged| found < Some(*purged)) {
            return Err(StoreError::NoSnapshot { path: path.to_owned(), purged, found: found.unwrap_or(0) });
        }
        let position = restored.map_or_else(Position::default, |(head, state)| Position {
            state,
            applied: head.meta.last_log_id,
            membership: head.meta.last_membership.clone(),
            now_ns: head.now_ns,
            snapshot: Some(head.meta),
        });
        let newest_event = Arc::new(watch::Sender::new(position.state.last_event()));
        let changes = Arc::new(Changes::new());
        Ok(Self { position: Arc::new(RwLock::new(position)), snapshots, newest_event, changes })
    }

    /// Runs `f` on the state.
    pub(crate) fn peek<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        f(&self.read().state)
    }

    /// The state with the position of its last entry.
    pub(crate) fn freeze(&self) -> (State, Option<LogId>) {
        let position = self.read();
        (position.state.clone(), position.applied)
    }

    /// Position of the last entry applied.
    pub(crate) fn applied(&self) -> Option<LogId> {
        self.read().applied
    }

    /// Time of the last batch applied.
    pub(crate) fn now_ns(&self) -> i64 {
        self.read().now_ns
    }

    /// The cluster's id, once it was agreed on.
    pub(crate) fn cluster_id(&self) -> Option<ClusterId> {
        self.read().state.cluster_id()
    }

    /// Number of the newest event, and every change of it.
    pub(crate) fn newest_event(&self) -> watch::Receiver<u64> {
        self.newest_event.subscribe()
    }

    fn tell_newest_event(&self, number: u64) {
        self.newest_event.send_if_modified(|last| std::mem::replace(last, number) != number);
    }

    // A panic while applying ends openraft's task, and with it the node; readers must not hang or panic until then.
    fn read(&self) -> RwLockReadGuard<'_, Position> {
        self.position.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Position> {
        self.position.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn blocking<R: Send + 'static>(
        &self,
        f: impl FnOnce(&SnapshotDir) -> Result<R, StoreError> + Send + 'static,
    ) -> std::io::Result<R> {
        let snapshots = self.snapshots.clone();
        let done = dfs_proto::machine::spawn_blocking(move || f(&snapshots)).await;
        Ok(done.map_err(std::io::Error::other)??)
    }

    async fn install(&self, meta: SnapshotMeta, snapshot: SnapshotFile) -> std::io::Result<()> {
        if self.applied() >= meta.last_log_id {
            tracing::info!(%meta, "a snapshot that is not newer than the state is ignored");
            return Ok(());
        }
        let expected = meta.clone();
        let (now_ns, state) = self
            .blocking(move |dir| {
                let (head, state) = snapshot.load()?;
                if head.meta.last_log_id != expected.last_log_id {
                    let (path, reason) =
                        ("received".into(), format!("it holds {}, announced was {expected}", head.meta));
                    return Err(StoreError::Snapshot { path, reason });
                }
                dir.adopt(snapshot, &expected)?;
                crash::point(Point::SnapshotAdopted);
                Ok((head.now_ns, state))
            })
            .await?;
        let old = {
            let mut position = self.write();
            position.applied = meta.last_log_id;
            position.now_ns = position.now_ns.max(now_ns);
            position.membership = meta.last_membership.clone();
            position.snapshot = Some(meta);
            self.tell_newest_event(state.last_event());
            self.changes.restart();
            std::mem::replace(&mut position.state, state)
        };
        crash::point(Point::SnapshotInstalled);
        // Freeing millions of nodes takes a while.
        drop(dfs_proto::machine::spawn_blocking(move || drop(old)));
        Ok(())
    }
}

impl Position {
    fn apply(&mut self, entry: Entry, changed: &mut Vec<(Option<SessionId>, Change)>) -> Applied {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Applied::default(),
            EntryPayload::Normal(batch) => {
                self.now_ns = self.now_ns.max(batch.now_ns);
                Applied(self.state.apply_and_tell(&batch, |session, change| changed.push((session, change))))
            }
            EntryPayload::Membership(membership) => {
                if membership.get_joint_config().len() > 1 {
                    crash::point(Point::MembershipJoint);
                }
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Applied::default()
            }
        }
    }
}

impl RaftStateMachine<TypeConfig> for Replica {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let position = self.read();
        Ok((position.applied, position.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut position = self.write();
        let mut changed = Vec::new();
        let applied = entries.into_iter().map(|entry| position.apply(entry, &mut changed)).collect();
        self.changes.append(changed);
        let newest = position.state.last_event();
        drop(position);
        self.tell_newest_event(newest);
        Ok(applied)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let position = self.read();
        let index = position.applied.map_or(0, |id| id.index);
        let meta = SnapshotMeta {
            last_log_id: position.applied,
            last_membership: position.membership.clone(),
            snapshot_id: format!("{index}-{:08x}", rand::random::<u32>()),
        };
        let (now_ns, state) = (position.now_ns, position.state.clone());
        drop(position);
        Builder { head: Head { meta, now_ns }, state, replica: self.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFile>, StorageError> {
        // Snapshots are received by the service, which knows when they are whole; this is only openraft's own way.
        let file = self.blocking(|dir| dir.receive()?.finish().map_err(StoreError::io("snapshots"))).await;
        file.map(Box::new).map_err(|e| StorageIOError::write_snapshot(None, &e).into())
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Box<SnapshotFile>) -> Result<(), StorageError> {
        let installed = self.install(meta.clone(), *snapshot).await;
        installed.map_err(|e| StorageIOError::write_snapshot(Some(meta.signature()), &e).into())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let Some(meta) = self.read().snapshot.clone() else { return Ok(None) };
        let wanted = meta.clone();
        let snapshot = self.blocking(move |dir| dir.get(&wanted)).await;
        let snapshot = snapshot.map_err(|e| StorageIOError::read_snapshot(Some(meta.signature()), &e))?;
        Ok(Some(Snapshot { meta, snapshot: Box::new(snapshot) }))
    }
}

/// Writes one snapshot.
pub(crate) struct Builder {
    head: Head,
    state: State,
    replica: Replica,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (head, state) = (self.head.clone(), std::mem::take(&mut self.state));
        let started = std::time::Instant::now();
        let written = self.replica.blocking(move |dir| dir.write(&head, &state)).await;
        let meta = self.head.meta.clone();
        let snapshot = written.map_err(|e| StorageIOError::write_snapshot(Some(meta.signature()), &e))?;
        let index = meta.last_log_id.map_or(0, |id| id.index);
        tracing::info!(index, bytes = snapshot.length(), elapsed = ?started.elapsed(), "snapshot written");
        let mut position = self.replica.write();
        if position.snapshot.as_ref().and_then(|s| s.last_log_id) <= meta.last_log_id {
            position.snapshot = Some(meta.clone());
        }
        drop(position);
        Ok(Snapshot { meta, snapshot: Box::new(snapshot) })
    }
}
