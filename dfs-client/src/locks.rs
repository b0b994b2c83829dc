//! Locks of files: granted by the metadata leader, held by this client's session, and told again to a new leader.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dfs_common::{
    ErrorCode, InodeId, SessionId,
    crash::{self, Point},
    lock::{Class, Kind, Lock, Locks, Owner},
};
use dfs_proto::{
    convert::{self, LockAction},
    v1,
};

use tokio::sync::OwnedMutexGuard;

use crate::{Dfs, Error, cluster::metadata, estate::Will};

/// Pause before a lock that could not be given up is given up again.
const AGAIN: Duration = Duration::from_secs(1);

/// A lock that a program wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wish {
    /// The call.
    pub class: Class,
    /// The open file or the process that wants it: any number, unique in this client.
    pub owner: u64,
    /// Shared or not.
    pub kind: Kind,
    /// First byte.
    pub start: u64,
    /// Last byte.
    pub end: u64,
    /// Process, for people.
    pub pid: u32,
}

impl Wish {
    fn of(self, session: SessionId) -> Lock {
        let Self { class, owner, kind, start, end, pid } = self;
        Lock { class, owner: Owner { session, number: owner }, kind, start, end, pid }
    }
}

/// What this client holds, as far as it has heard.
///
/// Questions about one owner's locks go one after the other (its gate), so that one of the background cannot give up what its
/// owner has taken meanwhile.
#[derive(Debug, Default)]
pub(crate) struct HeldLocks {
    held: Mutex<Locks>,
    gates: Mutex<HashMap<(InodeId, u64), Arc<Gate>>>,
}

type Gate = tokio::sync::Mutex<()>;

impl HeldLocks {
    /// What a predecessor held.
    pub(crate) fn with(held: Vec<(InodeId, Lock)>) -> Self {
        let mut locks = Locks::default();
        for (ino, lock) in held {
            // They were held together, so none stands in the way of another.
            let _ = locks.take(ino, lock);
        }
        Self { held: Mutex::new(locks), gates: Mutex::default() }
    }

    /// Changes what is held of a file, and leaves it to a successor.
    fn change(&self, will: &Will, ino: InodeId, change: impl FnOnce(&mut Locks)) {
        let mut held = self.lock();
        change(&mut held);
        will.locked(ino, held.iter().filter(|(file, _)| *file == ino).map(|(_, lock)| lock));
    }

    fn lock(&self) -> MutexGuard<'_, Locks> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn gate(&self, ino: InodeId, lock: &Lock) -> OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits for or is in.
            gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            Arc::clone(gates.entry((ino, lock.owner.number)).or_default())
        };
        gate.lock_owned().await
    }

    fn has(&self, ino: InodeId, lock: &Lock) -> bool {
        let held = self.lock();
        let mut of_owner = held.iter().filter(|(file, own)| (*file, own.owner) == (ino, lock.owner));
        of_owner.any(|(_, own)| own.class == lock.class && own.start <= lock.end && lock.start <= own.end)
    }

    /// All that a session holds, as it travels.
    pub(crate) fn of_session(&self, session: SessionId) -> Vec<v1::FileLock> {
        let held = self.lock();
        held.iter().filter(|(_, l)| l.owner.session == session).map(|(ino, l)| convert::lock_to_wire(ino, l)).collect()
    }

    /// The cluster has ended a session, and with it its locks; how many there were.
    pub(crate) fn lost(&self, session: SessionId) -> usize {
        let mut held = self.lock();
        let before = held.len();
        held.retain(|other| other != session);
        before - held.len()
    }
}

impl Dfs {
    fn change_held(&self, ino: InodeId, change: impl FnOnce(&mut Locks)) {
        self.shared.cluster.sessions.locks.change(&self.shared.cluster.will, ino, change);
    }

    async fn ask_lock(&self, ino: InodeId, lock: Lock, action: LockAction) -> Result<Option<Lock>, Error> {
        let request = v1::LockRequest {
            session_id: lock.owner.session.0,
            lock: Some(convert::lock_to_wire(ino, &lock)),
            action: convert::lock_action_to_wire(action).into(),
        };
        let what = || format!("locking inode {ino}");
        let answer = self.shared.cluster.call(&what, request, |c, q| async move { metadata(c).lock(q).await }).await?;
        // Whose it is does not matter here.
        let conflict = answer.conflict.map(|wire| convert::lock(SessionId(0), &wire)).transpose()?;
        Ok(conflict.map(|(_, lock)| lock))
    }

    /// Takes a lock. With `wait` it may take half a second until a lock that stands in the way is told: ask again then.
    ///
    /// # Errors
    /// No answer within the deadline; whatever was granted without being heard is given up in the background.
    pub async fn take_lock(&self, ino: InodeId, wish: Wish, wait: bool) -> Result<Option<Lock>, Error> {
        let session = self.shared.cluster.session().await?;
        let lock = wish.of(session.id);
        let action = if wait { LockAction::Wait } else { LockAction::Take };
        let _gate = self.shared.cluster.sessions.locks.gate(ino, &lock).await;
        let outcome = self.ask_lock(ino, lock, action).await;
        match &outcome {
            Ok(None) => {
                crash::point(Point::LockGranted);
                // One's own locks never stand in the way.
                self.change_held(ino, |held| _ = held.take(ino, lock));
            }
            // A whole lock is given up when more is asked for.
            Ok(Some(_)) if wish.class == Class::Whole => {
                self.change_held(ino, |held| _ = held.give_up(ino, lock.class, lock.owner, 0, u64::MAX));
            }
            Ok(Some(_)) => {}
            Err(error) if error.code == ErrorCode::SessionExpired => self.shared.cluster.session_lost(&session),
            Err(_) => self.give_up_later(ino, lock),
        }
        outcome
    }

    /// A lock that stands in the way of `wish`.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn test_lock(&self, ino: InodeId, wish: Wish) -> Result<Option<Lock>, Error> {
        let session = self.shared.cluster.session().await?;
        self.ask_lock(ino, wish.of(session.id), LockAction::Test).await
    }

    /// Gives up what the owner of `wish` holds in its range. Always succeeds: what the leader does not hear now it hears later.
    pub async fn give_up_lock(&self, ino: InodeId, wish: Wish) {
        // Without a session nothing is held.
        let Some(session) = self.shared.cluster.sessions.live() else { return };
        let lock = wish.of(session.id);
        let _gate = self.shared.cluster.sessions.locks.gate(ino, &lock).await;
        // What was perhaps granted without being heard is being given up already.
        if !self.shared.cluster.sessions.locks.has(ino, &lock) {
            return;
        }
        self.change_held(ino, |held| _ = held.give_up(ino, lock.class, lock.owner, lock.start, lock.end));
        if let Err(error) = self.ask_lock(ino, lock, LockAction::GiveUp).await {
            tracing::debug!(%error, %ino, "a lock is given up later");
            self.give_up_later(ino, lock);
        }
    }

    /// Gives up until the leader has heard it, the owner has taken it again, or the session has ended.
    fn give_up_later(&self, ino: InodeId, lock: Lock) {
        let (dfs, stop) = (self.clone(), self.shared.cluster.stop.clone());
        self.shared.cluster.tasks.spawn(async move {
            let is_current = || dfs.shared.cluster.sessions.live().is_some_and(|live| live.id == lock.owner.session);
            while is_current() {
                let locks = &dfs.shared.cluster.sessions.locks;
                let gate = locks.gate(ino, &lock).await;
                if locks.has(ino, &lock) || dfs.ask_lock(ino, lock, LockAction::GiveUp).await.is_ok() {
                    return;
                }
                drop(gate);
                tokio::select! {
                    () = tokio::time::sleep(AGAIN) => {}
                    () = stop.cancelled() => return,
                }
            }
        });
    }
}
