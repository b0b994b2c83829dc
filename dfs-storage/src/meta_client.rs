//! Calls to the metadata leader.
//!
//! The last node that answered as leader is asked first. A node that is not the leader names it; that name is followed, also
//! if it was not configured, because the set of metadata nodes may have grown since. A node that fails is left for the next
//! one, but only if it is still the current one: a burst of failures rotates once. The next ones are those that the cluster named
//! last, then the configured ones.

use std::{
    future::Future,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dfs_common::{
    ErrorCode,
    backoff::{Backoff, Policy},
};
use dfs_proto::{status::RpcError, transport, v1::metadata_service_client::MetadataServiceClient};
use lru::LruCache;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Response, Status, transport::Channel};

/// Time for a connection. Metadata nodes are near; a dead one must not use up the deadline of a call.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections kept: more than any set of metadata nodes.
const CHANNELS_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");
/// Largest answer accepted, bytes: a heartbeat answer with tens of thousands of deletions.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Answers "ask that one" followed without a pause. Two nodes that name each other must not be asked in a tight loop.
const FOLLOWED_AT_ONCE_MAX: u32 = 3;

/// Typed client handed to the calls of [`MetaClient::call`].
pub type Client = MetadataServiceClient<Channel>;

/// A client of the metadata cluster.
#[derive(Debug)]
pub struct MetaClient {
    seeds: Vec<String>,
    attempt_timeout: Duration,
    backoff: Policy,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    current: String,
    next_seed: usize,
    /// Those that the cluster named last, then those of `seeds` that are not among them.
    known: Vec<String>,
    channels: LruCache<String, Channel>,
}

impl MetaClient {
    /// A client of the nodes at `seeds` (`host:port`, at least one). One attempt takes at most `attempt_timeout`.
    ///
    /// # Errors
    /// An address is malformed or there is none.
    pub fn new(seeds: Vec<String>, attempt_timeout: Duration, backoff: Policy) -> Result<Self, RpcError> {
        for address in &seeds {
            transport::check_address(address).map_err(|e| invalid(e.to_string()))?;
        }
        let current = seeds.first().cloned().ok_or_else(|| invalid("no metadata address is given".into()))?;
        let known = seeds.clone();
        let state = Mutex::new(State { current, next_seed: 1, known, channels: LruCache::new(CHANNELS_MAX) });
        Ok(Self { seeds, attempt_timeout, backoff, state })
    }

    /// The cluster says that its voters are at `addresses`. Gives whether that is news.
    pub fn learn(&self, addresses: &[String]) -> bool {
        let mut all: Vec<String> =
            addresses.iter().filter(|address| transport::check_address(address).is_ok()).cloned().collect();
        if all.is_empty() {
            return false;
        }
        let rest: Vec<_> = self.seeds.iter().filter(|seed| !all.contains(seed)).cloned().collect();
        all.extend(rest);
        let mut state = self.state();
        let is_new = state.known != all;
        state.known = all;
        is_new
    }

    /// Leaves the node that is asked at the moment: it answers, but must not be listened to.
    pub fn leave(&self) {
        let current = self.state().current.clone();
        self.rotate(&current);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the leader; looks for it, and repeats with backoff what may succeed later, until `deadline` has passed.
    ///
    /// # Errors
    /// The leader's answer, or the last failure with every address tried.
    pub async fn call<T, F, A>(&self, deadline: Duration, operation: F) -> Result<T, RpcError>
    where
        F: Fn(Client) -> A,
        A: Future<Output = Result<Response<T>, Status>>,
    {
        let end = Instant::now() + deadline;
        let mut backoff = Backoff::new(self.backoff);
        let mut tried: Vec<(String, RpcError)> = Vec::new();
        let mut followed = 0;
        loop {
            let (address, channel) = self.current()?;
            let client = MetadataServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let limit = self.attempt_timeout.min(end.saturating_duration_since(Instant::now()));
            let error = match timeout(limit, operation(client)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => RpcError::from(status),
                Err(_) => RpcError::new(ErrorCode::TimedOut, format!("no answer within {limit:?}")),
            };
            let at_once = match (error.code, &error.leader) {
                (ErrorCode::NotLeader, Some(leader)) if *leader != address => {
                    followed += 1;
                    self.follow(&address, leader) && followed <= FOLLOWED_AT_ONCE_MAX
                }
                (code, _) if code.is_retryable() => {
                    self.rotate(&address);
                    false
                }
                _ => return Err(error),
            };
            tried.retain(|(known, _)| *known != address);
            tried.push((address, error));
            let delay = if at_once { Duration::ZERO } else { backoff.next_delay(&mut rand::rng()) };
            if Instant::now() + delay >= end {
                return Err(summary(tried));
            }
            sleep(delay).await;
        }
    }

    fn current(&self) -> Result<(String, Channel), RpcError> {
        let mut state = self.state();
        let address = state.current.clone();
        if let Some(channel) = state.channels.get(&address) {
            return Ok((address, channel.clone()));
        }
        let channel = transport::connect(&address, CONNECT_TIMEOUT).map_err(|e| invalid(e.to_string()))?;
        state.channels.put(address.clone(), channel.clone());
        Ok((address, channel))
    }

    /// Goes to the leader that `asked` named; `false` if that is no address.
    fn follow(&self, asked: &str, leader: &str) -> bool {
        if transport::check_address(leader).is_err() {
            self.rotate(asked);
            return false;
        }
        let mut state = self.state();
        if state.current == asked {
            state.current = leader.to_owned();
        }
        true
    }

    fn rotate(&self, failed: &str) {
        let mut state = self.state();
        if state.current == failed {
            // The failing one may come up again in turn, but not right now if there is another.
            for _ in 0..state.known.len() {
                let next = state.known[state.next_seed % state.known.len()].clone();
                state.next_seed += 1;
                if next != failed {
                    state.current = next;
                    return;
                }
            }
            state.current = state.known[0].clone();
        }
    }
}

fn invalid(message: String) -> RpcError {
    RpcError::new(ErrorCode::InvalidArgument, message)
}

/// The last error with everything that was tried.
fn summary(mut tried: Vec<(String, RpcError)>) -> RpcError {
    let list: Vec<_> = tried.iter().map(|(address, error)| format!("{address}: {}", error.message)).collect();
    let code = tried.pop().map_or(ErrorCode::Unavailable, |(_, error)| error.code);
    RpcError::new(code, format!("no metadata leader answered ({})", list.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client() -> MetaClient {
        let seeds = ["a:1", "b:1", "c:1"].map(String::from).to_vec();
        MetaClient::new(seeds, Duration::from_secs(1), Policy::default()).expect("good addresses")
    }

    #[tokio::test]
    async fn a_burst_of_failures_rotates_once() {
        let client = client();
        client.rotate("a:1");
        client.rotate("a:1");
        assert_eq!(client.current().expect("channel").0, "b:1");
        client.follow("b:1", "x:9");
        assert_eq!(client.current().expect("channel").0, "x:9");
        client.follow("b:1", "y:9");
        assert_eq!(client.current().expect("channel").0, "x:9");
        client.rotate("x:9");
        assert_eq!(client.current().expect("channel").0, "c:1");
    }

    #[test]
    fn named_addresses_come_before_the_configured_ones() {
        let client = client();
        assert!(client.learn(&["d:1".into(), "b:1".into(), "nonsense".into()]));
        assert!(!client.learn(&["d:1".into(), "b:1".into()]) && !client.learn(&[]));
        assert_eq!(client.state().known, ["d:1", "b:1", "a:1", "c:1"]);
    }

    #[test]
    fn bad_addresses_are_refused() {
        for seeds in [vec![], vec!["nonsense".to_owned()]] {
            assert!(MetaClient::new(seeds, Duration::from_secs(1), Policy::default()).is_err());
        }
    }
}
