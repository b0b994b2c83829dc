//! Copies inside the cluster: new files that list the same chunks as old ones.
//!
//! Each file is cloned in one piece or not at all; a tree is cloned file after file while others may change it, so it is no
//! snapshot. Hard links become files of their own. Nothing is overwritten.

use dfs_common::{Attr, ErrorCode, FileKind, InodeId, SetAttr, SetTime};
use tokio::task::JoinSet;

use crate::{Dfs, DirEntry, Error, NewFile, NewNode, Writer};

/// Entries of a directory asked for at a time.
const PAGE: u32 = 1024;
/// Entries cloned at the same time: the leader puts concurrent commands into one log entry.
const PARALLEL: usize = 64;
/// Extended attributes that the cluster makes up.
const DERIVED: &[u8] = b"user.dfs.";

/// What a clone came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cloned {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links, pipes, sockets and devices.
    pub others: u64,
    /// Bytes of content that both sides list now.
    pub shared_bytes: u64,
    /// Bytes that had to be copied, since their file has chunks of another size than new files.
    pub copied_bytes: u64,
}

impl Cloned {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.directories += other.directories;
        self.others += other.others;
        self.shared_bytes += other.shared_bytes;
        self.copied_bytes += other.copied_bytes;
    }
}

/// A directory and the new one that gets its entries.
#[derive(Clone, Copy, Debug)]
struct Pair {
    from: InodeId,
    to: InodeId,
}

/// Clones `source` to the new name `name` in directory `parent`, a directory with all it holds. Owners, modes, times and
/// extended attributes go with it. `progress` is told the sum so far now and then.
///
/// # Errors
/// `AlreadyExists` if the name is taken; what the operations on single files give. What was cloned before stays.
pub async fn clone_tree(
    dfs: &Dfs,
    source: &Attr,
    parent: InodeId,
    name: &[u8],
    mut progress: impl FnMut(Cloned),
) -> Result<Cloned, Error> {
    let mut sum = Cloned::default();
    if source.kind != FileKind::Directory {
        return clone_entry(dfs, source, parent, name).await;
    }
    // The new tree may lie in the old one: it is not cloned into itself.
    let top = make_directory(dfs, source, parent, name).await?;
    sum.directories += 1;
    let mut directories = vec![(top, source.clone())];
    let mut waiting = vec![Pair { from: source.ino, to: top }];
    while let Some(pair) = waiting.pop() {
        let mut after = Vec::new();
        loop {
            let page = dfs.readdir(pair.from, &after, PAGE, true).await?;
            let mut flying = JoinSet::new();
            for entry in page.entries {
                after.clone_from(&entry.name);
                let DirEntry { name, attr: Some(attr), .. } = entry else { continue };
                if attr.ino == top {
                    continue;
                }
                if attr.kind == FileKind::Directory {
                    let to = make_directory(dfs, &attr, pair.to, &name).await?;
                    sum.directories += 1;
                    waiting.push(Pair { from: attr.ino, to });
                    directories.push((to, attr));
                    continue;
                }
                if flying.len() >= PARALLEL {
                    sum.add(joined(&mut flying).await?);
                }
                let dfs = dfs.clone();
                flying.spawn(async move { present(clone_entry(&dfs, &attr, pair.to, &name).await) });
            }
            while !flying.is_empty() {
                sum.add(joined(&mut flying).await?);
            }
            progress(sum);
            if page.end || after.is_empty() {
                break;
            }
        }
    }
    // Last, since every entry that was made in a directory has changed its time.
    for (made, attr) in directories {
        dfs.setattr(made, times(&attr)).await?;
    }
    Ok(sum)
}

async fn joined(flying: &mut JoinSet<Result<Cloned, Error>>) -> Result<Cloned, Error> {
    match flying.join_next().await {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) => Err(Error::new(ErrorCode::Internal, format!("cloning: {error}"))),
        None => Ok(Cloned::default()),
    }
}

/// What was removed since the directory was listed is not missed.
fn present(outcome: Result<Cloned, Error>) -> Result<Cloned, Error> {
    match outcome {
        Err(error) if error.code == ErrorCode::NotFound => Ok(Cloned::default()),
        other => other,
    }
}

async fn make_directory(dfs: &Dfs, attr: &Attr, parent: InodeId, name: &[u8]) -> Result<InodeId, Error> {
    let made = dfs.mkdir(parent, name, attr.mode, attr.uid, attr.gid).await?;
    clone_xattrs(dfs, attr.ino, made.ino).await?;
    Ok(made.ino)
}

async fn clone_entry(dfs: &Dfs, attr: &Attr, parent: InodeId, name: &[u8]) -> Result<Cloned, Error> {
    let made = match attr.kind {
        FileKind::File => return clone_file(dfs, attr, parent, name).await,
        FileKind::Symlink => {
            let target = dfs.readlink(attr.ino).await?;
            dfs.symlink(parent, name, &target, attr.uid, attr.gid).await?
        }
        kind => {
            let node = NewNode { kind, mode: attr.mode, uid: attr.uid, gid: attr.gid, rdev: attr.rdev };
            dfs.mknod(parent, name, node).await?
        }
    };
    clone_xattrs(dfs, attr.ino, made.ino).await?;
    dfs.setattr(made.ino, times(attr)).await?;
    Ok(Cloned { others: 1, ..Cloned::default() })
}

async fn clone_file(dfs: &Dfs, attr: &Attr, parent: InodeId, name: &[u8]) -> Result<Cloned, Error> {
    let file = NewFile { mode: attr.mode, uid: attr.uid, gid: attr.gid, exclusive: true };
    let created = dfs.create(parent, name, file).await?;
    let writer = dfs.open_new_writer(&created).await?;
    let mut cloned = Cloned { files: 1, ..Cloned::default() };
    if attr.file_id.is_some() {
        fill(dfs, attr.ino, &writer, &mut cloned).await?;
    }
    clone_xattrs(dfs, attr.ino, writer.ino()).await?;
    writer.publish_and_finish(times(attr)).await?;
    Ok(cloned)
}

async fn fill(dfs: &Dfs, source: InodeId, writer: &Writer, cloned: &mut Cloned) -> Result<(), Error> {
    let reader = dfs.open_reader(source).await?;
    let size = reader.size();
    cloned.shared_bytes = writer.share_from(&reader, 0, 0, size).await?;
    let mut at = cloned.shared_bytes;
    while at < size {
        let piece = usize::try_from(writer.chunk_size()).expect("chunks are small");
        for bytes in reader.read_at(at, piece).await? {
            writer.write_at(at, &bytes).await?;
            at += bytes.len() as u64;
            cloned.copied_bytes += bytes.len() as u64;
        }
    }
    Ok(())
}

async fn clone_xattrs(dfs: &Dfs, from: InodeId, to: InodeId) -> Result<(), Error> {
    for name in dfs.listxattr(from).await?.into_iter().filter(|name| !name.starts_with(DERIVED)) {
        let value = dfs.getxattr(from, &name).await?;
        dfs.setxattr(to, &name, &value, false, false).await?;
    }
    Ok(())
}

fn times(attr: &Attr) -> SetAttr {
    SetAttr { atime: Some(SetTime::At(attr.atime_ns)), mtime: Some(SetTime::At(attr.mtime_ns)), ..SetAttr::default() }
}
