//! What clients did and saw, and whether one order of it explains everything: linearizability.
//!
//! An operation that failed without a definite answer is unknown, not absent: it may take effect at any time after it was
//! called, or never.
//!
//! The search is that of Wing and Gong ("Testing and verifying concurrent objects", 1993) with the memory of Lowe ("Testing
//! for linearizability", 2017): depth first over which operation comes next, remembering what was tried. Objects are checked
//! one by one, since each is linearizable if and only if all together are.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use serde::{Deserialize, Serialize};

/// Nanoseconds of some clock that all who take part share.
pub type Ns = u64;

/// Something that operations act on and that can be checked on its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Object {
    /// Content of one file that keeps its name.
    Register(u32),
    /// The names of one directory.
    Directory(u32),
}

/// What was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Call {
    /// A register gets a value.
    Write {
        /// The value.
        value: u64,
    },
    /// Which value a register has.
    Read,
    /// A name is made to name a file that was complete before; what it named is gone.
    Put {
        /// The name.
        name: u8,
        /// The file.
        ino: u64,
    },
    /// A name is made to name a file that was complete before, if the name is free.
    Link {
        /// The name.
        name: u8,
        /// The file.
        ino: u64,
    },
    /// A new empty file, if the name is free.
    Make {
        /// The name.
        name: u8,
    },
    /// A name is taken away.
    Unlink {
        /// The name.
        name: u8,
    },
    /// A file gets another name.
    Rename {
        /// The name it has.
        from: u8,
        /// The name it gets.
        to: u8,
        /// Only if that name is free.
        no_replace: bool,
        /// What has that name gets the other one.
        exchange: bool,
    },
    /// Which file has a name.
    Lookup {
        /// The name.
        name: u8,
    },
    /// All names.
    List,
}

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It took effect.
    Done,
    /// The value of the register.
    Value(u64),
    /// The file that was made.
    Made(u64),
    /// The file that has the name.
    Found(u64),
    /// All names, in order, and their files.
    Names(Vec<(u8, u64)>),
    /// The name is free: nothing was changed.
    Missing,
    /// The name is taken: nothing was changed.
    Exists,
    /// It may have taken effect, may do so later, or never.
    Unknown,
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// What it acts on.
    pub object: Object,
    /// What was asked for.
    pub call: Call,
    /// When it was asked for.
    pub called: Ns,
    /// When the answer was there.
    pub returned: Ns,
    /// What came back.
    pub answer: Answer,
    /// Who asked.
    pub client: String,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ns: Ns| if ns == Ns::MAX { f64::INFINITY } else { ns as f64 / 1e9 };
        let (from, to) = (seconds(self.called), seconds(self.returned));
        write!(f, "{from:>10.4} .. {to:>10.4} {} {:?} -> {:?}", self.client, self.call, self.answer)
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct State {
    value: u64,
    names: BTreeMap<u8, u64>,
}

impl State {
    /// The state after the operation; `None` if the answer does not fit this state.
    fn after(&self, operation: &Operation) -> Option<Self> {
        let unknown = operation.answer == Answer::Unknown;
        let answered = |answer: Answer| unknown || operation.answer == answer;
        let mut next = self.clone();
        match &operation.call {
            Call::Write { value } => {
                next.value = *value;
                answered(Answer::Done).then_some(next)
            }
            Call::Read => answered(Answer::Value(self.value)).then_some(next),
            Call::Put { name, ino } => {
                next.names.insert(*name, *ino);
                answered(Answer::Done).then_some(next)
            }
            Call::Link { name, ino } => {
                let taken = next.names.contains_key(name);
                next.names.entry(*name).or_insert(*ino);
                answered(if taken { Answer::Exists } else { Answer::Done }).then_some(next)
            }
            Call::Make { name } => match (self.names.get(name), &operation.answer) {
                (Some(_), Answer::Exists) => Some(next),
                (None, Answer::Made(ino)) => {
                    next.names.insert(*name, *ino);
                    Some(next)
                }
                // The number that it would have got is not known: a number of its own stands for it.
                (None, Answer::Unknown) => {
                    next.names.insert(*name, u64::MAX - operation.called);
                    Some(next)
                }
                _ => None,
            },
            Call::Unlink { name } => {
                let found = next.names.remove(name).is_some();
                answered(if found { Answer::Done } else { Answer::Missing }).then_some(next)
            }
            Call::Rename { from, to, no_replace, exchange } => {
                let (source, target) = (self.names.get(from).copied(), self.names.get(to).copied());
                let right = match (source, target) {
                    (None, Some(_)) if *no_replace => {
                        return (unknown || matches!(operation.answer, Answer::Missing | Answer::Exists))
                            .then_some(next);
                    }
                    (None, _) => Answer::Missing,
                    (Some(_), None) if *exchange => Answer::Missing,
                    (Some(_), Some(_)) if *no_replace => Answer::Exists,
                    (Some(source), Some(target)) if *exchange => {
                        next.names.insert(*from, target);
                        next.names.insert(*to, source);
                        Answer::Done
                    }
                    (Some(source), _) => {
                        next.names.remove(from);
                        next.names.insert(*to, source);
                        Answer::Done
                    }
                };
                answered(right).then_some(next)
            }
            Call::Lookup { name } => match (self.names.get(name), &operation.answer) {
                (Some(ino), Answer::Found(found)) => same(*ino, *found).then_some(next),
                (None, Answer::Missing) => Some(next),
                _ => None,
            },
            Call::List => match &operation.answer {
                Answer::Names(names) => {
                    let fits = names.len() == self.names.len()
                        && names.iter().zip(&self.names).all(|((a, found), (b, ino))| a == b && same(*ino, *found));
                    fits.then_some(next)
                }
                _ => None,
            },
        }
    }
}

/// Numbers of files whose making was not answered are not known.
fn same(ino: u64, found: u64) -> bool {
    ino == found || ino > u64::MAX / 2
}

/// What the search found.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Some order explains everything.
    Linearizable,
    /// The longest prefix that some order explains, and what cannot follow.
    Violated(String),
    /// Given up.
    TooLong,
}

/// Orders tried before an object is given up.
const TRIED_MAX: usize = 300_000;

/// Looks for an order of operations on one object that explains every answer. A register begins with the value 0, a directory
/// empty.
#[must_use]
pub fn check(mut operations: Vec<Operation>) -> Verdict {
    operations
        .retain(|o| o.answer != Answer::Unknown || !matches!(o.call, Call::Read | Call::Lookup { .. } | Call::List));
    for operation in operations.iter_mut().filter(|o| o.answer == Answer::Unknown) {
        operation.returned = Ns::MAX;
    }
    operations.sort_by_key(|operation| (operation.called, operation.returned));
    let definite = operations.iter().filter(|operation| operation.returned != Ns::MAX).count();
    let mut search = Search { operations: &operations, tried: HashSet::new(), best: 0, stuck: String::new() };
    let done = vec![0_u64; operations.len().div_ceil(64)];
    match search.explain(done, 0, &State::default(), definite) {
        Some(true) => Verdict::Linearizable,
        Some(false) => Verdict::Violated(search.stuck),
        None => Verdict::TooLong,
    }
}

struct Search<'a> {
    operations: &'a [Operation],
    tried: HashSet<(Vec<u64>, State)>,
    best: usize,
    stuck: String,
}

fn is_set(bits: &[u64], at: usize) -> bool {
    bits[at / 64] >> (at % 64) & 1 == 1
}

impl Search<'_> {
    fn explain(&mut self, done: Vec<u64>, first: usize, state: &State, left: usize) -> Option<bool> {
        // A stack of its own: histories are longer than threads' stacks are deep.
        let mut stack = vec![(done, first, state.clone(), left)];
        while let Some((done, mut first, state, left)) = stack.pop() {
            if left == 0 {
                return Some(true);
            }
            if self.tried.len() > TRIED_MAX {
                return None;
            }
            if !self.tried.insert((done.clone(), state.clone())) {
                continue;
            }
            while first < self.operations.len() && is_set(&done, first) {
                first += 1;
            }
            self.push_next(&mut stack, &done, first, &state, left);
        }
        Some(false)
    }

    fn push_next(
        &mut self,
        stack: &mut Vec<(Vec<u64>, usize, State, usize)>,
        done: &[u64],
        first: usize,
        state: &State,
        left: usize,
    ) {
        let open = || (first..self.operations.len()).filter(|at| !is_set(done, *at));
        let mut deadline = Ns::MAX;
        let mut candidates = Vec::new();
        for at in open() {
            let operation = &self.operations[at];
            if operation.called > deadline {
                break;
            }
            deadline = deadline.min(operation.returned);
            candidates.push(at);
        }
        candidates.retain(|at| self.operations[*at].called <= deadline);
        // The stack turns the order round: what returned first is tried first, what is unknown last.
        candidates.sort_by_key(|at| std::cmp::Reverse(self.operations[*at].returned));
        let explained = self.operations.len() - left;
        let mut any = false;
        for at in &candidates {
            let operation = &self.operations[*at];
            let Some(next) = state.after(operation) else { continue };
            let is_definite = operation.returned != Ns::MAX;
            any |= is_definite;
            let mut done = done.to_vec();
            done[at / 64] |= 1 << (at % 64);
            stack.push((done, first, next, left - usize::from(is_definite)));
        }
        if !any && explained >= self.best {
            self.best = explained;
            let lines: Vec<_> = candidates.iter().map(|at| self.operations[*at].to_string()).collect();
            self.stuck = format!("in state {state:?} none of these can be next:\n  {}", lines.join("\n  "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(called: Ns, returned: Ns, call: Call, answer: Answer) -> Operation {
        Operation { object: Object::Register(0), call, called, returned, answer, client: "c".into() }
    }

    #[test]
    fn orders_are_found_or_refuted() {
        let write = |from, to, value, answer| operation(from, to, Call::Write { value }, answer);
        let read = |from, to, value| operation(from, to, Call::Read, Answer::Value(value));
        let good = vec![write(0, 10, 1, Answer::Done), read(5, 6, 0), read(7, 8, 1), read(11, 12, 1)];
        assert_eq!(check(good), Verdict::Linearizable);
        let stale = vec![write(0, 10, 1, Answer::Done), read(11, 12, 0)];
        assert!(matches!(check(stale), Verdict::Violated(_)));
        let back = vec![write(0, 10, 1, Answer::Done), read(2, 3, 1), read(4, 5, 0)];
        assert!(matches!(check(back), Verdict::Violated(_)));
        let late = vec![write(0, 1, 1, Answer::Unknown), write(2, 3, 2, Answer::Done), read(4, 5, 2), read(6, 7, 1)];
        assert_eq!(check(late), Verdict::Linearizable, "what is unknown may come late");
    }

    #[test]
    fn one_of_two_links_to_a_name_wins() {
        let link = |called, returned, ino, answer| operation(called, returned, Call::Link { name: 1, ino }, answer);
        let lookup = |at, ino| operation(at, at + 1, Call::Lookup { name: 1 }, Answer::Found(ino));
        let one = vec![link(0, 10, 7, Answer::Done), link(0, 10, 8, Answer::Exists), lookup(11, 7)];
        assert_eq!(check(one.clone()), Verdict::Linearizable);
        let both = vec![link(0, 10, 7, Answer::Done), link(0, 10, 8, Answer::Done)];
        assert!(matches!(check(both), Verdict::Violated(_)));
        let loser = [one, vec![lookup(13, 8)]].concat();
        assert!(matches!(check(loser), Verdict::Violated(_)));
        let open = vec![link(0, 1, 7, Answer::Unknown), link(2, 3, 8, Answer::Exists), lookup(4, 7)];
        assert_eq!(check(open), Verdict::Linearizable, "what is unknown may have happened");
    }

    #[test]
    fn names_follow_the_rules_of_directories() {
        let put = |at, name, ino| operation(at, at + 1, Call::Put { name, ino }, Answer::Done);
        let rename = |at, from, to, answer| {
            operation(at, at + 1, Call::Rename { from, to, no_replace: false, exchange: false }, answer)
        };
        let lookup = |at, name, answer| operation(at, at + 1, Call::Lookup { name }, answer);
        let good = vec![
            put(0, 1, 7),
            rename(2, 1, 2, Answer::Done),
            lookup(4, 1, Answer::Missing),
            lookup(6, 2, Answer::Found(7)),
        ];
        assert_eq!(check(good.clone()), Verdict::Linearizable);
        let twice = [good, vec![rename(8, 2, 3, Answer::Missing)]].concat();
        assert!(matches!(check(twice), Verdict::Violated(_)));
    }
}
