//! The listing against a sorted set of paths.

use std::collections::BTreeSet;

use dfs_common::{FileId, SessionId, Uuid};
use proptest::prelude::*;

use super::*;
use crate::fsm::{Batch, Command, Op, Reply};

struct Tree {
    state: State,
    session: SessionId,
    seq: u64,
}

impl Tree {
    fn new() -> Self {
        let mut state = State::default();
        let open = Command::OpenSession { client_id: Uuid([1; 16]), description: String::new() };
        let outcome = state.apply(&Batch { now_ns: 1, entropy: 0, commands: vec![open] }).remove(0);
        let Ok(Reply::Session { session }) = outcome else { panic!("{outcome:?}") };
        Self { state, session, seq: 0 }
    }

    fn run(&mut self, op: Op) -> Option<InodeId> {
        self.seq += 1;
        let command = Command::Mutate { session: self.session, seq: self.seq, acked: self.seq - 1, op };
        let outcome = self.state.apply(&Batch { now_ns: 1, entropy: 0, commands: vec![command] }).remove(0);
        match outcome {
            Ok(Reply::Mutated { attr, .. }) => attr.map(|attr| attr.ino),
            _ => None,
        }
    }

    /// Makes a file and the directories above it; `false` if a name on the way is taken by something else.
    fn file(&mut self, path: &[u8]) -> bool {
        let parts: Vec<&[u8]> = path[1..].split(|b| *b == b'/').collect();
        let (name, above) = parts.split_last().expect("a path has a name");
        let mut parent = InodeId::ROOT;
        for part in above {
            parent = match self.state.lookup(None, parent, part) {
                Ok(attr) if attr.kind == FileKind::Directory => attr.ino,
                Ok(_) => return false,
                Err(_) => {
                    let op = Op::Mkdir { parent, name: part.to_vec(), mode: 0o755, uid: 0, gid: 0 };
                    self.run(op).expect("the name is free")
                }
            };
        }
        let file_id = FileId([1; 16]);
        let (kind, name) = (FileKind::Fifo, name.to_vec());
        self.run(Op::Mknod { parent, name, kind, mode: 0o644, uid: 0, gid: 0, rdev: 0, file_id }).is_some()
    }
}

/// All pages put together.
fn all(state: &State, prefix: &[u8], limit: usize, budget: usize) -> Vec<Vec<u8>> {
    let mut after = Vec::new();
    let mut found: Vec<Vec<u8>> = Vec::new();
    for _ in 0..10_000 {
        let page = list(state, prefix, &after, limit, budget).expect("lists");
        found.extend(page.files.into_iter().map(|(path, _)| path));
        match page.resume {
            Some(resume) => after = resume,
            None => return found,
        }
    }
    panic!("the listing of {prefix:?} does not end");
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'!'), Just(b'.'), Just(b'0')], 1..4)
        .prop_filter("dots are special", |name| name != b"." && name != b"..")
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(name(), 1..4).prop_map(|parts| [b"/".as_slice(), &parts.join(&b'/')].concat())
}

proptest! {
    #[test]
    fn pages_give_the_paths_with_the_prefix_in_byte_order(
        paths in proptest::collection::vec(path(), 0..40),
        prefix in prop_oneof![Just(b"/".to_vec()), path()],
        limit in 1..8usize,
        budget in 1..20usize,
    ) {
        let mut tree = Tree::new();
        let model: BTreeSet<Vec<u8>> = paths.into_iter().filter(|path| tree.file(path)).collect();
        let expected: Vec<_> = model.iter().filter(|path| path.starts_with(&prefix)).cloned().collect();
        prop_assert_eq!(all(&tree.state, &prefix, limit, budget), expected);
    }
}

#[test]
fn a_directory_of_many_names_takes_several_pages() {
    let mut tree = Tree::new();
    let mut expected: Vec<Vec<u8>> = (0..700).map(|n| format!("/d/{n}").into_bytes()).collect();
    expected.iter().for_each(|path| assert!(tree.file(path)));
    expected.sort();
    assert_eq!(all(&tree.state, b"/", 100, 10), expected);
    assert_eq!(all(&tree.state, b"/d/69", 4096, BUDGET).len(), 11);
    assert!(all(&tree.state, b"/nothing/here", 10, 10).is_empty());
}

#[test]
fn empty_directories_are_walked_within_the_budget() {
    let mut tree = Tree::new();
    for n in 0..500 {
        let op = Op::Mkdir { parent: InodeId::ROOT, name: format!("{n:03}").into_bytes(), mode: 0, uid: 0, gid: 0 };
        tree.run(op).expect("free");
    }
    assert!(tree.file(b"/zzz"));
    let first = list(&tree.state, b"/", b"", 10, 50).expect("lists");
    assert!(first.files.is_empty() && first.resume.is_some());
    assert_eq!(all(&tree.state, b"/", 10, 50), [b"/zzz".to_vec()]);
}
