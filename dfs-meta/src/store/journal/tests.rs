//! The journal, with power that fails at any byte.

use std::error::Error;

use proptest::prelude::*;

use super::*;
use crate::raft::types::{Entry, LogId};

const SMALL: u64 = 2000;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(term, 1), index)
}

fn record(value: &impl serde::Serialize) -> Vec<u8> {
    codec::encode(value).expect("it can be encoded")
}

fn entry(term: u64, index: u64) -> (u64, Vec<u8>) {
    let entry: Entry = openraft::entry::RaftEntry::new_blank(id(term, index));
    (index, record(&entry))
}

fn open(dir: &Path) -> Outcome<Journal> {
    Ok(Journal::open(dir, SMALL)?.0)
}

/// Puts and flushes the first `count` entries, one by one.
fn fill(journal: &Journal, count: u64) -> Outcome {
    for index in 0..count {
        journal.put_entries(&[entry(1, index)])?;
        journal.flush()?;
    }
    Ok(())
}

/// Everything that a journal says: term and index of each entry, vote, committed and purged position.
type Told = (Vec<(u64, u64)>, Option<Vote>, Option<LogId>, Option<LogId>);

fn told(dir: &Path) -> Outcome<Told> {
    let (journal, contents) = Journal::open(dir, SMALL)?;
    let entries: Vec<(u64, u64)> = contents.entries.iter().map(|(id, _)| (id.leader_id.term, id.index)).collect();
    let read = journal.read(0, u64::MAX)?;
    let read: Vec<(u64, u64)> = read.iter().map(|entry| (entry.log_id.leader_id.term, entry.log_id.index)).collect();
    assert_eq!(read, entries, "what can be read is what was found");
    Ok((entries, contents.vote, contents.committed, contents.purged))
}

fn names(dir: &Path) -> Outcome<Vec<String>> {
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names = fs::read_dir(dir)?.map(name).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
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

    fn apply(&mut self, step: &Step, journal: &Journal) -> Outcome {
        match step {
            Step::Append(count) => {
                let entries: Vec<_> = (self.next()..self.next() + count).map(|index| entry(self.term, index)).collect();
                journal.put_entries(&entries)?;
                self.terms.extend(std::iter::repeat_n(self.term, entries.len()));
            }
            Step::Truncate(count) => {
                let left = self.terms.len().saturating_sub(usize::try_from(*count)?);
                self.terms.truncate(left);
                journal.truncate(self.next());
                self.term += 1;
            }
            Step::Purge(count) => {
                let count = (*count).min(self.terms.len() as u64);
                let Some(upto) = (self.first + count).checked_sub(1) else { return Ok(()) };
                self.terms.drain(..usize::try_from(count)?);
                self.first += count;
                self.purged = Some(id(1, upto));
                journal.purge(upto, record(&id(1, upto)));
            }
            Step::Vote => {
                self.term += 1;
                let vote = Vote::new(self.term, 1);
                self.vote = Some(vote);
                journal.put_vote(record(&vote));
            }
            Step::Committed => {
                let committed = id(self.term, self.next());
                self.committed = Some(committed);
                journal.put_committed(record(&committed));
            }
            Step::Reopen => {}
        }
        Ok(())
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
        power_fails(&steps, &last, cut, hole).map_err(|error| TestCaseError::fail(error.to_string()))?;
    }
}

/// `steps` are flushed, `last` is cut at `cut` and lacks 64 bytes at `hole`.
fn power_fails(steps: &[Step], last: &[Step], cut: prop::sample::Index, hole: prop::sample::Index) -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut journal = open(dir.path())?;
    let mut model = Model::default();
    for step in steps {
        model.apply(step, &journal)?;
        journal.flush()?;
        if matches!(step, Step::Reopen) {
            drop(journal);
            assert_eq!(told(dir.path())?, model.told());
            journal = open(dir.path())?;
        }
    }
    let (path, end) = {
        let tail = journal.tail();
        (path_of(dir.path(), tail.number), usize::try_from(tail.end)?)
    };
    // Each of the last changes may be there, but none without those before it. One entry is a record of its own.
    let single = |step: &Step| match step {
        Step::Append(count) => vec![Step::Append(1); usize::try_from(*count).expect("it is small")],
        step => vec![step.clone()],
    };
    let mut possible = vec![model.told()];
    for step in last.iter().flat_map(single) {
        model.apply(&step, &journal)?;
        possible.push(model.told());
    }
    let unwritten = {
        let tail = &mut *journal.tail();
        let length = tail.unwritten.len();
        tail.write(SMALL)?;
        length
    };
    drop(journal);
    assert_eq!(told(dir.path())?, model.told());
    if unwritten == 0 {
        return Ok(());
    }
    let mut bytes = fs::read(&path)?;
    let (cut, hole) = (end + cut.index(unwritten + 1), end + hole.index(unwritten));
    bytes[cut..].fill(0);
    let hole_end = (hole + 64).min(bytes.len());
    bytes[hole..hole_end].fill(0);
    fs::write(&path, &bytes)?;
    let found = told(dir.path())?;
    assert!(possible.contains(&found), "{found:?}");
    // What was behind the hole must not come back when the hole is filled.
    let journal = open(dir.path())?;
    let vote = Vote::new(1000, 1);
    journal.put_vote(record(&vote));
    journal.flush()?;
    drop(journal);
    assert_eq!(told(dir.path())?, (found.0, Some(vote), found.2, found.3));
    Ok(())
}

#[test]
fn damage_in_a_sealed_file_is_refused_and_a_missing_file_is_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    fill(&open(dir.path())?, 300)?;
    assert!(names(dir.path())?.len() > 3, "{:?}", names(dir.path())?);
    let refused = || Journal::open(dir.path(), FILE_BYTES).err().expect("refused").to_string();
    let path = path_of(dir.path(), 2);
    let good = fs::read(&path)?;
    for at in [0, 30, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 4;
        fs::write(&path, &bad)?;
        let error = refused();
        assert!(error.contains("journal-0000000002") && error.contains("start this node again"), "byte {at}: {error}");
    }
    fs::write(&path, &good[..good.len() - 1])?;
    assert!(refused().contains("journal-0000000002"));
    fs::remove_file(&path)?;
    let error = refused();
    assert!(error.contains("journal-0000000002") && error.contains("missing"), "{error}");
    fs::write(&path, &good)?;
    assert_eq!(told(dir.path())?.0.len(), 300);
    Ok(())
}

#[test]
fn damage_that_comes_later_is_found_by_the_reader() -> Outcome {
    let dir = tempfile::tempdir()?;
    let journal = open(dir.path())?;
    journal.put_entries(&[entry(1, 0), entry(1, 1)])?;
    journal.flush()?;
    let at = journal.index().entries[&1].at;
    journal.tail().file.write_all_at(b"!", at + 2)?;
    assert_eq!(journal.read(0, 1)?.len(), 1);
    let error = journal.read(0, 2).expect_err("it is damaged").to_string();
    assert!(error.contains("entry 1") && error.contains("journal-0000000001"), "{error}");
    Ok(())
}

#[test]
fn what_is_purged_gives_its_files_back_also_after_a_crash() -> Outcome {
    let dir = tempfile::tempdir()?;
    let journal = open(dir.path())?;
    journal.put_vote(record(&Vote::new(7, 1)));
    fill(&journal, 500)?;
    let before = names(dir.path())?.len();
    assert!(before > 5);
    journal.purge(300, record(&id(1, 300)));
    // Its record is on disk, and the crash comes before a file is removed.
    journal.tail().write(SMALL)?;
    drop(journal);
    assert_eq!(names(dir.path())?.len(), before);
    let journal = open(dir.path())?;
    journal.flush()?;
    let left = names(dir.path())?.len();
    assert!(left < before / 2 + 2, "{left} of {before}");
    let size = names(dir.path())?
        .iter()
        .map(|name| Ok(fs::metadata(dir.path().join(name))?.len()))
        .sum::<io::Result<u64>>()?;
    assert_eq!(journal.size_bytes(), size);
    drop(journal);
    let (entries, vote, _, purged) = told(dir.path())?;
    assert_eq!(entries, (301..500).map(|index| (1, index)).collect::<Vec<_>>());
    assert_eq!((vote, purged), (Some(Vote::new(7, 1)), Some(id(1, 300))));
    Ok(())
}

#[test]
fn a_file_that_was_to_appear_is_forgotten_after_a_crash() -> Outcome {
    let dir = tempfile::tempdir()?;
    drop(open(dir.path())?);
    fs::write(dir.path().join("journal-0000000002.tmp"), "half")?;
    drop(open(dir.path())?);
    assert_eq!(names(dir.path())?, ["journal-0000000001"]);
    Ok(())
}

#[test]
fn most_flushes_change_neither_size_nor_extents_of_the_file() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (journal, _) = Journal::open(dir.path(), FILE_BYTES)?;
    let mut lengths = std::collections::BTreeSet::new();
    for index in 0..1000 {
        journal.put_entries(&[entry(1, index)])?;
        journal.flush()?;
        lengths.insert(fs::metadata(path_of(dir.path(), 1))?.len());
    }
    assert_eq!(lengths.len(), 1, "{lengths:?}");
    Ok(())
}
