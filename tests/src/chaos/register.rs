//! Small files: complete new ones are put under a few names that all workers share, linked, renamed, removed and read; and
//! one file for each worker is overwritten in place and read by those on the other mount.
//!
//! Every directory is used for a few seconds only, so that its history stays short enough to be judged. Two things are done
//! so that what is seen is what the cluster did: the mounts keep no names (`cache=0`), and a rename from one name to another is
//! done on one mount only, since the kernel itself takes it for done when it finds one file under both names, which a rename on the other mount may
//! bring about.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::Path,
};

use anyhow::Result;

use super::{
    journal::{Line, now},
    worker::{Place, Worker, errno, rename},
};
use crate::{
    files::{Noise, close},
    history::{Answer, Call, Ns, Object},
    rng::Rng,
};

/// How long a set of directories is used, nanoseconds.
const EPOCH_NS: Ns = 8_000_000_000;
/// Directories in use at a time.
const DIRECTORIES: u64 = 3;
/// Names in each.
pub(super) const NAMES: u8 = 4;
/// Where they are.
pub(super) const ROOT: &str = "registers";
/// Bytes before the noise: value and length.
const HEAD: usize = 16;

/// The object that is a directory: `DIRECTORIES` of each epoch.
fn directory(epoch: u64, index: u64) -> Object {
    Object::Directory(u32::try_from(epoch * DIRECTORIES + index).unwrap_or(u32::MAX))
}

/// Its name.
pub(super) fn object_name(object: Object) -> String {
    match object {
        Object::Directory(number) => format!("d{number}"),
        Object::Register(number) => format!("own-{number}"),
    }
}

/// The object behind such a name.
pub(super) fn object_of(name: &str) -> Option<Object> {
    let directory = || name.strip_prefix('d')?.parse().ok().map(Object::Directory);
    let register = || name.strip_prefix("own-")?.parse().ok().map(Object::Register);
    directory().or_else(register)
}

/// The file that the worker of that number overwrites in that epoch.
fn own_file(number: u64, epoch: u64) -> (Object, String) {
    let object = (number << 26) | (epoch & 0x03ff_ffff);
    let object = Object::Register(u32::try_from(object).unwrap_or(u32::MAX));
    (object, object_name(object))
}

/// The name of that number.
pub(super) fn name(number: u8) -> String {
    char::from(b'a' + number).to_string()
}

/// The bytes of a value.
pub(super) fn content(value: u64) -> Vec<u8> {
    let mut rng = Rng::new(value, 7);
    let length = match rng.below(20) {
        0 => rng.range(100_000, 400_000),
        1..=3 => rng.range(4_000, 100_000),
        _ => rng.range(0, 4_000),
    };
    let mut bytes = vec![0; HEAD + usize::try_from(length).unwrap_or(0)];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[8..HEAD].copy_from_slice(&length.to_le_bytes());
    Noise::new(value).fill(&mut bytes[HEAD..]);
    bytes
}

/// The value of a content; `None`: nobody wrote this.
pub(super) fn value_of(bytes: &[u8]) -> Option<u64> {
    let value = u64::from_le_bytes(*bytes.first_chunk()?);
    (content(value) == bytes).then_some(value)
}

pub(super) fn work(worker: Worker) -> Result<()> {
    let mut register = Register { worker, made: 0 };
    while !register.worker.is_over() {
        register.worker.pause(5, 90);
        let epoch = now() / EPOCH_NS;
        let index = register.worker.rng.below(DIRECTORIES);
        let object = directory(epoch, index);
        let mount = register.worker.task.mounts[0].clone();
        let opened = register.worker.timed("open", || {
            let root = Place::open(&mount)?.dir(ROOT)?;
            Ok::<_, io::Error>((root.dir("new")?, root))
        })?;
        let Ok((new, root)) = opened else {
            // Nothing was recorded: the mount is down, or cannot reach anybody.
            register.worker.pause(50, 200);
            continue;
        };
        let opened = register.worker.timed("mkdir", || root.dir(&object_name(object)))?;
        let Ok(dir) = opened else { continue };
        register.step(object, &dir, &new, &root)?;
    }
    Ok(())
}

struct Register {
    worker: Worker,
    made: u64,
}

impl Register {
    fn step(&mut self, object: Object, dir: &Place, new: &Place, root: &Place) -> Result<()> {
        let name = u8::try_from(self.worker.rng.below(u64::from(NAMES)))?;
        match self.worker.rng.below(12) {
            0..=2 => self.put(object, dir, new, name, false),
            3 => self.put(object, dir, new, name, true),
            4 => self.unlink(object, dir, name),
            5 | 6 => self.rename(object, dir, name),
            7 => self.overwrite(root),
            8 => self.read_other(root),
            _ => self.read(object, Call::Lookup { name }, &dir.join(&self::name(name))),
        }
    }

    fn value(&mut self) -> u64 {
        self.made += 1;
        // The seed is in it, too: a worker that is started anew makes other values.
        (self.worker.task.number << 48) | ((self.worker.task.seed & 0xffff) << 32) | self.made
    }

    fn called(&mut self, object: Object, call: Call) -> Result<()> {
        Ok(self.worker.journal.add(&Line::Called { object, call, at: now() })?)
    }

    fn returned(&mut self, answer: Answer) -> Result<()> {
        Ok(self.worker.journal.add(&Line::Returned { answer, at: now() })?)
    }

    /// Runs a change and writes down how it went.
    fn change(&mut self, object: Object, call: Call, change: impl FnOnce() -> io::Result<()>) -> Result<Option<i32>> {
        let what = format!("{call:?}");
        self.called(object, call)?;
        let done = self.worker.timed(&what, change)?;
        let failed = done.as_ref().err().map(errno);
        self.returned(match failed {
            None => Answer::Done,
            Some(libc::ENOENT) => Answer::Missing,
            Some(libc::EEXIST) => Answer::Exists,
            Some(_) => Answer::Unknown,
        })?;
        Ok(failed)
    }

    /// A new file gets a name, whether that is free or only if it is.
    fn put(&mut self, object: Object, dir: &Place, new: &Place, name: u8, only_if_free: bool) -> Result<()> {
        let value = self.value();
        let from = new.join(&format!("{value:x}"));
        let written = self.worker.timed("write new", || write_whole(&from, &content(value)))?;
        if written.is_err() {
            let _ = self.worker.timed("remove new", || fs::remove_file(&from))?;
            return Ok(());
        }
        let to = dir.join(&self::name(name));
        let (call, failed) = if only_if_free {
            let call = Call::Link { name, ino: value };
            (call.clone(), self.change(object, call, || fs::hard_link(&from, &to))?)
        } else {
            let call = Call::Put { name, ino: value };
            (call.clone(), self.change(object, call, || rename(&from, &to, 0))?)
        };
        if failed == Some(libc::ENOENT) {
            self.worker
                .journal
                .violation(format!("{call:?}: the new file, whose close was acknowledged, is missing"))?;
        }
        if only_if_free {
            let _ = self.worker.timed("remove new", || fs::remove_file(&from))?;
        }
        Ok(())
    }

    fn unlink(&mut self, object: Object, dir: &Place, name: u8) -> Result<()> {
        let path = dir.join(&self::name(name));
        self.change(object, Call::Unlink { name }, || fs::remove_file(path)).map(drop)
    }

    fn rename(&mut self, object: Object, dir: &Place, from: u8) -> Result<()> {
        // Workers of even numbers are on one mount: no pair of names is theirs and the others'.
        let distance = if self.worker.task.number.is_multiple_of(2) { 2 } else { *self.worker.rng.pick(&[1, 3]) };
        let to = (from + distance) % NAMES;
        let (no_replace, exchange) = *self.worker.rng.pick(&[(false, false), (true, false), (false, true)]);
        let flags = match (no_replace, exchange) {
            (true, _) => libc::RENAME_NOREPLACE,
            (_, true) => libc::RENAME_EXCHANGE,
            _ => 0,
        };
        let (source, target) = (dir.join(&name(from)), dir.join(&name(to)));
        let call = Call::Rename { from, to, no_replace, exchange };
        self.change(object, call, || rename(&source, &target, flags)).map(drop)
    }

    fn overwrite(&mut self, root: &Place) -> Result<()> {
        let (object, name) = own_file(self.worker.task.number, now() / EPOCH_NS);
        let (path, value) = (root.join(&name), self.value());
        let written = self.worker.timed("write own", || -> io::Result<File> {
            let mut file = File::create(&path)?;
            file.write_all(&content(value))?;
            Ok(file)
        })?;
        // What was not closed without error may still be published when it is released.
        self.called(object, Call::Write { value })?;
        let done = match written {
            Ok(file) => self.worker.timed("close own", || close(file))?.is_ok(),
            Err(_) => false,
        };
        self.returned(if done { Answer::Done } else { Answer::Unknown })
    }

    /// Reads the file that a worker on the other mount overwrites.
    fn read_other(&mut self, root: &Place) -> Result<()> {
        let mine = self.worker.task.number;
        let other = if mine.is_multiple_of(2) { mine + 1 } else { mine - 1 };
        let (object, name) = own_file(other, now() / EPOCH_NS);
        self.read(object, Call::Read, &root.join(&name))
    }

    fn read(&mut self, object: Object, call: Call, path: &Path) -> Result<()> {
        let what = format!("{call:?}");
        let answered = |value: Option<u64>| match (&call, value) {
            (Call::Read, value) => Answer::Value(value.unwrap_or(0)),
            (_, Some(value)) => Answer::Found(value),
            (_, None) => Answer::Missing,
        };
        let called = now();
        let opened = self.worker.timed(&what, || File::open(path))?;
        let chosen = now();
        let value = match opened {
            Ok(mut file) => {
                let mut bytes = Vec::new();
                let read = self.worker.timed("read", || file.read_to_end(&mut bytes))?;
                match (read, value_of(&bytes)) {
                    (Err(_), _) => return Ok(()),
                    (Ok(_), Some(value)) => Some(value),
                    (Ok(_), None) => {
                        let text = format!("{object:?} {what}: {} bytes that nobody wrote", bytes.len());
                        return Ok(self.worker.journal.violation(text)?);
                    }
                }
            }
            Err(error) if errno(&error) == libc::ENOENT => None,
            Err(_) => return Ok(()),
        };
        self.worker.journal.add(&Line::Called { object, call: call.clone(), at: called })?;
        Ok(self.worker.journal.add(&Line::Returned { answer: answered(value), at: chosen })?)
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(bytes)?;
    close(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_tell_their_value_and_nothing_else_does() {
        for value in [1, 7, (3 << 48) | 9] {
            let mut bytes = content(value);
            assert_eq!(value_of(&bytes), Some(value));
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            assert_eq!(value_of(&bytes), None);
            bytes.pop();
            assert_eq!(value_of(&bytes), None);
        }
        assert_eq!(value_of(&[]), None);
    }
}
