//! Channels and listeners: the only place where they are made, so that encryption and identity come in here.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

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
    Ok(endpoint
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .connect_lazy())
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

/// Incoming connections of a listener, ready for [`Server::serve_with_incoming_shutdown`]. Nodelay must be set here: tonic
/// sets it only on listeners of its own.
pub fn incoming(listener: TcpListener) -> impl tokio_stream::Stream<Item = std::io::Result<tokio::net::TcpStream>> {
    use tokio_stream::StreamExt as _;
    TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
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
