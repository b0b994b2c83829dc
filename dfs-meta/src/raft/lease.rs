//! The leader's read lease.
//!
//! **What it rests on.** A node that accepted a message of a leader refuses to vote for anyone else, and does not stand for
//! election itself, for [`Settings::vote_silence`](super::settings::Settings::vote_silence) after it *received* the message
//! (openraft: `leader_lease` in `Engine::handle_vote_req` and `RaftCore::handle_tick_election`). The vote is durable together
//! with the fact that it belongs to an established leader, and its age starts anew with the process, so a node that restarts
//! keeps the promise too; [`service`](super::service) refuses votes for that time in addition.
//!
//! **What follows.** If a majority accepted a message that the leader *sent* at time T, no other leader can be elected before
//! T + vote_silence, since every majority contains a node that promised. The leader believes this for three quarters of that
//! time, counted from T, by a clock that keeps running while the machine is suspended; the last quarter is the margin for
//! clocks of different speed, far more than the 500 ppm that real ones differ by.
//!
//! **How it is used.** A task on the leader makes a quorum round with every heartbeat. A read looks at the state first and at
//! the lease afterwards: if the lease still holds then, no other leader existed when the state was read. If it does not hold,
//! one round is made, shared by all readers who wait; when it confirms the same term, the value that was read is good as well.
//! Rounds are openraft's own `AppendEntries` without entries, built here because openraft's `ensure_linearizable` opens new
//! channels, reports an error for each peer that is down, and does not say when it started.
//!
//! **Handing over.** A leader that asks a follower to stand at once (module `handover`) has its followers break the promise, so it
//! gives the lease up first and never takes it again in that term: if the handover fails, each read takes a round of its own.
//!
//! Before the first read of a term an entry of that term must have been applied: only then does the state hold everything
//! that was acknowledged in earlier terms. See [`super::watcher`].

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use dfs_common::ErrorCode;
use dfs_proto::status::RpcError;
use openraft::{
    ServerState,
    raft::{AppendEntriesRequest, AppendEntriesResponse},
};
use tokio::sync::{Mutex, mpsc};

use super::{
    core::Core,
    network,
    peers::Call,
    types::{RaftId, StoredMembership, TypeConfig, Vote},
};

/// Until when this node may answer reads alone.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// On the clock of [`now_ns`].
    until_ns: AtomicU64,
    /// As `until_ns`, but also counting rounds in a term without a lease.
    confirmed_ns: AtomicU64,
    /// The term in which followers were asked not to keep their promise, 0 if none: each read then takes a round.
    given_up_term: AtomicU64,
    /// Held during a round; the last round's start and outcome.
    turn: Mutex<(u64, Option<RpcError>)>,
}

impl Lease {
    /// Whether no other leader can exist now.
    pub(crate) fn holds(&self) -> bool {
        now_ns() < self.until_ns.load(Ordering::Acquire)
    }

    /// Whether the lease held within the last `grace`.
    pub(crate) fn held_within(&self, grace: Duration) -> bool {
        now_ns() < self.confirmed_ns.load(Ordering::Acquire).saturating_add(nanos(grace))
    }

    /// Makes a round that starts after this call, or takes the outcome of one that another caller made.
    pub(crate) async fn renew(&self, core: &Core) -> Result<(), RpcError> {
        let asked_ns = now_ns();
        let mut last = self.turn.lock().await;
        if last.0 < asked_ns {
            let start_ns = now_ns();
            let outcome = round(core).await;
            if let Ok(term) = outcome {
                let until_ns = start_ns + nanos(core.settings.lease());
                self.confirmed_ns.fetch_max(until_ns, Ordering::AcqRel);
                if self.given_up_term.load(Ordering::Acquire) != term {
                    self.until_ns.fetch_max(until_ns, Ordering::AcqRel);
                }
            }
            *last = (start_ns, outcome.err());
        }
        last.1.clone().map_or(Ok(()), Err)
    }

    /// Gives the lease up for the rest of `term`: when this returns, no read is answered without a round that starts after it.
    pub(crate) async fn give_up(&self, term: u64) {
        // A round under way would set the lease again.
        let _turn = self.turn.lock().await;
        self.given_up_term.store(term, Ordering::Release);
        self.until_ns.store(0, Ordering::Release);
    }
}

/// Nanoseconds on a clock that never jumps and does not stop while the machine is suspended.
fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec, which the call fills.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(failed, 0, "every Linux since 2.6.39 has this clock");
    let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds * 1_000_000_000 + nanos
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Asks all voters whether they still follow this leader; returns when a majority does.
/// Gives the term in which they do.
async fn round(core: &Core) -> Result<u64, RpcError> {
    let Some((vote, membership)) = leading(core) else { return Err(core.not_leader()) };
    let term = vote.leader_id.term;
    let timeout = core.settings.lease();
    let (answers, mut answered) = mpsc::channel(16);
    let mut granted = vec![core.settings.me.raft_id];
    if is_quorum(&membership, &granted) {
        return Ok(term);
    }
    let others = membership.membership().nodes().filter(|(id, _)| **id != core.settings.me.raft_id);
    for (id, node) in others.filter(|(id, _)| membership.voter_ids().any(|voter| voter == **id)) {
        let (id, peer, answers) = (*id, core.peers.get(*id, node), answers.clone());
        // The round ends with the majority; the others go on for a moment, so that it is known whether they answer.
        core.tasks.spawn(async move {
            let rpc =
                AppendEntriesRequest::<TypeConfig> { vote, prev_log_id: None, entries: vec![], leader_commit: None };
            let answer: Result<AppendEntriesResponse<RaftId>, _> =
                network::exchange(&peer, Call::Append, &rpc, timeout).await;
            // Nobody listens when the round is over.
            drop(answers.send((id, answer)).await);
        });
    }
    drop(answers);
    let quorum = async {
        while let Some((id, answer)) = answered.recv().await {
            match answer {
                Ok(AppendEntriesResponse::HigherVote(vote)) => {
                    tracing::debug!(%vote, "a newer leader or candidate exists");
                    return Err(core.not_leader());
                }
                Ok(_) => granted.push(id),
                Err(error) => tracing::debug!(peer = id, %error, "no answer in a quorum round"),
            }
            if is_quorum(&membership, &granted) {
                return Ok(term);
            }
        }
        Err(RpcError::new(ErrorCode::Unavailable, "no majority of the metadata nodes answers"))
    };
    quorum.await
}

/// The vote and the membership under which this node leads.
pub(crate) fn leading(core: &Core) -> Option<(Vote, StoredMembership)> {
    let metrics = core.raft.get()?.metrics();
    let metrics = metrics.borrow();
    let mine = metrics.vote.committed && metrics.vote.leader_id.voted_for() == Some(core.settings.me.raft_id);
    (metrics.state == ServerState::Leader && mine).then(|| (metrics.vote, (*metrics.membership_config).clone()))
}

/// Whether `granted` is a majority of every configuration in force.
pub(crate) fn is_quorum(membership: &StoredMembership, granted: &[RaftId]) -> bool {
    let configs = membership.membership().get_joint_config();
    configs.iter().all(|voters| voters.iter().filter(|id| granted.contains(id)).count() > voters.len() / 2)
}

/// Keeps the lease while this node leads.
pub(crate) async fn keep(core: std::sync::Arc<Core>) {
    let mut ticks = tokio::time::interval(core.settings.heartbeat);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if leading(&core).is_some() {
            // What went wrong is known from the lease running out.
            drop(core.lease.renew(&core).await);
        }
        let confirmed = core.lease.held_within(core.settings.election_max);
        core.confirmed.send_if_modified(|was| std::mem::replace(was, confirmed) != confirmed);
    }
}
