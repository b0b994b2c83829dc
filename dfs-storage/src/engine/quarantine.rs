//! Bad copies that were set aside, for a person to look at.
//!
//! ```text
//! DIR/quarantine/<id>-<milliseconds since the Unix epoch>-<random>.bad
//! ```
//!
//! A copy comes here by a rename, so it costs no space beyond what it had and nothing of it is lost; nobody reads it any more.
//! It is not a chunk of this node from then on: a good copy may come to its old place at once.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dfs_common::{
    ChunkId,
    crash::{self, Point},
    durable,
};

/// A bad copy that was set aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetAside {
    /// What chunk it was a copy of.
    pub id: ChunkId,
    /// When, by the wall clock.
    pub at: SystemTime,
    /// Bytes of the file.
    pub bytes: u64,
    path: PathBuf,
}

/// The quarantine of one data directory.
#[derive(Debug)]
pub(super) struct Quarantine {
    dir: PathBuf,
    copies: AtomicU64,
    bytes: AtomicU64,
}

impl Quarantine {
    /// The quarantine in `dir`, which exists.
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        let quarantine = Self { dir, copies: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        let kept = quarantine.list()?;
        quarantine.copies.store(kept.len() as u64, Ordering::Relaxed);
        quarantine.bytes.store(kept.iter().map(|copy| copy.bytes).sum(), Ordering::Relaxed);
        Ok(quarantine)
    }

    /// Copies and bytes in it.
    pub(super) fn size(&self) -> (u64, u64) {
        (self.copies.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Moves the file of a copy here. What it was called before is not there any more when this returns, also after a crash.
    pub(super) fn take(&self, file: &Path, id: ChunkId, bytes: u64) -> io::Result<()> {
        let ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let name = format!("{id}-{ms:013}-{:08x}.bad", rand::random::<u32>());
        durable::rename(file, &self.dir.join(name))?;
        crash::point(Point::QuarantineRenamed);
        self.copies.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        durable::sync_parent(file)
    }

    /// Everything in it, the oldest first. Foreign files are left out.
    pub(super) fn list(&self) -> io::Result<Vec<SetAside>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Some((id, at)) = parse(&entry.file_name()) else { continue };
            kept.push(SetAside { id, at, bytes: entry.metadata()?.len(), path: entry.path() });
        }
        kept.sort_by_key(|copy| (copy.at, copy.id));
        Ok(kept)
    }

    /// Removes a copy for good; one that is gone already is a success.
    pub(super) fn remove(&self, copy: &SetAside) -> io::Result<()> {
        match fs::remove_file(&copy.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        }
        let sub = |value: &AtomicU64, by: u64| {
            let _ = value.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| Some(now.saturating_sub(by)));
        };
        sub(&self.copies, 1);
        sub(&self.bytes, copy.bytes);
        Ok(())
    }
}

fn parse(name: &OsStr) -> Option<(ChunkId, SystemTime)> {
    let mut parts = name.to_str()?.strip_suffix(".bad")?.split('-');
    let id = parts.next()?.parse().ok()?;
    let ms = parts.next()?.parse().ok()?;
    parts.next()?;
    Some((id, UNIX_EPOCH.checked_add(Duration::from_millis(ms))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_counted_listed_and_removed() {
        let tmp = tempfile::tempdir().expect("tmp");
        let dir = tmp.path().join("quarantine");
        fs::create_dir(&dir).expect("mkdir");
        fs::write(dir.join("notes.txt"), b"a person's").expect("write");
        let quarantine = Quarantine::open(dir.clone()).expect("opens");
        let file = tmp.path().join("x.chunk");
        for n in 0..3 {
            fs::write(&file, vec![n; 10]).expect("write");
            quarantine.take(&file, ChunkId([1; 32]), 10).expect("taken");
            assert!(!file.exists());
        }
        assert_eq!(quarantine.size(), (3, 30));
        let kept = Quarantine::open(dir).expect("opens").list().expect("lists");
        assert!(kept.len() == 3 && kept.iter().all(|copy| copy.id == ChunkId([1; 32]) && copy.bytes == 10));
        quarantine.remove(&kept[0]).expect("removed");
        quarantine.remove(&kept[0]).expect("is gone");
        assert_eq!((quarantine.size(), quarantine.list().expect("lists").len()), ((2, 20), 2));
    }
}
