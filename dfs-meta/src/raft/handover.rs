//! Handing the leadership over: a pause of milliseconds instead of an election after a silence.
//!
//! ```text
//!   leader                                      heir                           other voters
//!     │ 1 new calls wait, entries under way end    │                                 │
//!     │ 2 heir has the whole log                   │                                 │
//!     │ 3 lease given up for this term             │                                 │
//!     │ 4 TakeOver(vote) ─────────────────────────►│ 5 stands in term + 1            │
//!     │◄──────── vote, marked as a handover ───────┤──────────────────────────────► │ 6 let go, vote
//!     │◄──────── first entry of the new term ──────┤──────────────────────────────► │
//!     │ 7 waiting calls are answered: not leader, ask the heir                       │
//! ```
//!
//! A voter that heard from a leader lately refuses to vote for another one; the lease rests on that (module `lease`). The mark on
//! the vote request waives it, as the Raft thesis describes for leadership transfer (Ongaro 2014, section 4.2.3). That is safe because the
//! leader stopped to rely on it in step 3, before anybody could have sent a marked request, and never relies on it again in its
//! term: a marked request may arrive late. Whether the vote is granted is decided as ever, by term and log.
//!
//! openraft 0.9 has no call for step 6. Its vote handler refuses while the last *committed* vote is fresh, so the voter first takes
//! over the candidate's uncommitted vote, which is a promise that any higher term may claim, and then handles the request. A voter that
//! has just started owes its silence to the same leader, so the mark waives that too.

use std::{
    cmp::Reverse,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use dfs_common::{
    ErrorCode,
    crash::{self, Point},
};
use dfs_proto::status::RpcError;
use openraft::{RaftMetrics, raft::AppendEntriesRequest};

use super::{
    core::Core,
    lease, network,
    peers::Call,
    types::{MetaNode, Raft, RaftId, TypeConfig, Vote},
};

/// Entries under way must end, and the heir must have them, within this time; calls wait meanwhile.
const QUIET: Duration = Duration::from_millis(800);
/// The heir must lead within this time.
const ELECTED: Duration = Duration::from_secs(1);

/// Hands the leadership to `heir`, or to whoever has most of the log. Returns the new leader's id and how long nothing was served.
pub(crate) async fn hand_over(core: &Arc<Core>, heir: Option<RaftId>) -> Result<(RaftId, Duration), RpcError> {
    let _change = core.changing.try_lock().map_err(|_| unavailable("the membership is being changed"))?;
    let (mut vote, membership) = lease::leading(core).ok_or_else(|| core.not_leader())?;
    let me = core.settings.me.raft_id;
    let reachable = |id: RaftId| core.peers.silent(id).is_some_and(|silent| silent < core.settings.vote_silence());
    let voters = || membership.voter_ids().filter(|id| *id != me);
    let heirs = match heir {
        Some(id) if id == me => return Ok((me, Duration::ZERO)),
        Some(id) if !voters().any(|voter| voter == id) => {
            return Err(RpcError::new(ErrorCode::InvalidArgument, "only a member that votes can lead"));
        }
        Some(id) if !reachable(id) => return Err(unavailable("the node that should lead does not answer")),
        Some(id) => vec![id],
        None => {
            let mut all: Vec<_> = voters().filter(|id| reachable(*id)).collect();
            all.sort_by_key(|id| Reverse(matched(core, *id)));
            all
        }
    };
    core.handing_over.send_replace(true);
    let begun = Instant::now();
    let mut done = Err(unavailable("no other metadata node that votes answers"));
    for heir in heirs {
        let node = membership.membership().get_node(&heir).cloned().unwrap_or_default();
        tracing::info!(to = node.name, "handing the leadership over");
        match give(core, vote, heir, &node).await {
            Ok(()) => {
                tracing::info!(to = node.name, pause = ?begun.elapsed(), "the leadership was handed over");
                done = Ok((heir, begun.elapsed()));
                break;
            }
            // It may have died a moment ago, as when a whole cluster is stopped.
            Err(error) => {
                tracing::info!(to = node.name, %error, "the leadership was not handed over");
                done = Err(error);
            }
        }
        // The heir may have stood and lost to this node, which leads in a later term then.
        match lease::leading(core) {
            Some((now, _)) => vote = now,
            None => break,
        }
    }
    core.handing_over.send_replace(false);
    done
}

async fn give(core: &Arc<Core>, vote: Vote, heir: RaftId, node: &MetaNode) -> Result<(), RpcError> {
    let Some(raft) = core.raft.get() else { return Err(unavailable("the node is starting")) };
    let quiet = |metrics: &RaftMetrics<RaftId, MetaNode>| {
        let last = metrics.last_log_index.unwrap_or(0);
        let applied = metrics.last_applied.map_or(0, |id| id.index);
        let has = metrics.replication.as_ref().and_then(|progress| progress.get(&heir).copied()).flatten();
        applied >= last && has.is_some_and(|has| has.index >= last)
    };
    let waited = raft.wait(Some(QUIET)).metrics(quiet, "the heir has the whole log").await;
    waited.map_err(|_| unavailable(&format!("{} does not keep up with the log", node.name)))?;
    core.lease.give_up(vote.leader_id.term).await;
    let peer = core.peers.get(heir, node);
    network::exchange::<_, ()>(&peer, Call::TakeOver, &vote, ELECTED).await?;
    let gone = |metrics: &RaftMetrics<RaftId, MetaNode>| metrics.current_leader == Some(heir);
    let seen = raft.wait(Some(ELECTED)).metrics(gone, "the heir leads").await;
    seen.map(drop).map_err(|_| unavailable(&format!("{} was not elected", node.name)))?;
    // The rest of the process must know it too, before waiting calls are answered.
    let mut leadership = core.leadership.subscribe();
    let known = leadership.wait_for(|now| now.leader.as_ref().is_some_and(|leader| leader.raft_id == heir));
    drop(tokio::time::timeout(ELECTED, known).await);
    Ok(())
}

/// Stands for election at once, because the leader with `vote` asks for it. Returns when this node leads.
pub(crate) async fn stand(core: &Core, raft: &Raft, vote: Vote) -> Result<(), RpcError> {
    let me = core.settings.me.raft_id;
    let current = raft.metrics().borrow().vote;
    if current != vote {
        // Who asks does not lead any more, or not in that term: it finds out, and whoever wants the change asks again.
        return Err(unavailable(&format!("the vote here is {current}, asked was {vote}")));
    }
    core.stands_in.store(vote.leader_id.term + 1, Ordering::Release);
    crash::point(Point::HeirAsked);
    raft.trigger().elect().await.map_err(|e| unavailable(&e.to_string()))?;
    let leads = |metrics: &RaftMetrics<RaftId, MetaNode>| metrics.current_leader == Some(me);
    let elected = raft.wait(Some(ELECTED)).metrics(leads, "elected").await;
    elected.map(drop).map_err(|_| unavailable("not elected"))
}

/// Step 6: takes the vote of a candidate over, so that the request that follows is judged by its log alone.
pub(crate) async fn let_go(raft: &Raft, vote: Vote) -> Result<(), RpcError> {
    if vote.committed {
        return Err(RpcError::new(ErrorCode::InvalidArgument, "a candidate's vote is not committed"));
    }
    let promise = AppendEntriesRequest::<TypeConfig> { vote, prev_log_id: None, entries: vec![], leader_commit: None };
    // A higher vote here is said again by the answer to the request itself.
    raft.append_entries(promise).await.map(drop).map_err(|e| unavailable(&e.to_string()))
}

/// Entry up to which the leader knows `id` to have the log.
pub(crate) fn matched(core: &Core, id: RaftId) -> Option<u64> {
    let metrics = core.raft.get()?.metrics();
    let metrics = metrics.borrow();
    metrics.replication.as_ref()?.get(&id).copied().flatten().map(|log_id| log_id.index)
}

fn unavailable(why: &str) -> RpcError {
    RpcError::new(ErrorCode::Unavailable, why)
}
