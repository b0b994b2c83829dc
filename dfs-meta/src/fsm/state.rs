//! The state and how a batch is applied to it.
//!
//! Persistent maps make `clone` O(1): a snapshot is written from a clone while new entries are applied. Maps that can be
//! derived from others (marked "index") are not in a snapshot; `check` recounts them.

use std::sync::Arc;

use dfs_common::{Attr, ChunkId, ClusterId, ErrorCode, FileId, FileKind, InodeId, NodeId, SessionId, Uuid};
use imbl::{OrdMap, OrdSet};

use super::{
    change::Change,
    command::{Batch, Command, Op, Outcome, Refusal, RepairLimits, Reply, Settings},
    event::{EventLog, Fact},
    name::Name,
    rebalance::Rebalance,
    record::{
        Body, Chunk, Counters, DoomedOn, Inode, Node, Origin, Pending, Session, Shared, Trashed, Unpublished, Version,
    },
    restore::Restored,
    risk::{Figure, Risk},
    trash::Cursor,
};

/// Everything that the metadata cluster agrees on. Cloning is O(1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    pub(super) cluster_id: Option<ClusterId>,
    pub(super) settings: Settings,
    pub(super) repair_limits: RepairLimits,
    pub(super) next_ino: u64,
    pub(super) next_session: u64,
    pub(super) next_node: u32,

    pub(super) inodes: OrdMap<InodeId, Shared<Inode>>,
    pub(super) dentries: OrdMap<(InodeId, Name), InodeId>,
    /// Index of `dentries`: inode, directory and name of inodes with several published names.
    pub(super) links: OrdSet<(InodeId, InodeId, Name)>,
    pub(super) unpublished: OrdMap<InodeId, Unpublished>,
    /// Index of `unpublished` by name.
    pub(super) reservations: OrdMap<(InodeId, Name, SessionId), InodeId>,

    pub(super) versions: OrdMap<FileId, Shared<Version>>,
    /// How long content stays in the trash; 0 if nothing is kept.
    pub(super) trash_retention_ns: i64,
    /// Versions that can be restored.
    pub(super) trash: OrdMap<FileId, Arc<Trashed>>,
    /// Index of `trash`.
    pub(super) trash_by_age: OrdSet<(i64, FileId)>,
    /// Index of `trash`.
    pub(super) trash_by_path: OrdSet<Cursor>,
    /// Files that lost their last name while somebody writes them: where they were.
    pub(super) orphans: OrdMap<InodeId, Origin>,
    /// When each garbage version was freed.
    pub(super) garbage: OrdMap<FileId, i64>,
    /// Index of `garbage` by age.
    pub(super) garbage_by_age: OrdSet<(i64, FileId)>,
    pub(super) pending: OrdMap<FileId, Pending>,
    /// Index of `pending`.
    pub(super) pending_by_ino: OrdSet<(InodeId, FileId)>,
    /// Index of `pending`.
    pub(super) pending_by_session: OrdSet<(SessionId, FileId)>,

    /// A chunk is here exactly while it has references.
    pub(super) chunks: OrdMap<ChunkId, Chunk>,
    /// Index of the chunks' replicas: see `holders`.
    pub(super) chunks_by_node: OrdMap<NodeId, OrdSet<u32>>,
    /// Copies to be deleted, with their bytes where they are known.
    pub(super) doomed: OrdMap<(NodeId, ChunkId), u32>,
    /// Index of `doomed`: figures of each node that has some.
    pub(super) doomed_on: OrdMap<NodeId, DoomedOn>,
    /// Index: published and trashed chunks with fewer live copies than wanted, by live copies.
    pub(super) endangered: OrdSet<(u32, ChunkId)>,
    /// Index: published chunks with more live copies than wanted.
    pub(super) excessive: OrdSet<ChunkId>,

    pub(super) nodes: OrdMap<NodeId, Arc<Node>>,
    /// Index of `nodes`.
    pub(super) nodes_by_uuid: OrdMap<Uuid, NodeId>,

    pub(super) sessions: OrdMap<SessionId, Arc<Session>>,
    /// Index of `sessions`.
    pub(super) sessions_by_client: OrdMap<Uuid, SessionId>,

    /// Index of the chunks with one or two live copies: what the loss of each node would cost.
    pub(super) risks: OrdMap<NodeId, Risk>,

    /// Index of the chunks with copies on nodes that are to be emptied: those that have too few elsewhere.
    pub(super) rests: OrdMap<NodeId, Figure>,

    /// What happened, for the administrator.
    pub(super) events: EventLog,

    /// Whether chunks are moved from full nodes to empty ones.
    pub(super) rebalance: Rebalance,

    /// The state was restored or rescued: nothing unknown is deleted.
    pub(super) restored: Option<Restored>,

    /// Derived figures that no map's length gives.
    pub(super) counters: Counters,

    /// What the command that is being applied has changed; empty between commands, so no part of the state.
    pub(super) changes: Vec<Change>,
}

impl Default for State {
    /// A tree with an empty root, of a cluster that has no name yet.
    fn default() -> Self {
        let root = Inode {
            body: Body::Directory { parent: InodeId::ROOT, subdirs: 0 },
            mode: 0o755,
            uid: 0,
            gid: 0,
            names: 1,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
            generation: 1,
            xattrs: None,
            place: None,
        };
        Self { inodes: OrdMap::unit(InodeId::ROOT, Shared::new(root)), ..Self::empty() }
    }
}

impl State {
    /// Without even a root: what a snapshot is read into.
    pub(super) fn empty() -> Self {
        Self {
            cluster_id: None,
            settings: Settings::default(),
            repair_limits: RepairLimits::default(),
            next_ino: InodeId::ROOT.0 + 1,
            next_session: 1,
            next_node: 1,
            inodes: OrdMap::new(),
            dentries: OrdMap::new(),
            links: OrdSet::new(),
            unpublished: OrdMap::new(),
            reservations: OrdMap::new(),
            versions: OrdMap::new(),
            trash_retention_ns: 0,
            trash: OrdMap::new(),
            trash_by_age: OrdSet::new(),
            trash_by_path: OrdSet::new(),
            orphans: OrdMap::new(),
            garbage: OrdMap::new(),
            garbage_by_age: OrdSet::new(),
            pending: OrdMap::new(),
            pending_by_ino: OrdSet::new(),
            pending_by_session: OrdSet::new(),
            chunks: OrdMap::new(),
            chunks_by_node: OrdMap::new(),
            doomed: OrdMap::new(),
            doomed_on: OrdMap::new(),
            endangered: OrdSet::new(),
            excessive: OrdSet::new(),
            nodes: OrdMap::new(),
            nodes_by_uuid: OrdMap::new(),
            sessions: OrdMap::new(),
            sessions_by_client: OrdMap::new(),
            risks: OrdMap::new(),
            rests: OrdMap::new(),
            events: EventLog::default(),
            rebalance: Rebalance::default(),
            restored: None,
            counters: Counters::default(),
            changes: Vec::new(),
        }
    }

    /// Applies the commands in order and gives the outcome of each. A refused command changes nothing.
    pub fn apply(&mut self, batch: &Batch) -> Vec<Outcome> {
        self.apply_and_tell(batch, |_, _| {})
    }

    /// As [`State::apply`]; what changes of that which clients keep is told to `tell`, with the session that changed it.
    pub fn apply_and_tell(&mut self, batch: &Batch, mut tell: impl FnMut(Option<SessionId>, Change)) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(batch.commands.len());
        for command in &batch.commands {
            outcomes.push(self.apply_one(batch.now_ns, command));
            let session = match command {
                Command::Mutate { session, .. } => Some(*session),
                _ => None,
            };
            self.changes.drain(..).for_each(|change| tell(session, change));
        }
        outcomes
    }

    fn apply_one(&mut self, now_ns: i64, command: &Command) -> Outcome {
        match command {
            Command::InitCluster { cluster_id, settings } => self.init_cluster(now_ns, *cluster_id, *settings),
            Command::OpenSession { client_id, description } => self.open_session(now_ns, *client_id, description),
            Command::CloseSession { session } => {
                self.end_session(now_ns, *session);
                Ok(Reply::Done)
            }
            Command::ExpireSessions { sessions } => {
                sessions.iter().for_each(|session| self.end_session(now_ns, *session));
                Ok(Reply::Done)
            }
            Command::Mutate { session, seq, acked, op } => self.mutate(now_ns, *session, *seq, *acked, op),
            Command::RegisterNode { uuid, name, address, rack, capacity_bytes, incarnation } => {
                let asked = super::node::Registration {
                    uuid: *uuid,
                    name,
                    address,
                    rack,
                    capacity_bytes: *capacity_bytes,
                    incarnation: *incarnation,
                };
                self.register_node(now_ns, &asked)
            }
            Command::DeregisterNode { node, incarnation } => self.deregister_node(now_ns, *node, *incarnation),
            Command::SetNodeHealth { node, health, from } => self.set_node_health(now_ns, *node, *health, *from),
            Command::CommitChunks { receipts } => Ok(self.commit_chunks(receipts)),
            Command::ReplicasAdded { replicas } => Ok(self.replicas_added(replicas)),
            Command::ReplicasLost { node, chunks } => Ok(self.replicas_lost(*node, chunks)),
            Command::ReleaseVersions { file_ids } => {
                file_ids.iter().for_each(|id| self.release_version(*id));
                Ok(Reply::Done)
            }
            Command::ConfirmDeleted { node, chunks } => Ok(self.confirm_deleted(*node, chunks)),
            Command::DoomUnknown { node, chunks } => self.doom_unknown(*node, chunks),
            Command::SetTrashRetention { retention_ns } => self.set_trash_retention(*retention_ns),
            Command::DropTrash { file_ids } => Ok(self.drop_trash(file_ids)),
            Command::SetRepairLimits { limits } => self.set_repair_limits(*limits),
            Command::RecordEvents { facts } => {
                for fact in facts {
                    self.note_moved(fact);
                    self.event(now_ns, fact.clone());
                }
                Ok(Reply::Done)
            }
            Command::FinishRestore => self.finish_restore(),
            Command::Rebalance { change } => Ok(self.change_rebalance(now_ns, change)),
            Command::Administer { node, action } => self.administer(now_ns, *node, *action),
        }
    }

    /// Runs one client operation. Either it has its whole effect, or it is refused before it changed anything.
    pub(super) fn run(&mut self, now_ns: i64, session: SessionId, op: &Op) -> Outcome {
        match op {
            Op::Create { parent, name, mode, uid, gid, exclusive, file_id } => {
                let new = super::namespace::New { parent: *parent, name, mode: *mode, uid: *uid, gid: *gid };
                self.create(now_ns, session, &new, *exclusive, *file_id)
            }
            Op::Mkdir { parent, name, mode, uid, gid } => {
                let new = super::namespace::New { parent: *parent, name, mode: *mode, uid: *uid, gid: *gid };
                self.mkdir(now_ns, &new)
            }
            Op::Symlink { parent, name, target, uid, gid } => {
                let new = super::namespace::New { parent: *parent, name, mode: 0o777, uid: *uid, gid: *gid };
                self.symlink(now_ns, &new, target)
            }
            Op::Mknod { parent, name, kind, mode, uid, gid, rdev, file_id } => {
                let new = super::namespace::New { parent: *parent, name, mode: *mode, uid: *uid, gid: *gid };
                self.mknod(now_ns, &new, *kind, *rdev, *file_id)
            }
            Op::Link { ino, parent, name } => self.link(now_ns, session, *ino, *parent, name),
            Op::Unlink { parent, name } => self.unlink(now_ns, session, *parent, name),
            Op::Rmdir { parent, name } => self.rmdir(now_ns, session, *parent, name),
            Op::Rename { parent, name, new_parent, new_name, no_replace, exchange } => {
                let from = super::rename::Place { parent: *parent, name };
                let to = super::rename::Place { parent: *new_parent, name: new_name };
                self.rename(now_ns, session, from, to, *no_replace, *exchange)
            }
            Op::SetAttr { ino, set } => self.set_attr(now_ns, session, *ino, set),
            Op::SetXattr { ino, name, value, create, replace } => {
                self.set_xattr(now_ns, session, *ino, name, value, *create, *replace)
            }
            Op::RemoveXattr { ino, name } => self.remove_xattr(now_ns, session, *ino, name),
            Op::OpenWrite { ino, file_id } => self.open_write(now_ns, session, *ino, *file_id),
            Op::CommitFile { file_id, size, chunks, set, done } => {
                let content = super::version::Content { size: *size, chunks, set };
                self.commit_file(now_ns, session, *file_id, &content, *done)
            }
            Op::AbortFile { file_id } => self.abort_file(now_ns, session, *file_id),
            Op::Restore { file_id, parent, name } => self.restore(now_ns, *file_id, *parent, name),
            Op::LeaveFile { file_id } => self.leave_file(now_ns, session, *file_id),
        }
    }

    fn init_cluster(&mut self, now_ns: i64, cluster_id: ClusterId, settings: Settings) -> Outcome {
        if let Some(cluster_id) = self.cluster_id {
            return Ok(Reply::Cluster { cluster_id });
        }
        let sane = settings.chunk_size > 0 && (1..=settings.replication).contains(&settings.write_quorum);
        if cluster_id.is_zero() || !sane {
            return Err(Refusal::new(ErrorCode::InvalidArgument, format!("cannot set up a cluster with {settings:?}")));
        }
        self.cluster_id = Some(cluster_id);
        self.set_replication(settings);
        let Settings { chunk_size, replication, write_quorum } = settings;
        self.event(now_ns, Fact::ClusterMade { replication, write_quorum, chunk_size });
        if let Some(root) = self.inode_mut(InodeId::ROOT) {
            (root.atime_ns, root.mtime_ns, root.ctime_ns) = (now_ns, now_ns, now_ns);
        }
        Ok(Reply::Cluster { cluster_id })
    }

    pub(super) fn inode_mut(&mut self, ino: InodeId) -> Option<&mut Inode> {
        self.inodes.get_mut(&ino).map(Shared::make_mut)
    }

    /// Changes an inode: `change` and a new generation. An inode that is not there is left alone.
    pub(super) fn touch(&mut self, ino: InodeId, change: impl FnOnce(&mut Inode)) {
        if let Some(inode) = self.inode_mut(ino) {
            change(inode);
            inode.generation += 1;
            self.inode_changed(ino);
        }
    }

    /// The inode, if this session may know of it.
    pub(super) fn visible(&self, session: Option<SessionId>, ino: InodeId) -> Result<&Inode, ErrorCode> {
        let inode = self.inodes.get(&ino).ok_or(ErrorCode::NotFound)?;
        match self.unpublished.get(&ino) {
            Some(unpublished) if Some(unpublished.session) != session => Err(ErrorCode::NotFound),
            Some(_) | None => Ok(inode),
        }
    }

    /// The inode, which must be a directory.
    pub(super) fn directory(&self, ino: InodeId) -> Result<&Inode, ErrorCode> {
        let inode = self.inodes.get(&ino).ok_or(ErrorCode::NotFound)?;
        match inode.body {
            Body::Directory { .. } => Ok(inode),
            Body::File { .. } | Body::Symlink { .. } | Body::Special { .. } => Err(ErrorCode::NotDirectory),
        }
    }

    /// Attributes of an inode whatever its state.
    pub(super) fn attr(&self, ino: InodeId) -> Option<Attr> {
        self.inodes.get(&ino).map(|inode| self.attr_of(ino, inode))
    }

    pub(super) fn attr_of(&self, ino: InodeId, inode: &Inode) -> Attr {
        let (kind, size, nlink, rdev, file_id) = match &inode.body {
            Body::File { version } => {
                let size = version.and_then(|id| self.versions.get(&id)).map_or(0, |version| version.size);
                (FileKind::File, size, inode.names, 0, *version)
            }
            Body::Directory { subdirs, .. } => (FileKind::Directory, 0, subdirs.saturating_add(2), 0, None),
            Body::Symlink { target } => (FileKind::Symlink, target.len() as u64, inode.names, 0, None),
            Body::Special { kind, rdev } => (*kind, 0, inode.names, *rdev, None),
        };
        Attr {
            ino,
            kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            size,
            nlink,
            atime_ns: inode.atime_ns,
            mtime_ns: inode.mtime_ns,
            ctime_ns: inode.ctime_ns,
            rdev,
            generation: inode.generation,
            file_id,
        }
    }

    pub(super) fn mutated(&self, ino: InodeId) -> Reply {
        Reply::Mutated { attr: self.attr(ino), file_id: None, existed: false }
    }

    /// A refusal of something by its inode number.
    pub(super) fn refuse_ino(code: ErrorCode, ino: InodeId) -> Refusal {
        Refusal::new(code, format!("inode {ino}: {code}"))
    }

    /// A refusal of something by its name in a directory.
    pub(super) fn refuse_name(code: ErrorCode, parent: InodeId, name: &[u8]) -> Refusal {
        Refusal::new(code, format!("\"{}\" in directory {parent}: {code}", name.escape_ascii()))
    }
}
