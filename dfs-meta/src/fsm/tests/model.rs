//! The state machine once more, as simply as it can be said: plain maps, counting instead of keeping counts, and one
//! sweep after every command that removes what nothing holds any more.

mod nodes;

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::{ErrorCode, FileId, node::NodeState};

use super::super::{Admin, Command, CommittedChunk, Op, Reason, RebalanceChange, Receipt};

type Ino = u64;
type Name = Vec<u8>;
/// Slots of a version, 0 for a hole.
type Slots = Vec<u8>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Thing {
    Directory,
    /// Version, size and slots; `None` until something is published.
    File(Option<(FileId, u64, Slots)>),
}

#[derive(Clone, Debug)]
pub(super) struct Writer {
    pub(super) session: u64,
    pub(super) ino: Ino,
    pub(super) held: BTreeSet<u8>,
    /// What it published last.
    last: Option<FileId>,
}

/// Content in the trash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Trashed {
    pub(super) path: Name,
    pub(super) reason: Reason,
    pub(super) slots: Slots,
    size: u64,
}

#[derive(Default)]
pub(super) struct Model {
    next_ino: Ino,
    pub(super) things: BTreeMap<Ino, Thing>,
    pub(super) published: BTreeMap<(Ino, Name), Ino>,
    pub(super) reserved: BTreeMap<(Ino, Name, u64), Ino>,
    /// Unpublished inodes with their session.
    pub(super) hidden: BTreeMap<Ino, u64>,
    pub(super) writers: BTreeMap<FileId, Writer>,
    pub(super) garbage: BTreeMap<FileId, Slots>,
    pub(super) trash: BTreeMap<FileId, Trashed>,
    pub(super) retention_ns: i64,
    /// When versions became current, seconds.
    born: BTreeMap<FileId, i64>,
    /// Where files were that lost their last name while somebody writes them.
    lost: BTreeMap<Ino, (Name, Reason)>,
    now_s: i64,
    pub(super) chunks: BTreeMap<u8, BTreeSet<u32>>,
    pub(super) doomed: BTreeSet<(u32, u8)>,
    pub(super) nodes: BTreeMap<u32, nodes::Node>,
    pub(super) rebalances: bool,
    pub(super) sessions: BTreeSet<u64>,
    /// What the event log must say of nodes: node, from, to.
    pub(super) transitions: Vec<(u32, NodeState, NodeState)>,
}

/// What an operation came to: the inode it is about, and whether it was there.
pub(super) type Answer = Result<(Option<Ino>, bool), ErrorCode>;

impl Model {
    pub(super) fn new() -> Self {
        let nodes = (1..=4).map(|n| (n, nodes::Node::NEW)).collect();
        Self { next_ino: 2, things: BTreeMap::from([(1, Thing::Directory)]), nodes, ..Self::default() }
    }

    /// Applies a command; `id` is the version that the real one published, if it did.
    pub(super) fn apply(&mut self, now_ns: i64, command: &Command, id: Option<FileId>) -> Answer {
        self.now_s = now_ns / 1_000_000_000;
        let before = self.named_files();
        let answer = self.run(now_ns, command, id);
        self.lose(&before, command);
        self.sweep();
        answer
    }

    /// The published names of each file, in order, with their paths.
    fn named_files(&self) -> BTreeMap<Ino, Vec<Name>> {
        let mut named: BTreeMap<Ino, Vec<Name>> = BTreeMap::new();
        for ((parent, name), ino) in &self.published {
            if matches!(self.things.get(ino), Some(Thing::File(Some(_)))) {
                named.entry(*ino).or_default().push(self.path(*parent, name));
            }
        }
        named
    }

    fn path(&self, parent: Ino, name: &Name) -> Name {
        let above = self.path_up(parent).into_iter().rev().filter(|ino| *ino != 1).flat_map(|ino| {
            let (_, name) = self.published.iter().find(|(_, child)| **child == ino).expect("it has a name").0;
            [b"/".to_vec(), name.clone()].concat()
        });
        above.chain(*b"/").chain(name.iter().copied()).collect()
    }

    /// Notes where files were whose last name went away.
    fn lose(&mut self, before: &BTreeMap<Ino, Vec<Name>>, command: &Command) {
        let is_unlink = matches!(command, Command::Mutate { op: Op::Unlink { .. }, .. });
        let reason = if is_unlink { Reason::Removed } else { Reason::Replaced };
        for (ino, paths) in before.iter().filter(|_| self.retention_ns > 0) {
            if !self.published.values().any(|named| named == ino) {
                let path = paths.last().expect("it had a name").clone();
                self.lost.insert(*ino, (path, reason));
            }
        }
    }

    /// A version that is current no more.
    fn retire(&mut self, id: FileId, size: u64, slots: Slots, origin: Option<(Name, Reason)>) {
        let lived = self.now_s - self.born.get(&id).copied().unwrap_or(0);
        match origin.filter(|_| self.retention_ns > 0) {
            Some((path, reason)) if lived >= 10 || self.trash.values().filter(|t| t.path == path).count() < 8 => {
                self.trash.insert(id, Trashed { path, reason, slots, size });
            }
            Some(_) | None => drop(self.garbage.insert(id, slots)),
        }
    }

    fn run(&mut self, now_ns: i64, command: &Command, id: Option<FileId>) -> Answer {
        match command {
            Command::Mutate { session, op, .. } if self.sessions.contains(&session.0) => self.op(session.0, op, id),
            Command::Mutate { .. } => Err(ErrorCode::SessionExpired),
            Command::CloseSession { session } => {
                self.sessions.remove(&session.0);
                self.writers.retain(|_, writer| writer.session != session.0);
                // What its writers left is not deleted: an upload may be resumed.
                let left: Vec<u8> = self.chunks.keys().copied().filter(|chunk| self.refs(*chunk) == 0).collect();
                left.iter().for_each(|chunk| drop(self.chunks.remove(chunk)));
                Ok((None, false))
            }
            Command::Rebalance { change } => {
                self.rebalances = *change == RebalanceChange::Start;
                Ok((None, false))
            }
            Command::SetNodeHealth { node, health, .. } => self.set_health(node.0, *health),
            Command::Administer { node, action } => self.administer(now_ns, node.0, *action),
            Command::DoomUnknown { node, .. } if self.nodes[&node.0].admin == Admin::Decommissioned => {
                Err(ErrorCode::NotFound)
            }
            other => {
                self.chunk_command(other);
                Ok((None, false))
            }
        }
    }

    fn chunk_command(&mut self, command: &Command) {
        match command {
            Command::CommitChunks { receipts } => receipts.iter().for_each(|receipt| self.receipt(receipt)),
            Command::ReplicasAdded { replicas } => {
                for (chunk, node) in replicas
                    .iter()
                    .filter(|(chunk, _)| self.chunks.contains_key(&chunk.0[0]))
                    .copied()
                    .collect::<Vec<_>>()
                {
                    self.hold(chunk.0[0], node.0);
                }
            }
            Command::ReplicasLost { node, chunks } => chunks.iter().for_each(|chunk| {
                self.chunks.get_mut(&chunk.0[0]).map(|holders| holders.remove(&node.0));
            }),
            Command::ReleaseVersions { file_ids } => self.garbage.retain(|id, _| !file_ids.contains(id)),
            Command::SetTrashRetention { retention_ns } => self.retention_ns = *retention_ns,
            Command::DropTrash { file_ids } => {
                for id in file_ids {
                    if let Some(entry) = self.trash.remove(id) {
                        self.garbage.insert(*id, entry.slots);
                    }
                }
            }
            Command::ConfirmDeleted { node, chunks } => {
                self.doomed.retain(|(holder, n)| *holder != node.0 || !chunks.contains(&super::lab::chunk_id(*n)));
            }
            Command::DoomUnknown { node, chunks } => {
                for (chunk, file) in chunks {
                    if !self.chunks.contains_key(&chunk.0[0]) && !self.writers.contains_key(file) {
                        self.doomed.insert((node.0, chunk.0[0]));
                    }
                }
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn receipt(&mut self, receipt: &Receipt) {
        let chunk = receipt.chunk.0[0];
        if !self.chunks.contains_key(&chunk) {
            let usable = receipt.replicas.iter().any(|node| self.may_hold(chunk, node.0));
            let Some(writer) = self.writers.get_mut(&receipt.file).filter(|_| usable) else { return };
            writer.held.insert(chunk);
            self.chunks.insert(chunk, BTreeSet::new());
        }
        receipt.replicas.iter().for_each(|node| self.hold(chunk, node.0));
    }

    fn hold(&mut self, chunk: u8, node: u32) {
        if self.may_hold(chunk, node) {
            self.chunks.entry(chunk).or_default().insert(node);
        }
    }

    fn may_hold(&self, chunk: u8, node: u32) -> bool {
        !self.doomed.contains(&(node, chunk)) && self.nodes[&node].admin != Admin::Decommissioned
    }

    pub(super) fn is_directory(&self, ino: Ino) -> bool {
        self.things.get(&ino) == Some(&Thing::Directory)
    }

    fn directory(&self, ino: Ino) -> Result<(), ErrorCode> {
        match self.things.get(&ino) {
            Some(Thing::Directory) => Ok(()),
            Some(Thing::File(_)) => Err(ErrorCode::NotDirectory),
            None => Err(ErrorCode::NotFound),
        }
    }

    /// What a session finds under a name, and whether all find it.
    pub(super) fn find(&self, session: u64, parent: Ino, name: &[u8]) -> Option<(Ino, bool)> {
        let reserved = self.reserved.get(&(parent, name.to_vec(), session)).map(|ino| (*ino, false));
        reserved.or_else(|| self.published.get(&(parent, name.to_vec())).map(|ino| (*ino, true)))
    }

    fn is_taken(&self, parent: Ino, name: &[u8]) -> bool {
        self.published.contains_key(&(parent, name.to_vec()))
            || self.reserved.keys().any(|(p, n, _)| *p == parent && n == name)
    }

    fn is_occupied(&self, ino: Ino) -> bool {
        self.published.keys().any(|(parent, _)| *parent == ino)
            || self.reserved.keys().any(|(parent, _, _)| *parent == ino)
    }

    pub(super) fn nlink(&self, ino: Ino) -> u32 {
        let names = if self.is_directory(ino) {
            let inside = |((parent, _), child): (&(Ino, Name), &Ino)| *parent == ino && self.is_directory(*child);
            2 + self.published.iter().filter(|entry| inside(*entry)).count()
        } else {
            self.published.values().chain(self.reserved.values()).filter(|named| **named == ino).count()
        };
        u32::try_from(names).expect("small trees")
    }

    /// The directory itself and all above it.
    fn path_up(&self, mut ino: Ino) -> Vec<Ino> {
        let mut path = vec![ino];
        while ino != 1 {
            let above = self.published.iter().find(|(_, child)| **child == ino).map(|((parent, _), _)| *parent);
            ino = above.expect("a directory has a name");
            path.push(ino);
        }
        path
    }

    fn new_thing(&mut self, thing: Thing) -> Ino {
        self.things.insert(self.next_ino, thing);
        self.next_ino += 1;
        self.next_ino - 1
    }

    fn op(&mut self, session: u64, op: &Op, id: Option<FileId>) -> Answer {
        match op {
            Op::Create { parent, name, exclusive, file_id, .. } => {
                self.directory(parent.0)?;
                if *exclusive && self.is_taken(parent.0, name) {
                    return Err(ErrorCode::AlreadyExists);
                }
                if let Some((ino, _)) = self.find(session, parent.0, name) {
                    return if self.is_directory(ino) { Err(ErrorCode::IsDirectory) } else { Ok((Some(ino), true)) };
                }
                let ino = self.new_thing(Thing::File(None));
                self.reserved.insert((parent.0, name.clone(), session), ino);
                self.hidden.insert(ino, session);
                self.writers.insert(*file_id, Writer { session, ino, held: BTreeSet::new(), last: None });
                Ok((Some(ino), false))
            }
            Op::Mkdir { parent, name, .. } => {
                self.directory(parent.0)?;
                if self.is_taken(parent.0, name) {
                    return Err(ErrorCode::AlreadyExists);
                }
                let ino = self.new_thing(Thing::Directory);
                self.published.insert((parent.0, name.clone()), ino);
                Ok((Some(ino), false))
            }
            Op::Link { ino, parent, name } => self.link(session, ino.0, parent.0, name),
            Op::Unlink { parent, name } => {
                self.directory(parent.0)?;
                let (ino, is_published) = self.find(session, parent.0, name).ok_or(ErrorCode::NotFound)?;
                if self.is_directory(ino) {
                    return Err(ErrorCode::IsDirectory);
                }
                self.remove_name(session, parent.0, name, is_published);
                Ok((None, false))
            }
            Op::Rmdir { parent, name } => {
                self.directory(parent.0)?;
                let (ino, is_published) = self.find(session, parent.0, name).ok_or(ErrorCode::NotFound)?;
                self.directory(ino)?;
                if self.is_occupied(ino) {
                    return Err(ErrorCode::NotEmpty);
                }
                self.remove_name(session, parent.0, name, is_published);
                Ok((None, false))
            }
            Op::Rename { parent, name, new_parent, new_name, no_replace, exchange } => {
                let (from, to) = ((parent.0, name.clone()), (new_parent.0, new_name.clone()));
                self.rename(session, from, to, *no_replace, *exchange)
            }
            Op::OpenWrite { ino, file_id } => {
                self.visible(session, ino.0)?;
                if self.is_directory(ino.0) {
                    return Err(ErrorCode::IsDirectory);
                }
                self.writers.insert(*file_id, Writer { session, ino: ino.0, held: BTreeSet::new(), last: None });
                Ok((Some(ino.0), false))
            }
            Op::CommitFile { file_id, size, chunks, done, .. } => {
                self.commit(session, *file_id, *size, chunks, *done, id)
            }
            Op::LeaveFile { file_id } => {
                if self.writers.get(file_id).is_some_and(|writer| writer.session != session) {
                    return Err(ErrorCode::Stale);
                }
                self.writers.remove(file_id);
                let left: Vec<u8> = self.chunks.keys().copied().filter(|chunk| self.refs(*chunk) == 0).collect();
                left.iter().for_each(|chunk| drop(self.chunks.remove(chunk)));
                Ok((None, false))
            }
            Op::AbortFile { file_id } => {
                if self.writers.get(file_id).is_some_and(|writer| writer.session != session) {
                    return Err(ErrorCode::Stale);
                }
                self.writers.remove(file_id);
                Ok((None, false))
            }
            Op::Restore { file_id, parent, name } => {
                let Some(entry) = self.trash.get(file_id).cloned() else { return Err(ErrorCode::NotFound) };
                self.directory(parent.0)?;
                if self.is_taken(parent.0, name) {
                    return Err(ErrorCode::AlreadyExists);
                }
                self.trash.remove(file_id);
                let ino = self.new_thing(Thing::File(Some((*file_id, entry.size, entry.slots))));
                self.published.insert((parent.0, name.clone()), ino);
                self.born.insert(*file_id, self.now_s);
                Ok((Some(ino), false))
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn visible(&self, session: u64, ino: Ino) -> Result<(), ErrorCode> {
        let is_there = self.things.contains_key(&ino) && self.hidden.get(&ino).is_none_or(|owner| *owner == session);
        if is_there { Ok(()) } else { Err(ErrorCode::NotFound) }
    }

    fn link(&mut self, session: u64, ino: Ino, parent: Ino, name: &Name) -> Answer {
        self.visible(session, ino)?;
        if self.is_directory(ino) {
            return Err(ErrorCode::NotPermitted);
        }
        if self.nlink(ino) == 0 {
            return Err(ErrorCode::NotFound);
        }
        self.directory(parent)?;
        if self.is_taken(parent, name) {
            return Err(ErrorCode::AlreadyExists);
        }
        if self.hidden.contains_key(&ino) {
            self.reserved.insert((parent, name.clone(), session), ino);
        } else {
            self.published.insert((parent, name.clone()), ino);
        }
        Ok((Some(ino), false))
    }

    fn remove_name(&mut self, session: u64, parent: Ino, name: &Name, is_published: bool) {
        if is_published {
            self.published.remove(&(parent, name.clone()));
        } else {
            self.reserved.remove(&(parent, name.clone(), session));
        }
    }

    fn rename(&mut self, session: u64, from: (Ino, Name), to: (Ino, Name), no_replace: bool, exchange: bool) -> Answer {
        if no_replace && exchange {
            return Err(ErrorCode::InvalidArgument);
        }
        self.directory(from.0)?;
        self.directory(to.0)?;
        let (source, source_published) = self.find(session, from.0, &from.1).ok_or(ErrorCode::NotFound)?;
        if no_replace && self.is_taken(to.0, &to.1) {
            return Err(ErrorCode::AlreadyExists);
        }
        if self.is_directory(source) && self.path_up(to.0).contains(&source) {
            return Err(ErrorCode::InvalidArgument);
        }
        let target = self.find(session, to.0, &to.1);
        if exchange {
            let (target, target_published) = target.ok_or(ErrorCode::NotFound)?;
            if !source_published || !target_published {
                return Err(ErrorCode::NotSupported);
            }
            if self.is_directory(target) && self.path_up(from.0).contains(&target) {
                return Err(ErrorCode::InvalidArgument);
            }
            self.published.insert(from, target);
            self.published.insert(to, source);
            return Ok((Some(source), false));
        }
        if target.is_some_and(|(target, _)| target == source) {
            return Ok((Some(source), false));
        }
        let below = self.published.get(&to).map(|ino| (*ino, true));
        for (other, _) in target.into_iter().chain(below) {
            match (self.is_directory(source), self.is_directory(other)) {
                (true, false) => return Err(ErrorCode::NotDirectory),
                (false, true) => return Err(ErrorCode::IsDirectory),
                (true, true) if self.is_occupied(other) => return Err(ErrorCode::NotEmpty),
                (true, true) | (false, false) => {}
            }
        }
        self.reserved.remove(&(to.0, to.1.clone(), session));
        self.remove_name(session, from.0, &from.1, source_published);
        if source_published {
            self.published.insert(to, source);
        } else {
            self.reserved.insert((to.0, to.1, session), source);
        }
        Ok((Some(source), false))
    }

    fn commit(
        &mut self,
        session: u64,
        file_id: FileId,
        size: u64,
        chunks: &[CommittedChunk],
        done: bool,
        id: Option<FileId>,
    ) -> Answer {
        let writer = self.writers.get(&file_id).filter(|writer| writer.session == session).ok_or(ErrorCode::Stale)?;
        let ino = writer.ino;
        if size.div_ceil(100) != chunks.len() as u64 || !chunks.iter().all(|chunk| self.is_durable(chunk, chunks)) {
            return Err(ErrorCode::InvalidArgument);
        }
        let names: Vec<_> =
            self.reserved.iter().filter(|(_, named)| **named == ino).map(|((p, n, _), _)| (*p, n.clone())).collect();
        if names.iter().any(|name| self.published.get(name).is_some_and(|ino| self.is_directory(*ino))) {
            return Err(ErrorCode::IsDirectory);
        }
        if !names.is_empty() && names.iter().all(|(parent, _)| !self.is_directory(*parent)) {
            return Err(ErrorCode::NotFound);
        }
        for chunk in chunks.iter().filter(|chunk| !chunk.chunk.is_zero()) {
            let number = chunk.chunk.0[0];
            self.chunks.entry(number).or_default();
            chunk.replicas.iter().for_each(|node| self.hold(number, node.0));
        }
        let slots: Slots = chunks.iter().map(|chunk| chunk.chunk.0[0]).collect();
        let Some(Thing::File(content)) = self.things.get_mut(&ino) else { panic!("a writer writes a file") };
        if content.as_ref().is_none_or(|(_, s, c)| (s, c) != (&size, &slots)) {
            let id = id.expect("a publication has an id");
            let old = content.replace((id, size, slots.clone()));
            self.born.insert(id, self.now_s);
            if let Some(writer) = self.writers.get_mut(&file_id) {
                writer.held.retain(|chunk| !slots.contains(chunk));
            }
            let last = self.writers.get_mut(&file_id).and_then(|writer| writer.last.replace(id));
            if let Some((old, size, slots)) = old {
                assert_ne!(old, id, "a publication has an id of its own");
                let at = self.named_files().remove(&ino).and_then(|paths| paths.into_iter().next());
                let origin = self.lost.get(&ino).cloned().or_else(|| Some((at?, Reason::Replaced)));
                self.retire(old, size, slots, origin.filter(|_| last != Some(old)));
            }
            self.hidden.remove(&ino);
            self.reserved.retain(|_, named| *named != ino);
            for name in names.into_iter().filter(|(parent, _)| self.things.contains_key(parent)) {
                self.published.insert(name, ino);
            }
        }
        if done {
            self.writers.remove(&file_id);
        }
        Ok((Some(ino), false))
    }

    /// Whether a slot may be published: a hole, a chunk that a version lists, or one with enough copies. A chunk that is in
    /// several slots needs to name its copies in the first one only.
    fn is_durable(&self, chunk: &CommittedChunk, all: &[CommittedChunk]) -> bool {
        let number = chunk.chunk.0[0];
        let first = all.iter().find(|other| other.chunk == chunk.chunk).expect("it is itself among them");
        let mut holders = self.chunks.get(&number).cloned().unwrap_or_default();
        let named = first.replicas.iter().map(|node| node.0).filter(|node| self.may_hold(number, *node));
        holders.extend(named);
        number == 0 || self.versions_with(number) > 0 || holders.len() >= 2
    }

    fn versions_with(&self, chunk: u8) -> usize {
        let current = self.things.values().filter_map(|thing| match thing {
            Thing::File(Some((_, _, slots))) => Some(slots),
            Thing::File(None) | Thing::Directory => None,
        });
        let trash = self.trash.values().map(|entry| &entry.slots);
        current.chain(self.garbage.values()).chain(trash).flatten().filter(|slot| **slot == chunk).count()
    }

    pub(super) fn refs(&self, chunk: u8) -> usize {
        let held = self.writers.values().filter(|writer| writer.held.contains(&chunk)).count();
        self.versions_with(chunk) + held
    }

    /// Removes what nothing holds.
    fn sweep(&mut self) {
        let dead: Vec<Ino> = self.things.keys().copied().filter(|ino| !self.is_alive(*ino)).collect();
        for ino in dead {
            let origin = self.lost.remove(&ino);
            if let Some(Thing::File(Some((id, size, slots)))) = self.things.remove(&ino) {
                self.retire(id, size, slots, origin);
            }
            self.hidden.remove(&ino);
            self.reserved.retain(|_, named| *named != ino);
        }
        let unused: Vec<u8> = self.chunks.keys().copied().filter(|chunk| self.refs(*chunk) == 0).collect();
        for chunk in unused {
            let holders = self.chunks.remove(&chunk).unwrap_or_default();
            self.doomed.extend(holders.into_iter().map(|node| (node, chunk)));
        }
    }

    fn is_alive(&self, ino: Ino) -> bool {
        let is_written = self.writers.values().any(|writer| writer.ino == ino);
        ino == 1 || is_written || self.published.values().any(|named| *named == ino)
    }
}
