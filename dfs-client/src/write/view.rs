//! Reading what is being written.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use dfs_common::ChunkRef;

use super::{Core, slot::Slot};
use crate::{Error, dfs::zeros, read};

/// A stretch of the answer.
enum Part {
    Zeros(usize),
    Here(Bytes),
    /// Chunk, its index, first byte and length within it.
    There(ChunkRef, u64, usize, usize),
}

impl Core {
    pub(super) async fn view(&self, offset: u64, len: usize) -> Result<Vec<Bytes>, Error> {
        let plan = self.plan(offset, len).await?;
        let mut out = Vec::with_capacity(plan.len());
        for part in plan {
            match part {
                Part::Zeros(len) => zeros(len, &mut out),
                Part::Here(bytes) => out.push(bytes),
                Part::There(chunk, index, at, len) => {
                    out.extend(read::fetch_blocks(self.shared(), &chunk, index, at, len).await?);
                }
            }
        }
        Ok(out)
    }

    /// What to give, decided under the lock; stored bytes are fetched without it.
    async fn plan(&self, offset: u64, len: usize) -> Result<Vec<Part>, Error> {
        let mut state = self.lock().await?;
        state.slots.reap();
        let end = offset.saturating_add(len as u64).min(self.size.load(Ordering::Acquire));
        let (mut at, mut plan) = (offset, Vec::new());
        while at < end {
            let (index, within) = (at / self.chunk_size, at % self.chunk_size);
            let want = (end - at).min(self.chunk_size - within);
            let (within, want) =
                (usize::try_from(within).expect("small"), usize::try_from(want).expect("at most a chunk"));
            let has = |length: usize| want.min(length.saturating_sub(within));
            let given = match state.slots.get(index) {
                Slot::Hole => 0,
                Slot::Open(open) => {
                    let given = has(open.buffer.len());
                    if given > 0 {
                        plan.push(Part::Here(Bytes::copy_from_slice(&open.buffer.as_slice()[within..within + given])));
                    }
                    given
                }
                Slot::Sending(upload) => match upload.bytes() {
                    Some(bytes) => {
                        let given = has(bytes.len());
                        if given > 0 {
                            plan.push(Part::Here(bytes.slice(within..within + given)));
                        }
                        given
                    }
                    // The bytes go only after the outcome is set, so this does not wait.
                    None => {
                        let chunk = upload.wait().await.as_ref().map_err(Clone::clone)?;
                        self.plan_stored(&mut plan, chunk, index, within, want)
                    }
                },
                Slot::Stored(stored) => self.plan_stored(&mut plan, &stored.chunk, index, within, want),
            };
            if given < want {
                plan.push(Part::Zeros(want - given));
            }
            at += want as u64;
        }
        Ok(plan)
    }

    fn plan_stored(&self, plan: &mut Vec<Part>, chunk: &ChunkRef, index: u64, within: usize, want: usize) -> usize {
        let given = want.min((chunk.length as usize).saturating_sub(within));
        if given > 0 {
            plan.push(match self.shared().tails.peek(chunk.id, within, given) {
                Some(bytes) => Part::Here(bytes),
                None => Part::There(chunk.clone(), index, within, given),
            });
        }
        given
    }
}
