//! Names, options and command lines of a local cluster.

use clap::{FromArgMatches, Parser};

use super::*;

/// Two metadata and three storage nodes.
pub(in crate::cmd::dev) fn plan() -> Plan {
    Plan {
        version: VERSION,
        served: true,
        replication: 3,
        meta_ports: vec![11_001, 11_002],
        storage_ports: vec![12_001, 12_002, 12_003],
        disks: 1,
        mount: None,
        options: Options::default(),
    }
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    up: Up,
}

fn up(words: &str) -> Up {
    let words = std::iter::once("up").chain(words.split_whitespace());
    let matches = <Line as clap::CommandFactory>::command().try_get_matches_from(words).expect("parses");
    Line::from_arg_matches(&matches).expect("fits").up
}

const QUIET: Output = Output { json: false, quiet: true };

fn words(program: &Program) -> String {
    program.arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[test]
fn names_round_trip_and_nothing_else_parses() {
    for name in [Name::Meta(1), Name::Storage(12), Name::Mount] {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    for bad in ["", "meta", "meta-", "meta-0", "meta-01", "meta-+1", "storage-x", "mount-1", "../x"] {
        assert!(bad.parse::<Name>().is_err(), "{bad}");
    }
}

#[test]
fn replication_is_lowered_to_the_storage_nodes() {
    let (made, _reserved) = Plan::make(&up("-s 2"), QUIET).expect("made");
    assert_eq!((made.replication, made.meta_ports.len(), made.storage_ports.len()), (2, 1, 2));
    assert_eq!(Plan::make(&up("-m 3 -s 4"), QUIET).expect("made").0.replication, 3);
}

#[test]
fn later_options_must_agree() {
    let dir = Path::new("/d");
    assert_eq!(plan().agree(&up(""), dir), Ok(false));
    assert_eq!(plan().agree(&up("-m 2 -s 3 --replication 3"), dir), Ok(false));
    assert_eq!(plan().agree(&up("-m 2 -s 3 --replication 9"), dir), Ok(false), "lowered as when it was made");
    for other in ["-m 1", "-s 4", "--replication 2", "--disks 2"] {
        let failure = plan().agree(&up(other), dir).expect_err(other);
        assert!(failure.message.contains("-m 2 -s 3 --replication 3"), "{failure}");
    }
    let mut changed = plan();
    assert_eq!(changed.agree(&up("--dead 50s"), dir), Ok(true));
    assert_eq!(changed.agree(&up("--dead 50s"), dir), Ok(false));
    assert_eq!(changed.agree(&up(""), dir), Ok(false));
    assert_eq!(changed.options.dead.as_deref(), Some("50s"), "kept when not given again");
}

#[test]
fn what_a_metadata_node_would_refuse_is_not_kept() {
    for (words, named) in [
        ("--suspect 20s --dead 10s", "--dead"),
        ("--dead 10s", "--dead"),
        ("--heartbeat 6s", "--suspect"),
        ("--heartbeat 0s", "--heartbeat"),
    ] {
        for failure in [
            Plan::make(&up(words), QUIET).expect_err(words),
            plan().agree(&up(words), Path::new("/d")).expect_err(words),
        ] {
            assert_eq!(failure.exit, crate::exit::Exit::Usage, "{words}");
            assert!(failure.message.contains(named), "{words}: {failure}");
        }
    }
    for metas in ["-m 2", "-m 4", "-m 7", "-m 9"] {
        let failure = Plan::make(&up(metas), QUIET).expect_err(metas);
        assert!(failure.hint.is_some_and(|hint| hint.contains("1, 3 or 5")), "{metas}");
    }
}

#[test]
fn the_file_round_trips_and_damage_is_named() {
    let dir = tempfile::tempdir().expect("tmp");
    let file = dir.path().join("cluster.json");
    assert_eq!(Plan::load(&file), Ok(None));
    plan().save(&file).expect("saved");
    assert_eq!(Plan::load(&file), Ok(Some(plan())));
    fs::write(&file, "{").expect("write");
    assert!(Plan::load(&file).expect_err("damaged").message.contains("damaged"));
}

#[test]
fn command_lines() {
    let dir = tempfile::tempdir().expect("tmp");
    let home = Home::create(dir.path()).expect("home");
    let mut plan = plan();
    plan.mount = Some("/mnt/x".into());
    plan.agree(
        &up("--heartbeat 1s --capacity 1G --meta-arg --raft-heartbeat=50ms --mount-opt ro --mount-opt cache=1"),
        home.dir(),
    )
    .expect("agrees");
    let line = |name| words(&plan.program(name, &home, "/bin/x".into()));
    let meta = line(Name::Meta(2));
    assert!(
        meta.starts_with("--name meta-2 --listen 127.0.0.1:11002 --advertise 127.0.0.1:11002 --data-dir /"),
        "{meta}"
    );
    assert!(meta.contains("--peers meta-1=127.0.0.1:11001,meta-2=127.0.0.1:11002"), "{meta}");
    assert!(meta.ends_with("--replication 3 --write-quorum 2 --heartbeat 1s --raft-heartbeat=50ms"), "{meta}");
    let storage = line(Name::Storage(3));
    assert!(storage.contains("--meta 127.0.0.1:11001,127.0.0.1:11002 --capacity 1G"), "{storage}");
    plan.disks = 2;
    let storage = words(&plan.program(Name::Storage(3), &home, "/bin/x".into()));
    assert!(storage.contains("/storage-3/disk-1,/") && storage.contains("/storage-3/disk-2 --meta"), "{storage}");
    let line = |name| words(&plan.program(name, &home, "/bin/x".into()));
    assert_eq!(line(Name::Mount), "127.0.0.1:11001,127.0.0.1:11002 /mnt/x -o ro,cache=1 -f --supervise");
}

#[test]
fn the_identity_is_part_of_the_command_line() {
    let dir = tempfile::tempdir().expect("tmp");
    let home = Home::create(dir.path()).expect("home");
    let mut plan = plan();
    plan.mount = Some("/mnt/x".into());
    for name in plan.names() {
        let line = plan.program(name, &home, "/bin/x".into()).arguments;
        let identity = plan.identity(name, &home).arguments;
        assert!(line.windows(identity.len()).any(|window| *window == *identity), "{name}");
    }
}

#[test]
fn mount_points_are_absolute_and_their_links_are_followed() {
    let dir = tempfile::tempdir().expect("tmp");
    let real = fs::canonicalize(dir.path()).expect("real");
    fs::create_dir(real.join("target")).expect("mkdir");
    std::os::unix::fs::symlink("target", real.join("link")).expect("link");
    let point = |path: PathBuf| mount_point(&Up { mount: Some(path), ..up("") }).expect("usable").map(PathBuf::from);
    assert_eq!(point(real.join("link")), Some(real.join("target")));
    assert_eq!(point(real.join("link/deeper")), Some(real.join("target/deeper")));
    assert_eq!(point(real.join("new/../target")), Some(real.join("target")));
    assert!(mount_point(&Up { mount: Some("/".into()), ..up("") }).is_err());
}
