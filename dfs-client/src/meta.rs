//! The namespace, by inode. Every operation goes to the leader and is retried until its deadline; a mutation has its effect
//! once.

use std::fmt;

use bytes::Bytes;
use dfs_common::{
    Attr, ErrorCode, InodeId, SetAttr,
    crash::{self, Point},
    name,
};
use dfs_proto::{
    convert,
    v1::{self, mutate_request::Op},
};

use crate::{Created, Dfs, DirEntry, DirPage, Error, NewFile, NewNode, RenameFlags, StatFs, cluster::metadata};

/// An entry, for error messages.
struct Entry<'a>(InodeId, &'a [u8]);

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\" in inode {}", self.1.escape_ascii(), self.0)
    }
}

fn bytes(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Names that cannot exist are refused before anything is sent.
fn check(what: &str, parent: InodeId, entry: &[u8]) -> Result<(), Error> {
    name::check(entry).map_err(|code| Error::new(code, format!("{what} {}: {code}", Entry(parent, entry))))
}

pub(crate) fn attr(wire: Option<v1::Attr>) -> Result<Attr, Error> {
    let wire = wire.ok_or_else(|| Error::new(ErrorCode::Internal, "an answer without attributes"))?;
    Ok(wire.try_into()?)
}

impl Dfs {
    /// The session to name in reads, so that reserved names of this client are seen; 0 without one.
    fn session_id(&self) -> u64 {
        self.shared.cluster.sessions.live().map_or(0, |session| session.id.0)
    }

    async fn change(&self, what: String, op: Op) -> Result<v1::MutateResponse, Error> {
        Ok(self.shared.cluster.mutate(what, op).await?.1)
    }

    /// Finds `name` in directory `parent`.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`; no answer within the deadline.
    pub async fn lookup(&self, parent: InodeId, name: &[u8]) -> Result<Attr, Error> {
        check("looking up", parent, name)?;
        let what = || format!("looking up {}", Entry(parent, name));
        let request = v1::LookupRequest { parent: parent.0, name: bytes(name), session_id: self.session_id() };
        attr(self.shared.cluster.call(&what, request, |c, q| async move { metadata(c).lookup(q).await }).await?.attr)
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// `NotFound`; no answer within the deadline.
    pub async fn getattr(&self, ino: InodeId) -> Result<Attr, Error> {
        let what = || format!("attributes of inode {ino}");
        let request = v1::GetAttrRequest { ino: ino.0, session_id: self.session_id() };
        attr(self.shared.cluster.call(&what, request, |c, q| async move { metadata(c).get_attr(q).await }).await?.attr)
    }

    /// Entries of a directory behind the name `after` (empty: from the start), at most `limit` (4096).
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`; no answer within the deadline.
    pub async fn readdir(&self, ino: InodeId, after: &[u8], limit: u32, with_attrs: bool) -> Result<DirPage, Error> {
        let what = || format!("listing inode {ino}");
        let request = v1::ReadDirRequest {
            ino: ino.0,
            after: bytes(after),
            limit: limit.clamp(1, 4096),
            with_attrs,
            session_id: self.session_id(),
        };
        let page =
            self.shared.cluster.call(&what, request, |c, q| async move { metadata(c).read_dir(q).await }).await?;
        let entry = |wire: v1::DirEntry| {
            Ok::<_, Error>(DirEntry {
                ino: InodeId(wire.ino),
                kind: convert::kind(wire.kind)?,
                attr: wire.attr.map(TryInto::try_into).transpose()?,
                name: wire.name.into(),
            })
        };
        let entries = page.entries.into_iter().map(entry).collect::<Result<_, _>>()?;
        Ok(DirPage { entries, end: page.end, parent: InodeId(page.parent) })
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` if it is none; no answer within the deadline.
    pub async fn readlink(&self, ino: InodeId) -> Result<Vec<u8>, Error> {
        let what = || format!("target of symbolic link {ino}");
        let request = v1::ReadLinkRequest { ino: ino.0 };
        let answer =
            self.shared.cluster.call(&what, request, |c, q| async move { metadata(c).read_link(q).await }).await?;
        Ok(answer.target.into())
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    /// `NotFound`, `NoAttribute`; no answer within the deadline.
    pub async fn getxattr(&self, ino: InodeId, name: &[u8]) -> Result<Vec<u8>, Error> {
        let what = || format!("attribute \"{}\" of inode {ino}", name.escape_ascii());
        let request = v1::GetXattrRequest { ino: ino.0, name: bytes(name) };
        let answer =
            self.shared.cluster.call(&what, request, |c, q| async move { metadata(c).get_xattr(q).await }).await?;
        Ok(answer.value.into())
    }

    /// Names of the extended attributes.
    ///
    /// # Errors
    /// `NotFound`; no answer within the deadline.
    pub async fn listxattr(&self, ino: InodeId) -> Result<Vec<Vec<u8>>, Error> {
        let what = || format!("attribute names of inode {ino}");
        let request = v1::ListXattrRequest { ino: ino.0 };
        let answer =
            self.shared.cluster.call(&what, request, |c, q| async move { metadata(c).list_xattr(q).await }).await?;
        Ok(answer.names.into_iter().map(Into::into).collect())
    }

    /// Space and inodes.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn statfs(&self) -> Result<StatFs, Error> {
        let what = || "space of the cluster".to_owned();
        let request = v1::StatFsRequest {};
        let answer =
            self.shared.cluster.call(&what, request, |c, q| async move { metadata(c).stat_fs(q).await }).await?;
        Ok(StatFs {
            capacity_bytes: answer.capacity_bytes,
            used_bytes: answer.used_bytes,
            available_bytes: answer.available_bytes,
            inodes: answer.inodes,
            replication: answer.replication,
        })
    }

    /// Creates a file, or finds the one that has the name. Other clients see a new file when its writer publishes it.
    ///
    /// # Errors
    /// `AlreadyExists` if exclusive, `NotFound`, `NotDirectory`, `NameTooLong`; no answer within the deadline.
    pub async fn create(&self, parent: InodeId, name: &[u8], file: NewFile) -> Result<Created, Error> {
        check("creating", parent, name)?;
        let NewFile { mode, uid, gid, exclusive } = file;
        let op = Op::Create(v1::Create { parent: parent.0, name: bytes(name), mode, uid, gid, exclusive });
        let what = format!("creating {}", Entry(parent, name));
        let (session, answer) = self.shared.cluster.mutate(what, op).await?;
        let file_id = match answer.file_id.is_empty() {
            true => None,
            false => Some(convert::file_id(&answer.file_id)?),
        };
        crash::point(Point::CreateAnswered);
        Ok(Created { attr: attr(answer.attr)?, file_id, existed: answer.existed, session: session.id })
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`, `NotDirectory`, `NameTooLong`; no answer within the deadline.
    pub async fn mkdir(&self, parent: InodeId, name: &[u8], mode: u32, uid: u32, gid: u32) -> Result<Attr, Error> {
        check("making directory", parent, name)?;
        let op = Op::Mkdir(v1::Mkdir { parent: parent.0, name: bytes(name), mode, uid, gid });
        attr(self.change(format!("making directory {}", Entry(parent, name)), op).await?.attr)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`Dfs::mkdir`]; `NameTooLong` also for a target over 4096 bytes.
    pub async fn symlink(
        &self,
        parent: InodeId,
        name: &[u8],
        target: &[u8],
        uid: u32,
        gid: u32,
    ) -> Result<Attr, Error> {
        check("making symbolic link", parent, name)?;
        let op = Op::Symlink(v1::Symlink { parent: parent.0, name: bytes(name), target: bytes(target), uid, gid });
        attr(self.change(format!("making symbolic link {}", Entry(parent, name)), op).await?.attr)
    }

    /// Makes a pipe, socket, device or empty file.
    ///
    /// # Errors
    /// As [`Dfs::mkdir`].
    pub async fn mknod(&self, parent: InodeId, name: &[u8], node: NewNode) -> Result<Attr, Error> {
        check("making node", parent, name)?;
        let op = Op::Mknod(v1::Mknod {
            parent: parent.0,
            name: bytes(name),
            kind: convert::kind_to_wire(node.kind).into(),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
        });
        attr(self.change(format!("making node {}", Entry(parent, name)), op).await?.attr)
    }

    /// Gives an inode one more name.
    ///
    /// # Errors
    /// As [`Dfs::mkdir`]; `NotPermitted` for a directory.
    pub async fn link(&self, ino: InodeId, parent: InodeId, name: &[u8]) -> Result<Attr, Error> {
        check("linking", parent, name)?;
        let op = Op::Link(v1::Link { ino: ino.0, parent: parent.0, name: bytes(name) });
        attr(self.change(format!("linking inode {ino} as {}", Entry(parent, name)), op).await?.attr)
    }

    /// Removes a name that is not a directory.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`; no answer within the deadline.
    pub async fn unlink(&self, parent: InodeId, name: &[u8]) -> Result<(), Error> {
        check("removing", parent, name)?;
        let op = Op::Unlink(v1::Unlink { parent: parent.0, name: bytes(name) });
        self.change(format!("removing {}", Entry(parent, name)), op).await.map(drop)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`; no answer within the deadline.
    pub async fn rmdir(&self, parent: InodeId, name: &[u8]) -> Result<(), Error> {
        check("removing directory", parent, name)?;
        let op = Op::Rmdir(v1::Rmdir { parent: parent.0, name: bytes(name) });
        self.change(format!("removing directory {}", Entry(parent, name)), op).await.map(drop)
    }

    /// Renames; replaces what has the new name unless `flags` say otherwise.
    ///
    /// # Errors
    /// As rename(2), renameat2(2).
    pub async fn rename(
        &self,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<(), Error> {
        check("renaming", parent, name)?;
        check("renaming to", new_parent, new_name)?;
        let op = Op::Rename(v1::Rename {
            parent: parent.0,
            name: bytes(name),
            new_parent: new_parent.0,
            new_name: bytes(new_name),
            no_replace: flags.no_replace,
            exchange: flags.exchange,
        });
        let what = format!("renaming {} to {}", Entry(parent, name), Entry(new_parent, new_name));
        self.change(what, op).await.map(drop)
    }

    /// Changes attributes. The size is changed by a [`crate::Writer`].
    ///
    /// # Errors
    /// `NotFound`; no answer within the deadline.
    pub async fn setattr(&self, ino: InodeId, change: SetAttr) -> Result<Attr, Error> {
        let op = Op::SetAttr(convert::set_attr_to_wire(ino, &change));
        attr(self.change(format!("changing attributes of inode {ino}"), op).await?.attr)
    }

    /// Sets an extended attribute. `create`: it must not exist; `replace`: it must.
    ///
    /// # Errors
    /// `AlreadyExists`, `NoAttribute`, `TooLarge`; no answer within the deadline.
    pub async fn setxattr(
        &self,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
    ) -> Result<(), Error> {
        let op = Op::SetXattr(v1::SetXattr { ino: ino.0, name: bytes(name), value: bytes(value), create, replace });
        self.change(format!("setting attribute \"{}\" of inode {ino}", name.escape_ascii()), op).await.map(drop)
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`; no answer within the deadline.
    pub async fn removexattr(&self, ino: InodeId, name: &[u8]) -> Result<(), Error> {
        let op = Op::RemoveXattr(v1::RemoveXattr { ino: ino.0, name: bytes(name) });
        self.change(format!("removing attribute \"{}\" of inode {ino}", name.escape_ascii()), op).await.map(drop)
    }

    /// Walks a path from the root, without following symbolic links.
    ///
    /// # Errors
    /// As [`Dfs::lookup`]; `InvalidArgument` for `..`.
    pub async fn resolve(&self, path: &[u8]) -> Result<Attr, Error> {
        let shown = || format!("path \"{}\"", path.escape_ascii());
        let parts = name::split(path).map_err(|code| Error::new(code, format!("{}: {code}", shown())))?;
        let Some((last, dirs)) = parts.split_last() else { return self.getattr(InodeId::ROOT).await };
        let mut parent = InodeId::ROOT;
        for dir in dirs {
            parent = self.lookup(parent, dir).await.map_err(|error| error.context(&shown()))?.ino;
        }
        self.lookup(parent, last).await.map_err(|error| error.context(&shown()))
    }
}
