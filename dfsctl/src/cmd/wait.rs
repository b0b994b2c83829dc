//! `wait`: block until the cluster is in a state.
//!
//! JSON: the last [`Status`] that was seen, also when the time is over.

use std::time::Duration;

use clap::{Args, ValueEnum};
use dfs_common::units::Span;
use tokio::time::{Instant, sleep, timeout_at};

use crate::{context::Context, failure::Failure, health::Status};

/// How often the leader is asked: a status costs it no disk and little time.
const POLL: Duration = Duration::from_millis(250);

/// How often a waiting person is told what is missing.
const TELL: Duration = Duration::from_secs(3);

/// `dfsctl wait`.
#[derive(Args, Debug)]
pub struct Wait {
    /// What to wait for
    #[arg(value_enum)]
    pub state: State,
    /// How long to wait; then exit code 5 if the cluster answers and 6 if it does not
    #[arg(long, value_name = "TIME", default_value = "5m")]
    pub timeout: Span,
}

/// A state of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum State {
    /// Every chunk has all its copies, as `dfsctl status` defines it
    Healthy,
}

/// # Errors
/// Not healthy in time; no answer in time.
pub(super) fn wait(context: &Context, args: &Wait) -> Result<(), Failure> {
    let State::Healthy = args.state;
    let patience = args.timeout;
    let (last, failure) = context.with_dfs(async |dfs| {
        let deadline = Instant::now() + patience.0;
        let mut last: Option<Status> = None;
        let mut error: Option<Failure> = None;
        let mut told = None;
        loop {
            match timeout_at(deadline, dfs.cluster_status()).await {
                Ok(Ok(wire)) => {
                    let status = Status::new(wire);
                    if status.healthy {
                        return Ok((Some(status), None));
                    }
                    if told.is_none_or(|told: Instant| told.elapsed() >= TELL) {
                        context.out.note(format!("waiting: {}", status.problems.join("; ")));
                        told = Some(Instant::now());
                    }
                    (last, error) = (Some(status), None);
                }
                Ok(Err(failed)) => error = Some(failed.into()),
                Err(_) => {}
            }
            if Instant::now() + POLL >= deadline {
                let failure = error.unwrap_or_else(|| give_up(last.as_ref(), patience));
                return Ok((last, Some(failure)));
            }
            sleep(POLL).await;
        }
    })?;
    if context.out.json
        && let Some(status) = &last
    {
        context.out.value(status)?;
    }
    match failure {
        Some(failure) => Err(failure),
        None if context.out.json || context.out.quiet => Ok(()),
        None => context.out.lines(&last.map(|status| status.summary()).unwrap_or_default()),
    }
}

fn give_up(last: Option<&Status>, patience: Span) -> Failure {
    match last {
        Some(status) => Failure::unhealthy(format!("not healthy within {patience}: {}", status.problems.join("; "))),
        None => Failure::unreachable(format!("no metadata leader answered within {patience}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn an_answer_decides_between_unhealthy_and_unreachable() {
        let patience = Span(Duration::from_secs(1));
        assert_eq!(give_up(None, patience).exit, Exit::Unreachable);
        assert_eq!(give_up(Some(&Status::without_leader(vec![])), patience).exit, Exit::Unhealthy);
    }
}
