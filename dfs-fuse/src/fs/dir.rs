//! Directory streams: pages fetched by name, served by offset.
//!
//! The cluster continues a listing behind a name, POSIX wants offsets that seekdir(3) can return to. Offset 0 is `.`, 1 is
//! `..`, entry `i` of the listing is `i + 2`. The current and the previous page stay in memory, so every offset the kernel
//! can still be working on is exact, also while entries are removed meanwhile (`rm -r`). For offsets further back the name
//! in front of each earlier page is remembered, as long as there are not too many.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dfs_client::{DirEntry, DirPage};
use dfs_common::{Attr, FileKind, InodeId};
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{Found, Fs, backend::Backend, coherence::Mark, error::Error, inode::lock};

/// Entries a page, with attributes about 300 KB: two pages and one being fetched stay below a MiB a stream.
const PAGE_ENTRIES: u32 = 2048;
/// Page starts remembered; beyond, every second one is dropped.
const MARKS_MAX: usize = 1024;

/// One entry for the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry<'a> {
    /// Its name.
    pub(crate) name: &'a [u8],
    /// Its inode.
    pub(crate) ino: InodeId,
    /// What it is.
    pub(crate) kind: FileKind,
    /// Offset of the next entry.
    pub(crate) next: u64,
    /// Its attributes, when asked for. Entries with attributes are counted by the kernel as looked up, but `.` and `..`.
    pub(crate) attr: Option<Found>,
}

/// What the kernel may do with what is listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Listing {
    /// Show what it has, and keep what it gets.
    Keep,
    /// Forget what it has, and keep what it gets.
    Fresh,
    /// Neither.
    Bypass,
}

/// An open directory.
pub(crate) struct DirStream {
    ino: InodeId,
    cursor: Mutex<Cursor>,
}

impl DirStream {
    fn new(ino: InodeId) -> Self {
        Self { ino, cursor: Mutex::default() }
    }

    /// Which.
    pub(crate) fn ino(&self) -> InodeId {
        self.ino
    }
}

#[derive(Default)]
struct Cursor {
    parent: Option<InodeId>,
    page: Option<Page>,
    previous: Option<Page>,
    ahead: Option<Ahead>,
    /// Index of the first entry behind a name.
    marks: BTreeMap<u64, Vec<u8>>,
}

struct Page {
    /// Index of its first entry.
    first: u64,
    /// Name in front of it.
    after: Vec<u8>,
    entries: Vec<DirEntry>,
    is_last: bool,
    with_attrs: bool,
    /// When it was asked for.
    mark: Mark,
}

struct Ahead {
    after: Vec<u8>,
    with_attrs: bool,
    mark: Mark,
    task: AbortOnDropHandle<Result<DirPage, dfs_client::Error>>,
}

impl Page {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn holds(&self, index: u64) -> bool {
        (self.first..self.end()).contains(&index)
    }

    /// Name in front of entry `index`, which this page holds or ends before.
    fn name_before(&self, index: u64) -> Vec<u8> {
        let at = usize::try_from(index - self.first).expect("pages are small");
        at.checked_sub(1).map_or_else(|| self.after.clone(), |at| self.entries[at].name.clone())
    }
}

impl<B: Backend> Fs<B> {
    /// Opens a directory; also what the kernel may do with listings. It shares one among all who have the directory open, so
    /// only one may put into it, and what was listed before a change must go. Names that are not published yet may be given up
    /// without a trace, so they are not kept.
    pub(crate) fn opendir(&self, ino: InodeId) -> (u64, Listing) {
        let mark = self.coherence.mark();
        // Held across all of it: of two that are opened at once one is not alone.
        let mut listed = lock(&self.listed);
        let is_alone = !self.dirs.map(DirStream::ino).contains(&ino);
        let may_keep = is_alone && self.coherence.is_leased() && !lock(&self.pending).are_in(ino);
        let handle = self.dirs.number();
        self.dirs.insert(handle, DirStream::new(ino));
        let listing = match listed.get(&ino) {
            _ if !may_keep => Listing::Bypass,
            Some(since) if !self.coherence.has_changed(*since, &[ino]) => Listing::Keep,
            Some(_) | None => {
                listed.put(ino, mark);
                Listing::Fresh
            }
        };
        (handle, listing)
    }

    /// Closes a directory.
    pub(crate) fn releasedir(&self, handle: u64) {
        self.dirs.remove(handle);
    }

    /// Gives entries of `dir`, which is open as `handle`, from `offset` on to `sink`, which says `true` when it cannot take this
    /// one any more.
    pub(crate) async fn readdir(
        &self,
        (dir, handle): (InodeId, u64),
        offset: u64,
        with_attrs: bool,
        mut sink: impl FnMut(Entry<'_>) -> bool + Send,
    ) -> Result<(), Error> {
        // A process before this one may have opened it: offsets mean the same here.
        let stream = self.dirs.get_or_insert(handle, || DirStream::new(dir));
        let mut cursor = stream.cursor.lock().await;
        if offset == 0 {
            // rewinddir(3) shows the directory as it is now.
            *cursor = Cursor::default();
        }
        self.go_to(stream.ino, &mut cursor, offset.saturating_sub(2), with_attrs).await?;
        // Nothing above the root of the mount is told.
        let parent = cursor.parent.filter(|_| stream.ino != self.options.root).unwrap_or(stream.ino);
        for (at, name, ino) in [(0, &b"."[..], stream.ino), (1, b"..", parent)] {
            let attr = with_attrs.then(|| Found { attr: directory(ino), ttl: Duration::ZERO });
            if offset <= at && sink(Entry { name, ino, kind: FileKind::Directory, next: at + 1, attr }) {
                return Ok(());
            }
        }
        let mut index = offset.saturating_sub(2);
        loop {
            self.go_to(stream.ino, &mut cursor, index, with_attrs).await?;
            let Some(page) = cursor.page.as_ref().filter(|page| page.holds(index)) else { return Ok(()) };
            let at = usize::try_from(index - page.first).expect("pages are small");
            let mut given = at;
            let mut is_full = false;
            for entry in &page.entries[at..] {
                index += 1;
                let attr = with_attrs.then(|| entry.attr.clone()).flatten();
                let attr = attr.map(|attr| self.listed(page.mark, stream.ino, attr));
                let entry = Entry { name: &entry.name, ino: entry.ino, kind: entry.kind, next: index + 2, attr };
                is_full = sink(entry);
                if is_full {
                    break;
                }
                given += 1;
            }
            if !with_attrs {
                self.see(stream.ino, &page.entries[at..given], page.mark);
            }
            if is_full {
                return Ok(());
            }
        }
    }

    /// An entry of a page, which may be outdated as a whole: the kernel gets one time for name and attributes.
    fn listed(&self, mark: Mark, dir: InodeId, attr: Attr) -> Found {
        let mut found = self.found(mark, attr);
        found.ttl = found.ttl.min(self.coherence.ttl(mark, &[dir]));
        found
    }

    /// Makes the current page one that holds entry `index`, or the last one if there is no such entry.
    async fn go_to(&self, ino: InodeId, cursor: &mut Cursor, index: u64, with_attrs: bool) -> Result<(), Error> {
        loop {
            let fits = |page: &Page| page.with_attrs || !with_attrs;
            if let Some(page) = &cursor.page {
                if page.holds(index) && fits(page) || page.is_last && index >= page.end() {
                    return Ok(());
                }
                if index >= page.first && index <= page.end() {
                    // Forward, or the same entries once more with attributes.
                    let after = page.name_before(index);
                    self.fetch(ino, cursor, index, after, with_attrs).await?;
                    continue;
                }
            }
            if cursor.previous.as_ref().is_some_and(|page| page.holds(index) && fits(page)) {
                std::mem::swap(&mut cursor.page, &mut cursor.previous);
                cursor.ahead = None;
                continue;
            }
            let (first, after) = cursor
                .marks
                .range(..=index)
                .next_back()
                .map_or((0, Vec::new()), |(first, after)| (*first, after.clone()));
            let reachable = cursor.page.as_ref().is_some_and(|page| page.end() <= index && page.first >= first);
            let (first, after) = match &cursor.page {
                Some(page) if reachable => (page.end(), page.name_before(page.end())),
                Some(_) | None => (first, after),
            };
            self.fetch(ino, cursor, first, after, with_attrs).await?;
        }
    }

    /// Fetches the page that starts with entry `first`, behind the name `after`, and begins to fetch the next one. The kernel wants
    /// attributes if `with_attrs` says so; else they are kept for what it may ask next.
    async fn fetch(
        &self,
        ino: InodeId,
        cursor: &mut Cursor,
        first: u64,
        after: Vec<u8>,
        with_attrs: bool,
    ) -> Result<(), Error> {
        let ahead = cursor.ahead.take().filter(|ahead| ahead.after == after && (ahead.with_attrs || !with_attrs));
        let with_attrs = with_attrs || self.wants_seen(first);
        let (page, with_attrs, mark) = match ahead {
            Some(Ahead { task, with_attrs, mark, .. }) => {
                let page = task.await.map_err(|_| Error::refused(libc::EIO, "the read-ahead task ended early"))?;
                (page?, with_attrs, mark)
            }
            None => {
                let mark = self.coherence.mark();
                (self.backend.readdir(ino, &after, PAGE_ENTRIES, with_attrs).await?, with_attrs, mark)
            }
        };
        cursor.parent = Some(page.parent);
        let last = page.entries.last().map(|entry| entry.name.clone());
        if let (false, Some(after)) = (page.end, last.clone()) {
            let (backend, name, mark) = (Arc::clone(&self.backend), after.clone(), self.coherence.mark());
            let task = tokio::spawn(async move { backend.readdir(ino, &name, PAGE_ENTRIES, with_attrs).await });
            cursor.ahead = Some(Ahead { after, with_attrs, mark, task: AbortOnDropHandle::new(task) });
        }
        // An empty page that is not the last would make the listing stand still.
        let is_last = page.end || page.entries.is_empty();
        let upto = if is_last { None } else { last };
        let entries = self.with_pending(ino, &after, upto.as_deref(), page.entries);
        cursor.remember(first, &after);
        cursor.previous = cursor.page.replace(Page { first, after, entries, is_last, with_attrs, mark });
        Ok(())
    }

    /// Puts names of files that this mount has not published yet between the others.
    fn with_pending(
        &self,
        ino: InodeId,
        after: &[u8],
        upto: Option<&[u8]>,
        mut entries: Vec<DirEntry>,
    ) -> Vec<DirEntry> {
        for (name, ino) in lock(&self.pending).between(ino, after, upto) {
            if let Err(at) = entries.binary_search_by(|entry| entry.name.as_slice().cmp(&name)) {
                let attr = self.inodes.get(ino).and_then(|inode| inode.last_attr());
                entries.insert(at, DirEntry { name, ino, kind: FileKind::File, attr });
            }
        }
        entries
    }
}

impl Cursor {
    fn remember(&mut self, first: u64, after: &[u8]) {
        self.marks.insert(first, after.to_vec());
        if self.marks.len() > MARKS_MAX {
            let mut keep = false;
            self.marks.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
    }
}

/// Attributes for `.` and `..`, of which the kernel takes number and kind only.
fn directory(ino: InodeId) -> Attr {
    Attr {
        ino,
        kind: FileKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        size: 0,
        nlink: 2,
        atime_ns: 0,
        mtime_ns: 0,
        ctime_ns: 0,
        rdev: 0,
        generation: 0,
        file_id: None,
    }
}
