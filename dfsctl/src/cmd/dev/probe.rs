//! Asks the processes whether they serve. Every question has a short deadline: loopback answers at once or not at all.

use std::time::Duration;

use dfs_client::{Dfs, Options};
use dfs_proto::v1;

use super::plan::Plan;
use crate::{context::Context, failure::Failure, health::Status};

/// Longest time one question may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// A connection for questions.
pub(super) struct Probe<'a> {
    context: &'a Context,
    dfs: Dfs,
}

impl<'a> Probe<'a> {
    /// # Errors
    /// The addresses are unusable.
    pub(super) fn new(context: &'a Context, plan: &Plan) -> Result<Self, Failure> {
        let options = Options {
            deadline: PATIENCE,
            rpc_timeout: PATIENCE,
            connect_timeout: Duration::from_millis(300),
            description: "dfsctl dev".into(),
            ..Options::new(plan.meta_addresses())
        };
        let dfs = context.block_on(Dfs::connect_admin(options))?;
        Ok(Self { context, dfs })
    }

    /// What the leader knows, if there is one.
    pub(super) fn cluster(&self) -> Option<Status> {
        self.ask(self.dfs.cluster_status()).map(Status::new)
    }

    /// What the metadata node at `address` says.
    pub(super) fn meta(&self, address: &str) -> Option<v1::MetaStatusResponse> {
        self.ask(self.dfs.meta_status(address))
    }

    /// What the storage node at `address` says.
    pub(super) fn storage(&self, address: &str) -> Option<v1::NodeStatusResponse> {
        self.ask(self.dfs.node_status(address))
    }

    /// An error is an answer too: not now.
    fn ask<T>(&self, question: impl Future<Output = Result<T, dfs_client::Error>>) -> Option<T> {
        self.context.block_on(async { tokio::time::timeout(PATIENCE, question).await.ok()?.ok() })
    }
}

/// Whether the leader counts the storage node `name` at `address` as alive.
pub(super) fn is_alive(status: &Status, name: &str, address: &str) -> bool {
    status.nodes.iter().any(|node| node.name == name && node.address == address && node.state == "alive")
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        let close = self.dfs.close();
        // No session was opened, so there is nothing to lose if this takes too long.
        drop(self.context.block_on(async { tokio::time::timeout(PATIENCE, close).await }));
    }
}
