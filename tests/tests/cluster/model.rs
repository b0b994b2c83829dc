//! Random operations on a mount and on a local directory: each must do to the one what it does to the other.
//!
//! After every operation both trees are compared whole: names, kinds, rights, links, sizes and bytes. A case that fails is made
//! smaller by proptest, and its seed is kept in `proptest-regressions/model.txt`, which is tried first from then on.
//! `DFS_TEST_CASES=1000` runs more of them.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use dfs_tests::{Cluster, files, wait};
use proptest::{
    prelude::*,
    test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner},
};

/// Cases of one test; each is about 40 operations.
const CASES: u32 = 60;
/// What another mount did is seen within a second; this much for a slow machine.
const SEEN_WITHIN: Duration = Duration::from_secs(10);

/// A few names, so that they meet: four in each of four directories.
const DIRS: [&str; 4] = ["", "a", "b", "a/d"];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn path() -> impl Strategy<Value = PathBuf> {
    (0..DIRS.len(), 0..NAMES.len()).prop_map(|(dir, name)| Path::new(DIRS[dir]).join(NAMES[name]))
}

#[derive(Clone, Debug)]
enum Op {
    Write(PathBuf, usize, u8),
    Append(PathBuf, usize, u8),
    WriteAt(PathBuf, u64, usize, u8),
    Truncate(PathBuf, u64),
    CreateNew(PathBuf),
    Mkdir(PathBuf),
    Rmdir(PathBuf),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Chmod(PathBuf, u32),
    Copy(PathBuf, PathBuf),
    ReadAt(PathBuf, u64, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let length = prop_oneof![Just(0usize), 1..200usize, 4000..5000usize, 100_000..140_000usize];
    let offset = prop_oneof![Just(0u64), 1..300u64, 4090..4100u64, 100_000..200_000u64];
    let byte = any::<u8>();
    prop_oneof![
        4 => (path(), length.clone(), byte).prop_map(|(p, n, b)| Op::Write(p, n, b)),
        3 => (path(), length.clone(), byte).prop_map(|(p, n, b)| Op::Append(p, n, b)),
        3 => (path(), offset.clone(), length.clone(), byte).prop_map(|(p, o, n, b)| Op::WriteAt(p, o, n, b)),
        2 => (path(), offset.clone()).prop_map(|(p, o)| Op::Truncate(p, o)),
        1 => path().prop_map(Op::CreateNew),
        3 => path().prop_map(Op::Mkdir),
        1 => path().prop_map(Op::Rmdir),
        2 => path().prop_map(Op::Unlink),
        4 => (path(), path()).prop_map(|(p, q)| Op::Rename(p, q)),
        2 => (path(), path()).prop_map(|(p, q)| Op::Link(p, q)),
        1 => (path(), path()).prop_map(|(p, q)| Op::Symlink(p, q)),
        1 => (path(), prop_oneof![Just(0o600u32), Just(0o755), Just(0o4711)]).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (path(), path()).prop_map(|(p, q)| Op::Copy(p, q)),
        2 => (path(), offset, length).prop_map(|(p, o, n)| Op::ReadAt(p, o, n)),
    ]
}

/// Does it below `root`; bytes that were read, or the errno.
fn run(root: &Path, op: &Op) -> Result<Vec<u8>, i32> {
    let outcome = || -> io::Result<Vec<u8>> {
        let at = |path: &PathBuf| root.join(path);
        match op {
            Op::Write(path, length, byte) => files::write(&at(path), &vec![*byte; *length])?,
            Op::Append(path, length, byte) => {
                let mut file = File::options().append(true).open(at(path))?;
                file.write_all(&vec![*byte; *length])?;
                files::close(file)?;
            }
            Op::WriteAt(path, offset, length, byte) => {
                let mut file = File::options().write(true).open(at(path))?;
                file.seek(SeekFrom::Start(*offset))?;
                file.write_all(&vec![*byte; *length])?;
                files::close(file)?;
            }
            Op::Truncate(path, size) => {
                let file = File::options().write(true).open(at(path))?;
                file.set_len(*size)?;
                files::close(file)?;
            }
            Op::CreateNew(path) => files::close(File::create_new(at(path))?)?,
            Op::Mkdir(path) => fs::create_dir(at(path))?,
            Op::Rmdir(path) => fs::remove_dir(at(path))?,
            Op::Unlink(path) => fs::remove_file(at(path))?,
            Op::Rename(from, to) => fs::rename(at(from), at(to))?,
            Op::Link(from, to) => fs::hard_link(at(from), at(to))?,
            Op::Symlink(target, path) => symlink(target, at(path))?,
            Op::Chmod(path, mode) => fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))?,
            Op::Copy(from, to) => drop(fs::copy(at(from), at(to))?),
            Op::ReadAt(path, offset, length) => {
                let mut file = File::open(at(path))?;
                file.seek(SeekFrom::Start(*offset))?;
                let mut bytes = Vec::new();
                file.take(*length as u64).read_to_end(&mut bytes)?;
                return Ok(bytes);
            }
        }
        Ok(Vec::new())
    };
    outcome().map_err(|error| error.raw_os_error().unwrap_or(0))
}

/// What is below `dir`: by path the kind, rights, links, and size and bytes or target; also what each name that may be there
/// leads to, since the kernel keeps names that do not exist.
fn tree(dir: &Path) -> io::Result<BTreeMap<PathBuf, String>> {
    let (mut found, mut dirs) = (BTreeMap::new(), vec![PathBuf::new()]);
    while let Some(below) = dirs.pop() {
        for entry in fs::read_dir(dir.join(&below))? {
            let path = below.join(entry?.file_name());
            let meta = fs::symlink_metadata(dir.join(&path))?;
            let kind = meta.file_type();
            let content = if kind.is_dir() {
                dirs.push(path.clone());
                String::new()
            } else if kind.is_symlink() {
                fs::read_link(dir.join(&path))?.display().to_string()
            } else {
                ensure_plain(kind)?;
                let bytes = fs::read(dir.join(&path))?;
                format!("{} {} {}", meta.len(), bytes.len(), files::sha256_of(&bytes))
            };
            found.insert(path, format!("{:o} {} {content}", meta.mode(), meta.nlink()));
        }
    }
    for path in DIRS.iter().flat_map(|dir| NAMES.iter().map(|name| Path::new(dir).join(name))) {
        if let Err(error) = fs::metadata(dir.join(&path)) {
            found.insert(Path::new("absent").join(path), error.to_string());
        }
    }
    Ok(found)
}

fn ensure_plain(kind: fs::FileType) -> io::Result<()> {
    if kind.is_fifo() || kind.is_socket() { Err(io::Error::other("nobody makes such things here")) } else { Ok(()) }
}

/// Runs the cases. `on` and `seen` say which mount does the operation, and which one it is looked at from.
fn check(mounts: &[&Path], scratch: &Path) -> Result<()> {
    let cases = std::env::var("DFS_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/proptest-regressions/model.txt");
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(kept))),
        max_shrink_iters: 200,
        ..Config::default()
    };
    let number = Cell::new(0);
    let steps = proptest::collection::vec((op(), 0..mounts.len()), 1..40);
    let outcome = TestRunner::new(config).run(&steps, |steps| {
        number.set(number.get() + 1);
        let name = format!("case-{}", number.get());
        let local = scratch.join(&name);
        fs::create_dir(&local).and_then(|()| fs::create_dir(mounts[0].join(&name))).map_err(fail)?;
        wait::until("the directory", SEEN_WITHIN, || mounts.iter().all(|mount| mount.join(&name).is_dir()))
            .map_err(fail)?;
        for (i, (op, who)) in steps.iter().enumerate() {
            // What the others did before must have arrived here.
            let expected = tree(&local).map_err(fail)?;
            wait::until("what another mount did", SEEN_WITHIN, || {
                tree(&mounts[*who].join(&name)).is_ok_and(|found| found == expected)
            })
            .map_err(|error| fail(format!("before step {i}, {op:?}: {error:#}\n{expected:#?}")))?;
            let (wanted, found) = (run(&local, op), run(&mounts[*who].join(&name), op));
            if wanted != found {
                return Err(fail(format!("step {i}, {op:?}: {:?} instead of {:?}", short(&found), short(&wanted))));
            }
            // The mount itself sees at once what it did.
            let (wanted, found) = (tree(&local).map_err(fail)?, tree(&mounts[*who].join(&name)).map_err(fail)?);
            if wanted != found {
                return Err(fail(format!("after step {i}, {op:?}: {found:#?}\ninstead of {wanted:#?}")));
            }
        }
        let left = tree(&local).map_err(fail)?;
        wait::until("what another mount did last", SEEN_WITHIN, || {
            tree(&mounts[0].join(&name)).is_ok_and(|found| found == left)
        })
        .map_err(fail)?;
        fs::remove_dir_all(&local).and_then(|()| fs::remove_dir_all(mounts[0].join(&name))).map_err(fail)
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(TestError::Fail(why, steps)) => anyhow::bail!("{why}\nby {steps:#?}"),
        Err(TestError::Abort(why)) => anyhow::bail!("{why}"),
    }
}

fn short(outcome: &Result<Vec<u8>, i32>) -> Result<usize, i32> {
    outcome.as_ref().map(Vec::len).map_err(|errno| *errno)
}

fn fail(why: impl ToString) -> TestCaseError {
    TestCaseError::fail(why.to_string())
}

#[test]
fn a_mount_does_what_a_local_directory_does() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let mount = cluster.mount()?;
    let scratch = cluster.scratch()?;
    check(&[mount.path()], &scratch)?;
    ensure!(files::names(mount.path())?.is_empty());
    cluster.finish([mount])
}

#[test]
fn two_mounts_do_together_what_a_local_directory_does() -> Result<()> {
    let mut cluster = Cluster::builder().start()?;
    let (one, other) = (cluster.mount()?, cluster.mount()?);
    let scratch = cluster.scratch()?;
    check(&[one.path(), other.path()], &scratch)?;
    cluster.finish([one, other])
}
