//! The one error type of dfsctl's verbs: what failed, on what, and what to do next.

use std::{fmt, io, process::ExitCode};

use dfs_common::ErrorCode;
use serde_json::json;

use crate::exit::{self, Exit};

/// A verb failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// Stable name for scripts.
    pub code: &'static str,
    /// What failed, on what, and why.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// Nobody reads standard output any more; nothing is printed about it.
    pipe: bool,
}

impl Failure {
    /// A failure with a domain code.
    pub fn of(code: ErrorCode, message: impl fmt::Display) -> Self {
        Self {
            exit: code.into(),
            code: exit::code_name(code),
            message: message.to_string(),
            hint: exit::hint(code).map(Into::into),
            pipe: false,
        }
    }

    /// Something on this machine failed.
    pub fn local(message: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, "failed", message)
    }

    /// The command line makes no sense.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, "usage", message)
    }

    /// What was named does not exist.
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Exit::NotFound, "not_found", message)
    }

    /// The cluster answered and is not healthy.
    pub fn unhealthy(message: impl fmt::Display) -> Self {
        Self::new(Exit::Unhealthy, "unhealthy", message)
    }

    /// Files have chunks without a good copy.
    pub fn damaged(message: impl fmt::Display) -> Self {
        Self::new(Exit::Damaged, "damaged", message)
    }

    /// Not everything could be asked.
    pub fn incomplete(message: impl fmt::Display) -> Self {
        Self::new(Exit::Incomplete, "incomplete", message)
    }

    /// The cluster did not answer.
    pub fn unreachable(message: impl fmt::Display) -> Self {
        Self::of(ErrorCode::TimedOut, message)
    }

    /// A local input or output failed on `what`.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::local(format!("{what}: {error}"))
    }

    /// Writing to standard output failed.
    pub fn stdout(error: &io::Error) -> Self {
        let mut failure = Self::io("cannot write to standard output", error);
        failure.pipe = error.kind() == io::ErrorKind::BrokenPipe;
        failure
    }

    fn new(exit: Exit, code: &'static str, message: impl fmt::Display) -> Self {
        Self { exit, code, message: message.to_string(), hint: None, pipe: false }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints the failure to standard error and gives the exit code. When the reader of standard output has gone the process
    /// ends as programs in a pipe do: by SIGPIPE, silently.
    #[must_use]
    pub fn report(&self, json: bool) -> ExitCode {
        if self.pipe {
            // SAFETY: restores a default disposition and signals the own process; no memory is involved.
            unsafe {
                libc::signal(libc::SIGPIPE, libc::SIG_DFL);
                libc::raise(libc::SIGPIPE);
            }
        } else if json {
            eprintln!("{}", self.to_json());
        } else {
            eprintln!("dfsctl: {}", self.message);
            if let Some(hint) = &self.hint {
                eprintln!("hint: {hint}");
            }
        }
        ExitCode::from(self.exit as u8)
    }

    fn to_json(&self) -> serde_json::Value {
        json!({ "error": { "code": self.code, "message": self.message, "hint": self.hint } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_code_and_message() {
        let json = Failure::of(ErrorCode::NotFound, "no file /a").to_json();
        assert_eq!(json["error"]["code"], "not_found");
        assert_eq!(json["error"]["message"], "no file /a");
    }

    #[test]
    fn a_closed_pipe_is_not_reported_as_a_failure_to_write() {
        assert!(Failure::stdout(&io::ErrorKind::BrokenPipe.into()).pipe);
        assert!(!Failure::stdout(&io::ErrorKind::StorageFull.into()).pipe);
    }
}
