//! `dfsctl`: the administrator's and script writer's client of dfs.

use std::process::ExitCode;

fn main() -> ExitCode {
    dfsctl::run(std::env::args_os().collect())
}
