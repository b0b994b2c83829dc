//! How far the scrub of a disk has come: the file `SCRUB` of its data directory.
//!
//! It is replaced as a whole, so it has the old content or the new one. One that is lost or makes no sense costs a pass that
//! begins anew, nothing else: what was found bad was reported when it was found.

use std::{fs, io, path::Path};

use dfs_common::{ChunkId, disk::ScrubPass, durable};
use serde::{Deserialize, Serialize};

const FILE: &str = "SCRUB";
const FORMAT: u32 = 1;

/// What is remembered over a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checkpoint {
    /// An administrator has paused it.
    pub paused: bool,
    /// When the next pass begins, nanoseconds since the Unix epoch.
    pub next_ns: i64,
    /// The pass that is under way.
    pub pass: Option<Pass>,
    /// The last full one.
    pub last: Option<ScrubPass>,
}

/// A pass that is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pass {
    /// When it began.
    pub started_ns: i64,
    /// The last chunk that was looked at; `None` before the first.
    pub cursor: Option<ChunkId>,
    /// Chunks verified.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bad copies found.
    pub bad: u64,
}

impl Pass {
    /// The part that is behind it, 0 to 1: ids are hashes, so their numbers tell.
    #[must_use]
    pub fn done(&self) -> f64 {
        let head = self.cursor.map_or(0, |id| u64::from_be_bytes(*id.0.first_chunk().expect("an id has 32 bytes")));
        head as f64 / u64::MAX as f64
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    format: u32,
    paused: bool,
    next_ns: i64,
    pass: Option<PassTable>,
    last: Option<LastTable>,
}

#[derive(Serialize, Deserialize)]
struct PassTable {
    started_ns: i64,
    cursor: Option<String>,
    chunks: u64,
    bytes: u64,
    bad: u64,
}

#[derive(Serialize, Deserialize)]
struct LastTable {
    started_ns: i64,
    ended_ns: i64,
    chunks: u64,
    bytes: u64,
    bad: u64,
}

impl Checkpoint {
    /// Reads it from a data directory; `None` if there is none, or none that makes sense.
    #[must_use]
    pub fn load(dir: &Path) -> Option<Self> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the checkpoint of the scrub cannot be read; it begins anew");
                return None;
            }
        };
        let parsed = Self::parse(&text);
        if parsed.is_none() {
            tracing::warn!(path = %path.display(), "the checkpoint of the scrub makes no sense; it begins anew");
        }
        parsed
    }

    fn parse(text: &str) -> Option<Self> {
        let file: File = toml::from_str(text).ok().filter(|file: &File| file.format == FORMAT)?;
        let pass = match file.pass {
            None => None,
            Some(PassTable { started_ns, cursor, chunks, bytes, bad }) => {
                let cursor = cursor.map(|text| text.parse()).transpose().ok()?;
                Some(Pass { started_ns, cursor, chunks, bytes, bad })
            }
        };
        let last = file.last.map(|LastTable { started_ns, ended_ns, chunks, bytes, bad }| ScrubPass {
            started_ns,
            ended_ns,
            chunks,
            bytes,
            bad,
        });
        Some(Self { paused: file.paused, next_ns: file.next_ns, pass, last })
    }

    /// Writes it into a data directory, durably.
    ///
    /// # Errors
    /// The disk failed; the old one is still there then.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let pass = self.pass.map(|Pass { started_ns, cursor, chunks, bytes, bad }| PassTable {
            started_ns,
            cursor: cursor.map(|id| id.to_string()),
            chunks,
            bytes,
            bad,
        });
        let last = self.last.map(|ScrubPass { started_ns, ended_ns, chunks, bytes, bad }| LastTable {
            started_ns,
            ended_ns,
            chunks,
            bytes,
            bad,
        });
        let file = File { format: FORMAT, paused: self.paused, next_ns: self.next_ns, pass, last };
        let text = toml::to_string(&file).map_err(io::Error::other)?;
        durable::write_file(&dir.join(FILE), text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_and_nonsense_is_as_good_as_nothing() {
        let tmp = tempfile::tempdir().expect("tmp");
        assert_eq!(Checkpoint::load(tmp.path()), None);
        let pass = Pass { started_ns: 5, cursor: Some(ChunkId([0x80; 32])), chunks: 1, bytes: 2, bad: 3 };
        let last = ScrubPass { started_ns: 1, ended_ns: 2, chunks: 3, bytes: 4, bad: 5 };
        let full = Checkpoint { paused: true, next_ns: 9, pass: Some(pass), last: Some(last) };
        for checkpoint in [Checkpoint::default(), full] {
            checkpoint.save(tmp.path()).expect("saved");
            assert_eq!(Checkpoint::load(tmp.path()), Some(checkpoint));
        }
        for text in ["", "format = 2\npaused = false\nnext_ns = 0\n", "\u{0}", "format = 1\npaused = 7\n"] {
            fs::write(tmp.path().join(FILE), text).expect("write");
            assert_eq!(Checkpoint::load(tmp.path()), None, "{text:?}");
        }
    }

    #[test]
    fn the_part_done_is_the_place_among_the_ids() {
        let done = |head: u8| Pass { cursor: Some(ChunkId([head; 32])), ..Pass::default() }.done();
        assert!(Pass::default().done() == 0.0 && (done(0x80) - 0.5).abs() < 0.01 && (done(0xff) - 1.0).abs() < 0.01);
    }
}
