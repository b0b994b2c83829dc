//! A state with short words for commands. Every command is followed by a check of all invariants.

use dfs_common::{
    Attr, ChunkId, ClusterId, ErrorCode, FileId, InodeId, NodeId, SessionId, SetAttr, Uuid, layout::Replicas,
    node::Health,
};

use super::super::{
    Action, Batch, Command, CommittedChunk, Node, Op, Outcome, Receipt, Reply, Settings, State, check::check,
};

/// Bytes of a chunk in these tests.
pub(super) const SLOT: u32 = 100;
pub(super) const ROOT: InodeId = InodeId::ROOT;

pub(super) fn file_id(n: u64) -> FileId {
    let mut id = [0xf0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    FileId(id)
}

pub(super) fn chunk_id(n: u8) -> ChunkId {
    ChunkId([n; 32])
}

/// A full slot of chunk `n`, durable on `nodes`.
pub(super) fn stored(n: u8, nodes: &[u32]) -> CommittedChunk {
    CommittedChunk { chunk: chunk_id(n), length: SLOT, sha256: [n; 32], replicas: replicas(nodes), slots: 1 }
}

pub(super) fn replicas(nodes: &[u32]) -> Replicas {
    nodes.iter().copied().map(NodeId).collect()
}

pub(super) fn receipt(n: u8, nodes: &[u32], file: FileId) -> Receipt {
    Receipt { chunk: chunk_id(n), length: SLOT, sha256: [n; 32], replicas: replicas(nodes), file }
}

pub(super) fn bytes_of(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.write_snapshot(&mut bytes).expect("memory takes everything");
    bytes
}

pub(super) fn create(parent: InodeId, name: &str, id: FileId) -> Op {
    let name = name.as_bytes().to_vec();
    Op::Create { parent, name, mode: 0o644, uid: 1, gid: 2, exclusive: false, file_id: id }
}

pub(super) fn create_exclusive(parent: InodeId, name: &str, id: FileId) -> Op {
    let name = name.as_bytes().to_vec();
    Op::Create { parent, name, mode: 0o644, uid: 1, gid: 2, exclusive: true, file_id: id }
}

pub(super) fn mkdir(parent: InodeId, name: &str) -> Op {
    Op::Mkdir { parent, name: name.as_bytes().to_vec(), mode: 0o755, uid: 1, gid: 2 }
}

pub(super) fn unlink(parent: InodeId, name: &str) -> Op {
    Op::Unlink { parent, name: name.as_bytes().to_vec() }
}

pub(super) fn rmdir(parent: InodeId, name: &str) -> Op {
    Op::Rmdir { parent, name: name.as_bytes().to_vec() }
}

pub(super) fn link(ino: InodeId, parent: InodeId, name: &str) -> Op {
    Op::Link { ino, parent, name: name.as_bytes().to_vec() }
}

pub(super) fn rename(from: (InodeId, &str), to: (InodeId, &str)) -> Op {
    rename_with(from, to, false, false)
}

pub(super) fn rename_with(from: (InodeId, &str), to: (InodeId, &str), no_replace: bool, exchange: bool) -> Op {
    Op::Rename {
        parent: from.0,
        name: from.1.as_bytes().to_vec(),
        new_parent: to.0,
        new_name: to.1.as_bytes().to_vec(),
        no_replace,
        exchange,
    }
}

/// Full slots.
pub(super) fn commit(id: FileId, chunks: &[CommittedChunk], done: bool) -> Op {
    let size = chunks.len() as u64 * u64::from(SLOT);
    Op::CommitFile { file_id: id, size, chunks: chunks.to_vec(), set: SetAttr::default(), done }
}

pub(super) struct Lab {
    pub(super) state: State,
    pub(super) now_ns: i64,
    seqs: std::collections::BTreeMap<SessionId, u64>,
    files: u64,
}

impl Lab {
    /// Four nodes alive, three copies wanted, two before a publication, and no session.
    pub(super) fn new() -> Self {
        let mut lab = Self { state: State::default(), now_ns: 1000, seqs: Default::default(), files: 0 };
        let settings = Settings { chunk_size: SLOT, replication: 3, write_quorum: 2 };
        lab.must(Command::InitCluster { cluster_id: ClusterId([9; 16]), settings });
        (1..=4).for_each(|n| drop(lab.must(lab.register(n))));
        lab
    }

    pub(super) fn register(&self, n: u8) -> Command {
        Command::RegisterNode {
            uuid: Uuid([n; 16]),
            name: format!("storage-{n}"),
            address: format!("host-{n}:4000"),
            rack: String::new(),
            capacity_bytes: 1 << 30,
            incarnation: u64::from(n),
        }
    }

    pub(super) fn apply(&mut self, command: Command) -> Outcome {
        self.now_ns += 10;
        let batch = Batch { now_ns: self.now_ns, entropy: 0, commands: vec![command] };
        let outcome = self.state.apply(&batch).remove(0);
        assert_eq!(check(&self.state), Ok(()), "after {batch:?}");
        outcome
    }

    pub(super) fn must(&mut self, command: Command) -> Reply {
        let text = format!("{command:?}");
        self.apply(command).unwrap_or_else(|refusal| panic!("{text}: {refusal}"))
    }

    pub(super) fn session(&mut self, n: u8) -> SessionId {
        match self.must(Command::OpenSession { client_id: Uuid([n; 16]), description: "test".into() }) {
            Reply::Session { session } => session,
            other => panic!("{other:?}"),
        }
    }

    /// The next operation of a session; everything before it is acknowledged.
    pub(super) fn run(&mut self, session: SessionId, op: Op) -> Outcome {
        let seq = self.seqs.entry(session).or_default();
        *seq += 1;
        let seq = *seq;
        self.apply(Command::Mutate { session, seq, acked: seq - 1, op })
    }

    pub(super) fn code(&mut self, session: SessionId, op: Op) -> ErrorCode {
        let text = format!("{op:?}");
        match self.run(session, op) {
            Err(refusal) => refusal.code,
            Ok(reply) => panic!("{text}: {reply:?}"),
        }
    }

    pub(super) fn ok(&mut self, session: SessionId, op: Op) -> Reply {
        let text = format!("{op:?}");
        self.run(session, op).unwrap_or_else(|refusal| panic!("{text}: {refusal}"))
    }

    pub(super) fn attr(&mut self, session: SessionId, op: Op) -> Attr {
        match self.ok(session, op) {
            Reply::Mutated { attr: Some(attr), .. } => attr,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn new_file_id(&mut self) -> FileId {
        self.files += 1;
        file_id(self.files)
    }

    /// A pending version of a new name.
    pub(super) fn create(&mut self, session: SessionId, parent: InodeId, name: &str) -> (Attr, FileId) {
        let id = self.new_file_id();
        match self.ok(session, create(parent, name, id)) {
            Reply::Mutated { attr: Some(attr), file_id: Some(file_id), existed: false } => (attr, file_id),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn open_write(&mut self, session: SessionId, ino: InodeId) -> FileId {
        let file_id = self.new_file_id();
        self.ok(session, Op::OpenWrite { ino, file_id });
        file_id
    }

    /// A published file of chunks `n`, each on nodes 1, 2 and 3, written and done.
    pub(super) fn publish(&mut self, session: SessionId, parent: InodeId, name: &str, chunks: &[u8]) -> Attr {
        let (_, file_id) = self.create(session, parent, name);
        let chunks: Vec<_> = chunks.iter().map(|n| stored(*n, &[1, 2, 3])).collect();
        self.attr(session, commit(file_id, &chunks, true))
    }

    pub(super) fn mkdir(&mut self, session: SessionId, parent: InodeId, name: &str) -> InodeId {
        self.attr(session, mkdir(parent, name)).ino
    }

    pub(super) fn look(&self, session: SessionId, parent: InodeId, name: &str) -> Result<Attr, ErrorCode> {
        self.state.lookup(Some(session), parent, name.as_bytes())
    }

    /// Names in a directory as a session sees them.
    pub(super) fn names(&self, session: SessionId, ino: InodeId) -> Vec<String> {
        let page = self.state.readdir(Some(session), ino, b"", 4096).expect("a directory");
        page.entries.into_iter().map(|entry| String::from_utf8(entry.name).expect("text")).collect()
    }

    /// Chunk numbers of what a file holds now.
    pub(super) fn content(&self, ino: InodeId) -> Vec<u8> {
        let dfs_common::Layout::Replicated { chunks, .. } = self.state.layout(ino).expect("a file").layout;
        chunks.iter().map(|chunk| chunk.id.0[0]).collect()
    }

    pub(super) fn set_health(&mut self, node: u32, health: Health) {
        let from = self.state.node(NodeId(node)).expect("registered").health;
        self.must(Command::SetNodeHealth { node: NodeId(node), health, from });
    }

    pub(super) fn administer(&mut self, node: u32, action: Action) -> Outcome {
        self.apply(Command::Administer { node: NodeId(node), action })
    }

    pub(super) fn node(&self, node: u32) -> &Node {
        self.state.node(NodeId(node)).expect("registered")
    }

    /// Releases all garbage.
    pub(super) fn release(&mut self) {
        let file_ids = self.state.garbage().map(|(_, id)| id).collect();
        self.must(Command::ReleaseVersions { file_ids });
    }

    pub(super) fn doomed(&self, node: u32) -> Vec<u8> {
        self.state.doomed(NodeId(node), None).map(|id| id.0[0]).collect()
    }
}
