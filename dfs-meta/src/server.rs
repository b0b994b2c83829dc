//! The whole process: one listener with all services, the consensus node, the control loops.

use std::time::Duration;

use dfs_proto::transport;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    control,
    raft::{self, Node, StartError},
    rpc,
};

/// Calls that are under way when the process stops get this long.
const DRAIN: Duration = Duration::from_millis(800);
/// Handing the leadership over takes milliseconds; if it does not, the others elect a leader on their own.
const HAND_OVER: Duration = Duration::from_secs(1);

/// The process cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}. Is another process using the port? Choose another with --listen")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The node cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The node had to stop.
    #[error("{0}")]
    Failed(String),
}

/// A running process.
pub struct Server {
    node: Node,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    control: JoinHandle<()>,
    cancel: CancellationToken,
}

impl Server {
    /// Starts everything and serves.
    ///
    /// # Errors
    /// The settings, the data directory or the address cannot be used.
    pub async fn start(config: &Config) -> Result<Self, ServerError> {
        Self::start_with(config, config.control()).await
    }

    /// The same with other tunables of the control loops than the command line gives.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub async fn start_with(config: &Config, tunables: control::Settings) -> Result<Self, ServerError> {
        let address = config.listen;
        // The port comes first: a second process with the same settings must not touch anything.
        let listener = transport::listen(address)
            .await
            .map_err(|source| ServerError::Listen { address: address.to_string(), source })?;
        let node = Node::start(config.raft()).await?;
        let cancel = CancellationToken::new();
        let control = control::Handle::new(node.handle(), tunables);
        let router = rpc::add(&mut transport::server(), node.handle(), control.clone())
            .add_service(node.service().into_server());
        let stop = cancel.clone().cancelled_owned();
        let serving = tokio::spawn(router.serve_with_incoming_shutdown(transport::incoming(listener), stop));
        let control = tokio::spawn(control::run(control, cancel.clone()));
        tracing::info!(name = config.name, %address, version = env!("CARGO_PKG_VERSION"), "dfs-meta serves");
        Ok(Self { node, serving, control, cancel })
    }

    /// The consensus group, for tests that look inside.
    #[must_use]
    pub fn raft(&self) -> raft::Handle {
        self.node.handle()
    }

    /// Waits until the process cannot go on, and says why.
    pub async fn failed(&mut self) -> ServerError {
        let why = tokio::select! {
            why = self.node.failed() => why,
            ended = &mut self.serving => match ended {
                Ok(Ok(())) => "the listener has ended".into(),
                Ok(Err(error)) => format!("the listener has failed: {error}"),
                Err(error) => format!("the listener has failed: {error}"),
            },
        };
        ServerError::Failed(why)
    }

    /// Stops everything within five seconds. A leader hands over first, so that clients do not wait for an election.
    pub async fn stop(mut self) {
        let raft = self.node.handle();
        if raft.leadership().borrow().is_leader && raft.members().iter().filter(|member| member.voter).count() > 1 {
            match tokio::time::timeout(HAND_OVER, raft.hand_over(None)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::info!(%error, "stopping without handing the leadership over"),
                Err(_) => tracing::info!("stopping without handing the leadership over"),
            }
        }
        self.cancel.cancel();
        if !self.serving.is_finished() && tokio::time::timeout(DRAIN, &mut self.serving).await.is_err() {
            // Streams of clients and peers end with the process.
            self.serving.abort();
        }
        if tokio::time::timeout(DRAIN, &mut self.control).await.is_err() {
            self.control.abort();
            tracing::warn!("the control loops did not stop in time");
        }
        self.node.stop().await;
        tracing::info!("stopped");
    }
}
