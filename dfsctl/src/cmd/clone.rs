//! `clone`: copies inside the cluster that move no data.
//!
//! JSON: `{files, directories, others, shared_bytes, copied_bytes}`.

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use clap::Args;
use dfs_client::transfer::{Cloned, clone_tree};
use dfs_common::{ErrorCode, FileKind};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;

use crate::{
    context::{Context, On, cluster_path, parent_and_name},
    failure::Failure,
    text::{bytes, escape},
};

/// `dfsctl clone`.
#[derive(Args, Debug)]
pub struct Clone {
    /// Clone directories with all they contain
    #[arg(short, long)]
    pub recursive: bool,
    /// What to clone
    #[arg(value_name = "SRC")]
    pub source: OsString,
    /// New path, which must not exist, or a directory to clone into
    #[arg(value_name = "DST")]
    pub destination: OsString,
}

/// # Errors
/// What the user is told.
pub(super) fn clone(context: &Context, args: &Clone) -> Result<(), Failure> {
    let (source, to) = (cluster_path(&args.source)?, cluster_path(&args.destination)?);
    let slash = args.destination.as_bytes().ends_with(b"/");
    let bar = match context.out.shows_progress() {
        true => ProgressBar::new_spinner(),
        false => ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
    };
    let cloned = context.with_dfs(async |dfs| {
        let attr = dfs.resolve(&source).await.on("cannot clone", &source)?;
        if attr.kind == FileKind::Directory && !args.recursive {
            let message = format!("cannot clone /{}: it is a directory", escape(&source));
            return Err(Failure::of(ErrorCode::IsDirectory, message).hint("`-r` clones directories"));
        }
        let (parent, name) = match dfs.resolve(&to).await {
            Ok(directory) if directory.kind == FileKind::Directory => {
                let (_, name) = parent_and_name(&args.source)?;
                (directory, name)
            }
            Ok(_) => return Err(exists(&to)),
            Err(error) if error.code != ErrorCode::NotFound || slash => {
                return Err(error).on("cannot clone into", &to);
            }
            Err(_) => {
                let (parent, name) = parent_and_name(&args.destination)?;
                (dfs.resolve(&parent).await.on("cannot find", &parent)?, name)
            }
        };
        let progress = |sum: Cloned| bar.set_message(summary(sum));
        match clone_tree(dfs, &attr, parent.ino, &name, progress).await {
            Err(error) if error.code == ErrorCode::AlreadyExists => Err(exists(&to)),
            outcome => outcome.on("cannot clone to", &to),
        }
    });
    bar.finish_and_clear();
    let sum = cloned?;
    if context.out.json {
        let Cloned { files, directories, others, shared_bytes, copied_bytes } = sum;
        return context.out.value(&json!({
            "files": files, "directories": directories, "others": others,
            "shared_bytes": shared_bytes, "copied_bytes": copied_bytes,
        }));
    }
    context.out.note(format!("cloned {}", summary(sum)));
    Ok(())
}

fn exists(path: &[u8]) -> Failure {
    let message = format!("cannot clone to /{}: it exists, and a clone overwrites nothing", escape(path));
    Failure::of(ErrorCode::AlreadyExists, message).hint("remove it first, or give another name")
}

fn summary(sum: Cloned) -> String {
    let mut text = format!("{} files, {} directories", sum.files, sum.directories);
    if sum.others > 0 {
        text.push_str(&format!(", {} links and nodes", sum.others));
    }
    text.push_str(&format!("; {} shared", bytes(sum.shared_bytes)));
    if sum.copied_bytes > 0 {
        text.push_str(&format!(", {} copied", bytes(sum.copied_bytes)));
    }
    text
}
