//! The last reading, when all is well: every small file and every tree, on both mounts. Every failure counts.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::PathBuf,
};

use anyhow::{Context as _, Result};

use super::{
    journal::{self, Line, Standing, now},
    register, tree,
    worker::{Place, Worker},
};
use crate::history::{Answer, Call, Object};

pub(super) fn work(mut worker: Worker) -> Result<()> {
    for mount in worker.task.mounts.clone() {
        let place = match worker.timed("open", || Place::open(&mount))? {
            Ok(place) => place,
            Err(error) => {
                worker.journal.violation(format!("{}: {error}", mount.display()))?;
                continue;
            }
        };
        registers(&mut worker, &place).context("read small files")?;
        trees(&mut worker, &place).context("read trees")?;
    }
    Ok(())
}

fn registers(worker: &mut Worker, mount: &Place) -> Result<()> {
    let root = mount.join(register::ROOT);
    if !root.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(&root)? {
        let entry = entry?;
        let Some(object) = register::object_of(&entry.file_name().to_string_lossy()) else { continue };
        match object {
            Object::Register(_) => read(worker, object, Call::Read, entry.path())?,
            Object::Directory(_) => {
                for number in 0..register::NAMES {
                    let path = entry.path().join(register::name(number));
                    read(worker, object, Call::Lookup { name: number }, path)?;
                }
            }
        }
    }
    Ok(())
}

fn read(worker: &mut Worker, object: Object, call: Call, path: PathBuf) -> Result<()> {
    let called = now();
    let bytes = worker.timed("read", || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(&path)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    })?;
    let value = match bytes {
        Ok(bytes) => match register::value_of(&bytes) {
            Some(value) => Some(value),
            None => {
                let text = format!("{object:?} {call:?}: {} bytes that nobody wrote, when all is well", bytes.len());
                return Ok(worker.journal.violation(text)?);
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            let text = format!("{object:?} {call:?}: {error}, when all is well");
            return Ok(worker.journal.violation(text)?);
        }
    };
    let answer = match (&call, value) {
        (Call::Read, value) => Answer::Value(value.unwrap_or(0)),
        (_, Some(value)) => Answer::Found(value),
        (_, None) => Answer::Missing,
    };
    worker.journal.add(&Line::Called { object, call, at: called })?;
    Ok(worker.journal.add(&Line::Returned { answer, at: now() })?)
}

/// What the workers know of their trees in the end.
///
/// # Errors
/// A journal cannot be read.
pub(super) fn standings(state: &std::path::Path) -> Result<BTreeMap<u64, (PathBuf, Standing)>> {
    let mut known = BTreeMap::new();
    for entry in fs::read_dir(state)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "journal") {
            continue;
        }
        for line in journal::read(&path)? {
            if let Line::Tree { number, manifest, standing } = line {
                known.insert(number, (manifest, standing));
            }
        }
    }
    Ok(known)
}

fn trees(worker: &mut Worker, mount: &Place) -> Result<()> {
    for (number, (manifest, standing)) in standings(&worker.task.state)? {
        let wrong = match standing {
            Standing::Unsure => None,
            Standing::Gone(name) => {
                let found = fs::symlink_metadata(mount.join(&format!("{}/{name}", tree::ROOT)));
                match found {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                    Err(error) => Some(format!("removed {name}: {error}")),
                    Ok(_) => Some(format!("{name} is there, although it was removed")),
                }
            }
            Standing::Whole(name) => {
                tree::audit(worker, mount, &name, &manifest)?.map(|what| format!("{name}: {what}"))
            }
            Standing::Either(from, to) => {
                let [one, other] = [&from, &to].map(|name| tree::audit(worker, mount, name, &manifest));
                match (one?, other?) {
                    (None, None) => Some(format!("{from} and {to} are both there")),
                    (Some(one), Some(other)) => Some(format!("neither {from} ({one}) nor {to} ({other})")),
                    _ => None,
                }
            }
        };
        if let Some(what) = wrong {
            worker.journal.violation(format!("tree {number:x}: {what}, when all is well"))?;
        }
    }
    Ok(())
}
