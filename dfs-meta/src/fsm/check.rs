//! Invariants of the state, recounted from scratch. For tests and for an administrator's fsck: it visits everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dfs_common::{ChunkId, FileId, InodeId, NodeId, layout::chunk_count};
use imbl::OrdSet;

use super::{
    holders::prefix,
    record::{Body, DoomedOn, Share},
    session::OUTCOMES_MAX,
    state::State,
    trash::Cursor,
};

/// Checks every invariant.
///
/// # Errors
/// One line for each violation.
pub fn check(state: &State) -> Result<(), Vec<String>> {
    let mut check = Check { state, faults: Vec::new() };
    check.names();
    check.directories();
    check.unpublished();
    check.places();
    check.versions();
    check.trash();
    check.pending();
    check.references();
    check.replicas();
    check.figures();
    check.sessions_and_nodes();
    check.faults.extend(state.events.faults());
    if check.faults.is_empty() { Ok(()) } else { Err(check.faults) }
}

struct Check<'a> {
    state: &'a State,
    faults: Vec<String>,
}

impl Check<'_> {
    fn require(&mut self, holds: bool, fault: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(fault());
        }
    }

    /// Link counts are the names there are.
    fn names(&mut self) {
        let state = self.state;
        let mut names: BTreeMap<InodeId, u32> = BTreeMap::from([(InodeId::ROOT, 1)]);
        for ((parent, name), ino) in &state.dentries {
            *names.entry(*ino).or_default() += 1;
            let entry = || format!("\"{}\" in {parent}", name.escape_ascii());
            self.require(state.directory(*parent).is_ok(), || format!("{}: no such directory", entry()));
            self.require(state.inodes.contains_key(ino), || format!("{}: inode {ino} is not there", entry()));
            self.require(!state.unpublished.contains_key(ino), || format!("{}: {ino} is unpublished", entry()));
        }
        for ino in state.reservations.values() {
            *names.entry(*ino).or_default() += 1;
        }
        for (ino, inode) in &state.inodes {
            let counted = names.get(ino).copied().unwrap_or(0);
            self.require(counted == inode.names, || format!("inode {ino}: {} names, {counted} found", inode.names));
            let is_written = state.pending_by_ino.range((*ino, FileId([0; 16]))..).next().is_some_and(|p| p.0 == *ino);
            self.require(counted > 0 || is_written, || format!("inode {ino}: neither named nor written"));
            self.require(ino.0 < state.next_ino, || format!("inode {ino}: number not given yet"));
        }
    }

    /// Every directory hangs below the root, once.
    fn directories(&mut self) {
        let state = self.state;
        let mut subdirs: BTreeMap<InodeId, u32> = BTreeMap::new();
        for ((parent, _), ino) in &state.dentries {
            if let Some(Body::Directory { parent: above, .. }) = state.inodes.get(ino).map(|inode| &inode.body) {
                *subdirs.entry(*parent).or_default() += 1;
                self.require(above == parent, || format!("directory {ino} in {parent} says it is in {above}"));
            }
        }
        for (ino, inode) in &state.inodes {
            let Body::Directory { parent, subdirs: said } = &inode.body else { continue };
            let counted = subdirs.get(ino).copied().unwrap_or(0);
            self.require(counted == *said, || format!("directory {ino}: {said} sub-directories, {counted} found"));
            self.require(inode.names == 1, || format!("directory {ino} has {} names", inode.names));
            let (mut above, mut seen) = (*parent, BTreeSet::from([*ino]));
            while above != InodeId::ROOT && seen.insert(above) {
                above = match state.inodes.get(&above).map(|inode| &inode.body) {
                    Some(Body::Directory { parent, .. }) => *parent,
                    Some(_) | None => break,
                };
            }
            self.require(above == InodeId::ROOT, || format!("directory {ino} is not below the root"));
        }
    }

    fn unpublished(&mut self) {
        let state = self.state;
        let mut reserved = 0;
        for (ino, unpublished) in &state.unpublished {
            let session = unpublished.session;
            let body = state.inodes.get(ino).map(|inode| &inode.body);
            self.require(body == Some(&Body::File { version: None }), || format!("unpublished {ino} is {body:?}"));
            self.require(state.sessions.contains_key(&session), || format!("unpublished {ino}: no session {session}"));
            for (parent, name) in &unpublished.names {
                reserved += 1;
                let found = state.reservations.get(&(*parent, name.clone(), session));
                self.require(found == Some(ino), || format!("unpublished {ino}: reservation says {found:?}"));
            }
        }
        self.require(reserved == state.reservations.len(), || {
            format!("{reserved} of all reservations belong to inodes")
        });
    }

    /// A version is current for one inode, or garbage.
    fn versions(&mut self) {
        let state = self.state;
        let mut named: BTreeMap<FileId, u32> = BTreeMap::new();
        for (ino, inode) in &state.inodes {
            if let Body::File { version } = inode.body {
                let is_unpublished = state.unpublished.contains_key(ino);
                self.require(version.is_some() != is_unpublished, || format!("file {ino}: version {version:?}"));
                version.into_iter().for_each(|id| *named.entry(id).or_default() += 1);
            }
        }
        for (id, version) in &state.versions {
            let names = named.remove(id).unwrap_or(0);
            let is_old = state.garbage.contains_key(id) || state.trash.contains_key(id);
            let wanted = u32::from(!is_old);
            self.require(names == wanted, || format!("version {id}: named {names} times, not {wanted}"));
            let slots = chunk_count(version.size, version.chunk_size);
            self.require(slots == version.chunks.len() as u64, || format!("version {id}: {slots} slots expected"));
        }
        self.require(named.is_empty(), || format!("versions that are not there: {named:?}"));
        let by_age: Vec<_> = state.garbage_by_age.iter().map(|(at, id)| (*id, *at)).collect();
        let by_id: BTreeMap<_, _> = by_age.iter().copied().collect();
        self.require(by_id.len() == by_age.len() && by_id.iter().eq(state.garbage.iter()), || {
            "garbage is not indexed by age".to_owned()
        });
        let lost: Vec<_> = state.garbage.keys().filter(|id| !state.versions.contains_key(*id)).collect();
        self.require(lost.is_empty(), || format!("garbage that is not there: {lost:?}"));
    }

    /// Each entry of the trash is a version that nothing else holds, and is indexed.
    fn trash(&mut self) {
        let state = self.state;
        for (id, entry) in &state.trash {
            self.require(state.versions.contains_key(id), || format!("trash {id} is no version"));
            self.require(!state.garbage.contains_key(id), || format!("trash {id} is garbage"));
            let by_path = Cursor { path: Arc::clone(&entry.path), at_ns: entry.at_ns, id: *id };
            let is_indexed = state.trash_by_age.contains(&(entry.at_ns, *id)) && state.trash_by_path.contains(&by_path);
            self.require(is_indexed, || format!("trash {id} is not indexed"));
        }
        let count = state.trash.len();
        let indexed = (state.trash_by_age.len(), state.trash_by_path.len());
        self.require(indexed == (count, count), || format!("{count} entries of the trash, {indexed:?} indexed"));
        for ino in state.orphans.keys() {
            let names = state.inodes.get(ino).map(|inode| inode.names);
            self.require(names == Some(0), || format!("file {ino} without names has {names:?}"));
        }
    }

    /// The way back from an inode to its names.
    fn places(&mut self) {
        let state = self.state;
        let mut places: BTreeMap<InodeId, Vec<_>> = BTreeMap::new();
        for ((parent, name), ino) in &state.dentries {
            places.entry(*ino).or_default().push((*parent, name.clone()));
        }
        let mut linked = 0;
        for (ino, inode) in &state.inodes {
            let counted = places.remove(ino).unwrap_or_default();
            let said: Vec<_> = state.places(*ino).collect();
            self.require(said == counted, || format!("inode {ino} is at {said:?}, found at {counted:?}"));
            self.require(inode.place.is_some() == (counted.len() == 1), || format!("inode {ino}: {:?}", inode.place));
            linked += if counted.len() > 1 { counted.len() } else { 0 };
        }
        self.require(linked == state.links.len(), || format!("{linked} linked names, {} indexed", state.links.len()));
    }

    fn pending(&mut self) {
        let state = self.state;
        for (id, pending) in &state.pending {
            let is_indexed = state.pending_by_ino.contains(&(pending.ino, *id))
                && state.pending_by_session.contains(&(pending.session, *id));
            self.require(is_indexed, || format!("pending {id} is not indexed"));
            self.require(state.sessions.contains_key(&pending.session), || format!("pending {id} has no session"));
            let is_file = state.inodes.get(&pending.ino).is_some_and(|inode| matches!(inode.body, Body::File { .. }));
            self.require(is_file, || format!("pending {id}: {} is not a file", pending.ino));
        }
        let count = state.pending.len();
        let indexed = (state.pending_by_ino.len(), state.pending_by_session.len());
        self.require(indexed == (count, count), || format!("{count} pending versions, {indexed:?} indexed"));
    }

    /// Reference counts are the slots and holds there are, and a chunk without any is not there.
    fn references(&mut self) {
        let state = self.state;
        let mut counts: BTreeMap<ChunkId, (u32, u32, u32, u32)> = BTreeMap::new();
        for (id, version) in &state.versions {
            for chunk in version.chunks.iter().filter(|chunk| !chunk.is_zero()) {
                let count = counts.entry(*chunk).or_default();
                match (state.trash.contains_key(id), state.garbage.contains_key(id)) {
                    (true, _) => count.1 += 1,
                    (false, true) => count.2 += 1,
                    (false, false) => count.0 += 1,
                }
            }
        }
        for chunk in state.pending.values().flat_map(|pending| pending.held.iter()) {
            counts.entry(*chunk).or_default().3 += 1;
        }
        for (id, chunk) in &state.chunks {
            let said = (chunk.published, chunk.trashed, chunk.garbage, chunk.held);
            let counted = counts.remove(id).unwrap_or_default();
            self.require(said == counted && chunk.refs() > 0, || {
                format!("chunk {id}: references {said:?} (published, trashed, garbage, held), {counted:?} found")
            });
        }
        self.require(counts.is_empty(), || format!("chunks that are not there: {counts:?}"));
    }

    fn replicas(&mut self) {
        let state = self.state;
        let mut copies = 0;
        let mut prefixes = BTreeSet::new();
        let mut on_node = BTreeMap::new();
        for (id, chunk) in &state.chunks {
            let (mut live, mut leaving) = (0, 0);
            for node in &chunk.replicas {
                copies += 1;
                let share = state.node(*node).map(|node| node.share());
                live += u16::from(share.is_some_and(|share| share != Share::Lost));
                leaving += u16::from(share == Some(Share::Leaving));
                let is_member = state.node(*node).is_some_and(|node| node.is_member());
                self.require(is_member, || format!("chunk {id}: node {node} was removed"));
                let (count, bytes) = on_node.entry(*node).or_insert((0_u64, 0_u64));
                (*count, *bytes) = (*count + 1, *bytes + u64::from(chunk.length));
                let is_indexed = state.chunks_by_node.get(node).is_some_and(|held| held.contains(&prefix(*id)));
                prefixes.insert((*node, prefix(*id)));
                self.require(is_indexed, || format!("chunk {id}: node {node} is not indexed"));
                self.require(!state.is_doomed(*node, *id), || format!("chunk {id} is doomed on its holder {node}"));
            }
            let said = (chunk.live, chunk.leaving);
            self.require(said == (live, leaving), || {
                format!("chunk {id}: {said:?} live and leaving copies, {live} and {leaving} found")
            });
            self.require(chunk.replicas.is_sorted_by(|a, b| a < b), || format!("chunk {id}: replicas in disorder"));
        }
        let indexed: usize = state.chunks_by_node.values().map(OrdSet::len).sum();
        self.require(prefixes.len() == indexed, || format!("{copies} copies, but {indexed} entries in the index"));
        for node in state.nodes() {
            let counted = on_node.remove(&node.id).unwrap_or_default();
            let said = (node.chunk_count, node.chunk_bytes);
            self.require(said == counted, || format!("node {}: {said:?} chunks, {counted:?} found", node.id));
        }
        self.require(on_node.is_empty(), || format!("copies on unknown nodes: {on_node:?}"));
        let lost: BTreeSet<_> =
            state.doomed.keys().map(|(node, _)| node).filter(|n| !state.nodes.contains_key(*n)).collect();
        self.require(lost.is_empty(), || format!("doomed copies on unknown nodes: {lost:?}"));
        let mut doomed_on: BTreeMap<NodeId, DoomedOn> = BTreeMap::new();
        for ((node, _), length) in &state.doomed {
            let on = doomed_on.entry(*node).or_default();
            (on.copies, on.bytes) = (on.copies + 1, on.bytes + u64::from(*length));
        }
        self.require(doomed_on.iter().eq(state.doomed_on.iter()), || {
            format!("doomed copies: {:?}, counted {doomed_on:?}", state.doomed_on)
        });
    }

    fn figures(&mut self) {
        let mut recounted = self.state.clone();
        recounted.recount_chunks();
        let (said, counted) = (self.state.counters(), recounted.counters());
        self.require(said == counted, || format!("figures {said:?}, counted {counted:?}"));
        let is_ordered = self.state.endangered == recounted.endangered;
        self.require(is_ordered, || "the order of danger is wrong".to_owned());
        let is_indexed = self.state.excessive == recounted.excessive;
        self.require(is_indexed, || "chunks with too many copies are not indexed".to_owned());
        let (said_risks, counted_risks) = (&self.state.risks, &recounted.risks);
        self.require(said_risks == counted_risks, || format!("risks {said_risks:?}, counted {counted_risks:?}"));
        let (said_rests, counted_rests) = (&self.state.rests, &recounted.rests);
        self.require(said_rests == counted_rests, || format!("resting {said_rests:?}, counted {counted_rests:?}"));
        self.require(said.chunks == said.full + said.under_replicated + said.missing, || format!("{said:?}"));
    }

    fn sessions_and_nodes(&mut self) {
        let state = self.state;
        for session in state.sessions() {
            let id = session.id;
            let first = session.outcomes.get_min().map(|(seq, _)| *seq);
            self.require(first.is_none_or(|seq| seq > session.acked), || {
                format!("session {id} kept outcome {first:?}")
            });
            self.require(session.outcomes.len() <= OUTCOMES_MAX, || format!("session {id} keeps too many outcomes"));
            let found = state.sessions_by_client.get(&session.client_id);
            self.require(found == Some(&id), || format!("session {id}: its client has {found:?}"));
        }
        for node in state.nodes() {
            let found = state.nodes_by_uuid.get(&node.uuid);
            self.require(found == Some(&node.id), || format!("node {}: its uuid has {found:?}", node.id));
        }
        let indexed = (state.sessions_by_client.len(), state.nodes_by_uuid.len());
        self.require(indexed == (state.sessions.len(), state.nodes.len()), || "an index is too large".to_owned());
    }
}
