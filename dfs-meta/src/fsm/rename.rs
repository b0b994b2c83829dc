//! Rename: replace, refuse to replace, exchange; and the tree stays a tree.

use dfs_common::{ErrorCode, InodeId, SessionId};

use super::{
    command::{Outcome, Refusal, Reply},
    name::Name,
    namespace::Entry,
    record::{Body, Inode, Reason},
    state::State,
};

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) parent: InodeId,
    pub(super) name: &'a [u8],
}

impl Place<'_> {
    fn refuse(self, code: ErrorCode) -> Refusal {
        State::refuse_name(code, self.parent, self.name)
    }
}

impl State {
    pub(super) fn rename(
        &mut self,
        now_ns: i64,
        session: SessionId,
        from: Place<'_>,
        to: Place<'_>,
        no_replace: bool,
        exchange: bool,
    ) -> Outcome {
        if no_replace && exchange {
            return Err(from.refuse(ErrorCode::InvalidArgument));
        }
        self.check_new(from.parent, from.name)?;
        self.check_new(to.parent, to.name)?;
        let source =
            self.resolve(Some(session), from.parent, from.name).ok_or_else(|| from.refuse(ErrorCode::NotFound))?;
        if no_replace && self.is_taken(to.parent, to.name) {
            return Err(to.refuse(ErrorCode::AlreadyExists));
        }
        self.check_cycle(source.ino(), to)?;
        let target = self.resolve(Some(session), to.parent, to.name);
        if exchange {
            let target = target.ok_or_else(|| to.refuse(ErrorCode::NotFound))?;
            return self.exchange(now_ns, (from, source), (to, target));
        }
        if target.is_some_and(|target| target.ino() == source.ino()) {
            return Ok(self.mutated(source.ino()));
        }
        self.check_replace(source, to, target)?;
        if let Some(Entry::Reserved(ino)) = target {
            self.drop_reservation(now_ns, session, ino, to.parent, to.name);
        }
        match source {
            Entry::Reserved(ino) => self.move_reservation(session, ino, from, to),
            Entry::Published(ino) => {
                self.drop_dentry(now_ns, to.parent, to.name, Reason::Replaced);
                self.move_dentry(ino, from, to);
            }
        }
        self.moved(now_ns, source.ino(), from, to);
        Ok(self.mutated(source.ino()))
    }

    /// Refuses to move a directory into itself or below itself.
    fn check_cycle(&self, ino: InodeId, to: Place<'_>) -> Result<(), Refusal> {
        if self.directory(ino).is_err() {
            return Ok(());
        }
        let mut above = to.parent;
        // No path is longer than all inodes: bounded even if a defect had tied directories into a ring.
        for _ in 0..self.inodes.len() {
            if above == ino {
                return Err(to.refuse(ErrorCode::InvalidArgument));
            }
            match self.inodes.get(&above).map(|inode| &inode.body) {
                Some(Body::Directory { parent, .. }) if *parent != above => above = *parent,
                Some(_) | None => return Ok(()),
            }
        }
        Err(to.refuse(ErrorCode::Internal))
    }

    /// Whether the source may take the place of what is at the target, both what this session sees there and what all see.
    fn check_replace(&self, source: Entry, to: Place<'_>, target: Option<Entry>) -> Result<(), Refusal> {
        let source_is_directory = self.directory(source.ino()).is_ok();
        let published = self.published(to.parent, to.name).map(Entry::Published);
        for target in target.into_iter().chain(published) {
            match (source_is_directory, self.directory(target.ino()).is_ok()) {
                (true, false) => return Err(to.refuse(ErrorCode::NotDirectory)),
                (false, true) => return Err(to.refuse(ErrorCode::IsDirectory)),
                (true, true) if self.is_occupied(target.ino()) => {
                    return Err(to.refuse(ErrorCode::NotEmpty));
                }
                (true, true) | (false, false) => {}
            }
        }
        Ok(())
    }

    fn move_reservation(&mut self, session: SessionId, ino: InodeId, from: Place<'_>, to: Place<'_>) {
        let new_name = Name::from_slice(to.name);
        self.reservations.remove(&(from.parent, Name::from_slice(from.name), session));
        self.reservations.insert((to.parent, new_name.clone(), session), ino);
        let Some(unpublished) = self.unpublished.get_mut(&ino) else { return };
        for name in &mut unpublished.names {
            if (name.0, name.1.as_slice()) == (from.parent, from.name) {
                *name = (to.parent, new_name.clone());
            }
        }
    }

    fn move_dentry(&mut self, ino: InodeId, from: Place<'_>, to: Place<'_>) {
        self.remove_dentry(from.parent, from.name);
        self.insert_dentry(to.parent, Name::from_slice(to.name), ino);
        self.reparent(ino, from.parent, to.parent);
    }

    /// A directory went from one directory to another.
    fn reparent(&mut self, ino: InodeId, from: InodeId, to: InodeId) {
        if let Some(Inode { body: Body::Directory { parent, .. }, .. }) = self.inode_mut(ino) {
            *parent = to;
            self.change_subdirs(from, -1);
            self.change_subdirs(to, 1);
        }
    }

    fn moved(&mut self, now_ns: i64, ino: InodeId, from: Place<'_>, to: Place<'_>) {
        self.touch(ino, |inode| inode.ctime_ns = now_ns);
        self.entries_changed(now_ns, from.parent);
        if to.parent != from.parent {
            self.entries_changed(now_ns, to.parent);
        }
    }

    /// Swaps two published entries. With an unpublished one there would be no moment at which all see the swap.
    fn exchange(&mut self, now_ns: i64, a: (Place<'_>, Entry), b: (Place<'_>, Entry)) -> Outcome {
        let ((from, source), (to, target)) = (a, b);
        let (Entry::Published(source), Entry::Published(target)) = (source, target) else {
            return Err(from.refuse(ErrorCode::NotSupported));
        };
        self.check_cycle(target, from)?;
        if source != target {
            self.remove_dentry(from.parent, from.name);
            self.remove_dentry(to.parent, to.name);
            self.insert_dentry(to.parent, Name::from_slice(to.name), source);
            self.insert_dentry(from.parent, Name::from_slice(from.name), target);
            self.reparent(source, from.parent, to.parent);
            self.reparent(target, to.parent, from.parent);
            self.touch(target, |inode| inode.ctime_ns = now_ns);
            self.moved(now_ns, source, from, to);
        }
        Ok(Reply::Mutated { attr: self.attr(source), file_id: None, existed: false })
    }
}
