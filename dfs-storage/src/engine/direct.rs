//! Writing past the page cache.
//!
//! The bytes of a large chunk are written with `O_DIRECT`. Nobody reads them back soon as a rule (the client that wrote them
//! has them in its own cache), so taking pages for them only to write them out and throw out others costs more than the
//! copy: measured, a third of all CPU time of a write. What does not fill a whole block (the end of the last piece, and the
//! footer) is kept back and written through the cache at the end.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
    sync::{Condvar, Mutex, PoisonError},
};

use bytes::Bytes;

/// Alignment of addresses, offsets and lengths: a multiple of what any disk in use asks for.
const ALIGN: usize = 4096;
/// Most bytes written at once. A disk that is asked for little at a time gives half of what it can.
const BUFFER_BYTES: usize = 4 << 20;
/// Buffers in use at once, 32 MiB: more writes at a time than this do not make a disk faster.
const BUFFERS_MAX: usize = 8;
/// Chunks below this size go through the page cache: small files are often read soon, and their cost lies elsewhere.
pub(super) const DIRECT_BYTES_MIN: u32 = 128 << 10;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Block([u8; ALIGN]);

/// A buffer that the disk can take from directly.
pub(super) struct Buffer(Box<[Block]>);

impl Buffer {
    fn new() -> Self {
        Self(vec![Block([0; ALIGN]); BUFFER_BYTES / ALIGN].into_boxed_slice())
    }

    fn bytes(&mut self) -> &mut [u8] {
        let length = self.0.len() * ALIGN;
        // SAFETY: a `Block` is nothing but its bytes (repr(C), no padding), and the slice has exactly `length` of them.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), length) }
    }
}

/// Buffers that wait for the next writer, so that none pays for fresh memory.
#[derive(Default)]
pub(super) struct Buffers {
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    made: usize,
    free: Vec<Buffer>,
}

impl std::fmt::Debug for Buffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Buffers")
    }
}

impl Buffers {
    /// A buffer; waits for one if all are in use. Whoever has one holds it for one write.
    fn take(&self) -> Lent<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let none = |state: &mut State| state.free.is_empty() && state.made == BUFFERS_MAX;
        let mut state = self.returned.wait_while(state, none).unwrap_or_else(PoisonError::into_inner);
        let free = state.free.pop();
        state.made += usize::from(free.is_none());
        drop(state);
        Lent { buffers: self, buffer: Some(free.unwrap_or_else(Buffer::new)) }
    }
}

/// A buffer that goes back when it is dropped, also by a panic: were they lost, writers would wait for ever.
struct Lent<'a> {
    buffers: &'a Buffers,
    buffer: Option<Buffer>,
}

impl Lent<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        self.buffer.as_mut().expect("taken only by drop").bytes()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.buffers.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.free.extend(self.buffer.take());
        drop(state);
        self.buffers.returned.notify_one();
    }
}

/// Makes a new file for direct writing; `None` if the file system does not offer it (tmpfs of old kernels, some network file
/// systems).
///
/// # Errors
/// The file cannot be made for another reason.
pub(super) fn create(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().write(true).create_new(true).custom_flags(libc::O_DIRECT).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            // Some file systems make the file and then refuse the flag.
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(None),
            }
        }
        Err(error) => Err(error),
    }
}

/// What has been written of a file, and the bytes that do not fill a block yet.
#[derive(Debug, Default)]
pub(super) struct Tail {
    offset: u64,
    bytes: Vec<u8>,
    /// The disk asks for more than [`ALIGN`]: the rest goes through the page cache.
    refused: bool,
}

impl Tail {
    /// Writes `pieces` behind what was written, but for what does not fill a block.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn write(&mut self, file: &File, buffers: &Buffers, pieces: &[Bytes]) -> io::Result<()> {
        let mut buffer = buffers.take();
        self.write_with(file, buffer.bytes(), pieces)
    }

    fn write_with(&mut self, file: &File, buffer: &mut [u8], pieces: &[Bytes]) -> io::Result<()> {
        let mut filled = self.bytes.len();
        buffer[..filled].copy_from_slice(&self.bytes);
        for piece in pieces {
            let mut piece = &piece[..];
            while !piece.is_empty() {
                let (now, later) = piece.split_at(piece.len().min(buffer.len() - filled));
                buffer[filled..filled + now.len()].copy_from_slice(now);
                filled += now.len();
                piece = later;
                if filled == buffer.len() {
                    self.put(file, buffer)?;
                    filled = 0;
                }
            }
        }
        let whole = filled / ALIGN * ALIGN;
        self.put(file, &buffer[..whole])?;
        self.bytes.clear();
        self.bytes.extend_from_slice(&buffer[whole..filled]);
        Ok(())
    }

    /// Writes whole blocks.
    fn put(&mut self, file: &File, blocks: &[u8]) -> io::Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        match file.write_all_at(blocks, self.offset) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !self.refused => {
                self.refused = true;
                through_the_cache(file)?;
                file.write_all_at(blocks, self.offset)?;
            }
            outcome => outcome?,
        }
        self.offset += blocks.len() as u64;
        Ok(())
    }

    /// Writes what was kept back and `last` behind it. Nothing may be written directly afterwards.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn finish(mut self, file: &File, last: &[u8]) -> io::Result<()> {
        if !self.refused {
            through_the_cache(file)?;
        }
        self.bytes.extend_from_slice(last);
        file.write_all_at(&self.bytes, self.offset)
    }
}

/// Takes `O_DIRECT` from an open file.
fn through_the_cache(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, which touches no memory of ours. The other flags that F_SETFL can
    // change were not set at open.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_pieces_end_up_in_order(
            pieces in proptest::collection::vec((any::<u8>(), 0usize..300_000), 0..24),
            last in proptest::collection::vec(any::<u8>(), 0..9000),
            batch in 1usize..5,
        ) {
            let dir = tempfile::tempdir().expect("tmp");
            let path = dir.path().join("chunk");
            let file = match create(&path).expect("made") {
                Some(file) => file,
                None => File::create(&path).expect("made"),
            };
            let pieces: Vec<Bytes> = pieces.into_iter().map(|(byte, length)| vec![byte; length].into()).collect();
            let (buffers, mut tail) = (Buffers::default(), Tail::default());
            for part in pieces.chunks(batch) {
                tail.write(&file, &buffers, part).expect("written");
            }
            tail.finish(&file, &last).expect("finished");
            let mut all = pieces.concat();
            all.extend(last);
            prop_assert!(std::fs::read(&path).expect("read") == all);
        }
    }
}
