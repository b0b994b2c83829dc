//! Which file versions this client has open, and what the leader has heard of it.
//!
//! Invariant: what the leader knows differs from `open` only in `changed`.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use dfs_common::FileId;

#[derive(Debug, Default)]
pub(crate) struct Pins {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<FileId, u32>,
    changed: HashSet<FileId>,
    known: HashSet<FileId>,
}

/// An open version; dropping it unpins.
#[derive(Debug)]
pub struct Pin {
    pins: Arc<Pins>,
    file_id: FileId,
}

/// What a renewal tells the leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) full: bool,
    pub(crate) pins: Vec<FileId>,
    pub(crate) unpins: Vec<FileId>,
}

impl Pins {
    pub(crate) fn pin(self: &Arc<Self>, file_id: FileId) -> Pin {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state.open.entry(file_id).or_insert(0) += 1;
        state.changed.insert(file_id);
        Pin { pins: self.clone(), file_id }
    }

    /// What to send next: the changes, or everything.
    pub(crate) fn difference(&self, full: bool) -> Difference {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if full {
            return Difference { full, pins: state.open.keys().copied().collect(), unpins: vec![] };
        }
        // Opened and closed between two renewals: nobody needs to know.
        let State { open, changed, known } = &mut *state;
        changed.retain(|id| open.contains_key(id) != known.contains(id));
        let (pins, unpins) = changed.iter().partition(|id| open.contains_key(*id));
        Difference { full, pins, unpins }
    }

    /// The leader has taken `sent` over.
    pub(crate) fn acknowledged(&self, sent: Difference) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.full {
            let before = std::mem::take(&mut state.known);
            state.changed.extend(before);
        }
        state.known.extend(sent.pins);
        for id in &sent.unpins {
            state.known.remove(id);
        }
        let State { open, changed, known } = &mut *state;
        changed.retain(|id| open.contains_key(id) != known.contains(id));
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.pins.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if let Some(count) = state.open.get_mut(&self.file_id) {
            *count -= 1;
            if *count == 0 {
                state.open.remove(&self.file_id);
                state.changed.insert(self.file_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> FileId {
        FileId([n; 16])
    }

    #[test]
    fn differences_name_what_changed_since_the_last_acknowledged_one() {
        let pins = Arc::new(Pins::default());
        let (a, _a2, b) = (pins.pin(id(1)), pins.pin(id(1)), pins.pin(id(2)));
        let first = pins.difference(false);
        assert_eq!(first.pins.len(), 2);
        // Not acknowledged: told again.
        assert_eq!(pins.difference(false).pins.len(), 2);
        pins.acknowledged(first);
        assert_eq!(pins.difference(false), Difference::default());
        drop(a);
        assert_eq!(pins.difference(false), Difference::default(), "still open once");
        drop(b);
        let second = pins.difference(false);
        assert_eq!(second, Difference { full: false, pins: vec![], unpins: vec![id(2)] });
        // Opened again before the leader heard of the unpin, and the answer arrives after that.
        let _b = pins.pin(id(2));
        pins.acknowledged(second);
        assert_eq!(pins.difference(false), Difference { full: false, pins: vec![id(2)], unpins: vec![] });
    }

    #[test]
    fn a_new_leader_gets_the_full_set() {
        let pins = Arc::new(Pins::default());
        let a = pins.pin(id(1));
        pins.acknowledged(pins.difference(false));
        let full = pins.difference(true);
        assert_eq!(full, Difference { full: true, pins: vec![id(1)], unpins: vec![] });
        drop(a);
        pins.acknowledged(full);
        assert_eq!(pins.difference(false).unpins, [id(1)]);
    }

    #[test]
    fn short_lives_are_not_mentioned() {
        let pins = Arc::new(Pins::default());
        drop(pins.pin(id(1)));
        assert_eq!(pins.difference(false), Difference::default());
    }
}
