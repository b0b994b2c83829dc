//! The state machine of handles, on a cluster in memory.

use dfs_common::ErrorCode;

use super::{
    fake::FakeCluster,
    file::{OpenMode, Opened},
    pages::Caching,
    *,
};

const READ: i32 = libc::O_RDONLY;
const WRITE: i32 = libc::O_WRONLY;
/// No thread has this number, so its flushes count as explicit closes.
const NOBODY: u32 = 0;

struct Mount {
    cluster: FakeCluster,
    fs: Fs<FakeCluster>,
}

impl Mount {
    fn new() -> Self {
        Self::of(&FakeCluster::default())
    }

    fn of(cluster: &FakeCluster) -> Self {
        let options = Options { root: InodeId::ROOT, write_once: false, cache_ttl: Duration::from_secs(1) };
        Self { cluster: cluster.clone(), fs: Fs::new(cluster.clone(), options, Legacies::default()) }
    }

    async fn create(&self, name: &str) -> (InodeId, u64) {
        let mode = OpenMode::from_flags(WRITE | libc::O_CREAT);
        let (attr, opened) = self.fs.create(InodeId::ROOT, name.as_bytes(), 0o644, (0, 0), mode).await.expect("create");
        (attr.ino, opened.handle)
    }

    async fn open(&self, ino: InodeId, flags: i32) -> Opened {
        self.fs.open(ino, OpenMode::from_flags(flags)).await.expect("open")
    }

    async fn write(&self, handle: u64, offset: u64, text: &str) {
        self.fs.write(handle, offset, text.as_bytes(), false).await.expect("write");
    }

    async fn read(&self, handle: u64) -> String {
        String::from_utf8(self.fs.read(handle, 0, 1 << 20).await.expect("read").concat()).expect("text")
    }

    async fn close(&self, handle: u64) {
        self.fs.flush(handle, NOBODY).await.expect("flush");
        self.fs.release(handle).await;
    }

    async fn file(&self, name: &str, text: &str) -> InodeId {
        let (ino, handle) = self.create(name).await;
        self.write(handle, 0, text).await;
        self.close(handle).await;
        self.cluster.take_log();
        ino
    }

    async fn size(&self, ino: InodeId, handle: Option<u64>) -> (u64, bool) {
        let found = self.fs.getattr(ino, handle).await.expect("getattr");
        (found.attr.size, found.ttl > Duration::ZERO)
    }
}

/// A process that is being killed and stays so, as a flush sees it: a zombie child.
struct Killed(std::process::Child);

impl Killed {
    fn new() -> Self {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("spawn");
        child.kill().expect("kill");
        // Until it is waited for it stays a zombie, with its flags and exit code.
        for _ in 0..500 {
            if caller::closing(child.id()) == caller::Closing::Killed(9) {
                return Self(child);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.wait();
        panic!("a killed process must look killed");
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_small_file_takes_one_publication() {
    let mount = Mount::new();
    let (_, handle) = mount.create("f").await;
    mount.write(handle, 0, "hello").await;
    assert_eq!(mount.cluster.content("f"), None, "others see the name when it is published");
    mount.close(handle).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"hello"[..]));
    assert_eq!(mount.cluster.take_log(), ["publish_and_finish"]);
    assert_eq!(mount.fs.inodes.len(), 0);
}

#[tokio::test]
async fn an_empty_file_is_published_by_close() {
    let mount = Mount::new();
    let (_, handle) = mount.create("f").await;
    mount.fs.flush(handle, NOBODY).await.expect("flush");
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b""[..]));
    mount.fs.release(handle).await;
    assert_eq!(mount.cluster.take_log(), ["publish_and_finish"]);
}

#[tokio::test]
async fn writes_go_on_after_a_flush_of_a_duplicate() {
    let mount = Mount::new();
    let (_, handle) = mount.create("f").await;
    mount.write(handle, 0, "one").await;
    mount.fs.flush(handle, NOBODY).await.expect("flush");
    mount.write(handle, 3, "two").await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"one"[..]));
    mount.close(handle).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"onetwo"[..]));
    assert_eq!(mount.cluster.take_log(), ["publish_and_finish", "reopen", "publish_and_finish"]);
}

#[tokio::test]
async fn a_killed_writer_publishes_nothing() {
    let mount = Mount::new();
    let killed = Killed::new();
    let (ino, handle) = mount.create("f").await;
    mount.write(handle, 0, "half").await;
    mount.fs.flush(handle, killed.0.id()).await.expect("flush");
    mount.fs.release(handle).await;
    assert_eq!(mount.cluster.content("f"), None);
    assert_eq!(mount.cluster.take_log(), ["abort"]);

    let ino_of_old = mount.file("old", "whole").await;
    assert_ne!(ino, ino_of_old);
    let handle = mount.open(ino_of_old, WRITE | libc::O_TRUNC).await.handle;
    mount.write(handle, 0, "ha").await;
    mount.fs.flush(handle, killed.0.id()).await.expect("flush");
    mount.fs.release(handle).await;
    assert_eq!(mount.cluster.content("old").as_deref(), Some(&b"whole"[..]));
}

#[tokio::test]
async fn a_process_that_exits_publishes() {
    let mount = Mount::new();
    let mut child = std::process::Command::new("true").spawn().expect("spawn");
    for _ in 0..500 {
        if caller::closing(child.id()) == caller::Closing::AtExit {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (_, handle) = mount.create("f").await;
    mount.write(handle, 0, "whole").await;
    mount.fs.flush(handle, child.id()).await.expect("flush");
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"whole"[..]));
    mount.fs.release(handle).await;
    assert_eq!(mount.cluster.take_log(), ["publish", "finish"], "a parent may go on writing");
    child.wait().expect("wait");
}

#[tokio::test]
async fn what_a_killed_child_left_is_published_by_its_parent() {
    let mount = Mount::new();
    let killed = Killed::new();
    let (_, handle) = mount.create("f").await;
    mount.write(handle, 0, "child ").await;
    mount.fs.flush(handle, killed.0.id()).await.expect("flush");
    mount.write(handle, 6, "parent").await;
    mount.close(handle).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"child parent"[..]));
}

#[tokio::test]
async fn handles_of_one_inode_share_a_writer() {
    let mount = Mount::new();
    let ino = mount.file("f", "0000").await;
    let (a, b) = (mount.open(ino, libc::O_RDWR).await.handle, mount.open(ino, WRITE).await.handle);
    mount.write(a, 0, "a").await;
    mount.write(b, 1, "b").await;
    assert_eq!(mount.read(a).await, "ab00");
    mount.close(b).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"ab00"[..]));
    mount.write(a, 2, "c").await;
    mount.close(a).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"abc0"[..]));
    assert_eq!(mount.cluster.take_log(), ["open_writer", "publish", "publish", "finish"]);
}

#[tokio::test]
async fn appends_go_to_the_end_whatever_the_kernel_thinks() {
    let mount = Mount::new();
    let ino = mount.file("f", "12345").await;
    let handle = mount.open(ino, WRITE | libc::O_APPEND).await.handle;
    mount.write(handle, 0, "67").await;
    mount.write(handle, 2, "8").await;
    mount.close(handle).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"12345678"[..]));
}

#[tokio::test]
async fn opening_for_writing_without_a_write_changes_nothing() {
    let mount = Mount::new();
    let ino = mount.file("f", "text").await;
    let handle = mount.open(ino, libc::O_RDWR).await.handle;
    assert_eq!(mount.read(handle).await, "text");
    mount.close(handle).await;
    assert_eq!(mount.cluster.take_log(), [] as [&str; 0]);
}

#[tokio::test]
async fn errors_are_repeated_until_the_last_handle_is_gone() {
    let mount = Mount::new();
    let (_, handle) = mount.create("f").await;
    mount.write(handle, 0, "x").await;
    mount.cluster.fail_publish(Some(ErrorCode::NoSpace));
    assert_eq!(mount.fs.fsync(handle).await.expect_err("fails").errno(), libc::ENOSPC);
    mount.cluster.fail_publish(None);
    assert_eq!(mount.fs.write(handle, 1, b"y", false).await.expect_err("fails").errno(), libc::ENOSPC);
    assert_eq!(mount.fs.flush(handle, NOBODY).await.expect_err("fails").errno(), libc::ENOSPC);
    mount.fs.release(handle).await;
    assert_eq!(mount.cluster.content("f"), None);
    assert_eq!(mount.cluster.take_log(), ["publish", "abort"]);
}

#[tokio::test]
async fn a_time_set_between_write_and_close_survives_the_publication() {
    let mount = Mount::new();
    let (ino, handle) = mount.create("f").await;
    mount.write(handle, 0, "x").await;
    let change = SetAttr { mtime: Some(SetTime::At(42)), ..SetAttr::default() };
    mount.fs.setattr(ino, None, None, change).await.expect("utimensat");
    mount.close(handle).await;
    assert_eq!(mount.cluster.attr(ino).mtime_ns, 42);
    let handle = mount.open(ino, WRITE).await.handle;
    mount.fs.setattr(ino, None, None, change).await.expect("utimensat");
    mount.write(handle, 0, "y").await;
    mount.close(handle).await;
    assert_ne!(mount.cluster.attr(ino).mtime_ns, 42, "a later write counts again");
}

#[tokio::test]
async fn a_write_at_once_needs_a_writer_and_stays_in_one_chunk() {
    let mount = Mount::new();
    let ino = mount.file("f", "text").await;
    let handle = mount.open(ino, WRITE).await.handle;
    assert!(mount.fs.write_at_once(handle, 0, b"T", false).await.is_none(), "a writer must be opened first");
    mount.write(handle, 0, "T").await;
    assert!(matches!(mount.fs.write_at_once(handle, 1, b"E", false).await, Some(Ok(()))));
    assert!(mount.fs.write_at_once(handle, (1 << 22) - 1, b"XX", false).await.is_none(), "over the end of a chunk");
    mount.close(handle).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"TExt"[..]));
    let append = mount.open(ino, WRITE | libc::O_APPEND).await.handle;
    mount.write(append, 0, "!").await;
    assert!(matches!(mount.fs.write_at_once(append, 0, b"?", false).await, Some(Ok(()))));
    mount.close(append).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"TExt!?"[..]));
}

#[tokio::test]
async fn attributes_of_a_removed_new_file_can_still_be_changed() {
    let mount = Mount::new();
    let (ino, handle) = mount.create("f").await;
    let mode = |mode| SetAttr { mode: Some(mode), ..SetAttr::default() };
    mount.fs.setattr(ino, None, None, mode(0o600)).await.expect("set");
    mount.fs.unlink(InodeId::ROOT, b"f").await.expect("removed");
    let found = mount.fs.setattr(ino, None, None, mode(0o640)).await.expect("set");
    assert_eq!(found.attr.mode & 0o777, 0o640);
    assert_eq!(mount.fs.getattr(ino, Some(handle)).await.expect("found").attr.mode & 0o777, 0o640);
    mount.close(handle).await;
}

#[tokio::test]
async fn attributes_of_a_new_file_go_with_its_publication() {
    let mount = Mount::new();
    let (ino, handle) = mount.create("f").await;
    mount.write(handle, 0, "x").await;
    let owner = SetAttr { uid: Some(7), gid: Some(8), ..SetAttr::default() };
    let times = SetAttr { atime: Some(SetTime::At(41)), mtime: Some(SetTime::At(42)), ..SetAttr::default() };
    for change in [owner, times, SetAttr { mode: Some(0o600), ..SetAttr::default() }] {
        mount.fs.setattr(ino, None, None, change).await.expect("set");
    }
    let facts = |attr: Attr| (attr.uid, attr.gid, attr.atime_ns, attr.mtime_ns, attr.mode);
    let set = (7, 8, 41, 42, 0o600);
    assert_eq!(facts(mount.fs.getattr(ino, None).await.expect("found").attr), set, "seen here at once");
    assert_ne!(facts(mount.cluster.attr(ino)), set, "no call of their own");
    mount.close(handle).await;
    assert_eq!(facts(mount.cluster.attr(ino)), set);
    mount.fs.setattr(ino, None, None, SetAttr { mode: Some(0o640), ..SetAttr::default() }).await.expect("set");
    assert_eq!(mount.cluster.attr(ino).mode, 0o640, "a published file changes at once");
}

#[tokio::test]
async fn an_open_reader_keeps_its_version_and_its_size() {
    let mount = Mount::new();
    let ino = mount.file("f", "the old text").await;
    let old = mount.open(ino, READ).await;
    assert_eq!(mount.read(old.handle).await, "the old text");
    assert_eq!(mount.size(ino, None).await, (12, true));
    let writer = mount.open(ino, WRITE | libc::O_TRUNC).await.handle;
    assert_eq!(mount.size(ino, None).await, (0, false));
    assert_eq!(mount.size(ino, Some(old.handle)).await, (12, false));
    mount.write(writer, 0, "new").await;
    mount.close(writer).await;
    assert_eq!(mount.read(old.handle).await, "the old text");
    assert_eq!(mount.size(ino, None).await, (3, false), "sizes are not cached while versions are mixed");
    assert_eq!(mount.size(ino, Some(old.handle)).await, (12, false));
    let new = mount.open(ino, READ).await;
    assert_eq!(new.caching, Caching::Bypass);
    assert_eq!(mount.read(new.handle).await, "new");
    mount.fs.release(old.handle).await;
    assert_eq!(mount.size(ino, None).await, (3, true));
    assert_eq!(mount.open(ino, READ).await.caching, Caching::Fresh);
}

#[tokio::test]
async fn a_file_that_was_never_published_is_read_through_its_writer() {
    let mount = Mount::new();
    let (ino, writer) = mount.create("f").await;
    mount.write(writer, 0, "live").await;
    let reader = mount.open(ino, READ).await;
    assert_eq!(reader.caching, Caching::Bypass);
    assert_eq!(mount.read(reader.handle).await, "live");
    mount.write(writer, 4, " text").await;
    mount.close(writer).await;
    assert_eq!(mount.read(reader.handle).await, "live text", "and after the writer is gone from the cluster");
}

#[tokio::test]
async fn truncate_by_path_publishes_at_once() {
    let mount = Mount::new();
    let ino = mount.file("f", "12345").await;
    let found = mount.fs.setattr(ino, None, Some(2), SetAttr::default()).await.expect("truncate");
    assert_eq!(found.attr.size, 2);
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"12"[..]));
    assert_eq!(mount.fs.inodes.len(), 0);
    let handle = mount.open(ino, WRITE).await.handle;
    mount.fs.setattr(ino, None, Some(4), SetAttr::default()).await.expect("ftruncate");
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"12"[..]), "an open writer publishes at its close");
    mount.close(handle).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"12\0\0"[..]));
}

#[tokio::test]
async fn a_removed_file_stays_usable_for_those_who_have_it_open() {
    let mount = Mount::new();
    let ino = mount.file("f", "text").await;
    let (reader, writer) = (mount.open(ino, READ).await.handle, mount.open(ino, WRITE).await.handle);
    mount.write(writer, 4, " more").await;
    mount.fs.unlink(InodeId::ROOT, b"f").await.expect("unlink");
    assert_eq!(mount.read(reader).await, "text");
    let found = mount.fs.getattr(ino, None).await.expect("fstat");
    assert_eq!((found.attr.nlink, found.attr.size), (0, 9));
    mount.close(writer).await;
    mount.fs.release(reader).await;
    assert_eq!(mount.fs.getattr(ino, None).await.expect_err("gone").errno(), libc::ENOENT);
}

#[tokio::test]
async fn a_removed_file_opened_for_both_can_be_read_before_it_was_written() {
    let mount = Mount::new();
    let ino = mount.file("f", "text").await;
    let both = mount.open(ino, libc::O_RDWR).await.handle;
    mount.fs.unlink(InodeId::ROOT, b"f").await.expect("unlink");
    assert_eq!(mount.read(both).await, "text");
    assert_eq!(mount.fs.getattr(ino, None).await.expect("fstat").attr.nlink, 0);
    mount.close(both).await;
}

#[tokio::test]
async fn a_file_removed_while_it_is_created_goes_on_for_its_writer() {
    let mount = Mount::new();
    for replace in [false, true] {
        let (ino, handle) = mount.create("f").await;
        mount.write(handle, 0, "one").await;
        if replace {
            mount.file("g", "other").await;
            mount
                .fs
                .rename((InodeId::ROOT, b"g"), (InodeId::ROOT, b"f"), RenameFlags::default())
                .await
                .expect("rename");
        } else {
            mount.fs.unlink(InodeId::ROOT, b"f").await.expect("unlink");
        }
        mount.fs.flush(handle, NOBODY).await.expect("a duplicate is closed");
        mount.write(handle, 3, "two").await;
        mount.fs.fsync(handle).await.expect("fsync");
        assert_eq!(mount.read(handle).await, "onetwo");
        assert_eq!(mount.size(ino, None).await.0, 6);
        mount.close(handle).await;
        assert_eq!(mount.cluster.take_log(), ["finish"]);
        assert_eq!(mount.fs.inodes.len(), 0);
    }
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"other"[..]));
}

#[tokio::test]
async fn exclusive_creation_and_creation_of_what_exists() {
    let mount = Mount::new();
    let ino = mount.file("f", "text").await;
    let mode = OpenMode::from_flags(WRITE | libc::O_CREAT | libc::O_EXCL);
    let error = mount.fs.create(InodeId::ROOT, b"f", 0o644, (0, 0), mode).await.expect_err("exists");
    assert_eq!(error.errno(), libc::EEXIST);
    let (same, handle) = mount.create("f").await;
    assert_eq!(same, ino);
    mount.close(handle).await;
    assert_eq!(mount.cluster.content("f").as_deref(), Some(&b"text"[..]), "without O_TRUNC the content stays");
}

#[tokio::test]
async fn df_answers_from_memory_while_metadata_is_away() {
    let mount = Mount::new();
    mount.fs.getattr(InodeId::ROOT, None).await.expect("root");
    assert_eq!(mount.fs.statfs().await.capacity_bytes, 1000);
    mount.cluster.go_away();
    let start = std::time::Instant::now();
    assert_eq!(mount.fs.getattr(InodeId::ROOT, None).await.expect("root").ttl, Duration::ZERO);
    assert_eq!(mount.fs.statfs().await.capacity_bytes, 1000);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn attributes_of_dfs_itself() {
    let mount = Mount::new();
    let ino = mount.file("f", "abc").await;
    let sum = mount.fs.getxattr(ino, b"user.dfs.sha256").await.expect("sum");
    assert_eq!(sum, b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(mount.fs.listxattr(ino, true).await.expect("list"), b"");
    let mode = xattr::SetMode { create: false, replace: false };
    let errno = |outcome: Result<(), Error>| outcome.expect_err("refused").errno();
    assert_eq!(errno(mount.fs.setxattr(ino, b"user.dfs.sha256", b"", mode).await), libc::EPERM);
    assert_eq!(errno(mount.fs.getxattr(ino, b"security.capability").await.map(drop)), libc::EOPNOTSUPP);
    assert_eq!(errno(mount.fs.getxattr(ino, b"system.posix_acl_access").await.map(drop)), libc::EOPNOTSUPP);
    mount.fs.setxattr(ino, b"user.mine", b"1", mode).await.expect("set");
    assert_eq!(mount.fs.getxattr(ino, b"user.mine").await.expect("get"), b"1");
    assert_eq!(mount.fs.listxattr(ino, true).await.expect("list"), b"user.mine\0");
}

async fn list(mount: &Mount, stream: u64, from: u64, limit: usize) -> (Vec<String>, u64) {
    let (mut names, mut next) = (Vec::new(), from);
    let sink = |entry: dir::Entry<'_>| {
        if names.len() == limit {
            return true;
        }
        names.push(String::from_utf8_lossy(entry.name).into_owned());
        next = entry.next;
        false
    };
    mount.fs.readdir((InodeId::ROOT, stream), from, false, sink).await.expect("readdir");
    (names, next)
}

#[tokio::test]
async fn a_listing_in_buffers_of_any_size_is_whole() {
    let mount = Mount::new();
    let mut expected = vec![".".to_owned(), "..".to_owned()];
    for index in 0..10 {
        let name = format!("n{index}");
        mount.file(&name, "").await;
        expected.push(name);
    }
    for limit in 1..14 {
        let (stream, _) = mount.fs.opendir(InodeId::ROOT);
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let (names, next) = list(&mount, stream, offset, limit).await;
            if names.is_empty() {
                break;
            }
            all.extend(names);
            offset = next;
        }
        assert_eq!(all, expected, "in buffers of {limit}");
        // Back to every offset that was given.
        for offset in (0..12).rev() {
            let (names, _) = list(&mount, stream, offset, usize::MAX).await;
            assert_eq!(names, expected[usize::try_from(offset).expect("small")..], "from {offset}");
        }
        mount.fs.releasedir(stream);
    }
}

#[tokio::test]
async fn removing_while_listing_misses_nothing() {
    let mount = Mount::new();
    for index in 0..10 {
        mount.file(&format!("n{index}"), "").await;
    }
    let (stream, _) = mount.fs.opendir(InodeId::ROOT);
    let (mut seen, mut offset) = (0, 0);
    loop {
        let (names, next) = list(&mount, stream, offset, 2).await;
        if names.is_empty() {
            break;
        }
        offset = next;
        for name in names.iter().filter(|name| name.starts_with('n')) {
            seen += 1;
            mount.fs.unlink(InodeId::ROOT, name.as_bytes()).await.expect("unlink");
        }
    }
    assert_eq!(seen, 10);
}

#[tokio::test]
async fn files_being_written_are_listed_with_their_size() {
    let mount = Mount::new();
    mount.file("a", "").await;
    mount.file("z", "").await;
    let (_, handle) = mount.create("m").await;
    mount.write(handle, 0, "12345").await;
    let (stream, _) = mount.fs.opendir(InodeId::ROOT);
    let mut sizes = Vec::new();
    let sink = |entry: dir::Entry<'_>| {
        let found = entry.attr.expect("asked for");
        sizes.push((String::from_utf8_lossy(entry.name).into_owned(), found.attr.size));
        false
    };
    mount.fs.readdir((InodeId::ROOT, stream), 2, true, sink).await.expect("readdirplus");
    assert_eq!(sizes, [("a".into(), 0), ("m".into(), 5), ("z".into(), 0)]);
    mount.close(handle).await;
    let (names, _) = list(&mount, stream, 0, usize::MAX).await;
    assert_eq!(names, [".", "..", "a", "m", "z"]);
}

#[tokio::test]
async fn a_reader_goes_on_with_a_version_that_only_adds_to_its_own() {
    let mount = Mount::new();
    let other = Mount::of(&mount.cluster);
    let ino = mount.file("log", "one\n").await;
    let (first, second) = (mount.open(ino, READ).await, mount.open(ino, READ).await);
    assert_eq!(mount.read(first.handle).await, "one\n");
    let writing = other.open(ino, WRITE).await;
    other.write(writing.handle, 0, "one\ntwo\n").await;
    other.close(writing.handle).await;
    // The kernel asks for the size before it reads at the end of what it knows.
    assert_eq!(mount.size(ino, Some(first.handle)).await.0, 8);
    assert_eq!(mount.read(first.handle).await, "one\ntwo\n");
    assert_eq!(mount.read(second.handle).await, "one\ntwo\n", "they share the pages");
    let third = mount.open(ino, READ).await;
    assert_ne!(third.caching, Caching::Bypass, "all have the current version");
    // Now the content is another one.
    let writing = other.open(ino, WRITE).await;
    other.write(writing.handle, 0, "ONE\ntwo\nthree\n").await;
    other.close(writing.handle).await;
    assert_eq!(mount.size(ino, Some(first.handle)).await, (8, false));
    assert_eq!(mount.read(first.handle).await, "one\ntwo\n");
    for opened in [first, second, third] {
        mount.close(opened.handle).await;
    }
    assert_eq!(mount.fs.inodes.len(), 0);
}

#[tokio::test]
async fn a_reader_around_the_page_cache_goes_on_at_its_end() {
    let mount = Mount::new();
    let other = Mount::of(&mount.cluster);
    let ino = mount.file("log", "one\n").await;
    let old = mount.open(ino, READ).await;
    let writing = other.open(ino, WRITE).await;
    other.write(writing.handle, 0, "another").await;
    other.close(writing.handle).await;
    let direct = mount.open(ino, READ).await;
    assert_eq!(direct.caching, Caching::Bypass, "the pages are those of the old version");
    assert_eq!(mount.read(direct.handle).await, "another");
    let writing = other.open(ino, WRITE).await;
    other.write(writing.handle, 0, "another one").await;
    other.close(writing.handle).await;
    let more = mount.fs.read(direct.handle, 7, 100).await.expect("read").concat();
    assert_eq!(more, b" one");
    assert_eq!(mount.read(old.handle).await, "one\n");
    mount.close(old.handle).await;
    mount.close(direct.handle).await;
}

#[tokio::test]
async fn names_of_a_listing_are_answered_once_and_only_under_the_lease() {
    let mount = Mount::new();
    let other = Mount::of(&mount.cluster);
    for name in ["a", "b", "c", "d", "e"] {
        mount.file(name, "x").await;
    }
    let looked_up = async |name: &str| mount.fs.lookup(InodeId::ROOT, name.as_bytes()).await.is_ok();
    let listed = async || {
        let (stream, _) = mount.fs.opendir(InodeId::ROOT);
        assert_eq!(list(&mount, stream, 0, 100).await.0.len(), 7);
        mount.fs.releasedir(stream);
    };
    listed().await;
    mount.fs.coherence().renew(std::time::Instant::now());
    listed().await;
    // What the other mount does is not told here by itself: so it shows what is asked for and what is not.
    for name in ["a", "b", "c", "d"] {
        other.fs.unlink(InodeId::ROOT, name.as_bytes()).await.expect("unlink");
    }
    assert!(looked_up("a").await, "from the listing");
    assert!(!looked_up("a").await, "the second time the cluster is asked");
    mount.fs.coherence().changed_here(InodeId::ROOT);
    mount.fs.unsee(InodeId::ROOT, b"b");
    assert!(!looked_up("b").await, "it was told that this name has changed");
    assert!(looked_up("c").await, "and nothing of this one");
    mount.fs.lose_lease();
    assert!(!looked_up("d").await && looked_up("e").await, "without the lease everything is asked for");
}
