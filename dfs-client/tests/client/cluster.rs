//! Leader discovery, retries, exact-once mutations, the session.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use dfs_client::{Dfs, NewFile, Options};
use dfs_common::{ErrorCode, InodeId, SetAttr};
use dfs_proto::v1::mutate_request::Op;

use crate::{Cluster, lock};

const ROOT: InodeId = InodeId::ROOT;

#[tokio::test]
async fn a_follower_redirects_and_the_leader_is_remembered() {
    let cluster = Cluster::start(3, 0).await;
    cluster.meta.lead(2);
    let dfs = cluster.connect().await;
    for i in 0..5 {
        dfs.mkdir(ROOT, format!("d{i}").as_bytes(), 0o755, 0, 0).await.expect("made");
    }
    assert_eq!(dfs.resolve(b"/d3").await.expect("found").ino, dfs.lookup(ROOT, b"d3").await.expect("found").ino);
    assert_eq!(dfs.lookup(ROOT, b"nope").await.expect_err("missing").code, ErrorCode::NotFound);
    dfs.close().await;
    assert_eq!(cluster.meta.calls("close_session"), 1);
}

#[tokio::test]
async fn a_lost_answer_does_not_repeat_the_effect() {
    let cluster = Cluster::start(1, 0).await;
    let dfs = cluster.connect().await;
    cluster.meta.lose_answers.store(3, Ordering::SeqCst);
    // Were the second attempt applied again, it would find the name taken.
    dfs.mkdir(ROOT, b"once", 0o755, 0, 0).await.expect("made");
    assert_eq!(lock(&cluster.meta.state).applied.len(), 1);
    assert!(cluster.meta.calls("mutate") >= 4);
}

#[tokio::test]
async fn many_mutations_at_a_time_each_happen_once_also_over_a_change_of_leader() {
    let cluster = Cluster::start(3, 0).await;
    let dfs = cluster.connect().await;
    cluster.meta.lose_answers.store(20, Ordering::SeqCst);
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..300 {
        let dfs = dfs.clone();
        tasks.spawn(async move { dfs.mkdir(ROOT, format!("d{i}").as_bytes(), 0o755, 0, 0).await });
    }
    cluster.metas[0].kill();
    cluster.meta.lead(1);
    while let Some(made) = tasks.join_next().await {
        made.expect("no panic").expect("made");
    }
    let state = lock(&cluster.meta.state);
    let mut names: Vec<_> = state.applied.iter().map(|(_, seq, _)| *seq).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!((names.len(), state.applied.len()), (300, 300));
}

#[tokio::test]
async fn the_next_leader_is_found_within_a_second() {
    let cluster = Cluster::start(3, 0).await;
    let dfs = cluster.connect().await;
    dfs.mkdir(ROOT, b"before", 0o755, 0, 0).await.expect("made");
    cluster.meta.no_leader.store(true, Ordering::SeqCst);
    cluster.metas[0].kill();
    let (work, meta) = (dfs.clone(), cluster.meta.clone());
    let waiting = tokio::spawn(async move { work.mkdir(ROOT, b"during", 0o755, 0, 0).await });
    tokio::time::sleep(Duration::from_millis(1200)).await;
    meta.lead(2);
    meta.no_leader.store(false, Ordering::SeqCst);
    let since = Instant::now();
    waiting.await.expect("no panic").expect("made");
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_frozen_leader_is_left_once_another_one_leads() {
    let cluster = Cluster::start(3, 0).await;
    let dfs = cluster.connect().await;
    cluster.metas[0].freeze();
    cluster.meta.lead(1);
    let since = Instant::now();
    dfs.mkdir(ROOT, b"d", 0o755, 0, 0).await.expect("made");
    assert!(since.elapsed() < Duration::from_millis(1800), "{:?}", since.elapsed());
}

#[tokio::test]
async fn the_last_error_names_every_endpoint_within_the_deadline() {
    let cluster = Cluster::start(2, 0).await;
    let options = Options { deadline: Duration::from_millis(600), ..cluster.options() };
    cluster.metas.iter().for_each(|meta| meta.kill());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let since = Instant::now();
    let Err(error) = Dfs::connect(options).await else { panic!("nobody is there") };
    assert!(since.elapsed() < Duration::from_secs(2));
    assert!(matches!(error.code, ErrorCode::TimedOut | ErrorCode::Unavailable), "{error}");
    for meta in &cluster.metas {
        assert!(error.to_string().contains(&meta.address), "{error}");
    }
    assert_eq!(error.errno(), 5);
}

#[tokio::test]
async fn the_number_of_attempts_can_be_limited() {
    let cluster = Cluster::start(1, 0).await;
    let dfs = Dfs::connect(Options { retry_attempts_max: Some(3), ..cluster.options() }).await.expect("connects");
    cluster.meta.lose_answers.store(100, Ordering::SeqCst);
    let error = dfs.mkdir(ROOT, b"d", 0o755, 0, 0).await.expect_err("answers are lost");
    assert_eq!((error.code, error.tried[0].times), (ErrorCode::TimedOut, 3));
    assert_eq!(cluster.meta.calls("mutate"), 3);
}

#[tokio::test]
async fn a_caller_that_stops_waiting_leaves_no_half_used_number() {
    let cluster = Cluster::start(1, 0).await;
    let dfs = cluster.connect().await;
    cluster.meta.mutate_delay_ms.store(200, Ordering::SeqCst);
    let cut = tokio::time::timeout(Duration::from_millis(50), dfs.mkdir(ROOT, b"cut", 0o755, 0, 0)).await;
    assert!(cut.is_err());
    cluster.meta.mutate_delay_ms.store(0, Ordering::SeqCst);
    dfs.mkdir(ROOT, b"next", 0o755, 0, 0).await.expect("made");
    tokio::time::sleep(Duration::from_millis(300)).await;
    dfs.mkdir(ROOT, b"last", 0o755, 0, 0).await.expect("made");
    let state = lock(&cluster.meta.state);
    let seqs: Vec<_> = state.applied.iter().map(|(_, seq, _)| *seq).collect();
    assert_eq!(seqs, [1, 2, 3]);
    assert_eq!(state.acked, 2, "the abandoned one was answered too");
}

#[tokio::test]
async fn a_mutation_that_finds_its_session_ended_is_repeated_in_a_new_one() {
    let cluster = Cluster::start(1, 0).await;
    let dfs = cluster.connect().await;
    cluster.meta.expire_sessions();
    dfs.mkdir(ROOT, b"d", 0o755, 0, 0).await.expect("made");
    assert_eq!(cluster.meta.calls("open_session"), 2);
}

#[tokio::test]
async fn a_writer_of_an_ended_session_fails_for_good_and_new_ones_work() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let created = dfs.create(ROOT, b"f", NewFile::default()).await.expect("created");
    let writer = dfs.open_new_writer(&created).await.expect("opens");
    writer.write_at(0, b"abc").await.expect("buffered");
    cluster.meta.expire_sessions();
    for _ in 0..2 {
        assert_eq!(writer.publish(SetAttr::default()).await.expect_err("lost").errno(), 5);
        assert_eq!(writer.write_at(3, b"d").await.expect_err("lost").errno(), 5);
    }
    assert!(writer.failure().is_some());
    let writer = dfs.open_writer(created.attr.ino, true).await.expect("opens");
    writer.write_at(0, b"xyz").await.expect("buffered");
    assert_eq!(writer.publish(SetAttr::default()).await.expect("published").size, 3);
}

#[tokio::test]
async fn pins_are_told_as_differences_and_in_full_to_a_new_leader() {
    let cluster = Cluster::start(2, 3).await;
    cluster.meta.lease_ms.store(300, Ordering::SeqCst);
    let dfs = cluster.connect().await;
    let created = dfs.create(ROOT, b"f", NewFile::default()).await.expect("created");
    let writer = dfs.open_new_writer(&created).await.expect("opens");
    writer.write_at(0, b"abc").await.expect("buffered");
    writer.publish_and_finish(SetAttr::default()).await.expect("published");
    let reader = dfs.open_reader(created.attr.ino).await.expect("opens");
    let pinned = || lock(&cluster.meta.state).pinned.len();
    let until = async |wanted: usize| {
        for _ in 0..100 {
            if pinned() == wanted {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    };
    assert!(until(1).await);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let renewals = lock(&cluster.meta.state).renewals.clone();
    assert_eq!(renewals.iter().filter(|renewal| renewal.full).count(), 1, "only the first one");
    assert!(renewals.len() > 2 && renewals.last().is_some_and(|last| last.pins.is_empty()), "told once");
    // A new leader knows nothing.
    lock(&cluster.meta.state).pinned.clear();
    cluster.meta.lead(1);
    assert!(until(1).await);
    drop(reader);
    assert!(until(0).await);
}

#[tokio::test]
async fn a_small_file_costs_three_calls() {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let before = 20;
    for i in 0..before {
        let created = dfs.create(ROOT, format!("f{i}").as_bytes(), NewFile::default()).await.expect("created");
        let writer = dfs.open_new_writer(&created).await.expect("opens");
        writer.write_at(0, &[1; 4096]).await.expect("buffered");
        writer.publish_and_finish(SetAttr::default()).await.expect("published");
    }
    assert_eq!(cluster.meta.calls("mutate"), 2 * before);
    assert!(cluster.meta.calls("allocate_chunks") <= 4, "{}", cluster.meta.calls("allocate_chunks"));
    let puts: u32 = cluster.storage.iter().map(|node| node.disk.puts.load(Ordering::SeqCst)).sum();
    assert_eq!(puts, before);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let state = lock(&cluster.meta.state);
    assert!(state.applied.iter().all(|(_, _, op)| !matches!(op, Op::AbortFile(_))));
}
