//! What the file system needs of a cluster, so that it can be tested without one.

use std::future::Future;

use bytes::Bytes;
use dfs_client::{
    Created, Dfs, DirPage, Error, NewFile, NewNode, Pin, Reader, RenameFlags, Seek, StatFs, Wish, Writer,
};
use dfs_common::{Attr, FileId, InodeId, Layout, SetAttr, lock::Lock};
use dfs_proto::convert::NodeAddress;

/// Outcome of a cluster operation.
pub(crate) type Outcome<T> = Result<T, Error>;

/// One open, immutable version.
pub(crate) trait VersionReader: Send + Sync + 'static {
    /// Attributes when it was opened.
    fn attr(&self) -> &Attr;
    /// Where the bytes are.
    fn layout(&self) -> &Layout;
    /// Verified bytes; fewer than `len` only at the end.
    fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = Outcome<Vec<Bytes>>> + Send;
    /// Where data or a hole begins.
    fn seek(&self, offset: u64, what: Seek) -> Option<u64>;
}

/// One version that is being written.
pub(crate) trait VersionWriter: Send + Sync + 'static {
    /// What chunks can be taken over from.
    type Reader: VersionReader;

    /// Writes; waits while memory is short.
    fn write_at(&self, offset: u64, data: &[u8]) -> impl Future<Output = Outcome<()>> + Send;
    /// Reads what was written, published or not.
    fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = Outcome<Vec<Bytes>>> + Send;
    /// Takes whole chunks over; how many bytes they cover from the start of the range.
    fn share_from(
        &self,
        from: &Self::Reader,
        from_offset: u64,
        offset: u64,
        len: u64,
    ) -> impl Future<Output = Outcome<u64>> + Send;
    /// Makes a range read as zeros.
    fn zero_range(&self, offset: u64, len: u64) -> impl Future<Output = Outcome<()>> + Send;
    /// Where data or a hole begins.
    fn seek(&self, offset: u64, what: Seek) -> impl Future<Output = Outcome<Option<u64>>> + Send;
    /// Cuts or extends.
    fn truncate(&self, size: u64) -> impl Future<Output = Outcome<()>> + Send;
    /// Size now, bytes.
    fn size(&self) -> u64;
    /// Bytes of a chunk.
    fn chunk_size(&self) -> u64;
    /// Whether something is unpublished.
    fn is_dirty(&self) -> bool;
    /// Whether the cluster knows of it, and keeps the file for it should its name go.
    fn is_held(&self) -> bool;
    /// Lets the cluster know.
    fn hold(&self) -> impl Future<Output = Outcome<()>> + Send;
    /// Why it failed, if it did.
    fn failure(&self) -> Option<Error>;
    /// Makes the content durable and visible.
    fn publish(&self, set: SetAttr) -> impl Future<Output = Outcome<Attr>> + Send;
    /// Publishes and ends the pending version.
    fn publish_and_finish(&self, set: SetAttr) -> impl Future<Output = Outcome<Attr>> + Send;
    /// Ends the pending version.
    fn finish(&self) -> impl Future<Output = ()> + Send;
    /// Drops what is unpublished and ends the pending version.
    fn abort(&self) -> impl Future<Output = ()> + Send;
}

/// The cluster.
pub(crate) trait Backend: Send + Sync + 'static {
    /// An open version.
    type Reader: VersionReader;
    /// A version being written.
    type Writer: VersionWriter<Reader = Self::Reader>;
    /// Keeps a version for as long as it is there.
    type Pin: Send + Sync;

    fn lookup(&self, parent: InodeId, name: &[u8]) -> impl Future<Output = Outcome<Attr>> + Send;
    fn getattr(&self, ino: InodeId) -> impl Future<Output = Outcome<Attr>> + Send;
    fn setattr(&self, ino: InodeId, change: SetAttr) -> impl Future<Output = Outcome<Attr>> + Send;
    fn readdir(
        &self,
        ino: InodeId,
        after: &[u8],
        limit: u32,
        with_attrs: bool,
    ) -> impl Future<Output = Outcome<DirPage>> + Send;
    fn readlink(&self, ino: InodeId) -> impl Future<Output = Outcome<Vec<u8>>> + Send;
    fn getxattr(&self, ino: InodeId, name: &[u8]) -> impl Future<Output = Outcome<Vec<u8>>> + Send;
    fn listxattr(&self, ino: InodeId) -> impl Future<Output = Outcome<Vec<Vec<u8>>>> + Send;
    fn setxattr(
        &self,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> impl Future<Output = Outcome<()>> + Send;
    fn removexattr(&self, ino: InodeId, name: &[u8]) -> impl Future<Output = Outcome<()>> + Send;
    fn statfs(&self) -> impl Future<Output = Outcome<StatFs>> + Send;
    fn create(&self, parent: InodeId, name: &[u8], file: NewFile) -> impl Future<Output = Outcome<Created>> + Send;
    fn mkdir(
        &self,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        uid: u32,
        gid: u32,
    ) -> impl Future<Output = Outcome<Attr>> + Send;
    fn symlink(
        &self,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
    ) -> impl Future<Output = Outcome<Attr>> + Send;
    fn mknod(&self, parent: InodeId, name: &[u8], node: NewNode) -> impl Future<Output = Outcome<Attr>> + Send;
    fn link(&self, ino: InodeId, parent: InodeId, name: &[u8]) -> impl Future<Output = Outcome<Attr>> + Send;
    fn unlink(&self, parent: InodeId, name: &[u8]) -> impl Future<Output = Outcome<()>> + Send;
    fn rmdir(&self, parent: InodeId, name: &[u8]) -> impl Future<Output = Outcome<()>> + Send;
    fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> impl Future<Output = Outcome<()>> + Send;
    fn open_reader(&self, ino: InodeId) -> impl Future<Output = Outcome<Self::Reader>> + Send;
    fn open_version(&self, version: FileId, last: Attr) -> impl Future<Output = Outcome<Self::Reader>> + Send;
    fn pin(&self, version: FileId) -> Self::Pin;
    fn open_new_writer(&self, created: &Created) -> impl Future<Output = Outcome<Self::Writer>> + Send;
    fn open_writer(&self, ino: InodeId, truncate: bool) -> impl Future<Output = Outcome<Self::Writer>> + Send;
    fn layout(&self, ino: InodeId) -> impl Future<Output = Outcome<(Attr, Layout, Vec<NodeAddress>)>> + Send;
    fn take_lock(&self, ino: InodeId, wish: Wish, wait: bool) -> impl Future<Output = Outcome<Option<Lock>>> + Send;
    fn test_lock(&self, ino: InodeId, wish: Wish) -> impl Future<Output = Outcome<Option<Lock>>> + Send;
    fn give_up_lock(&self, ino: InodeId, wish: Wish) -> impl Future<Output = ()> + Send;
}

impl VersionReader for Reader {
    fn attr(&self) -> &Attr {
        Self::attr(self)
    }
    fn layout(&self) -> &Layout {
        Self::layout(self)
    }
    async fn read_at(&self, offset: u64, len: usize) -> Outcome<Vec<Bytes>> {
        Self::read_at(self, offset, len).await
    }
    fn seek(&self, offset: u64, what: Seek) -> Option<u64> {
        Self::seek(self, offset, what)
    }
}

impl VersionWriter for Writer {
    type Reader = Reader;

    async fn write_at(&self, offset: u64, data: &[u8]) -> Outcome<()> {
        Self::write_at(self, offset, data).await
    }
    async fn read_at(&self, offset: u64, len: usize) -> Outcome<Vec<Bytes>> {
        Self::read_at(self, offset, len).await
    }
    async fn share_from(&self, from: &Reader, from_offset: u64, offset: u64, len: u64) -> Outcome<u64> {
        Self::share_from(self, from, from_offset, offset, len).await
    }
    async fn zero_range(&self, offset: u64, len: u64) -> Outcome<()> {
        Self::zero_range(self, offset, len).await
    }
    async fn seek(&self, offset: u64, what: Seek) -> Outcome<Option<u64>> {
        Self::seek(self, offset, what).await
    }
    async fn truncate(&self, size: u64) -> Outcome<()> {
        Self::truncate(self, size).await
    }
    fn size(&self) -> u64 {
        Self::size(self)
    }
    fn chunk_size(&self) -> u64 {
        Self::chunk_size(self)
    }
    fn is_dirty(&self) -> bool {
        Self::is_dirty(self)
    }
    fn is_held(&self) -> bool {
        Self::is_held(self)
    }
    async fn hold(&self) -> Outcome<()> {
        Self::hold(self).await
    }
    fn failure(&self) -> Option<Error> {
        Self::failure(self)
    }
    async fn publish(&self, set: SetAttr) -> Outcome<Attr> {
        Self::publish(self, set).await
    }
    async fn publish_and_finish(&self, set: SetAttr) -> Outcome<Attr> {
        Self::publish_and_finish(self, set).await
    }
    async fn finish(&self) {
        Self::finish(self).await;
    }
    async fn abort(&self) {
        Self::abort(self).await;
    }
}

impl Backend for Dfs {
    type Reader = Reader;
    type Writer = Writer;
    type Pin = Pin;

    async fn lookup(&self, parent: InodeId, name: &[u8]) -> Outcome<Attr> {
        Self::lookup(self, parent, name).await
    }
    async fn getattr(&self, ino: InodeId) -> Outcome<Attr> {
        Self::getattr(self, ino).await
    }
    async fn setattr(&self, ino: InodeId, change: SetAttr) -> Outcome<Attr> {
        Self::setattr(self, ino, change).await
    }
    async fn readdir(&self, ino: InodeId, after: &[u8], limit: u32, with_attrs: bool) -> Outcome<DirPage> {
        Self::readdir(self, ino, after, limit, with_attrs).await
    }
    async fn readlink(&self, ino: InodeId) -> Outcome<Vec<u8>> {
        Self::readlink(self, ino).await
    }
    async fn getxattr(&self, ino: InodeId, name: &[u8]) -> Outcome<Vec<u8>> {
        Self::getxattr(self, ino, name).await
    }
    async fn listxattr(&self, ino: InodeId) -> Outcome<Vec<Vec<u8>>> {
        Self::listxattr(self, ino).await
    }
    async fn setxattr(&self, ino: InodeId, name: &[u8], value: &[u8], create: bool, replace: bool) -> Outcome<()> {
        Self::setxattr(self, ino, name, value, create, replace).await
    }
    async fn removexattr(&self, ino: InodeId, name: &[u8]) -> Outcome<()> {
        Self::removexattr(self, ino, name).await
    }
    async fn statfs(&self) -> Outcome<StatFs> {
        Self::statfs(self).await
    }
    async fn create(&self, parent: InodeId, name: &[u8], file: NewFile) -> Outcome<Created> {
        Self::create(self, parent, name, file).await
    }
    async fn mkdir(&self, parent: InodeId, name: &[u8], mode: u32, uid: u32, gid: u32) -> Outcome<Attr> {
        Self::mkdir(self, parent, name, mode, uid, gid).await
    }
    async fn symlink(&self, parent: InodeId, name: &[u8], target: &[u8], uid: u32, gid: u32) -> Outcome<Attr> {
        Self::symlink(self, parent, name, target, uid, gid).await
    }
    async fn mknod(&self, parent: InodeId, name: &[u8], node: NewNode) -> Outcome<Attr> {
        Self::mknod(self, parent, name, node).await
    }
    async fn link(&self, ino: InodeId, parent: InodeId, name: &[u8]) -> Outcome<Attr> {
        Self::link(self, ino, parent, name).await
    }
    async fn unlink(&self, parent: InodeId, name: &[u8]) -> Outcome<()> {
        Self::unlink(self, parent, name).await
    }
    async fn rmdir(&self, parent: InodeId, name: &[u8]) -> Outcome<()> {
        Self::rmdir(self, parent, name).await
    }
    async fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Outcome<()> {
        Self::rename(self, parent, name, new_parent, new_name, flags).await
    }
    async fn open_reader(&self, ino: InodeId) -> Outcome<Reader> {
        Self::open_reader(self, ino).await
    }
    async fn open_version(&self, version: FileId, last: Attr) -> Outcome<Reader> {
        Self::open_version(self, version, last).await
    }
    fn pin(&self, version: FileId) -> Pin {
        Self::pin(self, version)
    }
    async fn open_new_writer(&self, created: &Created) -> Outcome<Writer> {
        Self::open_new_writer(self, created).await
    }
    async fn open_writer(&self, ino: InodeId, truncate: bool) -> Outcome<Writer> {
        Self::open_writer(self, ino, truncate).await
    }
    async fn layout(&self, ino: InodeId) -> Outcome<(Attr, Layout, Vec<NodeAddress>)> {
        Self::layout(self, ino).await
    }
    async fn take_lock(&self, ino: InodeId, wish: Wish, wait: bool) -> Outcome<Option<Lock>> {
        Self::take_lock(self, ino, wish, wait).await
    }
    async fn test_lock(&self, ino: InodeId, wish: Wish) -> Outcome<Option<Lock>> {
        Self::test_lock(self, ino, wish).await
    }
    async fn give_up_lock(&self, ino: InodeId, wish: Wish) {
        Self::give_up_lock(self, ino, wish).await;
    }
}
