//! Channels and listeners: the only place where they are made, so that encryption and identity come in here.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::TcpListenerStream};
use tonic::transport::{Channel, Endpoint, Server, server::Connected};

use crate::machine::{self, Link, Links};

/// Largest HTTP/2 frame either side sends, bytes. One frame a message of [`crate::stream::MESSAGE_BYTES`] keeps the number of
/// reads and writes low; the protocol's default of 16 KiB costs a third of the throughput.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;
/// Flow-control window of a stream, bytes: one chunk in flight.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Flow-control window of a connection, bytes.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A peer that does not answer a ping for this long is treated as gone, also when its machine vanished without a word.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// How often an active connection is pinged.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);

/// Connections that wait to be accepted; the same as of a listener that is made in one step.
const BACKLOG: u32 = 1024;

/// The address is not `host:port`.
#[derive(Debug, thiserror::Error)]
#[error("{address:?} is not an address: expected host:port")]
pub struct AddressError {
    address: String,
}

/// A channel to `address` (`host:port`) that connects at its first use and again after each failure.
///
/// # Errors
/// The address is malformed.
pub fn connect(address: &str, connect_timeout: Duration) -> Result<Channel, AddressError> {
    let error = || AddressError { address: address.to_owned() };
    check_address(address)?;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| error())?;
    let endpoint = endpoint
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let Some(machine) = machine::simulated() else { return Ok(endpoint.connect_lazy()) };
    let address = address.to_owned();
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let connecting = machine.connect(&address);
        async move { connecting.await.map(TokioIo::new) }
    })))
}

/// Checks that `address` is `host:port` with a port above 0.
///
/// # Errors
/// It is not.
pub fn check_address(address: &str) -> Result<(), AddressError> {
    let error = || AddressError { address: address.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(error)?;
    let port: u16 = port.parse().map_err(|_| error())?;
    if host.is_empty() || port == 0 || host.contains(['/', '@', ' ']) {
        return Err(error());
    }
    Ok(())
}

/// Checks that `address` is one under which others can reach this process: `host:port`, and not the unspecified address.
///
/// # Errors
/// Why it is not.
pub fn check_advertised(address: &str) -> Result<(), String> {
    check_address(address).map_err(|error| error.to_string())?;
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    if host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
        return Err(format!("{address} is no address that others can use: give this machine's own"));
    }
    Ok(())
}

/// Checks the address that a process listens on, `listen`, and the one that it gives to others, `advertise`, if it is another one.
///
/// # Errors
/// What is wrong, with the option that must be changed.
pub fn check_own(listen: SocketAddr, advertise: Option<&str>) -> Result<(), String> {
    if let Some(address) = advertise {
        return check_advertised(address).map_err(|error| format!("--advertise: {error}"));
    }
    if listen.ip().is_unspecified() {
        return Err(format!("--listen {listen} is no address that others can use: set --advertise too"));
    }
    if listen.port() == 0 {
        return Err(format!(
            "--listen {listen} has no port that others could know: give one above 0, or set --advertise too"
        ));
    }
    Ok(())
}

/// A gRPC server with the settings that suit chunk streams.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(4096)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// An address that is taken and not listened on yet: connections are refused until [`Reserved::listen`].
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    /// `None` on a simulated machine, whose network has no such state.
    socket: Option<TcpSocket>,
}

/// Takes `address` without listening on it, so that a process finds out that it may not have it before it changes anything.
///
/// # Errors
/// The address is taken, or not this machine's.
pub fn reserve(address: SocketAddr) -> io::Result<Reserved> {
    if machine::simulated().is_some() {
        return Ok(Reserved { address, socket: None });
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As a listener has it: connections of an earlier process that are still closing do not hold the address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(Reserved { address, socket: Some(socket) })
}

impl Reserved {
    /// Listens.
    ///
    /// # Errors
    /// Another process that had reserved it too was faster.
    pub async fn listen(self) -> io::Result<Listener> {
        match self.socket {
            Some(socket) => socket.listen(BACKLOG).map(Listener::Tcp),
            None => listen(self.address).await,
        }
    }
}

/// Listens on `address`.
///
/// # Errors
/// The address is taken, or not this machine's.
pub async fn listen(address: SocketAddr) -> io::Result<Listener> {
    match machine::simulated() {
        None => TcpListener::bind(address).await.map(Listener::Tcp),
        Some(machine) => Ok(Listener::Simulated(address, machine.listen(address)?)),
    }
}

/// A listener whose connections [`incoming`] gives.
pub enum Listener {
    /// Of the machine's network.
    Tcp(TcpListener),
    /// Of a simulated one.
    Simulated(SocketAddr, Links),
}

impl Listener {
    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Simulated(address, _) => Ok(*address),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

/// Incoming connections of a listener, ready for [`Server::serve_with_incoming_shutdown`]. Nodelay must be set here: tonic
/// sets it only on listeners of its own.
pub fn incoming(listener: impl Into<Listener>) -> Pin<Box<dyn Stream<Item = io::Result<Accepted>> + Send>> {
    match listener.into() {
        Listener::Tcp(listener) => Box::pin(TcpListenerStream::new(listener).map(|stream| {
            let stream = stream?;
            stream.set_nodelay(true)?;
            Ok(Accepted::Tcp(stream))
        })),
        Listener::Simulated(_, links) => Box::pin(links.map(|link| link.map(Accepted::Simulated))),
    }
}

/// A connection that came in.
pub enum Accepted {
    /// By the machine's network.
    Tcp(TcpStream),
    /// By a simulated one.
    Simulated(Box<dyn Link>),
}

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Simulated(link) => Pin::new(link).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Simulated(link) => Pin::new(link).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Simulated(link) => Pin::new(link).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Simulated(link) => link.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Simulated(link) => Pin::new(link).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Simulated(link) => Pin::new(link).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for good in ["127.0.0.1:4001", "meta-1:1", "[::1]:4001"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in ["", "host", "host:", "host:0", ":1", "host:99999", "http://h:1", "a b:1"] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
