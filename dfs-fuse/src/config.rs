//! The command line: flags, and mount options, which are the same flags as mount(8) writes them.
//!
//! `-o name=value` becomes `--name value`, so every flag is also a mount option and an entry of fstab, and all of them have
//! an environment variable and a key in the configuration file.

use std::{ffi::OsString, fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, ValueEnum};
use dfs_client::config::ClientArgs;
use dfs_common::{
    config::{self, ParseError},
    units::Span,
};

/// Mount a dfs cluster.
#[derive(Parser, Clone, Debug)]
#[command(name = "mount.dfs", version, args_override_self = true, override_usage = USAGE, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The metadata nodes as host:port,... (may be left out if --meta or DFS_META_ADDRS names them), then the directory to
    /// mount on
    #[arg(required = true, num_args = 1..=2, value_names = ["META", "MOUNTPOINT"])]
    places: Vec<String>,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTION[=VALUE],...")]
    _options: Vec<String>,
    /// Stay in the foreground
    #[arg(short, long, env = "DFS_FOREGROUND")]
    pub(crate) foreground: bool,
    /// Log every refused operation, too
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Ignored; mount(8) may give it
    #[arg(short = 's', hide = true)]
    _sloppy: bool,
    /// Ignored; mount(8) may give it
    #[arg(short = 'n', hide = true)]
    _no_mtab: bool,
    /// Ignored; mount(8) may give it
    #[arg(short = 't', hide = true, value_name = "TYPE")]
    _kind: Option<String>,
    /// Refuse every change with EROFS
    #[arg(long, env = "DFS_READ_ONLY")]
    pub(crate) read_only: bool,
    /// Let other users use the mount
    #[arg(long, env = "DFS_ALLOW_OTHER")]
    pub(crate) allow_other: bool,
    /// Let the kernel check permissions; always so when root mounts with --allow-other
    #[arg(long, env = "DFS_DEFAULT_PERMISSIONS")]
    pub(crate) default_permissions: bool,
    /// How long the kernel may keep names and attributes, in seconds or with a unit; 0 or none: not at all
    #[arg(long, env = "DFS_CACHE", value_name = "SECONDS", default_value = "1")]
    pub(crate) cache: CacheTime,
    /// Threads for network and protocol; one moves about 2 GB/s
    #[arg(long, env = "DFS_WORKER_THREADS", default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) worker_threads: u16,
    /// Write the log to this file; without it a mount in the background has none
    #[arg(long, env = "DFS_LOG_FILE", value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
    /// What to log, as a filter of tracing-subscriber
    #[arg(long, env = "DFS_LOG", value_name = "FILTER", default_value = "info")]
    pub(crate) log: String,
    /// How to log
    #[arg(long, env = "DFS_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Configuration file (TOML)
    #[arg(long, env = "DFS_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// Flags of mount(2) found among the mount options
    #[arg(skip)]
    pub(crate) mount_flags: MountFlags,
}

const USAGE: &str = "mount.dfs META[,META...] MOUNTPOINT [-o OPTION[=VALUE],...] [OPTIONS]";

const AFTER_HELP: &str = "Mount options (-o):
  ro, rw, allow_other, default_permissions, cache=SECONDS|none,
  mem=SIZE (--memory), timeout=TIME (--deadline), and every long flag above by its name;
  noatime, nodev, dev, nosuid, suid, noexec, exec go to the kernel (nodev and nosuid are the default);
  defaults, _netdev, nofail, auto, noauto, user, x-* and the like are accepted.

Examples:
  mount.dfs meta1:4001,meta2:4001,meta3:4001 /mnt/dfs -o allow_other
  mount -t dfs meta1:4001 /mnt/dfs -o ro,cache=60
  meta1:4001,meta2:4001 /mnt/dfs dfs _netdev,allow_other 0 0        (in /etc/fstab)";

/// Time that the kernel may keep things.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CacheTime(pub(crate) Duration);

impl FromStr for CacheTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Duration::ZERO));
        }
        if let Ok(seconds) = text.parse::<u32>() {
            return Ok(Self(Duration::from_secs(seconds.into())));
        }
        text.parse::<Span>()
            .map(|span| Self(span.0))
            .map_err(|error| format!("{error}, or a number of seconds, or none"))
    }
}

impl fmt::Display for CacheTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Span(self.0).fmt(f)
    }
}

/// Shape of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// What mount(2) itself is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MountFlags {
    pub(crate) no_dev: bool,
    pub(crate) no_suid: bool,
    pub(crate) no_exec: bool,
    pub(crate) no_atime: bool,
}

impl Default for MountFlags {
    /// A tree shared by many machines brings no devices and no set-user-id programs unless asked to.
    fn default() -> Self {
        Self { no_dev: true, no_suid: true, no_exec: false, no_atime: false }
    }
}

/// The command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Mistake {
    /// A mount option that does not exist.
    #[error("unknown mount option {0:?}; `mount.dfs --help` lists them")]
    UnknownOption(String),
    /// A mount option with a value where none belongs, or without.
    #[error("mount option {0:?} {1}")]
    BadOption(String, &'static str),
    /// No cluster named.
    #[error("no metadata node named: give host:port,... before the mount point, or set DFS_META_ADDRS")]
    NoCluster,
    /// Everything else.
    #[error(transparent)]
    Parse(#[from] ParseError),
}

impl Args {
    /// Parses a command line whose first argument is the program's name.
    pub(crate) fn parse_from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, Mistake> {
        let (mut args, options) = split_options(args.into_iter().collect());
        let mut flags = MountFlags::default();
        // Behind the other flags, so that mount options win; in front of a `--`.
        let at = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
        let translated = translate(&options, &mut flags)?;
        args.splice(at..at, translated.into_iter().map(OsString::from));
        let mut matches = config::parse(Self::command(), args)?;
        let mut parsed =
            Self::from_arg_matches_mut(&mut matches).map_err(|error| Mistake::Parse(ParseError::Clap(error)))?;
        parsed.mount_flags = flags;
        if let [meta, _] = parsed.places.as_slice() {
            parsed.client.meta = meta.split(',').map(|address| address.trim().to_owned()).collect();
            for address in &parsed.client.meta {
                check_address(address)?;
            }
        }
        if parsed.client.meta.is_empty() { Err(Mistake::NoCluster) } else { Ok(parsed) }
    }

    /// Where to mount.
    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.places.last().map(PathBuf::from).expect("clap requires one")
    }
}

fn check_address(address: &str) -> Result<(), Mistake> {
    dfs_proto::transport::check_address(address).map_err(|error| {
        let error = Args::command().error(clap::error::ErrorKind::ValueValidation, format!("META: {error}"));
        Mistake::Parse(ParseError::Clap(error))
    })
}

/// Takes the values of every `-o` out of the arguments.
fn split_options(args: Vec<OsString>) -> (Vec<OsString>, Vec<String>) {
    let (mut rest, mut options) = (Vec::new(), Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--") => {
                rest.push(arg);
                rest.extend(args.by_ref());
            }
            Some("-o") => options.extend(args.next().map(|value| value.to_string_lossy().into_owned())),
            Some(text) if text.starts_with("-o") => options.push(text[2..].to_owned()),
            Some(_) | None => rest.push(arg),
        }
    }
    let options = options.iter().flat_map(|text| text.split(',')).filter(|option| !option.is_empty());
    (rest, options.map(str::to_owned).collect())
}

fn translate(options: &[String], flags: &mut MountFlags) -> Result<Vec<String>, Mistake> {
    let command = Args::command();
    let mut args = Vec::new();
    for option in options {
        let (key, value) = match option.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (option.as_str(), None),
        };
        if is_kernel_flag(key, flags) || is_accepted(key) {
            continue;
        }
        let long = match key {
            "ro" => "read-only".to_owned(),
            "mem" => "memory".to_owned(),
            "timeout" => "deadline".to_owned(),
            _ => key.replace('_', "-"),
        };
        let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == Some(&long)) else {
            return Err(Mistake::UnknownOption(option.clone()));
        };
        match (arg.get_action().takes_values(), value) {
            (true, Some(value)) => args.push(format!("--{long}={value}")),
            (false, None) => args.push(format!("--{long}")),
            (true, None) => return Err(Mistake::BadOption(option.clone(), "needs a value")),
            (false, Some(_)) => return Err(Mistake::BadOption(option.clone(), "takes no value")),
        }
    }
    Ok(args)
}

fn is_kernel_flag(key: &str, flags: &mut MountFlags) -> bool {
    match key {
        "nodev" => flags.no_dev = true,
        "dev" => flags.no_dev = false,
        "nosuid" => flags.no_suid = true,
        "suid" => flags.no_suid = false,
        "noexec" => flags.no_exec = true,
        "exec" => flags.no_exec = false,
        "noatime" => flags.no_atime = true,
        "atime" => flags.no_atime = false,
        _ => return false,
    }
    true
}

/// Options of mount(8) and systemd that mean nothing to a file system.
fn is_accepted(key: &str) -> bool {
    const NAMES: [&str; 32] = [
        "rw",
        "defaults",
        "_netdev",
        "nofail",
        "auto",
        "noauto",
        "user",
        "users",
        "nouser",
        "owner",
        "group",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "diratime",
        "nodiratime",
        "lazytime",
        "nolazytime",
        "sync",
        "async",
        "dirsync",
        "silent",
        "loud",
        "mand",
        "nomand",
        "iversion",
        "noiversion",
        "comment",
        "uhelper",
        "helper",
        "nosymfollow",
    ];
    NAMES.contains(&key) || key.starts_with("x-") || key.starts_with("X-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, Mistake> {
        Args::parse_from_args(std::iter::once("mount.dfs").chain(line.split(' ')).map(OsString::from))
    }

    fn message(line: &str) -> String {
        parse(line).expect_err("refused").to_string()
    }

    #[test]
    fn options_may_stand_anywhere() {
        for line in [
            "a:1,b:2 /m -o ro,cache=5",
            "-o ro -ocache=5 a:1,b:2 /m",
            "a:1,b:2 /m -o rw,ro,_netdev,nofail,x-systemd.automount,cache=5 -sn",
        ] {
            let args = parse(line).expect(line);
            assert_eq!(args.client.meta, ["a:1", "b:2"], "{line}");
            assert_eq!(args.mountpoint(), PathBuf::from("/m"), "{line}");
            assert!(args.read_only && !args.foreground, "{line}");
            assert_eq!(args.cache, CacheTime(Duration::from_secs(5)), "{line}");
        }
    }

    #[test]
    fn every_flag_is_a_mount_option() {
        let args =
            parse("a:1 /m --cache 9 -o mem=64M,timeout=7s,read_ahead=8M,allow_other,cache=none -f").expect("good");
        assert_eq!(args.client.memory.0, 64 << 20);
        assert_eq!(args.client.deadline.0, Duration::from_secs(7));
        assert_eq!(args.client.read_ahead.0, 8 << 20);
        assert!(args.allow_other && args.foreground);
        assert_eq!(args.cache.0, Duration::ZERO, "mount options win");
    }

    #[test]
    fn flags_of_the_kernel() {
        assert_eq!(parse("a:1 /m").expect("good").mount_flags, MountFlags::default());
        let flags = parse("a:1 /m -o dev,suid,noexec,noatime").expect("good").mount_flags;
        assert_eq!(flags, MountFlags { no_dev: false, no_suid: false, no_exec: true, no_atime: true });
    }

    #[test]
    fn mistakes_are_named() {
        assert!(message("a:1 /m -o ro,bogus=1").contains("bogus=1"));
        assert!(message("a:1 /m -o ro=1").contains("ro=1"));
        assert!(message("a:1 /m -o cache").contains("needs a value"));
        assert!(message("a:1 /m -o cache=soon").contains("soon"));
        assert!(message("nonsense /m").contains("nonsense"));
        assert!(message("/m").contains("no metadata node"));
    }

    #[test]
    fn the_cluster_may_come_from_a_flag() {
        let args = parse("--meta c:3 /m").expect("good");
        assert_eq!(args.client.meta, ["c:3"]);
        assert_eq!(args.mountpoint(), PathBuf::from("/m"));
    }

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }
}
