//! Exactly once.

use dfs_common::{ErrorCode, SessionId, Uuid};

use super::{
    super::{Command, Reply, session::OUTCOMES_MAX},
    lab::*,
};

fn mutate(session: SessionId, seq: u64, acked: u64, name: &str) -> Command {
    Command::Mutate { session, seq, acked, op: mkdir(ROOT, name) }
}

#[test]
fn a_repeated_operation_has_one_effect_and_one_outcome() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let first = lab.apply(mutate(s, 1, 0, "a"));
    let refused = lab.apply(mutate(s, 2, 0, "a"));
    assert!(first.is_ok());
    let bytes = bytes_of(&lab.state);
    assert_eq!(lab.apply(mutate(s, 1, 0, "a")), first);
    assert_eq!(lab.apply(mutate(s, 2, 0, "a")), refused);
    assert_eq!(bytes_of(&lab.state), bytes);
}

#[test]
fn an_acknowledged_number_is_stale() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.must(mutate(s, 1, 0, "a"));
    lab.must(mutate(s, 2, 1, "b"));
    let code = |lab: &mut Lab, seq, acked| lab.apply(mutate(s, seq, acked, "x")).expect_err("refused").code;
    assert_eq!(code(&mut lab, 1, 0), ErrorCode::Stale);
    assert_eq!(code(&mut lab, 3, 3), ErrorCode::InvalidArgument);
    assert_eq!(code(&mut lab, 0, 0), ErrorCode::InvalidArgument);
    lab.must(mutate(s, 5, 2, "out of order"));
    lab.must(mutate(s, 4, 2, "later"));
}

#[test]
fn kept_outcomes_are_bounded_and_a_refusal_for_that_can_be_retried() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let batch = |from: u64, to: u64| super::super::Batch {
        now_ns: 1,
        entropy: 0,
        commands: (from..=to).map(|seq| mutate(s, seq, 0, "a")).collect(),
    };
    let max = OUTCOMES_MAX as u64;
    assert_eq!(lab.state.apply(&batch(1, max)).len(), OUTCOMES_MAX);
    let code = lab.apply(mutate(s, max + 1, 0, "b")).expect_err("full").code;
    assert_eq!(code, ErrorCode::Overloaded);
    lab.must(mutate(s, max + 1, 1, "b"));
}

#[test]
fn one_client_has_one_session_until_it_ends() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    assert_eq!(lab.session(1), s);
    assert_ne!(lab.session(2), s);
    lab.must(Command::CloseSession { session: s });
    lab.must(Command::CloseSession { session: s });
    assert_eq!(lab.apply(mutate(s, 1, 0, "a")).expect_err("ended").code, ErrorCode::SessionExpired);
    let again = lab.session(1);
    assert_ne!(again, s);
    let description = "é".repeat(2000);
    lab.must(Command::OpenSession { client_id: Uuid([7; 16]), description });
    assert!(lab.state.sessions().all(|session| session.description.len() <= 1024));
}

#[test]
fn a_cluster_is_named_once() {
    let mut lab = Lab::new();
    let cluster_id = lab.state.cluster_id().expect("named");
    let other = Command::InitCluster { cluster_id: dfs_common::ClusterId([8; 16]), settings: Default::default() };
    assert_eq!(lab.must(other), Reply::Cluster { cluster_id });
    assert_eq!(lab.state.settings().chunk_size, SLOT);
}
