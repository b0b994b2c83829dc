//! The journal, with power that fails at any byte.

use proptest::prelude::*;

use super::*;
use crate::raft::types::{Entry, LogId};

const SMALL: u64 = 2000;

fn id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(term, 1), index)
}

fn entry(term: u64, index: u64) -> (u64, Vec<u8>) {
    let entry: Entry = openraft::entry::RaftEntry::new_blank(id(term, index));
    (index, codec::encode(&entry).unwrap())
}

fn open(dir: &Path) -> Journal {
    Journal::open(dir, SMALL).unwrap().0
}

/// Everything that a journal says: term and index of each entry, vote, committed and purged position.
type Told = (Vec<(u64, u64)>, Option<Vote>, Option<LogId>, Option<LogId>);

fn told(dir: &Path) -> Told {
    let (journal, contents) = Journal::open(dir, SMALL).unwrap();
    let entries: Vec<(u64, u64)> = contents.entries.iter().map(|(id, _)| (id.leader_id.term, id.index)).collect();
    let read = journal.read(0, u64::MAX).unwrap();
    let read: Vec<(u64, u64)> = read.iter().map(|entry| (entry.log_id.leader_id.term, entry.log_id.index)).collect();
    assert_eq!(read, entries, "what can be read is what was found");
    (entries, contents.vote, contents.committed, contents.purged)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[derive(Clone, Debug)]
enum Step {
    Append(u64),
    Truncate(u64),
    Purge(u64),
    Vote,
    Committed,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..20u64).prop_map(Step::Append),
        1 => (0..10u64).prop_map(Step::Truncate),
        2 => (0..30u64).prop_map(Step::Purge),
        1 => Just(Step::Vote),
        1 => Just(Step::Committed),
        1 => Just(Step::Reopen),
    ]
}

/// What a journal must say.
#[derive(Clone, Default, Debug, PartialEq)]
struct Model {
    first: u64,
    terms: Vec<u64>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    term: u64,
}

impl Model {
    fn next(&self) -> u64 {
        self.first + self.terms.len() as u64
    }

    fn apply(&mut self, step: &Step, journal: &Journal) {
        match step {
            Step::Append(count) => {
                let entries: Vec<_> = (self.next()..self.next() + count).map(|index| entry(self.term, index)).collect();
                journal.put_entries(&entries).unwrap();
                self.terms.extend(std::iter::repeat_n(self.term, entries.len()));
            }
            Step::Truncate(count) => {
                let left = self.terms.len().saturating_sub(usize::try_from(*count).unwrap());
                self.terms.truncate(left);
                journal.truncate(self.next());
                self.term += 1;
            }
            Step::Purge(count) => {
                let count = (*count).min(self.terms.len() as u64);
                let Some(upto) = (self.first + count).checked_sub(1) else { return };
                self.terms.drain(..usize::try_from(count).unwrap());
                self.first += count;
                self.purged = Some(id(1, upto));
                journal.purge(upto, codec::encode(&id(1, upto)).unwrap());
            }
            Step::Vote => {
                self.term += 1;
                let vote = Vote::new(self.term, 1);
                self.vote = Some(vote);
                journal.put_vote(codec::encode(&vote).unwrap());
            }
            Step::Committed => {
                let committed = id(self.term, self.next());
                self.committed = Some(committed);
                journal.put_committed(codec::encode(&committed).unwrap());
            }
            Step::Reopen => {}
        }
    }

    fn told(&self) -> Told {
        let entries = self.terms.iter().copied().zip(self.first..).collect();
        (entries, self.vote, self.committed, self.purged)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// The last flush is cut short at any byte, or loses any block of it: the journal says what it said before, or what a part
    /// of the last changes makes of it, and goes on from there.
    #[test]
    fn a_power_failure_takes_nothing_that_was_flushed(
        steps in prop::collection::vec(step(), 1..40),
        last in prop::collection::vec(step(), 1..6),
        cut in any::<prop::sample::Index>(),
        hole in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(dir.path());
        let mut model = Model::default();
        for step in &steps {
            model.apply(step, &journal);
            journal.flush().unwrap();
            if matches!(step, Step::Reopen) {
                drop(journal);
                prop_assert_eq!(told(dir.path()), model.told());
                journal = open(dir.path());
            }
        }
        // Each of the last changes may be there, but none without those before it.
        let (path, end) = { let tail = journal.tail(); (path_of(dir.path(), tail.number), tail.end) };
        let mut possible = vec![model.told()];
        for step in &last {
            match step {
                // One entry is a record of its own.
                Step::Append(count) => for _ in 0..*count {
                    model.apply(&Step::Append(1), &journal);
                    possible.push(model.told());
                },
                step => {
                    model.apply(step, &journal);
                    possible.push(model.told());
                }
            }
        }
        let unwritten = {
            let tail = &mut *journal.tail();
            let length = tail.unwritten.len();
            tail.write(SMALL).unwrap();
            length
        };
        drop(journal);
        prop_assert_eq!(told(dir.path()), model.told());
        if unwritten > 0 {
            let mut bytes = fs::read(&path).unwrap();
            let end = usize::try_from(end).unwrap();
            let (cut, hole) = (end + cut.index(unwritten + 1), end + hole.index(unwritten));
            bytes[cut..].fill(0);
            let hole_end = (hole + 64).min(bytes.len());
            bytes[hole..hole_end].fill(0);
            fs::write(&path, &bytes).unwrap();
            let found = told(dir.path());
            prop_assert!(possible.contains(&found), "{found:?}");
            // What was behind the hole must not come back when the hole is filled.
            let journal = open(dir.path());
            let vote = Vote::new(1000, 1);
            journal.put_vote(codec::encode(&vote).unwrap());
            journal.flush().unwrap();
            drop(journal);
            prop_assert_eq!(told(dir.path()), (found.0, Some(vote), found.2, found.3));
        }
    }
}

#[test]
fn damage_in_a_sealed_file_is_refused_and_a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    for index in 0..300 {
        journal.put_entries(&[entry(1, index)]).unwrap();
        journal.flush().unwrap();
    }
    drop(journal);
    assert!(names(dir.path()).len() > 3, "{:?}", names(dir.path()));
    let refused = || Journal::open(dir.path(), FILE_BYTES).err().expect("refused").to_string();
    let path = path_of(dir.path(), 2);
    let good = fs::read(&path).unwrap();
    for at in [0, 30, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, &bad).unwrap();
        let error = refused();
        assert!(error.contains("journal-0000000002") && error.contains("start this node again"), "byte {at}: {error}");
    }
    fs::write(&path, &good[..good.len() - 1]).unwrap();
    assert!(refused().contains("journal-0000000002"));
    fs::remove_file(&path).unwrap();
    let error = refused();
    assert!(error.contains("journal-0000000002") && error.contains("missing"), "{error}");
    fs::write(&path, &good).unwrap();
    assert_eq!(told(dir.path()).0.len(), 300);
}

#[test]
fn damage_that_comes_later_is_found_by_the_reader() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.put_entries(&[entry(1, 0), entry(1, 1)]).unwrap();
    journal.flush().unwrap();
    let at = journal.index().entries[&1].at;
    journal.tail().file.write_all_at(b"!", at + 2).unwrap();
    assert_eq!(journal.read(0, 1).unwrap().len(), 1);
    let error = journal.read(0, 2).unwrap_err().to_string();
    assert!(error.contains("entry 1") && error.contains("journal-0000000001"), "{error}");
}

#[test]
fn what_is_purged_gives_its_files_back_also_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(dir.path());
    journal.put_vote(codec::encode(&Vote::new(7, 1)).unwrap());
    for index in 0..500 {
        journal.put_entries(&[entry(1, index)]).unwrap();
        journal.flush().unwrap();
    }
    let before = names(dir.path()).len();
    assert!(before > 5);
    journal.purge(300, codec::encode(&id(1, 300)).unwrap());
    // Its record is on disk, and the crash comes before a file is removed.
    journal.tail().write(SMALL).unwrap();
    drop(journal);
    assert_eq!(names(dir.path()).len(), before);
    let journal = open(dir.path());
    journal.flush().unwrap();
    let left = names(dir.path()).len();
    assert!(left < before / 2 + 2, "{left} of {before}");
    let size: u64 = names(dir.path()).iter().map(|name| fs::metadata(dir.path().join(name)).unwrap().len()).sum();
    assert_eq!(journal.size_bytes(), size);
    drop(journal);
    let (entries, vote, _, purged) = told(dir.path());
    assert_eq!(entries, (301..500).map(|index| (1, index)).collect::<Vec<_>>());
    assert_eq!((vote, purged), (Some(Vote::new(7, 1)), Some(id(1, 300))));
}

#[test]
fn a_file_that_was_to_appear_is_forgotten_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    fs::write(dir.path().join("journal-0000000002.tmp"), "half").unwrap();
    drop(open(dir.path()));
    assert_eq!(names(dir.path()), ["journal-0000000001"]);
}

#[test]
fn most_flushes_change_neither_size_nor_extents_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(dir.path(), FILE_BYTES).unwrap();
    let mut lengths = std::collections::BTreeSet::new();
    for index in 0..1000 {
        journal.put_entries(&[entry(1, index)]).unwrap();
        journal.flush().unwrap();
        lengths.insert(fs::metadata(path_of(dir.path(), 1)).unwrap().len());
    }
    assert_eq!(lengths.len(), 1, "{lengths:?}");
}
