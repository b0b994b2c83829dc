//! Damage to what is on the disks of nodes, done behind their backs.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::rng::Rng;

/// Chunk files that are damaged at a time, at most.
const CHUNKS_MAX: usize = 20;
/// Bits of a log that are flipped at a time.
const LOG_BITS: usize = 8;

/// The files below a directory with that extension (any, if it is empty), in order.
fn files_below(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let (mut dirs, mut files) = (vec![dir.to_owned()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if extension.is_empty() || path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Some of the chunk files of a storage node.
fn chunks(data: &Path, rng: &mut Rng) -> Vec<PathBuf> {
    let mut files = files_below(&data.join("chunks"), "chunk");
    let mut chosen = Vec::new();
    while chosen.len() < CHUNKS_MAX && !files.is_empty() {
        let at = usize::try_from(rng.below(files.len() as u64)).unwrap_or(0);
        chosen.push(files.swap_remove(at));
    }
    chosen
}

fn flip(file: &File, offset: u64, bit: u64) -> io::Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset)
}

/// Does something to files that their node may remove at any time. Returns how many it was done to.
fn each(files: &[PathBuf], mut damage: impl FnMut(&File, u64) -> io::Result<()>) -> Result<usize> {
    let mut count = 0;
    for path in files {
        let done = File::options().read(true).write(true).open(path).and_then(|file| {
            let length = file.metadata()?.len();
            damage(&file, length.max(1))
        });
        match done {
            Ok(()) => count += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    Ok(count)
}

/// Flips one bit in each of some chunk files.
pub(super) fn flip_chunks(data: &Path, salt: u64) -> Result<usize> {
    let mut rng = Rng::new(salt, 1);
    let files = chunks(data, &mut rng);
    each(&files, |file, length| flip(file, rng.below(length), rng.below(8)))
}

/// Cuts the ends off some chunk files.
pub(super) fn cut_chunks(data: &Path, salt: u64) -> Result<usize> {
    let mut rng = Rng::new(salt, 2);
    let files = chunks(data, &mut rng);
    each(&files[..files.len().min(6)], |file, length| file.set_len(rng.below(length)))
}

/// Flips bits in the log of a metadata node that is down. `false`: it has none.
pub(super) fn flip_log(data: &Path, salt: u64) -> Result<bool> {
    let mut rng = Rng::new(salt, 3);
    let files = files_below(&data.join("raft"), "");
    if files.is_empty() {
        return Ok(false);
    }
    for _ in 0..LOG_BITS {
        let one = [rng.pick(&files).clone()];
        each(&one, |file, length| match file.metadata()?.len() {
            0 => Ok(()),
            _ => flip(file, rng.below(length), rng.below(8)),
        })?;
    }
    Ok(true)
}

/// Cuts the end off the largest file of the log of a metadata node that is down. `false`: it has none.
pub(super) fn cut_log(data: &Path, salt: u64) -> Result<bool> {
    let mut rng = Rng::new(salt, 4);
    let length = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let Some(largest) = files_below(&data.join("raft"), "").into_iter().max_by_key(length) else { return Ok(false) };
    let done = each(&[largest], |file, length| file.set_len(length - 1 - rng.below(length / 2 + 1).min(length - 1)))?;
    Ok(done > 0)
}

/// Empties a data directory: the node gets a new disk.
pub(super) fn empty(data: &Path) -> Result<()> {
    for entry in fs::read_dir(data)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_done_and_repeats() -> Result<()> {
        let make = || -> Result<tempfile::TempDir> {
            let dir = tempfile::tempdir()?;
            for sub in ["chunks/aa/00", "raft/log-0001"] {
                fs::create_dir_all(dir.path().join(sub))?;
            }
            for i in 0..5 {
                fs::write(dir.path().join(format!("chunks/aa/00/{i}.chunk")), vec![0; 1000])?;
            }
            fs::write(dir.path().join("raft/log-0001/db"), vec![0; 5000])?;
            Ok(dir)
        };
        let read = |dir: &tempfile::TempDir| -> Vec<Vec<u8>> {
            files_below(dir.path(), "").iter().map(|path| fs::read(path).expect("a file")).collect()
        };
        let (one, other, fresh) = (make()?, make()?, make()?);
        for dir in [&one, &other] {
            assert_eq!(flip_chunks(dir.path(), 3)?, 5);
            assert_eq!(cut_chunks(dir.path(), 4)?, 5);
            assert!(flip_log(dir.path(), 5)? && cut_log(dir.path(), 6)?);
        }
        assert_eq!(read(&one), read(&other));
        assert!(read(&one).iter().zip(&read(&fresh)).all(|(damaged, whole)| damaged != whole));
        empty(one.path())?;
        assert_eq!(read(&one), Vec::<Vec<u8>>::new());
        Ok(())
    }
}
