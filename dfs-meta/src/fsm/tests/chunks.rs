//! References, receipts, garbage, doom, danger.

use dfs_common::{ChunkId, ErrorCode, FileId, NodeId, node::Health};

use super::{
    super::{Command, RepairLimits, Reply},
    lab::*,
};

fn skipped(reply: Reply) -> Vec<u8> {
    match reply {
        Reply::Chunks { skipped } => skipped.iter().map(|id| id.0[0]).collect(),
        other => panic!("{other:?}"),
    }
}

fn held_on(lab: &Lab, n: u8) -> Vec<u32> {
    lab.state.chunk(chunk_id(n)).expect("known").replicas.iter().map(|node| node.0).collect()
}

#[test]
fn a_late_receipt_adds_a_copy() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let (_, id) = lab.create(s, ROOT, "f");
    lab.ok(s, commit(id, &[stored(1, &[1, 2])], true));
    assert_eq!(lab.state.counters().under_replicated, 1);
    assert!(skipped(lab.must(Command::CommitChunks { receipts: vec![receipt(1, &[2, 3], id)] })).is_empty());
    assert_eq!(held_on(&lab, 1), [1, 2, 3]);
    assert_eq!(lab.state.counters().full, 1);
}

#[test]
fn an_early_receipt_is_held_by_the_pending_version_until_a_publication_lists_it() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let (_, id) = lab.create(s, ROOT, "f");
    let receipts = vec![receipt(1, &[1, 2], id), receipt(2, &[1], id), receipt(3, &[1], file_id(99))];
    assert_eq!(skipped(lab.must(Command::CommitChunks { receipts })), [3]);
    assert_eq!(lab.state.counters().chunks, 0);
    // The second has one copy: a publication must not rest on that.
    assert!(lab.run(s, commit(id, &[stored(1, &[]), stored(2, &[])], false)).is_err());
    lab.ok(s, commit(id, &[stored(1, &[])], false));
    assert_eq!(lab.state.chunk(chunk_id(2)).map(|chunk| chunk.refs()), Some(1));
    lab.ok(s, commit(id, &[stored(1, &[])], true));
    assert!(lab.state.chunk(chunk_id(2)).is_none());
    assert_eq!(lab.doomed(1), [2]);
}

#[test]
fn a_receipt_that_contradicts_the_record_is_skipped() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1]);
    let mut other = receipt(1, &[4], file_id(1));
    other.sha256 = [0; 32];
    assert_eq!(skipped(lab.must(Command::CommitChunks { receipts: vec![other] })), [1]);
    assert_eq!(held_on(&lab, 1), [1, 2, 3]);
}

#[test]
fn a_chunk_goes_with_its_last_reference_and_is_doomed_until_confirmed() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let file = lab.publish(s, ROOT, "f", &[1, 1, 2]).ino;
    let id = lab.open_write(s, file);
    lab.ok(s, commit(id, &[stored(1, &[])], true));
    assert_eq!(lab.state.counters().garbage_bytes, 100);
    lab.must(Command::ReleaseVersions { file_ids: vec![id, file_id(77)] });
    assert_eq!(lab.content(file), [1], "a current version is not released");
    lab.release();
    assert_eq!(lab.state.chunk(chunk_id(1)).map(|chunk| chunk.refs()), Some(1));
    assert_eq!((lab.doomed(1), lab.doomed(2), lab.doomed(3), lab.doomed(4)), (vec![2], vec![2], vec![2], vec![]));
    let added = Command::ReplicasAdded { replicas: vec![(chunk_id(2), NodeId(1))] };
    assert!(skipped(lab.must(added)).is_empty());
    assert_eq!(lab.doomed(1), [2], "a doomed chunk that is reported again stays doomed");
    let confirm = Command::ConfirmDeleted { node: NodeId(1), chunks: vec![chunk_id(2), chunk_id(1)] };
    assert_eq!(skipped(lab.must(confirm)), [1]);
    assert!(lab.doomed(1).is_empty());
    assert_eq!(lab.state.counters().doomed_copies, 2);
}

#[test]
fn a_doomed_copy_does_not_count_for_a_publication() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let (_, id) = lab.create(s, ROOT, "f");
    let unknown = vec![(chunk_id(1), file_id(55)), (chunk_id(2), id)];
    assert_eq!(skipped(lab.must(Command::DoomUnknown { node: NodeId(1), chunks: unknown })), [2]);
    assert!(lab.run(s, commit(id, &[stored(1, &[1, 2])], true)).is_err());
    lab.ok(s, commit(id, &[stored(1, &[1, 2, 3])], true));
    assert_eq!(held_on(&lab, 1), [2, 3]);
}

#[test]
fn referenced_chunks_are_not_doomed_as_unknown() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1]);
    let chunks = vec![(chunk_id(1), FileId([3; 16])), (chunk_id(2), FileId([3; 16]))];
    assert_eq!(skipped(lab.must(Command::DoomUnknown { node: NodeId(4), chunks })), [1]);
    assert_eq!(lab.doomed(4), [2]);
    assert!(lab.apply(Command::DoomUnknown { node: NodeId(9), chunks: vec![] }).is_err());
}

#[test]
fn unknown_copies_are_told() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1]);
    let replicas = vec![(chunk_id(1), NodeId(4)), (chunk_id(7), NodeId(4)), (chunk_id(1), NodeId(99))];
    assert_eq!(skipped(lab.must(Command::ReplicasAdded { replicas })), [7]);
    assert_eq!(held_on(&lab, 1), [1, 2, 3, 4]);
    let lost = Command::ReplicasLost { node: NodeId(2), chunks: vec![chunk_id(1), chunk_id(7)] };
    assert_eq!(skipped(lab.must(lost)), [7]);
    assert_eq!(held_on(&lab, 1), [1, 3, 4]);
    assert_eq!(lab.state.chunks_on(NodeId(4), None).collect::<Vec<_>>(), [chunk_id(1)]);
    assert_eq!(lab.state.chunks_on(NodeId(4), Some(chunk_id(1))).count(), 0);
    assert_eq!(lab.state.chunks_on(NodeId(4), Some(ChunkId([0xff; 32]))).count(), 0);
}

#[test]
fn the_most_endangered_chunk_comes_first() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let (_, id) = lab.create(s, ROOT, "f");
    let chunks = [stored(1, &[1, 2, 3]), stored(2, &[1, 2]), stored(3, &[1, 4]), stored(4, &[2, 4])];
    lab.ok(s, commit(id, &chunks, true));
    let order = |lab: &Lab| lab.state.under_replicated(None).map(|(n, id)| (n, id.0[0])).collect::<Vec<_>>();
    assert_eq!(order(&lab), [(2, 2), (2, 3), (2, 4)]);
    lab.set_health(1, Health::Dead);
    assert_eq!(order(&lab), [(1, 2), (1, 3), (2, 1), (2, 4)]);
    lab.set_health(4, Health::Dead);
    assert_eq!(order(&lab), [(0, 3), (1, 2), (1, 4), (2, 1)]);
    let figures = lab.state.counters();
    assert_eq!((figures.missing, figures.under_replicated, figures.endangered, figures.full), (1, 3, 2, 0));
    let repairable = lab.state.under_replicated(Some((0, ChunkId([0xff; 32])))).count();
    assert_eq!(repairable, 3);
    lab.set_health(1, Health::Alive);
    lab.set_health(4, Health::Suspect);
    assert_eq!(order(&lab), [(2, 2), (2, 3), (2, 4)], "a suspect node's copies count");
}

#[test]
fn garbage_is_not_repaired() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let (_, id) = lab.create(s, ROOT, "f");
    lab.ok(s, commit(id, &[stored(1, &[1, 2])], true));
    assert_eq!(lab.state.under_replicated(None).count(), 1);
    lab.ok(s, unlink(ROOT, "f"));
    assert_eq!(lab.state.under_replicated(None).count(), 0);
    assert_eq!(lab.state.counters().chunks, 0);
    assert_eq!(lab.state.counters().garbage_chunks, 1);
}

#[test]
fn chunks_with_too_many_copies_are_indexed_while_they_are_published() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1, 2]);
    let excessive = |lab: &Lab| lab.state.over_replicated(None).map(|id| id.0[0]).collect::<Vec<_>>();
    assert!(excessive(&lab).is_empty());
    lab.must(Command::ReplicasAdded { replicas: vec![(chunk_id(1), NodeId(4)), (chunk_id(2), NodeId(4))] });
    assert_eq!((excessive(&lab), lab.state.counters().over_replicated), (vec![1, 2], 2));
    assert_eq!(lab.state.over_replicated(Some(chunk_id(1))).count(), 1);
    lab.must(Command::ReplicasLost { node: NodeId(2), chunks: vec![chunk_id(1)] });
    assert_eq!(excessive(&lab), [2]);
    lab.set_health(3, Health::Dead);
    assert_eq!(excessive(&lab), Vec::<u8>::new(), "copies of dead nodes do not count");
    lab.set_health(3, Health::Alive);
    assert_eq!(excessive(&lab), [2]);
    lab.ok(s, unlink(ROOT, "f"));
    assert_eq!((excessive(&lab), lab.state.counters().over_replicated), (vec![], 0));
}

#[test]
fn what_lacks_is_counted_in_copies_and_bytes() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1, 2]);
    lab.set_health(1, Health::Dead);
    let lacking = |lab: &Lab| (lab.state.counters().lacking_copies, lab.state.counters().lacking_bytes);
    assert_eq!(lacking(&lab), (2, 200));
    lab.set_health(2, Health::Dead);
    assert_eq!(lacking(&lab), (4, 400));
    lab.set_health(3, Health::Dead);
    assert_eq!(lacking(&lab), (0, 0), "without a live copy none can be made");
}

#[test]
fn limits_of_repair_are_kept_and_nonsense_is_refused() {
    let mut lab = Lab::new();
    let limits = RepairLimits { streams_per_node: 2, streams_total: 7, bytes_per_s: 10 };
    lab.must(Command::SetRepairLimits { limits });
    for (streams_per_node, streams_total) in [(0, 1), (1, 0), (65, 1), (1, 65_537)] {
        let limits = RepairLimits { streams_per_node, streams_total, bytes_per_s: 0 };
        let refusal = lab.apply(Command::SetRepairLimits { limits }).expect_err("refused");
        assert_eq!(refusal.code, ErrorCode::InvalidArgument);
    }
    assert_eq!(lab.state.repair_limits(), limits);
    let restored = super::super::State::read_snapshot(&mut &bytes_of(&lab.state)[..]).expect("just written");
    assert_eq!(restored.repair_limits(), limits);
}
