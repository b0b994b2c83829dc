//! A copy of what the metadata nodes know, outside of them.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Write},
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
};

use dfs_common::{
    backup::{self, Head},
    crash::{self, Point},
    durable,
    units::utc,
};
use serde_json::{Value, json};

use crate::{
    cmd::dev::find_program,
    context::Context,
    failure::Failure,
    output::Output,
    text::{Align, Table, bytes},
};

const BUFFER_BYTES: usize = 1 << 20;

/// # Errors
/// What the user is told.
pub(super) fn backup(context: &Context, file: &Path) -> Result<(), Failure> {
    if file.as_os_str() == "-" {
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock());
        context.with_dfs(async |dfs| Ok(dfs.backup(|part| out.write_all(part)).await?))?;
        return out.flush().map_err(|error| Failure::stdout(&error));
    }
    let named = |error: io::Error| Failure::io(format!("cannot write {}", file.display()), &error);
    let tmp = durable::tmp_sibling(file);
    let made = write(context, &tmp).and_then(|()| read(&tmp));
    let (head, length) = match made {
        Ok(made) => made,
        Err(failure) => {
            // What is there is no backup, and the failure matters more than a file that cannot be removed.
            drop(fs::remove_file(&tmp));
            return Err(failure);
        }
    };
    crash::point(Point::BackupWritten);
    durable::rename(&tmp, file).map_err(named)?;
    print(context.out, file, &head, length)
}

fn write(context: &Context, path: &Path) -> Result<(), Failure> {
    let named = |error: io::Error| Failure::io(format!("cannot write {}", path.display()), &error);
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, File::create(path).map_err(named)?);
    context.with_dfs(async |dfs| Ok(dfs.backup(|part| out.write_all(part)).await?))?;
    let file = out.into_inner().map_err(|error| named(error.into_error()))?;
    file.sync_all().map_err(named)
}

fn read(path: &Path) -> Result<(Head, u64), Failure> {
    let file = File::open(path).map_err(|error| Failure::io(format!("cannot read {}", path.display()), &error))?;
    backup::verify(file).map_err(|error| Failure::local(format!("{}: {error}", path.display())))
}

/// # Errors
/// What the user is told.
pub(super) fn verify(context: &Context, file: &Path) -> Result<(), Failure> {
    let (head, length) = read(file)?;
    print(context.out, file, &head, length)
}

fn print(out: Output, file: &Path, head: &Head, length: u64) -> Result<(), Failure> {
    if out.json {
        let file = file.display().to_string();
        return out.value(&json!({ "file": file, "bytes": length, "backup": head_json(head) }));
    }
    let mut facts = Table::bare(&[Align::Left, Align::Left]);
    let mut row = |subject: &str, words: String| facts.row(vec![subject.to_owned(), words]);
    row("backup", format!("{}, {}, whole", file.display(), bytes(length)));
    row("cluster", format!("{}, epoch {}", head.cluster_id, head.epoch));
    row("as of", format!("{} UTC, entry {} of term {}", utc(head.created_ns), head.last_index, head.last_term));
    row("made by", format!("{}, dfs {}", head.made_by, head.version));
    row(
        "holds",
        format!("{} files and directories, {} chunks, {} storage nodes", head.inodes, head.chunks, head.nodes),
    );
    row(
        "settings",
        format!(
            "{} copies, {} before a write is acknowledged, chunks of {}",
            head.replication,
            head.write_quorum,
            bytes(u64::from(head.chunk_size))
        ),
    );
    if head.pending > 0 {
        row("not in it", format!("{} files that were being written", head.pending));
    }
    out.lines(&facts.lines())
}

fn head_json(head: &Head) -> Value {
    serde_json::to_value(head).expect("strings and numbers are JSON")
}

/// Hands over to `dfs-meta`, which alone knows how its data directory is made.
///
/// # Errors
/// The program is not there.
pub(super) fn restore(options: &[OsString]) -> Result<(), Failure> {
    let program = find_program(&["dfs-meta"]).ok_or_else(|| {
        Failure::local("there is no dfs-meta beside dfsctl or in PATH")
            .hint("run `dfs-meta restore` on the machine of the new metadata node")
    })?;
    let error = Command::new(&program).arg("restore").args(options).exec();
    Err(Failure::io(format!("cannot run {}", program.display()), &error))
}

/// # Errors
/// What the user is told.
pub(super) fn restore_finish(context: &Context) -> Result<(), Failure> {
    let was_restored = context.with_dfs(async |dfs| Ok(dfs.finish_restore().await?))?;
    if context.out.json {
        return context.out.value(&json!({ "was_restored": was_restored }));
    }
    context.out.line(if was_restored {
        "chunks that no version lists are deleted again, after the usual grace time"
    } else {
        "the cluster was not restored, or that was finished already: nothing has changed"
    })
}
