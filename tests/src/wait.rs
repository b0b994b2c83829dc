//! Waiting for a condition, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How often a condition is asked for. Small against what is waited for, large against the cost of one question.
const STEP: Duration = Duration::from_millis(20);

/// Asks until `condition` holds.
///
/// # Errors
/// It did not within `limit`; the message names `what`.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until_some(what, limit, || condition().then_some(()))
}

/// Asks until `question` has an answer, and returns it.
///
/// # Errors
/// It had none within `limit`; the message names `what`.
pub fn until_some<T>(what: &str, limit: Duration, mut question: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(answer) = question() {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(STEP);
    }
}
