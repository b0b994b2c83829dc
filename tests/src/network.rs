//! A network in which each process has a machine of its own: network namespaces joined by a bridge, so that ways between
//! them can be cut, both ways or one way, without anybody being told.
//!
//! A cut way leads to an Ethernet address that nobody has: what is sent there is lost as on a cable that was pulled, and
//! what comes from there arrives. Neighbours are fixed entries for this; nothing but `ip` is needed, and nothing outside the
//! namespaces is touched. It takes root.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    net::Ipv4Addr,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, ensure};

/// What all namespaces of this harness are called by first; the process that made them comes next.
const PREFIX: &str = "dfs-test-";
/// The host in the middle: it reaches everybody at all times.
pub const HUB: &str = "hub";
const HUB_NUMBER: u8 = 254;

/// The machines and the ways between them.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    hosts: Vec<String>,
}

/// Which ways between one machine and others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// It neither hears nor is heard.
    Both,
    /// It hears, and is not heard.
    Outward,
    /// It is heard, and does not hear.
    Inward,
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

fn ethernet(number: u8) -> String {
    format!("02:00:0a:4d:00:{number:02x}")
}

/// An address that nobody has.
const NOWHERE: &str = "02:00:0a:4d:ff:ff";

fn ip(namespace: Option<&str>, script: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot run ip: install iproute2")?;
    child.stdin.take().context("a pipe")?.write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip (namespace {namespace:?}) fails; it needs root: {said}\n{script}");
    Ok(())
}

impl Network {
    /// Makes a machine for each name, and the hub.
    ///
    /// # Errors
    /// Not root, or no `ip`.
    pub fn new(names: &[String]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(names.len() < usize::from(HUB_NUMBER), "at most {HUB_NUMBER} machines");
        remove_left_over();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{count}-", std::process::id());
        let network = Self { prefix, hosts: names.to_vec() };
        network.add_hub()?;
        for name in names {
            network.add_host(name)?;
        }
        for name in names.iter().map(String::as_str).chain([HUB]) {
            network.script(name, |other| network.neighbour(other, true))?;
        }
        Ok(network)
    }

    fn add_hub(&self) -> Result<()> {
        let space = self.space(HUB);
        ip(None, &format!("netns add {space}\n"))?;
        ip(
            Some(&space),
            &format!(
                "link add bridge address {mac} type bridge\nlink set bridge up\nlink set lo up\n\
                 addr add {}/24 dev bridge\n",
                address(HUB_NUMBER),
                mac = ethernet(HUB_NUMBER)
            ),
        )
    }

    fn add_host(&self, name: &str) -> Result<()> {
        let (space, number) = (self.space(name), self.number(name)?);
        ip(None, &format!("netns add {space}\n"))?;
        ip(
            Some(&self.space(HUB)),
            &format!(
                "link add port{number} type veth peer name eth0 address {} netns {space}\n\
                 link set port{number} master bridge up\n",
                ethernet(number)
            ),
        )?;
        let address = address(number);
        ip(Some(&space), &format!("addr add {address}/24 dev eth0\nlink set eth0 up\nlink set lo up\n"))
    }

    fn space(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn number(&self, name: &str) -> Result<u8> {
        if name == HUB {
            return Ok(HUB_NUMBER);
        }
        let at = self.hosts.iter().position(|host| host == name);
        Ok(u8::try_from(1 + at.with_context(|| format!("no machine {name}"))?)?)
    }

    /// The file by which processes enter the machine.
    #[must_use]
    pub fn namespace(&self, name: &str) -> PathBuf {
        Path::new("/run/netns").join(self.space(name))
    }

    /// Its address.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn address(&self, name: &str) -> Result<Ipv4Addr> {
        Ok(address(self.number(name)?))
    }

    fn neighbour(&self, other: &str, reachable: bool) -> Result<String> {
        let number = self.number(other)?;
        let leads = if reachable { ethernet(number) } else { NOWHERE.to_owned() };
        Ok(format!("{} lladdr {leads}", address(number)))
    }

    /// Sets what `line` says about each other machine, in the one of `name`.
    fn script(&self, name: &str, line: impl Fn(&str) -> Result<String>) -> Result<()> {
        let device = if name == HUB { "bridge" } else { "eth0" };
        let mut script = String::new();
        for other in self.hosts.iter().map(String::as_str).chain([HUB]).filter(|other| *other != name) {
            writeln!(script, "neigh replace {} dev {device} nud permanent", line(other)?)?;
        }
        ip(Some(&self.space(name)), &script)
    }

    /// Sets which machines get what `from` sends: all but those in `lost`. The hub does in any case.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn send_to_all_but(&self, from: &str, lost: &[&str]) -> Result<()> {
        self.script(from, |other| self.neighbour(other, !lost.contains(&other)))
    }

    /// All ways are open.
    ///
    /// # Errors
    /// As [`Network::send_to_all_but`].
    pub fn heal(&self) -> Result<()> {
        self.hosts.iter().try_for_each(|host| self.send_to_all_but(host, &[]))
    }

    /// Cuts exactly these ways, each from one machine to another, and opens all others.
    ///
    /// # Errors
    /// There is no such machine.
    pub fn cut(&self, ways: &[(String, String)]) -> Result<()> {
        for host in &self.hosts {
            let lost: Vec<&str> = ways.iter().filter(|(from, _)| from == host).map(|(_, to)| to.as_str()).collect();
            self.send_to_all_but(host, &lost)?;
        }
        Ok(())
    }
}

/// The ways between `host` and each of `others`.
#[must_use]
pub fn ways(host: &str, others: &[&str], way: Way) -> Vec<(String, String)> {
    let mut ways = Vec::new();
    for other in others.iter().filter(|other| **other != host) {
        if way != Way::Inward {
            ways.push((host.to_owned(), (*other).to_owned()));
        }
        if way != Way::Outward {
            ways.push(((*other).to_owned(), host.to_owned()));
        }
    }
    ways
}

/// Where the processes of a cluster are.
#[derive(Debug)]
pub enum Site {
    /// On one loopback address of the cluster's own, so that clusters of tests that run side by side cannot meet and no port
    /// is taken by chance.
    Loopback(String),
    /// Each on a machine of its own.
    Network(Network),
}

impl Site {
    /// A loopback address.
    #[must_use]
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // 4 million process ids and a few clusters in each, spread over the 16 million addresses of 127.0.0.0/8.
        let number = std::process::id().wrapping_mul(4).wrapping_add(count) % 0x00ff_0000;
        Self::Loopback(format!("127.{}.{}.{}", 1 + (number >> 16) % 254, (number >> 8) % 256, number % 256))
    }

    /// Where the process `name` listens on `port`.
    ///
    /// # Panics
    /// It has no machine in this network.
    #[must_use]
    pub(crate) fn address(&self, name: &str, port: usize) -> String {
        match self {
            Self::Loopback(address) => format!("{address}:{port}"),
            Self::Network(network) => {
                let address = network.address(name).expect("machines are made for all processes");
                format!("{address}:{port}")
            }
        }
    }

    /// How the process `name` comes to its machine.
    #[must_use]
    pub(crate) fn namespace(&self, name: &str) -> Option<PathBuf> {
        match self {
            Self::Loopback(_) => None,
            Self::Network(network) => Some(network.namespace(name)),
        }
    }
}

/// Has `command` run in the machine behind `namespace`.
///
/// # Errors
/// There is no such machine.
pub fn enter(command: &mut Command, namespace: &Path) -> Result<()> {
    let file = File::open(namespace).with_context(|| namespace.display().to_string())?;
    let into = move || {
        // SAFETY: a system call on a descriptor that this closure keeps open; it may be made between fork and exec.
        match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call and takes no lock.
    unsafe { command.pre_exec(into) };
    Ok(())
}

/// Removes machines whose process ended without doing so.
fn remove_left_over() {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove(&name);
        }
    }
}

fn remove(space: &str) {
    let mut command = Command::new("ip");
    command.args(["netns", "del", space]).stdout(Stdio::null()).stderr(Stdio::null());
    // Nothing can be done about it; the next network tries again.
    let _ = command.status();
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts.iter().map(String::as_str).chain([HUB]) {
            remove(&self.space(host));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_those_that_are_cut() {
        let ways = |way| ways("a", &["a", "b"], way);
        let (out, back) = (("a".to_owned(), "b".to_owned()), ("b".to_owned(), "a".to_owned()));
        assert_eq!(ways(Way::Outward), std::slice::from_ref(&out));
        assert_eq!(ways(Way::Inward), std::slice::from_ref(&back));
        assert_eq!(ways(Way::Both), [out, back]);
    }
}
