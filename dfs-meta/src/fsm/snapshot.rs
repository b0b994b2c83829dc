//! The state as a stream of records.
//!
//! ```text
//!   | format u32 | length u32 | postcard(Header) | length u32 | postcard(Record) | ... | length u32 | postcard(End) |
//! ```
//!
//! Little endian. Records come in a fixed order, so equal states give equal bytes. What can be derived is not written but
//! built while reading: references, live copies, figures, indexes. Magic and checksum belong to the file around it.

use std::{
    io::{self, BufWriter, Read, Write},
    sync::Arc,
};

use dfs_common::{
    ChunkId, ClusterId, FileId, InodeId, NodeId, SessionId, Uuid,
    layout::{Replicas, chunk_count},
};
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{
    command::{Outcome, RepairLimits, Settings},
    event::{Event, EventLog},
    name::Name,
    rebalance::Rebalance,
    record::{Admin, Body, Chunk, Inode, Node, Origin, Pending, Session, Shared, Trashed, Unpublished, Version},
    restore::Restored,
    state::State,
    version::Standing,
};

/// Version of the format. A change of a record that an older reader would misread makes a new one.
const FORMAT: u32 = 3;
/// Longest record in bytes. The longest ones are inodes with all the extended attributes they may have; long lists are cut.
const RECORD_MAX: usize = 1 << 20;
/// Chunk ids in one record.
const PIECE: usize = 4096;

/// A snapshot cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The source failed or ended early.
    #[error("cannot read the snapshot: {0}")]
    Io(#[from] io::Error),
    /// Written by a newer dfs-meta, or not a snapshot.
    #[error("the snapshot has format {found}, this dfs-meta reads format {FORMAT}")]
    Format {
        /// What it says.
        found: u32,
    },
    /// A record is not one.
    #[error("record {index} of the snapshot is malformed: {source}")]
    Malformed {
        /// Counted from 0.
        index: u64,
        /// Why.
        source: postcard::Error,
    },
    /// A record is longer than any can be.
    #[error("record {index} of the snapshot claims {length} bytes")]
    TooLong {
        /// Counted from 0.
        index: u64,
        /// What it claims.
        length: usize,
    },
    /// The records do not fit together.
    #[error("the snapshot contradicts itself at record {index}: {what}")]
    Inconsistent {
        /// Counted from 0.
        index: u64,
        /// How.
        what: &'static str,
    },
}

/// Variants and fields are only ever appended.
#[derive(Serialize, Deserialize)]
enum Record {
    Header {
        cluster_id: Option<ClusterId>,
        settings: Settings,
        next_ino: u64,
        next_session: u64,
        next_node: u32,
        trash_retention_ns: i64,
    },
    Node(Arc<Node>),
    Session {
        id: SessionId,
        client_id: Uuid,
        description: String,
        opened_ns: i64,
        acked: u64,
    },
    Outcome {
        session: SessionId,
        seq: u64,
        outcome: Arc<Outcome>,
    },
    Inode {
        ino: InodeId,
        inode: Shared<Inode>,
    },
    Dentry {
        parent: InodeId,
        name: Name,
        ino: InodeId,
    },
    Unpublished {
        ino: InodeId,
        session: SessionId,
    },
    Reserved {
        ino: InodeId,
        parent: InodeId,
        name: Name,
    },
    Chunk {
        id: ChunkId,
        length: u32,
        sha256: [u8; 32],
        replicas: Replicas,
    },
    Version {
        id: FileId,
        ino: InodeId,
        size: u64,
        chunk_size: u32,
        published_s: u32,
        freed_ns: Option<i64>,
    },
    Slots {
        id: FileId,
        chunks: Vec<ChunkId>,
    },
    Pending {
        id: FileId,
        session: SessionId,
        ino: InodeId,
        chunk_size: u32,
        publications: u64,
        opened_ns: i64,
    },
    Held {
        id: FileId,
        chunks: Vec<ChunkId>,
    },
    Doomed {
        node: NodeId,
        chunks: Vec<(ChunkId, u32)>,
    },
    End {
        records: u64,
    },
    Trashed {
        id: FileId,
        entry: Arc<Trashed>,
    },
    Orphan {
        ino: InodeId,
        origin: Origin,
    },
    RepairLimits(RepairLimits),
    /// Number of the newest event; the events that are kept follow in order.
    Events {
        last: u64,
    },
    Event(Arc<Event>),
    Restored(Restored),
    /// Behind the nodes, before what they hold.
    Admin {
        node: NodeId,
        admin: Admin,
    },
    Rebalance(Rebalance),
}

struct Output<W: Write> {
    sink: BufWriter<W>,
    buffer: Vec<u8>,
    records: u64,
}

impl<W: Write> Output<W> {
    fn put(&mut self, record: &Record) -> io::Result<()> {
        self.buffer.clear();
        self.buffer = postcard::to_extend(record, std::mem::take(&mut self.buffer)).map_err(io::Error::other)?;
        let length = u32::try_from(self.buffer.len()).map_err(io::Error::other)?;
        self.sink.write_all(&length.to_le_bytes())?;
        self.sink.write_all(&self.buffer)?;
        self.records += 1;
        Ok(())
    }

    /// A long list in pieces.
    fn put_pieces<T>(&mut self, ids: impl Iterator<Item = T>, record: impl Fn(Vec<T>) -> Record) -> io::Result<()> {
        let mut ids = ids.peekable();
        while ids.peek().is_some() {
            let piece = ids.by_ref().take(PIECE).collect();
            self.put(&record(piece))?;
        }
        Ok(())
    }
}

/// Writing.
impl State {
    /// Writes the whole state, record by record.
    ///
    /// # Errors
    /// The sink's.
    pub fn write_snapshot(&self, sink: &mut impl Write) -> io::Result<()> {
        let mut out = Output { sink: BufWriter::with_capacity(1 << 18, sink), buffer: Vec::new(), records: 0 };
        out.sink.write_all(&FORMAT.to_le_bytes())?;
        out.put(&Record::Header {
            cluster_id: self.cluster_id,
            settings: self.settings,
            next_ino: self.next_ino,
            next_session: self.next_session,
            next_node: self.next_node,
            trash_retention_ns: self.trash_retention_ns,
        })?;
        out.put(&Record::RepairLimits(self.repair_limits))?;
        for node in self.nodes.values() {
            out.put(&Record::Node(Arc::clone(node)))?;
            if node.admin != Admin::InService {
                out.put(&Record::Admin { node: node.id, admin: node.admin })?;
            }
        }
        self.write_sessions(&mut out)?;
        self.write_tree(&mut out)?;
        self.write_content(&mut out)?;
        out.put(&Record::Events { last: self.events.last() })?;
        for event in self.events.events() {
            out.put(&Record::Event(Arc::clone(event)))?;
        }
        if self.rebalance != Rebalance::default() {
            out.put(&Record::Rebalance(self.rebalance))?;
        }
        if let Some(restored) = self.restored {
            out.put(&Record::Restored(restored))?;
        }
        let records = out.records;
        out.put(&Record::End { records })?;
        out.sink.flush()
    }

    fn write_sessions(&self, out: &mut Output<impl Write>) -> io::Result<()> {
        for (id, session) in &self.sessions {
            out.put(&Record::Session {
                id: *id,
                client_id: session.client_id,
                description: session.description.clone(),
                opened_ns: session.opened_ns,
                acked: session.acked,
            })?;
            for (seq, outcome) in &session.outcomes {
                out.put(&Record::Outcome { session: *id, seq: *seq, outcome: Arc::clone(outcome) })?;
            }
        }
        Ok(())
    }

    fn write_tree(&self, out: &mut Output<impl Write>) -> io::Result<()> {
        for (ino, inode) in &self.inodes {
            out.put(&Record::Inode { ino: *ino, inode: Shared::clone(inode) })?;
        }
        for ((parent, name), ino) in &self.dentries {
            out.put(&Record::Dentry { parent: *parent, name: name.clone(), ino: *ino })?;
        }
        for (ino, unpublished) in &self.unpublished {
            out.put(&Record::Unpublished { ino: *ino, session: unpublished.session })?;
            for (parent, name) in &unpublished.names {
                out.put(&Record::Reserved { ino: *ino, parent: *parent, name: name.clone() })?;
            }
        }
        for (ino, origin) in &self.orphans {
            out.put(&Record::Orphan { ino: *ino, origin: origin.clone() })?;
        }
        Ok(())
    }

    fn write_content(&self, out: &mut Output<impl Write>) -> io::Result<()> {
        for (id, chunk) in &self.chunks {
            let (length, sha256, replicas) = (chunk.length, chunk.sha256, chunk.replicas.iter().copied().collect());
            out.put(&Record::Chunk { id: *id, length, sha256, replicas })?;
        }
        // Before the versions: what a version is to its chunks must be known when its slots are read.
        for (id, entry) in &self.trash {
            out.put(&Record::Trashed { id: *id, entry: Arc::clone(entry) })?;
        }
        for (id, version) in &self.versions {
            let Version { ino, size, chunk_size, published_s, .. } = **version;
            let freed_ns = self.garbage.get(id).copied();
            out.put(&Record::Version { id: *id, ino, size, chunk_size, published_s, freed_ns })?;
            out.put_pieces(version.chunks.iter().copied(), |chunks| Record::Slots { id: *id, chunks })?;
        }
        for (id, pending) in &self.pending {
            let Pending { session, ino, chunk_size, publications, opened_ns, .. } = *pending;
            out.put(&Record::Pending { id: *id, session, ino, chunk_size, publications, opened_ns })?;
            out.put_pieces(pending.held.iter().copied(), |chunks| Record::Held { id: *id, chunks })?;
        }
        for node in self.nodes.keys() {
            let first = (*node, ChunkId([0; 32]));
            let doomed = self.doomed.range(first..).take_while(|((holder, _), _)| holder == node);
            let doomed = doomed.map(|((_, chunk), length)| (*chunk, *length));
            out.put_pieces(doomed, |chunks| Record::Doomed { node: *node, chunks })?;
        }
        Ok(())
    }
}

/// A version whose slots are still being read.
struct OpenVersion {
    id: FileId,
    freed_ns: Option<i64>,
    version: Version,
}

/// Records of one kind that wait to be put into their map.
///
/// They come sorted, and a tree that is filled from left to right splits each node in its middle and never comes back to the
/// left half: every node stays half empty. Two thirds of a run go in first and fill nodes to the half, the rest falls between
/// them and fills them to three quarters, about what a tree of random insertions has, so that it grows from there as any other.
struct Run<T>(Vec<T>);

/// Records of a run: many nodes of a tree, little memory.
const RUN: usize = 3 * 1024;

impl<T> Run<T> {
    /// The records in the order in which they go in, once there are enough of them or `end` says that no more follow.
    fn take(&mut self, end: bool) -> Vec<T> {
        if self.0.len() < RUN && !end {
            return Vec::new();
        }
        let mut second = Vec::with_capacity(self.0.len() / 3);
        let mut first = Vec::with_capacity(self.0.len());
        for (at, record) in self.0.drain(..).enumerate() {
            if at % 3 == 2 { second.push(record) } else { first.push(record) }
        }
        first.append(&mut second);
        first
    }
}

impl<T> Default for Run<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[derive(Default)]
struct Runs {
    inodes: Run<(InodeId, Shared<Inode>)>,
    dentries: Run<(InodeId, Name, InodeId)>,
    chunks: Run<(ChunkId, Chunk)>,
    versions: Run<(FileId, Version)>,
}

struct Input {
    state: State,
    runs: Runs,
    /// Slots of one version come right behind it, so that its list is built in place.
    open: Option<OpenVersion>,
}

/// Reading.
impl State {
    /// Reads what [`State::write_snapshot`] wrote, and nothing behind it. Reads in small pieces: give it a buffered source.
    ///
    /// # Errors
    /// [`SnapshotError`]; hostile bytes give one too.
    pub fn read_snapshot(source: &mut impl Read) -> Result<Self, SnapshotError> {
        let mut word = [0; 4];
        source.read_exact(&mut word)?;
        let found = u32::from_le_bytes(word);
        if found != FORMAT {
            return Err(SnapshotError::Format { found });
        }
        let mut input = Input { state: Self::empty(), runs: Runs::default(), open: None };
        let mut buffer = Vec::new();
        for index in 0.. {
            source.read_exact(&mut word)?;
            let length = u32::from_le_bytes(word) as usize;
            if length > RECORD_MAX {
                return Err(SnapshotError::TooLong { index, length });
            }
            buffer.resize(length, 0);
            source.read_exact(&mut buffer)?;
            let record = postcard::from_bytes(&buffer).map_err(|source| SnapshotError::Malformed { index, source })?;
            let fault = |what| SnapshotError::Inconsistent { index, what };
            match record {
                Record::Header { .. } if index != 0 => return Err(fault("a second header")),
                Record::End { records } if records != index => return Err(fault("records are missing")),
                Record::End { .. } => return input.finish().map_err(fault),
                record if index == 0 && !matches!(record, Record::Header { .. }) => return Err(fault("no header")),
                record => input.take(record).map_err(fault)?,
            }
        }
        Err(SnapshotError::Inconsistent { index: u64::MAX, what: "no end" })
    }
}

type Taken = Result<(), &'static str>;

fn ensure(holds: bool, what: &'static str) -> Taken {
    if holds { Ok(()) } else { Err(what) }
}

impl Input {
    fn take(&mut self, record: Record) -> Taken {
        if !matches!(record, Record::Slots { .. }) {
            self.close_version()?;
        }
        self.put_in(Some(&record))?;
        let state = &mut self.state;
        match record {
            Record::Header { cluster_id, settings, next_ino, next_session, next_node, trash_retention_ns } => {
                ensure(settings.chunk_size > 0, "chunks of no bytes")?;
                ensure(trash_retention_ns >= 0, "trash kept for a negative time")?;
                state.trash_retention_ns = trash_retention_ns;
                (state.cluster_id, state.settings) = (cluster_id, settings);
                (state.next_ino, state.next_session, state.next_node) = (next_ino, next_session, next_node);
                Ok(())
            }
            Record::Node(node) => self.take_node(Arc::unwrap_or_clone(node)),
            Record::Session { id, client_id, description, opened_ns, acked } => {
                ensure(id.0 < state.next_session, "a session of a number not given yet")?;
                let session = Session { id, client_id, description, opened_ns, acked, outcomes: OrdMap::new() };
                state.sessions.insert(id, Arc::new(session));
                ensure(state.sessions_by_client.insert(client_id, id).is_none(), "two sessions of one client")
            }
            Record::Outcome { session, seq, outcome } => {
                let session = state.sessions.get_mut(&session).ok_or("an outcome without its session")?;
                Arc::make_mut(session).outcomes.insert(seq, outcome);
                Ok(())
            }
            Record::Inode { ino, inode } => {
                ensure(ino.0 < state.next_ino, "an inode of a number not given yet")?;
                self.runs.inodes.0.push((ino, inode));
                Ok(())
            }
            Record::Dentry { parent, name, ino } => {
                ensure(state.directory(parent).is_ok(), "an entry of something that is no directory")?;
                ensure(state.inodes.contains_key(&ino), "an entry without its inode")?;
                self.runs.dentries.0.push((parent, name, ino));
                Ok(())
            }
            Record::Unpublished { ino, session } => {
                ensure(state.inodes.contains_key(&ino), "an unpublished inode that is not there")?;
                ensure(state.sessions.contains_key(&session), "an unpublished inode without its session")?;
                state.unpublished.insert(ino, Unpublished { session, names: Vec::new() });
                Ok(())
            }
            Record::Reserved { ino, parent, name } => {
                let unpublished = state.unpublished.get_mut(&ino).ok_or("a reservation without its inode")?;
                unpublished.names.push((parent, name.clone()));
                let key = (parent, name, unpublished.session);
                ensure(state.reservations.insert(key, ino).is_none(), "a reservation twice")
            }
            Record::Chunk { id, length, sha256, replicas } => self.take_chunk(id, length, sha256, replicas),
            Record::Version { id, ino, size, chunk_size, published_s, freed_ns } => {
                ensure(chunk_size > 0, "a version of no chunk size")?;
                let version = Version { ino, size, chunk_size, published_s, chunks: SmallVec::new() };
                self.open = Some(OpenVersion { id, freed_ns, version });
                Ok(())
            }
            Record::Slots { id, chunks } => {
                let open = self.open.as_mut().filter(|open| open.id == id).ok_or("slots without their version")?;
                open.version.chunks.extend(chunks);
                Ok(())
            }
            Record::Pending { id, session, ino, chunk_size, publications, opened_ns } => {
                ensure(state.sessions.contains_key(&session), "a pending version without its session")?;
                ensure(
                    state.current_version(ino).is_some() || state.unpublished.contains_key(&ino),
                    "written: no file",
                )?;
                let pending = Pending { session, ino, chunk_size, publications, opened_ns, held: OrdSet::new() };
                ensure(chunk_size > 0 && state.pending.insert(id, pending).is_none(), "a pending version twice")?;
                state.pending_by_ino.insert((ino, id));
                state.pending_by_session.insert((session, id));
                Ok(())
            }
            Record::Held { id, chunks } => self.take_held(id, &chunks),
            Record::Doomed { node, chunks } => {
                ensure(state.nodes.contains_key(&node), "doomed copies without their node")?;
                chunks.into_iter().for_each(|(chunk, length)| state.add_doomed(node, chunk, length));
                Ok(())
            }
            Record::Admin { node, admin } => {
                let node = state.nodes.get_mut(&node).ok_or("an admin state without its node")?;
                Arc::make_mut(node).admin = admin;
                ensure(state.chunks.is_empty() && self.runs.chunks.0.is_empty(), "an admin state behind the chunks")
            }
            Record::Rebalance(rebalance) => {
                state.rebalance = rebalance;
                Ok(())
            }
            Record::RepairLimits(limits) => {
                state.repair_limits = limits;
                Ok(())
            }
            Record::Events { last } => {
                state.events = EventLog::behind(last);
                Ok(())
            }
            Record::Event(event) => state.events.restore(event),
            Record::Restored(restored) => {
                state.restored = Some(restored);
                Ok(())
            }
            Record::End { .. } => Ok(()),
            Record::Trashed { id, entry } => {
                ensure(!state.trash.contains_key(&id), "an entry of the trash twice")?;
                state.enter_trash(id, entry);
                Ok(())
            }
            Record::Orphan { ino, origin } => {
                ensure(state.inodes.contains_key(&ino), "a file without names that is not there")?;
                ensure(state.orphans.insert(ino, origin).is_none(), "a file without names twice")
            }
        }
    }

    fn take_node(&mut self, mut node: Node) -> Taken {
        let state = &mut self.state;
        ensure(node.id.0 < state.next_node, "a node of a number not given yet")?;
        ensure(state.nodes_by_uuid.insert(node.uuid, node.id).is_none(), "two nodes of one uuid")?;
        (node.chunk_count, node.chunk_bytes) = (0, 0);
        ensure(state.nodes.insert(node.id, Arc::new(node)).is_none(), "a node twice")
    }

    fn take_chunk(&mut self, id: ChunkId, length: u32, sha256: [u8; 32], replicas: Replicas) -> Taken {
        let state = &mut self.state;
        ensure(replicas.is_sorted_by(|a, b| a < b), "replicas in disorder")?;
        let shares = replicas.iter().map(|node| state.nodes.get(node).map(|node| node.share()));
        let shares = shares.collect::<Option<Vec<_>>>().ok_or("a copy without its node")?;
        replicas.iter().for_each(|node| state.count_on_node(*node, length, true));
        let replicas = replicas.into_vec().into();
        let mut chunk =
            Chunk { length, sha256, replicas, live: 0, leaving: 0, published: 0, trashed: 0, garbage: 0, held: 0 };
        shares.into_iter().for_each(|share| chunk.count_copy(share, true));
        self.runs.chunks.0.push((id, chunk));
        Ok(())
    }

    fn take_held(&mut self, id: FileId, chunks: &[ChunkId]) -> Taken {
        let pending = self.state.pending.get_mut(&id).ok_or("held chunks without their pending version")?;
        for chunk in chunks {
            let record = self.state.chunks.get_mut(chunk).ok_or("a held chunk that is not there")?;
            ensure(pending.held.insert(*chunk).is_none(), "a held chunk twice")?;
            record.held += 1;
        }
        Ok(())
    }

    fn close_version(&mut self) -> Taken {
        let Some(OpenVersion { id, freed_ns, version }) = self.open.take() else { return Ok(()) };
        let state = &mut self.state;
        let standing = match (freed_ns, state.trash.contains_key(&id)) {
            (None, false) => Standing::Current,
            (None, true) => Standing::Trashed,
            (Some(_), false) => Standing::Garbage,
            (Some(_), true) => return Err("a version in the trash that is garbage"),
        };
        ensure(
            version.chunks.len() as u64 == chunk_count(version.size, version.chunk_size),
            "slots do not fit a size",
        )?;
        for chunk in version.chunks.iter().filter(|chunk| !chunk.is_zero()) {
            let record = state.chunks.get_mut(chunk).ok_or("a slot whose chunk is not there")?;
            *record.slots_mut(standing) += 1;
        }
        if let Some(freed_ns) = freed_ns {
            state.garbage.insert(id, freed_ns);
            state.garbage_by_age.insert((freed_ns, id));
        }
        self.runs.versions.0.push((id, version));
        Ok(())
    }

    /// Puts the runs that are long enough, or that `next` does not go on with, into their maps.
    fn put_in(&mut self, next: Option<&Record>) -> Taken {
        let state = &mut self.state;
        for (ino, inode) in self.runs.inodes.take(!matches!(next, Some(Record::Inode { .. }))) {
            ensure(state.inodes.insert(ino, inode).is_none(), "an inode twice")?;
        }
        for (parent, name, ino) in self.runs.dentries.take(!matches!(next, Some(Record::Dentry { .. }))) {
            ensure(state.published(parent, &name).is_none(), "an entry twice")?;
            state.insert_dentry(parent, name, ino);
        }
        // Whoever keeps something is told to forget everything when a snapshot comes in.
        state.changes.clear();
        for (id, chunk) in self.runs.chunks.take(!matches!(next, Some(Record::Chunk { .. }))) {
            chunk.replicas.iter().for_each(|node| state.index_copy(*node, id));
            ensure(state.chunks.insert(id, chunk).is_none(), "a chunk twice")?;
        }
        let is_version = matches!(next, Some(Record::Version { .. } | Record::Slots { .. }));
        for (id, version) in self.runs.versions.take(!is_version) {
            ensure(state.versions.insert(id, Shared::new(version)).is_none(), "a version twice")?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<State, &'static str> {
        self.close_version()?;
        self.put_in(None)?;
        let mut state = self.state;
        ensure(state.directory(InodeId::ROOT).is_ok(), "no root")?;
        ensure(state.chunks.values().all(|chunk| chunk.refs() > 0), "a chunk without references")?;
        let mut current = 0;
        for inode in state.inodes.values() {
            match inode.body {
                Body::File { version: Some(id) } => {
                    let is_there = state.versions.contains_key(&id)
                        && !state.garbage.contains_key(&id)
                        && !state.trash.contains_key(&id);
                    ensure(is_there, "a file without its version")?;
                    current += 1;
                }
                Body::Directory { parent, .. } => {
                    ensure(state.directory(parent).is_ok(), "a directory without its parent")?;
                }
                Body::File { version: None } | Body::Symlink { .. } | Body::Special { .. } => {}
            }
        }
        let others = state.garbage.len() + state.trash.len();
        ensure(current + others == state.versions.len(), "a version that nothing names")?;
        state.recount_chunks();
        Ok(state)
    }
}
