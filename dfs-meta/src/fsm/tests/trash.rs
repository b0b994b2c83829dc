//! What comes into the trash, what does not, and how it comes out.

use dfs_common::{ErrorCode, FileId, InodeId, SetAttr, node::Health};

use super::{
    super::{Command, Op, Reason, Reply, State, trash::Cursor},
    lab::*,
};

const SECOND_NS: i64 = 1_000_000_000;

fn lab() -> Lab {
    let mut lab = Lab::new();
    lab.must(Command::SetTrashRetention { retention_ns: 60 * SECOND_NS });
    lab
}

fn wait(lab: &mut Lab, seconds: i64) {
    lab.now_ns += seconds * SECOND_NS;
}

/// Paths and reasons in the order of paths.
fn listed(state: &State) -> Vec<(String, Reason)> {
    let entries = state.trash_after(Cursor::before(b""));
    let shown = entries.map(|at| {
        let (entry, _) = state.trashed(at.id).expect("indexed");
        (String::from_utf8_lossy(&entry.path).into_owned(), entry.reason)
    });
    shown.collect()
}

fn restore(file_id: FileId, parent: InodeId, name: &str) -> Op {
    Op::Restore { file_id, parent, name: name.as_bytes().to_vec() }
}

#[test]
fn a_removed_file_is_restored_with_everything_it_had() {
    let mut lab = lab();
    let s = lab.session(1);
    let dir = lab.mkdir(s, ROOT, "d");
    let below = lab.mkdir(s, dir, "e");
    let file = lab.publish(s, below, "f", &[1, 2]);
    lab.ok(
        s,
        Op::SetXattr { ino: file.ino, name: b"user.a".to_vec(), value: b"v".to_vec(), create: true, replace: false },
    );
    let set = SetAttr { mode: Some(0o640), uid: Some(7), gid: Some(8), ..SetAttr::default() };
    let before = lab.attr(s, Op::SetAttr { ino: file.ino, set });
    lab.ok(s, rename((ROOT, "d"), (ROOT, "moved")));
    lab.ok(s, unlink(below, "f"));
    assert_eq!(listed(&lab.state), [("/moved/e/f".into(), Reason::Removed)]);
    let id = file.file_id.expect("published");
    assert_eq!(lab.state.trashed(id).map(|(_, size)| size), Some(200));
    assert_eq!(lab.state.garbage().count(), 0);
    let after = lab.attr(s, restore(id, ROOT, "back"));
    assert_ne!(after.ino, before.ino, "inode numbers are never used again");
    let facts = |a: &dfs_common::Attr| (a.mode, a.uid, a.gid, a.size, a.mtime_ns, a.atime_ns, a.nlink, a.file_id);
    assert_eq!(facts(&after), facts(&before));
    assert_eq!(lab.state.getxattr(after.ino, b"user.a"), Ok(b"v".to_vec()));
    assert_eq!(lab.content(after.ino), [1, 2]);
    assert_eq!(lab.code(s, restore(id, ROOT, "again")), ErrorCode::NotFound);
}

#[test]
fn restoring_never_overwrites() {
    let mut lab = lab();
    let s = lab.session(1);
    let id = lab.publish(s, ROOT, "f", &[1]).file_id.expect("published");
    lab.ok(s, unlink(ROOT, "f"));
    lab.publish(s, ROOT, "f", &[2]);
    assert_eq!(lab.code(s, restore(id, ROOT, "f")), ErrorCode::AlreadyExists);
    assert_eq!(lab.code(s, restore(id, InodeId(99), "f")), ErrorCode::NotFound);
    lab.ok(s, restore(id, ROOT, "g"));
}

#[test]
fn replaced_content_is_kept_whichever_way_it_was_replaced() {
    let mut lab = lab();
    let s = lab.session(1);
    let old = lab.publish(s, ROOT, "over", &[1]);
    lab.publish(s, ROOT, "new", &[2]);
    wait(&mut lab, 20);
    lab.ok(s, rename((ROOT, "new"), (ROOT, "over")));
    assert_eq!(listed(&lab.state), [("/over".into(), Reason::Replaced)]);
    let file = lab.publish(s, ROOT, "written", &[3]);
    wait(&mut lab, 20);
    let writer = lab.open_write(s, file.ino);
    lab.ok(s, commit(writer, &[stored(4, &[1, 2])], true));
    assert_eq!(listed(&lab.state), [("/over".into(), Reason::Replaced), ("/written".into(), Reason::Replaced)]);
    assert_eq!(lab.attr(s, restore(old.file_id.expect("published"), ROOT, "o")).size, 100);
}

#[test]
fn a_name_of_several_is_no_loss() {
    let mut lab = lab();
    let s = lab.session(1);
    let file = lab.publish(s, ROOT, "f", &[1]);
    lab.ok(s, link(file.ino, ROOT, "g"));
    lab.ok(s, unlink(ROOT, "f"));
    assert_eq!(listed(&lab.state), []);
    lab.ok(s, unlink(ROOT, "g"));
    assert_eq!(listed(&lab.state), [("/g".into(), Reason::Removed)]);
}

#[test]
fn of_what_one_open_file_publishes_the_state_before_is_kept() {
    let mut lab = lab();
    let s = lab.session(1);
    let file = lab.publish(s, ROOT, "log", &[1]);
    let writer = lab.open_write(s, file.ino);
    for n in 2..20 {
        wait(&mut lab, 60);
        lab.ok(s, commit(writer, &[stored(n, &[1, 2])], false));
    }
    assert_eq!(listed(&lab.state), [("/log".into(), Reason::Replaced)]);
    assert!(lab.state.trashed(file.file_id.expect("published")).is_some());
}

#[test]
fn a_program_that_rewrites_a_file_all_the_time_does_not_fill_the_trash() {
    let mut lab = lab();
    let s = lab.session(1);
    let file = lab.publish(s, ROOT, "f", &[1]);
    for n in 0..30 {
        let writer = lab.open_write(s, file.ino);
        lab.ok(s, commit(writer, &[stored(2 + n % 2, &[1, 2])], true));
    }
    assert_eq!(listed(&lab.state).len(), 8);
    assert!(lab.state.trashed(file.file_id.expect("published")).is_some(), "the first state is among them");
    // What was current for a while is always kept.
    wait(&mut lab, 60);
    let writer = lab.open_write(s, file.ino);
    lab.ok(s, commit(writer, &[stored(9, &[1, 2])], true));
    assert_eq!(listed(&lab.state).len(), 9);
}

#[test]
fn a_file_that_is_written_when_it_is_removed_comes_in_when_its_writer_ends() {
    let mut lab = lab();
    let s = lab.session(1);
    let file = lab.publish(s, ROOT, "f", &[1]);
    let writer = lab.open_write(s, file.ino);
    lab.ok(s, unlink(ROOT, "f"));
    assert_eq!(listed(&lab.state), []);
    let bytes = bytes_of(&lab.state);
    assert!(State::read_snapshot(&mut &bytes[..]).expect("reads") == lab.state);
    lab.ok(s, Op::AbortFile { file_id: writer });
    assert_eq!(listed(&lab.state), [("/f".into(), Reason::Removed)]);
}

#[test]
fn with_no_retention_nothing_is_kept() {
    let mut lab = lab();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1]);
    lab.must(Command::SetTrashRetention { retention_ns: 0 });
    lab.ok(s, unlink(ROOT, "f"));
    assert_eq!((listed(&lab.state).len(), lab.state.garbage().count()), (0, 1));
    assert!(lab.apply(Command::SetTrashRetention { retention_ns: -1 }).is_err());
}

#[test]
fn what_leaves_the_trash_is_garbage_since_it_came_in() {
    let mut lab = lab();
    let s = lab.session(1);
    let file = lab.publish(s, ROOT, "f", &[1, 2]);
    lab.ok(s, unlink(ROOT, "f"));
    let id = file.file_id.expect("published");
    let at_ns = lab.now_ns;
    wait(&mut lab, 100);
    let file_ids = vec![id, file_id(4711)];
    assert_eq!(lab.must(Command::DropTrash { file_ids }), Reply::TrashDropped { versions: 1, bytes: 200 });
    assert_eq!(lab.state.garbage().collect::<Vec<_>>(), [(at_ns, id)]);
    lab.release();
    assert_eq!(lab.doomed(1), [1, 2]);
    assert_eq!(
        lab.state.doomed_on().map(|(node, on)| (node.0, on.copies, on.bytes)).collect::<Vec<_>>(),
        [(1, 2, 200), (2, 2, 200), (3, 2, 200)]
    );
}

#[test]
fn chunks_in_the_trash_are_repaired_and_counted_apart() {
    let mut lab = lab();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1]);
    lab.publish(s, ROOT, "kept", &[2]);
    lab.ok(s, unlink(ROOT, "f"));
    let figures = lab.state.counters();
    assert_eq!((figures.trash_versions, figures.trash_chunks, figures.trash_bytes), (1, 1, 100));
    assert_eq!((figures.trash_copies, figures.trash_copy_bytes, figures.chunks, figures.garbage_bytes), (3, 300, 1, 0));
    lab.set_health(1, Health::Dead);
    lab.set_health(2, Health::Dead);
    let figures = lab.state.counters();
    assert_eq!((figures.trash_under_replicated, figures.trash_endangered, figures.trash_missing), (1, 1, 0));
    assert_eq!((figures.under_replicated, figures.endangered), (1, 1));
    let danger: Vec<u8> = lab.state.under_replicated(None).map(|(_, id)| id.0[0]).collect();
    assert_eq!(danger, [1, 2]);
    lab.set_health(3, Health::Dead);
    assert_eq!(lab.state.counters().trash_missing, 1);
}

#[test]
fn content_that_another_file_shares_is_not_the_trash_s_alone() {
    let mut lab = lab();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1]);
    lab.publish(s, ROOT, "copy", &[1]);
    lab.ok(s, unlink(ROOT, "f"));
    assert_eq!((lab.state.counters().trash_versions, lab.state.counters().trash_chunks), (1, 0));
    lab.ok(s, unlink(ROOT, "copy"));
    assert_eq!((lab.state.counters().trash_versions, lab.state.counters().trash_chunks), (2, 1));
}

#[test]
fn the_trash_is_in_a_snapshot() {
    let mut lab = lab();
    let s = lab.session(1);
    lab.publish(s, ROOT, "f", &[1, 2]);
    lab.publish(s, ROOT, "g", &[2]);
    lab.ok(s, unlink(ROOT, "f"));
    let bytes = bytes_of(&lab.state);
    let restored = State::read_snapshot(&mut &bytes[..]).expect("reads");
    assert!(restored == lab.state);
    assert_eq!(listed(&restored), [("/f".into(), Reason::Removed)]);
    assert_eq!(restored.trash_retention_ns(), 60 * SECOND_NS);
}
