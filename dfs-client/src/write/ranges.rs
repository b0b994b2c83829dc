//! Ranges that cost no data: chunks shared with another version, and holes.

use std::sync::atomic::Ordering;

use dfs_common::{FileId, Layout};

use super::{
    Core, State,
    slot::{Slot, StoredChunk},
};
use crate::{
    Error,
    cluster::Pin,
    read::{Seek, seek},
};

/// Versions whose chunks were taken over and are not published here yet: each is kept until then.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<(FileId, Pin)>);

impl Sources {
    fn keep(&mut self, file_id: FileId, pin: impl FnOnce() -> Pin) {
        if self.0.iter().all(|(known, _)| *known != file_id) {
            self.0.push((file_id, pin()));
        }
    }

    /// The chunks are published: this version keeps them now.
    pub(super) fn published(&mut self) {
        self.0.clear();
    }
}

impl Core {
    /// Takes over the chunks of `from` that fill whole slots of the range; gives how many bytes they cover, counted from the
    /// start of the range.
    pub(super) async fn share(&self, from: &Layout, from_offset: u64, offset: u64, len: u64) -> Result<u64, Error> {
        let Layout::Replicated { file_id, size, chunk_size, chunks } = from;
        let slot_bytes = self.chunk_size;
        let is_aligned = from_offset.is_multiple_of(slot_bytes) && offset.is_multiple_of(slot_bytes);
        if u64::from(*chunk_size) != slot_bytes || !is_aligned {
            return Ok(0);
        }
        let wanted = len.min(size.saturating_sub(from_offset));
        self.check_size(offset.checked_add(wanted))?;
        let mut state = self.lock().await?;
        let state = &mut *state;
        state.slots.reap();
        let (first, target) = (from_offset / slot_bytes, offset / slot_bytes);
        let mut done = 0;
        while done < wanted {
            let index = first + done / slot_bytes;
            let covers = (wanted - done).min(slot_bytes);
            // The short end of a file may become the end of this one, but must not blank what lies behind it.
            let is_end =
                index * slot_bytes + covers == *size && offset + done + covers >= self.size.load(Ordering::Acquire);
            if covers < slot_bytes && !is_end {
                break;
            }
            let chunk = usize::try_from(index).ok().and_then(|index| chunks.get(index));
            let slot = match chunk.filter(|chunk| !chunk.is_hole()) {
                Some(chunk) => Slot::Stored(Box::new(StoredChunk { chunk: chunk.clone(), recorded: true })),
                None => Slot::Hole,
            };
            if done == 0 {
                self.dirty.store(true, Ordering::Release);
                state.sources.keep(*file_id, || self.shared.cluster.sessions.pin(*file_id));
            }
            state.slots.set(target + done / slot_bytes, slot);
            done += covers;
        }
        if done > 0 {
            self.size.fetch_max(offset + done, Ordering::AcqRel);
        }
        Ok(done)
    }

    /// Makes `len` bytes from `offset` read as zeros; the size stays. Slots that are covered become holes.
    pub(super) async fn zero(&self, offset: u64, len: u64) -> Result<(), Error> {
        let mut state = self.lock().await?;
        let state = &mut *state;
        let end = offset.saturating_add(len).min(self.size.load(Ordering::Acquire));
        if offset >= end {
            return Ok(());
        }
        self.dirty.store(true, Ordering::Release);
        state.slots.reap();
        let mut at = offset;
        while at < end {
            let (index, within) = (at / self.chunk_size, at % self.chunk_size);
            let until = (end - index * self.chunk_size).min(self.chunk_size);
            let (within, until) =
                (usize::try_from(within).expect("chunks are small"), usize::try_from(until).expect("chunks are small"));
            self.zero_slot(state, index, within, until).await.map_err(|error| self.fail(error))?;
            at = index * self.chunk_size + until as u64;
        }
        Ok(())
    }

    async fn zero_slot(&self, state: &mut State, index: u64, from: usize, until: usize) -> Result<(), Error> {
        let has = self.held(state, index).await?;
        if from >= has {
            return Ok(());
        }
        if until >= has {
            return match from {
                0 => {
                    state.slots.set(index, Slot::Hole);
                    Ok(())
                }
                keep => self.cut_slot(state, index, keep).await,
            };
        }
        self.fill(state, index, from, &vec![0; until - from]).await
    }

    /// Where data or a hole begins, as far as chunks tell.
    pub(super) async fn seek(&self, offset: u64, what: Seek) -> Result<Option<u64>, Error> {
        let state = self.lock().await?;
        let is_hole = |index| matches!(state.slots.get(index), Slot::Hole);
        Ok(seek(self.size.load(Ordering::Acquire), self.chunk_size, offset, what, is_hole))
    }
}
