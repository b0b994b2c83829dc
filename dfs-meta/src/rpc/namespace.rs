//! Reads of the tree.

use dfs_common::{ErrorCode, InodeId};
use dfs_proto::{convert, status::RpcError, v1};

use super::{Service, session};
use crate::fsm::{Node, read::READDIR_MAX, record::Share};

impl Service {
    pub(super) async fn handle_lookup(&self, request: v1::LookupRequest) -> Result<v1::AttrResponse, RpcError> {
        let (parent, name) = (InodeId(request.parent), request.name);
        let found = self.raft.read(|state| state.lookup(session(request.session_id), parent, &name)).await?;
        let attr = found.map_err(|code| {
            RpcError::new(code, format!("\"{}\" in directory {parent}: {code}", name.escape_ascii()))
        })?;
        Ok(v1::AttrResponse { attr: Some((&attr).into()) })
    }

    pub(super) async fn handle_get_attr(&self, request: v1::GetAttrRequest) -> Result<v1::AttrResponse, RpcError> {
        let ino = InodeId(request.ino);
        let found = self.raft.read(|state| state.getattr(session(request.session_id), ino)).await?;
        let attr = found.map_err(|code| of_inode(code, ino))?;
        Ok(v1::AttrResponse { attr: Some((&attr).into()) })
    }

    pub(super) async fn handle_read_dir(&self, request: v1::ReadDirRequest) -> Result<v1::ReadDirResponse, RpcError> {
        let ino = InodeId(request.ino);
        let limit = match request.limit as usize {
            0 => READDIR_MAX,
            limit => limit.min(READDIR_MAX),
        };
        let own = session(request.session_id);
        let page = self.raft.read(|state| state.readdir(own, ino, &request.after, limit)).await?;
        let page = page.map_err(|code| of_inode(code, ino))?;
        let entries = page
            .entries
            .into_iter()
            .map(|entry| v1::DirEntry {
                name: entry.name.into(),
                ino: entry.attr.ino.0,
                kind: convert::kind_to_wire(entry.attr.kind).into(),
                attr: request.with_attrs.then(|| (&entry.attr).into()),
            })
            .collect();
        Ok(v1::ReadDirResponse { entries, end: page.end, parent: page.parent.0 })
    }

    pub(super) async fn handle_read_link(
        &self,
        request: v1::ReadLinkRequest,
    ) -> Result<v1::ReadLinkResponse, RpcError> {
        let ino = InodeId(request.ino);
        let target = self.raft.read(|state| state.readlink(ino)).await?.map_err(|code| of_inode(code, ino))?;
        Ok(v1::ReadLinkResponse { target: target.into() })
    }

    pub(super) async fn handle_get_xattr(
        &self,
        request: v1::GetXattrRequest,
    ) -> Result<v1::GetXattrResponse, RpcError> {
        let ino = InodeId(request.ino);
        let value = self.raft.read(|state| state.getxattr(ino, &request.name)).await?;
        Ok(v1::GetXattrResponse { value: value.map_err(|code| of_inode(code, ino))?.into() })
    }

    pub(super) async fn handle_list_xattr(
        &self,
        request: v1::ListXattrRequest,
    ) -> Result<v1::ListXattrResponse, RpcError> {
        let ino = InodeId(request.ino);
        let names = self.raft.read(|state| state.listxattr(ino)).await?.map_err(|code| of_inode(code, ino))?;
        Ok(v1::ListXattrResponse { names: names.into_iter().map(Into::into).collect() })
    }

    /// Room in the cluster: of the nodes that are not lost, raw bytes. What only the trash holds is given up when it is needed,
    /// so it counts as available.
    pub(super) async fn handle_stat_fs(&self, _: v1::StatFsRequest) -> Result<v1::StatFsResponse, RpcError> {
        let (nodes, counters, replication) = self
            .raft
            .read(|state| {
                let counted = |node: &&Node| node.share() == Share::Counted;
                let nodes: Vec<Node> = state.nodes().filter(counted).cloned().collect();
                (nodes, state.counters(), state.settings().replication)
            })
            .await?;
        let figures = self.control.figures(&nodes)?;
        let sum = |of: fn(&crate::control::NodeFigures) -> u64| figures.iter().map(of).fold(0, u64::saturating_add);
        let (capacity, free) = (sum(|f| f.capacity_bytes), sum(|f| f.capacity_bytes.saturating_sub(f.used_bytes)));
        let available = free.saturating_add(counters.trash_copy_bytes).min(capacity);
        let used = sum(|f| f.used_bytes).saturating_sub(available - free);
        Ok(v1::StatFsResponse {
            capacity_bytes: sum(|f| f.capacity_bytes),
            used_bytes: used,
            available_bytes: available,
            inodes: counters.inodes,
            replication,
        })
    }
}

/// An error about an inode.
pub(super) fn of_inode(code: ErrorCode, ino: InodeId) -> RpcError {
    RpcError::new(code, format!("inode {ino}: {code}"))
}
