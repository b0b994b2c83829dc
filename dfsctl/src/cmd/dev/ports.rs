//! Free loopback ports, chosen once for each process of a local cluster.
//!
//! They come from below the range that the kernel uses for outgoing connections. A port of that range could be taken by any
//! client while its process is down, and a client that tries to reach the dead process again and again would in the end
//! connect to itself (TCP simultaneous open) and so keep the port for good.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
};

use rand::Rng;

/// Lowest port taken: below it live the well-known services.
const LOW: u16 = 10_240;
/// Draws before giving up; with 22,000 candidates even a crowded machine needs a few.
const DRAWS: usize = 10_000;

/// Whether a process could listen on `port` now.
#[must_use]
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// `count` distinct free ports, none of them in `taken`.
///
/// # Errors
/// No free port was found.
pub(super) fn choose(count: usize, taken: &[u16]) -> io::Result<Vec<u16>> {
    let range = candidates();
    let mut rng = rand::rng();
    // Listeners are kept until all are chosen, so that a parallel run of this function cannot choose the same ones.
    let mut held: Vec<(u16, TcpListener)> = Vec::with_capacity(count);
    for _ in 0..DRAWS {
        if held.len() == count {
            break;
        }
        let port = rng.random_range(range.clone());
        if taken.contains(&port) || held.iter().any(|(other, _)| *other == port) {
            continue;
        }
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no free loopback port in {range:?}")));
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
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
        let first = choose(20, &[]).expect("free ports");
        let second = choose(20, &first).expect("free ports");
        let all: BTreeSet<_> = first.iter().chain(&second).collect();
        assert_eq!(all.len(), 40);
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
        assert!(!is_free(listener.local_addr().expect("bound").port()));
    }
}
