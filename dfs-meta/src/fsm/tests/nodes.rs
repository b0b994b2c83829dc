//! Numbers, names and states of storage nodes.

use dfs_common::{ErrorCode, NodeId, Uuid, node::Health};

use super::{
    super::{Command, Reply},
    lab::*,
};

pub(super) fn register(uuid: u8, name: &str, address: &str) -> Command {
    Command::RegisterNode {
        uuid: Uuid([uuid; 16]),
        name: name.into(),
        address: address.into(),
        rack: "r".into(),
        capacity_bytes: 5,
        incarnation: 77,
    }
}

#[test]
fn a_uuid_keeps_its_number() {
    let mut lab = Lab::new();
    let reply = lab.must(register(1, "renamed", "elsewhere:4000"));
    assert_eq!(reply, Reply::Node { node: NodeId(1), created: false });
    let node = lab.state.node(NodeId(1)).expect("registered");
    assert_eq!((node.name.as_str(), node.rack.as_str(), node.incarnation), ("renamed", "r", 77));
    assert_eq!(lab.must(register(9, "new", "new:4000")), Reply::Node { node: NodeId(5), created: true });
}

#[test]
fn a_name_is_taken_over_only_from_a_node_that_is_not_alive() {
    let mut lab = Lab::new();
    let refusal = lab.apply(register(9, "storage-1", "new:4000")).expect_err("taken");
    assert_eq!(refusal.code, ErrorCode::AlreadyExists);
    assert!(refusal.message.contains("node 1 (storage-1 at host-1:4000) is alive"), "{refusal}");
    assert!(lab.apply(register(9, "new", "host-1:4000")).is_err());
    lab.set_health(1, Health::Suspect);
    lab.must(register(9, "storage-1", "host-1:4000"));
    assert_eq!(lab.node(1).health, Health::Dead);
    assert!(lab.apply(lab.register(1)).is_err(), "the old one finds its name taken");
}

#[test]
fn a_node_needs_a_uuid_a_name_and_an_address() {
    let mut lab = Lab::new();
    for command in
        [register(0, "a", "a:1"), register(9, "", "a:1"), register(9, "a", ""), register(9, &"x".repeat(300), "a:1")]
    {
        assert_eq!(lab.apply(command).expect_err("refused").code, ErrorCode::InvalidArgument);
    }
}

#[test]
fn health_changes_only_from_what_it_was_decided_on() {
    let mut lab = Lab::new();
    let set = |from, health| Command::SetNodeHealth { node: NodeId(1), health, from };
    let code = lab.apply(set(Health::Suspect, Health::Dead)).expect_err("is alive").code;
    assert_eq!(code, ErrorCode::Stale);
    lab.must(set(Health::Alive, Health::Suspect));
    lab.must(lab.register(1));
    assert!(lab.apply(set(Health::Suspect, Health::Dead)).is_err());
}

#[test]
fn a_node_that_stops_is_suspect_at_once() {
    let mut lab = Lab::new();
    let stop = |incarnation| Command::DeregisterNode { node: NodeId(2), incarnation };
    assert_eq!(lab.apply(stop(9)).expect_err("another process").code, ErrorCode::Stale);
    lab.must(stop(2));
    assert_eq!(lab.node(2).health, Health::Suspect);
    assert!(lab.apply(Command::DeregisterNode { node: NodeId(50), incarnation: 0 }).is_err());
}

#[test]
fn nodes_know_how_much_they_hold() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1, 2]);
    let holds = |lab: &Lab, n| lab.state.node(NodeId(n)).map(|node| (node.chunk_count, node.chunk_bytes));
    assert_eq!(holds(&lab, 1), Some((2, 200)));
    assert_eq!(holds(&lab, 4), Some((0, 0)));
}
