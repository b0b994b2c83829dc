//! Mutations: each has its effect once.
//!
//! A mutation runs in a task of its own, so that a caller who stops waiting never leaves a sequence number half used: the
//! task retries under that number until it is answered or its deadline has passed.

use std::sync::Arc;

use dfs_common::ErrorCode;
use dfs_proto::v1::{MutateRequest, MutateResponse, mutate_request::Op};
use tokio::time::Instant;

use super::{Cluster, Failed, Session, metadata};
use crate::Error;

impl Cluster {
    /// A mutation that belongs to no pending version: if the session turns out to have ended before anything was done, it is
    /// repeated in a new one.
    pub(crate) async fn mutate(
        self: &Arc<Self>,
        what: String,
        op: Op,
    ) -> Result<(Arc<Session>, MutateResponse), Error> {
        let cluster = self.clone();
        self.in_background(async move {
            for last in [false, true] {
                let session = cluster.session().await?;
                match cluster.mutate_once(&session, &what, op.clone()).await {
                    Ok(answer) => return Ok((session, answer)),
                    Err(failed) => {
                        let ended = failed.error.code == ErrorCode::SessionExpired;
                        if !ended || failed.ambiguous || last {
                            return Err(failed.error);
                        }
                    }
                }
            }
            Err(Error::new(ErrorCode::SessionExpired, format!("{what}: the session ended twice")))
        })
        .await
    }

    /// A mutation of a pending version, which lives and dies with `session`.
    pub(crate) async fn mutate_in(
        self: &Arc<Self>,
        session: &Arc<Session>,
        what: String,
        op: Op,
    ) -> Result<MutateResponse, Error> {
        let (cluster, session) = (self.clone(), session.clone());
        self.in_background(async move { cluster.mutate_once(&session, &what, op).await.map_err(|failed| failed.error) })
            .await
    }

    async fn in_background<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        match self.tasks.spawn(work).await {
            Ok(outcome) => outcome,
            Err(error) => Err(Error::new(ErrorCode::Internal, format!("a mutation's task failed: {error}"))),
        }
    }

    async fn mutate_once(
        self: &Arc<Self>,
        session: &Arc<Session>,
        what: &str,
        op: Op,
    ) -> Result<MutateResponse, Failed> {
        let deadline = Instant::now() + self.options.deadline;
        let waiting = async {
            let permit = self.mutations.clone().acquire_owned().await;
            (permit, session.seqs.next().await)
        };
        let Ok((_permit, seq)) = tokio::time::timeout_at(deadline, waiting).await else {
            let message = format!("{what}: too many mutations are waiting for an answer");
            return Err(Failed { error: Error::new(ErrorCode::TimedOut, message), ambiguous: false });
        };
        let request =
            MutateRequest { session_id: session.id.0, seq: seq.number, acked: session.seqs.acked(), op: Some(op) };
        let name = || what.to_owned();
        let answer = self.call_until(deadline, &name, request, |c, q| async move { metadata(c).mutate(q).await }).await;
        if let Err(failed) = &answer
            && failed.error.code == ErrorCode::SessionExpired
        {
            self.session_lost(session);
        }
        answer
    }
}
