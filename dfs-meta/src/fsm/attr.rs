//! Attributes and extended attributes of an inode.

use std::sync::Arc;

use dfs_common::{ErrorCode, InodeId, SessionId, SetAttr, SetTime};

use super::{command::Outcome, record::Inode, state::State};

/// Longest name of an extended attribute in bytes (XATTR_NAME_MAX).
const XATTR_NAME_MAX: usize = 255;
/// Longest value in bytes (XATTR_SIZE_MAX).
const XATTR_SIZE_MAX: usize = 64 << 10;
/// Most bytes of all names of an inode with their terminators: listxattr can return no more (XATTR_LIST_MAX).
const XATTR_LIST_MAX: usize = 64 << 10;
/// Most bytes of all values of an inode, so that no client can fill the memory of the metadata nodes through one inode.
const XATTR_TOTAL_MAX: usize = 256 << 10;

impl State {
    pub(super) fn set_attr(&mut self, now_ns: i64, session: SessionId, ino: InodeId, set: &SetAttr) -> Outcome {
        self.visible(Some(session), ino).map_err(|code| Self::refuse_ino(code, ino))?;
        self.touch(ino, |inode| inode.set(now_ns, set));
        Ok(self.mutated(ino))
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one operation, named at its only call")]
    pub(super) fn set_xattr(
        &mut self,
        now_ns: i64,
        session: SessionId,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Outcome {
        let inode = self.visible(Some(session), ino).map_err(|code| Self::refuse_ino(code, ino))?;
        check_xattr(inode, name, value, create, replace).map_err(|code| Self::refuse_ino(code, ino))?;
        self.touch(ino, |inode| {
            let xattrs = inode.xattrs.get_or_insert_default();
            Arc::make_mut(xattrs).insert(name.to_vec(), value.to_vec());
            inode.ctime_ns = now_ns;
        });
        Ok(self.mutated(ino))
    }

    pub(super) fn remove_xattr(&mut self, now_ns: i64, session: SessionId, ino: InodeId, name: &[u8]) -> Outcome {
        let inode = self.visible(Some(session), ino).map_err(|code| Self::refuse_ino(code, ino))?;
        if !inode.xattrs.as_ref().is_some_and(|xattrs| xattrs.contains_key(name)) {
            return Err(Self::refuse_ino(ErrorCode::NoAttribute, ino));
        }
        self.touch(ino, |inode| {
            if let Some(xattrs) = &mut inode.xattrs {
                Arc::make_mut(xattrs).remove(name);
            }
            inode.xattrs.take_if(|xattrs| xattrs.is_empty());
            inode.ctime_ns = now_ns;
        });
        Ok(self.mutated(ino))
    }
}

impl Inode {
    /// Changes attributes at `now_ns`.
    pub(super) fn set(&mut self, now_ns: i64, set: &SetAttr) {
        let time = |set: SetTime| match set {
            SetTime::Now => now_ns,
            SetTime::At(ns) => ns,
        };
        self.mode = set.mode.map_or(self.mode, |mode| mode & 0o7777);
        self.uid = set.uid.unwrap_or(self.uid);
        self.gid = set.gid.unwrap_or(self.gid);
        self.atime_ns = set.atime.map_or(self.atime_ns, time);
        self.mtime_ns = set.mtime.map_or(self.mtime_ns, time);
        self.ctime_ns = now_ns;
    }
}

fn check_xattr(inode: &Inode, name: &[u8], value: &[u8], create: bool, replace: bool) -> Result<(), ErrorCode> {
    if name.len() > XATTR_NAME_MAX {
        return Err(ErrorCode::NameTooLong);
    }
    if name.is_empty() || name.contains(&0) || (create && replace) {
        return Err(ErrorCode::InvalidArgument);
    }
    if value.len() > XATTR_SIZE_MAX {
        return Err(ErrorCode::TooLarge);
    }
    let (mut names, mut values, mut exists) = (name.len() + 1, value.len(), false);
    for (other, value) in inode.xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
        if other == name {
            exists = true;
        } else {
            names += other.len() + 1;
            values += value.len();
        }
    }
    match (exists, create, replace) {
        (true, true, _) => Err(ErrorCode::AlreadyExists),
        (false, _, true) => Err(ErrorCode::NoAttribute),
        _ if names > XATTR_LIST_MAX || values > XATTR_TOTAL_MAX => Err(ErrorCode::NoSpace),
        _ => Ok(()),
    }
}
