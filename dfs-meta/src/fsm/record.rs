//! What the state holds of each object.

use std::{collections::BTreeMap, sync::Arc};

use dfs_common::{
    ChunkId, FileId, FileKind, InodeId, NodeId, SessionId, Uuid,
    node::{Health, NodeState},
};
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{
    command::Outcome,
    holders::Holders,
    name::{Entry, Name},
    risk::Figure,
    version::Standing,
};

/// An inode or version as maps hold it: shared with the snapshot that is being written, one word of overhead.
pub(super) type Shared<T> = triomphe::Arc<T>;

/// Extended attributes of an inode; `None` for the many that have none.
pub(super) type Xattrs = Option<Arc<BTreeMap<Vec<u8>, Vec<u8>>>>;

/// What an inode is, with what only that kind has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum Body {
    /// Regular file; no version before its first publication.
    File { version: Option<FileId> },
    /// Directory. The root is its own parent.
    Directory { parent: InodeId, subdirs: u32 },
    /// Symbolic link.
    Symlink { target: Arc<[u8]> },
    /// Pipe, socket or device node.
    Special { kind: FileKind, rdev: u32 },
}

/// An inode. `names` counts dentries, or reservations while it is unpublished; 0 means unlinked but still being written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Inode {
    pub(super) body: Body,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) names: u32,
    pub(super) atime_ns: i64,
    pub(super) mtime_ns: i64,
    pub(super) ctime_ns: i64,
    pub(super) generation: u64,
    pub(super) xattrs: Xattrs,
    /// Index: its published name if it has exactly one.
    #[serde(skip)]
    pub(super) place: Option<Entry>,
}

/// An inode that only its own session sees, because nothing of it was published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Unpublished {
    pub(super) session: SessionId,
    /// Reserved names in the order they were given; empty when all were unlinked.
    pub(super) names: Vec<(InodeId, Name)>,
}

/// Content of a file, immutable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Version {
    /// Inode it was published for.
    pub(super) ino: InodeId,
    pub(super) size: u64,
    pub(super) chunk_size: u32,
    /// When it became current, seconds since the Unix epoch.
    pub(super) published_s: u32,
    /// One for each slot, zeros for a hole. Most files have one chunk and then need no allocation of its own.
    pub(super) chunks: SmallVec<[ChunkId; 1]>,
}

/// Why content came into the trash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Reason {
    /// Its last name was removed.
    Removed,
    /// Other content took its name, or it was overwritten.
    Replaced,
}

/// Where content was that lost its name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) parent: InodeId,
    pub(super) path: Arc<[u8]>,
    pub(super) reason: Reason,
}

/// What a version in the trash needs to become a file again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trashed {
    /// Inode it was published for.
    pub ino: InodeId,
    /// Directory it was in.
    pub parent: InodeId,
    /// Path it had then.
    pub path: Arc<[u8]>,
    /// Why it came in.
    pub reason: Reason,
    /// When it came in, nanoseconds.
    pub at_ns: i64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access, nanoseconds.
    pub atime_ns: i64,
    /// Last modification, nanoseconds.
    pub mtime_ns: i64,
    /// Last change of the inode, nanoseconds.
    pub ctime_ns: i64,
    /// Extended attributes.
    pub(super) xattrs: Xattrs,
}

/// Copies that wait for their node to delete them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DoomedOn {
    /// How many.
    pub copies: u64,
    /// Their bytes, as far as they are known: a chunk that no record ever described has none.
    pub bytes: u64,
}

/// A version that is being written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Who writes.
    pub session: SessionId,
    /// What is written.
    pub ino: InodeId,
    /// Bytes that each of its chunks covers.
    pub chunk_size: u32,
    /// How often it was published.
    pub publications: u64,
    /// When it was opened, nanoseconds.
    pub opened_ns: i64,
    /// Chunks that primaries reported for it and that no publication of it listed: each holds a reference.
    pub(super) held: OrdSet<ChunkId>,
}

impl Pending {
    /// Chunks that were reported for it and that no publication of it listed.
    #[must_use]
    pub fn held_count(&self) -> u64 {
        self.held.len() as u64
    }
}

/// A chunk that something references.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Bytes.
    pub length: u32,
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
    /// Nodes that hold it, whatever their state, in ascending order.
    pub replicas: Holders,
    /// Those of them whose copies are not lost.
    pub(super) live: u16,
    /// Those of `live` that are to be emptied.
    pub(super) leaving: u16,
    /// Slots of current versions that list it.
    pub(super) published: u32,
    /// Slots of versions in the trash that list it.
    pub(super) trashed: u32,
    /// Slots of garbage versions that list it.
    pub(super) garbage: u32,
    /// Pending versions that hold it.
    pub(super) held: u32,
}

impl Chunk {
    /// Copies on nodes that are not lost.
    #[must_use]
    pub fn live(&self) -> u32 {
        self.live.into()
    }

    /// Those of the live copies that are on nodes that stay: what is held against the wanted number.
    #[must_use]
    pub fn counted(&self) -> u32 {
        self.live.saturating_sub(self.leaving).into()
    }

    /// A copy with this share comes (`true`) or goes.
    pub(super) fn count_copy(&mut self, share: Share, more: bool) {
        let change =
            |figure: &mut u16| *figure = if more { figure.saturating_add(1) } else { figure.saturating_sub(1) };
        match share {
            Share::Lost => {}
            Share::Counted => change(&mut self.live),
            Share::Leaving => {
                change(&mut self.live);
                change(&mut self.leaving);
            }
        }
    }

    /// References of every kind.
    #[must_use]
    pub fn refs(&self) -> u64 {
        u64::from(self.published) + u64::from(self.trashed) + u64::from(self.garbage) + u64::from(self.held)
    }

    /// Slots of versions of a kind that list it.
    pub(super) fn slots_mut(&mut self, standing: Standing) -> &mut u32 {
        match standing {
            Standing::Current => &mut self.published,
            Standing::Trashed => &mut self.trashed,
            Standing::Garbage => &mut self.garbage,
        }
    }

    /// Whether a current version lists it.
    #[must_use]
    pub fn is_published(&self) -> bool {
        self.published > 0
    }

    /// Whether it must have all its copies: a current version lists it, or one in the trash.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.published > 0 || self.trashed > 0
    }

    /// Whether its copies may not go with a node: it is wanted, or may be published at any moment.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.is_wanted() || self.held > 0
    }

    /// Whether it is kept for the trash alone.
    #[must_use]
    pub fn is_trash(&self) -> bool {
        self.published == 0 && self.held == 0 && self.trashed > 0
    }

    /// Whether only garbage lists it.
    #[must_use]
    pub fn is_garbage(&self) -> bool {
        self.published == 0 && self.held == 0 && self.trashed == 0 && self.garbage > 0
    }
}

/// A storage node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Kept in its data directory.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// `host:port` of its listener.
    pub address: String,
    /// Failure domain; may be empty.
    pub rack: String,
    /// Bytes it may use, as it said when it registered.
    pub capacity_bytes: u64,
    /// Random number of its process start.
    pub incarnation: u64,
    /// What the failure detector says.
    pub health: Health,
    /// When [`Node::state`] last changed, nanoseconds.
    pub since_ns: i64,
    /// Referenced chunks that it holds according to the records.
    pub chunk_count: u64,
    /// Bytes of these.
    pub chunk_bytes: u64,
    /// What an administrator has decided. A record of its own in a snapshot, where it is not [`Admin::InService`].
    #[serde(skip)]
    pub admin: Admin,
}

/// What an administrator has decided about a storage node. Independent of its health.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Admin {
    /// It takes part in everything.
    #[default]
    InService,
    /// It takes no new chunks; its copies serve, and are made again elsewhere.
    Draining,
    /// As [`Admin::Draining`], and nothing rested on it any more when this was decided.
    Drained,
    /// It takes no new chunks, and its silence is expected until a time.
    Maintenance {
        /// The leader's clock, nanoseconds since the Unix epoch.
        until_ns: i64,
    },
    /// It left for good; its record stays, so that its data directory cannot come back.
    Decommissioned,
}

/// How the copies on a node count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Not at all, until it returns.
    Lost,
    /// They keep their chunks alive, and are not among the copies that are wanted.
    Leaving,
    /// Fully.
    Counted,
}

impl Node {
    /// Health and admin state in one word.
    #[must_use]
    pub fn state(&self) -> NodeState {
        match (self.admin, self.health) {
            (Admin::Decommissioned, _) => NodeState::Decommissioned,
            (_, Health::Dead) => NodeState::Dead,
            (_, Health::Suspect) => NodeState::Suspect,
            (Admin::Draining | Admin::Drained, Health::Alive) => NodeState::Draining,
            (Admin::Maintenance { .. }, Health::Alive) => NodeState::Maintenance,
            (Admin::InService, Health::Alive) => NodeState::Alive,
        }
    }

    /// How its copies count. A draining node is as safe as any until its copies have moved.
    #[must_use]
    pub fn share(&self) -> Share {
        match (self.admin, self.health) {
            (Admin::Decommissioned, _) | (_, Health::Dead) => Share::Lost,
            (Admin::Draining | Admin::Drained, Health::Alive | Health::Suspect) => Share::Leaving,
            (Admin::InService | Admin::Maintenance { .. }, Health::Alive | Health::Suspect) => Share::Counted,
        }
    }

    /// Whether it is to be emptied, or is empty.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.admin, Admin::Draining | Admin::Drained)
    }

    /// Whether it belongs to the cluster.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.admin != Admin::Decommissioned
    }

    /// Whether its silence is expected at this time.
    #[must_use]
    pub fn is_excused(&self, now_ns: i64) -> bool {
        matches!(self.admin, Admin::Maintenance { until_ns } if now_ns < until_ns)
    }
}

/// A client process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// Drawn by the client.
    pub client_id: Uuid,
    /// Host, pid, mount point.
    pub description: String,
    /// When it was opened, nanoseconds.
    pub opened_ns: i64,
    /// Every sequence number up to here was answered and will not be repeated.
    pub acked: u64,
    /// Outcomes above `acked`.
    pub(super) outcomes: OrdMap<u64, Arc<Outcome>>,
}

/// Figures that are kept, not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Inodes, unpublished ones included.
    pub inodes: u64,
    /// Sessions.
    pub sessions: u64,
    /// Versions that are being written.
    pub pending: u64,
    /// Versions, those in the trash and garbage included.
    pub versions: u64,
    /// Versions in the trash.
    pub trash_versions: u64,
    /// Chunks that are kept for the trash alone.
    pub trash_chunks: u64,
    /// Bytes of these, one copy counted.
    pub trash_bytes: u64,
    /// Copies of these.
    pub trash_copies: u64,
    /// Bytes of all these copies.
    pub trash_copy_bytes: u64,
    /// Chunks kept for the trash alone with at least one live copy and fewer than wanted.
    pub trash_under_replicated: u64,
    /// Those of `trash_under_replicated` with one live copy left.
    pub trash_endangered: u64,
    /// Chunks kept for the trash alone without a live copy.
    pub trash_missing: u64,
    /// Versions that nothing names any more and that are not released.
    pub garbage_versions: u64,
    /// Chunks that only garbage versions list.
    pub garbage_chunks: u64,
    /// Bytes of these, one copy counted.
    pub garbage_bytes: u64,
    /// Copies of these.
    pub garbage_copies: u64,
    /// Bytes of all these copies.
    pub garbage_copy_bytes: u64,
    /// Copies that wait for their node to delete them.
    pub doomed_copies: u64,
    /// Chunks that current versions list: `full + under_replicated + missing`.
    pub chunks: u64,
    /// Those with all wanted live copies.
    pub full: u64,
    /// Those with at least one live copy and fewer than wanted.
    pub under_replicated: u64,
    /// Those of `under_replicated` with one live copy left.
    pub endangered: u64,
    /// Those without a live copy.
    pub missing: u64,
    /// Bytes of the chunks that current versions list, one copy counted.
    pub published_bytes: u64,
    /// Those of `full` with more counted copies than wanted.
    pub over_replicated: u64,
    /// Those of `full` with fewer counted copies than wanted, because some are on nodes that are to be emptied.
    pub moving: u64,
    /// Copies that chunks with a live copy lack, those of `moving` included.
    pub lacking_copies: u64,
    /// Bytes of these copies.
    pub lacking_bytes: u64,
    /// The chunks that current versions list by their live copies: none, one, two, three, more.
    pub by_live: [Figure; 5],
}
