//! What a heartbeat says.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use dfs_common::{ChunkId, NodeId, disk::DiskReport};
use dfs_proto::{
    convert::id_bytes,
    status::RpcError,
    v1::{HeartbeatRequest, HeldChunk, InventoryPage, QuarantinedCopy},
};

use crate::{
    changes::BadCopy,
    engine::{ChunkEngine as _, Held, Page, Usage},
    node::Node,
    scrub::Scrub,
};

/// A page of the inventory that was asked for.
#[derive(Debug)]
pub(super) struct Inventory {
    pub(super) run: u64,
    pub(super) after: Option<ChunkId>,
    pub(super) page: Result<Page, RpcError>,
}

impl Inventory {
    /// The page for the wire, brought up to date; call it after the difference of the same heartbeat was taken. `None` if
    /// nothing of it is left although more follows: metadata could not tell where it ended, so it must be read again.
    fn to_wire(&self, node: &Node) -> Option<InventoryPage> {
        let mut page = self.page.as_ref().ok()?.clone();
        node.changes.adjust(&mut page, self.after);
        if page.chunks.is_empty() && !page.last {
            return None;
        }
        Some(InventoryPage {
            after: self.after.map(|id| id_bytes(id.as_bytes())).unwrap_or_default(),
            chunks: held(&page.chunks),
            last: page.last,
            run: self.run,
        })
    }
}

/// The message.
pub(super) fn heartbeat(
    node: &Node,
    incarnation: u64,
    usage: Usage,
    unreachable: &[NodeId],
    inventory: Option<&Inventory>,
) -> Result<HeartbeatRequest, RpcError> {
    let member = node.member()?;
    let difference = node.changes.difference();
    let inventory = inventory.and_then(|inventory| inventory.to_wire(node));
    Ok(HeartbeatRequest {
        node_id: member.node.0,
        incarnation,
        capacity_bytes: usage.capacity_bytes,
        used_bytes: usage.used_bytes,
        chunk_count: usage.chunks,
        added: held(&difference.added),
        removed: ids(&difference.removed),
        deleted: ids(&difference.deleted),
        unreachable: unreachable.iter().map(|node| node.0).collect(),
        inventory_seq: difference.seq,
        active_streams: node.counters.streams.load(Ordering::Relaxed),
        inventory,
        quarantined: difference.set_aside.iter().map(|copy| quarantined(copy)).collect(),
        notices: difference.notices.iter().map(Into::into).collect(),
        ..HeartbeatRequest::default()
    })
}

fn quarantined(copy: &BadCopy) -> QuarantinedCopy {
    QuarantinedCopy {
        chunk_id: id_bytes(copy.id.as_bytes()),
        disk_id: id_bytes(copy.disk.as_bytes()),
        disk: copy.path.clone(),
        reason: copy.reason.clone(),
    }
}

/// What the disks say of themselves. Asks their file systems.
pub(super) fn disks(scrubs: &[Arc<Scrub>]) -> Vec<DiskReport> {
    scrubs.iter().map(|scrub| disk(scrub)).collect()
}

fn disk(scrub: &Scrub) -> DiskReport {
    let disk = scrub.disk();
    let asked = disk.with(|engine| Ok((engine.usage()?, engine.quarantine_size())));
    // A disk that does not answer and was not taken out yet is shown with nothing on it, for these seconds.
    let (usage, quarantined) = asked.unwrap_or_default();
    DiskReport {
        id: disk.id(),
        path: disk.path().display().to_string(),
        failure: disk.failure(),
        capacity_bytes: usage.capacity_bytes,
        used_bytes: usage.used_bytes,
        chunk_count: usage.chunks,
        quarantined,
        scrub: scrub.report(),
    }
}

fn held(chunks: &[Held]) -> Vec<HeldChunk> {
    let wire = |held: &Held| HeldChunk {
        chunk_id: id_bytes(held.id.as_bytes()),
        file_id: id_bytes(held.file_id.as_bytes()),
        length: held.length,
    };
    chunks.iter().map(wire).collect()
}

fn ids(ids: &[ChunkId]) -> Vec<Bytes> {
    ids.iter().map(|id| id_bytes(id.as_bytes())).collect()
}
