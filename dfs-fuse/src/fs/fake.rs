//! A cluster in memory: one directory level is enough for the state machine of handles.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use dfs_client::{Created, DirEntry, DirPage, Error, NewFile, NewNode, RenameFlags, Seek, StatFs, Wish};
use dfs_common::{Attr, ErrorCode, FileId, FileKind, InodeId, Layout, SessionId, SetAttr, SetTime, lock::Lock};
use dfs_proto::convert::NodeAddress;

use super::{
    backend::{Backend, Outcome, VersionReader, VersionWriter},
    inode::lock,
};

/// The cluster. Clones share it, like mounts do.
#[derive(Clone, Default)]
pub(super) struct FakeCluster(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    next: u64,
    clock: i64,
    nodes: HashMap<InodeId, Node>,
    names: BTreeMap<(InodeId, Vec<u8>), InodeId>,
    log: Vec<&'static str>,
    fail_publish: Option<ErrorCode>,
    is_away: bool,
}

struct Node {
    attr: Attr,
    content: Arc<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    is_listed: bool,
}

impl World {
    fn node(&mut self, ino: InodeId) -> Outcome<&mut Node> {
        self.nodes.get_mut(&ino).ok_or_else(|| not_found("inode"))
    }

    fn add(&mut self, kind: FileKind, mode: u32, is_listed: bool) -> Attr {
        self.next += 1;
        self.clock += 1_000;
        let attr = Attr {
            ino: InodeId(self.next + 100),
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            nlink: 1,
            atime_ns: self.clock,
            mtime_ns: self.clock,
            ctime_ns: self.clock,
            rdev: 0,
            generation: 0,
            file_id: None,
        };
        let node = Node { attr: attr.clone(), content: Arc::default(), xattrs: BTreeMap::new(), is_listed };
        self.nodes.insert(attr.ino, node);
        attr
    }
}

fn root() -> Attr {
    World::default().add(FileKind::Directory, 0o755, true)
}

fn not_found(what: &str) -> Error {
    Error::new(ErrorCode::NotFound, format!("no such {what}"))
}

impl FakeCluster {
    /// Calls that writers made since the last question.
    pub(super) fn take_log(&self) -> Vec<&'static str> {
        std::mem::take(&mut lock(&self.0).log)
    }

    /// Published content of a name; `None` if it is not listed.
    pub(super) fn content(&self, name: &str) -> Option<Vec<u8>> {
        let world = lock(&self.0);
        let ino = world.names.get(&(InodeId::ROOT, name.as_bytes().to_vec()))?;
        let node = &world.nodes[ino];
        node.is_listed.then(|| node.content.to_vec())
    }

    /// The next publications fail.
    pub(super) fn fail_publish(&self, code: Option<ErrorCode>) {
        lock(&self.0).fail_publish = code;
    }

    /// The metadata nodes do not answer any more.
    pub(super) fn go_away(&self) {
        lock(&self.0).is_away = true;
    }

    /// Attributes as another mount sees them.
    pub(super) fn attr(&self, ino: InodeId) -> Attr {
        lock(&self.0).nodes[&ino].attr.clone()
    }

    fn note(&self, call: &'static str) {
        lock(&self.0).log.push(call);
    }
}

/// A version.
pub(super) struct FakeReader {
    attr: Attr,
    layout: Layout,
    content: Arc<Vec<u8>>,
}

fn slice(content: &[u8], offset: u64, len: usize) -> Vec<Bytes> {
    let start = usize::try_from(offset).expect("small").min(content.len());
    let end = (start + len).min(content.len());
    if start == end { Vec::new() } else { vec![Bytes::copy_from_slice(&content[start..end])] }
}

impl VersionReader for FakeReader {
    fn attr(&self) -> &Attr {
        &self.attr
    }
    fn layout(&self) -> &Layout {
        &self.layout
    }
    async fn read_at(&self, offset: u64, len: usize) -> Outcome<Vec<Bytes>> {
        Ok(slice(&self.content, offset, len))
    }
    fn seek(&self, offset: u64, what: Seek) -> Option<u64> {
        seek(self.content.len() as u64, offset, what)
    }
}

/// Everything is data.
fn seek(size: u64, offset: u64, what: Seek) -> Option<u64> {
    let found = if what == Seek::Data { offset } else { size };
    (offset < size).then_some(found)
}

/// A pending version.
pub(super) struct FakeWriter {
    cluster: FakeCluster,
    ino: InodeId,
    state: Mutex<WriterState>,
}

#[derive(Default)]
struct WriterState {
    content: Vec<u8>,
    dirty: bool,
    /// Whether the pending version has ended; the next write starts another one.
    ended: bool,
    failure: Option<Error>,
}

impl FakeWriter {
    fn commit(&self, set: SetAttr) -> Outcome<Attr> {
        let mut state = lock(&self.state);
        let mut world = lock(&self.cluster.0);
        if let Some(code) = world.fail_publish {
            let error = Error::new(code, "made to fail");
            state.failure = Some(error.clone());
            return Err(error);
        }
        world.clock += 1_000;
        let now = world.clock;
        let node = world.node(self.ino)?;
        node.content = Arc::new(state.content.clone());
        node.attr.size = state.content.len() as u64;
        node.attr.mtime_ns = now;
        super::apply(&mut node.attr, set);
        node.attr.file_id = Some(FileId::random());
        node.is_listed = true;
        state.dirty = false;
        Ok(node.attr.clone())
    }

    fn end(&self, how: &'static str) {
        if !std::mem::replace(&mut lock(&self.state).ended, true) {
            self.cluster.note(how);
        }
    }
}

impl VersionWriter for FakeWriter {
    type Reader = FakeReader;

    async fn share_from(&self, from: &FakeReader, from_offset: u64, offset: u64, len: u64) -> Outcome<u64> {
        self.cluster.note("share");
        let whole = len - len % self.chunk_size();
        let bytes = slice(&from.content, from_offset, usize::try_from(whole).expect("small")).concat();
        self.write_at(offset, &bytes).await?;
        Ok(bytes.len() as u64)
    }
    async fn zero_range(&self, offset: u64, len: u64) -> Outcome<()> {
        let end = offset.saturating_add(len).min(self.size());
        self.write_at(offset, &vec![0; usize::try_from(end.saturating_sub(offset)).expect("small")]).await
    }
    async fn seek(&self, offset: u64, what: Seek) -> Outcome<Option<u64>> {
        Ok(seek(self.size(), offset, what))
    }
    async fn write_at(&self, offset: u64, data: &[u8]) -> Outcome<()> {
        let mut state = lock(&self.state);
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        let (start, end) =
            (usize::try_from(offset).expect("small"), usize::try_from(offset).expect("small") + data.len());
        if state.content.len() < end {
            state.content.resize(end, 0);
        }
        state.content[start..end].copy_from_slice(data);
        state.dirty = true;
        if std::mem::take(&mut state.ended) {
            self.cluster.note("reopen");
        }
        Ok(())
    }
    async fn read_at(&self, offset: u64, len: usize) -> Outcome<Vec<Bytes>> {
        Ok(slice(&lock(&self.state).content, offset, len))
    }
    async fn truncate(&self, size: u64) -> Outcome<()> {
        let mut state = lock(&self.state);
        state.content.resize(usize::try_from(size).expect("small"), 0);
        state.dirty = true;
        Ok(())
    }
    fn size(&self) -> u64 {
        lock(&self.state).content.len() as u64
    }
    fn chunk_size(&self) -> u64 {
        1 << 22
    }
    fn is_dirty(&self) -> bool {
        lock(&self.state).dirty
    }
    fn is_held(&self) -> bool {
        true
    }
    async fn hold(&self) -> Outcome<()> {
        Ok(())
    }
    fn failure(&self) -> Option<Error> {
        lock(&self.state).failure.clone()
    }
    async fn publish(&self, set: SetAttr) -> Outcome<Attr> {
        self.cluster.note("publish");
        self.commit(set)
    }
    async fn publish_and_finish(&self, set: SetAttr) -> Outcome<Attr> {
        self.cluster.note("publish_and_finish");
        let attr = self.commit(set)?;
        lock(&self.state).ended = true;
        Ok(attr)
    }
    async fn finish(&self) {
        self.end("finish");
    }
    async fn abort(&self) {
        self.end("abort");
    }
}

impl Backend for FakeCluster {
    type Reader = FakeReader;
    type Writer = FakeWriter;
    type Pin = ();

    async fn open_version(&self, version: FileId, _last: Attr) -> Outcome<FakeReader> {
        let ino = lock(&self.0).nodes.iter().find(|(_, node)| node.attr.file_id == Some(version)).map(|(ino, _)| *ino);
        self.open_reader(ino.ok_or_else(|| not_found("version"))?).await
    }
    fn pin(&self, _version: FileId) {}

    // Locks have their own tests, where they are decided.
    async fn take_lock(&self, _ino: InodeId, _wish: Wish, _wait: bool) -> Outcome<Option<Lock>> {
        Ok(None)
    }
    async fn test_lock(&self, _ino: InodeId, _wish: Wish) -> Outcome<Option<Lock>> {
        Ok(None)
    }
    async fn give_up_lock(&self, _ino: InodeId, _wish: Wish) {}

    async fn lookup(&self, parent: InodeId, name: &[u8]) -> Outcome<Attr> {
        let world = lock(&self.0);
        let ino = world.names.get(&(parent, name.to_vec())).ok_or_else(|| not_found("name"))?;
        Ok(world.nodes[ino].attr.clone())
    }
    async fn getattr(&self, ino: InodeId) -> Outcome<Attr> {
        if lock(&self.0).is_away {
            std::future::pending::<()>().await;
        }
        if ino == InodeId::ROOT {
            return Ok(root());
        }
        Ok(lock(&self.0).node(ino)?.attr.clone())
    }
    async fn setattr(&self, ino: InodeId, change: SetAttr) -> Outcome<Attr> {
        let mut world = lock(&self.0);
        let attr = &mut world.node(ino)?.attr;
        attr.mode = change.mode.unwrap_or(attr.mode);
        if let Some(SetTime::At(ns)) = change.mtime {
            attr.mtime_ns = ns;
        }
        Ok(attr.clone())
    }
    async fn readdir(&self, ino: InodeId, after: &[u8], limit: u32, with_attrs: bool) -> Outcome<DirPage> {
        // Small pages, so that tests cross their borders.
        let limit = (limit as usize).min(3);
        let world = lock(&self.0);
        let mut entries: Vec<DirEntry> = world
            .names
            .iter()
            .filter(|((parent, name), ino)| {
                *parent == InodeId::ROOT && name.as_slice() > after && world.nodes[ino].is_listed
            })
            .map(|((_, name), ino)| {
                let attr = &world.nodes[ino].attr;
                DirEntry { name: name.clone(), ino: *ino, kind: attr.kind, attr: with_attrs.then(|| attr.clone()) }
            })
            .collect();
        let end = entries.len() <= limit;
        entries.truncate(limit);
        Ok(DirPage { entries, end, parent: ino })
    }
    async fn readlink(&self, _ino: InodeId) -> Outcome<Vec<u8>> {
        Err(not_found("link"))
    }
    async fn getxattr(&self, ino: InodeId, name: &[u8]) -> Outcome<Vec<u8>> {
        let mut world = lock(&self.0);
        world.node(ino)?.xattrs.get(name).cloned().ok_or_else(|| Error::new(ErrorCode::NoAttribute, "none"))
    }
    async fn listxattr(&self, ino: InodeId) -> Outcome<Vec<Vec<u8>>> {
        Ok(lock(&self.0).node(ino)?.xattrs.keys().cloned().collect())
    }
    async fn setxattr(&self, ino: InodeId, name: &[u8], value: &[u8], _create: bool, _replace: bool) -> Outcome<()> {
        lock(&self.0).node(ino)?.xattrs.insert(name.to_vec(), value.to_vec());
        Ok(())
    }
    async fn removexattr(&self, ino: InodeId, name: &[u8]) -> Outcome<()> {
        lock(&self.0).node(ino)?.xattrs.remove(name);
        Ok(())
    }
    async fn statfs(&self) -> Outcome<StatFs> {
        if lock(&self.0).is_away {
            std::future::pending::<()>().await;
        }
        Ok(StatFs { capacity_bytes: 1000, ..StatFs::default() })
    }
    async fn create(&self, parent: InodeId, name: &[u8], file: NewFile) -> Outcome<Created> {
        let mut world = lock(&self.0);
        if let Some(ino) = world.names.get(&(parent, name.to_vec())) {
            if file.exclusive {
                return Err(Error::new(ErrorCode::AlreadyExists, "exists"));
            }
            let attr = world.nodes[ino].attr.clone();
            return Ok(Created { attr, file_id: None, existed: true, session: SessionId(1) });
        }
        let attr = world.add(FileKind::File, file.mode, false);
        world.names.insert((parent, name.to_vec()), attr.ino);
        Ok(Created { attr, file_id: Some(FileId::random()), existed: false, session: SessionId(1) })
    }
    async fn mkdir(&self, parent: InodeId, name: &[u8], mode: u32, _uid: u32, _gid: u32) -> Outcome<Attr> {
        let mut world = lock(&self.0);
        let attr = world.add(FileKind::Directory, mode, true);
        world.names.insert((parent, name.to_vec()), attr.ino);
        Ok(attr)
    }
    async fn symlink(&self, parent: InodeId, name: &[u8], _target: &[u8], _uid: u32, _gid: u32) -> Outcome<Attr> {
        let mut world = lock(&self.0);
        let attr = world.add(FileKind::Symlink, 0o777, true);
        world.names.insert((parent, name.to_vec()), attr.ino);
        Ok(attr)
    }
    async fn mknod(&self, parent: InodeId, name: &[u8], node: NewNode) -> Outcome<Attr> {
        let mut world = lock(&self.0);
        let attr = world.add(node.kind, node.mode, true);
        world.names.insert((parent, name.to_vec()), attr.ino);
        Ok(attr)
    }
    async fn link(&self, ino: InodeId, parent: InodeId, name: &[u8]) -> Outcome<Attr> {
        let mut world = lock(&self.0);
        world.names.insert((parent, name.to_vec()), ino);
        Ok(world.node(ino)?.attr.clone())
    }
    async fn unlink(&self, parent: InodeId, name: &[u8]) -> Outcome<()> {
        let mut world = lock(&self.0);
        let ino = world.names.remove(&(parent, name.to_vec())).ok_or_else(|| not_found("name"))?;
        world.nodes.remove(&ino);
        Ok(())
    }
    async fn rmdir(&self, parent: InodeId, name: &[u8]) -> Outcome<()> {
        self.unlink(parent, name).await
    }
    async fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        _flags: RenameFlags,
    ) -> Outcome<()> {
        let mut world = lock(&self.0);
        let ino = world.names.remove(&(parent, name.to_vec())).ok_or_else(|| not_found("name"))?;
        world.names.insert((new_parent, new_name.to_vec()), ino);
        Ok(())
    }
    async fn open_reader(&self, ino: InodeId) -> Outcome<FakeReader> {
        let mut world = lock(&self.0);
        let node = world.node(ino)?;
        let file_id = node.attr.file_id.ok_or_else(|| not_found("version"))?;
        let size = node.content.len() as u64;
        let layout = Layout::Replicated { file_id, size, chunk_size: 1 << 22, chunks: Vec::new() };
        Ok(FakeReader { attr: node.attr.clone(), layout, content: Arc::clone(&node.content) })
    }
    async fn open_new_writer(&self, created: &Created) -> Outcome<FakeWriter> {
        assert!(created.file_id.is_some(), "a new file has a pending version");
        let state = WriterState { dirty: true, ..WriterState::default() };
        Ok(FakeWriter { cluster: self.clone(), ino: created.attr.ino, state: Mutex::new(state) })
    }
    async fn open_writer(&self, ino: InodeId, truncate: bool) -> Outcome<FakeWriter> {
        self.note("open_writer");
        let content = if truncate { Vec::new() } else { lock(&self.0).node(ino)?.content.to_vec() };
        let state = WriterState { content, dirty: truncate, ..WriterState::default() };
        Ok(FakeWriter { cluster: self.clone(), ino, state: Mutex::new(state) })
    }
    async fn layout(&self, ino: InodeId) -> Outcome<(Attr, Layout, Vec<NodeAddress>)> {
        let reader = self.open_reader(ino).await?;
        Ok((reader.attr, reader.layout, Vec::new()))
    }
}
