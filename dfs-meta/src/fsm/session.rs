//! Sessions: exact-once mutations, and what ends with a client.

use std::sync::Arc;

use dfs_common::{ErrorCode, FileId, SessionId, Uuid};
use imbl::OrdMap;

use super::{
    command::{Op, Outcome, Refusal, Reply},
    record::Session,
    state::State,
    version::Remains,
};

/// Most outcomes kept for one session. A client acknowledges with every call, so it has at most as many open as it has calls
/// in flight; the bound is for a client that does not.
pub(super) const OUTCOMES_MAX: usize = 4096;
/// Longest description of a session in bytes.
const DESCRIPTION_MAX: usize = 1024;

impl State {
    pub(super) fn open_session(&mut self, now_ns: i64, client_id: Uuid, description: &str) -> Outcome {
        if let Some(session) = self.sessions_by_client.get(&client_id) {
            return Ok(Reply::Session { session: *session });
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let end = (0..=DESCRIPTION_MAX.min(description.len()))
            .rev()
            .find(|at| description.is_char_boundary(*at))
            .unwrap_or(0);
        let session = Session {
            id,
            client_id,
            description: description[..end].to_owned(),
            opened_ns: now_ns,
            acked: 0,
            outcomes: OrdMap::new(),
        };
        self.sessions.insert(id, Arc::new(session));
        self.sessions_by_client.insert(client_id, id);
        Ok(Reply::Session { session: id })
    }

    /// Drops the session's pending versions, with them its unpublished inodes and reservations, and then itself.
    pub(super) fn end_session(&mut self, now_ns: i64, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        self.sessions_by_client.remove(&session.client_id);
        let from = (id, FileId([0; 16]));
        let pending: Vec<FileId> = self
            .pending_by_session
            .range(from..)
            .take_while(|(owner, _)| *owner == id)
            .map(|(_, file)| *file)
            .collect();
        for file_id in pending {
            // A client that died may come again and go on with its upload.
            self.end_pending(now_ns, file_id, Remains::Left);
        }
    }

    /// One client operation, exactly once.
    ///
    /// A refusal that invites a retry is not remembered: it changed nothing, and the client repeats the same number.
    pub(super) fn mutate(&mut self, now_ns: i64, id: SessionId, seq: u64, acked: u64, op: &Op) -> Outcome {
        let Some(session) = self.sessions.get_mut(&id).map(Arc::make_mut) else {
            return Err(Refusal::new(ErrorCode::SessionExpired, format!("session {id} has ended")));
        };
        if acked >= seq {
            return Err(Refusal::new(ErrorCode::InvalidArgument, format!("seq {seq} is acknowledged by itself")));
        }
        session.acknowledge(acked);
        if seq <= session.acked {
            let acked = session.acked;
            return Err(Refusal::new(
                ErrorCode::Stale,
                format!("seq {seq} of session {id}: acknowledged up to {acked}"),
            ));
        }
        if let Some(outcome) = session.outcomes.get(&seq) {
            return outcome.as_ref().clone();
        }
        if session.outcomes.len() >= OUTCOMES_MAX {
            let message = format!("session {id} has {OUTCOMES_MAX} unacknowledged operations");
            return Err(Refusal::new(ErrorCode::Overloaded, message));
        }
        let outcome = self.run(now_ns, id, op);
        let is_final = outcome.as_ref().map_or_else(|refusal| !refusal.code.is_retryable(), |_| true);
        if is_final && let Some(session) = self.sessions.get_mut(&id).map(Arc::make_mut) {
            session.outcomes.insert(seq, Arc::new(outcome.clone()));
        }
        outcome
    }
}

impl Session {
    /// Forgets the outcomes that the client has.
    fn acknowledge(&mut self, acked: u64) {
        self.acked = self.acked.max(acked);
        while let Some(first) = self.outcomes.get_min().map(|(seq, _)| *seq).filter(|seq| *seq <= self.acked) {
            self.outcomes.remove(&first);
        }
    }
}
