//! Free loopback ports, chosen once for each process of a local cluster.
//!
//! They come from below the range that the kernel uses for outgoing connections. A port of that range could be taken by any
//! client while its process is down, and a client that tries to reach the dead process again and again would in the end
//! connect to itself (TCP simultaneous open) and so keep the port for good.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

use rand::Rng;

/// Lowest port taken: below it live the well-known services.
const LOW: u16 = 10_240;
/// Draws before giving up; with 22,000 candidates even a crowded machine needs a few.
const DRAWS: usize = 10_000;

/// A free port that no other dfsctl takes while the value lives.
///
/// Between the choice of a port and the moment its process listens another dfsctl could choose the same one. An abstract
/// socket of a name made from the port keeps it: it lives in the network namespace as the port does, leaves no file, and
/// ends with the process.
#[derive(Debug)]
pub(super) struct Reserved {
    port: u16,
    _mark: UnixListener,
}

impl Reserved {
    /// Takes `port`; `None` if a process listens on it or another dfsctl is about to use it.
    pub(super) fn take(port: u16) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("dfsctl-dev-port-{port}")).ok()?;
        let mark = UnixListener::bind_addr(&name).ok()?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?;
        Some(Self { port, _mark: mark })
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

/// `count` distinct free ports, none of them in `taken`.
///
/// # Errors
/// No free port was found.
pub(super) fn choose(count: usize, taken: &[u16]) -> io::Result<Vec<Reserved>> {
    let range = candidates();
    let mut rng = rand::rng();
    let mut chosen = Vec::with_capacity(count);
    for _ in 0..DRAWS {
        if chosen.len() == count {
            return Ok(chosen);
        }
        let port = rng.random_range(range.clone());
        if !taken.contains(&port) {
            chosen.extend(Reserved::take(port));
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no free loopback port in {range:?}")))
}

fn candidates() -> Range<u16> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range_below(&text)
}

/// The ports below the kernel's range; everything if that starts too low to leave room.
fn range_below(ip_local_port_range: &str) -> Range<u16> {
    let first = ip_local_port_range.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(32_768);
    if first >= LOW + 2_000 { LOW..first } else { LOW..u16::MAX }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_are_distinct_free_and_not_the_ones_taken() {
        let first: Vec<u16> = choose(20, &[]).expect("free ports").iter().map(Reserved::port).collect();
        let second = choose(20, &first).expect("free ports");
        let all: BTreeSet<_> = first.iter().copied().chain(second.iter().map(Reserved::port)).collect();
        assert_eq!(all.len(), 40);
    }

    #[test]
    fn a_port_is_reserved_while_the_value_lives() {
        let port = choose(1, &[]).expect("free port").remove(0);
        let number = port.port();
        assert!(Reserved::take(number).is_none());
        drop(port);
        assert!(Reserved::take(number).is_some());
    }

    #[test]
    fn outgoing_ports_are_left_alone() {
        assert_eq!(range_below("32768\t60999\n"), LOW..32_768);
        assert_eq!(range_below("1024 65535"), LOW..u16::MAX);
        assert_eq!(range_below(""), LOW..32_768);
    }

    #[test]
    fn a_bound_port_is_not_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        assert!(Reserved::take(listener.local_addr().expect("bound").port()).is_none());
    }
}
