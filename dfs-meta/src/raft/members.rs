//! Changing who the members are, and noticing that one is no member any more.
//!
//! The membership is in the log, with addresses. A node is added in three steps, each of which may be the last one before a crash:
//!
//! | step | death after it | what happens |
//! |---|---|---|
//! | the node waits with `--join` | of the node | it is started again and waits |
//! | it is a learner, and is fed | of the node | it is started again and fed on; `add` reports that it makes no progress |
//! | | of the leader | it stays a learner; `add` again goes on from there, `remove` ends it |
//! | joint configuration | of the leader | the next leader completes the change ([`keep`]) |
//! | it is a voter | of anybody | the change is done |
//!
//! A change is refused when the voters that answer would be no majority afterwards.
//!
//! A node that was removed may not hear of it: nobody feeds it any more. So it is told once, and a node that hears no leader asks
//! around ([`stay`]). It believes only a leader with its lease, stamps its data directory, and ends.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use dfs_common::{
    ClusterId, ErrorCode,
    crash::{self, Point},
};
use dfs_proto::{
    status::RpcError,
    v1::{HelloRequest, HelloResponse},
};
use futures::future::join_all;
use openraft::{
    ChangeMembers,
    error::{ChangeMembershipError, ClientWriteError, RaftError},
};
use tokio::sync::mpsc;

use super::{
    Member,
    bootstrap::{hello, hello_all, stamp},
    core::{Core, Phase},
    handover::{hand_over, matched},
    lease,
    types::{MetaNode, RaftId},
};

/// How often a new member is looked at while it is fed.
const LOOK: Duration = Duration::from_millis(100);
/// A new member that got no entry for this long is given up.
const STUCK: Duration = Duration::from_secs(60);
/// A learner this close to the end of the log becomes a voter: what is missing is sent within a heartbeat.
const NEAR: u64 = 64;
/// A change of the membership is agreed on within this time, or its outcome is unknown.
const AGREED: Duration = Duration::from_secs(15);
/// One question to another node.
const HELLO: Duration = Duration::from_secs(1);
/// A node that is to be added must answer within this time.
const PRESENT: Duration = Duration::from_secs(5);
/// How often a node without a leader asks whether it is still a member.
const ASK: Duration = Duration::from_secs(1);
/// The same while there is a leader: only to notice members that have moved.
const ASK_IDLE: Duration = Duration::from_secs(30);
/// How often the leader looks whether a change is to be completed.
const KEEP: Duration = Duration::from_secs(1);

/// Progress of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// What is being done, for people.
    pub what: String,
    /// Entry up to which the new member has the log.
    pub have: u64,
    /// Entry that it must reach.
    pub want: u64,
}

fn refused(code: ErrorCode, why: impl Into<String>) -> RpcError {
    RpcError::new(code, why)
}

/// The members as the leader has them.
struct Now {
    voters: BTreeSet<RaftId>,
    nodes: BTreeMap<RaftId, MetaNode>,
}

impl Now {
    fn of(core: &Core) -> Result<Self, RpcError> {
        let (_, membership) = lease::leading(core).ok_or_else(|| core.not_leader())?;
        let voters = membership.voter_ids().collect();
        Ok(Self { voters, nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect() })
    }

    fn named(&self, name: &str) -> Result<RaftId, RpcError> {
        let found = self.nodes.iter().find(|(_, node)| node.name == name).map(|(id, _)| *id);
        found.ok_or_else(|| {
            let names: Vec<_> = self.nodes.values().map(|node| node.name.as_str()).collect();
            refused(ErrorCode::NotFound, format!("{name} is no member; members are {}", names.join(", ")))
        })
    }

    fn names(&self, ids: &BTreeSet<RaftId>) -> String {
        let name = |id: &RaftId| self.nodes.get(id).map_or_else(|| format!("#{id}"), |node| node.name.clone());
        ids.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    /// Refuses a set of voters of which no majority answers now. They are asked: what was heard from a node that has just died would
    /// let a change begin that cannot end. `fresh` has just answered.
    async fn check_majority(
        &self,
        core: &Core,
        after: &BTreeSet<RaftId>,
        fresh: Option<RaftId>,
    ) -> Result<(), RpcError> {
        let asked = after.iter().map(|id| async move {
            if *id == core.settings.me.raft_id || Some(*id) == fresh {
                return Some(*id);
            }
            let address = core.peers.member(*id, Some(self.nodes.get(id)?)).address;
            let answer = core.peers.at(&address).hello(hello(core), HELLO).await.ok()?;
            (answer.raft_id == *id && answer.ready && answer.epoch == core.cluster.epoch()).then_some(*id)
        });
        let up: BTreeSet<RaftId> = join_all(asked).await.into_iter().flatten().collect();
        if up.len() > after.len() / 2 {
            return Ok(());
        }
        let down: BTreeSet<RaftId> = after.difference(&up).copied().collect();
        Err(refused(
            ErrorCode::NotPermitted,
            format!(
                "afterwards {} of {} voters would answer ({}), which is no majority: nothing could be changed or read any more. \
                 Bring back {} first",
                up.len(),
                after.len(),
                self.names(&up),
                self.names(&down)
            ),
        ))
    }
}

/// Makes `new` a voter, and lets the member `replaces` leave in the same step.
pub(crate) async fn add(
    core: &Arc<Core>,
    new: Member,
    replaces: Option<&str>,
    steps: &mpsc::Sender<Step>,
) -> Result<(), RpcError> {
    core.settled().await;
    core.serving()?;
    core.lease.renew(core).await?;
    let _change = core.changing.try_lock().map_err(|_| busy())?;
    let now = Now::of(core)?;
    let leaves = replaces.map(|name| now.named(name)).transpose()?;
    if leaves == Some(core.settings.me.raft_id) {
        drop(_change);
        return step_aside(core).await;
    }
    let known = now.nodes.get(&new.raft_id).cloned();
    check_identity(&now, &new, known.as_ref(), leaves)?;
    if let Some(node) = known.as_ref().filter(|_| now.voters.contains(&new.raft_id)) {
        return move_voter(core, &now, &new, node).await;
    }
    say(steps, format!("asking {} at {}", new.name, new.address), 0, 0).await;
    check_candidate(core, &new, known.is_some()).await?;
    let mut after = now.voters.clone();
    after.insert(new.raft_id);
    after.retain(|id| Some(*id) != leaves);
    now.check_majority(core, &after, Some(new.raft_id)).await?;
    let node = MetaNode { name: new.name.clone(), address: new.address.clone() };
    if known.as_ref() != Some(&node) {
        say(steps, format!("making {} a member without a vote", new.name), 0, 0).await;
        change(core, ChangeMembers::SetNodes(BTreeMap::from([(new.raft_id, node)])), true).await?;
        crash::point(Point::MemberLearner);
    }
    feed(core, &new, steps).await?;
    say(steps, format!("giving {} a vote", new.name), 0, 0).await;
    change(core, ChangeMembers::ReplaceAllVoters(after), false).await?;
    tracing::info!(name = new.name, address = new.address, replaced = replaces, "a metadata node was added");
    if let Some(id) = leaves.filter(|id| *id != new.raft_id) {
        tell(core, id, now.nodes.get(&id));
    }
    Ok(())
}

/// Takes a member out. Returns the names of the voters that are left.
pub(crate) async fn remove(core: &Arc<Core>, name: &str) -> Result<Vec<String>, RpcError> {
    core.settled().await;
    core.serving()?;
    core.lease.renew(core).await?;
    let _change = core.changing.try_lock().map_err(|_| busy())?;
    let now = Now::of(core)?;
    let id = now.named(name)?;
    if !now.voters.contains(&id) {
        change(core, ChangeMembers::RemoveNodes(BTreeSet::from([id])), true).await?;
    } else {
        let mut after = now.voters.clone();
        after.remove(&id);
        if after.is_empty() {
            let why = format!("{name} is the only metadata node: without it nothing is left. Add another one first");
            return Err(refused(ErrorCode::NotPermitted, why));
        }
        now.check_majority(core, &after, None).await?;
        if id == core.settings.me.raft_id {
            drop(_change);
            return step_aside(core).await.map(|()| Vec::new());
        }
        change(core, ChangeMembers::ReplaceAllVoters(after), false).await?;
    }
    tracing::info!(name, "a metadata node was removed");
    tell(core, id, now.nodes.get(&id));
    let left = Now::of(core)?;
    Ok(left.voters.iter().filter_map(|id| left.nodes.get(id)).map(|node| node.name.clone()).collect())
}

/// The leader itself is to leave: another node leads first, and the caller asks that one.
async fn step_aside(core: &Arc<Core>) -> Result<(), RpcError> {
    hand_over(core, None).await?;
    Err(core.not_leader())
}

fn busy() -> RpcError {
    refused(ErrorCode::Unavailable, "the membership is being changed already; try again when that is done")
}

async fn say(steps: &mpsc::Sender<Step>, what: String, have: u64, want: u64) {
    // Who asked may have gone; the change goes on.
    drop(steps.send(Step { what, have, want }).await);
}

/// Name, number and address must be nobody else's.
fn check_identity(now: &Now, new: &Member, known: Option<&MetaNode>, leaves: Option<RaftId>) -> Result<(), RpcError> {
    if let Some(node) = known.filter(|node| node.name != new.name) {
        let why = format!(
            "{} and {} have the same number, {}, which follows from the name: choose another name",
            new.name, node.name, new.raft_id
        );
        return Err(refused(ErrorCode::InvalidArgument, why));
    }
    let rival = now.nodes.iter().find(|(id, node)| **id != new.raft_id && node.address == new.address);
    if let Some((_, node)) = rival.filter(|(id, _)| Some(**id) != leaves) {
        let why = format!("{} is the address of {}", new.address, node.name);
        return Err(refused(ErrorCode::AlreadyExists, why));
    }
    if leaves == Some(new.raft_id) {
        let why = format!("{} cannot replace itself; to move it, run `dfsctl meta add` with its new address", new.name);
        return Err(refused(ErrorCode::InvalidArgument, why));
    }
    Ok(())
}

/// Asks the node that is to be added whether it may be. A learner that was left by a change that was cut short `is_known`: what it
/// has it got as such.
async fn check_candidate(core: &Core, new: &Member, is_known: bool) -> Result<HelloResponse, RpcError> {
    let Member { name, address, .. } = new;
    let begun = Instant::now();
    let answer = loop {
        match core.peers.at(address).hello(hello(core), HELLO).await {
            Ok(answer) => break answer,
            // It may be starting.
            Err(_) if begun.elapsed() < PRESENT => tokio::time::sleep(LOOK).await,
            Err(error) => {
                let why = format!(
                    "nothing answers at {address} ({error}): start `dfs-meta --name {name} --advertise {address} --join ...` \
                     there first"
                );
                return Err(refused(ErrorCode::TimedOut, why));
            }
        }
    };
    if (answer.raft_id, answer.name.as_str()) != (new.raft_id, name.as_str()) {
        let why = format!("at {address} is {}, not {name}: check name and address", answer.name);
        return Err(refused(ErrorCode::WrongNode, why));
    }
    let ours = core.cluster.get().copied();
    let theirs = ClusterId::from_slice(&answer.cluster_id).filter(|id| !id.is_zero());
    if answer.initialized && theirs != ours {
        let why = format!(
            "{name} belongs to another cluster{}: empty its data directory and start it with --join",
            theirs.map_or_else(String::new, |id| format!(", {id}"))
        );
        return Err(refused(ErrorCode::WrongCluster, why));
    }
    let is_former = answer.initialized && answer.epoch != core.cluster.epoch();
    if (answer.ready && !is_known) || is_former {
        let why =
            format!("{name} has data of an earlier membership: empty its data directory and start it with --join");
        return Err(refused(ErrorCode::NotPermitted, why));
    }
    Ok(answer)
}

/// A voter at another address: its machine was replaced or renumbered.
async fn move_voter(core: &Core, now: &Now, new: &Member, node: &MetaNode) -> Result<(), RpcError> {
    let Member { raft_id, name, address } = new;
    if node.address == *address {
        return Err(refused(ErrorCode::AlreadyExists, format!("{name} at {address} is a member already")));
    }
    if *raft_id == core.settings.me.raft_id {
        let why = format!("{name} leads, at {}: restart it with --advertise {address} instead", node.address);
        return Err(refused(ErrorCode::NotPermitted, why));
    }
    if core.peers.silent(*raft_id).is_some_and(|silent| silent < core.settings.election_max) {
        let why = format!("{name} answers at {}: stop it there before it is moved to {address}", node.address);
        return Err(refused(ErrorCode::NotPermitted, why));
    }
    let answer = core.peers.at(address).hello(hello(core), HELLO).await;
    let answer =
        answer.map_err(|error| refused(ErrorCode::TimedOut, format!("nothing answers at {address}: {error}")))?;
    if (answer.raft_id, answer.name.as_str()) != (*raft_id, name.as_str()) {
        return Err(refused(ErrorCode::WrongNode, format!("at {address} is {}, not {name}", answer.name)));
    }
    now.check_majority(core, &now.voters, None).await?;
    let moved = MetaNode { name: name.clone(), address: address.clone() };
    change(core, ChangeMembers::SetNodes(BTreeMap::from([(*raft_id, moved)])), true).await
}

/// Waits until the new member has the log and says so.
async fn feed(core: &Core, new: &Member, steps: &mpsc::Sender<Step>) -> Result<(), RpcError> {
    let peer = core.peers.at(&new.address);
    let (mut best, mut since) = (0, Instant::now());
    loop {
        core.serving()?;
        let Some(raft) = core.raft.get() else { return Err(core.not_leader()) };
        let want = raft.metrics().borrow().last_log_index.unwrap_or(0);
        let have = matched(core, new.raft_id).unwrap_or(0);
        say(steps, format!("filling {}", new.name), have, want).await;
        if have + NEAR >= want && peer.hello(hello(core), HELLO).await.is_ok_and(|answer| answer.ready) {
            return Ok(());
        }
        if have > best {
            (best, since) = (have, Instant::now());
        }
        // A snapshot that is being sent moves nothing until it is there.
        if since.elapsed() > STUCK {
            let why = format!(
                "{} has got nothing for {STUCK:?} (it has entry {have} of {want}); it stays a member without a vote. Look at its \
                 log; then run the same command again, or `dfsctl meta remove {}`",
                new.name, new.name
            );
            return Err(refused(ErrorCode::TimedOut, why));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn change(core: &Core, change: ChangeMembers<RaftId, MetaNode>, retain: bool) -> Result<(), RpcError> {
    let Some(raft) = core.raft.get() else { return Err(core.not_leader()) };
    let changed = tokio::time::timeout(AGREED, raft.change_membership(change, retain)).await;
    let changed = changed.map_err(|_| {
        let why = format!("no majority agreed within {AGREED:?}; `dfsctl meta status` shows whether it took effect");
        refused(ErrorCode::Indeterminate, why)
    })?;
    changed.map(drop).map_err(|error| match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => core.not_leader(),
        RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))) => busy(),
        other => refused(ErrorCode::Unavailable, other.to_string()),
    })
}

/// Tells a member that left; one that is down finds out when it starts.
fn tell(core: &Arc<Core>, id: RaftId, node: Option<&MetaNode>) {
    let Some(address) = node.map(|node| core.peers.member(id, Some(node)).address) else { return };
    let core = core.clone();
    core.clone().tasks.spawn(async move {
        let request = HelloRequest { look: true, ..hello(&core) };
        if let Err(error) = core.peers.at(&address).hello(request, HELLO).await {
            tracing::debug!(address, %error, "the removed node was not told");
        }
    });
}

/// On the leader: completes a change that a leader before left half way, and notes members that have moved.
pub(crate) async fn keep(core: Arc<Core>) {
    let mut ticks = tokio::time::interval(KEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = core.cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if core.serving().is_err() {
            continue;
        }
        let Ok(_change) = core.changing.try_lock() else { continue };
        if let Err(error) = complete(&core).await {
            tracing::info!(%error, "a change of the membership is not complete yet");
        }
    }
}

async fn complete(core: &Core) -> Result<(), RpcError> {
    let Some((_, membership)) = lease::leading(core) else { return Ok(()) };
    let configs = membership.membership().get_joint_config();
    if let (Some(last), true) = (configs.last(), configs.len() > 1) {
        tracing::info!("completing a change of the membership");
        return change(core, ChangeMembers::ReplaceAllVoters(last.clone()), false).await;
    }
    let me = &core.settings.me;
    let moved = |(id, node): (&RaftId, &MetaNode)| {
        let address = if *id == me.raft_id { me.address.clone() } else { core.peers.moved(*id, node)? };
        (address != node.address).then(|| (*id, MetaNode { name: node.name.clone(), address }))
    };
    let moved: BTreeMap<_, _> = membership.nodes().filter_map(moved).collect();
    if moved.is_empty() {
        return Ok(());
    }
    change(core, ChangeMembers::SetNodes(moved), true).await
}

/// Stops a node whose directory is of another cluster than its peers, or that was removed.
pub(crate) async fn stay(core: Arc<Core>) {
    let mut leadership = core.leadership.subscribe();
    let mut heard = HashSet::new();
    loop {
        let is_member = *core.phase.borrow() == Phase::Member;
        if let (Some(ours), true) = (core.cluster.get().copied(), is_member) {
            let answers = hello_all(&core).await;
            for (address, answer) in &answers {
                if let Err(why) = judge(&core, ours, address, answer).await {
                    return core.fail(why);
                }
                heard.insert(answer.raft_id);
            }
        }
        let others = core.addresses().len();
        let is_led = leadership.borrow_and_update().leader.is_some();
        let pause = if is_led && heard.len() >= others { ASK_IDLE } else { ASK };
        tokio::select! {
            () = core.cancel.cancelled() => return,
            () = core.look.notified() => {}
            changed = leadership.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn judge(core: &Arc<Core>, ours: ClusterId, address: &str, answer: &HelloResponse) -> Result<(), String> {
    let Some(theirs) = ClusterId::from_slice(&answer.cluster_id).filter(|id| !id.is_zero()) else { return Ok(()) };
    let witness = || format!("{} at {address}", answer.name);
    if theirs != ours {
        // An address of a member that left may have a new owner.
        let is_peer = core.settings.peers.iter().any(|peer| peer.address == address && peer.raft_id == answer.raft_id);
        return if is_peer { Err(core.dir.other_cluster(ours, theirs, witness()).to_string()) } else { Ok(()) };
    }
    let epoch = core.cluster.epoch();
    if answer.epoch != epoch {
        return if answer.epoch > epoch { Err(core.dir.former(answer.epoch, witness()).to_string()) } else { Ok(()) };
    }
    if answer.leading && !answer.listed {
        crash::point(Point::RemovalHeard);
        stamp(core, |dir| dir.set_removed()).await.map_err(|error| error.to_string())?;
        return Err(core.dir.removed().to_string());
    }
    let Some(raft) = core.raft.get() else { return Ok(()) };
    let node = raft.metrics().borrow().membership_config.membership().get_node(&answer.raft_id).cloned();
    if let Some(node) = node.filter(|node| node.name == answer.name && answer.ready) {
        core.peers.found(answer.raft_id, &node, address);
    }
    Ok(())
}
