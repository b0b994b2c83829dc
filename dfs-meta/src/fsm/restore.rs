//! A cluster that goes on from an older state: restored from a backup, or rescued from the one metadata node that is left.
//!
//! The storage nodes have seen more than this state has. So until an administrator says otherwise
//!
//! - chunks that no version lists are **not** deleted: they may be what was written since;
//! - numbers that were given since (inodes, sessions, storage nodes) are not given again: counters jump far ahead, because
//!   kernels, clients and data directories may still hold them;
//! - no session of the past goes on: its client has done things that this state does not know.

use dfs_common::{ErrorCode, SessionId};
use serde::{Deserialize, Serialize};

use super::{
    command::{Outcome, Refusal, Reply},
    event::Fact,
    state::State,
};

/// More inodes or sessions than any cluster makes between two backups.
const NUMBERS_SKIPPED: u64 = 1 << 32;
/// More storage nodes than are added between two backups.
const NODES_SKIPPED: u32 = 1 << 16;

/// That the state was restored or rescued, until an administrator ends that time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Restored {
    /// The state is as of this time, nanoseconds since the Unix epoch.
    pub as_of_ns: i64,
    /// When it was restored or rescued.
    pub done_ns: i64,
    /// From a metadata node that was left, not from a backup.
    pub rescued: bool,
}

impl State {
    /// Whether the state was restored or rescued, and that time was not ended yet.
    #[must_use]
    pub fn restored(&self) -> Option<Restored> {
        self.restored
    }

    /// Makes this, the state as of entry `index`, the first one of a cluster that goes on from it. Not a command: it happens
    /// while nobody serves.
    pub(crate) fn go_on_from(&mut self, index: u64, restored: Restored) {
        // What they were writing becomes unknown chunks, which are kept: it may have been published since.
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        sessions.into_iter().for_each(|session| self.end_session(restored.done_ns, session));
        self.next_ino += NUMBERS_SKIPPED;
        self.next_session += NUMBERS_SKIPPED;
        self.next_node = self.next_node.saturating_add(NODES_SKIPPED);
        if !restored.rescued {
            self.event(restored.done_ns, Fact::BackupRestored { index, taken_ns: restored.as_of_ns });
        }
        self.restored = Some(restored);
    }

    pub(super) fn finish_restore(&mut self) -> Outcome {
        match self.restored.take() {
            Some(_) => Ok(Reply::Done),
            None => {
                Err(Refusal::new(ErrorCode::NotFound, "this cluster was not restored, or that was finished already"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::{ChunkId, ClusterId, FileId, Uuid};

    use super::*;
    use crate::fsm::{Batch, Command, Settings, check};

    const RESTORED: Restored = Restored { as_of_ns: 5, done_ns: 9, rescued: false };

    fn apply(state: &mut State, command: Command) -> Outcome {
        state.apply(&Batch { now_ns: 7, entropy: 0, commands: vec![command] }).remove(0)
    }

    fn grown() -> State {
        let mut state = State::default();
        let settings = Settings::default();
        apply(&mut state, Command::InitCluster { cluster_id: ClusterId([1; 16]), settings }).unwrap();
        for n in 1..4u8 {
            let client_id = Uuid::from_slice(&[n; 16]).unwrap();
            apply(&mut state, Command::OpenSession { client_id, description: "c".into() }).unwrap();
        }
        let register = Command::RegisterNode {
            uuid: Uuid::from_slice(&[9; 16]).unwrap(),
            name: "s".into(),
            address: "h:1".into(),
            rack: String::new(),
            capacity_bytes: 1,
            incarnation: 1,
        };
        apply(&mut state, register).unwrap();
        state
    }

    #[test]
    fn sessions_end_and_no_number_is_given_again() {
        let mut state = grown();
        let before = (state.next_ino, state.next_session, state.next_node);
        state.go_on_from(77, RESTORED);
        assert_eq!(state.sessions().count(), 0);
        assert!(state.next_ino > before.0 && state.next_session > before.1 && state.next_node > before.2);
        check::check(&state).unwrap();
        let mut bytes = Vec::new();
        state.write_snapshot(&mut bytes).unwrap();
        assert_eq!(State::read_snapshot(&mut &bytes[..]).unwrap(), state, "it is in snapshots");
    }

    #[test]
    fn unknown_chunks_are_kept_until_the_administrator_says_so() {
        let mut state = grown();
        state.go_on_from(77, RESTORED);
        let node = state.nodes().next().unwrap().id;
        let doom = || Command::DoomUnknown { node, chunks: vec![(ChunkId([3; 32]), FileId([3; 16]))] };
        let refusal = apply(&mut state, doom()).unwrap_err();
        assert_eq!(refusal.code, ErrorCode::NotPermitted);
        assert!(!state.is_doomed(node, ChunkId([3; 32])));
        apply(&mut state, Command::FinishRestore).unwrap();
        assert_eq!(apply(&mut state, Command::FinishRestore).unwrap_err().code, ErrorCode::NotFound);
        apply(&mut state, doom()).unwrap();
        assert!(state.is_doomed(node, ChunkId([3; 32])));
    }
}
