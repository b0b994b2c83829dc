//! Creating, writing, publishing; who sees what until then.

use dfs_common::{ErrorCode, FileId, SetAttr, SetTime};

use super::{
    super::{Command, Op, Reply},
    lab::*,
};

#[test]
fn a_created_name_is_seen_by_its_session_only_until_it_is_published() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let (attr, id) = lab.create(a, ROOT, "f");
    assert_eq!((attr.size, attr.nlink, attr.file_id), (0, 1, None));
    assert_eq!(lab.look(a, ROOT, "f"), Ok(attr.clone()));
    assert_eq!(lab.look(b, ROOT, "f"), Err(ErrorCode::NotFound));
    assert_eq!(lab.state.getattr(Some(b), attr.ino), Err(ErrorCode::NotFound));
    assert_eq!(lab.code(b, Op::SetAttr { ino: attr.ino, set: SetAttr::default() }), ErrorCode::NotFound);
    lab.ok(a, Op::SetAttr { ino: attr.ino, set: SetAttr { mode: Some(0o600), ..SetAttr::default() } });
    let published = lab.attr(a, commit(id, &[stored(1, &[1, 2])], false));
    assert_eq!((published.size, published.file_id, published.mode), (100, Some(id), 0o600));
    assert_eq!(lab.look(b, ROOT, "f"), Ok(published));
    assert!(lab.state.pending(id).is_some());
    lab.ok(a, commit(id, &[stored(1, &[])], true));
    assert!(lab.state.pending(id).is_none());
}

#[test]
fn one_of_two_exclusive_creators_wins() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    lab.ok(a, create_exclusive(ROOT, "f", file_id(1)));
    assert_eq!(lab.code(b, create_exclusive(ROOT, "f", file_id(2))), ErrorCode::AlreadyExists);
    assert_eq!(lab.code(a, create_exclusive(ROOT, "f", file_id(2))), ErrorCode::AlreadyExists);
    assert_eq!(lab.code(b, mkdir(ROOT, "f")), ErrorCode::AlreadyExists);
    lab.ok(a, commit(file_id(1), &[], true));
    assert_eq!(lab.code(b, create_exclusive(ROOT, "f", file_id(2))), ErrorCode::AlreadyExists);
}

#[test]
fn create_without_exclusive_finds_what_is_there() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let there = lab.publish(a, ROOT, "f", &[1]);
    let reply = lab.ok(b, create(ROOT, "f", file_id(90)));
    assert_eq!(reply, Reply::Mutated { attr: Some(there), file_id: None, existed: true });
    assert!(lab.state.pending(file_id(90)).is_none());
    let (mine, _) = lab.create(b, ROOT, "g");
    let reply = lab.ok(b, create(ROOT, "g", file_id(91)));
    assert_eq!(reply, Reply::Mutated { attr: Some(mine), file_id: None, existed: true });
    lab.mkdir(a, ROOT, "d");
    assert_eq!(lab.code(b, create(ROOT, "d", file_id(92))), ErrorCode::IsDirectory);
}

#[test]
fn the_last_publisher_of_a_name_wins() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let (first, first_id) = lab.create(a, ROOT, "f");
    let (second, second_id) = lab.create(b, ROOT, "f");
    assert_ne!(first.ino, second.ino);
    lab.ok(a, commit(first_id, &[stored(1, &[1, 2])], true));
    assert_eq!(lab.look(a, ROOT, "f").map(|attr| attr.ino), Ok(first.ino));
    assert_eq!(lab.look(b, ROOT, "f").map(|attr| attr.ino), Ok(second.ino));
    lab.ok(b, commit(second_id, &[stored(2, &[1, 2])], true));
    assert_eq!(lab.look(a, ROOT, "f").map(|attr| attr.ino), Ok(second.ino));
    assert_eq!(lab.state.getattr(None, first.ino), Err(ErrorCode::NotFound));
    assert_eq!(lab.state.garbage().map(|(_, id)| id).collect::<Vec<_>>(), [first_id]);
}

#[test]
fn a_directory_that_took_the_name_is_not_replaced() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let (_, id) = lab.create(a, ROOT, "f");
    lab.mkdir(b, ROOT, "d");
    lab.ok(b, rename((ROOT, "d"), (ROOT, "f")));
    assert_eq!(lab.code(a, commit(id, &[], true)), ErrorCode::IsDirectory);
    lab.ok(a, Op::AbortFile { file_id: id });
}

#[test]
fn the_own_unpublished_name_can_be_renamed_linked_and_unlinked() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let old = lab.publish(a, ROOT, "final", &[1]).ino;
    let (tmp, id) = lab.create(a, ROOT, "tmp");
    lab.ok(a, rename((ROOT, "tmp"), (ROOT, "final")));
    assert_eq!(lab.look(a, ROOT, "final").map(|attr| attr.ino), Ok(tmp.ino));
    assert_eq!(lab.look(b, ROOT, "final").map(|attr| attr.ino), Ok(old));
    assert_eq!(lab.attr(a, link(tmp.ino, ROOT, "other")).nlink, 2);
    lab.ok(a, commit(id, &[stored(2, &[1, 2])], true));
    assert_eq!(lab.names(b, ROOT), ["final", "other"]);
    assert_eq!(lab.look(b, ROOT, "final").map(|attr| (attr.ino, attr.nlink)), Ok((tmp.ino, 2)));
}

#[test]
fn an_unlinked_unpublished_file_can_be_written_to_its_end() {
    let mut lab = Lab::new();
    let a = lab.session(1);
    let (attr, id) = lab.create(a, ROOT, "f");
    assert_eq!(lab.attr(a, unlink(ROOT, "f")).nlink, 0);
    assert_eq!(lab.look(a, ROOT, "f"), Err(ErrorCode::NotFound));
    let published = lab.attr(a, commit(id, &[stored(1, &[1, 2])], false));
    assert_eq!((published.nlink, published.size), (0, 100));
    assert_eq!(lab.content(attr.ino), [1]);
    lab.ok(a, commit(id, &[stored(1, &[]), stored(2, &[1, 2])], true));
    assert_eq!(lab.state.getattr(Some(a), attr.ino), Err(ErrorCode::NotFound));
    lab.release();
    assert_eq!(lab.state.counters().versions, 0);
    assert_eq!(lab.doomed(1), [1, 2]);
}

#[test]
fn an_unlinked_published_file_can_be_written_to_its_end() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let file = lab.publish(a, ROOT, "f", &[1]).ino;
    let id = lab.open_write(a, file);
    lab.ok(b, unlink(ROOT, "f"));
    assert_eq!(lab.state.getattr(Some(a), file).map(|attr| attr.nlink), Ok(0));
    assert_eq!(lab.code(a, link(file, ROOT, "again")), ErrorCode::NotFound);
    lab.ok(a, commit(id, &[stored(2, &[1, 2])], true));
    assert_eq!(lab.state.getattr(Some(a), file), Err(ErrorCode::NotFound));
    assert_eq!(lab.state.counters().garbage_versions, 2);
}

#[test]
fn each_flush_publishes_under_an_id_of_its_own() {
    let mut lab = Lab::new();
    let a = lab.session(1);
    let (attr, id) = lab.create(a, ROOT, "f");
    let first = lab.attr(a, commit(id, &[stored(1, &[1, 2])], false)).file_id;
    let second = lab.attr(a, commit(id, &[stored(1, &[]), stored(2, &[1, 2])], false)).file_id;
    let third = lab.attr(a, commit(id, &[stored(2, &[])], false)).file_id;
    assert_eq!(first, Some(id));
    assert!(second != first && third != first && third != second);
    assert_eq!(lab.content(attr.ino), [2]);
    let old = lab.state.layout_of(id).expect("a garbage version that is kept can be read");
    assert_eq!((old.layout.size(), old.attr.map(|attr| attr.ino)), (100, Some(attr.ino)));
    lab.release();
    assert_eq!(lab.state.layout_of(id), Err(ErrorCode::Stale));
    assert_eq!(lab.doomed(1), [1]);
}

#[test]
fn the_same_content_again_sets_only_the_given_attributes() {
    let mut lab = Lab::new();
    let a = lab.session(1);
    let (_, id) = lab.create(a, ROOT, "f");
    let first = lab.attr(a, commit(id, &[stored(1, &[1, 2])], false));
    assert_eq!(lab.attr(a, commit(id, &[stored(1, &[])], false)), first);
    let set = SetAttr { mode: Some(0o400), mtime: Some(SetTime::At(5)), ..SetAttr::default() };
    let op = Op::CommitFile { file_id: id, size: 100, chunks: vec![stored(1, &[])], set, done: true };
    let timed = lab.attr(a, op);
    assert_eq!((timed.mtime_ns, timed.mode, timed.file_id), (5, 0o400, first.file_id));
    assert_eq!(lab.state.counters().garbage_versions, 0);
}

#[test]
fn an_empty_file_is_published_without_chunks() {
    let mut lab = Lab::new();
    let a = lab.session(1);
    let file = lab.publish(a, ROOT, "empty", &[]);
    assert_eq!(file.size, 0);
    assert!(file.file_id.is_some());
    assert_eq!(lab.content(file.ino), [0; 0]);
}

#[test]
fn content_is_checked_and_the_faulty_chunk_named() {
    let mut lab = Lab::new();
    let a = lab.session(1);
    let (_, id) = lab.create(a, ROOT, "f");
    let mut long = stored(3, &[1, 2]);
    long.length = SLOT + 1;
    let mut hole = stored(0, &[]);
    hole.length = 1;
    for (chunks, what) in [
        (vec![stored(1, &[])], "unknown"),
        (vec![stored(1, &[1])], "1 known nodes"),
        (vec![stored(1, &[1, 1])], "1 known nodes"),
        (vec![stored(1, &[1, 77])], "1 known nodes"),
        (vec![long], "do not fit"),
        (vec![hole], "hole"),
    ] {
        let before = bytes_of(&lab.state).len();
        let chunks = [vec![stored(9, &[1, 2])], chunks].concat();
        let refusal = lab.run(a, commit(id, &chunks, true)).expect_err(what);
        assert_eq!(refusal.code, ErrorCode::InvalidArgument, "{what}");
        assert!(refusal.message.starts_with("chunk 1 (") && refusal.message.contains(what), "{refusal}");
        assert!(lab.state.chunk(chunk_id(9)).is_none(), "{before}: a refused commit changes nothing");
    }
    let size = |size| Op::CommitFile {
        file_id: id,
        size,
        chunks: vec![stored(1, &[1, 2])],
        set: SetAttr::default(),
        done: false,
    };
    assert_eq!(lab.code(a, size(0)), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(a, size(101)), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(a, size(u64::MAX)), ErrorCode::TooLarge);
    lab.ok(a, size(1));
}

#[test]
fn holes_need_no_chunk() {
    let mut lab = Lab::new();
    let a = lab.session(1);
    let (attr, id) = lab.create(a, ROOT, "sparse");
    let hole = super::super::CommittedChunk { length: 0, ..stored(0, &[]) };
    lab.ok(a, commit(id, &[hole.clone(), stored(1, &[1, 2]), hole], true));
    assert_eq!(lab.content(attr.ino), [0, 1, 0]);
    assert_eq!(lab.state.counters().chunks, 1);
}

#[test]
fn holes_in_a_row_are_one_item() {
    let mut lab = Lab::new();
    let a = lab.session(1);
    let (attr, id) = lab.create(a, ROOT, "sparse");
    let holes = |slots| super::super::CommittedChunk { length: 0, slots, ..stored(0, &[]) };
    let sized = |slots: u64, chunks| Op::CommitFile {
        file_id: id,
        size: slots * u64::from(SLOT),
        chunks,
        set: SetAttr::default(),
        done: false,
    };
    lab.ok(a, sized(6, vec![holes(3), stored(1, &[1, 2]), holes(2)]));
    assert_eq!(lab.content(attr.ino), [0, 0, 0, 1, 0, 0]);
    // The same written otherwise is no change.
    let versions = lab.state.counters().versions;
    lab.ok(a, sized(6, vec![holes(1), holes(2), stored(1, &[1, 2]), holes(2)]));
    assert_eq!(lab.state.counters().versions, versions);
    assert_eq!(lab.code(a, sized(5, vec![holes(6)])), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(a, sized(6, vec![holes(0); 6])), ErrorCode::InvalidArgument);
    let row = super::super::CommittedChunk { slots: 2, ..stored(1, &[1, 2]) };
    assert_eq!(lab.code(a, sized(2, vec![row])), ErrorCode::InvalidArgument);
    let most = dfs_common::layout::CHUNKS_MAX;
    assert_eq!(lab.code(a, sized(most + 1, vec![holes(u32::MAX); 2])), ErrorCode::TooLarge);
    lab.ok(a, sized(most, vec![holes(u32::try_from(most).expect("a u32"))]));
    assert_eq!(lab.content(attr.ino).len() as u64, most);
}

#[test]
fn pending_versions_belong_to_their_session() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let file = lab.publish(a, ROOT, "f", &[1]).ino;
    let id = lab.open_write(a, file);
    assert_eq!(lab.code(b, commit(id, &[], true)), ErrorCode::Stale);
    assert_eq!(lab.code(b, Op::AbortFile { file_id: id }), ErrorCode::Stale);
    assert_eq!(lab.code(b, Op::OpenWrite { ino: file, file_id: id }), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(b, Op::OpenWrite { ino: file, file_id: FileId([0; 16]) }), ErrorCode::InvalidArgument);
    assert_eq!(lab.code(b, Op::OpenWrite { ino: ROOT, file_id: file_id(80) }), ErrorCode::IsDirectory);
    lab.ok(a, Op::AbortFile { file_id: id });
    lab.ok(a, Op::AbortFile { file_id: id });
    assert_eq!(lab.code(a, commit(id, &[], true)), ErrorCode::Stale);
    assert_eq!(lab.content(file), [1]);
}

#[test]
fn two_writers_publish_whole_versions() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let file = lab.publish(a, ROOT, "f", &[1]).ino;
    let (x, y) = (lab.open_write(a, file), lab.open_write(b, file));
    lab.ok(a, commit(x, &[stored(1, &[]), stored(2, &[1, 2])], true));
    lab.ok(b, commit(y, &[stored(1, &[]), stored(3, &[1, 2])], true));
    assert_eq!(lab.content(file), [1, 3]);
    assert_eq!(lab.state.counters().garbage_bytes, 100);
}

#[test]
fn a_session_that_ends_takes_what_it_did_not_publish_along() {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let file = lab.publish(a, ROOT, "f", &[1]).ino;
    let (_, created) = lab.create(a, ROOT, "g");
    let opened = lab.open_write(a, file);
    lab.must(Command::CommitChunks { receipts: vec![receipt(5, &[1], created), receipt(6, &[2], opened)] });
    assert_eq!(lab.state.counters().garbage_chunks, 0);
    lab.must(Command::ExpireSessions { sessions: vec![a, a] });
    assert_eq!(lab.state.counters().pending, 0);
    assert_eq!(lab.names(b, ROOT), ["f"]);
    assert_eq!(lab.content(file), [1]);
    // A resumed upload may list them again: they wait for their grace time as copies that no version lists.
    assert!(lab.state.chunk(chunk_id(5)).is_none() && lab.state.chunk(chunk_id(6)).is_none());
    assert_eq!((lab.doomed(1), lab.doomed(2)), (vec![], vec![]));
    lab.ok(b, create_exclusive(ROOT, "g", file_id(70)));
}
