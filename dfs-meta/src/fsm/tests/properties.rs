//! Random histories, on the state machine and on the model: after every command both must say and show the same, all
//! invariants must hold, a snapshot must restore the state, and a repetition must change nothing.

use std::collections::BTreeMap;

use dfs_common::{ErrorCode, FileId, FileKind, InodeId, NodeId, SessionId, node::Health};
use proptest::prelude::*;

use super::{
    super::{Action, Batch, Command, CommittedChunk, Fact, Op, Outcome, RebalanceChange, Reply, State, check::check},
    lab::*,
    model::{Model, Thing},
};

/// A step before it is given its meaning, which depends on what exists when it is taken. Small numbers, so that it shrinks.
type Raw = [u8; 8];

const NAMES: [&str; 3] = ["a", "b", "c"];
const SESSIONS: u8 = 3;

struct Run {
    lab: Lab,
    model: Model,
    sessions: [SessionId; SESSIONS as usize],
    seqs: BTreeMap<SessionId, u64>,
    files: u64,
    history: Vec<Batch>,
    generations: BTreeMap<InodeId, u64>,
    /// What came before it was not made by the history.
    first_event: u64,
}

fn pick<T: Copy>(from: &[T], n: u8) -> Option<T> {
    from.get(usize::from(n) % from.len().max(1)).copied()
}

impl Run {
    fn new() -> Self {
        let mut lab = Lab::new();
        let mut model = Model::new();
        let sessions = std::array::from_fn(|n| lab.session(u8::try_from(n).expect("few") + 1));
        model.sessions.extend(sessions.iter().map(|session| session.0));
        model.retention_ns = 1;
        lab.must(Command::SetTrashRetention { retention_ns: 1 });
        let first_event = lab.state.last_event();
        Self {
            lab,
            model,
            sessions,
            seqs: BTreeMap::new(),
            files: 0,
            history: Vec::new(),
            generations: BTreeMap::new(),
            first_event,
        }
    }

    fn directory(&self, n: u8) -> InodeId {
        let directories: Vec<u64> =
            self.model.things.keys().copied().filter(|ino| self.model.is_directory(*ino)).collect();
        if n >= 245 { InodeId(u64::from(n - 244)) } else { InodeId(pick(&directories, n).unwrap_or(1)) }
    }

    fn inode(&self, n: u8) -> InodeId {
        let all: Vec<u64> = self.model.things.keys().copied().collect();
        if n >= 250 { InodeId(u64::from(n)) } else { InodeId(pick(&all, n).unwrap_or(1)) }
    }

    /// A pending version, mostly of this session.
    fn writer(&self, session: SessionId, n: u8) -> FileId {
        let own = self.model.writers.iter().filter(|(_, writer)| n >= 230 || writer.session == session.0);
        pick(&own.map(|(id, _)| *id).collect::<Vec<_>>(), n).unwrap_or(file_id(9999))
    }

    fn slots(&self, raw: &Raw) -> Vec<CommittedChunk> {
        let nodes: Vec<u32> = (1..=4).filter(|node| raw[6] & (1 << node) != 0).collect();
        raw[3..6]
            .iter()
            .take(usize::from(raw[7] % 4))
            .map(|n| match n % 7 {
                0 => CommittedChunk { length: 0, ..stored(0, &[]) },
                n => stored(n, &nodes),
            })
            .collect()
    }

    fn command(&mut self, raw: &Raw) -> Command {
        let session = self.sessions[usize::from(raw[1] % SESSIONS)];
        let node = NodeId(u32::from(raw[2] % 4) + 1);
        let chunk = chunk_id(raw[3] % 6 + 1);
        let op = match raw[0] % 46 {
            0..24 => self.op(raw, session),
            24..29 => commit(self.writer(session, raw[2]), &self.slots(raw), raw[7] & 64 != 0),
            29 => return Command::CloseSession { session },
            30 | 31 => {
                let nodes: Vec<u32> = (1..=4).filter(|node| raw[6] & (1 << node) != 0).collect();
                let file = self.writer(session, raw[4]);
                return Command::CommitChunks { receipts: vec![receipt(raw[3] % 6 + 1, &nodes, file)] };
            }
            32 => return Command::ReplicasAdded { replicas: vec![(chunk, node)] },
            33 => return Command::ReplicasLost { node, chunks: vec![chunk] },
            34 | 35 => {
                let garbage = self.model.garbage.keys().copied().take(usize::from(raw[2] % 4));
                let current = self.model.things.values().filter_map(|thing| match thing {
                    Thing::File(Some((id, _, _))) => Some(*id),
                    Thing::File(None) | Thing::Directory => None,
                });
                return Command::ReleaseVersions { file_ids: garbage.chain(current.take(1)).collect() };
            }
            36 => {
                let doomed = self.model.doomed.iter().filter(|(holder, _)| *holder == node.0);
                return Command::ConfirmDeleted { node, chunks: doomed.map(|(_, n)| chunk_id(*n)).collect() };
            }
            40 => {
                let some = self.model.trash.keys().copied().take(usize::from(raw[2] % 3));
                return Command::DropTrash {
                    file_ids: some.chain(self.model.garbage.keys().copied().take(1)).collect(),
                };
            }
            41 => return Command::SetTrashRetention { retention_ns: i64::from(raw[2] % 4) },
            42..46 => {
                let trash: Vec<FileId> = self.model.trash.keys().copied().collect();
                let file_id = pick(&trash, raw[4]).unwrap_or(file_id(9999));
                let name = NAMES[usize::from(raw[3] % 3)].as_bytes().to_vec();
                Op::Restore { file_id, parent: self.directory(raw[2]), name }
            }
            37 => return Command::DoomUnknown { node, chunks: vec![(chunk, self.writer(session, raw[4]))] },
            38 => {
                let health = [Health::Alive, Health::Alive, Health::Suspect, Health::Dead][usize::from(raw[3] % 4)];
                return Command::SetNodeHealth { node, health, from: self.model.nodes[&node.0].health };
            }
            39 if raw[3].is_multiple_of(4) => {
                let change = match raw[4] % 3 {
                    0 => RebalanceChange::Start,
                    1 => RebalanceChange::End { why: String::new() },
                    _ => RebalanceChange::End { why: "test".into() },
                };
                return Command::Rebalance { change };
            }
            _ => return Command::Administer { node, action: self.action(raw) },
        };
        let seq = self.seqs.entry(session).or_default();
        *seq += 1;
        Command::Mutate { session, seq: *seq, acked: seq.saturating_sub(u64::from(raw[7] % 3) + 1), op }
    }

    /// A decision about a node. Those that cannot be taken back are rare.
    fn action(&self, raw: &Raw) -> Action {
        match raw[3] % 16 {
            0..5 => Action::Drain,
            5 | 6 => Action::Undrain,
            7..10 => Action::FinishDrain,
            10 => Action::StartMaintenance { until_ns: self.now_ns() + i64::from(raw[4] % 4) * 3_000_000_000 },
            11 => Action::EndMaintenance { expired: false },
            12 => Action::EndMaintenance { expired: true },
            13 | 14 => Action::Remove { lose: false },
            _ => Action::Remove { lose: raw[4] > 240 },
        }
    }

    /// When the next step is taken.
    fn now_ns(&self) -> i64 {
        5000 + self.history.len() as i64 * 3_000_000_000
    }

    /// A name, most often one that the session sees.
    fn entry(&self, session: SessionId, directory: u8, name: u8) -> (InodeId, &'static str) {
        let published = self.model.published.keys().map(|(parent, name)| (*parent, name));
        let own = self.model.reserved.keys().filter(|(_, _, owner)| *owner == session.0);
        let seen: Vec<_> = published.chain(own.map(|(parent, name, _)| (*parent, name))).collect();
        match pick(&seen, directory) {
            Some((parent, found)) if name >= 80 => {
                let name = NAMES.into_iter().find(|name| name.as_bytes() == found).expect("one of ours");
                (InodeId(parent), name)
            }
            Some(_) | None => (self.directory(directory), NAMES[usize::from(name % 3)]),
        }
    }

    fn op(&mut self, raw: &Raw, session: SessionId) -> Op {
        let (parent, name) = match raw[0] % 24 {
            0..11 => (self.directory(raw[2]), NAMES[usize::from(raw[3] % 3)]),
            _ => self.entry(session, raw[2], raw[3]),
        };
        let other = self.entry(session, raw[4], raw[5]);
        self.files += 1;
        let file_id = file_id(self.files);
        match raw[0] % 24 {
            0..5 => create(parent, name, file_id),
            5 => create_exclusive(parent, name, file_id),
            6..9 => mkdir(parent, name),
            9 | 10 => link(self.inode(raw[6]), parent, name),
            11..13 => unlink(parent, name),
            13 | 14 => rmdir(parent, name),
            15..18 => rename((parent, name), other),
            18 => rename_with((parent, name), other, true, raw[6] > 250),
            19 => rename_with((parent, name), other, false, true),
            20 | 21 => Op::OpenWrite { ino: self.inode(raw[6]), file_id },
            22 if raw[6] & 1 == 0 => Op::AbortFile { file_id: self.writer(session, raw[2]) },
            22 => Op::LeaveFile { file_id: self.writer(session, raw[2]) },
            _ => commit(self.writer(session, raw[2]), &self.slots(raw), false),
        }
    }

    fn step(&mut self, raw: &Raw) -> Result<(), TestCaseError> {
        let command = self.command(raw);
        let batch = Batch { now_ns: self.now_ns(), entropy: 7, commands: vec![command.clone()] };
        let before = self.lab.state.clone();
        let outcome = self.lab.state.apply(&batch).remove(0);
        self.history.push(batch.clone());
        prop_assert_eq!(check(&self.lab.state), Ok(()));
        let published = match &outcome {
            Ok(Reply::Mutated { file_id, .. }) => *file_id,
            Ok(_) | Err(_) => None,
        };
        let answer = self.model.apply(batch.now_ns, &command, published);
        self.compare_outcome(&outcome, &answer)?;
        self.compare_trees()?;
        self.compare_chunks()?;
        self.compare_events()?;
        self.check_repetition(&before, &batch, &outcome)?;
        self.check_generations()?;
        if let Command::CloseSession { session } = command {
            self.reopen(session);
        }
        Ok(())
    }

    fn reopen(&mut self, ended: SessionId) {
        let n = self.sessions.iter().position(|session| *session == ended).expect("one of ours");
        self.sessions[n] = self.lab.session(u8::try_from(n).expect("few") + 1);
        self.model.sessions.insert(self.sessions[n].0);
        let command = Command::OpenSession {
            client_id: dfs_common::Uuid([u8::try_from(n).expect("few") + 1; 16]),
            description: "test".into(),
        };
        self.history.push(Batch { now_ns: self.lab.now_ns, entropy: 0, commands: vec![command] });
    }

    fn compare_outcome(&self, outcome: &Outcome, answer: &super::model::Answer) -> Result<(), TestCaseError> {
        match (outcome, answer) {
            (Err(refusal), Err(code)) => prop_assert_eq!(refusal.code, *code, "{}", refusal),
            (Ok(Reply::Mutated { attr: Some(attr), existed, .. }), Ok((Some(ino), model_existed))) => {
                prop_assert_eq!((attr.ino.0, *existed), (*ino, *model_existed));
            }
            (Ok(_), Ok(_)) => {}
            _ => prop_assert!(false, "{outcome:?}, but the model says {answer:?}"),
        }
        Ok(())
    }

    /// What each session, and one that is none, sees below the root.
    fn compare_trees(&self) -> Result<(), TestCaseError> {
        let state = &self.lab.state;
        for session in self.sessions.iter().copied().chain([SessionId(u64::MAX)]) {
            for ino in self.model.things.keys().copied().filter(|ino| self.model.is_directory(*ino)) {
                let page = state.readdir(Some(session), InodeId(ino), b"", 100)?;
                let seen: Vec<_> = page.entries.iter().map(|e| (e.name.clone(), e.attr.ino.0)).collect();
                let mut wanted = Vec::new();
                for name in NAMES.map(str::as_bytes) {
                    let found = self.model.find(session.0, ino, name).map(|(child, _)| child);
                    wanted.extend(found.map(|child| (name.to_vec(), child)));
                    let looked = state.lookup(Some(session), InodeId(ino), name).map(|attr| attr.ino.0);
                    prop_assert_eq!(looked, found.ok_or(ErrorCode::NotFound));
                }
                prop_assert_eq!(seen, wanted, "directory {} of {:?}", ino, session);
            }
        }
        for (ino, thing) in &self.model.things {
            let session = self.model.hidden.get(ino).map(|session| SessionId(*session));
            let attr = state.getattr(session, InodeId(*ino))?;
            let (kind, size, version) = match thing {
                Thing::Directory => (FileKind::Directory, 0, None),
                Thing::File(None) => (FileKind::File, 0, None),
                Thing::File(Some((id, size, _))) => (FileKind::File, *size, Some(*id)),
            };
            prop_assert_eq!((attr.kind, attr.size, attr.file_id), (kind, size, version), "inode {}", ino);
            prop_assert_eq!(attr.nlink, self.model.nlink(*ino), "links of inode {}", ino);
            if let Thing::File(Some((_, _, slots))) = thing {
                prop_assert_eq!(&self.lab.content(InodeId(*ino)), slots);
            }
        }
        prop_assert_eq!(state.counters().inodes, self.model.things.len() as u64);
        Ok(())
    }

    fn compare_chunks(&self) -> Result<(), TestCaseError> {
        let state = &self.lab.state;
        for n in 1..=6 {
            let real = state.chunk(chunk_id(n));
            let holders = real.map(|chunk| chunk.replicas.iter().map(|node| node.0).collect());
            prop_assert_eq!(holders.as_ref(), self.model.chunks.get(&n), "holders of chunk {}", n);
            prop_assert_eq!(
                real.map_or(0, |chunk| chunk.refs()),
                self.model.refs(n) as u64,
                "references of chunk {}",
                n
            );
            let live = |leaving: bool| {
                let holders = self.model.chunks.get(&n).into_iter().flatten().map(|node| self.model.nodes[node]);
                holders.filter(|node| node.is_live() && (leaving || !node.is_leaving())).count()
            };
            let figures = real.map_or((0, 0), |chunk| (chunk.live() as usize, chunk.counted() as usize));
            prop_assert_eq!(figures, (live(true), live(false)), "live and counted copies of chunk {}", n);
        }
        for (id, node) in &self.model.nodes {
            let real = self.lab.node(*id);
            prop_assert_eq!((real.health, real.admin), (node.health, node.admin), "node {}", id);
            prop_assert_eq!(state.rests(NodeId(*id)).chunks, self.model.rests(*id), "chunks that rest on node {}", id);
        }
        prop_assert_eq!(state.rebalance().running, self.model.rebalances);
        let doomed: Vec<_> =
            (1..=4).flat_map(|node| self.lab.doomed(node).into_iter().map(move |n| (node, n))).collect();
        prop_assert_eq!(doomed, self.model.doomed.iter().copied().collect::<Vec<_>>());
        let garbage: Vec<_> = state.garbage().collect();
        prop_assert!(garbage.is_sorted());
        prop_assert!(garbage.iter().all(|(_, id)| self.model.garbage.contains_key(id)));
        prop_assert_eq!(garbage.len(), self.model.garbage.len());
        let trash: Vec<_> = state.trash_by_age().collect();
        prop_assert!(trash.is_sorted());
        prop_assert_eq!(trash.len(), self.model.trash.len());
        for (_, id) in trash {
            let (entry, _) = state.trashed(id).expect("indexed");
            let wanted = self.model.trash.get(&id).map(|entry| (&entry.path[..], entry.reason));
            prop_assert_eq!(Some((&entry.path[..], entry.reason)), wanted, "trash {}", id);
        }
        prop_assert_eq!(state.counters().pending, self.model.writers.len() as u64);
        Ok(())
    }

    /// Every change of a node's state is in the event log, in order and once.
    fn compare_events(&self) -> Result<(), TestCaseError> {
        let changes = self.lab.state.events_after(self.first_event).filter_map(|event| match event.fact {
            Fact::NodeState { node, from, to, .. } => Some((node.0, from, to)),
            _ => None,
        });
        prop_assert_eq!(&changes.collect::<Vec<_>>(), &self.model.transitions);
        Ok(())
    }

    /// The same command again has the same outcome and no effect; a refused operation had none the first time.
    fn check_repetition(&mut self, before: &State, batch: &Batch, outcome: &Outcome) -> Result<(), TestCaseError> {
        let Command::Mutate { session, op, .. } = &batch.commands[0] else { return Ok(()) };
        let bytes = bytes_of(&self.lab.state);
        prop_assert_eq!(&self.lab.state.apply(batch)[0], outcome);
        prop_assert_eq!(bytes_of(&self.lab.state), bytes, "a repetition changed something");
        if outcome.is_err() {
            let mut refused = before.clone();
            prop_assert!(refused.run(batch.now_ns, *session, op).is_err());
            prop_assert_eq!(bytes_of(&refused), bytes_of(before), "a refusal changed something");
        }
        Ok(())
    }

    fn check_generations(&mut self) -> Result<(), TestCaseError> {
        for (ino, inode) in &self.lab.state.inodes {
            let last = self.generations.insert(*ino, inode.generation).unwrap_or(0);
            prop_assert!(inode.generation >= last, "the generation of inode {ino} fell");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn every_history_goes_as_the_model_says(steps in proptest::collection::vec(any::<Raw>(), 1..120)) {
        let mut run = Run::new();
        let start = run.lab.state.clone();
        for raw in &steps {
            run.step(raw)?;
        }
        // A second machine that replays the log, and one that starts from a snapshot in its middle, are the same.
        let half = run.history.len() / 2;
        let mut replayed = start;
        for batch in &run.history[..half] {
            replayed.apply(batch);
        }
        let restored = State::read_snapshot(&mut &bytes_of(&replayed)[..]);
        let mut restored = restored.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert!(restored == replayed, "{restored:?}\n\n{replayed:?}");
        for batch in &run.history[half..] {
            prop_assert_eq!(restored.apply(batch), replayed.apply(batch));
        }
        prop_assert_eq!(check(&restored), Ok(()));
        prop_assert!(replayed == run.lab.state && restored == run.lab.state);
        prop_assert_eq!(bytes_of(&replayed), bytes_of(&run.lab.state));
        prop_assert_eq!(bytes_of(&restored), bytes_of(&run.lab.state));
    }
}
