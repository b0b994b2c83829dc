//! Extended attributes: those that users keep, and two that dfs answers itself.
//!
//! `user.dfs.sha256` and `user.dfs.replicas` can be read but are not listed, since `cp -a` copies what is listed.

use std::fmt::Write as _;

use dfs_common::{InodeId, Layout};
use sha2::{Digest as _, Sha256};

use super::{
    Fs,
    backend::{Backend, VersionReader as _},
    error::Error,
    inode::{lock, open_published},
};

/// Everything below this belongs to dfs.
const VIRTUAL_PREFIX: &[u8] = b"user.dfs.";
/// Kernel's limit of a value (XATTR_SIZE_MAX), bytes.
const VALUE_MAX: usize = 64 << 10;
/// Bytes read at a time for a checksum.
const HASH_STEP: usize = 1 << 20;

/// Asked for by the kernel on its own account, before writes and at exec; a round trip to the cluster each time would cost
/// more than the write. dfs keeps none of them, so the answer is known here: not that a file lacks them but that no file has
/// them, after which `ls -l`, too, does not ask for each file (three times as fast on a tree that was seen before).
const KERNEL_NAMES: [&[u8]; 6] = [
    b"security.capability",
    b"security.selinux",
    b"security.ima",
    b"security.evm",
    b"security.apparmor",
    b"security.SMACK64",
];

/// setxattr(2) flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SetMode {
    /// It must not exist.
    pub(crate) create: bool,
    /// It must exist.
    pub(crate) replace: bool,
}

fn check_kept(name: &[u8]) -> Result<(), Error> {
    if name.starts_with(VIRTUAL_PREFIX) {
        return Err(Error::refused(
            libc::EPERM,
            "attributes below user.dfs. are answered by dfs and cannot be changed",
        ));
    }
    if is_kept(name) { Ok(()) } else { Err(Error::refused(libc::EOPNOTSUPP, "dfs does not keep this attribute")) }
}

fn is_kept(name: &[u8]) -> bool {
    [&b"user."[..], b"trusted.", b"security."].iter().any(|prefix| name.starts_with(prefix))
        && !KERNEL_NAMES.contains(&name)
}

impl<B: Backend> Fs<B> {
    /// Value of an attribute.
    pub(crate) async fn getxattr(&self, ino: InodeId, name: &[u8]) -> Result<Vec<u8>, Error> {
        match name {
            b"user.dfs.sha256" => self.sha256(ino).await,
            b"user.dfs.replicas" => self.replicas(ino).await,
            _ if name.starts_with(VIRTUAL_PREFIX) => Err(Error::refused(libc::ENODATA, "no such attribute")),
            _ if is_kept(name) => Ok(self.backend.getxattr(ino, name).await?),
            _ => Err(Error::refused(libc::EOPNOTSUPP, "dfs does not keep this attribute")),
        }
    }

    /// Names of all attributes that are kept. Those below trusted. are for root alone; the kernel guards their values, and
    /// leaves their names to the file system.
    pub(crate) async fn listxattr(&self, ino: InodeId, is_root: bool) -> Result<Vec<u8>, Error> {
        let mut names = self.backend.listxattr(ino).await?;
        names.retain(|name| is_root || !name.starts_with(b"trusted."));
        Ok(names.into_iter().flat_map(|name| name.into_iter().chain([0])).collect())
    }

    /// Sets an attribute.
    pub(crate) async fn setxattr(&self, ino: InodeId, name: &[u8], value: &[u8], mode: SetMode) -> Result<(), Error> {
        check_kept(name)?;
        self.backend.setxattr(ino, name, value, mode.create, mode.replace).await?;
        self.coherence.changed_here(ino);
        Ok(())
    }

    /// Removes an attribute.
    pub(crate) async fn removexattr(&self, ino: InodeId, name: &[u8]) -> Result<(), Error> {
        check_kept(name)?;
        self.backend.removexattr(ino, name).await?;
        self.coherence.changed_here(ino);
        Ok(())
    }

    /// SHA-256 of the published content, as `sha256sum` prints it. Of a file of one chunk that fills it, metadata knows it;
    /// else the content is read and verified, once a version.
    async fn sha256(&self, ino: InodeId) -> Result<Vec<u8>, Error> {
        let reader = open_published(&*self.backend, ino).await.map_err(no_file)?;
        let Some(reader) = reader else { return Err(Error::refused(libc::ENODATA, "never published")) };
        let Layout::Replicated { file_id, size, chunks, .. } = reader.layout();
        let (file_id, size) = (*file_id, *size);
        if let [chunk] = chunks.as_slice()
            && u64::from(chunk.length) == size
        {
            return Ok(hex(&chunk.sha256));
        }
        if let Some(known) = lock(&self.sha256s).get(&file_id) {
            return Ok(hex(known));
        }
        let mut hash = Sha256::new();
        let mut offset = 0;
        while offset < size {
            let pieces = reader.read_at(offset, HASH_STEP).await?;
            let before = offset;
            for piece in pieces {
                offset += piece.len() as u64;
                hash.update(&piece);
            }
            if offset == before {
                return Err(Error::refused(libc::EIO, "the version is shorter than its layout says"));
            }
        }
        let digest: [u8; 32] = hash.finalize().into();
        lock(&self.sha256s).put(file_id, digest);
        Ok(hex(&digest))
    }

    /// Which nodes hold which chunk, one line a chunk: index, then names. Cut where a value ends.
    async fn replicas(&self, ino: InodeId) -> Result<Vec<u8>, Error> {
        let (_, layout, nodes) = self.backend.layout(ino).await.map_err(|error| no_file(error.into()))?;
        let Layout::Replicated { chunks, .. } = layout;
        let mut text = String::new();
        for (index, chunk) in chunks.iter().enumerate() {
            let mut line = format!("{index}:");
            for id in &chunk.replicas {
                match nodes.iter().find(|node| node.id == *id) {
                    Some(node) => write!(line, " {}", node.name),
                    None => write!(line, " node {id}"),
                }
                .expect("writing to a String cannot fail");
            }
            if chunk.is_hole() {
                line.push_str(" hole");
            }
            if text.len() + line.len() + 64 > VALUE_MAX {
                writeln!(text, "... {} more chunks", chunks.len() - index).expect("writing to a String cannot fail");
                break;
            }
            text.push_str(&line);
            text.push('\n');
        }
        Ok(text.into_bytes())
    }
}

/// Only files have versions.
fn no_file(error: Error) -> Error {
    match error.errno() {
        libc::EISDIR | libc::EINVAL | libc::ENOENT | libc::ESTALE => {
            Error::refused(libc::ENODATA, "only published files have this attribute")
        }
        _ => error,
    }
}

fn hex(digest: &[u8; 32]) -> Vec<u8> {
    let mut text = String::with_capacity(64);
    for byte in digest {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text.into_bytes()
}
