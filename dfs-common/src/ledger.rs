//! Small records in a file that outlives the process which writes them: what its successor has to know.
//!
//! The file is one of memory (memfd_create(2)) whose descriptor somebody else keeps: it survives the process, not the machine.
//! Every record has [`RECORD_BYTES`] and is written by one pwrite(2), so a process that is killed leaves each of them whole, as
//! it was or as it became. A first byte of zero means that there is none.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Bytes of one record.
pub const RECORD_BYTES: usize = 64;

/// One record; its first byte, the kind, is not zero.
pub type Record = [u8; RECORD_BYTES];

/// What a process finds of the one before it: records, and what keeps each of them there.
pub type Found = Vec<(Entry, Record)>;

/// The file.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    places: Mutex<Places>,
    /// Whether records stay when what keeps them goes: what was found belongs to the predecessor until it is taken over.
    is_foreign: AtomicBool,
}

#[derive(Debug, Default)]
struct Places {
    free: Vec<u64>,
    /// The first one that was never used.
    end: u64,
}

/// A record that is there for as long as this.
#[derive(Debug)]
pub struct Entry {
    ledger: Arc<Ledger>,
    place: u64,
}

impl Ledger {
    /// A new one without records.
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn new() -> io::Result<Arc<Self>> {
        // SAFETY: the name is a NUL-terminated string.
        let descriptor = unsafe { libc::memfd_create(c"dfs-ledger".as_ptr(), libc::MFD_CLOEXEC) };
        if descriptor == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: memfd_create(2) has just made it; nobody else has it.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
        Ok(Arc::new(Self { file, places: Mutex::default(), is_foreign: AtomicBool::new(false) }))
    }

    /// One that another process has left, and what it wrote there. Until [`Ledger::take_over`] every record stays, so that a
    /// process that cannot take over leaves all of it to the next one.
    ///
    /// # Errors
    /// It cannot be read, or is no ledger.
    pub fn open(file: File) -> io::Result<(Arc<Self>, Found)> {
        let length = file.metadata()?.len();
        if length % RECORD_BYTES as u64 != 0 {
            let message = format!("a ledger of {length} bytes has no whole number of records");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        let ledger = Arc::new(Self { file, places: Mutex::default(), is_foreign: AtomicBool::new(true) });
        let mut found = Vec::new();
        for (place, record) in bytes.as_chunks::<RECORD_BYTES>().0.iter().enumerate() {
            let place = place as u64;
            match record[0] {
                0 => ledger.places().free.push(place),
                _ => found.push((Entry { ledger: Arc::clone(&ledger), place }, *record)),
            }
            ledger.places().end = place + 1;
        }
        Ok((ledger, found))
    }

    /// From now on the records are this process's.
    pub fn take_over(&self) {
        self.is_foreign.store(false, Ordering::Release);
    }

    /// The descriptor that keeps it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn put(self: &Arc<Self>, record: &Record) -> io::Result<Entry> {
        debug_assert_ne!(record[0], 0, "a record has a kind");
        let place = {
            let mut places = self.places();
            places.free.pop().unwrap_or_else(|| {
                places.end += 1;
                places.end - 1
            })
        };
        // Given back by its drop if there is no memory.
        let entry = Entry { ledger: Arc::clone(self), place };
        entry.set(record)?;
        Ok(entry)
    }
}

impl Entry {
    /// Writes the record anew. That of a record which is there already needs no memory.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn set(&self, record: &Record) -> io::Result<()> {
        self.ledger.file.write_all_at(record, self.place * RECORD_BYTES as u64)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.ledger.is_foreign.load(Ordering::Acquire) {
            return;
        }
        // Fails only behind the end of a file that could not be made longer, where there is nothing to clear.
        let _ = self.ledger.file.write_all_at(&[0; RECORD_BYTES], self.place * RECORD_BYTES as u64);
        self.ledger.places().free.push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, value: u8) -> Record {
        let mut record = [value; RECORD_BYTES];
        record[0] = kind;
        record
    }

    fn reopened(ledger: &Ledger) -> Vec<Record> {
        let file = File::from(ledger.descriptor().try_clone_to_owned().expect("a descriptor"));
        // Who only looks leaves everything.
        let (_, found) = Ledger::open(file).expect("whole");
        found.iter().map(|(_, record)| *record).collect()
    }

    #[test]
    fn a_successor_finds_what_is_there_and_nothing_else() {
        let ledger = Ledger::new().expect("memory");
        let first = ledger.put(&record(1, 10)).expect("memory");
        let second = ledger.put(&record(2, 20)).expect("memory");
        first.set(&record(1, 11)).expect("memory");
        assert_eq!(reopened(&ledger), [record(1, 11), record(2, 20)]);
        drop(first);
        assert_eq!(reopened(&ledger), [record(2, 20)]);
        let _third = ledger.put(&record(3, 30)).expect("memory");
        assert_eq!(reopened(&ledger), [record(3, 30), record(2, 20)], "a place is used again");
        drop(second);
    }

    #[test]
    fn a_successor_writes_where_there_is_room() {
        let ledger = Ledger::new().expect("memory");
        let kept = ledger.put(&record(1, 1)).expect("memory");
        drop(ledger.put(&record(2, 2)).expect("memory"));
        let (heir, found) =
            Ledger::open(File::from(ledger.descriptor().try_clone_to_owned().expect("a descriptor"))).expect("whole");
        assert_eq!(found.len(), 1);
        heir.take_over();
        let _new = heir.put(&record(3, 3)).expect("memory");
        assert_eq!(reopened(&ledger), [record(1, 1), record(3, 3)]);
        drop(found);
        assert_eq!(reopened(&ledger), [record(3, 3)], "what was taken over goes");
        std::mem::forget(kept);
    }

    #[test]
    fn something_else_is_refused() {
        let ledger = Ledger::new().expect("memory");
        ledger.file.set_len(10).expect("memory");
        let file = File::from(ledger.descriptor().try_clone_to_owned().expect("a descriptor"));
        assert!(Ledger::open(file).is_err_and(|error| error.to_string().contains("10 bytes")));
    }
}
