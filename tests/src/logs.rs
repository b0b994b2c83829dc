//! Reading the logs of processes: a clean run is one whose logs hold nothing unexpected.

use std::{fs, path::Path};

/// What a test says in advance about the logs.
#[derive(Clone, Debug, Default)]
pub struct Expectations {
    /// WARN lines are part of the test (something is killed or full).
    pub warnings: bool,
    /// ERROR and WARN lines that contain one of these texts are expected.
    pub lines: Vec<String>,
}

/// The lines of `log` that should not be there.
#[must_use]
pub fn unexpected(log: &Path, expected: &Expectations) -> Vec<String> {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.lines().filter(|line| is_unexpected(line, expected)).map(str::to_owned).collect()
}

fn is_unexpected(line: &str, expected: &Expectations) -> bool {
    if line.contains("panicked at") || line.contains("RUST_BACKTRACE") {
        return true;
    }
    let level = line.split_whitespace().take(3).find(|word| matches!(*word, "WARN" | "ERROR"));
    let bad = match level {
        Some("WARN") => !expected.warnings,
        Some(_) => true,
        None => false,
    };
    bad && !expected.lines.iter().any(|text| line.contains(text))
}

/// The last `count` lines of `log`.
#[must_use]
pub fn tail(log: &Path, count: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_clean_run_must_not_say() {
        let strict = Expectations::default();
        assert!(is_unexpected("2026-01-01T00:00:00Z  WARN dfs_meta: odd", &strict));
        assert!(is_unexpected("2026-01-01T00:00:00Z ERROR dfs_meta: bad", &strict));
        assert!(is_unexpected("thread 'main' panicked at src/main.rs:1", &strict));
        assert!(!is_unexpected("2026-01-01T00:00:00Z  INFO dfs_meta: no WARN here", &strict));
        let faults = Expectations { warnings: true, lines: vec!["disk full".into()] };
        assert!(!is_unexpected("2026-01-01T00:00:00Z  WARN dfs_meta: odd", &faults));
        assert!(is_unexpected("2026-01-01T00:00:00Z ERROR dfs_meta: bad", &faults));
        assert!(!is_unexpected("2026-01-01T00:00:00Z ERROR dfs_meta: disk full", &faults));
    }
}
