//! What a local cluster is made of: names, ports and options, written to `DIR/cluster.json` and kept from then on.

use std::{
    ffi::OsString,
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use dfs_common::{durable, units::Span};
use serde::{Deserialize, Serialize};

use super::{
    Up,
    home::{Home, Program},
    ports::{self, Reserved},
    process::Identity,
};
use crate::{failure::Failure, output::Output, text::counted};

/// Form of the file; a newer one is refused.
const VERSION: u32 = 1;

/// A process of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Name {
    /// A metadata node, counted from 1.
    Meta(u32),
    /// A storage node, counted from 1.
    Storage(u32),
    /// The mount.
    Mount,
}

/// The text does not name a process.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a process of a local cluster: write meta-N, storage-N or mount")]
pub struct ParseNameError(String);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(n) => write!(f, "meta-{n}"),
            Self::Storage(n) => write!(f, "storage-{n}"),
            Self::Mount => f.write_str("mount"),
        }
    }
}

impl FromStr for Name {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, ParseNameError> {
        let error = || ParseNameError(text.to_owned());
        let number = |digits: &str| {
            let plain = !digits.starts_with(['0', '+']);
            digits.parse::<u32>().ok().filter(|_| plain).ok_or_else(error)
        };
        match text.split_once('-') {
            Some(("meta", n)) => number(n).map(Self::Meta),
            Some(("storage", n)) => number(n).map(Self::Storage),
            None if text == "mount" => Ok(Self::Mount),
            _ => Err(error()),
        }
    }
}

/// The cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    version: u32,
    /// Whether it ever served. One that did not is made anew, since nobody can have put data into it.
    pub(super) served: bool,
    /// Copies of each chunk.
    pub(super) replication: u32,
    /// Port of each metadata node; they are part of the Raft membership and so never change.
    pub(super) meta_ports: Vec<u16>,
    /// Port of each storage node.
    pub(super) storage_ports: Vec<u16>,
    /// Data directories of each storage node.
    #[serde(default = "one_disk")]
    pub(super) disks: u32,
    /// Mount point, absolute.
    pub(super) mount: Option<String>,
    /// Options of the processes.
    pub(super) options: Options,
}

fn one_disk() -> u32 {
    1
}

/// Options of the processes; `None` leaves a program's own default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Options {
    heartbeat: Option<String>,
    suspect: Option<String>,
    dead: Option<String>,
    capacity: Option<String>,
    meta_args: Vec<String>,
    storage_args: Vec<String>,
    mount_options: Vec<String>,
}

impl Options {
    /// Takes over what was given. Gives whether something changed.
    fn update(&mut self, args: &Up) -> bool {
        let before = self.clone();
        let set = |slot: &mut Option<String>, given: Option<String>| {
            if given.is_some() {
                *slot = given;
            }
        };
        let list = |slot: &mut Vec<String>, given: &[String]| {
            if !given.is_empty() {
                *slot = given.to_vec();
            }
        };
        set(&mut self.heartbeat, args.heartbeat.map(|time| time.to_string()));
        set(&mut self.suspect, args.suspect.map(|time| time.to_string()));
        set(&mut self.dead, args.dead.map(|time| time.to_string()));
        set(&mut self.capacity, args.capacity.map(|size| size.to_string()));
        list(&mut self.meta_args, &args.meta_arg);
        list(&mut self.storage_args, &args.storage_arg);
        list(&mut self.mount_options, &args.mount_opt);
        *self != before
    }

    /// Whether a metadata node would start with these times: what it refuses must not be kept.
    fn check(&self) -> Result<(), Failure> {
        let time = |given: &Option<String>, default| given.as_deref().map_or(Ok(default), str::parse::<Span>);
        let bad = |error| Failure::local(format!("cluster.json has a time that is none: {error}"));
        // The defaults of dfs-meta.
        let heartbeat = time(&self.heartbeat, Span(Duration::from_secs(3))).map_err(bad)?;
        let suspect = time(&self.suspect, Span(Duration::from_secs(10))).map_err(bad)?;
        let dead = time(&self.dead, Span(Duration::from_secs(30))).map_err(bad)?;
        if heartbeat.0.is_zero() || suspect.0 < heartbeat.0 * 2 {
            let message = format!("--suspect {suspect} must be at least twice --heartbeat {heartbeat}");
            return Err(Failure::usage(message).hint("give both"));
        }
        if dead.0 <= suspect.0 {
            let message = format!("--dead {dead} must be longer than --suspect {suspect}");
            return Err(Failure::usage(message).hint("give both"));
        }
        Ok(())
    }
}

impl Plan {
    /// Reads the file; `None` if it is missing.
    pub(super) fn load(file: &Path) -> Result<Option<Self>, Failure> {
        let text = match fs::read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| Failure::io(format!("cannot read {}", file.display()), &error))?,
        };
        let plan: Self = serde_json::from_slice(&text)
            .map_err(|error| Failure::local(format!("{} is damaged: {error}", file.display())))?;
        if plan.version > VERSION || plan.meta_ports.is_empty() || plan.storage_ports.is_empty() {
            return Err(Failure::local(format!("{} was written by another version of dfsctl", file.display())));
        }
        Ok(Some(plan))
    }

    /// Writes the file.
    pub(super) fn save(&self, file: &Path) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(self).map_err(Failure::local)?;
        text.push(b'\n');
        durable::write_file(file, &text)
            .map_err(|error| Failure::io(format!("cannot write {}", file.display()), &error))
    }

    /// A new cluster with fresh ports.
    pub(super) fn make(args: &Up, out: Output) -> Result<(Self, Vec<Reserved>), Failure> {
        let metas = args.meta_nodes.unwrap_or(1) as usize;
        let storages = args.storage_nodes.unwrap_or(3);
        let wanted = args.replication.unwrap_or(3);
        if wanted > storages {
            let nodes = counted(storages.into(), "storage node");
            out.note(format!("{nodes} cannot hold {wanted} copies: replication is {storages}"));
        }
        if !matches!(metas, 1 | 3 | 5) {
            let why = if metas.is_multiple_of(2) {
                format!("an even number of metadata nodes survives no more failures than {}", metas - 1)
            } else {
                "a cluster is formed of at most 5 metadata nodes".to_owned()
            };
            return Err(Failure::usage(format!("-m {metas}: {why}")).hint("use 1, 3 or 5"));
        }
        let mut options = Options::default();
        options.update(args);
        options.check()?;
        let reserved = ports::choose(metas + storages as usize, &[]);
        let reserved = reserved.map_err(|error| Failure::io("cannot choose ports", &error))?;
        let all: Vec<u16> = reserved.iter().map(Reserved::port).collect();
        let plan = Self {
            version: VERSION,
            served: false,
            replication: wanted.min(storages),
            meta_ports: all[..metas].to_vec(),
            storage_ports: all[metas..].to_vec(),
            disks: args.disks.unwrap_or(1),
            mount: mount_point(args)?,
            options,
        };
        Ok((plan, reserved))
    }

    /// Takes over the options of a later `up`. Gives whether running processes would have to be started again for them.
    ///
    /// # Errors
    /// The options ask for another cluster than this one.
    pub(super) fn agree(&mut self, args: &Up, dir: &Path) -> Result<bool, Failure> {
        let (metas, storages) = (self.meta_ports.len(), self.storage_ports.len());
        let differs = |given: Option<u32>, have: usize| given.is_some_and(|given| given as usize != have);
        let replication = args.replication.map(|wanted| wanted.min(u32::try_from(storages).unwrap_or(u32::MAX)));
        if differs(args.meta_nodes, metas)
            || differs(args.storage_nodes, storages)
            || differs(replication, self.replication as usize)
            || differs(args.disks, self.disks as usize)
        {
            return Err(Failure::usage(format!(
                "the cluster in {} was made with -m {metas} -s {storages} --replication {} --disks {}",
                dir.display(),
                self.replication,
                self.disks
            ))
            .hint("leave these options out, or name another --dir"));
        }
        match mount_point(args)? {
            Some(mount) => self.mount = Some(mount),
            None if args.no_mount => self.mount = None,
            None => {}
        }
        let changed = self.options.update(args);
        self.options.check()?;
        Ok(changed)
    }

    /// All processes in the order in which they are started.
    pub(super) fn names(&self) -> Vec<Name> {
        let mount = self.mount.iter().map(|_| Name::Mount);
        self.metas().into_iter().chain(self.storages()).chain(mount).collect()
    }

    /// The metadata nodes.
    pub(super) fn metas(&self) -> Vec<Name> {
        (1..).take(self.meta_ports.len()).map(Name::Meta).collect()
    }

    /// The storage nodes.
    pub(super) fn storages(&self) -> Vec<Name> {
        (1..).take(self.storage_ports.len()).map(Name::Storage).collect()
    }

    /// Port of a node; `None` for the mount and for nodes that do not exist.
    pub(super) fn port(&self, name: Name) -> Option<u16> {
        let (ports, n) = match name {
            Name::Meta(n) => (&self.meta_ports, n),
            Name::Storage(n) => (&self.storage_ports, n),
            Name::Mount => return None,
        };
        ports.get(n.checked_sub(1)? as usize).copied()
    }

    /// Address of a node.
    pub(super) fn address(&self, name: Name) -> Option<String> {
        self.port(name).map(|port| format!("127.0.0.1:{port}"))
    }

    /// Addresses of the metadata nodes.
    pub(super) fn meta_addresses(&self) -> Vec<String> {
        self.meta_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// Whether the cluster has such a process.
    pub(super) fn has(&self, name: Name) -> bool {
        self.names().contains(&name)
    }

    /// What the process is known by: arguments that no other process has.
    pub(super) fn identity(&self, name: Name, home: &Home) -> Identity {
        let arguments = match name {
            Name::Meta(_) | Name::Storage(_) => vec!["--data-dir".into(), self.data_dirs(name, home)],
            Name::Mount => self.mount_words(),
        };
        Identity { arguments }
    }

    /// The data directories of a node, as its option takes them.
    fn data_dirs(&self, name: Name, home: &Home) -> OsString {
        let dir = home.data(name);
        if self.disks == 1 || !matches!(name, Name::Storage(_)) {
            return dir.into_os_string();
        }
        let dirs: Vec<OsString> = (1..=self.disks).map(|n| dir.join(format!("disk-{n}")).into_os_string()).collect();
        dirs.join(",".as_ref())
    }

    fn mount_words(&self) -> Vec<OsString> {
        vec![self.meta_addresses().join(",").into(), self.mount.clone().unwrap_or_default().into()]
    }

    /// The command line of a process.
    pub(super) fn program(&self, name: Name, home: &Home, executable: PathBuf) -> Program {
        let mut words: Vec<OsString> = vec![];
        let mut pair = |key: &str, value: OsString| words.extend([key.into(), value]);
        let options = &self.options;
        match name {
            Name::Meta(_) => {
                self.node_words(name, home, &mut pair);
                let peers = self.metas().into_iter().zip(self.meta_addresses());
                let peers: Vec<_> = peers.map(|(peer, address)| format!("{peer}={address}")).collect();
                pair("--peers", peers.join(",").into());
                pair("--replication", self.replication.to_string().into());
                pair("--write-quorum", (self.replication / 2 + 1).to_string().into());
                let times =
                    [("--heartbeat", &options.heartbeat), ("--suspect", &options.suspect), ("--dead", &options.dead)];
                for (key, time) in times {
                    if let Some(time) = time {
                        pair(key, time.into());
                    }
                }
                words.extend(options.meta_args.iter().map(Into::into));
            }
            Name::Storage(_) => {
                self.node_words(name, home, &mut pair);
                pair("--meta", self.meta_addresses().join(",").into());
                if let Some(capacity) = &options.capacity {
                    pair("--capacity", capacity.into());
                }
                words.extend(options.storage_args.iter().map(Into::into));
            }
            Name::Mount => {
                words.extend(self.mount_words());
                if !options.mount_options.is_empty() {
                    words.extend(["-o".into(), options.mount_options.join(",").into()]);
                }
                words.extend(["-f".into(), "--supervise".into()]);
            }
        }
        Program { executable, arguments: words }
    }

    fn node_words(&self, name: Name, home: &Home, pair: &mut impl FnMut(&str, OsString)) {
        let address = self.address(name).unwrap_or_default();
        pair("--name", name.to_string().into());
        pair("--listen", address.clone().into());
        pair("--advertise", address.into());
        pair("--data-dir", self.data_dirs(name, home));
    }
}

/// The mount point as the kernel will show it: absolute, without symbolic links. Its last part is not touched, since a mount
/// whose process died fails there and one whose process hangs would hang us.
fn mount_point(args: &Up) -> Result<Option<String>, Failure> {
    let Some(path) = &args.mount else { return Ok(None) };
    let shown = path.display();
    let fail = |error: &io::Error| Failure::io(format!("cannot use {shown} as mount point"), error);
    let absolute = std::path::absolute(path).map_err(|error| fail(&error))?;
    // readlink(2) of a directory answers without asking its file system.
    let absolute = match fs::read_link(&absolute) {
        Ok(_) => fs::canonicalize(&absolute).map_err(|error| fail(&error))?,
        Err(_) => absolute,
    };
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(Failure::usage("the root directory cannot be the mount point"));
    };
    fs::create_dir_all(parent).map_err(|error| fail(&error))?;
    let point = fs::canonicalize(parent).map_err(|error| fail(&error))?.join(name);
    point
        .into_os_string()
        .into_string()
        .map(Some)
        .map_err(|_| Failure::usage(format!("{shown}: the path must be UTF-8")))
}

#[cfg(test)]
#[path = "plan/tests.rs"]
pub(super) mod tests;
