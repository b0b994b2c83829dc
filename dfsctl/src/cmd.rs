//! The verbs, one file for each group.

pub mod change;
pub mod clone;
pub mod cluster;
pub mod dev;
pub mod events;
pub mod explain;
pub mod fsck;
pub mod meta;
pub mod mount;
pub mod namespace;
pub mod node;
pub mod rebalance;
pub mod repair;
pub mod scrub;
pub mod transfer;
pub mod trash;
pub mod wait;

use crate::{
    cli::{Cli, Verb},
    context::{self, Context},
    failure::Failure,
};

/// Runs one verb.
///
/// # Errors
/// What the user is told, with the exit code.
pub fn run(cli: Cli) -> Result<(), Failure> {
    context::start_log(&cli.global)?;
    let context = Context::new(cli.global)?;
    match cli.verb {
        Verb::Upload(args) => transfer::upload(&context, &args),
        Verb::Download(args) => transfer::download(&context, &args),
        Verb::List(args) => transfer::list(&context, &args),
        Verb::Delete(args) => transfer::delete(&context, &args),
        Verb::Ls(args) => namespace::ls(&context, &args),
        Verb::Stat(args) => namespace::stat(&context, &args),
        Verb::Cat(args) => namespace::cat(&context, &args),
        Verb::Mkdir(args) => change::mkdir(&context, &args),
        Verb::Rm(args) => change::rm(&context, &args),
        Verb::Mv(args) => change::mv(&context, &args),
        Verb::Trash(args) => trash::run(&context, &args),
        Verb::Clone(args) => clone::clone(&context, &args),
        Verb::Status(_) => cluster::status(&context),
        Verb::Nodes(_) => cluster::nodes(&context),
        Verb::Df(_) => cluster::df(&context),
        Verb::Fsck(args) => fsck::run(&context, &args),
        Verb::Explain(args) => explain::run(&context, &args),
        Verb::Events(args) => events::run(&context, &args),
        Verb::Wait(args) => wait::wait(&context, &args),
        Verb::Meta(args) => meta::run(&context, &args),
        Verb::Mount(args) => mount::run(&context, &args),
        Verb::Repair(args) => repair::run(&context, &args),
        Verb::Scrub(args) => scrub::run(&context, &args),
        Verb::Rebalance(args) => rebalance::run(&context, &args),
        Verb::Node(args) => node::run(&context, &args),
        Verb::Dev(args) => dev::run(&context, args),
    }
}
