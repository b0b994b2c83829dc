//! The definition of healthy, and the shape of the document.

use super::*;

fn member(n: u64, leader: bool, reachable: bool) -> v1::MetaMember {
    v1::MetaMember {
        raft_id: n,
        name: format!("meta-{n}"),
        address: format!("h:{n}"),
        leader,
        voter: true,
        reachable,
        ..Default::default()
    }
}

fn node(n: u32, state: v1::NodeState) -> v1::NodeStatus {
    v1::NodeStatus {
        node_id: n,
        name: format!("storage-{n}"),
        state: state.into(),
        chunk_count: 5,
        ..Default::default()
    }
}

fn good() -> v1::ClusterStatusResponse {
    v1::ClusterStatusResponse {
        cluster_id: vec![0xab; 16].into(),
        leader: "meta-1".into(),
        members: vec![member(1, true, true), member(2, false, true), member(3, false, true)],
        nodes: (1..=4).map(|n| node(n, v1::NodeState::Alive)).collect(),
        chunks: Some(v1::ChunkCounts { total: 5, full: 5, ..Default::default() }),
        detector: Some(v1::DetectorSettings { replication: 3, write_quorum: 2, ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn everything_well() {
    let status = Status::new(good());
    assert!(status.healthy && status.problems.is_empty() && status.remarks.is_empty(), "{status:?}");
    assert_eq!(status.summary(), ["healthy: all 5 chunks have all their copies"]);
    assert!(status.next_failure().starts_with("if any storage node fails: 0 chunks lost, 0 endangered; "));
}

#[test]
fn a_failed_disk_is_remarked_on_with_its_node() {
    let mut wire = good();
    let disk = |failed| v1::DiskReport { path: "/d".into(), failed, reason: "EIO".into(), ..Default::default() };
    wire.nodes[1].disks = vec![disk(false), disk(true)];
    let status = Status::new(wire);
    assert!(status.healthy, "its chunks are copied: that is what counts");
    assert_eq!(status.remarks, ["storage-2: disk /d has failed: EIO"]);
}

#[test]
fn any_chunk_short_of_a_copy_is_unhealthy() {
    for counts in [
        v1::ChunkCounts { total: 5, full: 4, under_replicated: 1, ..Default::default() },
        v1::ChunkCounts { total: 5, full: 4, endangered: 1, ..Default::default() },
        v1::ChunkCounts { total: 5, full: 4, missing: 1, ..Default::default() },
    ] {
        let status = Status::new(v1::ClusterStatusResponse { chunks: Some(counts), ..good() });
        assert!(!status.healthy && status.problems.len() == 1, "{status:?}");
    }
}

#[test]
fn the_worst_next_failure_is_named() {
    let mut wire = good();
    wire.nodes[0].if_endangered = Some(v1::ChunkClass { chunks: 3, bytes: 300 });
    wire.nodes[1].if_endangered = Some(v1::ChunkClass { chunks: 120, bytes: 12_000 });
    let words = Status::new(wire.clone()).next_failure();
    assert!(words.starts_with("if storage-2 fails: 0 chunks lost, 120 endangered; "), "{words}");
    wire.nodes[2].if_lost = Some(v1::ChunkClass { chunks: 1, bytes: 1024 });
    let words = Status::new(wire.clone()).next_failure();
    assert!(words.starts_with("if storage-3 fails: 1 chunk LOST (1.00 KiB), 0 endangered; "), "{words}");
    wire.nodes[2].state = v1::NodeState::Dead.into();
    assert!(Status::new(wire).next_failure().starts_with("if storage-2 fails"), "the dead do not fail again");
}

#[test]
fn copies_are_a_matrix() {
    let class = |live, chunks| v1::CopyClass { live, chunks, bytes: chunks << 20 };
    let copies = vec![class(0, 0), class(1, 2), class(2, 0), class(3, 7), class(4, 1)];
    let status = Status::new(v1::ClusterStatusResponse { copies, ..good() });
    assert_eq!(status.copies_words(), "2 with 1 copy (2.00 MiB), 7 with 3 copies (7.00 MiB), 1 with more (1.00 MiB)");
}

#[test]
fn a_dead_node_is_a_remark_while_every_chunk_is_full() {
    let mut wire = good();
    wire.nodes[3] = node(4, v1::NodeState::Dead);
    let status = Status::new(wire);
    assert!(status.healthy);
    assert_eq!(status.remarks.len(), 1, "{status:?}");
}

#[test]
fn a_suspect_node_with_chunks_leaves_the_data_in_doubt() {
    let mut wire = good();
    wire.nodes[3] = node(4, v1::NodeState::Suspect);
    assert!(!Status::new(wire.clone()).healthy);
    wire.nodes[3].chunk_count = 0;
    assert!(Status::new(wire).healthy);
}

#[test]
fn decisions_of_an_administrator_are_remarks_and_say_how_far_they_are() {
    let mut wire = good();
    wire.nodes[0] = v1::NodeStatus {
        admin: v1::AdminState::Draining.into(),
        rests: Some(v1::ChunkClass { chunks: 3, bytes: 3 << 20 }),
        ..node(1, v1::NodeState::Draining)
    };
    wire.nodes[1].admin = v1::AdminState::Drained.into();
    // Its silence is expected, so its copies are not in doubt.
    wire.nodes[2] = v1::NodeStatus {
        admin: v1::AdminState::Maintenance.into(),
        maintenance_until_ns: 1_700_000_000_000_000_000,
        silent_ms: 60_000,
        ..node(3, v1::NodeState::Suspect)
    };
    wire.repair = Some(v1::RepairProgress { bytes_per_s: 1024.0, eta_ms: Some(3000), ..Default::default() });
    let status = Status::new(wire);
    assert!(status.healthy, "{status:?}");
    let remarks = status.remarks.join("\n");
    for words in [
        "storage-1 is being drained: 3 chunks (3.00 MiB) left to copy elsewhere at 1.00 KiB/s, done in 3.0 s",
        "storage-2 is drained: `dfsctl node remove storage-2`",
        "storage-3 is in maintenance until 2023-11-14",
        "silent for 60 s",
    ] {
        assert!(remarks.contains(words), "{words}: {remarks}");
    }
    assert_eq!(status.nodes[2].state_words(), "SUSPECT (maintenance)");
    assert_eq!(status.nodes[0].state_words(), "DRAINING");
}

#[test]
fn metadata_is_healthy_with_a_leader_and_a_majority() {
    let mut wire = good();
    wire.members[2].reachable = false;
    let status = Status::new(wire.clone());
    assert!(status.healthy && status.remarks.len() == 1, "{status:?}");
    wire.members[1].reachable = false;
    assert!(!Status::new(wire.clone()).healthy);
    assert!(!Status::new(v1::ClusterStatusResponse { leader: String::new(), ..good() }).healthy);
}

#[test]
fn too_few_live_nodes_are_named() {
    let mut wire = good();
    wire.nodes.truncate(1);
    assert!(Status::new(wire).remarks[0].starts_with("writes fail"));
    let mut wire = good();
    wire.nodes.truncate(2);
    assert!(Status::new(wire).remarks[0].contains("cannot have 3 copies"));
}

#[test]
fn the_document_has_the_promised_fields() {
    let json = serde_json::to_value(Status::new(good())).expect("serializes");
    assert_eq!(json["healthy"], true);
    assert_eq!(json["meta"]["leader"], "meta-1");
    for field in ["name", "address", "role", "lag", "reachable"] {
        assert!(!json["meta"]["members"][0][field].is_null(), "{field}");
    }
    assert_eq!(json["meta"]["members"][0]["role"], "leader");
    for field in ["name", "state", "used_bytes", "capacity_bytes", "address", "chunk_count", "silent_ms"] {
        assert!(!json["nodes"][0][field].is_null(), "{field}");
    }
    for field in ["total", "full", "under_replicated", "endangered", "missing"] {
        assert!(json["chunks"][field].is_u64(), "{field}");
    }
    assert_eq!(json["nodes"][0]["state"], "alive");
}

#[test]
fn without_a_leader_nothing_is_claimed_about_chunks() {
    let asked = Member { reachable: false, ..Member::new(member(1, false, false)) };
    let json = serde_json::to_value(Status::without_leader(vec![asked])).expect("serializes");
    assert_eq!(json["healthy"], false);
    assert!(json["meta"]["leader"].is_null() && json["chunks"].is_null());
    assert_eq!(json["problems"].as_array().map(Vec::len), Some(1));
}
