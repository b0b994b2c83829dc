//! Changing the tree: `mkdir`, `rm`, `mv`. They print nothing but what failed.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
};

use clap::Args;
use dfs_client::{Dfs, RenameFlags};
use dfs_common::{ErrorCode, FileKind, InodeId};
use tokio::task::JoinSet;

use crate::{
    context::{Context, On, cluster_path, masked, owner, parent_and_name},
    failure::Failure,
    text::escape,
};

/// Entries of a directory asked for at a time.
const PAGE: u32 = 1024;
/// Removals in flight: the leader puts concurrent ones into one log entry.
const PARALLEL: usize = 64;

/// `dfsctl mkdir`.
#[derive(Args, Debug)]
pub struct Mkdir {
    /// Make missing parents; no error if it exists
    #[arg(short, long)]
    pub parents: bool,
    /// Directories
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<OsString>,
}

/// `dfsctl rm`.
#[derive(Args, Debug)]
pub struct Rm {
    /// Remove directories with all they contain
    #[arg(short, long)]
    pub recursive: bool,
    /// Files and, with -r, directories
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<OsString>,
}

/// `dfsctl mv`.
#[derive(Args, Debug)]
pub struct Mv {
    /// Fail if the destination exists
    #[arg(short, long)]
    pub no_clobber: bool,
    /// What to rename
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// New path, or a directory to move into
    #[arg(value_name = "DST")]
    pub destination: OsString,
}

/// # Errors
/// What the user is told.
pub(super) fn mkdir(context: &Context, args: &Mkdir) -> Result<(), Failure> {
    let mode = masked(0o777);
    context.with_dfs(async |dfs| {
        for path in &args.paths {
            if args.parents {
                make_all(dfs, path, mode).await?;
            } else {
                let (parent, name) = parent_and_name(path)?;
                let parent = dfs.resolve(&parent).await.on("cannot find", &parent)?;
                let (uid, gid) = owner();
                let made = dfs.mkdir(parent.ino, &name, mode, uid, gid).await;
                made.on("cannot make", &cluster_path(path)?)?;
            }
        }
        Ok(())
    })
}

/// Makes a directory and its missing parents. Another client may make one of them at the same time: that is no error.
pub(super) async fn make_all(dfs: &Dfs, path: &OsStr, mode: u32) -> Result<(), Failure> {
    let (uid, gid) = owner();
    let path = cluster_path(path)?;
    let mut at = InodeId::ROOT;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        let found = match dfs.mkdir(at, name, mode, uid, gid).await {
            Err(error) if error.code == ErrorCode::AlreadyExists => dfs.lookup(at, name).await,
            made => made,
        };
        let found = found.on("cannot make", &path)?;
        if found.kind != FileKind::Directory {
            let message = format!("cannot make /{}: {} is not a directory", escape(&path), escape(name));
            return Err(Failure::of(ErrorCode::NotDirectory, message));
        }
        at = found.ino;
    }
    Ok(())
}

/// # Errors
/// What the user is told.
pub(super) fn rm(context: &Context, args: &Rm) -> Result<(), Failure> {
    context.with_dfs(async |dfs| {
        for path in &args.paths {
            let (parent, name) = parent_and_name(path)?;
            let path = cluster_path(path)?;
            let parent = dfs.resolve(&parent).await.on("cannot find", &parent)?;
            let attr = dfs.lookup(parent.ino, &name).await.on("cannot remove", &path)?;
            let removed = match attr.kind {
                FileKind::Directory if args.recursive => {
                    empty(dfs, attr.ino).await?;
                    dfs.rmdir(parent.ino, &name).await
                }
                FileKind::Directory => {
                    return Err(Failure::of(ErrorCode::IsDirectory, format!("/{} is a directory", escape(&path))));
                }
                _ => dfs.unlink(parent.ino, &name).await,
            };
            removed.on("cannot remove", &path)?;
        }
        Ok(())
    })
}

/// A directory that is being emptied.
struct Frame {
    ino: InodeId,
    /// Its parent and name, to remove it when it is empty; the first one is removed by the caller.
    name: Option<(InodeId, Vec<u8>)>,
    after: Vec<u8>,
    end: bool,
    /// Sub-directories of the present page.
    directories: Vec<(Vec<u8>, InodeId)>,
}

impl Frame {
    fn new(ino: InodeId, name: Option<(InodeId, Vec<u8>)>) -> Self {
        Self { ino, name, after: vec![], end: false, directories: vec![] }
    }
}

/// Removes everything below `top`, depth first with a stack of its own: the depth of a tree has no limit, that of the
/// thread's stack has.
async fn empty(dfs: &Dfs, top: InodeId) -> Result<(), Failure> {
    let mut stack = vec![Frame::new(top, None)];
    while let Some(frame) = stack.last_mut() {
        if let Some((name, ino)) = frame.directories.pop() {
            let parent = frame.ino;
            stack.push(Frame::new(ino, Some((parent, name))));
        } else if !frame.end {
            let page = dfs.readdir(frame.ino, &frame.after, PAGE, false).await?;
            frame.end = page.end || page.entries.is_empty();
            if let Some(last) = page.entries.last() {
                frame.after.clone_from(&last.name);
            }
            let (directories, files): (Vec<_>, Vec<_>) =
                page.entries.into_iter().partition(|entry| entry.kind == FileKind::Directory);
            frame.directories = directories.into_iter().map(|entry| (entry.name, entry.ino)).collect();
            let parent = frame.ino;
            unlink_all(dfs, parent, files.into_iter().map(|entry| entry.name)).await?;
        } else {
            let done = stack.pop().expect("the loop saw it");
            if let Some((parent, name)) = done.name {
                gone(dfs.rmdir(parent, &name).await)?;
            }
        }
    }
    Ok(())
}

async fn unlink_all(dfs: &Dfs, parent: InodeId, names: impl Iterator<Item = Vec<u8>>) -> Result<(), Failure> {
    let mut flying = JoinSet::new();
    for name in names {
        if flying.len() >= PARALLEL {
            join(&mut flying).await?;
        }
        let dfs = dfs.clone();
        flying.spawn(async move { dfs.unlink(parent, &name).await });
    }
    while !flying.is_empty() {
        join(&mut flying).await?;
    }
    Ok(())
}

async fn join(flying: &mut JoinSet<Result<(), dfs_client::Error>>) -> Result<(), Failure> {
    match flying.join_next().await {
        Some(Ok(result)) => gone(result),
        Some(Err(error)) => Err(Failure::of(ErrorCode::Internal, error)),
        None => Ok(()),
    }
}

/// What somebody else removed meanwhile is gone as well.
fn gone(result: Result<(), dfs_client::Error>) -> Result<(), Failure> {
    match result {
        Err(error) if error.code == ErrorCode::NotFound => Ok(()),
        other => Ok(other?),
    }
}

/// # Errors
/// What the user is told.
pub(super) fn mv(context: &Context, args: &Mv) -> Result<(), Failure> {
    let (from_parent, from_name) = parent_and_name(&args.source)?;
    let (source, to) = (cluster_path(&args.source)?, cluster_path(&args.destination)?);
    // `mv f dir/` means into the directory, which must then exist.
    let slash = args.destination.as_bytes().ends_with(b"/");
    context.with_dfs(async |dfs| {
        let from = dfs.resolve(&from_parent).await.on("cannot find", &from_parent)?;
        let (new_parent, new_name) = match dfs.resolve(&to).await {
            Ok(attr) if attr.kind == FileKind::Directory => (attr, from_name.clone()),
            Err(error) if error.code != ErrorCode::NotFound || slash => {
                return Err(error).on("cannot move into", &to);
            }
            Ok(_) | Err(_) => {
                let (parent, name) = parent_and_name(&args.destination)?;
                (dfs.resolve(&parent).await.on("cannot find", &parent)?, name)
            }
        };
        let flags = RenameFlags { no_replace: args.no_clobber, exchange: false };
        let renamed = dfs.rename(from.ino, &from_name, new_parent.ino, &new_name, flags).await;
        renamed.on(&format!("cannot rename /{} to", escape(&source)), &to)
    })
}
