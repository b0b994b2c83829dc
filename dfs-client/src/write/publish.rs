//! Publication, and the end of a pending version.

use std::sync::{Arc, atomic::Ordering};

use dfs_common::{
    Attr, ErrorCode, FileId, InodeId, SetAttr, SetTime,
    crash::{self, Point},
    layout::chunk_count,
};
use dfs_proto::{convert, v1, v1::mutate_request::Op};

use super::{Core, State, slot::Slot};
use crate::{
    Error,
    cluster::{Cluster, Session},
    dfs::Shared,
};

impl Core {
    /// The pending version, opened again if it was ended.
    pub(super) async fn pending(&self, state: &mut State) -> Result<FileId, Error> {
        if let Some(file_id) = state.pending {
            return Ok(file_id);
        }
        let op = Op::OpenWrite(v1::OpenWrite { ino: self.ino.0 });
        let what = format!("opening inode {} for writing", self.ino);
        // In a task of its own: a version that was opened for a caller who has left meanwhile must be ended.
        let (shared, session, ino) = (self.shared().clone(), self.session.clone(), self.ino);
        let (tell, told) = tokio::sync::oneshot::channel();
        self.shared().cluster.tasks.spawn(async move {
            let opened = async {
                let answer = shared.cluster.mutate_in(&session, what, op).await?;
                Ok::<_, Error>(convert::file_id(&answer.file_id)?)
            };
            if let Err(Ok(file_id)) = tell.send(opened.await) {
                abandon(&shared, &session, ino, file_id);
            }
        });
        let lost = |_| Error::new(ErrorCode::Internal, "the task that opens a version has failed");
        let file_id = told.await.map_err(lost)??;
        state.pending = Some(file_id);
        self.is_pending.store(true, Ordering::Release);
        self.shared().cluster.will.began(self.ino, file_id);
        Ok(file_id)
    }

    pub(super) async fn publish(&self, set: SetAttr, done: bool) -> Result<Attr, Error> {
        let mut state = self.lock().await?;
        let state = &mut *state;
        if state.published && !self.dirty.load(Ordering::Acquire) {
            if done {
                self.end(state);
            }
            return self.touch(state, set).await;
        }
        let published = async {
            self.trim(state).await?;
            self.settle(state).await?;
            self.commit(state, set, done).await
        };
        match published.await {
            Ok(attr) => Ok(attr),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Sets attributes that came after the last publication.
    async fn touch(&self, state: &mut State, mut set: SetAttr) -> Result<Attr, Error> {
        set.mtime = set.mtime.filter(|at| *at != SetTime::At(state.attr.mtime_ns));
        if set != SetAttr::default() {
            let dfs = crate::Dfs { shared: self.shared().clone() };
            state.attr = dfs.setattr(self.ino, set).await?;
        }
        Ok(state.attr.clone())
    }

    /// Drops what a write that was given up had put behind the end already.
    async fn trim(&self, state: &mut State) -> Result<(), Error> {
        let size = self.size.load(Ordering::Acquire);
        match usize::try_from(size % self.chunk_size).expect("chunks are small") {
            // A whole last chunk has nothing behind its end, and what lies behind that one is not committed.
            0 => Ok(()),
            keep => self.cut_slot(state, size / self.chunk_size, keep).await,
        }
    }

    /// Brings every chunk to the write quorum.
    async fn settle(&self, state: &mut State) -> Result<(), Error> {
        for index in state.slots.open_indices() {
            self.send(state, index).await?;
        }
        while let Some((_, upload)) = state.slots.any_sending() {
            upload.wait().await.as_ref().map_err(Clone::clone)?;
            state.slots.reap();
        }
        Ok(())
    }

    async fn commit(&self, state: &mut State, set: SetAttr, done: bool) -> Result<Attr, Error> {
        let size = self.size.load(Ordering::Acquire);
        let count = chunk_count(size, u32::try_from(self.chunk_size).expect("chunks are small"));
        state.slots.resize(count);
        let chunks = committed_slots(state.slots.iter())?;
        let pending = self.pending(state).await?;
        let file_id = convert::id_bytes(pending.as_bytes());
        let set = Some(convert::set_attr_to_wire(self.ino, &set));
        let op = Op::CommitFile(v1::CommitFile { file_id, size, chunks, set, done });
        let what = format!("publishing inode {}", self.ino);
        crash::point(Point::PublishStored);
        let answer = self.shared().cluster.mutate_in(&self.session, what, op).await?;
        crash::point(Point::PublishAnswered);
        let attr =
            answer.attr.ok_or_else(|| Error::new(ErrorCode::Internal, "a commit was answered without attributes"))?;
        state.attr = attr.try_into()?;
        state.slots.recorded();
        state.sources.published();
        state.published = true;
        if done {
            state.pending = None;
            self.is_pending.store(false, Ordering::Release);
            self.shared().cluster.will.ended(pending);
        }
        self.dirty.store(false, Ordering::Release);
        Ok(state.attr.clone())
    }

    /// Ends the pending version in the background.
    pub(super) fn end(&self, state: &mut State) {
        self.is_pending.store(false, Ordering::Release);
        if let Some(file_id) = state.pending.take() {
            abandon(self.shared(), &self.session, self.ino, file_id);
        }
    }
}

/// The slots as they are sent: holes in a row as one.
fn committed_slots<'a>(slots: impl Iterator<Item = &'a Slot>) -> Result<Vec<v1::CommittedChunk>, Error> {
    let mut chunks: Vec<v1::CommittedChunk> = Vec::new();
    let mut in_hole = false;
    for slot in slots {
        let is_hole = matches!(slot, Slot::Hole);
        match chunks.last_mut() {
            Some(hole) if is_hole && in_hole => hole.slots += 1,
            _ => chunks.push(committed(slot)?),
        }
        in_hole = is_hole;
    }
    Ok(chunks)
}

fn committed(slot: &Slot) -> Result<v1::CommittedChunk, Error> {
    match slot {
        Slot::Hole => {
            let hole = dfs_common::ChunkRef::HOLE;
            Ok(v1::CommittedChunk {
                chunk_id: convert::id_bytes(hole.id.as_bytes()),
                length: 0,
                sha256: convert::id_bytes(&hole.sha256),
                replicas: vec![],
                slots: 1,
            })
        }
        Slot::Stored(stored) => Ok(v1::CommittedChunk {
            chunk_id: convert::id_bytes(stored.chunk.id.as_bytes()),
            length: stored.chunk.length,
            sha256: convert::id_bytes(&stored.chunk.sha256),
            replicas: if stored.recorded { vec![] } else { convert::replicas_to_wire(&stored.chunk.replicas) },
            slots: 1,
        }),
        Slot::Open(_) | Slot::Sending(_) => Err(Error::new(ErrorCode::Internal, "a chunk is not stored yet")),
    }
}

/// Tells the cluster that a pending version has ended. The end of the session would do the same.
pub(crate) fn abandon(shared: &Arc<Shared>, session: &Arc<Session>, ino: InodeId, file_id: FileId) {
    // Without a runtime (the process is ending) the lease does it.
    if session.is_lost() || tokio::runtime::Handle::try_current().is_err() || shared.cluster.stop.is_cancelled() {
        return;
    }
    end_pending(&shared.cluster, session, ino, file_id);
}

/// Ends a pending version of `session` in the background.
pub(crate) fn end_pending(cluster: &Arc<Cluster>, session: &Arc<Session>, ino: InodeId, file_id: FileId) {
    let (cluster, session) = (cluster.clone(), session.clone());
    let tasks = cluster.tasks.clone();
    tasks.spawn(async move {
        let op = Op::AbortFile(v1::AbortFile { file_id: convert::id_bytes(file_id.as_bytes()), keep_chunks: false });
        let what = format!("ending the pending version of inode {ino}");
        match cluster.mutate_in(&session, what, op).await {
            Ok(_) => cluster.will.ended(file_id),
            // Ended before, and its process was killed before it could record that.
            Err(error) if error.code == ErrorCode::NotFound => cluster.will.ended(file_id),
            Err(error) => tracing::debug!(%error, "left to the end of the session"),
        }
    });
}
