//! The documents must say what the code does: option tables, test names.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Arg, ArgAction, Command, CommandFactory as _};
use dfs_common::crash::Point;
use dfs_tests::bins;

// mount.dfs is a program without a library; its options are all in one file.
#[path = "../../dfs-fuse/src/config.rs"]
mod mount_config;

fn document(name: &str) -> PathBuf {
    bins::repository().join("docs").join(name)
}

/// Files below a directory whose name ends in `extension`.
fn files_below(dir: PathBuf, extension: &str) -> Result<Vec<PathBuf>> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    Ok(found)
}

/// Every test of the cluster suite as `module::function`; what is in a sub-module belongs to the module.
fn cluster_tests() -> Result<BTreeSet<String>> {
    let mut tests = BTreeSet::new();
    let root = bins::repository().join("tests/tests/cluster");
    for path in files_below(root.clone(), "rs")? {
        let module = path.strip_prefix(&root)?.iter().next().context("a file")?;
        let module = module.to_string_lossy().trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path)?;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.trim() == "#[test]" {
                let signature = lines.next().context("a test has a function")?;
                let name = signature.trim().trim_start_matches("fn ").split('(').next().context("a name")?;
                tests.insert(format!("{module}::{name}"));
            }
        }
    }
    Ok(tests)
}

#[test]
fn every_sentence_of_the_semantics_names_a_test() -> Result<()> {
    let tests = cluster_tests()?;
    ensure!(tests.len() > 40, "only {} tests found", tests.len());
    let text = fs::read_to_string(document("semantics.md"))?;
    let (promises, _) = text.split_once("## What is not there").context("the last section")?;
    let mut sentences = 0;
    for line in promises.lines().filter(|line| line.starts_with("- ")) {
        let named: Vec<_> = line.split('`').filter(|word| word.contains("::")).collect();
        ensure!(!named.is_empty(), "no test is named: {line}");
        for name in named {
            ensure!(tests.contains(name), "there is no test {name}: {line}");
        }
        sentences += 1;
    }
    ensure!(sentences > 40, "only {sentences} sentences");
    Ok(())
}

#[test]
fn every_operation_of_the_protocol_has_a_file_of_tests() -> Result<()> {
    let text = fs::read_to_string(bins::repository().join("dfs-fuse/src/fuse.rs"))?;
    let (_, answered) = text.split_once("impl Filesystem for Adapter").context("the operations")?;
    let answered = answered.lines().filter_map(|line| line.strip_prefix("    fn "));
    let answered: BTreeSet<_> = answered.filter_map(|line| line.split('(').next()).collect();
    ensure!(answered.len() > 30, "only {answered:?}");
    for operation in answered {
        let path = bins::repository().join(format!("tests/tests/cluster/operations/{operation}.rs"));
        let tests = fs::read_to_string(&path).with_context(|| format!("{} is missing", path.display()))?;
        ensure!(tests.contains("#[test]"), "{operation} has no test");
    }
    Ok(())
}

/// What stands in backquotes in the first column of the table behind `headline`.
fn first_column(text: &str, headline: &str) -> Result<BTreeSet<String>> {
    let (_, section) = text.split_once(headline).with_context(|| format!("no section {headline}"))?;
    let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    Ok(cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect())
}

#[test]
fn every_kind_of_event_is_explained() -> Result<()> {
    let text = fs::read_to_string(document("operations/monitoring.md"))?;
    let kinds: BTreeSet<String> = dfs_meta::fsm::Fact::KINDS.iter().map(|kind| (*kind).to_owned()).collect();
    let explained = first_column(&text, "## Events")?;
    ensure!(explained == kinds, "explained: {explained:?}, kinds: {kinds:?}");
    Ok(())
}

/// The rows of the table of one command and its verbs, as they stand in docs/configuration.md.
fn rows(command: &Command, path: &str, table: &mut Vec<String>, inherited: &[String]) {
    let own: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str()))
        .filter(|arg| !inherited.contains(&arg.get_id().to_string()))
        .collect();
    for arg in &own {
        table.push(row(path, arg));
    }
    let known: Vec<String> = inherited.iter().cloned().chain(own.iter().map(|arg| arg.get_id().to_string())).collect();
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let path = format!("{path}{} ", verb.get_name());
        rows(verb, &path, table, &known);
    }
}

fn row(path: &str, arg: &Arg) -> String {
    let takes_value = !matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::Count | ArgAction::SetFalse);
    let value = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let value = value.unwrap_or_else(|| arg.get_id().to_string().to_uppercase());
    let mut option = match (arg.get_long(), arg.get_short()) {
        (Some(long), Some(short)) => format!("-{short}, --{long}"),
        (Some(long), None) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => String::new(),
    };
    if takes_value {
        option = format!("{option} {value}").trim().to_owned();
    }
    let env = arg.get_env().map_or_else(|| "-".into(), |env| format!("`{}`", env.to_string_lossy()));
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = match defaults.join(",") {
        _ if !takes_value => "off".to_owned(),
        text if !text.is_empty() => format!("`{text}`"),
        _ if arg.is_required_set() => "required".to_owned(),
        _ => "-".to_owned(),
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ").replace('|', "\\|");
    format!("| `{path}{option}` | {env} | {default} | {help} |")
}

/// Compares the section of `program` with its command. With `DFS_UPDATE_DOCS=1` the section is written anew instead.
fn check(program: &str, mut command: Command) -> Result<()> {
    command.build();
    let mut table = vec!["| option | environment | default | meaning |".into(), "|---|---|---|---|".into()];
    rows(&command, "", &mut table, &[]);
    let wanted = table.join("\n");
    let path = document("configuration.md");
    let text = fs::read_to_string(&path)?;
    let (begin, end) = (format!("<!-- {program}:begin -->\n"), format!("\n<!-- {program}:end -->"));
    let (head, rest) = text.split_once(&begin).with_context(|| format!("no section of {program}"))?;
    let (found, tail) = rest.split_once(&end).with_context(|| format!("no end of the section of {program}"))?;
    if std::env::var_os("DFS_UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{head}{begin}{wanted}{end}{tail}"))?;
        return Ok(());
    }
    let (known, documented): (BTreeSet<_>, BTreeSet<_>) = (wanted.lines().collect(), found.lines().collect());
    let missing: Vec<_> = known.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&known).collect();
    ensure!(
        found == wanted,
        "docs/configuration.md differs from {program}; run the test with DFS_UPDATE_DOCS=1 and look at the change\n\
         not documented: {missing:#?}\nno longer true: {stale:#?}"
    );
    Ok(())
}

/// One test for all programs: they write to one file with `DFS_UPDATE_DOCS=1`.
#[test]
fn the_options_are_those_of_the_programs() -> Result<()> {
    check("dfs-meta", dfs_meta::config::command())?;
    check("dfs-storage", dfs_storage::config::command())?;
    check("mount.dfs", mount_config::Args::command())?;
    check("dfsctl", dfsctl::command())
}

#[test]
fn every_relative_link_leads_somewhere() -> Result<()> {
    let root = bins::repository();
    let mut pages = vec![root.join("README.md"), root.join("CHANGELOG.md")];
    pages.extend(files_below(root.join("docs"), "md")?);
    for page in pages {
        let text = fs::read_to_string(&page)?;
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().context("a page has a directory")?.join(target);
            ensure!(path.exists(), "{}: the link to {target} leads nowhere", page.display());
        }
    }
    Ok(())
}

/// The words in backticks of a cell of a table.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_crash_table_names_every_crash_point_and_a_test_for_each() -> Result<()> {
    let text = fs::read_to_string(document("architecture.md"))?;
    let (_, rest) = text.split_once("## What if it dies between the two steps").context("the section")?;
    let (_, rest) = rest.split_once("| crash point | test |\n").context("the table")?;
    let (table, _) = rest.split_once("\n\n").context("the end of the table")?;
    let tests = cluster_tests()?;
    let known: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
    let mut named = BTreeSet::new();
    for row in table.lines().skip(1) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        ensure!(cells.len() == 6, "{} cells: {row}", cells.len());
        let (points, shown) = (quoted(cells[4]), quoted(cells[5]));
        ensure!(!points.is_empty() && !shown.is_empty(), "no crash point or no test: {row}");
        for point in &points {
            ensure!(known.contains(point), "there is no crash point {point}: {row}");
        }
        for test in shown {
            ensure!(tests.contains(test), "there is no test {test}: {row}");
        }
        named.extend(points);
    }
    let forgotten: Vec<_> = known.difference(&named).collect();
    ensure!(forgotten.is_empty(), "crash points without a row: {forgotten:?}");
    Ok(())
}

#[test]
fn every_crash_point_is_passed_by_the_code_and_by_a_test() -> Result<()> {
    let root = bins::repository();
    let read = |dirs: &[&str]| -> Result<String> {
        let mut all = String::new();
        for dir in dirs {
            for path in files_below(root.join(dir), "rs")? {
                all.push_str(&fs::read_to_string(path)?);
            }
        }
        Ok(all)
    };
    let code = read(&["dfs-client/src", "dfs-fuse/src", "dfs-meta/src", "dfs-storage/src", "dfsctl/src"])?;
    let tests = read(&["tests/tests/cluster"])?;
    for point in Point::ALL {
        ensure!(code.contains(&format!("Point::{point:?}")), "{point:?} is nowhere in the code");
        let name = point.name();
        let is_tested = tests.contains(&format!("\"{name}\"")) || tests.contains(&format!("\"{name}:"));
        ensure!(is_tested, "no test lets a process die at {name}");
    }
    Ok(())
}

#[test]
fn the_port_table_is_the_one_of_the_code() -> Result<()> {
    let text = fs::read_to_string(document("configuration.md"))?;
    for (program, port) in [("dfs-meta", dfs_common::ports::META), ("dfs-storage", dfs_common::ports::STORAGE)] {
        let row = format!("| `{program}` | {port} |");
        ensure!(text.contains(&row), "no row {row:?} in the port table");
    }
    Ok(())
}

/// `mount.dfs` understands a line as mount(8) would give it.
fn check_mount(source: &str, place: &str, options: &str) -> Result<mount_config::Args> {
    let line = ["mount.dfs", source, place, "-o", options];
    mount_config::Args::parse_from_args(line.map(Into::into)).with_context(|| format!("{source} {place} {options}"))
}

#[test]
fn the_examples_of_mounts_are_understood() -> Result<()> {
    let example = |name: &str| fs::read_to_string(document("operations/examples").join(name));
    let fstab = example("fstab")?;
    let lines: Vec<_> = fstab.lines().filter(|line| !line.starts_with('#')).collect();
    ensure!(lines.len() == 3, "{lines:?}");
    for line in lines {
        let fields: Vec<_> = line.split_whitespace().collect();
        ensure!(fields.len() == 6 && fields[2] == "dfs", "{line}");
        let args = check_mount(fields[0], fields[1], fields[3])?;
        ensure!(args.source() == fields[0] && args.mountpoint() == std::path::Path::new(fields[1]), "{line}");
    }
    let unit = example("mnt-dfs.mount")?;
    let value = |text: &str, key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned));
        found.with_context(|| format!("no {key}"))
    };
    let place = value(&unit, "Where")?;
    check_mount(&value(&unit, "What")?, &place, &value(&unit, "Options")?)?;
    ensure!(value(&unit, "Type")? == "dfs" && place == value(&example("mnt-dfs.automount")?, "Where")?);
    // The rule of systemd-escape --path.
    ensure!(place.trim_start_matches('/').replace('/', "-") == "mnt-dfs", "{place}");
    let map = example("auto.dfs")?;
    let line = map.lines().find(|line| !line.starts_with('#')).context("a line")?;
    let fields: Vec<_> = line.split_whitespace().collect();
    let options = fields[1].strip_prefix("-fstype=dfs,").context("the type")?;
    check_mount(&fields[2].replace('\\', "").replace('&', "moon"), "/dfs/moon", options)?;
    Ok(())
}
