//! Reading a published version.
//!
//! `window` decides what to fetch ahead, `pipeline` keeps the parts, `fetch` gets the bytes of one from whichever replica
//! gives them verified, `blocks` serves random reads. No byte leaves this module unverified.

mod blocks;
mod fetch;
mod latency;
mod layouts;
mod part;
mod pieces;
mod pipeline;
mod seek;
mod window;

use std::sync::Arc;

use bytes::Bytes;
use dfs_common::{Attr, ChunkRef, Layout};

pub(crate) use blocks::{BlockCache, fetch_blocks, fetch_whole};
pub(crate) use latency::Latencies;
pub(crate) use layouts::Layouts;
pub(crate) use pipeline::ReaderCore;
pub use seek::Seek;
pub(crate) use seek::seek;

use crate::{Error, cluster::Pin, dfs::Shared};

/// Chunks up to this many bytes are fetched whole and checked by SHA-256, whatever part is wanted: one call for a small
/// file.
const SMALL_BYTES: usize = 128 << 10;

/// An open version of a file; it never changes, whatever happens to its name. While it lives the cluster keeps the version.
pub struct Reader {
    attr: Attr,
    core: Arc<ReaderCore>,
    _pin: Pin,
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, attr: Attr, layout: Arc<Layout>, pin: Pin) -> Self {
        Self { attr, core: ReaderCore::new(shared, layout), _pin: pin }
    }

    /// Attributes of the file when it was opened.
    #[must_use]
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    /// Where the bytes are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.core.layout
    }

    /// Size of this version, bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.core.layout.size()
    }

    /// Where data or a hole begins at or behind `offset`; `None` if nothing of the kind follows. Holes are found by whole chunks.
    #[must_use]
    pub fn seek(&self, offset: u64, what: Seek) -> Option<u64> {
        let Layout::Replicated { size, chunk_size, chunks, .. } = self.layout();
        let is_hole =
            |index| usize::try_from(index).ok().and_then(|index| chunks.get(index)).is_none_or(ChunkRef::is_hole);
        seek(*size, (*chunk_size).into(), offset, what, is_hole)
    }

    /// Verified bytes from `offset`: `len` of them, fewer only at the end of the file. Any number of calls may run at a
    /// time.
    ///
    /// # Errors
    /// Every copy is bad (`Io`), or no replica could be reached within the deadline (`Unavailable`).
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Vec<Bytes>, Error> {
        self.core.read(offset, len).await.map_err(|error| error.context(&format!("inode {}", self.attr.ino)))
    }
}
