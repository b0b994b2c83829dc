//! One chunk on its way to the disk: temporary file, blocks checked as they come, footer, fdatasync, rename, fsync of the
//! directory. Large chunks go past the page cache (see [`super::direct`]).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use dfs_common::{
    checksum::BlockVerifier,
    crash::{self, Point},
};

use super::{
    ChunkFacts, ChunkWriter, EngineError, Finished,
    direct::{self, DIRECT_BYTES_MIN, Tail},
    disk::Shared,
    footer,
    space::Reservation,
};

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
    /// Present if the file is written past the page cache.
    direct: Option<Tail>,
    tmp: TmpFile,
    verifier: Option<BlockVerifier>,
    written: u64,
    _reservation: Reservation,
}

impl DiskWriter {
    pub(super) fn create(shared: Arc<Shared>, facts: ChunkFacts) -> Result<Self, EngineError> {
        let reservation = shared.space.reserve(footer::file_bytes(facts.length))?;
        let path = shared.tmp.join(format!("{}-{:08x}", facts.id, rand::random::<u32>()));
        let large = facts.length >= DIRECT_BYTES_MIN;
        let (file, direct) = create_file(&path, large).map_err(|e| EngineError::io("create", &path, e))?;
        let verifier = Some(BlockVerifier::new(facts.block_crcs.clone()));
        let tmp = TmpFile { path, published: false };
        Ok(Self { shared, facts, file, direct, tmp, verifier, written: 0, _reservation: reservation })
    }

    fn write_all(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        if let Some(tail) = &mut self.direct {
            return tail.write(&self.file, &self.shared.direct, pieces);
        }
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

fn create_file(path: &Path, large: bool) -> io::Result<(File, Option<Tail>)> {
    if large && let Some(file) = direct::create(path)? {
        return Ok((file, Some(Tail::default())));
    }
    OpenOptions::new().write(true).create_new(true).open(path).map(|file| (file, None))
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
        let footer = footer::encode(&self.facts);
        match self.direct.take() {
            Some(tail) => tail.finish(&self.file, &footer),
            None => self.file.write_all(&footer),
        }
        .map_err(io_error("write the footer of"))?;
        crash::point(Point::ChunkWritten);
        self.file.sync_data().map_err(io_error("sync"))?;
        crash::point(Point::ChunkSynced);
        let finished = self.shared.publish(&self.tmp.path, &self.facts)?;
        self.tmp.published = finished == Finished::New;
        Ok(finished)
    }
}
