//! What the journals of a round say.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Report,
    journal::{self, Line, Standing},
};
use crate::{
    history::{self, Answer, Call, Object, Operation, Verdict},
    logs::Expectations,
};

/// Lines of ERROR that faults bring about.
pub(super) fn expected_logs() -> Expectations {
    let lines = [
        "corrupt",
        "checksum",
        "damaged",
        "No space left",
        "the disk is full",
        "Input/output error",
        "the process that served the mount died",
    ];
    Expectations { warnings: true, lines: lines.map(str::to_owned).to_vec() }
}

/// Judges a round.
pub(super) fn judge(journals: &[(String, Vec<Line>)]) -> Report {
    let mut report = Report::default();
    let mut operations = Vec::new();
    for (name, lines) in journals {
        count(lines, &mut report);
        let violations = lines.iter().filter_map(|line| match line {
            Line::Violation(text) => Some(format!("{name}: {text}")),
            _ => None,
        });
        report.findings.extend(violations);
        operations.extend(journal::operations(name, lines));
    }
    let unknown = operations.iter().filter(|operation| operation.answer == Answer::Unknown).count();
    report.operations = (operations.len(), unknown);
    let done = |operation: &&Operation| {
        operation.answer == Answer::Done
            && matches!(operation.call, Call::Put { .. } | Call::Link { .. } | Call::Write { .. })
    };
    report.acknowledged.1 = operations.iter().filter(done).count();
    linearizable(operations, &mut report);
    report
}

fn count(lines: &[Line], report: &mut Report) {
    let mut whole = BTreeSet::new();
    for line in lines {
        match line {
            Line::Step { what, well } => {
                let sum = report.steps.entry(what.clone()).or_default();
                if *well { sum.0 += 1 } else { sum.1 += 1 }
            }
            Line::Tree { number, manifest, standing: Standing::Whole(_) } if whole.insert(*number) => {
                let sums = std::fs::read_to_string(manifest).unwrap_or_default();
                report.acknowledged.0 += sums.lines().count();
            }
            _ => {}
        }
    }
}

fn linearizable(operations: Vec<Operation>, report: &mut Report) {
    let mut objects: BTreeMap<Object, Vec<Operation>> = BTreeMap::new();
    for operation in operations {
        objects.entry(operation.object).or_default().push(operation);
    }
    report.histories.0 = objects.len();
    for (object, operations) in objects {
        match check(operations) {
            Verdict::Linearizable => {}
            Verdict::Violated(why) => report.findings.push(format!("{object:?} is not linearizable: {why}")),
            Verdict::TooLong => report.histories.1 += 1,
        }
    }
}

/// Looks for an order. Changes without an answer whose value nobody saw are left out first: an order without them is one, and
/// is found much faster.
fn check(operations: Vec<Operation>) -> Verdict {
    let seen: BTreeSet<u64> = operations
        .iter()
        .filter_map(|operation| match operation.answer {
            Answer::Found(value) | Answer::Value(value) => Some(value),
            _ => None,
        })
        .collect();
    let is_seen = |operation: &&Operation| match operation.call {
        Call::Put { ino: value, .. } | Call::Link { ino: value, .. } | Call::Write { value } => {
            operation.answer != Answer::Unknown || seen.contains(&value)
        }
        _ => true,
    };
    let fewer: Vec<Operation> = operations.iter().filter(is_seen).cloned().collect();
    if fewer.len() < operations.len() && history::check(fewer) == Verdict::Linearizable {
        return Verdict::Linearizable;
    }
    history::check(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(call: Call, at: u64) -> Line {
        Line::Called { object: Object::Directory(1), call, at }
    }

    fn returned(answer: Answer, at: u64) -> Line {
        Line::Returned { answer, at }
    }

    #[test]
    fn a_lost_file_a_stale_read_and_a_violation_are_findings() {
        let put = |ino, at| [called(Call::Put { name: 0, ino }, at), returned(Answer::Done, at + 1)];
        let look = |answer, at| [called(Call::Lookup { name: 0 }, at), returned(answer, at + 1)];
        let judged = |lines: Vec<Line>| judge(&[("w".to_owned(), lines)]).findings.len();
        assert_eq!(judged([put(7, 0), look(Answer::Found(7), 2)].concat()), 0);
        assert_eq!(judged([put(7, 0), look(Answer::Missing, 2)].concat()), 1, "lost");
        let stale = [put(7, 0), put(8, 2), look(Answer::Found(8), 4), look(Answer::Found(7), 6)];
        assert_eq!(judged(stale.concat()), 1, "stale");
        assert_eq!(judged(vec![Line::Violation("torn".into())]), 1);
        let unknown = [called(Call::Put { name: 0, ino: 9 }, 0), returned(Answer::Unknown, 5)];
        let late = [unknown.to_vec(), put(8, 6).to_vec(), look(Answer::Found(9), 8).to_vec()].concat();
        assert_eq!(judged(late), 0, "what is unknown may come late");
    }
}
