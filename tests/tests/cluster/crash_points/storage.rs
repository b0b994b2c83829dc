//! Points of the storage nodes: chunks, deletions, identity.

use anyhow::{Result, ensure};
use dfs_tests::crash;

use super::{Case, LIMIT, back_in_any_order, builder};

#[test]
fn a_chunk_is_stored_whole_or_not_at_all() -> Result<()> {
    let mut case = Case::start(builder())?;
    for (node, point) in
        [("storage-1", "chunk-written"), ("storage-2", "chunk-synced"), ("storage-3", "chunk-renamed:2")]
    {
        case.crash_while_writing(node, point)?;
    }
    case.finish()
}

#[test]
fn an_upload_that_lost_its_primary_is_stored_anew_and_the_old_copies_go() -> Result<()> {
    let armed = [("storage-1", "primary-stored"), ("storage-2", "quorum-stored")];
    let mut cluster = builder().describe()?;
    // From their first start on: a node that was away is nobody's primary for a while.
    for (node, point) in armed {
        cluster.node(node).set_env(crash::VARIABLE, Some(point));
    }
    cluster.start_all()?;
    let mut case = Case::over(cluster)?;
    case.under_load(|cluster| back_in_any_order(cluster, armed.to_vec()))?;
    case.finish()
}

#[test]
fn a_replica_that_dies_before_its_answer_costs_nothing() -> Result<()> {
    let mut case = Case::start(builder())?;
    case.crash_while_writing("storage-3", "replica-stored")?;
    case.finish()
}

#[test]
fn a_late_copy_that_its_primary_cannot_report_counts_all_the_same() -> Result<()> {
    // The third node is slow, not gone.
    let builder = builder().meta_flag("--suspect", "60s").meta_flag("--dead", "120s");
    let mut case = Case::start(builder)?;
    let armed = ["storage-1", "storage-2"];
    for node in armed {
        case.cluster.arm(node, "late-copy-stored")?;
    }
    case.cluster.wait_alive(3)?;
    let mut died = None;
    for _ in 0..20 {
        case.write_beside_a_slow_node("storage-3", armed)?;
        died = armed.into_iter().find(|node| case.cluster.node(node).ended().is_some());
        if died.is_some() {
            break;
        }
    }
    let died = died.map_or_else(|| "nobody".to_owned(), str::to_owned);
    ensure!(died != "nobody", "no copy was late");
    case.cluster.await_crash(&died, "late-copy-stored")?;
    // The other one must not die while the rest is checked.
    for node in armed.into_iter().filter(|node| *node != died) {
        match case.cluster.node(node).ended() {
            Some(_) => case.cluster.await_crash(node, "late-copy-stored")?,
            None => case.cluster.disarm(node)?,
        }
    }
    case.finish()
}

#[test]
fn what_was_removed_is_deleted_in_the_end_whoever_dies_on_the_way() -> Result<()> {
    let mut case = Case::start(builder().meta_flag("--trash-retention", "1s"))?;
    case.write_many(4)?;
    for (node, point) in [
        ("meta-1", "trash-dropped"),
        ("meta-1", "garbage-released"),
        ("storage-2", "chunks-deleted"),
        ("meta-1", "deletion-heard"),
    ] {
        case.write_many(2)?;
        // What is left of the step before must not bring it there.
        case.until_tidy()?;
        case.cluster.arm(node, point)?;
        case.cluster.wait_alive(3)?;
        case.remove()?;
        case.remove()?;
        case.back(node, point)?;
    }
    case.finish()
}

#[test]
fn a_node_that_dies_while_it_stamps_its_disks_is_one_node() -> Result<()> {
    let mut cluster = builder().describe()?;
    let dir = cluster.data_dir("storage-1");
    let disks = ["d1", "d2"].map(|disk| dir.join(disk).display().to_string()).join(",");
    for node in ["meta-1", "storage-2", "storage-3"] {
        cluster.start(node)?;
    }
    cluster.wait_alive(2)?;
    let node = cluster.node("storage-1");
    node.set_flag("--data-dir", &disks);
    node.arm("directory-stamped")?;
    node.await_crash("directory-stamped")?;
    cluster.start("storage-1")?;
    cluster.wait_alive(3)?;
    let nodes = cluster.status()?["nodes"].as_array().map_or(0, Vec::len);
    ensure!(nodes == 3, "{nodes} nodes are known");
    let mount = cluster.mount()?;
    let sum = dfs_tests::files::write_noise(&mount.join("f"), 1, 100_000)?;
    ensure!(dfs_tests::files::sha256(&mount.join("f"))? == sum);
    cluster.wait_healthy(LIMIT)?;
    cluster.finish([mount])
}

#[test]
fn a_node_that_dies_while_it_joins_gets_one_number() -> Result<()> {
    let mut cluster = builder().describe()?;
    for node in ["meta-1", "storage-1", "storage-2"] {
        cluster.start(node)?;
    }
    cluster.wait_alive(2)?;
    for point in ["identity-stamped", "node-registered"] {
        let node = cluster.node("storage-3");
        node.arm(point)?;
        node.await_crash(point)?;
    }
    cluster.arm("meta-1", "registration-applied")?;
    cluster.start("storage-3")?;
    cluster.await_crash("meta-1", "registration-applied")?;
    cluster.wait_alive(3)?;
    let nodes = cluster.status()?["nodes"].as_array().map_or(0, Vec::len);
    ensure!(nodes == 3, "{nodes} nodes are known");
    let mut case = Case::over(cluster)?;
    case.write_many(4)?;
    case.finish()
}
