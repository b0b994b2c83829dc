//! The error of every operation: one closed code, what was attempted on what, and everything that was tried.

use std::fmt;

use dfs_common::ErrorCode;
use dfs_proto::status::RpcError;

/// One endpoint that was tried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// `host:port`.
    pub endpoint: String,
    /// What it answered, or how the connection failed; the last one if it was tried several times.
    pub error: String,
    /// How often it was tried.
    pub times: u32,
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// The closed code; decides errno and whether a repetition makes sense.
    pub code: ErrorCode,
    /// What failed on what.
    pub message: String,
    /// Every endpoint that was tried before giving up; empty if the first answer was final.
    pub tried: Vec<Attempt>,
    /// It is about a file of this machine, not about the cluster.
    pub is_local: bool,
}

impl Error {
    /// An error without a list of attempts.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), tried: Vec::new(), is_local: false }
    }

    /// A failure that is about a file of this machine.
    pub(crate) fn local(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { is_local: true, ..Self::new(code, message) }
    }

    /// The errno that a program on the mount sees.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.code.errno()
    }

    /// Puts the operation and its object in front of the message.
    #[must_use]
    pub(crate) fn context(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Remembers one more failed endpoint.
    pub(crate) fn note(tried: &mut Vec<Attempt>, endpoint: &str, error: impl fmt::Display) {
        let error = error.to_string();
        match tried.iter_mut().find(|attempt| attempt.endpoint == endpoint) {
            Some(attempt) => {
                attempt.error = error;
                attempt.times = attempt.times.saturating_add(1);
            }
            None => tried.push(Attempt { endpoint: endpoint.to_owned(), error, times: 1 }),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (i, attempt) in self.tried.iter().enumerate() {
            f.write_str(if i == 0 { " (tried " } else { "; " })?;
            write!(f, "{}: {}", attempt.endpoint, attempt.error)?;
            if attempt.times > 1 {
                write!(f, " [{} times]", attempt.times)?;
            }
        }
        f.write_str(if self.tried.is_empty() { "" } else { ")" })
    }
}

impl std::error::Error for Error {}

impl From<RpcError> for Error {
    fn from(error: RpcError) -> Self {
        Self::new(error.code, error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_listed_once() {
        let mut error = Error::new(ErrorCode::TimedOut, "lookup of \"x\" in inode 1: no answer within 30s");
        Error::note(&mut error.tried, "a:1", "refused");
        Error::note(&mut error.tried, "b:1", "not the leader");
        Error::note(&mut error.tried, "a:1", "reset");
        assert_eq!(
            error.to_string(),
            "lookup of \"x\" in inode 1: no answer within 30s (tried a:1: reset [2 times]; b:1: not the leader)"
        );
    }
}
