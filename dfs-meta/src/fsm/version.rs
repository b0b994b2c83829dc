//! Versions: writing, publishing, garbage, release.
//!
//! ```text
//!   open_write / create ──► pending ──commit──► published (current) ──replaced, unlinked──► trash ──► garbage ──release──► gone
//!                             │  ▲    │
//!                             │  └────┘ every flush publishes; `done`, abort or the end of the session ends it
//! ```
//!
//! Each publication has its own file id, because a version that was handed to a reader never changes: the first one is the
//! pending version's id, the later ones are hashes of it and a counter.

use std::collections::BTreeMap;

use dfs_common::{
    ChunkId, ErrorCode, FileId, InodeId, SessionId, SetAttr,
    checksum::sha256,
    layout::{CHUNKS_MAX, Replicas, chunk_count},
};
use imbl::OrdSet;

use super::{
    command::{CommittedChunk, Outcome, Refusal, Reply},
    record::{Body, Origin, Pending, Reason, Shared, Version},
    state::State,
};

/// What becomes of the chunks that only an ended pending version held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Remains {
    /// Deleted at once.
    Doomed,
    /// Copies that no version lists: they wait for their grace time.
    Left,
}

/// What a writer publishes.
pub(super) struct Content<'a> {
    pub(super) size: u64,
    pub(super) chunks: &'a [CommittedChunk],
    pub(super) set: &'a SetAttr,
}

impl Content<'_> {
    /// Slots that the chunks stand for.
    fn slot_count(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.slots)).sum()
    }

    /// The chunk of each slot. At most as many as were checked to be right for the size.
    fn slots(&self) -> impl Iterator<Item = &ChunkId> {
        self.chunks.iter().flat_map(|chunk| std::iter::repeat_n(&chunk.chunk, chunk.slots as usize))
    }
}

/// What a version is to its chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    Current,
    Trashed,
    Garbage,
}

/// Seconds of a time in nanoseconds, within what a record holds (until 2106).
pub(super) fn seconds(ns: i64) -> u32 {
    u32::try_from((ns / 1_000_000_000).max(0)).unwrap_or(u32::MAX)
}

/// Id of the publication of `file_id` that `publications` others came before.
fn publication_id(file_id: FileId, publications: u64) -> FileId {
    if publications == 0 {
        return file_id;
    }
    let hash = sha256(&[&file_id.0[..], &publications.to_be_bytes()].concat());
    FileId(std::array::from_fn(|i| hash[i]))
}

/// Pending versions.
impl State {
    /// Checks that a drawn id is new.
    pub(super) fn check_fresh(&self, file_id: FileId) -> Result<(), Refusal> {
        if file_id.is_zero() || self.pending.contains_key(&file_id) || self.versions.contains_key(&file_id) {
            return Err(Refusal::new(ErrorCode::InvalidArgument, format!("file id {file_id} is zero or in use")));
        }
        Ok(())
    }

    pub(super) fn add_pending(&mut self, now_ns: i64, session: SessionId, ino: InodeId, file_id: FileId) {
        let current = self.current_version(ino).and_then(|id| self.versions.get(&id));
        let chunk_size = current.map_or(self.settings.chunk_size, |version| version.chunk_size);
        let pending = Pending { session, ino, chunk_size, publications: 0, opened_ns: now_ns, held: OrdSet::new() };
        self.pending.insert(file_id, pending);
        self.pending_by_ino.insert((ino, file_id));
        self.pending_by_session.insert((session, file_id));
    }

    pub(super) fn open_write(&mut self, now_ns: i64, session: SessionId, ino: InodeId, file_id: FileId) -> Outcome {
        let inode = self.visible(Some(session), ino).map_err(|code| Self::refuse_ino(code, ino))?;
        match inode.body {
            Body::File { .. } => self.check_fresh(file_id)?,
            Body::Directory { .. } => return Err(Self::refuse_ino(ErrorCode::IsDirectory, ino)),
            Body::Symlink { .. } | Body::Special { .. } => {
                return Err(Self::refuse_ino(ErrorCode::InvalidArgument, ino));
            }
        }
        self.add_pending(now_ns, session, ino, file_id);
        Ok(Reply::Mutated { attr: self.attr(ino), file_id: Some(file_id), existed: false })
    }

    pub(super) fn abort_file(&mut self, now_ns: i64, session: SessionId, file_id: FileId) -> Outcome {
        if self.pending.contains_key(&file_id) {
            self.own_pending(session, file_id)?;
            self.end_pending(now_ns, file_id, Remains::Doomed);
        }
        Ok(Reply::Done)
    }

    /// As [`Self::abort_file`], but another pending version may list the chunks soon.
    pub(super) fn leave_file(&mut self, now_ns: i64, session: SessionId, file_id: FileId) -> Outcome {
        if self.pending.contains_key(&file_id) {
            self.own_pending(session, file_id)?;
            self.end_pending(now_ns, file_id, Remains::Left);
        }
        Ok(Reply::Done)
    }

    fn own_pending(&self, session: SessionId, file_id: FileId) -> Result<&Pending, Refusal> {
        self.pending
            .get(&file_id)
            .filter(|pending| pending.session == session)
            .ok_or_else(|| Refusal::new(ErrorCode::Stale, format!("session {session} is not writing {file_id}")))
    }

    /// Forgets a pending version: what it held, and its inode when that has neither names nor other writers.
    pub(super) fn end_pending(&mut self, now_ns: i64, file_id: FileId, remains: Remains) {
        let Some(pending) = self.pending.remove(&file_id) else { return };
        self.pending_by_ino.remove(&(pending.ino, file_id));
        self.pending_by_session.remove(&(pending.session, file_id));
        for chunk in &pending.held {
            let is_last = self.chunks.get(chunk).is_some_and(|chunk| chunk.refs() == 1);
            if is_last && remains == Remains::Left {
                self.forget_chunk(*chunk);
                continue;
            }
            self.change_chunk(*chunk, |chunk| chunk.held = chunk.held.saturating_sub(1));
        }
        self.reap(now_ns, pending.ino);
    }
}

/// Publishing.
impl State {
    pub(super) fn commit_file(
        &mut self,
        now_ns: i64,
        session: SessionId,
        file_id: FileId,
        content: &Content<'_>,
        done: bool,
    ) -> Outcome {
        let pending = self.own_pending(session, file_id)?;
        let (ino, chunk_size, publications) = (pending.ino, pending.chunk_size, pending.publications);
        self.check_content(chunk_size, content)?;
        self.check_publishable(ino)?;
        for chunk in content.chunks {
            self.learn_chunk(chunk.chunk, chunk.length, chunk.sha256, &chunk.replicas);
        }
        let published = match self.current_version(ino).filter(|id| self.holds(*id, chunk_size, content)) {
            Some(current) => {
                if *content.set != SetAttr::default() {
                    self.touch(ino, |inode| inode.set(now_ns, content.set));
                }
                current
            }
            None => {
                let id = publication_id(file_id, publications);
                self.publish(now_ns, file_id, id, content);
                id
            }
        };
        let reply = Reply::Mutated { attr: self.attr(ino), file_id: Some(published), existed: false };
        if done {
            self.end_pending(now_ns, file_id, Remains::Doomed);
        }
        Ok(reply)
    }

    pub(super) fn current_version(&self, ino: InodeId) -> Option<FileId> {
        match self.inodes.get(&ino)?.body {
            Body::File { version } => version,
            Body::Directory { .. } | Body::Symlink { .. } | Body::Special { .. } => None,
        }
    }

    /// Whether a version has this content already.
    fn holds(&self, id: FileId, chunk_size: u32, content: &Content<'_>) -> bool {
        self.versions.get(&id).is_some_and(|version| {
            (version.size, version.chunk_size) == (content.size, chunk_size)
                && version.chunks.iter().eq(content.slots())
        })
    }

    /// Makes checked content the current version `id` of the pending version's inode, and its reserved names visible.
    fn publish(&mut self, now_ns: i64, file_id: FileId, id: FileId, content: &Content<'_>) {
        let Some(pending) = self.pending.get_mut(&file_id) else { return };
        pending.publications += 1;
        let (ino, chunk_size, publications) = (pending.ino, pending.chunk_size, pending.publications);
        let chunks = content.slots().copied().collect();
        let published_s = seconds(now_ns);
        self.versions.insert(id, Shared::new(Version { ino, size: content.size, chunk_size, published_s, chunks }));
        // New references before old ones go: a shared chunk must never be without one.
        for chunk in content.chunks.iter().filter(|chunk| !chunk.chunk.is_zero()) {
            self.change_chunk(chunk.chunk, |chunk| chunk.published += 1);
            self.drop_hold(file_id, chunk.chunk);
        }
        self.publish_names(now_ns, ino);
        let replaced = self.current_version(ino);
        let before = self.inodes.get(&ino).cloned();
        // A file that was only created is what it was when its name appeared: closing it is no change.
        let is_untouched = replaced.is_none() && content.size == 0 && *content.set == SetAttr::default();
        self.touch(ino, |inode| {
            inode.body = Body::File { version: Some(id) };
            if !is_untouched {
                inode.mtime_ns = now_ns;
                inode.set(now_ns, content.set);
            }
        });
        let (Some(replaced), Some(before)) = (replaced, before) else { return };
        // What this writer itself published a moment ago is a state in between.
        let is_own = publications > 1 && replaced == publication_id(file_id, publications - 2);
        match self.origin(ino).filter(|_| !is_own) {
            Some(origin) => self.retire_version(now_ns, replaced, ino, &before, origin),
            None => self.free_version(now_ns, replaced),
        }
    }

    /// Where a file whose content is replaced is, or was before it lost its last name.
    fn origin(&self, ino: InodeId) -> Option<Origin> {
        if !self.keeps_trash() {
            return None;
        }
        match self.orphans.get(&ino) {
            Some(orphan) => Some(orphan.clone()),
            None => {
                let (parent, name) = self.places(ino).next()?;
                Some(Origin { parent, path: self.path_of_entry(parent, &name), reason: Reason::Replaced })
            }
        }
    }

    /// A version references the chunk now, so the pending version need not.
    fn drop_hold(&mut self, file_id: FileId, chunk: ChunkId) {
        let Some(pending) = self.pending.get(&file_id).filter(|pending| pending.held.contains(&chunk)) else { return };
        let mut pending = pending.clone();
        pending.held.remove(&chunk);
        self.pending.insert(file_id, pending);
        self.change_chunk(chunk, |chunk| chunk.held = chunk.held.saturating_sub(1));
    }

    /// Checks everything about the chunks of a publication, so that it cannot stop half way.
    fn check_content(&self, chunk_size: u32, content: &Content<'_>) -> Result<(), Refusal> {
        if i64::try_from(content.size).is_err() {
            return Err(Refusal::new(ErrorCode::TooLarge, format!("a file of {} bytes", content.size)));
        }
        let (wanted, given) = (chunk_count(content.size, chunk_size), content.slot_count());
        if wanted > CHUNKS_MAX {
            let message = format!("{} bytes are {wanted} chunks, {CHUNKS_MAX} are the limit", content.size);
            return Err(Refusal::new(ErrorCode::TooLarge, message));
        }
        if wanted != given {
            let message = format!("{} bytes are {wanted} chunks of {chunk_size}, {given} are given", content.size);
            return Err(Refusal::new(ErrorCode::InvalidArgument, message));
        }
        let mut new = BTreeMap::new();
        let mut next = 0;
        for chunk in content.chunks {
            let index = next;
            next += u64::from(chunk.slots);
            self.check_chunk(chunk_size, chunk, &mut new).map_err(|fault| {
                Refusal::new(ErrorCode::InvalidArgument, format!("chunk {index} ({}): {fault}", chunk.chunk))
            })?;
        }
        Ok(())
    }

    /// Checks one slot; `new` are the unknown chunks of the slots before.
    fn check_chunk(
        &self,
        chunk_size: u32,
        chunk: &CommittedChunk,
        new: &mut BTreeMap<ChunkId, (u32, [u8; 32])>,
    ) -> Result<(), String> {
        if chunk.slots == 0 {
            return Err("it stands for no slot".to_owned());
        }
        if chunk.chunk.is_zero() {
            return if chunk.length == 0 { Ok(()) } else { Err("a hole has no bytes".to_owned()) };
        }
        if chunk.slots > 1 {
            return Err("only holes come in rows".to_owned());
        }
        if chunk.length == 0 || chunk.length > chunk_size {
            return Err(format!("{} bytes do not fit a slot of {chunk_size}", chunk.length));
        }
        let known = self.chunks.get(&chunk.chunk);
        let facts = known.map(|known| (known.length, known.sha256)).or_else(|| new.get(&chunk.chunk).copied());
        if facts.is_some_and(|facts| facts != (chunk.length, chunk.sha256)) {
            return Err("it is recorded with another length or SHA-256".to_owned());
        }
        let is_safe = known.is_some_and(|known| known.refs() > u64::from(known.held)) || new.contains_key(&chunk.chunk);
        if is_safe {
            return Ok(());
        }
        if known.is_none() && chunk.replicas.is_empty() {
            return Err("it is unknown and names no nodes that hold it".to_owned());
        }
        let mut copies: Replicas = known.map(|known| known.replicas.iter().copied().collect()).unwrap_or_default();
        copies.extend(chunk.replicas.iter().copied().filter(|node| self.may_hold(*node, chunk.chunk)));
        copies.sort_unstable();
        copies.dedup();
        let quorum = self.settings.write_quorum as usize;
        if copies.len() < quorum {
            return Err(format!("{} known nodes hold it, {quorum} must", copies.len()));
        }
        new.insert(chunk.chunk, (chunk.length, chunk.sha256));
        Ok(())
    }
}

/// Garbage.
impl State {
    /// A current version that nothing names any more is kept for those who read it.
    pub(super) fn free_version(&mut self, now_ns: i64, id: FileId) {
        if !self.versions.contains_key(&id) {
            return;
        }
        self.garbage.insert(id, now_ns);
        self.garbage_by_age.insert((now_ns, id));
        self.move_version(id, Standing::Current, Standing::Garbage);
    }

    /// The slots of a version count otherwise from now on.
    pub(super) fn move_version(&mut self, id: FileId, from: Standing, to: Standing) {
        let Some(version) = self.versions.get(&id).cloned() else { return };
        for chunk in version.chunks.iter().filter(|chunk| !chunk.is_zero()) {
            self.change_chunk(*chunk, |chunk| {
                let count = chunk.slots_mut(from);
                *count = count.saturating_sub(1);
                *chunk.slots_mut(to) += 1;
            });
        }
    }

    /// Forgets a garbage version; anything else is left alone.
    pub(super) fn release_version(&mut self, id: FileId) {
        let Some(freed_ns) = self.garbage.remove(&id) else { return };
        self.garbage_by_age.remove(&(freed_ns, id));
        let Some(version) = self.versions.remove(&id) else { return };
        for chunk in &version.chunks {
            self.change_chunk(*chunk, |chunk| chunk.garbage = chunk.garbage.saturating_sub(1));
        }
    }
}
