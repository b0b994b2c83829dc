//! The leader's control loops: failure detector, sessions, placement, repair, garbage and inventories.
//!
//! Each planner is pure and knows neither clock nor network; this module holds their state, feeds them and proposes what they
//! decide. Everything here is *soft*: it belongs to one leadership, is built anew by the next leader, and losing it costs
//! time, never data. What must survive goes through [`raft::Handle::propose`].
//!
//! Lock order: the soft state before the replicated state ([`raft::Handle::peek`] may be called with the soft state locked,
//! the soft state must not be locked inside a read). No lock is held across an `await`.

pub mod checks;
pub mod detector;
pub mod disks;
mod events;
pub mod garbage;
pub mod heartbeat;
pub mod inventory;
mod locks;
pub mod nodes;
pub mod placement;
pub mod rebalance;
mod rebalances;
pub mod repair;
pub mod repairs;
pub mod reports;
mod runner;
pub mod sessions;
pub mod settings;
mod soft;
mod space;
pub mod trim;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use dfs_common::{ChunkId, ErrorCode, FileId, InodeId, NodeId, SessionId, layout::Replicas, lock::Lock, node::Health};
use dfs_proto::status::RpcError;
use tokio::sync::{Notify, watch};

pub use rebalances::Balance;
pub use runner::run;
pub use settings::{RepairSettings, Settings};
use soft::Soft;

use crate::{
    fsm::{Command, Node, Reply},
    raft,
};

/// The control loops as the RPC layer uses them. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    raft: raft::Handle,
    leadership: watch::Receiver<raft::Leadership>,
    settings: Settings,
    /// `None` while this node does not lead.
    soft: Mutex<Option<Soft>>,
    /// A repair job ended: there may be room for the next.
    finished: Notify,
    /// Repair jobs were planned.
    planned: Notify,
    /// Locks of files were given up.
    unlocked: Notify,
    /// What goes into the event log next.
    recorder: events::Recorder,
}

/// What only the leader knows of space that no file uses and that is not free yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Garbage that readers keep.
    pub pinned: garbage::Pinned,
    /// A session that has the oldest of it open.
    pub holder: Option<SessionId>,
    /// Copies that no version lists.
    pub unknown: u64,
    /// Versions given up before their time because space was short.
    pub given_up: u64,
}

/// What an administrator wants to know of a node beyond the replicated state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFigures {
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes it holds.
    pub used_bytes: u64,
    /// Chunks it holds.
    pub chunk_count: u64,
    /// Time since it was last heard.
    pub silent: Duration,
}

impl Handle {
    /// The control loops of this node. They rest until [`run`] is started and this node leads.
    #[must_use]
    pub fn new(raft: raft::Handle, settings: Settings) -> Self {
        let leadership = raft.leadership();
        let (finished, planned, unlocked) = (Notify::new(), Notify::new(), Notify::new());
        let (soft, recorder) = (Mutex::new(None), events::Recorder::default());
        Self { inner: Arc::new(Inner { raft, leadership, settings, soft, finished, planned, unlocked, recorder }) }
    }

    /// The tunables.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Term of the leadership that this node knows of.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.inner.leadership.borrow().term
    }

    /// Makes `count` placements of new chunks of `chunk_bytes` for a session.
    ///
    /// # Errors
    /// `SessionExpired`, `NotEnoughNodes`, `NoSpace`, or what [`raft::Handle::read`] says.
    pub async fn allocate(
        &self,
        session: SessionId,
        count: usize,
        avoid: &[NodeId],
        local_host: &str,
    ) -> Result<Vec<Replicas>, RpcError> {
        let (settings, has_trash, nodes) = self
            .inner
            .raft
            .read(|state| {
                state.session(session)?;
                let has_trash = state.counters().trash_versions > 0;
                Some((state.settings(), has_trash, state.nodes().cloned().collect::<Vec<Node>>()))
            })
            .await?
            .ok_or_else(|| session_expired(session))?;
        let tunables = self.settings();
        self.lead(|soft, now| {
            let accuser = detector::Accuser::Client(session.0);
            avoid.iter().filter(|id| nodes.iter().any(|n| n.id == **id)).for_each(|id| {
                soft.detector.accuse(*id, accuser, now);
            });
            let mut candidates = soft.candidates(&nodes, tunables.placement_valid, now);
            let rules = placement::Rules {
                replication: settings.replication as usize,
                write_quorum: settings.write_quorum as usize,
                chunk_bytes: u64::from(settings.chunk_size),
                reserve_bytes: tunables.reserve_bytes,
                avoid,
                local_host,
            };
            let placements = placement::place(&mut candidates, rules, count, &mut soft.rng)
                .map_err(|error| soft.wait_for_trash(error, has_trash, now))?;
            for node in placements.iter().flatten() {
                soft.outstanding.add(*node, rules.chunk_bytes, now);
            }
            Ok(placements)
        })?
    }

    /// A session was opened.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn session_opened(&self, session: SessionId) -> Result<(), RpcError> {
        self.lead(|soft, now| soft.sessions.opened(session, now))
    }

    /// A session was closed by its client.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn session_closed(&self, session: SessionId) -> Result<(), RpcError> {
        self.lead(|soft, _| {
            soft.sessions.closed(session);
            soft.locks.retain(|other| other != session);
        })?;
        self.inner.unlocked.notify_waiters();
        Ok(())
    }

    /// The writer of a pending version has ended it: no chunk of it that is unknown now will ever be listed.
    ///
    /// # Errors
    /// This node does not lead any more.
    pub fn writer_ended(&self, file: FileId) -> Result<(), RpcError> {
        self.lead(|soft, _| soft.unknown.ended(file))
    }

    /// Pending versions ended and left copies that no version lists: they are looked up again until their grace time is over.
    /// A leader that is replaced meanwhile need not know: the inventories find them.
    pub fn left_behind(&self, copies: Vec<(NodeId, ChunkId, FileId)>) {
        let noted = self.lead(|soft, now| {
            copies.iter().for_each(|(node, chunk, file)| soft.unknown.note(*node, *chunk, *file, now));
        });
        if let Err(error) = noted {
            tracing::debug!(%error, "copies that were left behind are found by the inventories");
        }
    }

    /// A session renews. Returns whether the next renewal must bring the full set of pins and locks. Locks count only in the
    /// first full renewal under this leader: it has granted and taken back all others itself.
    ///
    /// # Errors
    /// `SessionExpired`, `TooLarge`, or what [`raft::Handle::read`] says.
    pub async fn renew(
        &self,
        session: SessionId,
        renewal: sessions::Renewal,
        held: Vec<(InodeId, Lock)>,
    ) -> Result<bool, RpcError> {
        if !self.inner.raft.read(|state| state.session(session).is_some()).await? {
            return Err(session_expired(session));
        }
        let (need_full, refused) = self.lead(|soft, now| {
            let is_first = renewal.full && !soft.sessions.is_heard(session);
            let need_full = soft.sessions.renew(session, renewal, now)?;
            Ok::<_, RpcError>((need_full, if is_first { soft.locks.claim(session, held) } else { vec![] }))
        })??;
        for (ino, lock) in refused {
            tracing::warn!(%session, %ino, pid = lock.pid, "a client claims a lock that somebody else has");
        }
        Ok(need_full)
    }

    /// Takes a lock; gives the one that stands in the way when it still does after `patience`.
    ///
    /// # Errors
    /// `SessionExpired`; `Overloaded` while locks of other clients are not known yet, or there are too many; or what
    /// [`raft::Handle::read`] says.
    pub async fn take_lock(&self, ino: InodeId, wish: Lock, patience: Duration) -> Result<Option<Lock>, RpcError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let changed = self.inner.unlocked.notified();
            tokio::pin!(changed);
            // Before the look, so that nothing is missed between the two.
            changed.as_mut().enable();
            let conflict = self.with_locks(wish.owner.session, |soft| match soft.locks.is_full() {
                true => Err(RpcError::new(ErrorCode::Overloaded, "too many locks are held")),
                false => Ok((soft.locks.trade_in(ino, &wish), soft.locks.take(ino, wish).err())),
            });
            let (is_traded, conflict) = conflict.await?;
            if is_traded {
                self.inner.unlocked.notify_waiters();
            }
            let Some(conflict) = conflict else { return Ok(None) };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(deadline) => return Ok(Some(conflict)),
            }
        }
    }

    /// A lock that would stand in the way.
    ///
    /// # Errors
    /// As [`Self::take_lock`].
    pub async fn test_lock(&self, ino: InodeId, wish: Lock) -> Result<Option<Lock>, RpcError> {
        self.with_locks(wish.owner.session, |soft| Ok(soft.locks.conflict(ino, &wish))).await
    }

    /// Gives up what the owner of `lock` holds in its range.
    ///
    /// # Errors
    /// What [`raft::Handle::read`] says.
    pub async fn give_up_lock(&self, ino: InodeId, lock: Lock) -> Result<(), RpcError> {
        self.inner.raft.read(|_| ()).await?;
        self.lead(|soft, _| {
            let is_heard = soft.sessions.is_heard(lock.owner.session);
            soft.locks.give_up(ino, lock, is_heard);
        })?;
        self.inner.unlocked.notify_waiters();
        Ok(())
    }

    /// Runs `f` when the locks of all clients are known.
    async fn with_locks<R>(
        &self,
        session: SessionId,
        f: impl FnOnce(&mut Soft) -> Result<R, RpcError>,
    ) -> Result<R, RpcError> {
        let known: Vec<SessionId> = self.inner.raft.read(|state| state.sessions().map(|s| s.id).collect()).await?;
        if !known.contains(&session) {
            return Err(session_expired(session));
        }
        self.lead(|soft, _| {
            if soft.sessions.all_heard(known.into_iter()) {
                f(soft)
            } else {
                Err(RpcError::new(ErrorCode::Overloaded, "not all clients have told the new leader their locks yet"))
            }
        })?
    }

    /// Figures of `nodes` as their heartbeats gave them.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn figures(&self, nodes: &[Node]) -> Result<Vec<NodeFigures>, RpcError> {
        self.lead(|soft, now| nodes.iter().map(|node| soft.figures(node, now)).collect())
    }

    /// Space that is not free yet although no file uses it, as far as only the leader knows.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn held(&self) -> Result<Held, RpcError> {
        self.lead(|soft, _| Held {
            pinned: soft.pinned,
            holder: soft.pinned.oldest.and_then(|(_, file)| soft.sessions.holders(file).first().copied()),
            unknown: soft.unknown.len() as u64,
            given_up: soft.given_up,
        })
    }

    /// Chunks on storage nodes that no version lists, as far as this leader has heard of them.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn unknown_chunks(&self) -> Result<u64, RpcError> {
        self.lead(|soft, _| soft.unknown.len() as u64 + soft.unknown.dropped())
    }

    /// The sessions that have each of `files` open.
    ///
    /// # Errors
    /// This node does not lead.
    pub fn readers(&self, files: &[FileId]) -> Result<Vec<(FileId, SessionId)>, RpcError> {
        self.lead(|soft, _| {
            let sessions = &soft.sessions;
            files.iter().flat_map(|file| sessions.holders(*file).into_iter().map(|holder| (*file, holder))).collect()
        })
    }

    /// Has `command` agreed on; a refusal becomes an error.
    pub(crate) async fn apply(&self, command: Command) -> Result<Reply, RpcError> {
        self.inner.raft.propose(command).await?.map_err(|refusal| RpcError::new(refusal.code, refusal.message))
    }

    /// Runs `f` on the soft state of the present leadership, which is made new if it belongs to an older one.
    fn lead<R>(&self, f: impl FnOnce(&mut Soft, Instant) -> R) -> Result<R, RpcError> {
        let term = {
            let leadership = self.inner.leadership.borrow();
            leadership.is_leader.then_some(leadership.term)
        };
        let term = term.ok_or_else(|| self.inner.raft.not_leader())?;
        let now = Instant::now();
        let mut guard = self.inner.soft.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.as_ref().is_some_and(|soft| soft.term != term) {
            *guard = None;
        }
        Ok(f(guard.get_or_insert_with(|| Soft::new(term, &self.inner.settings, now)), now))
    }

    /// Forgets the soft state: this node does not lead any more.
    fn step_down(&self) {
        self.inner.soft.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.inner.recorder.forget();
    }

    /// Brings the agreed state of a node in line with what the failure detector says.
    async fn judge(&self, node: NodeId) -> Result<(), RpcError> {
        let agreed = self.inner.raft.peek(|state| {
            let node = state.node(node).filter(|node| node.is_member())?;
            Some((node.health, node.is_excused(unix_now_ns())))
        });
        let Some((from, excused)) = agreed else { return Ok(()) };
        let Some(health) = self.lead(|soft, now| soft.detector.judge(node, from, excused, now))? else { return Ok(()) };
        let silent = self.lead(|soft, now| soft.detector.silence(node, now))?;
        match self.apply(Command::SetNodeHealth { node, health, from }).await {
            Ok(_) => {}
            // Somebody else, an administrator or a heartbeat at the same moment, was faster.
            Err(error) if error.code == ErrorCode::Stale => return Ok(()),
            Err(error) => return Err(error),
        }
        match health {
            Health::Dead => tracing::warn!(%node, %from, ?silent, "storage node is dead, its copies are replaced"),
            Health::Alive | Health::Suspect => {
                tracing::info!(%node, %from, to = %health, ?silent, "storage node changed state");
            }
        }
        if health == Health::Alive {
            self.lead(|soft, now| {
                self.note_return(soft, node, now);
                if from == Health::Dead {
                    soft.inventories.restart(node, now);
                }
            })?;
        }
        Ok(())
    }
}

fn session_expired(session: SessionId) -> RpcError {
    RpcError::new(ErrorCode::SessionExpired, format!("session {session} has ended"))
}

/// This process's clock, nanoseconds since the Unix epoch.
pub(crate) fn unix_now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
