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
    /// The metadata nodes as host:port,... (may be left out if --meta or DFS_META_ADDRS names them), with :/path for a part
    /// of the tree, then the directory to mount on
    #[arg(required = true, num_args = 1..=2, value_names = ["META[:/PATH]", "MOUNTPOINT"])]
    places: Vec<String>,
    /// Mount options, separated by commas
    #[arg(short = 'o', value_name = "OPTION[=VALUE],...")]
    _options: Vec<String>,
    /// Stay in the foreground
    #[arg(short, long, env = "DFS_FOREGROUND")]
    pub(crate) foreground: bool,
    /// Have a supervisor in the foreground as well, which starts another process when the one that serves dies
    #[arg(long, env = "DFS_SUPERVISE")]
    pub(crate) supervise: bool,
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
    /// Refuse every write to a published file with EPERM; new files can be written, and files removed and replaced
    #[arg(long, env = "DFS_WRITE_ONCE")]
    pub(crate) write_once: bool,
    /// Let other users use the mount; the default when root mounts
    #[arg(long, env = "DFS_ALLOW_OTHER", overrides_with = "no_allow_other")]
    allow_other: bool,
    /// Keep the mount to the user who mounts, also when that is root
    #[arg(long, env = "DFS_NO_ALLOW_OTHER", overrides_with = "allow_other")]
    no_allow_other: bool,
    /// Let the kernel check permissions; always so when root mounts
    #[arg(long, env = "DFS_DEFAULT_PERMISSIONS")]
    default_permissions: bool,
    /// Let locks (flock, fcntl) hold within this mount only, without asking the cluster
    #[arg(long, env = "DFS_LOCAL_LOCKS")]
    pub(crate) local_locks: bool,
    /// For how long what others changed may go unseen, in seconds or with a unit; 0 or none: the kernel keeps no names and
    /// attributes
    #[arg(long, env = "DFS_CACHE", value_name = "SECONDS", default_value = "1")]
    pub(crate) cache: CacheTime,
    /// Threads for network and protocol; one moves about 2 GB/s
    #[arg(long, env = "DFS_WORKER_THREADS", default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) worker_threads: u16,
    /// Where the status socket is, which `dfsctl mount` asks [default: /run/dfs for root, else $XDG_RUNTIME_DIR/dfs]
    #[arg(long, env = "DFS_RUN_DIR", value_name = "DIR")]
    pub(crate) run_dir: Option<PathBuf>,
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
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    /// Flags of mount(2) found among the mount options
    #[arg(skip)]
    pub(crate) mount_flags: MountFlags,
    /// The directory of the cluster that becomes the root of the mount: its names from the top; empty for the whole tree
    #[arg(skip)]
    pub(crate) subtree: Vec<String>,
}

const USAGE: &str = "mount.dfs META[,META...][:/PATH] MOUNTPOINT [-o OPTION[=VALUE],...] [OPTIONS]";

const AFTER_HELP: &str = "Mount options (-o):
  ro, rw, remount, write_once, allow_other, noallow_other, default_permissions, cache=SECONDS|none,
  mem=SIZE (--memory), timeout=TIME (--deadline), and every long flag above by its name;
  noatime, nodev, dev, nosuid, suid, noexec, exec go to the kernel;
  defaults, _netdev, nofail, auto, noauto, user, x-* and the like are accepted.

Examples:
  mount.dfs meta1:4001,meta2:4001,meta3:4001 /mnt/dfs
  mount -t dfs meta1:4001:/projects/moon /mnt/moon -o ro,cache=60
  meta1:4001,meta2:4001:/ /mnt/dfs dfs _netdev,nofail 0 0        (in /etc/fstab)";

/// What `-o ro` becomes.
const READ_ONLY: &str = "--read-only";

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
///
/// The defaults are those of a local file system when root mounts. For other users fusermount3 adds nodev and nosuid itself.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct MountFlags {
    pub(crate) no_dev: bool,
    pub(crate) no_suid: bool,
    pub(crate) no_exec: bool,
    pub(crate) no_atime: bool,
    /// Change the flags of a mount that is there.
    pub(crate) remount: bool,
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
    /// A part of the tree that is not named from its top.
    #[error("{0:?} names no directory of the cluster: write /names/from/the/top, without ..")]
    BadSubtree(String),
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
        if let [source, _] = parsed.places.as_slice() {
            let (meta, path) = split_source(source);
            parsed.subtree = names_of(path)?;
            // `:/path` takes the metadata nodes from --meta or the environment.
            if !meta.is_empty() {
                parsed.client.meta = meta.split(',').map(|address| address.trim().to_owned()).collect();
            }
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

    /// What stands in the first column of mount(8): as in fstab, so that it finds out that it is mounted already.
    pub(crate) fn source(&self) -> String {
        match self.places.as_slice() {
            [source, _] if !source.starts_with(':') => source.clone(),
            [path, _] => format!("{}{path}", self.client.meta.join(",")),
            _ => self.client.meta.join(","),
        }
    }

    /// Whether other users may use the mount.
    pub(crate) fn serves_others(&self, is_root: bool) -> bool {
        self.allow_other || is_root && !self.no_allow_other
    }

    /// Whether the kernel checks who may do what.
    pub(crate) fn checks_permissions(&self, is_root: bool) -> bool {
        self.default_permissions || is_root
    }
}

/// `host:port,host:port:/path` as addresses and path. A path begins with a slash, which no address contains.
fn split_source(source: &str) -> (&str, &str) {
    source.find(":/").map_or((source, "/"), |at| (&source[..at], &source[at + 1..]))
}

fn names_of(path: &str) -> Result<Vec<String>, Mistake> {
    let names: Vec<_> = path.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned).collect();
    if names.iter().any(|name| name == "..") { Err(Mistake::BadSubtree(path.to_owned())) } else { Ok(names) }
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
        if key == "rw" {
            // The last one counts, as mount(8) has it.
            args.retain(|arg| arg != READ_ONLY);
            continue;
        }
        if is_kernel_flag(key, flags) || is_accepted(key) {
            continue;
        }
        let long = match key {
            "ro" => "read-only".to_owned(),
            "noallow_other" => "no-allow-other".to_owned(),
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
        "remount" => flags.remount = true,
        _ => return false,
    }
    true
}

/// Options of mount(8) and systemd that mean nothing to a file system, and those of the kernel that mount(8) reads from the
/// table of mounts and gives back for a remount.
fn is_accepted(key: &str) -> bool {
    const NAMES: [&str; 35] = [
        "user_id",
        "group_id",
        "max_read",
        "blksize",
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
        assert!(!parse("a:1 /m -o ro,rw").expect("good").read_only, "the last one counts");
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
        let flags = parse("a:1 /m -o nodev,nosuid,noexec,noatime,remount").expect("good").mount_flags;
        assert_eq!(flags, MountFlags { no_dev: true, no_suid: true, no_exec: true, no_atime: true, remount: true });
        let flags = parse("a:1 /m -o nodev,nosuid,noexec,dev,suid,exec").expect("good").mount_flags;
        assert_eq!(flags, MountFlags::default(), "the last one counts");
    }

    #[test]
    fn a_mount_by_root_serves_all_and_one_by_a_user_its_user() {
        let rights = |line: &str, is_root| {
            let args = parse(line).expect(line);
            (args.serves_others(is_root), args.checks_permissions(is_root))
        };
        assert_eq!(rights("a:1 /m", true), (true, true));
        assert_eq!(rights("a:1 /m -o noallow_other", true), (false, true));
        assert_eq!(rights("a:1 /m -o noallow_other,allow_other", true), (true, true));
        assert_eq!(rights("a:1 /m", false), (false, false));
        assert_eq!(rights("a:1 /m -o allow_other,default_permissions", false), (true, true));
    }

    #[test]
    fn a_part_of_the_tree_is_named_behind_the_addresses() {
        for (line, source, meta, subtree) in [
            ("a:1,b:2:/ /m", "a:1,b:2:/", &["a:1", "b:2"][..], &[][..]),
            ("a:1:/x//y/./z/ /m", "a:1:/x//y/./z/", &["a:1"], &["x", "y", "z"]),
            ("[::1]:4001:/x /m", "[::1]:4001:/x", &["[::1]:4001"], &["x"]),
            ("--meta a:1 :/x /m", "a:1:/x", &["a:1"], &["x"]),
            ("--meta a:1 /m", "a:1", &["a:1"], &[]),
        ] {
            let args = parse(line).expect(line);
            assert_eq!(args.source(), source);
            assert_eq!(args.client.meta, meta, "{line}");
            assert_eq!(args.subtree, subtree, "{line}");
        }
        assert!(message("a:1:/x/../y /m").contains("/x/../y"));
        assert!(message("a:1:x /m").contains("a:1:x"));
        assert!(message(":/x /m").contains("no metadata node"));
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
