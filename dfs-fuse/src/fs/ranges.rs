//! Ranges of open files: copies that move no data, holes, and space set aside.
//!
//! `copy_file_range(2)` shares whole chunks. What lies before the first border of a chunk, and a rest shorter than one, is
//! copied here, since the kernel would do it in pieces of a page; it calls again for what a short answer left. Where the two
//! offsets do not lie alike within their chunks nothing can be shared, and the kernel reads and writes instead.

use std::sync::Arc;

use dfs_client::Seek;

use super::{
    Fs,
    backend::{Backend, VersionReader as _, VersionWriter as _},
    error::Error,
    file::Handle,
};

/// What fallocate(2) is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Allocate {
    /// The range belongs to the file afterwards.
    Extend,
    /// The range may lie behind the end, the size stays: nothing to do, since space is not set aside.
    KeepSize,
    /// The range reads as zeros, the size stays.
    Punch,
    /// The range reads as zeros and belongs to the file.
    Zero,
}

impl Allocate {
    /// From the mode of fallocate(2); `None` for what dfs cannot do.
    pub(crate) fn from_mode(mode: i32) -> Option<Self> {
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        match mode {
            0 => Some(Self::Extend),
            libc::FALLOC_FL_KEEP_SIZE => Some(Self::KeepSize),
            PUNCH | ZERO_KEEP => Some(Self::Punch),
            libc::FALLOC_FL_ZERO_RANGE => Some(Self::Zero),
            _ => None,
        }
    }
}

impl<B: Backend> Fs<B> {
    /// Copies a range from one open file to another; how many bytes, which may be fewer than `len`, 0 only at the end.
    pub(crate) async fn copy_range(&self, from: (u64, u64), to: (u64, u64), len: u64) -> Result<u64, Error> {
        let (source, target) = (self.file(from.0)?, self.file(to.0)?);
        let Handle::Write { inode, .. } = &*target else {
            return Err(Error::refused(libc::EBADF, "the target of a copy was opened for reading"));
        };
        let Some(reader) = self.lender(&source).await? else {
            return Err(Error::refused(libc::EOPNOTSUPP, "unpublished content is copied by reading and writing"));
        };
        let len = len.min(reader.layout().size().saturating_sub(from.1));
        if len == 0 {
            return Ok(0);
        }
        let slot = inode.writer(&self.backend).await?;
        let writer = slot.as_ref().expect("OpenInode::writer leaves one in the slot");
        let chunk = writer.chunk_size();
        if from.1 % chunk != to.1 % chunk {
            return Err(Error::refused(libc::EOPNOTSUPP, "the ranges lie differently within their chunks"));
        }
        let _changing = inode.change();
        let shared = writer.share_from(&reader, from.1, to.1, len).await?;
        if shared > 0 {
            return Ok(shared);
        }
        let piece = len.min(chunk - from.1 % chunk);
        let mut at = to.1;
        for bytes in reader.read_at(from.1, usize::try_from(piece).expect("chunks are small")).await? {
            writer.write_at(at, &bytes).await?;
            at += bytes.len() as u64;
        }
        Ok(at - to.1)
    }

    /// The published version that a handle reads, unless it reads what is not published.
    async fn lender(&self, source: &Handle<B>) -> Result<Option<Arc<B::Reader>>, Error> {
        match source {
            Handle::Read { .. } if let Some(version) = self.version(source).await? => Ok(Some(version.reader())),
            Handle::Read { inode, .. } | Handle::Write { inode, .. } | Handle::Lost { inode, .. } => {
                match inode.slot().await.as_ref() {
                    Some(_) => Ok(None),
                    None => inode.published(&self.backend).await,
                }
            }
        }
    }

    /// fallocate(2).
    pub(crate) async fn allocate(&self, handle: u64, offset: u64, len: u64, what: Allocate) -> Result<(), Error> {
        let handle = self.file(handle)?;
        let Handle::Write { inode, .. } = &*handle else {
            return Err(Error::refused(libc::EBADF, "the handle was opened for reading"));
        };
        if what == Allocate::KeepSize {
            return Ok(());
        }
        let end = offset.checked_add(len).ok_or_else(|| Error::refused(libc::EFBIG, "no file can be that long"))?;
        let slot = inode.writer(&self.backend).await?;
        let writer = slot.as_ref().expect("OpenInode::writer leaves one in the slot");
        let _changing = inode.change();
        if matches!(what, Allocate::Punch | Allocate::Zero) {
            writer.zero_range(offset, len).await?;
        }
        if matches!(what, Allocate::Extend | Allocate::Zero) && end > writer.size() {
            writer.truncate(end).await?;
        }
        Ok(())
    }

    /// lseek(2) for data and holes; ENXIO where nothing of the kind follows.
    pub(crate) async fn seek(&self, handle: u64, offset: u64, what: Seek) -> Result<u64, Error> {
        let handle = self.file(handle)?;
        let found = match &*handle {
            Handle::Read { .. } if let Some(version) = self.version(&handle).await? => {
                version.reader().seek(offset, what)
            }
            Handle::Read { inode, .. } | Handle::Write { inode, .. } | Handle::Lost { inode, .. } => {
                match inode.slot().await.as_ref() {
                    Some(writer) => writer.seek(offset, what).await?,
                    None => match inode.published(&self.backend).await? {
                        Some(reader) => reader.seek(offset, what),
                        None => None,
                    },
                }
            }
        };
        found.ok_or_else(|| Error::refused(libc::ENXIO, "nothing of the kind follows"))
    }
}
