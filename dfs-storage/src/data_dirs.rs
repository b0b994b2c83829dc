//! All data directories of a node: that they belong together.
//!
//! A node is known by one uuid, which stands in each of its directories, and each directory has a uuid of its own. A directory that
//! is new becomes one of the node's. What belongs to another node or cluster, is a copy of another one, or is in use elsewhere
//! stops the start: to go on would mix what must not be mixed. A directory that only cannot be read or written does not, as long as
//! another one says who the node is: a disk may fail alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use dfs_common::Uuid;

use crate::data_dir::{Claim, DataDir, DataDirError, Membership, Stamp};

/// The directories of a node, taken into use.
#[derive(Debug)]
pub struct DataDirs {
    /// The node's identity for ever.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Cluster and number, if it was registered before.
    pub membership: Option<Membership>,
    /// In the order in which they were given, with why one cannot be used.
    pub dirs: Vec<(PathBuf, Result<DataDir, DataDirError>)>,
}

impl DataDirs {
    /// Takes `paths` into use, makes and stamps those that are new.
    ///
    /// # Errors
    /// Why they cannot be used together, or that none can be used, with what to do.
    pub fn open(paths: &[PathBuf], name: &str) -> Result<Self, DataDirError> {
        let mut claims = Vec::with_capacity(paths.len());
        let mut seen = Vec::new();
        for path in paths {
            // What cannot be resolved fails below, with a better word.
            let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            if seen.contains(&real) {
                return Err(DataDirError::Twice { path: path.clone() });
            }
            seen.push(real);
            claims.push((path.clone(), Claim::take(path)));
        }
        if let Some(at) = claims.iter().position(|(_, c)| c.as_ref().is_err_and(|error| !is_failure_of_disk(error))) {
            return Err(claims.swap_remove(at).1.expect_err("looked at above"));
        }
        let Some((uuid, membership)) = agree(&claims)? else { return Self::new_node(claims, name) };
        let mut dirs = Vec::with_capacity(claims.len());
        for (path, claim) in claims {
            let dir = claim.and_then(|claim| claim.into_dir(uuid, name, membership));
            dirs.push((path, dir));
        }
        Self { uuid, name: name.into(), membership, dirs }.with_one_that_works()
    }

    /// Nobody says who the node is. A directory that cannot be read might, so a new identity is made only without one.
    fn new_node(claims: Vec<(PathBuf, Result<Claim, DataDirError>)>, name: &str) -> Result<Self, DataDirError> {
        let uuid = Uuid::random();
        let claims = claims.into_iter().map(|(path, claim)| Ok((path, claim?))).collect::<Result<Vec<_>, _>>()?;
        let mut dirs = Vec::with_capacity(claims.len());
        for (path, claim) in claims {
            dirs.push((path, Ok(claim.into_dir(uuid, name, None)?)));
        }
        Ok(Self { uuid, name: name.into(), membership: None, dirs })
    }

    fn with_one_that_works(mut self) -> Result<Self, DataDirError> {
        let works = self.dirs.iter().any(|(_, dir)| dir.is_ok());
        match self.dirs.iter().position(|(_, dir)| dir.is_err()) {
            Some(at) if !works => Err(self.dirs.swap_remove(at).1.expect_err("no directory works")),
            _ => Ok(self),
        }
    }
}

/// Who the node is by what the directories say, if they agree; `None` if none says it.
fn agree(
    claims: &[(PathBuf, Result<Claim, DataDirError>)],
) -> Result<Option<(Uuid, Option<Membership>)>, DataDirError> {
    let stamped: Vec<(&Path, &Stamp)> = claims
        .iter()
        .filter_map(|(path, claim)| Some((path.as_path(), claim.as_ref().ok()?.stamp.as_ref()?)))
        .collect();
    let Some((first, owner)) = stamped.first() else { return Ok(None) };
    let mut membership: Option<(Membership, &Path)> = None;
    for (at, (path, stamp)) in stamped.iter().enumerate() {
        if stamp.uuid != owner.uuid {
            let (ours, theirs) = (owner.name.clone(), stamp.name.clone());
            return Err(DataDirError::OtherOwner { path: path.into(), other: first.into(), ours, theirs });
        }
        let twin = stamped[..at].iter().find(|(_, other)| stamp.disk.is_some() && other.disk == stamp.disk);
        if let (Some((other, _)), Some(disk)) = (twin, stamp.disk) {
            return Err(DataDirError::Copied { path: path.into(), other: other.into(), disk });
        }
        match (membership, stamp.membership) {
            (Some((known, other)), Some(new)) if known.cluster != new.cluster => {
                let (ours, theirs) = (known.cluster.to_string(), new.cluster.to_string());
                return Err(DataDirError::Mixed { path: path.into(), other: other.into(), ours, theirs });
            }
            (Some((known, _)), Some(new)) if known.epoch == new.epoch && known.node != new.node => {
                return Err(DataDirError::OtherNode { path: path.into(), ours: new.node, theirs: known.node });
            }
            // One that was away during a restore has the older number; it is stamped anew.
            (Some((known, _)), Some(new)) if known.epoch >= new.epoch => {}
            (_, Some(new)) => membership = Some((new, path)),
            (_, None) => {}
        }
    }
    Ok(Some((owner.uuid, membership.map(|(membership, _)| membership))))
}

/// Whether a directory cannot be used because of its disk, rather than because of what is on it.
fn is_failure_of_disk(error: &DataDirError) -> bool {
    matches!(error, DataDirError::Io { .. })
}

#[cfg(test)]
mod tests {
    use dfs_common::{ClusterId, NodeId};

    use super::*;

    const MEMBER: Membership = Membership { cluster: ClusterId([1; 16]), node: NodeId(4), epoch: 0 };

    fn open(paths: &[PathBuf]) -> Result<DataDirs, DataDirError> {
        DataDirs::open(paths, "storage-1")
    }

    fn joined(paths: &[PathBuf], membership: Membership) -> DataDirs {
        let mut dirs = open(paths).expect("opens");
        for (_, dir) in &mut dirs.dirs {
            dir.as_mut().expect("works").join(membership).expect("joins");
        }
        dirs
    }

    #[test]
    fn a_directory_that_is_added_becomes_one_of_the_node() {
        let tmp = tempfile::tempdir().expect("tmp");
        let [a, b, c] = ["a", "b", "c"].map(|name| tmp.path().join(name));
        let dirs = joined(&[a.clone(), b.clone()], MEMBER);
        let ids: Vec<Uuid> = dirs.dirs.iter().map(|(_, dir)| dir.as_ref().expect("works").disk()).collect();
        assert_ne!(ids[0], ids[1]);
        let uuid = dirs.uuid;
        drop(dirs);
        let dirs = open(&[c.clone(), b.clone(), a.clone()]).expect("opens");
        assert_eq!((dirs.uuid, dirs.membership), (uuid, Some(MEMBER)));
        assert_eq!(dirs.dirs[2].1.as_ref().expect("works").disk(), ids[0]);
        assert_eq!(dirs.dirs[0].1.as_ref().expect("works").membership(), Some(MEMBER));
        drop(dirs);
        // Alone it knows whose it is.
        assert_eq!(open(&[c]).expect("opens").uuid, uuid);
        assert!(matches!(open(&[a.clone(), a.join("../a")]), Err(DataDirError::Twice { .. })));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let tmp = tempfile::tempdir().expect("tmp");
        let [a, b, c, copy] = ["a", "b", "c", "copy"].map(|name| tmp.path().join(name));
        drop(joined(std::slice::from_ref(&a), MEMBER));
        drop(joined(std::slice::from_ref(&b), MEMBER));
        assert!(matches!(open(&[a.clone(), b]), Err(DataDirError::OtherOwner { .. })), "another node's");
        fs::create_dir(&copy).expect("mkdir");
        fs::copy(a.join("IDENTITY"), copy.join("IDENTITY")).expect("copy");
        assert!(matches!(open(&[a.clone(), copy.clone()]), Err(DataDirError::Copied { .. })), "a copy");
        let text = fs::read_to_string(copy.join("IDENTITY")).expect("read");
        let other: String = text
            .lines()
            .filter(|line| !line.starts_with("disk_uuid"))
            .map(|line| line.replace(&MEMBER.cluster.to_string(), &ClusterId([2; 16]).to_string()) + "\n")
            .collect();
        fs::write(copy.join("IDENTITY"), other).expect("write");
        assert!(matches!(open(&[a.clone(), copy]), Err(DataDirError::Mixed { .. })), "another cluster's");
        fs::create_dir(&c).expect("mkdir");
        fs::write(c.join("holiday.jpg"), b"x").expect("write");
        assert!(matches!(open(&[a, c]), Err(DataDirError::Foreign { .. })));
    }

    #[test]
    fn a_disk_that_cannot_be_read_does_not_stop_the_others_but_never_makes_a_new_node() {
        let tmp = tempfile::tempdir().expect("tmp");
        let (a, new, file) = (tmp.path().join("a"), tmp.path().join("new"), tmp.path().join("file"));
        let uuid = joined(std::slice::from_ref(&a), MEMBER).uuid;
        fs::write(&file, b"no directory").expect("write");
        let broken = file.join("below");
        let dirs = open(&[broken.clone(), a]).expect("opens");
        assert!(dirs.uuid == uuid && dirs.dirs[0].1.is_err() && dirs.dirs[1].1.is_ok());
        let error = open(&[new.clone(), broken]).expect_err("who is it?");
        assert!(matches!(error, DataDirError::Io { .. }), "{error}");
        assert!(!new.join("IDENTITY").exists(), "nothing is stamped");
    }
}
