//! What is written is read back; what was not written is refused.

use proptest::prelude::*;

use super::{
    super::{Command, SnapshotError, State, check::check},
    lab::*,
};

/// A state that has something of everything.
fn rich() -> Lab {
    let mut lab = Lab::new();
    let (a, b) = (lab.session(1), lab.session(2));
    let d = lab.mkdir(a, ROOT, "d");
    let file = lab.publish(a, d, "f", &[1, 2, 1]).ino;
    lab.publish(a, ROOT, "gone", &[3]);
    lab.ok(a, unlink(ROOT, "gone"));
    lab.release();
    let id = lab.open_write(b, file);
    lab.ok(b, commit(id, &[stored(1, &[])], false));
    let (made, pending) = lab.create(b, d, "reserved");
    lab.ok(b, link(made.ino, ROOT, "reserved too"));
    lab.must(Command::CommitChunks { receipts: vec![receipt(6, &[1, 4], pending)] });
    lab.ok(
        a,
        super::super::Op::SetXattr {
            ino: file,
            name: b"user.a".to_vec(),
            value: vec![1],
            create: false,
            replace: false,
        },
    );
    lab.code(a, mkdir(ROOT, "d"));
    lab
}

#[test]
fn a_restored_state_is_the_same_and_goes_on_the_same() {
    let mut lab = rich();
    let bytes = bytes_of(&lab.state);
    let mut source = &bytes[..];
    let mut restored = State::read_snapshot(&mut source).expect("just written");
    assert!(source.is_empty());
    assert_eq!(check(&restored), Ok(()));
    assert_eq!(bytes_of(&restored), bytes);
    assert_eq!(restored.counters(), lab.state.counters());
    let batch = super::super::Batch {
        now_ns: 1 << 40,
        entropy: 0,
        commands: vec![
            Command::ExpireSessions { sessions: lab.state.sessions().map(|session| session.id).collect() },
            Command::ReleaseVersions { file_ids: lab.state.garbage().map(|(_, id)| id).collect() },
        ],
    };
    assert_eq!(restored.apply(&batch), lab.state.apply(&batch));
    assert_eq!(bytes_of(&restored), bytes_of(&lab.state));
    assert_eq!(check(&restored), Ok(()));
}

#[test]
fn bytes_behind_a_snapshot_are_left_alone() {
    let mut bytes = bytes_of(&State::default());
    bytes.extend(b"tail");
    let mut source = &bytes[..];
    State::read_snapshot(&mut source).expect("just written");
    assert_eq!(source, b"tail");
}

#[test]
fn a_torn_snapshot_is_refused() {
    let bytes = bytes_of(&rich().state);
    for end in 0..bytes.len() {
        assert!(State::read_snapshot(&mut &bytes[..end]).is_err(), "{end} of {}", bytes.len());
    }
    assert!(matches!(State::read_snapshot(&mut &[9, 0, 0, 0][..]), Err(SnapshotError::Format { found: 9 })));
}

#[test]
fn a_snapshot_of_a_clone_is_not_changed_by_later_commands() {
    let mut lab = rich();
    let frozen = lab.state.clone();
    let bytes = bytes_of(&frozen);
    let s = lab.session(1);
    lab.mkdir(s, ROOT, "later");
    assert_eq!(bytes_of(&frozen), bytes);
    assert_ne!(bytes_of(&lab.state), bytes);
}

#[test]
fn lists_longer_than_a_record_are_cut_and_joined() {
    let mut lab = Lab::new();
    let s = lab.session(1);
    let (attr, id) = lab.create(s, ROOT, "large");
    let chunks = vec![stored(1, &[1, 2]); 10_000];
    lab.ok(s, commit(id, &chunks, true));
    let restored = State::read_snapshot(&mut &bytes_of(&lab.state)[..]).expect("just written");
    assert_eq!(restored.layout(attr.ino), lab.state.layout(attr.ino));
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = State::read_snapshot(&mut &noise[..]);
        let framed = [&1_u32.to_le_bytes()[..], &noise].concat();
        prop_assert!(State::read_snapshot(&mut &framed[..]).is_err());
    }

    #[test]
    fn a_damaged_snapshot_gives_an_error_or_a_state_that_does_not_panic(
        at in any::<prop::sample::Index>(), value in any::<u8>(),
    ) {
        let mut bytes = bytes_of(&rich().state);
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(mut state) = State::read_snapshot(&mut &bytes[..]) {
            let sessions = state.sessions().map(|session| session.id).collect();
            let file_ids = state.garbage().map(|(_, id)| id).collect();
            let commands = vec![Command::ExpireSessions { sessions }, Command::ReleaseVersions { file_ids }];
            state.apply(&super::super::Batch { now_ns: 0, entropy: 0, commands });
        }
    }
}
