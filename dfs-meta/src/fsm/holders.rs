//! Which nodes hold a chunk, and which chunks a node holds.
//!
//! The index from nodes to chunks holds of each chunk id its first four bytes only: there is an entry for each copy in the
//! cluster, and the record has the rest. Chunks that begin alike share an entry, which stays while one of them is held. Ids are
//! hashes, so they are few: of a billion chunks in the cluster one in five has another one that begins alike.

use std::ops::Deref;

use dfs_common::{ChunkId, NodeId};

use super::{record::Chunk, state::State};

/// Nodes that hold a chunk, in ascending order. Three, the usual number, take no allocation; the whole is two words, because
/// there is one in every chunk record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holders(Repr);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Repr {
    /// The first `length` of `nodes`; the others are 0, so that equal lists are equal.
    Few { length: u8, nodes: [NodeId; FEW] },
    #[expect(clippy::box_collection, reason = "one word instead of three")]
    Many(Box<Vec<NodeId>>),
}

const FEW: usize = 3;
const NOBODY: NodeId = NodeId(0);

impl Holders {
    /// Nobody.
    pub(super) const NONE: Self = Self(Repr::Few { length: 0, nodes: [NOBODY; FEW] });

    /// Enters a node; one that is there already stays.
    pub(super) fn add(&mut self, node: NodeId) {
        if let Err(at) = self.binary_search(&node) {
            let mut nodes = self.to_vec();
            nodes.insert(at, node);
            *self = nodes.into();
        }
    }

    /// Takes a node out.
    pub(super) fn remove(&mut self, node: NodeId) {
        if let Ok(at) = self.binary_search(&node) {
            let mut nodes = self.to_vec();
            nodes.remove(at);
            *self = nodes.into();
        }
    }
}

impl From<Vec<NodeId>> for Holders {
    /// `sorted` is in ascending order.
    fn from(sorted: Vec<NodeId>) -> Self {
        match u8::try_from(sorted.len()) {
            Ok(length) if sorted.len() <= FEW => {
                let mut nodes = [NOBODY; FEW];
                nodes[..sorted.len()].copy_from_slice(&sorted);
                Self(Repr::Few { length, nodes })
            }
            Ok(_) | Err(_) => Self(Repr::Many(Box::new(sorted))),
        }
    }
}

impl Deref for Holders {
    type Target = [NodeId];

    fn deref(&self) -> &[NodeId] {
        match &self.0 {
            Repr::Few { length, nodes } => &nodes[..usize::from(*length)],
            Repr::Many(nodes) => nodes,
        }
    }
}

impl<'a> IntoIterator for &'a Holders {
    type Item = &'a NodeId;
    type IntoIter = std::slice::Iter<'a, NodeId>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// What the index holds of a chunk id; in the same order.
pub(super) fn prefix(id: ChunkId) -> u32 {
    let head = id.0.first_chunk().expect("an id has 32 bytes");
    u32::from_be_bytes(*head)
}

/// The smallest id that begins so.
fn first_with(prefix: u32) -> ChunkId {
    let mut id = ChunkId([0; 32]);
    id.0[..4].copy_from_slice(&prefix.to_be_bytes());
    id
}

impl State {
    /// A node began to hold a chunk.
    pub(super) fn index_copy(&mut self, node: NodeId, id: ChunkId) {
        self.chunks_by_node.entry(node).or_default().insert(prefix(id));
    }

    /// A node ceased to hold a chunk; its record is changed or gone already, or will be at once.
    pub(super) fn unindex_copy(&mut self, node: NodeId, id: ChunkId) {
        if self.held_alike(node, prefix(id)).any(|(other, _)| other != id) {
            return;
        }
        if let Some(held) = self.chunks_by_node.get_mut(&node) {
            held.remove(&prefix(id));
            if held.is_empty() {
                self.chunks_by_node.remove(&node);
            }
        }
    }

    /// The chunks that a node holds among those whose ids begin alike.
    fn held_alike(&self, node: NodeId, prefix: u32) -> impl Iterator<Item = (ChunkId, &Chunk)> {
        self.chunks
            .range(first_with(prefix)..)
            .take_while(move |(id, _)| super::holders::prefix(**id) == prefix)
            .filter(move |(_, chunk)| chunk.replicas.contains(&node))
            .map(|(id, chunk)| (*id, chunk))
    }

    /// Referenced chunks that a node holds according to the records, in order, behind `after`.
    pub fn chunks_on(&self, node: NodeId, after: Option<ChunkId>) -> impl Iterator<Item = ChunkId> + '_ {
        let start = after.map_or(0, prefix);
        let held = self.chunks_by_node.get(&node).into_iter().flat_map(move |held| held.range(start..));
        held.flat_map(move |prefix| self.held_alike(node, *prefix))
            .map(|(id, _)| id)
            .filter(move |id| after.is_none_or(|after| *id > after))
    }

    /// Runs `each` on every chunk that a node held when it began.
    pub(super) fn for_chunks_on(&mut self, node: NodeId, mut each: impl FnMut(&mut Self, ChunkId)) {
        let Some(held) = self.chunks_by_node.get(&node).cloned() else { return };
        let mut alike = Vec::new();
        for prefix in &held {
            alike.extend(self.held_alike(node, *prefix).map(|(id, _)| id));
            alike.drain(..).for_each(|id| each(self, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_holders_grows_and_shrinks() {
        let mut holders = Holders::NONE;
        for n in [5, 1, 3, 2, 4, 3] {
            holders.add(NodeId(n));
        }
        assert_eq!(&*holders, [1, 2, 3, 4, 5].map(NodeId));
        for n in [1, 4, 9] {
            holders.remove(NodeId(n));
        }
        assert_eq!(holders, vec![NodeId(2), NodeId(3), NodeId(5)].into());
        holders.remove(NodeId(3));
        assert_eq!(holders, vec![NodeId(2), NodeId(5)].into());
        assert_eq!(size_of::<Holders>(), 16);
        // What a file costs is mostly this; see docs/benchmarks.md before it grows.
        assert_eq!(size_of::<Chunk>(), 72);
    }
}
