//! The event log: what commands record, its bounds, its snapshot.

use dfs_common::{
    NodeId, Uuid,
    node::{Health, NodeState},
};

use super::{
    super::{
        Command, Fact, State,
        event::{BYTES_MAX, EVENTS_MAX},
    },
    lab::*,
};

fn facts_after(lab: &Lab, after: u64) -> Vec<Fact> {
    lab.state.events_after(after).map(|event| event.fact.clone()).collect()
}

#[test]
fn the_first_event_is_that_the_cluster_was_made() {
    let lab = Lab::new();
    let facts = facts_after(&lab, 0);
    assert_eq!(facts[0], Fact::ClusterMade { replication: 3, write_quorum: 2, chunk_size: SLOT });
    let joined = |n: u32| Fact::NodeRegistered { node: NodeId(n), address: format!("host-{n}:4000"), created: true };
    assert_eq!(facts.iter().filter(|fact| fact.kind() == "node-registered").count(), 4);
    assert!((1..=4).all(|n| facts.contains(&joined(n))), "{facts:?}");
}

#[test]
fn a_node_that_dies_tells_what_it_costs() {
    let mut lab = Lab::new();
    let session = lab.session(1);
    lab.publish(session, ROOT, "f", &[1, 2]);
    let before = lab.state.last_event();
    lab.set_health(1, Health::Dead);
    lab.set_health(2, Health::Dead);
    lab.set_health(3, Health::Dead);
    let died = |n, endangered, missing| Fact::NodeState {
        node: NodeId(n),
        from: NodeState::Alive,
        to: NodeState::Dead,
        copies: 2,
        endangered,
        missing,
    };
    assert_eq!(facts_after(&lab, before), [died(1, 0, 0), died(2, 2, 0), died(3, 0, 2)]);
}

#[test]
fn a_process_is_recorded_once_however_often_it_registers() {
    let mut lab = Lab::new();
    let before = lab.state.last_event();
    lab.must(lab.register(1));
    assert_eq!(facts_after(&lab, before), []);
    let Command::RegisterNode { uuid, name, address, rack, capacity_bytes, .. } = lab.register(1) else { panic!() };
    lab.must(Command::RegisterNode { uuid, name, address: address.clone(), rack, capacity_bytes, incarnation: 99 });
    assert_eq!(facts_after(&lab, before), [Fact::NodeRegistered { node: NodeId(1), address, created: false }]);
}

#[test]
fn a_swapped_disk_is_recorded() {
    let mut lab = Lab::new();
    lab.set_health(1, Health::Suspect);
    let before = lab.state.last_event();
    let Command::RegisterNode { name, address, rack, capacity_bytes, incarnation, .. } = lab.register(1) else {
        panic!()
    };
    lab.must(Command::RegisterNode { uuid: Uuid([77; 16]), name, address, rack, capacity_bytes, incarnation });
    let facts = facts_after(&lab, before);
    assert!(facts.contains(&Fact::NodeWiped { node: NodeId(1), copies: 0 }), "{facts:?}");
}

#[test]
fn numbers_go_on_when_old_events_are_dropped() {
    let mut lab = Lab::new();
    let before = lab.state.last_event();
    let fact = |n: u64| Fact::EventsDropped { events: n };
    lab.must(Command::RecordEvents { facts: (0..EVENTS_MAX as u64 + 10).map(fact).collect() });
    assert_eq!(lab.state.events_after(0).count(), EVENTS_MAX);
    assert_eq!(lab.state.last_event(), before + EVENTS_MAX as u64 + 10);
    assert_eq!(lab.state.first_event(), lab.state.last_event() - EVENTS_MAX as u64 + 1);
    let restored = State::read_snapshot(&mut &bytes_of(&lab.state)[..]).expect("reads");
    assert!(restored == lab.state);
}

#[test]
fn long_texts_are_cut_and_many_of_them_are_bounded() {
    let mut lab = Lab::new();
    let long = "\u{fc}".repeat(5000);
    let fact = Fact::CopiesLost { node: NodeId(1), copies: 1, reason: long };
    lab.must(Command::RecordEvents { facts: vec![fact; 4000] });
    let kept = lab.state.events_after(0).count() as u64;
    assert!((BYTES_MAX / 500..4000).contains(&kept), "{kept} events kept");
}
