//! Points between the storage nodes and the leader: inventories, repairs, trims, bad copies.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use dfs_tests::{Cluster, files, wait};

use super::{Case, LIMIT, back_in_any_order, builder, chunk_files};

/// Chunk files of a node, in order.
fn chunks_of(cluster: &Cluster, node: &str) -> Result<Vec<PathBuf>> {
    let found = files::sh("find \"$1/chunks\" -name '*.chunk' | sort", &[&cluster.data_dir(node)])?;
    Ok(found.lines().map(PathBuf::from).collect())
}

/// Kills a node and removes two of its chunk files behind its back.
fn lose_two(cluster: &mut Cluster, node: &str) -> Result<()> {
    cluster.kill(node)?;
    let chunks = chunks_of(cluster, node)?;
    ensure!(chunks.len() >= 2, "{node} has {} chunks", chunks.len());
    chunks.iter().take(2).try_for_each(|path| std::fs::remove_file(path).with_context(|| path.display().to_string()))
}

#[test]
fn an_inventory_that_was_cut_short_is_taken_again() -> Result<()> {
    let mut case = Case::start(builder())?;
    case.write_many(10)?;
    case.cluster.wait_healthy(LIMIT)?;
    lose_two(&mut case.cluster, "storage-1")?;
    case.cluster.arm("storage-1", "inventory-sent")?;
    case.back("storage-1", "inventory-sent")?;
    case.check()?;
    for point in ["inventory-compared", "inventory-applied"] {
        lose_two(&mut case.cluster, "storage-1")?;
        // The only page that this leader sees is that of the node that comes back.
        case.cluster.node("meta-1").set_flag("--inventory-delay", "60s");
        case.cluster.arm("meta-1", point)?;
        case.cluster.wait_alive(2)?;
        case.cluster.start("storage-1")?;
        let meta = case.cluster.node("meta-1");
        meta.await_crash(point)?;
        meta.set_flag("--inventory-delay", "1s");
        meta.start()?;
        case.check()?;
    }
    case.finish()
}

#[test]
fn repairs_and_trims_go_on_whoever_dies_on_the_way() -> Result<()> {
    let builder = builder().storages(4).meta_flag("--suspect", "700ms").meta_flag("--dead", "1500ms");
    let mut case = Case::start(builder)?;
    case.write_many(40)?;
    case.cluster.wait_healthy(LIMIT)?;
    // A node is gone for long: its chunks are copied by the others.
    case.cluster.arm("storage-1", "repair-copied")?;
    case.cluster.arm("storage-2", "replica-stored")?;
    case.cluster.arm("meta-1", "repair-heard")?;
    case.cluster.wait_alive(4)?;
    case.cluster.kill("storage-4")?;
    back_in_any_order(
        &mut case.cluster,
        vec![("storage-1", "repair-copied"), ("storage-2", "replica-stored"), ("meta-1", "repair-heard")],
    )?;
    case.cluster.wait_alive(3)?;
    case.cluster.wait_healthy(LIMIT)?;
    // It comes back: there is a copy too many of each of its chunks.
    case.cluster.arm("meta-1", "trim-confirmed")?;
    case.cluster.wait_alive(3)?;
    case.cluster.start("storage-4")?;
    for (point, next) in [("trim-confirmed", Some("trim-recorded")), ("trim-recorded", None)] {
        let meta = case.cluster.node("meta-1");
        meta.await_crash(point)?;
        match next {
            Some(next) => meta.arm(next)?,
            None => meta.start()?,
        }
    }
    case.finish()
}

/// Changes one bit in the middle of a chunk file.
fn flip(path: &Path) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4000)?;
    file.write_all_at(&[byte[0] ^ 1], 4000)?;
    Ok(())
}

#[test]
fn a_bad_copy_is_set_aside_and_replaced_whatever_step_is_the_last() -> Result<()> {
    let mut case = Case::start(builder().expect_log("a corrupt copy was set aside"))?;
    for point in ["quarantine-renamed", "copy-set-aside"] {
        case.write_many(4)?;
        case.cluster.wait_healthy(LIMIT)?;
        let bad = chunks_of(&case.cluster, "storage-2")?.into_iter().next().context("a chunk")?;
        case.cluster.arm("storage-2", point)?;
        case.cluster.wait_alive(3)?;
        flip(&bad)?;
        // The node dies over it: whether there is an answer is not the question.
        case.cluster.dfsctl(&["--deadline", "2s", "fsck", "--verify"])?;
        case.back("storage-2", point)?;
        wait::until("it is replaced", LIMIT, || {
            case.cluster.dfsctl(&["fsck", "--verify"]).is_ok_and(|output| output.code == 0)
        })?;
    }
    case.finish()
}

#[test]
fn a_scrub_goes_on_where_it_was() -> Result<()> {
    let mut case = Case::start(builder())?;
    case.write_many(20)?;
    case.cluster.wait_healthy(LIMIT)?;
    // It dies when the first pass notes how far it is, or with the order in hand.
    case.cluster.arm("storage-2", "scrub-verified")?;
    case.cluster.dfsctl(&["--deadline", "2s", "scrub", "start", "storage-2"])?;
    case.back("storage-2", "scrub-verified")?;
    case.cluster.dfsctl_ok(&["scrub", "start", "storage-2"])?;
    wait::until("the pass ends, and has read every chunk", LIMIT, || {
        let events = case.cluster.dfsctl_ok(&["events", "--json", "--kind", "scrub-pass", "-n", "0"]);
        let passes = events.ok().and_then(|text| serde_json::from_str::<Vec<serde_json::Value>>(&text).ok());
        let read = |event: &serde_json::Value| event["fields"]["chunks"].as_u64() >= Some(20);
        passes.is_some_and(|passes| passes.iter().any(read))
    })?;
    case.finish()
}

#[test]
fn a_bad_copy_is_replaced_although_the_leader_dies_over_it() -> Result<()> {
    let mut case = Case::start(builder().expect_log("a corrupt copy was set aside"))?;
    case.write_many(6)?;
    case.cluster.wait_healthy(LIMIT)?;
    let bad = chunks_of(&case.cluster, "storage-2")?.into_iter().next().context("a chunk")?;
    case.cluster.arm("meta-1", "bad-copy-dropped")?;
    case.cluster.wait_alive(3)?;
    flip(&bad)?;
    // It reports what it finds; whether it gets an answer is not the question.
    case.cluster.dfsctl(&["--deadline", "2s", "fsck", "--verify"])?;
    case.back("meta-1", "bad-copy-dropped")?;
    wait::until("it is found again and replaced", LIMIT, || {
        case.cluster.dfsctl(&["fsck", "--verify"]).is_ok_and(|output| output.code == 0)
            && chunk_files(&case.cluster).is_ok_and(|count| count == 3 * case.stored.len())
    })?;
    case.finish()
}
