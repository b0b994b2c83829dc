//! Space that no file uses and that is not free yet, and why: `space_held` of `dfsctl status --json`.

use dfs_proto::v1;
use serde::Serialize;

use crate::text::{bytes, counted};

/// Why space is still held.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SpaceHeld {
    /// Chunks that only the trash lists.
    pub trash: Held,
    /// How long the trash keeps content, milliseconds.
    pub trash_retention_ms: u64,
    /// Versions that this leader gave up before their time because space was short.
    pub trash_given_up: u64,
    /// Chunks of the trash with fewer live copies than wanted, those without one included.
    pub trash_short_of_copies: u64,
    /// Chunks of removed and replaced content that wait for the grace time or for readers.
    pub garbage: Held,
    /// The part of the garbage past its grace time that clients have open.
    pub pinned: Pinned,
    /// Copies that wait for their nodes to delete them.
    pub doomed: Vec<Doomed>,
    /// Copies that no file lists; they are looked up again until their grace time is over.
    pub unknown_copies: u64,
}

/// One reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Held {
    /// Versions.
    pub versions: u64,
    /// Chunks that nothing else lists.
    pub chunks: u64,
    /// Their bytes, one copy counted.
    pub bytes: u64,
    /// Their copies.
    pub copies: u64,
    /// Bytes of all copies.
    pub copy_bytes: u64,
}

/// What readers keep.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Pinned {
    /// Versions.
    pub versions: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest was removed or replaced, nanoseconds since the Unix epoch.
    pub oldest_ns: i64,
    /// A session that has the oldest open; 0 for none.
    pub session: u64,
    /// What that client said of itself: host, process, mount point.
    pub client: String,
}

/// Copies of one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Doomed {
    /// The node.
    pub node: String,
    /// Its state: a dead one deletes nothing until it is back.
    pub state: String,
    /// Copies.
    pub copies: u64,
    /// Bytes, as far as they are known.
    pub bytes: u64,
}

impl From<v1::HeldFigure> for Held {
    fn from(wire: v1::HeldFigure) -> Self {
        let v1::HeldFigure { versions, chunks, bytes, copies, copy_bytes } = wire;
        Self { versions, chunks, bytes, copies, copy_bytes }
    }
}

impl From<v1::SpaceHeld> for SpaceHeld {
    fn from(wire: v1::SpaceHeld) -> Self {
        let short = wire.trash_chunks.unwrap_or_default();
        let pinned = wire.pinned.unwrap_or_default();
        let doomed = wire.doomed.into_iter().map(|on| Doomed {
            state: dfs_proto::convert::state(on.state).map_or_else(|_| "unknown".into(), |state| state.to_string()),
            node: on.node,
            copies: on.copies,
            bytes: on.bytes,
        });
        Self {
            trash: wire.trash.unwrap_or_default().into(),
            trash_retention_ms: wire.trash_retention_ms,
            trash_given_up: wire.trash_given_up,
            trash_short_of_copies: short.under_replicated + short.missing,
            garbage: wire.garbage.unwrap_or_default().into(),
            pinned: Pinned {
                versions: pinned.versions,
                bytes: pinned.bytes,
                oldest_ns: pinned.oldest_ns,
                session: pinned.session_id,
                client: pinned.client,
            },
            doomed: doomed.collect(),
            unknown_copies: wire.unknown_copies,
        }
    }
}

impl SpaceHeld {
    /// The trash in words.
    pub(super) fn trash_words(&self) -> String {
        let mut words = format!("{} in {}", bytes(self.trash.bytes), counted(self.trash.versions, "version"));
        if self.trash_short_of_copies > 0 {
            words += &format!(", {} short of copies", counted(self.trash_short_of_copies, "chunk"));
        }
        if self.trash_given_up > 0 {
            words += &format!(", {} given up early for want of space", self.trash_given_up);
        }
        words
    }
}
