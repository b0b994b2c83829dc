//! Exit codes: what a script may rely on.
//!
//! One table from [`ErrorCode`] to an exit code, exhaustive, so that a new code cannot be forgotten.

use dfs_common::ErrorCode;

/// How dfsctl ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// It worked; for `status` and `wait`: healthy.
    Ok = 0,
    /// The operation failed.
    Failed = 1,
    /// The command line, the environment or the configuration file is wrong.
    Usage = 2,
    /// What was named does not exist.
    NotFound = 3,
    /// What should be made exists already.
    AlreadyExists = 4,
    /// The cluster answered and is not healthy.
    Unhealthy = 5,
    /// The cluster cannot be reached or did not answer in time.
    Unreachable = 6,
    /// Files have chunks without a good copy.
    Damaged = 7,
    /// Nothing wrong was found, but not everything could be asked.
    Incomplete = 8,
}

/// Printed below `--help`.
pub const HELP: &str = "\
Exit codes:
  0  success; status and wait: the cluster is healthy
  1  the operation failed
  2  the command line, the environment or the configuration file is wrong
  3  not found
  4  exists already
  5  the cluster (status, wait), a file (fsck, explain) or a local process (dev status) is not healthy
  6  the cluster cannot be reached or did not answer in time
  7  files have chunks without a good copy (fsck, explain)
  8  nothing wrong was found, but not every storage node could be asked (fsck, explain)

Errors go to stderr, with --json as {\"error\":{\"code\":\"not_found\",\"message\":\"..\",\"hint\":\"..\"}}.";

impl From<ErrorCode> for Exit {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::NotFound | ErrorCode::NoAttribute => Self::NotFound,
            ErrorCode::AlreadyExists => Self::AlreadyExists,
            ErrorCode::NameTooLong | ErrorCode::InvalidArgument => Self::Usage,
            ErrorCode::NotLeader
            | ErrorCode::Unavailable
            | ErrorCode::Indeterminate
            | ErrorCode::TimedOut
            | ErrorCode::Overloaded
            | ErrorCode::NotEnoughNodes => Self::Unreachable,
            ErrorCode::NotDirectory
            | ErrorCode::IsDirectory
            | ErrorCode::NotEmpty
            | ErrorCode::NotPermitted
            | ErrorCode::PermissionDenied
            | ErrorCode::TooManyLinks
            | ErrorCode::TooLarge
            | ErrorCode::NoSpace
            | ErrorCode::ReadOnly
            | ErrorCode::NotSupported
            | ErrorCode::SessionExpired
            | ErrorCode::Stale
            | ErrorCode::Corrupt
            | ErrorCode::ChunkMissing
            | ErrorCode::WrongNode
            | ErrorCode::WrongCluster
            | ErrorCode::Incompatible
            | ErrorCode::Io
            | ErrorCode::Internal => Self::Failed,
        }
    }
}

/// The name of a code in `--json` errors; stable.
#[must_use]
pub fn code_name(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::NotFound => "not_found",
        ErrorCode::AlreadyExists => "already_exists",
        ErrorCode::NotDirectory => "not_directory",
        ErrorCode::IsDirectory => "is_directory",
        ErrorCode::NotEmpty => "not_empty",
        ErrorCode::NameTooLong => "name_too_long",
        ErrorCode::InvalidArgument => "invalid_argument",
        ErrorCode::NotPermitted => "not_permitted",
        ErrorCode::PermissionDenied => "permission_denied",
        ErrorCode::NoAttribute => "no_attribute",
        ErrorCode::TooManyLinks => "too_many_links",
        ErrorCode::TooLarge => "too_large",
        ErrorCode::NoSpace => "no_space",
        ErrorCode::ReadOnly => "read_only",
        ErrorCode::NotSupported => "not_supported",
        ErrorCode::NotLeader => "not_leader",
        ErrorCode::Unavailable => "unavailable",
        ErrorCode::Indeterminate => "indeterminate",
        ErrorCode::TimedOut => "timed_out",
        ErrorCode::Overloaded => "overloaded",
        ErrorCode::NotEnoughNodes => "not_enough_nodes",
        ErrorCode::SessionExpired => "session_expired",
        ErrorCode::Stale => "stale",
        ErrorCode::Corrupt => "corrupt",
        ErrorCode::ChunkMissing => "chunk_missing",
        ErrorCode::WrongNode => "wrong_node",
        ErrorCode::WrongCluster => "wrong_cluster",
        ErrorCode::Incompatible => "incompatible",
        ErrorCode::Io => "io",
        ErrorCode::Internal => "internal",
    }
}

/// What a user can do about a code; empty where the message says it all.
#[must_use]
pub fn hint(code: ErrorCode) -> Option<&'static str> {
    match code {
        ErrorCode::NotLeader
        | ErrorCode::Unavailable
        | ErrorCode::Indeterminate
        | ErrorCode::TimedOut
        | ErrorCode::Overloaded => {
            Some("see which metadata nodes answer with `dfsctl meta status`; check --meta or DFS_META_ADDRS")
        }
        ErrorCode::NotEnoughNodes => Some("see which storage nodes are alive with `dfsctl nodes`"),
        ErrorCode::NoSpace => Some("see the space left with `dfsctl df`; add storage nodes or delete files"),
        ErrorCode::Corrupt | ErrorCode::ChunkMissing => Some("see what is at risk with `dfsctl status`"),
        ErrorCode::NotEmpty => Some("`dfsctl rm -r` removes a directory with its content"),
        ErrorCode::IsDirectory => Some("`dfsctl ls` lists a directory, `dfsctl rm -r` removes it"),
        ErrorCode::SessionExpired | ErrorCode::Stale => Some("run the command again"),
        ErrorCode::Incompatible => Some("dfsctl and the cluster differ by more than one version: install the same one"),
        ErrorCode::WrongCluster => Some("check --meta or DFS_META_ADDRS: they name another cluster"),
        ErrorCode::NotFound
        | ErrorCode::AlreadyExists
        | ErrorCode::NotDirectory
        | ErrorCode::NameTooLong
        | ErrorCode::InvalidArgument
        | ErrorCode::NotPermitted
        | ErrorCode::PermissionDenied
        | ErrorCode::NoAttribute
        | ErrorCode::TooManyLinks
        | ErrorCode::TooLarge
        | ErrorCode::ReadOnly
        | ErrorCode::NotSupported
        | ErrorCode::WrongNode
        | ErrorCode::Io
        | ErrorCode::Internal => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_has_an_exit_above_zero_and_a_name_of_its_own() {
        let names: BTreeSet<_> = ErrorCode::ALL.into_iter().map(code_name).collect();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_ne!(Exit::from(code), Exit::Ok, "{code}");
            assert_ne!(Exit::from(code), Exit::Unhealthy, "{code}: only an answered status is unhealthy");
        }
    }

    #[test]
    fn what_scripts_test_for() {
        assert_eq!(Exit::from(ErrorCode::NotFound) as u8, 3);
        assert_eq!(Exit::from(ErrorCode::AlreadyExists) as u8, 4);
        assert_eq!(Exit::from(ErrorCode::TimedOut) as u8, 6);
        assert_eq!(Exit::from(ErrorCode::NoSpace) as u8, 1);
    }

    #[test]
    fn retryable_codes_mean_the_cluster_did_not_serve() {
        for code in ErrorCode::ALL {
            assert_eq!(code.is_retryable(), Exit::from(code) == Exit::Unreachable, "{code}");
        }
    }

    #[test]
    fn help_lists_every_exit_code() {
        for exit in [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::NotFound,
            Exit::AlreadyExists,
            Exit::Unhealthy,
            Exit::Unreachable,
            Exit::Damaged,
            Exit::Incomplete,
        ] {
            assert!(HELP.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
    }
}
