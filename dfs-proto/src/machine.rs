//! The parts of the machine that a simulation replaces: connections, listeners, and threads for work that blocks.
//!
//! A process uses the real ones. The deterministic simulation runs many nodes in one process and one thread; it installs its
//! own [`Machine`] before it starts the first of them. Clocks, random numbers and files need no replacement here: the
//! simulation takes those over below the standard library.

use std::{future::Future, io, net::SocketAddr, pin::Pin, sync::OnceLock, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};

/// One end of a simulated connection.
pub trait Link: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Link for T {}

/// Connections that come in at a simulated listener.
pub type Links = Pin<Box<dyn tokio_stream::Stream<Item = io::Result<Box<dyn Link>>> + Send>>;

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Link>>> + Send>>;

/// What a simulation decides.
pub trait Machine: Send + Sync {
    /// Connects to `address` (`host:port`).
    fn connect(&self, address: &str) -> Connecting;

    /// Listens on `address`.
    ///
    /// # Errors
    /// The address is taken.
    fn listen(&self, address: SocketAddr) -> io::Result<Links>;

    /// How long work that blocks waits for the disk.
    fn disk_delay(&self) -> Duration;
}

static SIMULATED: OnceLock<&'static dyn Machine> = OnceLock::new();

/// Makes every node of this process run on `machine`, for good.
///
/// # Panics
/// Another one is installed.
pub fn simulate(machine: &'static dyn Machine) {
    assert!(SIMULATED.set(machine).is_ok(), "one process is simulated on one machine");
}

/// The simulated machine, if this process is a simulation.
#[must_use]
pub fn simulated() -> Option<&'static dyn Machine> {
    SIMULATED.get().copied()
}

/// Runs `work`, which may block, beside the runtime's threads. It runs to its end also if the handle is dropped.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match simulated() {
        None => tokio::task::spawn_blocking(work),
        Some(machine) => {
            let delay = machine.disk_delay();
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                work()
            })
        }
    }
}
