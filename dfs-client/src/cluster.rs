//! One metadata call: to the leader, retried until the operation's deadline.
//!
//! ```text
//!   call ── attempt at the current endpoint ── answer ──► done
//!    ▲          │ NotLeader(hint)    -> go there at once
//!    │          │ broken, Unavailable -> next endpoint, short delay
//!    │          │ silent for PROBE_AFTER -> ask the others who leads; go there if one does
//!    └─ delay ◄─┘ Overloaded, NotEnoughNodes -> same endpoint, longer delay
//! ```
//!
//! Invariant: only the endpoint that failed is left; a burst of failures at one endpoint rotates once.

mod endpoints;
mod mutate;
mod pins;
mod seqs;
mod session;

use std::{sync::Arc, time::Duration};

use dfs_common::{
    ErrorCode,
    backoff::{Backoff, Policy},
};
use dfs_proto::{
    status::RpcError,
    v1::{GetAttrRequest, metadata_service_client::MetadataServiceClient},
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Response, Status, transport::Channel};

pub(crate) use endpoints::{Current, Endpoints};
pub use pins::Pin;
pub(crate) use session::{Session, Sessions};

use crate::{
    Error, Options,
    error::Attempt,
    estate::{Estate, Will},
};

/// A call that is not answered for this long makes the client ask the other metadata nodes whether one of them leads.
/// Longer than any healthy answer, short enough that a frozen leader costs less than a second.
const PROBE_AFTER: Duration = Duration::from_millis(700);
/// How long a probed node may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Delays while a leader is looked for: elections take about a second, so many short delays find the new one soon.
const SEARCH: Policy = Policy { initial: Duration::from_millis(20), max: Duration::from_millis(250) };
/// Redirects followed without a delay; two nodes that point at each other must not make a client spin.
const REDIRECTS_AT_ONCE: u32 = 3;
/// Largest answer accepted, bytes: the layout of a file of a million chunks fits.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// Mutations in flight at a time.
const MUTATIONS_MAX: usize = 512;

/// The metadata service behind a channel.
pub(crate) fn metadata(channel: Channel) -> MetadataServiceClient<Channel> {
    MetadataServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// A failed operation, and whether some attempt of it may have taken effect.
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) ambiguous: bool,
}

/// The metadata cluster as this client sees it.
pub(crate) struct Cluster {
    pub(crate) options: Options,
    pub(crate) endpoints: Endpoints,
    pub(crate) sessions: Sessions,
    pub(crate) will: Will,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    mutations: Arc<Semaphore>,
    probing: Arc<Semaphore>,
}

impl Cluster {
    pub(crate) fn new(options: Options, estate: Option<Estate>) -> Result<Arc<Self>, Error> {
        let (will, locks) = estate.map(Will::new).unwrap_or_default();
        Ok(Arc::new(Self {
            endpoints: Endpoints::new(&options.meta, options.connect_timeout)?,
            sessions: Sessions::with_locks(locks),
            will,
            options,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            mutations: Arc::new(Semaphore::new(MUTATIONS_MAX)),
            probing: Arc::new(Semaphore::new(1)),
        }))
    }

    /// Calls `method` at the leader until it answers. `what` names operation and object for the error.
    pub(crate) async fn call<Q, R, F, Fut>(
        self: &Arc<Self>,
        what: &(dyn Fn() -> String + Sync),
        request: Q,
        method: F,
    ) -> Result<R, Error>
    where
        Q: Clone,
        F: Fn(Channel, Q) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = Instant::now() + self.options.deadline;
        self.call_until(deadline, what, request, method).await.map_err(|failed| failed.error)
    }

    pub(crate) async fn call_until<Q, R, F, Fut>(
        self: &Arc<Self>,
        deadline: Instant,
        what: &(dyn Fn() -> String + Sync),
        request: Q,
        method: F,
    ) -> Result<R, Failed>
    where
        Q: Clone,
        F: Fn(Channel, Q) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let mut retries = Retries::new(&self.options, deadline);
        loop {
            let seen = self.endpoints.current();
            let error = match self.attempt(&seen, deadline, request.clone(), &method).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let redirected = self.endpoints.failed(&seen, &error);
            let Some(delay) = retries.after(&seen.address, &error, redirected) else {
                return Err(retries.give_up(what(), error, self.options.deadline));
            };
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.stop.cancelled() => return Err(retries.give_up(what(), closed(), self.options.deadline)),
            }
        }
    }

    async fn attempt<Q, R, F, Fut>(
        self: &Arc<Self>,
        seen: &Current,
        deadline: Instant,
        request: Q,
        method: &F,
    ) -> Result<R, RpcError>
    where
        F: Fn(Channel, Q) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let channel = self.endpoints.channel(&seen.address)?;
        let timeout = self.options.rpc_timeout.min(deadline.saturating_duration_since(Instant::now()));
        let answer = tokio::time::timeout(timeout, method(channel, request));
        tokio::pin!(answer);
        let proven = self.endpoints.proven_other(seen);
        tokio::pin!(proven);
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return flatten(answer, timeout),
                leader = &mut proven => {
                    return Err(RpcError::new(ErrorCode::Indeterminate, format!("no answer, and {leader} leads now")));
                }
                // Again and again: when the first round asks, the others may not have elected anybody yet.
                () = tokio::time::sleep(PROBE_AFTER) => self.probe(seen),
            }
        }
    }

    /// Asks the other configured nodes whether one of them leads. At most one such round runs at a time.
    fn probe(self: &Arc<Self>, seen: &Current) {
        let Ok(permit) = self.probing.clone().try_acquire_owned() else { return };
        let (cluster, seen) = (self.clone(), seen.clone());
        self.tasks.spawn(async move {
            let _permit = permit;
            let others = cluster.endpoints.others(&seen.address);
            let mut probes: FuturesUnordered<_> = others.into_iter().map(|address| cluster.leads(address)).collect();
            while let Some(leader) = probes.next().await {
                if let Some(leader) = leader {
                    cluster.endpoints.proven(&seen, &leader);
                    return;
                }
            }
        });
    }

    /// The address again if it leads: only a leader with its lease answers a read.
    async fn leads(&self, address: Arc<str>) -> Option<Arc<str>> {
        let channel = self.endpoints.channel(&address).ok()?;
        let request = GetAttrRequest { ino: dfs_common::InodeId::ROOT.0, session_id: 0 };
        let answer = tokio::time::timeout(PROBE_TIMEOUT, async { metadata(channel).get_attr(request).await }).await;
        matches!(answer, Ok(Ok(_))).then_some(address)
    }
}

fn flatten<R>(
    answer: Result<Result<Response<R>, Status>, tokio::time::error::Elapsed>,
    timeout: Duration,
) -> Result<R, RpcError> {
    match answer {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.into()),
        Err(_) => Err(RpcError::new(ErrorCode::TimedOut, format!("no answer within {timeout:?}"))),
    }
}

fn closed() -> RpcError {
    RpcError::new(ErrorCode::Unavailable, "this client is being closed")
}

/// State of one operation's retries.
struct Retries {
    deadline: Instant,
    attempts_left: u32,
    search: Backoff,
    patient: Backoff,
    redirects: u32,
    tried: Vec<Attempt>,
    ambiguous: bool,
}

impl Retries {
    fn new(options: &Options, deadline: Instant) -> Self {
        let search = Policy { initial: SEARCH.initial.min(options.retry.initial), max: SEARCH.max };
        Self {
            deadline,
            attempts_left: options.retry_attempts_max.unwrap_or(u32::MAX).max(1),
            search: Backoff::new(search),
            patient: Backoff::new(options.retry),
            redirects: 0,
            tried: Vec::new(),
            ambiguous: false,
        }
    }

    /// How long to wait before the next attempt; `None`: the error is final or the time is up.
    fn after(&mut self, endpoint: &str, error: &RpcError, redirected: bool) -> Option<Duration> {
        if !error.code.is_retryable() {
            return None;
        }
        Error::note(&mut self.tried, endpoint, error);
        self.ambiguous |= matches!(error.code, ErrorCode::Indeterminate | ErrorCode::TimedOut);
        self.attempts_left -= 1;
        let delay = match error.code {
            ErrorCode::NotLeader if redirected && self.redirects < REDIRECTS_AT_ONCE => {
                self.redirects += 1;
                Duration::ZERO
            }
            ErrorCode::Overloaded | ErrorCode::NotEnoughNodes => self.patient.next_delay(&mut rand::rng()),
            _ => self.search.next_delay(&mut rand::rng()),
        };
        (self.attempts_left > 0 && Instant::now() + delay < self.deadline).then_some(delay)
    }

    fn give_up(self, what: String, error: RpcError, limit: Duration) -> Failed {
        let retryable = error.code.is_retryable();
        let code = match error.code {
            ErrorCode::NotLeader | ErrorCode::Unavailable | ErrorCode::Indeterminate | ErrorCode::TimedOut => {
                if self.ambiguous { ErrorCode::TimedOut } else { ErrorCode::Unavailable }
            }
            code => code,
        };
        let message = if retryable {
            format!("{what}: {} (gave up, limit {limit:?})", error.message)
        } else {
            format!("{what}: {}", error.message)
        };
        Failed { error: Error { code, message, tried: self.tried, is_local: false }, ambiguous: self.ambiguous }
    }
}
