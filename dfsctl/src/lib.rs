//! dfsctl as a library: the command line as data ([`command`]) and its execution ([`run`]).
//!
//! Rooms: `cli` (every option), `cmd` (one file for each group of verbs), `health` (what a cluster status means), `context`
//! (connection and interruption), `output` and `text` (printing), `exit` and `failure` (how it ends).
//!
//! # JSON
//!
//! What `--json` prints is stable: fields are added, never renamed or removed. Names that are not UTF-8 stand as text with
//! replacement characters, and in `KEY_hex` with their exact bytes. The shapes are documented at the verbs in [`cmd`] and at
//! [`health::Status`].

pub mod cli;
pub mod cmd;
pub mod exit;
pub mod failure;
pub mod health;

mod context;
mod output;
mod text;

use std::{ffi::OsString, process::ExitCode};

use clap::{CommandFactory, FromArgMatches};
use dfs_common::{config::ParseError, crash};

use crate::{cli::Cli, exit::Exit, failure::Failure};

/// The whole command line.
#[must_use]
pub fn command() -> clap::Command {
    // `-h` shows what a verb is about; the tuning of the client, which every verb takes, is for `--help`.
    Cli::command().mut_args(|arg| {
        let everyday = ["meta", "json", "quiet", "help", "version"].contains(&arg.get_id().as_str());
        if everyday { arg } else { arg.hide_short_help(true) }
    })
}

/// Runs one command line (the program's name first) and gives the exit code.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    let json_wanted = args.iter().any(|arg| arg == "--json");
    match crash::arm() {
        Ok(None) => {}
        Ok(Some(armed)) => eprintln!("dfsctl: warning: {armed}"),
        Err(error) => return Failure::usage(error).report(json_wanted),
    }
    let cli = match dfs_common::config::parse(command(), args) {
        Ok(matches) => Cli::from_arg_matches(&matches).map_err(ParseError::Clap),
        Err(error) => Err(error),
    };
    match cli {
        Ok(cli) => {
            let json = cli.global.json;
            match cmd::run(cli) {
                Ok(()) => ExitCode::from(Exit::Ok as u8),
                Err(failure) => failure.report(json),
            }
        }
        Err(error) => refuse(error, json_wanted),
    }
}

/// Help, version, or a mistake.
fn refuse(error: ParseError, json: bool) -> ExitCode {
    match error {
        ParseError::Clap(error) if !error.use_stderr() || !json => {
            // Nothing can be done when even the help text cannot be printed.
            drop(error.print());
            ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Ok } as u8)
        }
        ParseError::Clap(error) => {
            // The first paragraph says what is wrong; the others repeat the usage.
            let text = error.to_string();
            let first = text.split("\n\n").next().unwrap_or_default();
            Failure::usage(first.trim_start_matches("error: ")).hint("try --help").report(json)
        }
        ParseError::File(error) => Failure::usage(error).report(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Verb;

    fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
        let args = std::iter::once("dfsctl").chain(line.iter().copied());
        Cli::from_arg_matches(&command().try_get_matches_from(args)?)
    }

    #[test]
    fn the_command_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn the_original_command_line() {
        for line in [
            &["upload", "--file", "F", "--name", "N"][..],
            &["upload", "--file", "F", "--name", "N", "--resume"],
            &["list"],
            &["list", "--prefix", "P"],
            &["download", "--name", "N", "--out", "F"],
            &["delete", "--name", "N"],
            &["delete", "--id", "00112233445566778899aabbccddeeff"],
        ] {
            assert!(parse(line).is_ok(), "{line:?}");
        }
        assert!(parse(&["delete"]).is_err());
        assert!(parse(&["delete", "--name", "N", "--id", "00112233445566778899aabbccddeeff"]).is_err());
        assert!(parse(&["delete", "--id", "xyz"]).is_err());
    }

    #[test]
    fn global_options_stand_before_or_behind_the_verb() {
        for line in [&["--meta", "a:1,b:2", "--json", "status"][..], &["status", "--json", "--meta", "a:1,b:2"]] {
            let cli = parse(line).expect("parses");
            assert_eq!(cli.global.client.meta, ["a:1", "b:2"]);
            assert!(cli.global.json);
        }
    }

    #[test]
    fn verbs_and_their_options() {
        for line in [
            "ls",
            "ls -l /a",
            "stat /a",
            "cat /a",
            "mkdir -p /a/b",
            "rm -r /a",
            "mv /a /b",
            "status",
            "nodes",
            "df",
            "trash list --prefix /a --since 2h",
            "trash restore /a --to /b --parents",
            "trash restore -r /a",
            "trash empty --older 12h --yes /a",
            "trash retention",
            "trash retention 0",
            "wait healthy --timeout 10s",
            "events",
            "fsck",
            "fsck /a --verify",
            "explain /a",
            "events --follow --since 10m --kind node-state,repair-progress -n 5",
            "meta status",
            "repair status",
            "repair queue --limit 5",
            "repair now",
            "repair now /a",
            "repair limits",
            "repair limits --streams 2 --total 20 --rate 100M",
            "repair limits --rate 0",
            "scrub status --json",
            "scrub start storage-1 2",
            "scrub pause",
            "scrub resume 3",
            "dev up -m 3 -s 4 --dir D --mount M --replication 3 --heartbeat 1s --suspect 2s --dead 5s --capacity 1G",
            "dev up --meta-arg --raft-heartbeat=50ms --storage-arg --rack=r --mount-opt allow_other",
            "dev status --json",
            "dev down --dir D",
            "dev kill storage-2",
            "dev start meta-1",
            "dev stop mount",
            "dev pause storage-1",
            "dev resume storage-1",
        ] {
            assert!(parse(&line.split(' ').collect::<Vec<_>>()).is_ok(), "{line}");
        }
        for line in [
            "wait",
            "wait healthy --timeout 10",
            "dev up -s 0",
            "dev kill storage-0",
            "dev kill nobody",
            "mv /a",
            "repair limits --streams 0",
            "repair",
            "scrub",
        ] {
            assert!(parse(&line.split(' ').collect::<Vec<_>>()).is_err(), "{line}");
        }
    }

    #[test]
    fn names_are_any_bytes() {
        use std::os::unix::ffi::OsStringExt as _;
        let args = ["dfsctl".into(), "cat".into(), OsString::from_vec(b"/a\xff".to_vec())];
        let cli = Cli::from_arg_matches(&command().try_get_matches_from(args).expect("parses")).expect("fits");
        assert!(matches!(cli.verb, Verb::Cat(cat) if cat.path == OsString::from_vec(b"/a\xff".to_vec())));
    }
}
