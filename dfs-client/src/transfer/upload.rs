//! A local file to the cluster.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use dfs_common::{
    Attr, ChunkRef, ErrorCode, FileId, FileKind, InodeId, SetAttr, SetTime, checksum,
    crash::{self, Point},
    layout::{CHUNKS_MAX, chunk_count},
    name,
};
use dfs_proto::{convert, v1, v1::mutate_request::Op};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    blocking, local,
    manifest::{self, Earlier, Head, Manifest},
};
use crate::{Created, Dfs, Error, NewFile, cluster::Session, meta::attr, write};

/// Chunks asked about in one call to a storage node.
const STAT_MAX: usize = 1024;
/// How often chunks of an earlier run may vanish under a resumed upload before it gives up.
const ROUNDS_MAX: u32 = 3;

/// What an upload came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uploaded {
    /// Attributes of the published file.
    pub attr: Attr,
    /// Chunks of an earlier run that were not sent again.
    pub reused_chunks: u64,
    /// Their bytes.
    pub reused_bytes: u64,
    /// Chunks that were sent.
    pub sent_chunks: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// What the user should know of resuming: nothing to resume, the file changed, chunks are gone.
    pub remarks: Vec<String>,
}

/// One upload under way.
struct Upload<'a, P> {
    dfs: &'a Dfs,
    file: Arc<File>,
    head: Head,
    pending: Pending,
    attempts: AtomicU64,
    done: AtomicU64,
    /// Chunks that were sent, and their bytes.
    sent: (AtomicU64, AtomicU64),
    /// Chunks of an earlier run whose bytes the local file does not have any more.
    changed: AtomicU64,
    /// The pending version has ended.
    ended: AtomicBool,
    progress: P,
}

struct Pending {
    session: Arc<Session>,
    ino: InodeId,
    file_id: FileId,
}

/// Copies the local file `local` to `remote` (a path from the root; missing directories are made). What has been stored is
/// noted in a manifest in `manifest_dir`; with `resume` the chunks that an earlier, interrupted upload of the same content
/// has stored are not sent again. `progress(done, total)` is called with bytes.
///
/// A chunk counts as stored only if enough storage nodes say that they have it now, and if its SHA-256 is that of the local
/// file's bytes now: a manifest that is wrong, or a file that changed, cannot make a wrong copy.
///
/// # Errors
/// The local file cannot be read, is not a regular file, or changed while it was sent; `WrongCluster` if the manifest is of an
/// upload to another cluster; as [`crate::Writer::publish`].
pub async fn upload(
    dfs: &Dfs,
    local: &Path,
    remote: &[u8],
    manifest_dir: &Path,
    resume: bool,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<Uploaded, Error> {
    dfs.shared.cluster.session().await?;
    let (cluster_id, chunk_size) = (dfs.cluster_id().to_string(), dfs.settings().chunk_size);
    let (source, target, dir) = (local.to_owned(), remote.to_vec(), manifest_dir.to_owned());
    let (file, head, meta, manifest, earlier) =
        blocking(move || open(&source, &target, &dir, cluster_id, chunk_size, resume)).await?;
    let count = chunk_count(head.size, chunk_size);
    if count > CHUNKS_MAX {
        return Err(Error::local(ErrorCode::TooLarge, format!("{}: too large", local.display())));
    }
    let pending = start(dfs, remote, &meta).await?;
    let upload = Upload {
        dfs,
        file: Arc::new(file),
        head,
        pending,
        attempts: AtomicU64::new(0),
        done: AtomicU64::new(0),
        sent: Default::default(),
        changed: AtomicU64::new(0),
        ended: AtomicBool::new(false),
        progress,
    };
    let outcome = upload.run(earlier, manifest).await;
    if outcome.is_err() {
        upload.end().await;
    }
    outcome
}

type Opened = (File, Head, std::fs::Metadata, Manifest, Earlier);

fn open(
    source: &Path,
    target: &[u8],
    dir: &Path,
    cluster_id: String,
    chunk_size: u32,
    resume: bool,
) -> Result<Opened, Error> {
    let (head, meta) = Head::new(source, target, cluster_id, chunk_size)?;
    if !meta.is_file() {
        let code = if meta.is_dir() { ErrorCode::IsDirectory } else { ErrorCode::InvalidArgument };
        return Err(Error::local(code, format!("{} is not a regular file", source.display())));
    }
    let file = File::open(&head.local).map_err(|e| local("opening", &head.local, &e))?;
    check_end(&file, &head)?;
    let path: PathBuf = manifest::path(dir, &head.local, target);
    let (manifest, earlier) = Manifest::open(&path, &head, resume)?;
    Ok((file, head, meta, manifest, earlier))
}

/// Files that the kernel makes while they are read, as those of /proc, have more bytes than they say. Rejected: reading such a
/// file to its end, since it may be another one each time it is read, so that no chunk could be checked or resumed.
fn check_end(file: &File, head: &Head) -> Result<(), Error> {
    let more = file.read_at(&mut [0], head.size).map_err(|e| local("reading", &head.local, &e))?;
    if more == 0 {
        return Ok(());
    }
    let (path, size) = (head.local.display(), head.size);
    let message = format!(
        "{path} says that it has {size} bytes, and more can be read: it grows, or the system makes it while it is read. Copy it to \
         a file first, and upload that"
    );
    Err(Error::local(ErrorCode::InvalidArgument, message))
}

/// Makes the missing directories and a pending version under the last name.
async fn start(dfs: &Dfs, remote: &[u8], meta: &std::fs::Metadata) -> Result<Pending, Error> {
    let bad = |code: ErrorCode| Error::new(code, format!("path \"{}\": {code}", remote.escape_ascii()));
    let parts = name::split(remote).map_err(bad)?;
    let (last, dirs) = parts.split_last().ok_or_else(|| bad(ErrorCode::IsDirectory))?;
    let mut parent = InodeId::ROOT;
    for dir in dirs {
        parent = enter(dfs, parent, dir, meta).await?;
    }
    let file = NewFile { mode: meta.mode() & 0o7777, uid: meta.uid(), gid: meta.gid(), exclusive: false };
    let Created { attr: found, file_id, session, .. } = dfs.create(parent, last, file).await?;
    if found.kind != FileKind::File {
        return Err(bad(if found.kind == FileKind::Directory {
            ErrorCode::IsDirectory
        } else {
            ErrorCode::AlreadyExists
        }));
    }
    if let Some(file_id) = file_id {
        let current = dfs.shared.cluster.session().await?;
        if current.id != session {
            return Err(bad(ErrorCode::SessionExpired));
        }
        return Ok(Pending { session: current, ino: found.ino, file_id });
    }
    let op = Op::OpenWrite(v1::OpenWrite { ino: found.ino.0 });
    let what = format!("replacing \"{}\"", remote.escape_ascii());
    let (session, answer) = dfs.shared.cluster.mutate(what, op).await?;
    Ok(Pending { session, ino: found.ino, file_id: convert::file_id(&answer.file_id)? })
}

async fn enter(dfs: &Dfs, parent: InodeId, dir: &[u8], meta: &std::fs::Metadata) -> Result<InodeId, Error> {
    let found = match dfs.lookup(parent, dir).await {
        Err(error) if error.code == ErrorCode::NotFound => {
            match dfs.mkdir(parent, dir, 0o755, meta.uid(), meta.gid()).await {
                // Somebody else was faster.
                Err(error) if error.code == ErrorCode::AlreadyExists => dfs.lookup(parent, dir).await?,
                made => made?,
            }
        }
        found => found?,
    };
    if found.kind != FileKind::Directory {
        let message = format!("\"{}\" is not a directory", dir.escape_ascii());
        return Err(Error::new(ErrorCode::NotDirectory, message));
    }
    Ok(found.ino)
}

impl<P: Fn(u64, u64) + Send + Sync> Upload<'_, P> {
    async fn run(&self, earlier: Earlier, manifest: Manifest) -> Result<Uploaded, Error> {
        let Earlier { stored, remark } = earlier;
        let mut remarks: Vec<String> = remark.into_iter().collect();
        let noted = stored.iter().map(|(index, _)| index).collect::<std::collections::BTreeSet<_>>().len();
        let manifest = Arc::new(std::sync::Mutex::new(manifest));
        let mut reused: BTreeMap<u64, ChunkRef> = self.present(stored.into_iter().collect()).await?;
        if reused.len() < noted {
            let gone = noted - reused.len();
            remarks.push(format!(
                "{gone} of {noted} chunks of the earlier upload are not there any more: they are sent again"
            ));
        }
        let mut chunks = reused.clone();
        self.advance(chunks.values().map(|chunk| u64::from(chunk.length)).sum());
        for _ in 0..ROUNDS_MAX {
            self.send_missing(&mut chunks, &mut reused, &manifest).await?;
            self.check_unchanged().await?;
            let attr = self.commit(&chunks, reused.is_empty()).await?;
            // A chunk of an ended session may be collected while it is committed again: only what is there afterwards
            // counts.
            let before = reused.len();
            reused = self.present(reused).await?;
            if reused.len() == before {
                crash::point(Point::UploadPublished);
                self.finish(manifest).await?;
                return Ok(self.uploaded(attr, &reused, remarks));
            }
            chunks.retain(|index, chunk| reused.contains_key(index) || chunk.replicas.is_empty());
            tracing::info!("chunks of the earlier upload were collected meanwhile; sending them again");
        }
        Err(Error::new(ErrorCode::Io, "stored chunks vanish again and again; upload without --resume"))
    }

    fn uploaded(&self, attr: Attr, reused: &BTreeMap<u64, ChunkRef>, mut remarks: Vec<String>) -> Uploaded {
        let changed = self.changed.load(Ordering::Relaxed);
        if changed > 0 {
            let name = self.head.local.display();
            remarks.push(format!(
                "{changed} chunks of {name} have other bytes than the earlier upload sent: they were sent again"
            ));
        }
        Uploaded {
            attr,
            reused_chunks: reused.len() as u64,
            reused_bytes: reused.values().map(|chunk| u64::from(chunk.length)).sum(),
            sent_chunks: self.sent.0.load(Ordering::Relaxed),
            sent_bytes: self.sent.1.load(Ordering::Relaxed),
            remarks,
        }
    }

    fn advance(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(done.min(self.head.size), self.head.size);
    }

    async fn send_missing(
        &self,
        chunks: &mut BTreeMap<u64, ChunkRef>,
        reused: &mut BTreeMap<u64, ChunkRef>,
        manifest: &Arc<std::sync::Mutex<Manifest>>,
    ) -> Result<(), Error> {
        let count = chunk_count(self.head.size, self.head.chunk_size);
        let earlier = reused.clone();
        let work = (0..count).filter(|index| !chunks.contains_key(index) || earlier.contains_key(index));
        let parallel = self.dfs.options().parallel_uploads.max(1);
        let sent: Vec<(u64, Option<ChunkRef>)> = stream::iter(work.collect::<Vec<_>>())
            .map(|index| self.send(index, earlier.get(&index), manifest))
            .buffer_unordered(parallel)
            .try_collect()
            .await?;
        for (index, chunk) in sent {
            if let Some(chunk) = chunk {
                reused.remove(&index);
                chunks.insert(index, chunk);
            }
        }
        Ok(())
    }

    /// Sends a chunk, unless `earlier` holds its very bytes already (then `None`).
    async fn send(
        &self,
        index: u64,
        earlier: Option<&ChunkRef>,
        manifest: &Arc<std::sync::Mutex<Manifest>>,
    ) -> Result<(u64, Option<ChunkRef>), Error> {
        let shared = &self.dfs.shared;
        let _grant = match shared.budget.try_write(self.head.chunk_size.into()) {
            Some(grant) => grant,
            // One chunk of each upload always goes on.
            None if self.done.load(Ordering::Relaxed) == 0 => shared.budget.forced(self.head.chunk_size.into()),
            None => shared.budget.write(self.head.chunk_size.into()).await,
        };
        let data = self.read(index).await?;
        if let Some(earlier) = earlier {
            let (expected, data) = (earlier.sha256, data.clone());
            if blocking(move || Ok(checksum::sha256(&data) == expected)).await? {
                return Ok((index, None));
            }
            self.changed.fetch_add(1, Ordering::Relaxed);
        }
        let chunk = write::store(shared, self.pending.file_id, index, &self.attempts, &data).await?;
        self.sent.0.fetch_add(1, Ordering::Relaxed);
        self.sent.1.fetch_add(data.len() as u64, Ordering::Relaxed);
        let (manifest, noted, file_id) = (manifest.clone(), chunk.clone(), self.pending.file_id);
        crash::point(Point::UploadStored);
        blocking(move || {
            manifest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(index, file_id, &noted)
        })
        .await?;
        crash::point(Point::UploadNoted);
        if earlier.is_none() {
            self.advance(data.len() as u64);
        }
        Ok((index, Some(chunk)))
    }

    async fn read(&self, index: u64) -> Result<Bytes, Error> {
        let start = index * u64::from(self.head.chunk_size);
        let len = (self.head.size - start).min(self.head.chunk_size.into());
        let len = usize::try_from(len).expect("chunks are small");
        let (file, path) = (self.file.clone(), self.head.local.clone());
        let frame = self.dfs.options().frame_bytes.max(1);
        blocking(move || {
            let mut data = BytesMut::zeroed(len);
            for (i, piece) in data.chunks_mut(frame).enumerate() {
                let at = start + (i * frame) as u64;
                file.read_exact_at(piece, at).map_err(|e| local("reading", &path, &e))?;
            }
            Ok(data.freeze())
        })
        .await
    }

    /// The file must not have changed under the upload: what was sent would be a mixture.
    async fn check_unchanged(&self) -> Result<(), Error> {
        let (file, head) = (self.file.clone(), self.head.clone());
        blocking(move || {
            let meta = file.metadata().map_err(|e| local("reading", &head.local, &e))?;
            let mtime_ns = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
            if meta.len() == head.size && mtime_ns == head.mtime_ns {
                return check_end(&file, &head);
            }
            Err(Error::local(ErrorCode::Io, format!("{} changed while it was uploaded", head.local.display())))
        })
        .await
    }

    async fn commit(&self, chunks: &BTreeMap<u64, ChunkRef>, done: bool) -> Result<Attr, Error> {
        let chunks = chunks.values().map(|chunk| v1::CommittedChunk {
            chunk_id: convert::id_bytes(chunk.id.as_bytes()),
            length: chunk.length,
            sha256: convert::id_bytes(&chunk.sha256),
            replicas: convert::replicas_to_wire(&chunk.replicas),
            slots: 1,
        });
        let set = SetAttr { mtime: Some(SetTime::At(self.head.mtime_ns)), ..SetAttr::default() };
        let op = Op::CommitFile(v1::CommitFile {
            file_id: convert::id_bytes(self.pending.file_id.as_bytes()),
            size: self.head.size,
            chunks: chunks.collect(),
            set: Some(convert::set_attr_to_wire(self.pending.ino, &set)),
            done,
        });
        let what = format!("publishing \"{}\"", self.head.remote);
        let answer = self.dfs.shared.cluster.mutate_in(&self.pending.session, what, op).await?;
        self.ended.store(done, Ordering::Relaxed);
        attr(answer.attr)
    }

    /// Those of `chunks` that enough storage nodes still have, with the nodes that do.
    async fn present(&self, chunks: BTreeMap<u64, ChunkRef>) -> Result<BTreeMap<u64, ChunkRef>, Error> {
        if chunks.is_empty() {
            return Ok(chunks);
        }
        let status = self.dfs.cluster_status().await?;
        let mut by_node: HashMap<u32, Vec<u64>> = HashMap::new();
        for (index, chunk) in &chunks {
            for node in &chunk.replicas {
                by_node.entry(node.0).or_default().push(*index);
            }
        }
        let mut has: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for node in &status.nodes {
            let Some(indices) = by_node.get(&node.node_id) else { continue };
            for part in indices.chunks(STAT_MAX) {
                let ids = part.iter().map(|index| convert::id_bytes(chunks[index].id.as_bytes())).collect();
                // A node that does not answer has none for our purpose.
                let present = self.dfs.stat_chunks(&node.address, ids).await.unwrap_or_default();
                for (index, _) in part.iter().zip(present).filter(|(_, present)| *present) {
                    has.entry(*index).or_default().push(node.node_id);
                }
            }
        }
        let quorum = self.dfs.settings().write_quorum as usize;
        let kept = chunks.into_iter().filter_map(|(index, mut chunk)| {
            let nodes = has.remove(&index).filter(|nodes| nodes.len() >= quorum)?;
            chunk.replicas = convert::replicas(&nodes);
            Some((index, chunk))
        });
        Ok(kept.collect())
    }

    async fn finish(&self, manifest: Arc<std::sync::Mutex<Manifest>>) -> Result<(), Error> {
        self.end().await;
        match Arc::try_unwrap(manifest).map(std::sync::Mutex::into_inner) {
            Ok(manifest) => {
                let manifest = manifest.unwrap_or_else(std::sync::PoisonError::into_inner);
                blocking(move || manifest.remove()).await
            }
            // Every chunk's task has ended, so nobody else holds it.
            Err(_) => Err(Error::new(ErrorCode::Internal, "the manifest is still in use")),
        }
    }

    /// Ends the pending version, if the commit has not done so.
    async fn end(&self) {
        if self.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        // The manifest names what was stored, for the next attempt.
        let file_id = convert::id_bytes(self.pending.file_id.as_bytes());
        let op = Op::AbortFile(v1::AbortFile { file_id, keep_chunks: true });
        let what = format!("ending the pending version of inode {}", self.pending.ino);
        if let Err(error) = self.dfs.shared.cluster.mutate_in(&self.pending.session, what, op).await {
            tracing::debug!(%error, "left to the end of the session");
        }
    }
}
