//! How far the log must reach, noted beside it.
//!
//! Damage at the end of the journal looks like a write that a crash cut short, behind which nothing counts. Entries that this node acknowledged, or its vote, would be gone without a word, and a majority that counts on them with them. So the
//! index and the vote are noted in a file of their own after each flush, before anything is answered, and a log that
//! does not reach that far is refused.
//!
//! The note is never ahead of the log: it is written after the flush, and lowered for good before entries are cut off. The file is
//! made whole and then overwritten in place, within one sector, which needs no sync: a power failure may take it back to
//! an earlier state, which asks for less.

use std::{
    cmp::Ordering,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use dfs_common::durable;
use serde::{Deserialize, Serialize};

use super::{
    StoreError,
    codec::{self, CodecError},
};
use crate::raft::types::Vote;

const NAME: &str = "MARK";
/// Bytes of the file: within one sector, so that it is replaced as a whole.
const SIZE: usize = 64;

/// What was flushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reach {
    /// One more than the index of the last entry; 0 if there was none.
    pub(super) next: u64,
    /// The vote.
    pub(super) vote: Option<Vote>,
}

/// The open file.
pub(super) struct Mark {
    path: PathBuf,
    file: File,
    /// What stands in it.
    noted: Reach,
}

impl Mark {
    /// Opens the note in `root`; without one it begins with nothing.
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let path = root.join(NAME);
        let opened = || {
            if !path.try_exists()? {
                durable::write_file(&path, &block(Reach::default())?)?;
            }
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let mut block = [0; SIZE];
            file.read_at(&mut block, 0)?;
            Ok((file, block))
        };
        let (file, block) = opened().map_err(StoreError::io(&path))?;
        let record = block[1..].get(..usize::from(block[0])).unwrap_or_default();
        let damaged = |error: CodecError| StoreError::Mark { path: path.clone(), reason: error.to_string() };
        let noted = codec::decode(record).map_err(damaged)?;
        Ok(Self { path, file, noted })
    }

    /// Whether a log that reaches as far as `found` is all that was flushed.
    pub(super) fn check(&self, found: Reach, log: &Path) -> Result<(), StoreError> {
        let lost = if found.next < self.noted.next {
            let end =
                found.next.checked_sub(1).map_or_else(|| "it is empty".into(), |last| format!("it ends at {last}"));
            format!("it had entries up to {}, and {end}", self.noted.next.saturating_sub(1))
        } else if found.vote.partial_cmp(&self.noted.vote).is_none_or(Ordering::is_lt) {
            let told = |vote: Option<Vote>| vote.map_or_else(|| "none".into(), |vote| vote.to_string());
            format!("its vote was {}, and is {}", told(self.noted.vote), told(found.vote))
        } else {
            return Ok(());
        };
        Err(StoreError::Lost { path: log.to_owned(), lost, mark: self.path.clone() })
    }

    /// Notes what was flushed.
    pub(super) fn note(&mut self, reach: Reach) -> io::Result<()> {
        if reach == self.noted {
            return Ok(());
        }
        self.file.write_all_at(&block(reach)?, 0)?;
        self.noted = reach;
        Ok(())
    }

    /// Notes for good that the log is about to end before `next`.
    pub(super) fn lower(&mut self, next: u64) -> io::Result<()> {
        if next < self.noted.next {
            self.note(Reach { next, ..self.noted })?;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// What was noted last.
    pub(super) fn noted(&self) -> Reach {
        self.noted
    }
}

/// The file: length of the record, record, zeros.
fn block(reach: Reach) -> io::Result<[u8; SIZE]> {
    let record = codec::encode(&reach).map_err(io::Error::other)?;
    let mut block = [0; SIZE];
    block[0] = u8::try_from(record.len()).map_err(io::Error::other)?;
    let room = block.get_mut(1..=record.len()).ok_or_else(|| io::Error::other("the record is too long"))?;
    room.copy_from_slice(&record);
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_asked_for_and_a_damaged_note_is_named() {
        let tmp = tempfile::tempdir().unwrap();
        let reach = |next, term| Reach { next, vote: Some(Vote::new(term, u64::MAX)) };
        let mut mark = Mark::open(tmp.path()).unwrap();
        mark.check(Reach::default(), tmp.path()).unwrap();
        mark.note(reach(u64::MAX, u64::MAX)).unwrap();
        mark.note(reach(10, 3)).unwrap();
        drop(mark);
        let mut mark = Mark::open(tmp.path()).unwrap();
        mark.check(reach(10, 3), tmp.path()).unwrap();
        mark.check(reach(11, 4), tmp.path()).unwrap();
        for less in [reach(9, 3), reach(10, 2), reach(0, 3), Reach { next: 10, vote: None }] {
            mark.check(less, tmp.path()).expect_err("less than was noted");
        }
        mark.lower(5).unwrap();
        mark.check(reach(5, 3), tmp.path()).unwrap();
        mark.lower(8).unwrap();
        assert_eq!(mark.noted(), reach(5, 3), "lowered only");

        let path = tmp.path().join(NAME);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            std::fs::write(&path, &bad).unwrap();
            // What stands behind the record does not matter.
            if at <= usize::from(good[0]) {
                let error = Mark::open(tmp.path()).err().expect("refused").to_string();
                assert!(error.contains("MARK") && error.contains("remove"), "byte {at}: {error}");
            }
        }
        std::fs::write(&path, []).unwrap();
        Mark::open(tmp.path()).err().expect("an empty file is no note");
    }
}
