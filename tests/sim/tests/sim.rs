//! The simulation itself: that it repeats, and that it finds what it is for.

use dfs_sim::{Defect, Report, Settings, run};

fn report(seed: u64, keep_trace: bool, defect: Option<Defect>) -> Report {
    run(&Settings { seed, keep_trace, defect })
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 1..=3 {
        let (first, second) = (report(seed, true, None), report(seed, true, None));
        for (at, (a, b)) in first.trace.iter().zip(&second.trace).enumerate() {
            assert_eq!(a, b, "seed {seed}, line {at}");
        }
        assert_eq!((first.trace.len(), first.hash), (second.trace.len(), second.hash), "seed {seed}");
        assert_ne!(first.hash, report(seed + 100, true, None).hash);
    }
}

#[test]
fn promises_hold_under_faults() {
    for seed in 1000..1010 {
        let report = report(seed, false, None);
        assert!(report.violations.is_empty(), "{report}");
        assert!(report.operations.0 > 50, "too little happened: {report}");
    }
}

/// Runs seeds until the mistake shows.
fn is_found(defect: Defect) {
    let seeds = 60;
    let found = (1..=seeds).any(|seed| !report(seed, false, Some(defect)).violations.is_empty());
    assert!(found, "{defect:?} went unnoticed in {seeds} seeds");
}

#[test]
fn chunks_acknowledged_before_they_are_on_disk_are_noticed() {
    is_found(Defect::ChunksNotSynced);
}

#[test]
fn entries_and_votes_acknowledged_before_they_are_on_disk_are_noticed() {
    is_found(Defect::LogNotSynced);
}

#[test]
fn a_quorum_of_one_is_noticed() {
    is_found(Defect::QuorumOfOne);
}

#[test]
fn stale_reads_after_the_lease_are_noticed() {
    is_found(Defect::SlowClock);
}
