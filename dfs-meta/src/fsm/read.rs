//! What the RPC layer and the planners ask. Nothing here scans more than it returns.

use std::ops::Bound;

use dfs_common::{
    Attr, ChunkId, ChunkRef, ClusterId, ErrorCode, FileId, InodeId, Layout, NodeId, SessionId, layout::Replicas,
};

use super::{
    command::{RepairLimits, Settings},
    name::{EntryRef, Name},
    record::{Body, Chunk, Counters, DoomedOn, Node, Pending, Session},
    state::State,
};

/// Most entries in one page of a directory: with attributes about 1 MiB on the wire.
pub const READDIR_MAX: usize = 4096;

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    /// Name.
    pub name: Vec<u8>,
    /// Attributes of what it names.
    pub attr: Attr,
}

/// Some entries of a directory in byte order of their names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirPage {
    /// The entries.
    pub entries: Vec<DirEntry>,
    /// Whether these were the last ones.
    pub end: bool,
    /// Directory above this one; the root's is itself.
    pub parent: InodeId,
}

/// Where the bytes of a version are, and whose they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileLayout {
    /// Attributes of the inode that the version was published for; `None` when that is gone.
    pub attr: Option<Attr>,
    /// The layout.
    pub layout: Layout,
}

/// The cluster.
impl State {
    /// Identifier of the cluster once `InitCluster` was applied.
    #[must_use]
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.cluster_id
    }

    /// What the cluster was set up with.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Limits of repair.
    #[must_use]
    pub fn repair_limits(&self) -> RepairLimits {
        self.repair_limits
    }

    /// All figures, O(1).
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            inodes: self.inodes.len() as u64,
            sessions: self.sessions.len() as u64,
            pending: self.pending.len() as u64,
            versions: self.versions.len() as u64,
            trash_versions: self.trash.len() as u64,
            garbage_versions: self.garbage.len() as u64,
            doomed_copies: self.doomed.len() as u64,
            ..self.counters
        }
    }
}

/// The namespace.
impl State {
    /// Attributes of an entry. A reserved name is visible to its own session; the others see what is published there.
    /// `.` and `..` work.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`, `InvalidArgument`.
    pub fn lookup(&self, session: Option<SessionId>, parent: InodeId, name: &[u8]) -> Result<Attr, ErrorCode> {
        let directory = self.directory(parent)?;
        let ino = match (name, &directory.body) {
            (b".", _) => parent,
            (b"..", Body::Directory { parent, .. }) => *parent,
            _ => {
                dfs_common::name::check(name)?;
                self.resolve(session, parent, name).ok_or(ErrorCode::NotFound)?.ino()
            }
        };
        self.attr(ino).ok_or(ErrorCode::NotFound)
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// `NotFound`, also for an inode that another session has not published yet.
    pub fn getattr(&self, session: Option<SessionId>, ino: InodeId) -> Result<Attr, ErrorCode> {
        let inode = self.visible(session, ino)?;
        Ok(self.attr_of(ino, inode))
    }

    /// At most `limit` (and at most [`READDIR_MAX`]) entries behind the name `after`, from the start if it is empty. The
    /// session's own unpublished entries are among them; `.` and `..` are not.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`.
    pub fn readdir(
        &self,
        session: Option<SessionId>,
        ino: InodeId,
        after: &[u8],
        limit: usize,
    ) -> Result<DirPage, ErrorCode> {
        let parent = match self.directory(ino)?.body {
            Body::Directory { parent, .. } => parent,
            Body::File { .. } | Body::Symlink { .. } | Body::Special { .. } => return Err(ErrorCode::NotDirectory),
        };
        let limit = limit.clamp(1, READDIR_MAX);
        let mut published = self.names_after(ino, after).peekable();
        let mut own = self.reserved_after(session, ino, after).peekable();
        let mut entries = Vec::with_capacity(limit.min(64));
        let end = loop {
            let (name, child) = match (published.peek(), own.peek()) {
                (None, None) => break true,
                _ if entries.len() == limit => break false,
                (Some((a, _)), Some((b, _))) if a == b => {
                    // An own reservation hides what somebody else published under the name meanwhile.
                    published.next();
                    continue;
                }
                (Some((a, ino)), Some((b, _))) if a < b => (*a, *ino),
                (Some((a, ino)), None) => (*a, *ino),
                (_, Some((b, ino))) => (*b, *ino),
            };
            match published.peek() {
                Some((a, _)) if *a == name => drop(published.next()),
                Some(_) | None => drop(own.next()),
            }
            if let Some(attr) = self.attr(child) {
                entries.push(DirEntry { name: name.to_vec(), attr });
            }
        };
        Ok(DirPage { entries, end, parent })
    }

    pub(super) fn names_after<'a>(
        &'a self,
        ino: InodeId,
        after: &[u8],
    ) -> impl Iterator<Item = (&'a [u8], InodeId)> + use<'a> {
        let start = match after {
            [] => Bound::Included(EntryRef(ino, b"")),
            after => Bound::Excluded(EntryRef(ino, after)),
        };
        self.dentries
            .range::<_, EntryRef<'_>>((start, Bound::Unbounded))
            .take_while(move |((parent, _), _)| *parent == ino)
            .map(|((_, name), child)| (name.as_slice(), *child))
    }

    fn reserved_after<'a>(
        &'a self,
        session: Option<SessionId>,
        ino: InodeId,
        after: &[u8],
    ) -> impl Iterator<Item = (&'a [u8], InodeId)> + use<'a> {
        let start = match after {
            [] => Bound::Included((ino, Name::from_slice(b""), SessionId(0))),
            after => Bound::Excluded((ino, Name::from_slice(after), SessionId(u64::MAX))),
        };
        self.reservations
            .range::<_, (InodeId, Name, SessionId)>((start, Bound::Unbounded))
            .take_while(move |((parent, _, _), _)| *parent == ino)
            .filter(move |((_, _, owner), _)| Some(*owner) == session)
            .map(|((_, name, _), child)| (name.as_slice(), *child))
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for anything else.
    pub fn readlink(&self, ino: InodeId) -> Result<Vec<u8>, ErrorCode> {
        match &self.inodes.get(&ino).ok_or(ErrorCode::NotFound)?.body {
            Body::Symlink { target } => Ok(target.to_vec()),
            Body::File { .. } | Body::Directory { .. } | Body::Special { .. } => Err(ErrorCode::InvalidArgument),
        }
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    /// `NotFound`, `NoAttribute`.
    pub fn getxattr(&self, ino: InodeId, name: &[u8]) -> Result<Vec<u8>, ErrorCode> {
        let inode = self.inodes.get(&ino).ok_or(ErrorCode::NotFound)?;
        inode.xattrs.as_ref().and_then(|xattrs| xattrs.get(name)).cloned().ok_or(ErrorCode::NoAttribute)
    }

    /// Names of the extended attributes in byte order.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn listxattr(&self, ino: InodeId) -> Result<Vec<Vec<u8>>, ErrorCode> {
        let inode = self.inodes.get(&ino).ok_or(ErrorCode::NotFound)?;
        Ok(inode.xattrs.as_ref().map(|xattrs| xattrs.keys().cloned().collect()).unwrap_or_default())
    }
}

/// Versions.
impl State {
    /// Layout of the version that a file has now.
    ///
    /// # Errors
    /// `NotFound` for no such inode or a file without a version yet; `IsDirectory`; `InvalidArgument` for other kinds.
    pub fn layout(&self, ino: InodeId) -> Result<FileLayout, ErrorCode> {
        match self.inodes.get(&ino).ok_or(ErrorCode::NotFound)?.body {
            Body::File { version } => self.layout_of(version.ok_or(ErrorCode::NotFound)?),
            Body::Directory { .. } => Err(ErrorCode::IsDirectory),
            Body::Symlink { .. } | Body::Special { .. } => Err(ErrorCode::InvalidArgument),
        }
    }

    /// Layout of a version, current, in the trash, or garbage that is still kept.
    ///
    /// # Errors
    /// `Stale` for a version that is not there (any more).
    pub fn layout_of(&self, file_id: FileId) -> Result<FileLayout, ErrorCode> {
        let version = self.versions.get(&file_id).ok_or(ErrorCode::Stale)?;
        let chunks = version.chunks.iter().map(|id| self.chunk_ref(*id).unwrap_or(ChunkRef::HOLE)).collect();
        let layout = Layout::Replicated { file_id, size: version.size, chunk_size: version.chunk_size, chunks };
        Ok(FileLayout { attr: self.attr(version.ino), layout })
    }

    /// Bytes of a version, whatever it is.
    #[must_use]
    pub fn version_size(&self, file_id: FileId) -> Option<u64> {
        self.versions.get(&file_id).map(|version| version.size)
    }

    /// A version that is being written.
    #[must_use]
    pub fn pending(&self, file_id: FileId) -> Option<&Pending> {
        self.pending.get(&file_id)
    }

    /// Chunks that only a pending version holds, with their nodes: what it leaves behind when it ends.
    #[must_use]
    pub fn held_by(&self, file_id: FileId) -> Vec<(NodeId, ChunkId, FileId)> {
        let held = self.pending.get(&file_id).map(|pending| pending.held.iter());
        let only = held.into_iter().flatten().filter_map(|id| Some((*id, self.chunks.get(id)?)));
        only.filter(|(_, chunk)| chunk.refs() == 1)
            .flat_map(|(id, chunk)| chunk.replicas.iter().map(move |node| (*node, id, file_id)))
            .collect()
    }

    /// The same for all pending versions of a session.
    #[must_use]
    pub fn held_by_session(&self, session: SessionId) -> Vec<(NodeId, ChunkId, FileId)> {
        let files = self.pending_by_session.range((session, FileId([0; 16]))..);
        files.take_while(|(of, _)| *of == session).flat_map(|(_, file)| self.held_by(*file)).collect()
    }

    /// Versions of a file that are being written.
    pub fn writers_of(&self, ino: InodeId) -> impl Iterator<Item = (FileId, &Pending)> + '_ {
        self.pending_by_ino
            .range((ino, FileId([0; 16]))..)
            .take_while(move |(of, _)| *of == ino)
            .filter_map(|(_, id)| Some((*id, self.pending.get(id)?)))
    }

    /// Garbage versions with when they were freed (nanoseconds), oldest first.
    pub fn garbage(&self) -> impl Iterator<Item = (i64, FileId)> + '_ {
        self.garbage_by_age.iter().copied()
    }
}

/// Chunks.
impl State {
    /// A chunk that something references.
    #[must_use]
    pub fn chunk(&self, id: ChunkId) -> Option<&Chunk> {
        self.chunks.get(&id)
    }

    /// A chunk that something references, as readers see it: nodes in the order of their numbers, whatever their state.
    #[must_use]
    pub fn chunk_ref(&self, id: ChunkId) -> Option<ChunkRef> {
        let chunk = self.chunks.get(&id)?;
        let replicas: Replicas = chunk.replicas.iter().copied().collect();
        Some(ChunkRef { id, length: chunk.length, sha256: chunk.sha256, replicas })
    }

    /// Published and trashed chunks with fewer live copies than wanted, fewest first, as (live copies, chunk). Those without a live
    /// copy come first; start behind `after` to go on, or at `Some((0, ChunkId([0xff; 32])))` to skip those.
    pub fn under_replicated(&self, after: Option<(u32, ChunkId)>) -> impl Iterator<Item = (u32, ChunkId)> + '_ {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.endangered.range::<_, (u32, ChunkId)>((start, Bound::Unbounded)).copied()
    }

    /// Published chunks with more live copies than wanted, in order, behind `after`.
    pub fn over_replicated(&self, after: Option<ChunkId>) -> impl Iterator<Item = ChunkId> + '_ {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.excessive.range::<_, ChunkId>((start, Bound::Unbounded)).copied()
    }

    /// Chunks that a node is to delete, in order, behind `after`.
    pub fn doomed(&self, node: NodeId, after: Option<ChunkId>) -> impl Iterator<Item = ChunkId> + '_ {
        let start = after.map_or(Bound::Included((node, ChunkId([0; 32]))), |after| Bound::Excluded((node, after)));
        // Open to the right: a range that ends before it starts would be the caller's hostile `after`.
        self.doomed
            .range::<_, (NodeId, ChunkId)>((start, Bound::Unbounded))
            .take_while(move |((holder, _), _)| *holder == node)
            .map(|((_, chunk), _)| *chunk)
    }

    /// Whether a node is to delete a chunk.
    #[must_use]
    pub fn is_doomed(&self, node: NodeId, chunk: ChunkId) -> bool {
        self.doomed.contains_key(&(node, chunk))
    }

    /// Nodes with copies to delete, and how much it is.
    pub fn doomed_on(&self) -> impl Iterator<Item = (NodeId, DoomedOn)> + '_ {
        self.doomed_on.iter().map(|(node, on)| (*node, *on))
    }
}

/// Nodes and sessions.
impl State {
    /// Storage nodes by number, those that left included.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> + '_ {
        self.nodes.values().map(AsRef::as_ref)
    }

    /// A storage node.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id).map(AsRef::as_ref)
    }

    /// Sessions by number.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> + '_ {
        self.sessions.values().map(AsRef::as_ref)
    }

    /// A session.
    #[must_use]
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id).map(AsRef::as_ref)
    }
}
