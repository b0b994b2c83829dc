//! One way to configure every process: flag over environment over TOML file over default.
//!
//! A program describes its options once, as a clap command with `env` set on each. The file named by `--config` (or the
//! command's own environment variable for it) is read first and its values become the defaults of the command, so clap's own
//! order of precedence and its value parsers, which name the bad option, do the rest.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use clap::{ArgAction, ArgMatches, Command};

/// The configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// It cannot be read.
    #[error("cannot read configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("configuration file {path} is not valid TOML: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// It names an option that does not exist.
    #[error("configuration file {path}: unknown option {key:?}; known ones are {known}")]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// All keys.
        known: String,
    },
    /// A value has a type that no option has.
    #[error(
        "configuration file {path}: option {key:?} must be a string, a number, true or false, or a list of strings"
    )]
    BadType {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
}

/// Parses the arguments of `command`, which must have an option `config`.
///
/// # Errors
/// The configuration file cannot be used. Bad flags, environment values and file values end in the returned clap error's
/// usual message, which names the option.
pub fn parse(command: Command, args: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, ParseError> {
    let args: Vec<OsString> = args.into_iter().collect();
    let command = match config_path(&command, &args) {
        Some(path) => with_file(command, &path)?,
        None => command,
    };
    Ok(command.try_get_matches_from(args)?)
}

/// Why [`parse`] failed.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The file.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// The command line, the environment, or a value in the file. Also `--help` and `--version`.
    #[error(transparent)]
    Clap(#[from] clap::Error),
}

impl ParseError {
    /// Prints the message and ends the process: 0 for help and version, 2 for a mistake.
    pub fn exit(self) -> ! {
        match self {
            Self::Clap(error) => error.exit(),
            Self::File(error) => {
                eprintln!("error: {error}");
                std::process::exit(2)
            }
        }
    }
}

/// Finds `--config PATH` before the real parse, because the file's values are the defaults of that parse.
fn config_path(command: &Command, args: &[OsString]) -> Option<PathBuf> {
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            break;
        }
        if arg == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    let env = command.get_arguments().find(|arg| arg.get_id() == "config")?.get_env()?;
    std::env::var_os(env).map(PathBuf::from)
}

fn with_file(command: Command, path: &Path) -> Result<Command, ConfigFileError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigFileError::Read { path: path.into(), source })?;
    let table: toml::Table =
        toml::from_str(&text).map_err(|source| ConfigFileError::Parse { path: path.into(), source: source.into() })?;
    table.into_iter().try_fold(command, |command, (key, value)| set_default(command, path, key, value))
}

fn set_default(command: Command, path: &Path, key: String, value: toml::Value) -> Result<Command, ConfigFileError> {
    let option = command
        .get_arguments()
        .find(|arg| arg.get_long().is_some_and(|long| long == key.replace('_', "-")) && arg.get_id() != "config");
    let Some(option) = option else {
        let known: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
        return Err(ConfigFileError::UnknownKey { path: path.into(), key, known: known.join(", ") });
    };
    let id = option.get_id().clone();
    // A switch has no value of its own: its default text is what its parser reads.
    let is_switch = matches!(option.get_action(), ArgAction::SetTrue);
    let texts = match value {
        toml::Value::String(text) => vec![text],
        toml::Value::Integer(number) => vec![number.to_string()],
        toml::Value::Float(number) => vec![number.to_string()],
        toml::Value::Boolean(flag) if is_switch || !flag => vec![flag.to_string()],
        toml::Value::Boolean(flag) => vec![flag.to_string()],
        toml::Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                toml::Value::String(text) => Ok(text),
                _ => Err(ConfigFileError::BadType { path: path.into(), key: key.clone() }),
            })
            .collect::<Result<_, _>>()?,
        toml::Value::Datetime(_) | toml::Value::Table(_) => {
            return Err(ConfigFileError::BadType { path: path.into(), key });
        }
    };
    // Required options are satisfied by the file.
    Ok(command.mut_arg(id, |arg| arg.required(false).default_values(texts)))
}

#[cfg(test)]
mod tests {
    use clap::{Arg, value_parser};

    use super::*;
    use crate::units::Span;

    fn command() -> Command {
        Command::new("x")
            .arg(Arg::new("config").long("config"))
            .arg(Arg::new("node_name").long("node-name").required(true))
            .arg(Arg::new("heartbeat").long("heartbeat").default_value("3s").value_parser(value_parser!(Span)))
            .arg(Arg::new("peers").long("peers").value_delimiter(','))
    }

    fn run(file: &str, args: &[&str]) -> Result<ArgMatches, ParseError> {
        let dir = tempfile::tempdir().expect("tmp");
        let path = dir.path().join("c.toml");
        fs::write(&path, file).expect("write");
        let mut all: Vec<OsString> = vec!["x".into(), "--config".into(), path.into()];
        all.extend(args.iter().map(OsString::from));
        parse(command(), all)
    }

    #[test]
    fn file_beats_default_and_flag_beats_file() {
        let m = run("node_name = \"a\"\nheartbeat = \"5s\"\npeers = [\"p\", \"q\"]", &[]).expect("good");
        assert_eq!(m.get_one::<String>("node_name").map(String::as_str), Some("a"));
        assert_eq!(m.get_one::<Span>("heartbeat").map(ToString::to_string), Some("5s".into()));
        assert_eq!(m.get_many::<String>("peers").map(|p| p.count()), Some(2));
        let m = run("node_name = \"a\"\nheartbeat = \"5s\"", &["--heartbeat", "7s"]).expect("good");
        assert_eq!(m.get_one::<Span>("heartbeat").map(ToString::to_string), Some("7s".into()));
    }

    #[test]
    fn mistakes_are_named() {
        let unknown = run("node_nam = \"a\"", &[]).expect_err("unknown key");
        assert!(unknown.to_string().contains("node_nam"), "{unknown}");
        let bad = run("node_name = \"a\"\nheartbeat = \"soon\"", &[]).expect_err("bad value");
        assert!(bad.to_string().contains("soon") && bad.to_string().contains("heartbeat"), "{bad}");
    }
}
