//! Log and snapshots, across restarts and with damage.

use std::{error::Error, fs, path::Path, sync::Arc};

use openraft::{
    EntryPayload, LogState, RaftLogReader, RaftSnapshotBuilder,
    entry::RaftEntry as _,
    storage::{RaftLogStorage, RaftLogStorageExt as _, RaftStateMachine},
    testing::{StoreBuilder, Suite},
};

use super::{
    LogStore, SnapshotDir, StoreError, codec,
    journal::{self, Journal},
};
use crate::{
    fsm::{Batch, Command},
    raft::{
        state_machine::Replica,
        types::{Entry, LogId, StorageError, TypeConfig, Vote},
    },
};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Replica, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Replica), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let (log, replica) = open(dir.path());
        Ok((dir, log, replica))
    }
}

fn open(dir: &Path) -> (LogStore, Replica) {
    let log = LogStore::open(&dir.join("raft")).unwrap();
    let replica = open_replica(dir, log.purged_index()).unwrap();
    (log, replica)
}

fn open_replica(dir: &Path, purged: Option<u64>) -> Result<Replica, StoreError> {
    let path = dir.join("snapshots");
    Replica::open(Arc::new(SnapshotDir::open(&path)?), &path, purged)
}

fn at(index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(1, 1), index)
}

fn blank(index: u64) -> Entry {
    Entry::new_blank(at(index))
}

fn encoded(value: &impl serde::Serialize) -> Vec<u8> {
    codec::encode(value).expect("it can be encoded")
}

fn session(index: u64, bytes: usize) -> Entry {
    let description = "x".repeat(bytes);
    let command = Command::OpenSession { client_id: dfs_common::Uuid::random(), description };
    let batch = Batch { now_ns: i64::try_from(index).unwrap(), entropy: 0, commands: vec![command] };
    Entry { log_id: at(index), payload: EntryPayload::Normal(Arc::new(batch)) }
}

#[test]
fn openrafts_own_suite_passes() {
    Suite::test_all(Builder).unwrap();
}

#[tokio::test]
async fn everything_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path()).unwrap();
    assert!(log.is_blank());
    log.save_vote(&Vote::new(7, 3)).await.unwrap();
    log.blocking_append((0..100).map(|index| session(index, 100))).await.unwrap();
    log.save_committed(Some(at(90))).await.unwrap();
    log.truncate(at(95)).await.unwrap();
    log.purge(at(9)).await.unwrap();
    log.blocking_append([blank(95)]).await.unwrap();
    let before = log.try_get_log_entries(..).await.unwrap();
    log.close().await.unwrap();
    drop(log);

    let mut log = LogStore::open(dir.path()).unwrap();
    assert!(!log.is_blank());
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(7, 3)));
    assert_eq!(log.read_committed().await.unwrap(), Some(at(90)));
    let state = LogState { last_purged_log_id: Some(at(9)), last_log_id: Some(at(95)) };
    assert_eq!(log.get_log_state().await.unwrap(), state);
    let after = log.try_get_log_entries(..).await.unwrap();
    assert_eq!(after.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), (10..96).collect::<Vec<_>>());
    assert_eq!(after, before, "what comes from disk is what was in memory");
}

#[tokio::test]
async fn messages_to_followers_are_limited_in_bytes_but_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path()).unwrap();
    log.blocking_append((0..8).map(|index| session(index, 1 << 20))).await.unwrap();
    log.blocking_append([session(8, 5 << 20)]).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 9).await.unwrap().len(), 1);
    assert_eq!(log.limited_get_log_entries(8, 9).await.unwrap().len(), 1);
}

#[tokio::test]
async fn old_entries_leave_memory_and_are_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::open(dir.path()).unwrap();
    for round in 0..50 {
        log.blocking_append((0..100).map(|index| session(round * 100 + index, 10))).await.unwrap();
    }
    let all = log.try_get_log_entries(0..5000).await.unwrap();
    assert_eq!(all.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), (0..5000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_purged_log_gives_its_space_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut log = LogStore::open_with(dir.path(), 1 << 20)?;
    let mut next = 0;
    for _ in 0..20 {
        log.blocking_append((next..next + 100).map(|index| session(index, 20_000))).await?;
        next += 100;
        log.purge(at(next - 10)).await?;
        // 40 MB go through.
        let size = walk(dir.path());
        assert!(size < 6 << 20, "{size} bytes");
    }
    log.close().await?;
    drop(log);
    let mut log = LogStore::open(dir.path())?;
    assert_eq!(log.try_get_log_entries(..).await?.len(), 9);
    assert_eq!(log.get_log_state().await?.last_purged_log_id, Some(at(next - 10)));
    Ok(())
}

fn walk(path: &Path) -> u64 {
    fs::read_dir(path)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() { walk(&entry.path()) } else { meta.len() }
        })
        .sum()
}

#[test]
fn a_log_of_an_earlier_version_is_refused_and_kept() -> Outcome {
    for left in ["CURRENT", "log-0001"] {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join(left), "kept")?;
        let error = LogStore::open(dir.path()).err().expect("refused").to_string();
        assert!(error.contains(left) && error.contains("dfsctl meta backup"), "{error}");
        assert_eq!(fs::read_dir(dir.path())?.count(), 1, "nothing is made or removed");
    }
    Ok(())
}

#[test]
fn a_record_that_does_not_parse_is_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (journal, _) = Journal::open(dir.path(), journal::FILE_BYTES)?;
    journal.put_entries(&[(0, encoded(&blank(0))), (1, b"\x01 no such thing".to_vec())])?;
    journal.flush()?;
    drop(journal);
    let error = LogStore::open(dir.path()).err().expect("refused").to_string();
    assert!(
        error.contains("entry 1") && error.contains("journal-0000000001") && error.contains("start this node again"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn a_missing_beginning_is_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut log = LogStore::open_with(dir.path(), 100_000)?;
    for index in 0..30 {
        log.blocking_append([session(index, 10_000)]).await?;
    }
    log.close().await?;
    drop(log);
    fs::remove_file(dir.path().join("journal-0000000001"))?;
    let error = LogStore::open(dir.path()).err().expect("refused").to_string();
    assert!(error.contains("entry 0") && error.contains("missing"), "{error}");
    Ok(())
}

#[test]
fn a_hole_is_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (journal, _) = Journal::open(dir.path(), journal::FILE_BYTES)?;
    let record = |index| (index, encoded(&blank(index)));
    journal.put_entries(&[record(0), record(2)])?;
    journal.flush()?;
    drop(journal);
    let error = LogStore::open(dir.path()).err().expect("refused").to_string();
    assert!(error.contains("entry 1"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_log_that_lost_its_end_or_its_vote_is_refused() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut log = LogStore::open(dir.path())?;
    log.save_vote(&Vote::new(1, 1)).await?;
    log.blocking_append((0..10).map(blank)).await?;
    log.truncate(at(8)).await?;
    log.close().await?;
    drop(log);
    let mut log = LogStore::open(dir.path())?;
    assert_eq!(log.last_index(), Some(7), "what was cut off is not asked for");
    log.save_vote(&Vote::new(2, 1)).await?;
    log.blocking_append((8..20).map(blank)).await?;
    log.close().await?;
    drop(log);

    let change = |change: &dyn Fn(&Journal) -> std::io::Result<()>| -> Outcome {
        let (journal, _) = Journal::open(dir.path(), journal::FILE_BYTES)?;
        change(&journal)?;
        Ok(journal.flush()?)
    };
    let refused = || LogStore::open(dir.path()).err().expect("refused").to_string();
    change(&|journal| {
        journal.truncate(19);
        Ok(())
    })?;
    let error = refused();
    assert!(error.contains("up to 19, and it ends at 18") && error.contains("start this node again"), "{error}");
    change(&|journal| journal.put_entries(&[(19, encoded(&blank(19)))]))?;
    drop(LogStore::open(dir.path())?);
    change(&|journal| {
        journal.put_vote(encoded(&Vote::new(1, 1)));
        Ok(())
    })?;
    let error = refused();
    assert!(error.contains("its vote was"), "{error}");
    // The way out that the message names.
    fs::remove_file(dir.path().join("MARK"))?;
    let mut log = LogStore::open(dir.path())?;
    log.blocking_append([blank(20)]).await?;
    log.close().await?;
    drop(log);
    fs::remove_file(dir.path().join("journal-0000000001"))?;
    let error = refused();
    assert!(error.contains("it is empty"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_damaged_end_that_was_acknowledged_is_refused_and_kept() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut log = LogStore::open(dir.path())?;
    log.blocking_append((0..10).map(|index| session(index, 100))).await?;
    log.close().await?;
    drop(log);
    let path = dir.path().join("journal-0000000001");
    let mut bytes = fs::read(&path)?;
    let last = bytes.iter().rposition(|byte| *byte != 0).ok_or("it is empty")?;
    bytes[last] ^= 1;
    fs::write(&path, &bytes)?;
    for _ in 0..2 {
        let error = LogStore::open(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("up to 9, and it ends at 8"), "{error}");
        assert_eq!(fs::read(&path)?, bytes, "it may be needed still");
    }
    // What was lost is given up by the administrator, and then for good.
    fs::remove_file(dir.path().join("MARK"))?;
    let mut log = LogStore::open(dir.path())?;
    assert_eq!(log.last_index(), Some(8));
    log.blocking_append([blank(9)]).await?;
    log.close().await?;
    drop(log);
    let mut log = LogStore::open(dir.path())?;
    assert_eq!(log.try_get_log_entries(9..10).await?, [blank(9)]);
    Ok(())
}

async fn snapshots(dir: &Path, upto: &[u64]) -> Replica {
    let mut replica = open_replica(dir, None).unwrap();
    let mut next = 1;
    for upto in upto {
        replica.apply((next..=*upto).map(|index| session(index, 5))).await.unwrap();
        next = upto + 1;
        replica.get_snapshot_builder().await.build_snapshot().await.unwrap();
    }
    replica
}

fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir.join("snapshots")).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn the_newest_two_snapshots_are_kept_and_the_newest_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    let replica = snapshots(dir.path(), &[10, 20, 30]).await;
    assert_eq!(files(dir.path()).len(), 2);
    fs::write(dir.path().join("snapshots/snapshot-7.tmp"), "half written").unwrap();
    let restored = open_replica(dir.path(), Some(30)).unwrap();
    assert_eq!(files(dir.path()).len(), 2, "left-overs are removed");
    assert_eq!((restored.applied(), restored.now_ns()), (Some(at(30)), 30));
    let bytes = |replica: &Replica| {
        let mut bytes = Vec::new();
        replica.peek(|state| state.write_snapshot(&mut bytes)).unwrap();
        bytes
    };
    assert_eq!(bytes(&restored), bytes(&replica));
}

#[tokio::test]
async fn a_damaged_snapshot_is_passed_over_if_the_log_reaches_back() {
    let dir = tempfile::tempdir().unwrap();
    drop(snapshots(dir.path(), &[10, 20]).await);
    let newest = dir.path().join("snapshots").join(&files(dir.path())[1]);
    let good = fs::read(&newest).unwrap();
    for at in [0, 9, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&newest, &bad).unwrap();
        let replica = open_replica(dir.path(), Some(10)).unwrap();
        assert_eq!(replica.applied().map(|id| id.index), Some(10), "byte {at}");
        assert!(!newest.exists(), "the damaged one is put aside");
    }
    fs::write(&newest, &good[..good.len() - 3]).unwrap();
    let error = open_replica(dir.path(), Some(15)).err().expect("refused").to_string();
    assert!(error.contains("index 15") && error.contains("ends at 10"), "{error}");
}

#[tokio::test]
async fn an_older_snapshot_is_not_installed() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut ahead = snapshots(dirs[0].path(), &[20]).await;
    let mut behind = snapshots(dirs[1].path(), &[10]).await;
    let old = behind.get_current_snapshot().await.unwrap().unwrap();
    ahead.install_snapshot(&old.meta, old.snapshot).await.unwrap();
    assert_eq!(ahead.applied(), Some(at(20)));
    let new = ahead.get_current_snapshot().await.unwrap().unwrap();
    behind.install_snapshot(&new.meta, new.snapshot).await.unwrap();
    assert_eq!(behind.applied(), Some(at(20)));
    assert_eq!(open_replica(dirs[1].path(), Some(20)).unwrap().applied(), Some(at(20)), "it is on disk too");
}
