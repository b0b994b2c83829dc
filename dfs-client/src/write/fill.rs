//! Bytes into open chunks, and the memory for them.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use dfs_common::{ChunkRef, ErrorCode, layout::chunk_count};

use super::{
    Core, State,
    buffer::{self, Buffer},
    slot::{OpenChunk, Slot, Target, Upload},
};
use crate::{Error, budget::Grant, read};

/// Open chunks a writer keeps; random writes beyond send the one that was written longest ago.
const OPEN_MAX: usize = 8;

/// What a slot holds before it is opened for writing.
enum Before {
    Nothing,
    Ready,
    Here(Bytes),
    Stored(ChunkRef),
}

impl Core {
    /// Writes `data` into chunk `index` from `at`, and sends the chunk when its end was written.
    pub(super) async fn fill(&self, state: &mut State, index: u64, at: usize, data: &[u8]) -> Result<(), Error> {
        let end = at + data.len();
        self.open(state, index, at, end).await?;
        let turn = state.turn;
        state.turn += 1;
        let open = state.slots.open_mut(index).expect("opened above");
        assert!(open.buffer.write(at, data), "an open chunk is not shared");
        state.slots.touch(index, turn);
        if end as u64 == self.chunk_size {
            self.send(state, index).await?;
        }
        Ok(())
    }

    /// Makes slot `index` an open chunk with room for `end` bytes, of which those from `at` are about to be overwritten.
    async fn open(&self, state: &mut State, index: u64, at: usize, end: usize) -> Result<(), Error> {
        let before = match state.slots.get(index) {
            Slot::Hole => Before::Nothing,
            Slot::Open(open) if !open.buffer.is_unique() => {
                Before::Here(Bytes::copy_from_slice(open.buffer.as_slice()))
            }
            Slot::Open(_) => Before::Ready,
            Slot::Stored(stored) if at == 0 && end >= stored.chunk.length as usize => Before::Nothing,
            Slot::Stored(stored) => Before::Stored(stored.chunk.clone()),
            Slot::Sending(upload) => match upload.bytes() {
                Some(bytes) => Before::Here(bytes),
                // The bytes go only after the outcome is set, so this does not wait.
                None => Before::Stored(upload.wait().await.clone()?),
            },
        };
        match before {
            Before::Ready => self.grow(state, index, end).await,
            Before::Nothing => {
                // Chunks behind the first one are likely to be filled.
                let whole = index > 0 && at == 0;
                self.renew(state, index, if whole { self.chunk_bytes() } else { end }, &[]).await
            }
            Before::Here(bytes) => self.renew(state, index, end.max(bytes.len()), &[bytes]).await,
            Before::Stored(chunk) => self.load(state, index, chunk, end).await,
        }
    }

    fn chunk_bytes(&self) -> usize {
        usize::try_from(self.chunk_size).expect("chunks are small")
    }

    /// Puts a fresh open chunk with `content` into slot `index`.
    async fn renew(&self, state: &mut State, index: u64, room: usize, content: &[Bytes]) -> Result<(), Error> {
        let capacity = buffer::step(room, self.chunk_bytes());
        let grant = self.memory(state, index, capacity as u64).await?;
        let mut buffer = Buffer::new(&self.shared.buffers, capacity, grant);
        for piece in content {
            buffer.write(buffer.len(), piece);
        }
        self.put(state, index, buffer);
        Ok(())
    }

    fn put(&self, state: &mut State, index: u64, buffer: Buffer) {
        let turn = state.turn;
        state.slots.set(index, Slot::Open(Box::new(OpenChunk { buffer, turn })));
    }

    async fn grow(&self, state: &mut State, index: u64, end: usize) -> Result<(), Error> {
        let capacity = buffer::step(end, self.chunk_bytes());
        let has = state.slots.open_mut(index).map_or(0, |open| open.buffer.capacity());
        if has >= end {
            return Ok(());
        }
        let grant = self.memory(state, index, (capacity - has) as u64).await?;
        if let Some(open) = state.slots.open_mut(index) {
            open.buffer.grow(capacity, Some(grant));
        }
        Ok(())
    }

    /// Brings a stored chunk back, verified.
    async fn load(&self, state: &mut State, index: u64, chunk: ChunkRef, end: usize) -> Result<(), Error> {
        let kept = self.shared.tails.take(chunk.id, |bytes| self.shared.budget.try_write(bytes));
        if let Some(buffer) = kept {
            self.put(state, index, buffer);
            return self.grow(state, index, end).await;
        }
        let content = read::fetch_whole(&self.shared, &chunk, index).await?;
        self.renew(state, index, end.max(chunk.length as usize), &content).await
    }

    /// Memory for slot `index`. Waits while the budget is used up; sends other open chunks of this file to get some, and those of
    /// files that are idle; never waits when there are none.
    async fn memory(&self, state: &mut State, index: u64, bytes: u64) -> Result<Grant, Error> {
        if state.slots.open_count() >= OPEN_MAX
            && let Some(oldest) = state.slots.oldest_open(Some(index))
        {
            self.send(state, oldest).await?;
        }
        loop {
            if let Some(grant) = self.shared.budget.try_write(bytes) {
                return Ok(grant);
            }
            self.check()?;
            state.slots.reap();
            if state.slots.any_sending().is_none()
                && let Some(oldest) = state.slots.oldest_open(Some(index))
            {
                self.send(state, oldest).await?;
            }
            let (upload, is_own) = match state.slots.any_sending() {
                Some((_, upload)) => (upload, true),
                None => match self.spill().await {
                    Some(upload) => (upload, false),
                    None => return Ok(self.shared.budget.forced(bytes)),
                },
            };
            tokio::select! {
                grant = self.shared.budget.write(bytes) => return Ok(grant),
                // How the upload of another file ends is told there.
                outcome = upload.wait() => if is_own { outcome.as_ref().map_err(Clone::clone)?; },
            }
        }
    }

    /// Sends the open chunk in slot `index`; waits while too many are on their way.
    pub(super) async fn send(&self, state: &mut State, index: u64) -> Result<(), Error> {
        let permit = self.uploads.clone().acquire_owned().await.expect("never closed");
        self.check()?;
        let file_id = self.pending(state).await?;
        let Slot::Open(open) = state.slots.set(index, Slot::Hole) else {
            return Err(Error::new(ErrorCode::Internal, format!("chunk {index} is not open")));
        };
        let target = Target {
            shared: self.shared.clone(),
            file_id,
            attempts: self.attempts.clone(),
            failed: self.failed.clone(),
        };
        let keep = (open.buffer.len() as u64) < self.chunk_size;
        let upload = Upload::start(target, index, open.buffer, permit, keep);
        state.slots.set(index, Slot::Sending(upload));
        Ok(())
    }

    /// Cuts or extends to `size` bytes.
    pub(super) async fn cut(&self, state: &mut State, size: u64) -> Result<(), Error> {
        state.slots.reap();
        let chunk_size = u32::try_from(self.chunk_size).expect("chunks are small");
        let count = chunk_count(size, chunk_size);
        let keep = usize::try_from(size % self.chunk_size).expect("chunks are small");
        if size < self.size.load(Ordering::Acquire) && keep > 0 {
            self.cut_slot(state, count - 1, keep).await?;
        }
        state.slots.resize(count);
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    /// How many bytes of a slot are there; the rest of it reads as zeros.
    pub(super) async fn held(&self, state: &State, index: u64) -> Result<usize, Error> {
        Ok(match state.slots.get(index) {
            Slot::Hole => 0,
            Slot::Stored(stored) => stored.chunk.length as usize,
            Slot::Open(open) => open.buffer.len(),
            Slot::Sending(upload) => match upload.bytes() {
                Some(bytes) => bytes.len(),
                None => upload.wait().await.clone()?.length as usize,
            },
        })
    }

    /// Drops what lies behind `keep` bytes of a slot: were it kept, it would come back when the file grows again.
    pub(super) async fn cut_slot(&self, state: &mut State, index: u64, keep: usize) -> Result<(), Error> {
        let has = self.held(state, index).await?;
        if has <= keep {
            return Ok(());
        }
        self.open(state, index, keep, keep).await?;
        let open = state.slots.open_mut(index).expect("opened above");
        assert!(open.buffer.cut(keep), "an open chunk is not shared");
        let turn = state.turn;
        state.turn += 1;
        state.slots.touch(index, turn);
        Ok(())
    }

    /// A place for the next pending version's uploads.
    pub(super) fn shared(&self) -> &Arc<crate::dfs::Shared> {
        &self.shared
    }
}
