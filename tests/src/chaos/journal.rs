//! What a worker did and saw, line by line in a file outside of the cluster: it outlives the worker.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::history::{Answer, Call, Ns, Object, Operation};

/// One line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Line {
    /// An operation on a small object begins.
    Called {
        /// On what.
        object: Object,
        /// What.
        call: Call,
        /// When.
        at: Ns,
    },
    /// It ends.
    Returned {
        /// How.
        answer: Answer,
        /// When; for a read, when its version was chosen.
        at: Ns,
    },
    /// What is known of a tree from now on.
    Tree {
        /// Its number.
        number: u64,
        /// The file with its checksums.
        manifest: PathBuf,
        /// Where it is.
        standing: Standing,
    },
    /// A step was taken, and how it went.
    Step {
        /// Which.
        what: String,
        /// Whether the programs of the step saw no error.
        well: bool,
    },
    /// A promise was not kept.
    Violation(String),
}

/// What is known of a tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Standing {
    /// Acknowledged: complete under this name.
    Whole(String),
    /// Acknowledged, and complete under one of these names.
    Either(String, String),
    /// Acknowledged to be removed from this name.
    Gone(String),
    /// Nothing: some program failed half way.
    Unsure,
}

/// The file.
#[derive(Debug)]
pub struct Journal {
    file: File,
}

impl Journal {
    /// Opens it for more lines.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self { file: file.with_context(|| path.display().to_string())? })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text)
    }

    /// Adds what was promised and not kept, with the time.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn violation(&mut self, text: String) -> io::Result<()> {
        self.add(&Line::Violation(format!("{text} (at {:.3} s)", now() as f64 / 1e9)))
    }
}

/// Nanoseconds of the machine's monotonic clock, which all processes share.
#[must_use]
pub fn now() -> Ns {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the structure that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    Ns::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + Ns::try_from(time.tv_nsec).unwrap_or(0)
}

/// All lines of a journal. A last line that is cut off is none.
///
/// # Errors
/// It cannot be read, or holds something else.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display())))
        .collect()
}

/// The operations in a journal; one without an end is unknown.
#[must_use]
pub fn operations(client: &str, lines: &[Line]) -> Vec<Operation> {
    let mut operations: Vec<Operation> = Vec::new();
    for line in lines {
        match line {
            Line::Called { object, call, at } => operations.push(Operation {
                object: *object,
                call: call.clone(),
                called: *at,
                returned: Ns::MAX,
                answer: Answer::Unknown,
                client: client.to_owned(),
            }),
            Line::Returned { answer, at } => {
                if let Some(last) = operations.last_mut() {
                    (last.returned, last.answer) = (*at, answer.clone());
                }
            }
            Line::Tree { .. } | Line::Step { .. } | Line::Violation(_) => {}
        }
    }
    operations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_is_killed_leaves_an_unknown_operation_and_half_a_line() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path)?;
        let object = Object::Directory(3);
        journal.add(&Line::Called { object, call: Call::Put { name: 1, ino: 7 }, at: 10 })?;
        journal.add(&Line::Returned { answer: Answer::Done, at: 20 })?;
        journal.add(&Line::Called { object, call: Call::Unlink { name: 1 }, at: 30 })?;
        journal.file.write_all(b"{\"Returned\":{\"ans")?;
        let found = operations("w", &read(&path)?);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].returned, &found[0].answer), (20, &Answer::Done));
        assert_eq!((found[1].called, &found[1].answer), (30, &Answer::Unknown));
        Ok(())
    }
}
