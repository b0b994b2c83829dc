//! Programs that run to their end.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Result;

use crate::{bins, network, process};

/// What a finished program said.
#[derive(Debug)]
pub struct Output {
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `dfsctl` without a cluster.
///
/// # Errors
/// It cannot be started.
pub fn dfsctl(args: &[&str]) -> Result<Output> {
    run(&bins::path("dfsctl")?, args)
}

/// Runs any of the programs to its end.
///
/// # Errors
/// It cannot be started.
pub fn run(program: &Path, args: &[&str]) -> Result<Output> {
    run_on(None, program, args)
}

/// Runs it on the machine behind `namespace`.
pub(crate) fn run_on(namespace: Option<&Path>, program: &Path, args: &[&str]) -> Result<Output> {
    let mut command = process::command(program);
    if let Some(namespace) = namespace {
        network::enter(&mut command, namespace)?;
    }
    output(command.args(args))
}

/// Runs a command to its end.
///
/// # Errors
/// It cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
