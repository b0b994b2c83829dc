//! Which metadata node is asked.
//!
//! The addresses that a client was started with only find the cluster. The cluster names its voters in every renewal of the session,
//! and these take their place: so a mount outlives every member that there was when it was made. The first addresses are tried
//! when none of the others answers.
//!
//! Lock order: no two of `channels`, `known` and `current` are held together.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dfs_common::ErrorCode;
use dfs_proto::{status::RpcError, transport};
use lru::LruCache;
use tokio::{sync::watch, time::Instant};
use tonic::transport::Channel;

use crate::Error;

/// Channels kept: those of a large metadata tier, and a few hinted addresses.
const CHANNELS_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");
/// A hint to a node that failed this recently is not followed: followers name a dead leader until they elect another.
const DISTRUST: Duration = Duration::from_millis(500);

/// The endpoint asked at the moment.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    pub(crate) address: Arc<str>,
    generation: u64,
    /// It answered a probe as leader.
    proven: bool,
}

#[derive(Debug)]
pub(crate) struct Endpoints {
    configured: Vec<Arc<str>>,
    /// Those that the cluster named last, then those of `configured` that are not among them.
    known: Mutex<Vec<Arc<str>>>,
    connect_timeout: Duration,
    current: watch::Sender<Current>,
    /// The last endpoint that failed, and when.
    failed: Mutex<Option<(Arc<str>, Instant)>>,
    channels: Mutex<LruCache<Arc<str>, Channel>>,
}

impl Endpoints {
    /// # Errors
    /// No address, or a malformed one.
    pub(crate) fn new(configured: &[String], connect_timeout: Duration) -> Result<Self, Error> {
        for address in configured {
            transport::check_address(address)
                .map_err(|error| Error::new(ErrorCode::InvalidArgument, format!("metadata node {error}")))?;
        }
        let configured: Vec<Arc<str>> = configured.iter().map(|address| Arc::from(address.as_str())).collect();
        let Some(first) = configured.first() else {
            let message = "no metadata node is given: name them with --meta host:port,... or DFS_META_ADDRS";
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        };
        let first = Current { address: first.clone(), generation: 0, proven: false };
        Ok(Self {
            known: Mutex::new(configured.clone()),
            configured,
            connect_timeout,
            current: watch::Sender::new(first),
            failed: Mutex::new(None),
            channels: Mutex::new(LruCache::new(CHANNELS_MAX)),
        })
    }

    pub(crate) fn current(&self) -> Current {
        self.current.borrow().clone()
    }

    /// The cluster says that its voters are at `addresses`.
    pub(crate) fn learn(&self, addresses: &[String]) {
        let named: Vec<Arc<str>> = addresses
            .iter()
            .filter(|address| transport::check_address(address).is_ok())
            .map(|address| Arc::from(address.as_str()))
            .collect();
        // An answer of an older metadata node has none.
        if named.is_empty() {
            return;
        }
        let mut all = named;
        let rest: Vec<_> = self.configured.iter().filter(|address| !all.contains(address)).cloned().collect();
        all.extend(rest);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != all {
            tracing::debug!(?addresses, "metadata nodes of the cluster");
            *known = all;
        }
    }

    /// Every known address: of the cluster's voters first.
    pub(crate) fn known(&self) -> Vec<Arc<str>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every known address but `address`.
    pub(crate) fn others(&self, address: &str) -> Vec<Arc<str>> {
        self.known().into_iter().filter(|other| **other != *address).collect()
    }

    pub(crate) fn channel(&self, address: &str) -> Result<Channel, RpcError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let channel = transport::connect(address, self.connect_timeout)
            .map_err(|error| RpcError::new(ErrorCode::InvalidArgument, error.to_string()))?;
        channels.put(Arc::from(address), channel.clone());
        Ok(channel)
    }

    /// Takes note that `seen` answered with `error`. Gives whether its hint to another node was taken.
    pub(crate) fn failed(&self, seen: &Current, error: &RpcError) -> bool {
        match error.code {
            ErrorCode::NotLeader => match error.leader.as_deref().filter(|leader| self.trusts(seen, leader)) {
                Some(leader) => {
                    let leader = Arc::from(leader);
                    self.replace(seen, |_| Current { address: leader, ..Current::clone(seen) });
                    return true;
                }
                None => self.rotate(seen),
            },
            ErrorCode::Unavailable | ErrorCode::Indeterminate | ErrorCode::TimedOut => {
                let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                *failed = Some((seen.address.clone(), Instant::now()));
                drop(failed);
                self.rotate(seen);
            }
            _ => {}
        }
        false
    }

    fn trusts(&self, seen: &Current, leader: &str) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = failed.as_ref().is_some_and(|(address, when)| **address == *leader && when.elapsed() < DISTRUST);
        !failed && *seen.address != *leader && transport::check_address(leader).is_ok()
    }

    fn rotate(&self, seen: &Current) {
        let known = self.known();
        self.replace(seen, |now| {
            // A hinted address that nobody named is left for good.
            let at = known.iter().position(|address| *address == now.address);
            let next = at.map_or(0, |at| (at + 1) % known.len());
            Current { address: known[next].clone(), ..now.clone() }
        });
    }

    /// A probe found that `leader` leads.
    pub(crate) fn proven(&self, seen: &Current, leader: &Arc<str>) {
        self.current.send_if_modified(|now| {
            if now.address == *leader && now.proven {
                return false;
            }
            // Whoever moved on meanwhile found a leader in another way.
            if now.generation != seen.generation {
                return false;
            }
            *now = Current { address: leader.clone(), generation: now.generation + 1, proven: true };
            true
        });
    }

    /// Waits until another endpoint than `seen` is proven to lead.
    pub(crate) async fn proven_other(&self, seen: &Current) -> Arc<str> {
        let mut changes = self.current.subscribe();
        let found = changes.wait_for(|now| now.proven && now.address != seen.address).await;
        let found = found.map(|now| now.address.clone()).ok();
        match found {
            Some(address) => address,
            // The sender lives as long as self.
            None => std::future::pending().await,
        }
    }

    fn replace(&self, seen: &Current, next: impl FnOnce(&Current) -> Current) {
        self.current.send_if_modified(|now| {
            if now.generation != seen.generation {
                return false;
            }
            *now = Current { generation: now.generation + 1, proven: false, ..next(now) };
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints() -> Endpoints {
        let addresses = ["a:1", "b:1", "c:1"].map(String::from);
        Endpoints::new(&addresses, Duration::from_secs(1)).expect("good")
    }

    fn broken() -> RpcError {
        RpcError::new(ErrorCode::Indeterminate, "reset")
    }

    fn not_leader(leader: &str) -> RpcError {
        RpcError { leader: Some(leader.into()), ..RpcError::from(ErrorCode::NotLeader) }
    }

    #[test]
    fn a_burst_of_failures_rotates_once() {
        let endpoints = endpoints();
        let seen = endpoints.current();
        for _ in 0..10 {
            endpoints.failed(&seen, &broken());
        }
        assert_eq!(&*endpoints.current().address, "b:1");
    }

    #[test]
    fn a_hint_is_followed_and_an_unknown_address_is_forgotten_after_it_failed() {
        let endpoints = endpoints();
        assert!(endpoints.failed(&endpoints.current(), &not_leader("x:9")));
        assert_eq!(&*endpoints.current().address, "x:9");
        endpoints.failed(&endpoints.current(), &broken());
        assert_eq!(&*endpoints.current().address, "a:1");
        for _ in 0..6 {
            endpoints.failed(&endpoints.current(), &broken());
            assert_ne!(&*endpoints.current().address, "x:9");
        }
    }

    #[test]
    fn a_hint_to_a_node_that_just_failed_or_to_nonsense_rotates() {
        let endpoints = endpoints();
        endpoints.failed(&endpoints.current(), &broken());
        assert!(!endpoints.failed(&endpoints.current(), &not_leader("a:1")));
        assert_eq!(&*endpoints.current().address, "c:1");
        assert!(!endpoints.failed(&endpoints.current(), &not_leader("nonsense")));
        assert_eq!(&*endpoints.current().address, "a:1");
    }

    #[test]
    fn named_addresses_take_the_place_of_the_first_ones() {
        let endpoints = endpoints();
        endpoints.learn(&["d:1".into(), "nonsense".into(), "b:1".into()]);
        assert_eq!(endpoints.known().iter().map(|a| &**a).collect::<Vec<_>>(), ["d:1", "b:1", "a:1", "c:1"]);
        endpoints.failed(&endpoints.current(), &broken());
        assert_eq!(&*endpoints.current().address, "c:1");
        endpoints.failed(&endpoints.current(), &broken());
        assert_eq!(&*endpoints.current().address, "d:1");
        endpoints.learn(&[]);
        assert_eq!(endpoints.known().len(), 4, "an empty answer says nothing");
    }

    #[test]
    fn other_errors_stay() {
        let endpoints = endpoints();
        endpoints.failed(&endpoints.current(), &RpcError::from(ErrorCode::Overloaded));
        endpoints.failed(&endpoints.current(), &RpcError::from(ErrorCode::NotFound));
        assert_eq!(&*endpoints.current().address, "a:1");
    }
}
