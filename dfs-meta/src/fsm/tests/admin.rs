//! What an administrator decides about storage nodes, and what follows for chunks.

use dfs_common::{
    ErrorCode, NodeId,
    node::{Health, NodeState},
};

use super::{
    super::{Action, Admin, Command, Fact, Figure, Rebalance, RebalanceChange, State},
    lab::*,
    nodes::register,
};

const MINUTE_NS: i64 = 60_000_000_000;

/// What is in the way, in the words of the refusal.
fn refused(lab: &mut Lab, node: u32, action: Action) -> String {
    let refusal = lab.administer(node, action).expect_err("refused");
    assert_eq!(refusal.code, ErrorCode::NotPermitted);
    refusal.message
}

fn kinds(lab: &Lab) -> Vec<&'static str> {
    lab.state.events_after(0).map(|event| event.fact.kind()).collect()
}

/// Another copy of chunk `n` elsewhere.
fn copy(lab: &mut Lab, n: u8, node: u32) {
    lab.must(Command::ReplicasAdded { replicas: vec![(chunk_id(n), NodeId(node))] });
}

#[test]
fn copies_on_a_draining_node_keep_chunks_alive_and_are_wanted_elsewhere() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1, 2]);
    lab.administer(1, Action::Drain).expect("may be drained");
    assert_eq!((lab.node(1).state(), lab.node(1).admin), (NodeState::Draining, Admin::Draining));
    let figures = lab.state.counters();
    assert_eq!((figures.full, figures.moving, figures.under_replicated), (2, 2, 0), "nothing is in danger");
    assert_eq!((figures.lacking_copies, figures.lacking_bytes), (2, 200), "and two copies are to be made");
    assert_eq!(lab.state.rests(NodeId(1)), Figure { chunks: 2, bytes: 200 });
    assert_eq!(lab.administer(1, Action::FinishDrain).expect_err("not yet").code, ErrorCode::Stale);
    copy(&mut lab, 1, 4);
    assert_eq!(lab.state.rests(NodeId(1)).chunks, 1);
    copy(&mut lab, 2, 4);
    let figures = lab.state.counters();
    assert_eq!((figures.moving, figures.lacking_copies, figures.over_replicated), (0, 0, 0));
    lab.administer(1, Action::FinishDrain).expect("it is done");
    assert_eq!(lab.node(1).admin, Admin::Drained);
    assert!(kinds(&lab).ends_with(&["drain-started", "drain-done"]));
}

#[test]
fn the_last_copies_on_draining_nodes_are_at_risk_and_not_lost() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1]);
    lab.administer(1, Action::Drain).expect("may be drained");
    lab.set_health(2, Health::Dead);
    lab.set_health(3, Health::Dead);
    let figures = lab.state.counters();
    assert_eq!((figures.missing, figures.endangered, figures.lacking_copies), (0, 1, 3));
    assert_eq!(lab.state.risk(NodeId(1)).lost.chunks, 1);
    assert_eq!(lab.state.under_replicated(None).next(), Some((1, chunk_id(1))), "before all others");
    lab.set_health(1, Health::Dead);
    assert_eq!((lab.state.counters().missing, lab.state.rests(NodeId(1)).chunks), (1, 0));
    assert_eq!(lab.node(1).state(), NodeState::Dead);
    assert!(lab.administer(1, Action::FinishDrain).is_err(), "what it alone has is not elsewhere");
    assert!(refused(&mut lab, 1, Action::Remove { lose: false }).contains("1 chunks of which no other live copy"));
    lab.must(lab.register(1));
    assert_eq!((lab.node(1).state(), lab.state.counters().endangered), (NodeState::Draining, 1), "still to be emptied");
}

#[test]
fn undrained_copies_count_again() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1, 2]);
    lab.administer(1, Action::Drain).expect("may be drained");
    lab.administer(1, Action::Drain).expect("once more changes nothing");
    copy(&mut lab, 1, 4);
    lab.administer(1, Action::Undrain).expect("may come back");
    let figures = lab.state.counters();
    assert_eq!((figures.moving, figures.lacking_copies, figures.over_replicated), (0, 0, 1));
    let undrained = lab.state.events_after(0).last().map(|event| event.fact.clone());
    assert_eq!(undrained, Some(Fact::DrainCancelled { node: NodeId(1), chunks: 1 }));
    lab.set_health(2, Health::Dead);
    assert!(refused(&mut lab, 2, Action::Drain).contains("is dead: there is nothing to copy from it"));
}

#[test]
fn a_node_goes_when_nothing_rests_on_it_and_never_comes_back() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1]);
    lab.publish(s, ROOT, "g", &[2]);
    lab.ok(s, unlink(ROOT, "g"));
    lab.release();
    assert_eq!(lab.doomed(1), [2]);
    assert!(refused(&mut lab, 1, Action::Remove { lose: false }).contains("is in service: drain it first"));
    lab.administer(1, Action::Drain).expect("may be drained");
    assert!(refused(&mut lab, 1, Action::Remove { lose: false }).contains("1 chunks have too few copies elsewhere"));
    copy(&mut lab, 1, 4);
    lab.administer(1, Action::Remove { lose: false }).expect("it is empty in effect");
    assert!(lab.doomed(1).is_empty());
    assert_eq!(lab.state.chunk(chunk_id(1)).map(|chunk| (chunk.replicas.len(), chunk.live())), Some((3, 3)));
    let refusal = lab.apply(lab.register(1)).expect_err("for good");
    assert_eq!(refusal.code, ErrorCode::NotPermitted);
    assert!(refusal.message.contains("start it with an empty data directory"), "{refusal}");
    assert!(refused(&mut lab, 1, Action::Undrain).contains("was removed from the cluster already"));
    let back = Command::SetNodeHealth { node: NodeId(1), health: Health::Suspect, from: Health::Alive };
    assert!(lab.apply(back).is_err());
    copy(&mut lab, 1, 1);
    assert_eq!(lab.state.chunk(chunk_id(1)).map(|chunk| chunk.replicas.len()), Some(3), "it holds nothing any more");
    lab.must(register(9, "storage-1", "host-1:4000"));
    let removed = lab.state.events_after(0).filter(|event| event.fact.kind() == "node-removed").count();
    assert_eq!(removed, 1);
}

#[test]
fn losses_must_be_accepted_and_are_told() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let (_, id) = lab.create(s, ROOT, "f");
    lab.ok(s, commit(id, &[stored(1, &[1, 2]), stored(2, &[1, 2]), stored(3, &[1, 2, 3])], true));
    lab.set_health(2, Health::Dead);
    lab.must(Command::ReplicasLost { node: NodeId(2), chunks: vec![chunk_id(1)] });
    assert!(refused(&mut lab, 1, Action::Remove { lose: false }).contains("2 chunks of which no other live copy"));
    let mut told = Vec::new();
    let impact = lab.state.impact(NodeId(1), &mut |chunk, lost| told.push((chunk.0[0], lost)));
    assert_eq!((impact.holds.chunks, impact.lost.chunks, impact.endangered.chunks), (3, 2, 1));
    assert_eq!(told, [(1, true), (2, true), (3, false)]);
    lab.administer(1, Action::Remove { lose: true }).expect("accepted");
    let figures = lab.state.counters();
    assert_eq!((figures.missing, figures.endangered), (2, 1));
    let removed = lab.state.events_after(0).last().map(|event| event.fact.clone());
    assert_eq!(removed, Some(Fact::NodeRemoved { node: NodeId(1), endangered: 1, lost: 2 }));
    assert_eq!(lab.state.chunk(chunk_id(1)).map(|chunk| chunk.replicas.len()), Some(0));
}

#[test]
fn a_dead_node_goes_when_nothing_is_lost_with_it() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1]);
    lab.set_health(1, Health::Dead);
    assert_eq!(lab.state.counters().under_replicated, 1);
    lab.administer(1, Action::Remove { lose: false }).expect("two others live");
    assert_eq!(lab.state.counters().under_replicated, 1);
}

#[test]
fn what_is_being_written_keeps_its_node() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let (_, id) = lab.create(s, ROOT, "f");
    lab.must(Command::CommitChunks { receipts: vec![receipt(1, &[1, 2], id)] });
    lab.administer(1, Action::Drain).expect("may be drained");
    assert_eq!(lab.state.rests(NodeId(1)).chunks, 1, "it may be published at any moment");
    assert!(lab.administer(1, Action::FinishDrain).is_err());
    assert_eq!(lab.state.counters().lacking_copies, 0, "and is not repaired before");
}

#[test]
fn maintenance_is_bounded_and_ends() {
    let mut lab = Lab::new();
    let now = lab.now_ns;
    for until_ns in [now, now - 1, now + 25 * 60 * MINUTE_NS] {
        let refusal = lab.administer(1, Action::StartMaintenance { until_ns }).expect_err("no time for it");
        assert_eq!(refusal.code, ErrorCode::InvalidArgument);
    }
    let until_ns = now + 30 * MINUTE_NS;
    lab.administer(1, Action::StartMaintenance { until_ns }).expect("half an hour");
    assert_eq!(lab.node(1).state(), NodeState::Maintenance);
    assert!(lab.node(1).is_excused(until_ns - 1) && !lab.node(1).is_excused(until_ns));
    let early = lab.administer(1, Action::EndMaintenance { expired: true }).expect_err("not over");
    assert_eq!(early.code, ErrorCode::Stale);
    let restored = State::read_snapshot(&mut &bytes_of(&lab.state)[..]).expect("just written");
    assert_eq!(restored.node(NodeId(1)).map(|node| node.admin), Some(Admin::Maintenance { until_ns }));
    lab.set_health(1, Health::Suspect);
    lab.must(lab.register(1));
    assert_eq!(lab.node(1).state(), NodeState::Maintenance, "a restart does not end it");
    lab.administer(1, Action::EndMaintenance { expired: false }).expect("any time");
    assert_eq!(lab.node(1).state(), NodeState::Alive);
    lab.administer(1, Action::StartMaintenance { until_ns }).expect("again");
    lab.administer(1, Action::Drain).expect("instead");
    assert!(refused(&mut lab, 1, Action::StartMaintenance { until_ns }).contains("is being drained"));
    let events = kinds(&lab);
    let wanted = ["maintenance-started", "maintenance-ended", "drain-started"];
    assert!(events.ends_with(&wanted), "{events:?}");
}

#[test]
fn who_dies_in_maintenance_is_in_service_when_it_returns() {
    let mut lab = Lab::new();
    let until_ns = lab.now_ns + MINUTE_NS;
    lab.administer(1, Action::StartMaintenance { until_ns }).expect("a minute");
    lab.set_health(1, Health::Dead);
    assert_eq!((lab.node(1).state(), lab.node(1).admin), (NodeState::Dead, Admin::InService));
    assert!(refused(&mut lab, 1, Action::StartMaintenance { until_ns }).contains("is dead"));
}

#[test]
fn a_rebalance_goes_on_until_it_is_ended_and_counts_what_it_moved() {
    let mut lab = Lab::new();
    let change = |change| Command::Rebalance { change };
    lab.must(change(RebalanceChange::End { why: "nothing runs".into() }));
    assert_eq!(lab.state.rebalance(), Rebalance::default());
    lab.must(change(RebalanceChange::Start));
    let started_ns = lab.state.rebalance().started_ns;
    let moved = Fact::RebalanceProgress { chunks: 2, bytes: 10, from_ns: 1, to_ns: 2 };
    lab.must(Command::RecordEvents { facts: vec![moved.clone(), moved.clone()] });
    lab.must(change(RebalanceChange::Start));
    let restored = State::read_snapshot(&mut &bytes_of(&lab.state)[..]).expect("just written").rebalance();
    let wanted = Rebalance { running: true, started_ns, ended_ns: 0, chunks: 4, bytes: 20 };
    assert_eq!((lab.state.rebalance(), restored), (wanted, wanted), "a second start changes nothing");
    lab.must(change(RebalanceChange::End { why: String::new() }));
    lab.must(Command::RecordEvents { facts: vec![moved] });
    let ended = lab.state.rebalance();
    assert_eq!((ended.running, ended.chunks, ended.ended_ns > started_ns), (false, 4, true));
    let events = kinds(&lab);
    let wanted =
        ["rebalance-started", "rebalance-progress", "rebalance-progress", "rebalance-done", "rebalance-progress"];
    assert!(events.ends_with(&wanted), "{events:?}");
}
