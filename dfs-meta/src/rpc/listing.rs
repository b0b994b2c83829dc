//! `ListFiles`: a recursive listing in byte order of whole paths, with a cursor.
//!
//! A directory is walked in byte order of names, but its children sort by `name + "/"`: between `a` (a directory) and its
//! children come `a!` and `a-b`, because `!` and `-` are smaller than `/`. So a directory is put aside until the next name
//! no longer sorts before its children. What is put aside at one time are prefixes of each other, the longest on top.
//!
//! The work of one read of the state is bounded by entries looked at, not only by files found: a tree of empty directories
//! must not hold the lock.

use std::collections::VecDeque;

use dfs_common::{Attr, ErrorCode, FileKind, InodeId, name::PATH_MAX};
use dfs_proto::{status::RpcError, v1};

use super::{Service, files::of_path, invalid};
use crate::fsm::State;

/// Most files of one answer.
const LIST_MAX: usize = 4096;
/// Entries looked at in one read of the state: about a millisecond.
const BUDGET: usize = 8192;
/// Entries of a directory taken at once.
const PAGE: usize = 256;
/// Deepest directory that is listed. A path has at most 2048 components; deeper trees are made by renaming.
const DEPTH_MAX: usize = 2048;

impl Service {
    pub(super) async fn handle_list_files(
        &self,
        request: v1::ListFilesRequest,
    ) -> Result<v1::ListFilesResponse, RpcError> {
        let prefix = absolute(&request.prefix);
        if prefix.len() > PATH_MAX {
            return Err(of_path(ErrorCode::NameTooLong, &prefix));
        }
        let limit = match request.limit as usize {
            0 => LIST_MAX,
            limit => limit.min(LIST_MAX),
        };
        let mut after = if request.after.is_empty() { Vec::new() } else { absolute(&request.after) };
        if after.len() > PATH_MAX * 256 {
            return Err(invalid("the path to go on behind is too long"));
        }
        loop {
            let page = self.raft.read(|state| list(state, &prefix, &after, limit, BUDGET)).await?;
            let page = page.map_err(|code| of_path(code, &prefix))?;
            match page.resume {
                Some(resume) if page.files.is_empty() => after = resume,
                resume => {
                    let files = page.files.iter();
                    let files =
                        files.map(|(path, attr)| v1::ListedFile { path: path.clone().into(), attr: Some(attr.into()) });
                    return Ok(v1::ListFilesResponse { files: files.collect(), end: resume.is_none() });
                }
            }
        }
    }
}

fn absolute(path: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if path.starts_with(b"/") { b"" } else { b"/" };
    [slash, path].concat()
}

/// Some files in order.
#[derive(Debug, Default, PartialEq)]
struct Page {
    files: Vec<(Vec<u8>, Attr)>,
    /// Where to go on, if there is more; a directory's own place ends with `/`.
    resume: Option<Vec<u8>>,
}

/// What comes next in a directory.
enum Next {
    File(Vec<u8>, Attr),
    Directory(Vec<u8>, InodeId),
    /// The page of entries is used up; more may follow.
    Refill,
    End,
}

/// A directory that is being walked.
struct Frame {
    ino: InodeId,
    /// Its path, with a `/` at the end.
    path: Vec<u8>,
    /// Only names that start with this.
    name_prefix: Vec<u8>,
    /// Last name taken from the state.
    after: Vec<u8>,
    buffer: VecDeque<(Vec<u8>, Attr)>,
    end: bool,
    /// Directories put aside.
    aside: Vec<(Vec<u8>, InodeId)>,
}

/// Lists at most `limit` files behind `after`, looking at no more than about `budget` entries.
fn list(state: &State, prefix: &[u8], after: &[u8], limit: usize, budget: usize) -> Result<Page, ErrorCode> {
    let cut = prefix.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let (base, name_prefix) = prefix.split_at(cut);
    let Some(ino) = find_directory(state, base)? else { return Ok(Page::default()) };
    let rest = match after.strip_prefix(base) {
        Some(rest) => rest,
        None if after < base => b"",
        None => return Ok(Page::default()),
    };
    let mut frames = resume(state, Frame::new(ino, base.to_vec(), name_prefix.to_vec()), rest);
    let mut page = Page::default();
    let mut left = budget;
    while let Some(frame) = frames.last_mut() {
        match frame.next() {
            Next::File(name, attr) => {
                page.files.push(([frame.path.as_slice(), &name].concat(), attr));
                if page.files.len() == limit {
                    page.resume = page.files.last().map(|(path, _)| path.clone());
                    return Ok(page);
                }
            }
            Next::Directory(name, ino) => {
                let path = [frame.path.as_slice(), &name, b"/"].concat();
                if left == 0 {
                    // Here and not elsewhere: files are bounded by `limit`, and this place has a name.
                    page.resume = Some(path);
                    return Ok(page);
                }
                if frames.len() < DEPTH_MAX {
                    frames.push(Frame::new(ino, path, Vec::new()));
                }
            }
            Next::Refill => left = left.saturating_sub(frame.refill(state)?.max(1)),
            Next::End => drop(frames.pop()),
        }
    }
    Ok(page)
}

/// The directory of a path that ends with `/`; `None` if it is not there or not a directory.
fn find_directory(state: &State, path: &[u8]) -> Result<Option<InodeId>, ErrorCode> {
    let mut ino = InodeId::ROOT;
    for name in dfs_common::name::split(path)? {
        match directory(state, ino, name) {
            Some(child) => ino = child,
            None => return Ok(None),
        }
    }
    Ok(Some(ino))
}

fn directory(state: &State, parent: InodeId, name: &[u8]) -> Option<InodeId> {
    dfs_common::name::check(name).ok()?;
    let attr = state.lookup(None, parent, name).ok()?;
    (attr.kind == FileKind::Directory).then_some(attr.ino)
}

/// The frames that stand behind `rest`, a path below the first frame.
fn resume(state: &State, mut frame: Frame, mut rest: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    if rest < frame.name_prefix.as_slice() {
        frame.start_at_prefix(state);
        return vec![frame];
    }
    loop {
        let slash = rest.iter().position(|b| *b == b'/');
        let name = &rest[..slash.unwrap_or(rest.len())];
        if !name.is_empty() {
            frame.start_behind(state, name, slash.is_some());
        }
        let child = slash.and_then(|_| directory(state, frame.ino, name)).filter(|_| frame.takes(name));
        let path = [frame.path.as_slice(), name, b"/"].concat();
        frames.push(frame);
        match (child, slash) {
            (Some(ino), Some(slash)) if frames.len() < DEPTH_MAX => {
                frame = Frame::new(ino, path, Vec::new());
                rest = &rest[slash + 1..];
            }
            _ => return frames,
        }
    }
}

impl Frame {
    fn new(ino: InodeId, path: Vec<u8>, name_prefix: Vec<u8>) -> Self {
        Self { ino, path, name_prefix, after: Vec::new(), buffer: VecDeque::new(), end: false, aside: Vec::new() }
    }

    fn takes(&self, name: &[u8]) -> bool {
        name.starts_with(&self.name_prefix)
    }

    /// Starts with the first name that has the prefix.
    fn start_at_prefix(&mut self, state: &State) {
        if self.name_prefix.is_empty() {
            return;
        }
        self.after.clone_from(&self.name_prefix);
        if let Ok(attr) = state.lookup(None, self.ino, &self.name_prefix)
            && dfs_common::name::check(&self.name_prefix).is_ok()
        {
            self.buffer.push_back((self.name_prefix.clone(), attr));
        }
    }

    /// Starts behind `name`, or behind the children of `name` with `and_children`. Directories whose children sort behind it
    /// although their names sort before it are put aside again.
    fn start_behind(&mut self, state: &State, name: &[u8], and_children: bool) {
        for length in 1..=name.len() {
            let behind = match name.get(length) {
                Some(next) => *next < b'/',
                None => !and_children,
            };
            let candidate = &name[..length];
            if behind
                && self.takes(candidate)
                && let Some(ino) = directory(state, self.ino, candidate)
            {
                self.aside.push((candidate.to_vec(), ino));
            }
        }
        self.after = name.to_vec();
        if and_children {
            // No name has a slash: this skips the names between `name` and its children, which came before them.
            self.after.push(b'/');
        }
    }

    fn next(&mut self) -> Next {
        loop {
            let Some((name, attr)) = self.buffer.front() else {
                if !self.end {
                    return Next::Refill;
                }
                return self.aside.pop().map_or(Next::End, |(name, ino)| Next::Directory(name, ino));
            };
            let sorts_before = |aside: &[u8]| name.strip_prefix(aside).is_some_and(|tail| tail.first() < Some(&b'/'));
            if let Some((name, ino)) = self.aside.pop_if(|(aside, _)| !sorts_before(aside)) {
                return Next::Directory(name, ino);
            }
            let is_directory = attr.kind == FileKind::Directory;
            let Some((name, attr)) = self.buffer.pop_front() else { continue };
            if !is_directory {
                return Next::File(name, attr);
            }
            self.aside.push((name, attr.ino));
        }
    }

    /// Takes the next entries; returns how many.
    fn refill(&mut self, state: &State) -> Result<usize, ErrorCode> {
        let page = match state.readdir(None, self.ino, &self.after, PAGE) {
            Ok(page) => page,
            // Removed since its parent was read.
            Err(ErrorCode::NotFound | ErrorCode::NotDirectory) => {
                self.end = true;
                return Ok(0);
            }
            Err(code) => return Err(code),
        };
        self.end = page.end;
        let count = page.entries.len();
        if let Some(last) = page.entries.last() {
            self.after.clone_from(&last.name);
        } else {
            self.end = true;
        }
        for entry in page.entries {
            if !self.takes(&entry.name) {
                self.end = true;
                break;
            }
            self.buffer.push_back((entry.name, entry.attr));
        }
        Ok(count)
    }
}

#[cfg(test)]
#[path = "listing/tests.rs"]
mod tests;
