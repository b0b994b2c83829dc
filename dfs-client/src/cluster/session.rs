//! The session: opened once, renewed every sixth of its lease, replaced when the cluster says it has ended.

use std::{
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dfs_common::{ClusterId, ErrorCode, FileId, InodeId, SessionId, lock::Lock};
use dfs_proto::{convert, v1};
use futures::future::BoxFuture;
use rand::Rng as _;
use tokio::time::Instant;

use super::{
    Cluster, metadata,
    pins::{Pin, Pins},
    seqs::Seqs,
};
use crate::{Error, Settings, locks::HeldLocks};

/// Renewals per lease: five may be lost before the session ends.
const RENEWALS_PER_LEASE: u32 = 6;
/// Longest time the farewell of [`Cluster::close_session`] may take; the lease ends the session anyway.
const FAREWELL: Duration = Duration::from_secs(2);

/// One session. Writers keep the one they were opened in.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) seqs: Arc<Seqs>,
    lost: AtomicBool,
}

impl Session {
    /// Whether the cluster has ended it.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(crate) fn mark_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }
}

/// What is known of the cluster once a session was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) cluster_id: ClusterId,
    pub(crate) settings: Settings,
}

#[derive(Debug, Default)]
pub(crate) struct Sessions {
    current: RwLock<Option<Arc<Session>>>,
    known: RwLock<Option<Known>>,
    opening: tokio::sync::Mutex<()>,
    renewing: AtomicBool,
    pub(crate) pins: Arc<Pins>,
    pub(crate) locks: HeldLocks,
}

impl Sessions {
    /// None yet, but locks that a predecessor held in the one to come.
    pub(crate) fn with_locks(held: Vec<(InodeId, Lock)>) -> Self {
        Self { locks: HeldLocks::with(held), ..Self::default() }
    }

    pub(crate) fn known(&self) -> Option<Known> {
        *self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn live(&self) -> Option<Arc<Session>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().filter(|session| !session.is_lost())
    }

    pub(crate) fn pin(&self, file_id: FileId) -> Pin {
        self.pins.pin(file_id)
    }
}

impl Cluster {
    /// The session, opened now if there is none.
    pub(crate) async fn session(self: &Arc<Self>) -> Result<Arc<Session>, Error> {
        if let Some(session) = self.sessions.live() {
            return Ok(session);
        }
        self.session_slow().await
    }

    // Boxed, because the renewal that an opening starts opens sessions itself: the types would contain each other.
    fn session_slow(self: &Arc<Self>) -> BoxFuture<'_, Result<Arc<Session>, Error>> {
        Box::pin(async move {
            let _guard = self.sessions.opening.lock().await;
            match self.sessions.live() {
                Some(session) => Ok(session),
                None => self.open_session().await,
            }
        })
    }

    fn start_renewal(self: &Arc<Self>, lease: Duration) {
        if !self.sessions.renewing.swap(true, Ordering::AcqRel) {
            let cluster = self.clone();
            let renewal: BoxFuture<'static, ()> = Box::pin(cluster.renew_for_ever(lease));
            self.tasks.spawn(renewal);
        }
    }

    async fn open_session(self: &Arc<Self>) -> Result<Arc<Session>, Error> {
        let client_id = self.will.client_id();
        let request = v1::OpenSessionRequest {
            client_id: convert::id_bytes(client_id.as_bytes()),
            description: self.options.description.clone(),
        };
        let open = || "opening a session".to_owned();
        let answer = self.call(&open, request, |c, q| async move { metadata(c).open_session(q).await }).await?;
        self.endpoints.learn(&answer.meta_addresses);
        let settings = answer.settings.unwrap_or_default();
        let known = Known {
            cluster_id: convert::cluster_id(&answer.cluster_id)?,
            settings: Settings {
                chunk_size: settings.chunk_size,
                replication: settings.replication,
                write_quorum: settings.write_quorum,
            },
        };
        self.learn(known)?;
        let id = SessionId(answer.session_id);
        let (seqs_after, to_end, ended) = self.will.opened(client_id, id);
        let session = Arc::new(Session { id, seqs: Arc::new(Seqs::after(seqs_after)), lost: AtomicBool::new(false) });
        if let Some(ended) = ended {
            let locks = self.sessions.locks.lost(ended);
            self.will.unlocked();
            tracing::warn!(session = %ended, locks, "the session of the process before has ended, and with it its locks");
        }
        for (ino, file_id) in to_end {
            crate::write::end_pending(self, &session, ino, file_id);
        }
        *self.sessions.current.write().unwrap_or_else(PoisonError::into_inner) = Some(session.clone());
        self.start_renewal(Duration::from_millis(answer.lease_ms.max(1)));
        Ok(session)
    }

    /// The cluster behind the addresses must stay the same one.
    fn learn(&self, known: Known) -> Result<(), Error> {
        if !(4096..=1 << 30).contains(&known.settings.chunk_size) {
            let message = format!("the cluster has chunks of {} bytes", known.settings.chunk_size);
            return Err(Error::new(ErrorCode::Incompatible, message));
        }
        let mut slot = self.sessions.known.write().unwrap_or_else(PoisonError::into_inner);
        match *slot {
            Some(before) if before.cluster_id != known.cluster_id => {
                let message = format!("expected cluster {}, found {}", before.cluster_id, known.cluster_id);
                Err(Error::new(ErrorCode::WrongCluster, message))
            }
            _ => {
                *slot = Some(known);
                Ok(())
            }
        }
    }

    async fn renew_for_ever(self: Arc<Self>, mut lease: Duration) {
        let mut renewal = Renewal::default();
        loop {
            // A tenth of jitter spreads the renewals of clients that were started together.
            let pause = (lease / RENEWALS_PER_LEASE).mul_f64(rand::rng().random_range(0.9..1.0));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
            tokio::select! {
                renewed = self.renew(&mut renewal, lease) => lease = renewed.unwrap_or(lease),
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn renew(self: &Arc<Self>, renewal: &mut Renewal, lease: Duration) -> Option<Duration> {
        let session = match self.session().await {
            Ok(session) => session,
            Err(error) => {
                tracing::warn!(%error, "there is no session; trying again");
                return None;
            }
        };
        if renewal.session != Some(session.id) {
            *renewal = Renewal { session: Some(session.id), full: true, term: 0 };
        }
        // Once more at most: a leader that is not satisfied by a full set is asked again at the next turn.
        let mut lease = lease;
        for _ in 0..2 {
            lease = self.renew_once(&session, renewal, lease).await?;
            if !renewal.full {
                break;
            }
        }
        Some(lease)
    }

    async fn renew_once(
        self: &Arc<Self>,
        session: &Arc<Session>,
        renewal: &mut Renewal,
        lease: Duration,
    ) -> Option<Duration> {
        let difference = self.sessions.pins.difference(renewal.full);
        let wire = |ids: &[FileId]| ids.iter().map(|id| convert::id_bytes(id.as_bytes())).collect::<Vec<Bytes>>();
        let request = v1::RenewSessionRequest {
            session_id: session.id.0,
            full: difference.full,
            pins: wire(&difference.pins),
            unpins: wire(&difference.unpins),
            leader_term: renewal.term,
            locks: if difference.full { self.sessions.locks.of_session(session.id) } else { vec![] },
        };
        let what = || format!("renewing session {}", session.id);
        let deadline = Instant::now() + lease.min(self.options.deadline);
        let renew = |c, q| async move { metadata(c).renew_session(q).await };
        match self.call_until(deadline, &what, request, renew).await {
            Ok(answer) => {
                self.endpoints.learn(&answer.meta_addresses);
                let was_full = difference.full;
                if was_full || (answer.leader_term == renewal.term && !answer.need_full) {
                    self.sessions.pins.acknowledged(difference);
                }
                renewal.full = answer.need_full || (!was_full && answer.leader_term != renewal.term);
                renewal.term = answer.leader_term;
                Some(Duration::from_millis(answer.lease_ms.max(1)))
            }
            Err(failed) if failed.error.code == ErrorCode::SessionExpired => {
                self.session_lost(session);
                // Opened at once, so that open versions are pinned again before they can be collected.
                self.session().await.ok();
                None
            }
            Err(failed) => {
                tracing::warn!(error = %failed.error, "the session could not be renewed; trying again");
                None
            }
        }
    }

    /// The cluster says that `session` has ended.
    pub(crate) fn session_lost(&self, session: &Arc<Session>) {
        if !session.is_lost() {
            let locks = self.sessions.locks.lost(session.id);
            self.will.unlocked();
            tracing::warn!(session = %session.id, locks, "the session has ended: files being written in it are lost, and locks");
        }
        session.mark_lost();
    }

    /// Tells the cluster that the session is not needed any more; its lease would end it too.
    pub(crate) async fn close_session(self: &Arc<Self>) {
        let session = self.sessions.current.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(session) = session.filter(|session| !session.is_lost()) else { return };
        session.mark_lost();
        let request = v1::CloseSessionRequest { session_id: session.id.0 };
        let what = || format!("closing session {}", session.id);
        let deadline = Instant::now() + FAREWELL.min(self.options.deadline);
        let close = |c, q| async move { metadata(c).close_session(q).await };
        if let Err(failed) = self.call_until(deadline, &what, request, close).await {
            tracing::info!(error = %failed.error, "the session ends with its lease instead");
        }
    }
}

/// State of the renewals of one session.
#[derive(Debug, Default)]
struct Renewal {
    session: Option<SessionId>,
    full: bool,
    term: u64,
}
