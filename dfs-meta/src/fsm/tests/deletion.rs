//! No order of crashes deletes a chunk that something references.
//!
//! Storage nodes with disks are played beside the state: orders to delete are on their way for any time and survive the leader
//! that gave them, confirmations and inventories arrive late, twice, out of order or never, writers die between any two steps.
//! After every step each copy that the state counts on for content that must be kept is on its disk.

use std::collections::{BTreeMap, BTreeSet};

use dfs_common::{FileId, NodeId, SessionId, node::Health};
use proptest::prelude::*;

use super::{
    super::{Command, Op},
    lab::*,
};

type Raw = [u8; 5];

const NAMES: [&str; 3] = ["a", "b", "c"];

struct Writer {
    file_id: FileId,
    session: SessionId,
    chunks: Vec<(u8, Vec<u32>)>,
}

struct World {
    lab: Lab,
    sessions: [SessionId; 2],
    writers: Vec<Writer>,
    disks: BTreeMap<u32, BTreeSet<u8>>,
    /// Which version wrote each chunk: nodes read it from the footer.
    files: BTreeMap<u8, FileId>,
    /// Copies that nodes were told to delete and have not deleted yet.
    orders: Vec<(u32, u8)>,
    /// What nodes have said and the state has not heard yet.
    mail: Vec<Command>,
    next_chunk: u8,
}

impl World {
    fn new() -> Self {
        let mut lab = Lab::new();
        lab.must(Command::SetTrashRetention { retention_ns: 1 });
        let sessions = [lab.session(1), lab.session(2)];
        Self {
            lab,
            sessions,
            writers: Vec::new(),
            disks: (1..=4).map(|node| (node, BTreeSet::new())).collect(),
            files: BTreeMap::new(),
            orders: Vec::new(),
            mail: Vec::new(),
            next_chunk: 1,
        }
    }

    fn step(&mut self, raw: Raw) {
        let node = u32::from(raw[1] % 4) + 1;
        let session = self.sessions[usize::from(raw[1] % 2)];
        let name = NAMES[usize::from(raw[2] % 3)];
        match raw[0] % 24 {
            0..3 => self.open(session, name),
            3..7 => self.write(raw),
            7..10 => self.commit(raw),
            10 => drop(self.lab.run(session, unlink(ROOT, name))),
            11 => drop(self.lab.run(session, rename((ROOT, name), (ROOT, NAMES[usize::from(raw[3] % 3)])))),
            12 => self.take_from_trash(raw, session, name),
            13 => self.lab.release(),
            14 | 15 => self.order(node),
            16..19 => self.delete(raw),
            19 => self.report(node),
            20..22 => self.deliver(raw),
            22 => self.lose_leader(raw),
            _ => self.crash(raw, node),
        }
    }

    fn open(&mut self, session: SessionId, name: &str) {
        let file_id = self.lab.new_file_id();
        let op = match self.lab.look(session, ROOT, name) {
            Ok(attr) => Op::OpenWrite { ino: attr.ino, file_id },
            Err(_) => create(ROOT, name, file_id),
        };
        if self.lab.run(session, op).is_ok() {
            self.writers.push(Writer { file_id, session, chunks: Vec::new() });
        }
    }

    /// A chunk is durable on some nodes; the primary may say so before the writer does.
    fn write(&mut self, raw: Raw) {
        if self.next_chunk == u8::MAX || self.writers.is_empty() {
            return;
        }
        let at = usize::from(raw[1]) % self.writers.len();
        let (n, first) = (self.next_chunk, u32::from(raw[2] % 4));
        self.next_chunk += 1;
        let nodes: Vec<u32> = (0..3).map(|i| (first + i) % 4 + 1).collect();
        for node in &nodes {
            self.disks.entry(*node).or_default().insert(n);
        }
        let file_id = self.writers[at].file_id;
        self.files.insert(n, file_id);
        if raw[3].is_multiple_of(2) {
            self.mail.push(Command::CommitChunks { receipts: vec![receipt(n, &nodes, file_id)] });
        }
        self.writers[at].chunks.push((n, nodes));
    }

    /// The writer publishes all it wrote, or only the end of it: what it listed before is replaced. It names the nodes of a chunk
    /// only until that was published once: if the chunk has gone since, with a version that somebody else replaced, the next
    /// publication is refused.
    fn commit(&mut self, raw: Raw) {
        if self.writers.is_empty() {
            return;
        }
        let at = usize::from(raw[1]) % self.writers.len();
        let writer = &mut self.writers[at];
        let from = usize::from(raw[2] % 3).min(writer.chunks.len());
        writer.chunks.drain(..from);
        let chunks: Vec<_> = writer.chunks.iter().map(|(n, nodes)| stored(*n, nodes)).collect();
        let (op, session, done) =
            (commit(writer.file_id, &chunks, raw[3].is_multiple_of(2)), writer.session, raw[3].is_multiple_of(2));
        let published = self.lab.run(session, op);
        if published.is_err() || done {
            self.writers.remove(at);
        } else {
            self.writers[at].chunks.iter_mut().for_each(|(_, nodes)| nodes.clear());
        }
    }

    fn take_from_trash(&mut self, raw: Raw, session: SessionId, name: &str) {
        let trash: Vec<FileId> = self.lab.state.trash_by_age().map(|(_, id)| id).collect();
        let Some(id) = trash.get(usize::from(raw[3]) % trash.len().max(1)).copied() else { return };
        if raw[4].is_multiple_of(3) {
            let name = name.as_bytes().to_vec();
            drop(self.lab.run(session, Op::Restore { file_id: id, parent: ROOT, name }));
        } else {
            self.lab.must(Command::DropTrash { file_ids: vec![id] });
        }
    }

    /// The leader tells a node what to delete; it may have told it before.
    fn order(&mut self, node: u32) {
        let doomed = self.lab.doomed(node);
        self.orders.extend(doomed.into_iter().map(|n| (node, n)));
    }

    fn delete(&mut self, raw: Raw) {
        if self.orders.is_empty() {
            return;
        }
        let (node, n) = self.orders.remove(usize::from(raw[1]) % self.orders.len());
        let is_counted = self.lab.state.chunk(chunk_id(n)).is_some_and(|c| c.replicas.contains(&NodeId(node)));
        assert!(!is_counted, "node {node} is told to delete chunk {n}, which the state counts on");
        self.disks.entry(node).or_default().remove(&n);
        self.mail.push(Command::ConfirmDeleted { node: NodeId(node), chunks: vec![chunk_id(n)] });
    }

    /// A node's inventory, judged by the leader of now; what is decided arrives later.
    fn report(&mut self, node: u32) {
        let id = NodeId(node);
        let held = self.disks.get(&node).cloned().unwrap_or_default();
        let (known, unknown): (Vec<u8>, Vec<u8>) =
            held.into_iter().partition(|n| self.lab.state.chunk(chunk_id(*n)).is_some());
        self.mail.push(Command::ReplicasAdded { replicas: known.iter().map(|n| (chunk_id(*n), id)).collect() });
        let chunks = unknown.iter().map(|n| (chunk_id(*n), self.files[n])).collect();
        self.mail.push(Command::DoomUnknown { node: id, chunks });
    }

    /// Something arrives, now and then twice.
    fn deliver(&mut self, raw: Raw) {
        if self.mail.is_empty() {
            return;
        }
        let at = usize::from(raw[1]) % self.mail.len();
        let command = if raw[2].is_multiple_of(4) { self.mail[at].clone() } else { self.mail.remove(at) };
        self.lab.must(command);
    }

    /// What was on its way to the leader is lost; what is on its way to nodes is not.
    fn lose_leader(&mut self, raw: Raw) {
        let mut at = 0_u8;
        self.mail.retain(|_| {
            at = at.wrapping_add(1);
            raw[3] & (1 << (at % 8)) != 0
        });
    }

    fn crash(&mut self, raw: Raw, node: u32) {
        if raw[3].is_multiple_of(3) {
            let number = usize::from(raw[1] % 2);
            let session = self.sessions[number];
            self.lab.must(Command::CloseSession { session });
            self.writers.retain(|writer| writer.session != session);
            self.sessions[number] = self.lab.session(raw[1] % 2 + 1);
        } else {
            let states = [Health::Alive, Health::Suspect, Health::Dead];
            self.lab.set_health(node, states[usize::from(raw[2] % 3)]);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        for n in 1..self.next_chunk {
            let Some(chunk) = self.lab.state.chunk(chunk_id(n)).filter(|chunk| chunk.is_wanted()) else { continue };
            for node in &chunk.replicas {
                prop_assert!(self.disks[&node.0].contains(&n), "chunk {} is wanted and gone from node {}", n, node);
            }
            prop_assert!(chunk.replicas.len() >= 2, "chunk {} is wanted and has {:?}", n, chunk.replicas);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_crashes_deletes_what_is_referenced(steps in proptest::collection::vec(any::<Raw>(), 1..150)) {
        let mut world = World::new();
        for raw in steps {
            world.step(raw);
            world.check()?;
        }
    }
}
