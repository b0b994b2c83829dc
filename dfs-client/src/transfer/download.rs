//! A file of the cluster to the local disk: whole and verified, or not at all.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use dfs_common::{Attr, ErrorCode, FileKind, durable};

use super::{blocking, local};
use crate::{Dfs, Error};

/// Bytes asked for at a time: one chunk of the default size, so that slices come from one fetch.
const STEP_BYTES: usize = 4 << 20;

/// Removes the temporary file unless it was renamed.
struct Tmp(Option<PathBuf>);

impl Drop for Tmp {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // Nothing to do about a failure here: the next download replaces it.
            let _ = fs::remove_file(path);
        }
    }
}

/// Copies the file `remote` to `out`: to a temporary name, fsynced, then renamed. Every chunk is verified.
/// `progress(done, total)` is called with bytes.
///
/// # Errors
/// The local file cannot be written; as [`Dfs::resolve`] and [`crate::Reader::read_at`].
pub async fn download(
    dfs: &Dfs,
    remote: &[u8],
    out: &Path,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<Attr, Error> {
    let attr = dfs.resolve(remote).await?;
    if attr.kind != FileKind::File {
        let code = if attr.kind == FileKind::Directory { ErrorCode::IsDirectory } else { ErrorCode::InvalidArgument };
        return Err(Error::new(code, format!("\"{}\" is not a regular file", remote.escape_ascii())));
    }
    let reader = dfs.open_reader(attr.ino).await?;
    let path = durable::tmp_sibling(out);
    let opened = path.clone();
    let file = blocking(move || File::create(&opened).map_err(|e| local("creating", &opened, &e))).await?;
    let file = Arc::new(file);
    let mut tmp = Tmp(Some(path.clone()));
    let (mut done, total) = (0, reader.size());
    progress(0, total);
    while done < total {
        let pieces = reader.read_at(done, STEP_BYTES).await?;
        let (file, shown, start) = (file.clone(), path.clone(), done);
        done = blocking(move || {
            pieces.iter().try_fold(start, |at, piece| {
                file.write_all_at(piece, at).map_err(|e| local("writing", &shown, &e))?;
                Ok(at + piece.len() as u64)
            })
        })
        .await?;
        progress(done, total);
    }
    let target = out.to_owned();
    blocking(move || {
        file.sync_all().map_err(|e| local("syncing", &path, &e))?;
        durable::rename(&path, &target).map_err(|e| local("renaming to", &target, &e))
    })
    .await?;
    tmp.0 = None;
    Ok(reader.attr().clone())
}
