//! One chunk on its way to the disk: temporary file, blocks checked as they come, footer, fdatasync, rename, fsync of the
//! directory.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Write as _},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use dfs_common::checksum::BlockVerifier;

use super::{ChunkFacts, ChunkWriter, EngineError, Finished, disk::Shared, footer, space::Reservation};

/// Most pieces given to one writev (IOV_MAX on Linux).
const SLICES_MAX: usize = 1024;

/// A temporary file that is removed unless it was moved to its place.
#[derive(Debug)]
struct TmpFile {
    path: PathBuf,
    published: bool,
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a temporary file; the next start does");
        }
    }
}

/// Writes one chunk.
#[derive(Debug)]
pub(super) struct DiskWriter {
    shared: Arc<Shared>,
    facts: ChunkFacts,
    file: File,
    tmp: TmpFile,
    verifier: Option<BlockVerifier>,
    written: u64,
    _reservation: Reservation,
}

impl DiskWriter {
    pub(super) fn create(shared: Arc<Shared>, facts: ChunkFacts) -> Result<Self, EngineError> {
        let reservation = shared.space.reserve(footer::file_bytes(facts.length))?;
        let path = shared.tmp.join(format!("{}-{:08x}", facts.id, rand::random::<u32>()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|e| EngineError::io("create", &path, e))?;
        let verifier = Some(BlockVerifier::new(facts.block_crcs.clone()));
        let tmp = TmpFile { path, published: false };
        Ok(Self { shared, facts, file, tmp, verifier, written: 0, _reservation: reservation })
    }

    fn write_all(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        for group in pieces.chunks(SLICES_MAX) {
            let mut slices: Vec<_> = group.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut rest = &mut slices[..];
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match self.file.write_vectored(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => IoSlice::advance_slices(&mut rest, count),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }
}

impl ChunkWriter for DiskWriter {
    fn append(&mut self, pieces: &[Bytes]) -> Result<(), EngineError> {
        let id = self.facts.id;
        self.written += pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if self.written > u64::from(self.facts.length) {
            return Err(EngineError::Length { id, expected: self.facts.length.into(), found: self.written });
        }
        let verifier = self.verifier.as_mut().expect("taken only by finish, which consumes the writer");
        for piece in pieces {
            verifier.update(piece).map_err(|mismatch| EngineError::Damaged { id, mismatch })?;
        }
        self.write_all(pieces).map_err(|e| EngineError::io("write", &self.tmp.path, e))
    }

    fn finish(mut self: Box<Self>) -> Result<Finished, EngineError> {
        let id = self.facts.id;
        if self.written != u64::from(self.facts.length) {
            return Err(EngineError::Length { id, expected: self.facts.length.into(), found: self.written });
        }
        let verifier = self.verifier.take().expect("finish runs once");
        verifier.finish().map_err(|mismatch| EngineError::Damaged { id, mismatch })?;
        let io_error = |action| {
            let path = self.tmp.path.clone();
            move |e| EngineError::io(action, path, e)
        };
        self.file.write_all(&footer::encode(&self.facts)).map_err(io_error("write the footer of"))?;
        self.file.sync_data().map_err(io_error("sync"))?;
        let finished = self.shared.publish(&self.tmp.path, &self.facts)?;
        self.tmp.published = finished == Finished::New;
        Ok(finished)
    }
}
