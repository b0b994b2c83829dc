//! The engine on a real directory: what a crash leaves, what damage does, paging, a full disk.

use std::{fs, os::unix::fs::FileExt as _, path::Path, process::Command};

use bytes::Bytes;
use dfs_common::{ChunkId, ErrorCode};
use dfs_storage::engine::{ChunkEngine as _, EngineError, Finished, Judged, disk::DiskEngine};
use proptest::prelude::*;

use crate::harness::{chunk_file, chunk_id, content, facts};

fn open(dir: &Path) -> DiskEngine {
    DiskEngine::open(dir, None, Some(0)).expect("opens")
}

fn store(engine: &DiskEngine, id: ChunkId, data: &Bytes) -> Result<Finished, EngineError> {
    let mut writer = engine.begin(facts(id, data))?;
    writer.append(std::slice::from_ref(data))?;
    writer.finish()
}

fn tmp_files(dir: &Path) -> usize {
    fs::read_dir(dir.join("tmp")).expect("list").count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn pieces_of_any_size_come_back(
        length in 1usize..400_000,
        cuts in proptest::collection::vec(1usize..150_000, 0..20),
        from in any::<prop::sample::Index>(),
    ) {
        let tmp = tempfile::tempdir().expect("tmp");
        let engine = open(tmp.path());
        let (data, id) = (content(length, 1), chunk_id(1));
        let mut writer = engine.begin(facts(id, &data)).expect("begins");
        let mut rest = data.clone();
        let mut pieces = vec![];
        for cut in cuts {
            pieces.push(rest.split_to(cut.min(rest.len())));
        }
        pieces.push(rest);
        for group in pieces.chunks(3) {
            writer.append(group).expect("appends");
        }
        prop_assert_eq!(writer.finish().expect("finishes"), Finished::New);
        let chunk = engine.open(id).expect("opens");
        prop_assert_eq!(chunk.facts(), &facts(id, &data));
        let from = from.index(length);
        let mut buffer = vec![0; length - from];
        chunk.read_at(&mut buffer, from as u32).expect("reads");
        prop_assert!(buffer == data[from..]);
        prop_assert_eq!(tmp_files(tmp.path()), 0);
    }

    #[test]
    fn any_flipped_bit_and_any_truncation_is_found(
        length in 1usize..200_000,
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
        truncate in any::<bool>(),
    ) {
        let tmp = tempfile::tempdir().expect("tmp");
        let engine = open(tmp.path());
        let (data, id) = (content(length, 2), chunk_id(2));
        store(&engine, id, &data).expect("stores");
        let path = chunk_file(tmp.path(), id);
        let size = fs::metadata(&path).expect("stat").len() as usize;
        let at = at.index(size);
        let file = fs::OpenOptions::new().read(true).write(true).open(&path).expect("open");
        if truncate {
            file.set_len(at as u64).expect("truncate");
        } else {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at as u64).expect("read");
            file.write_all_at(&[byte[0] ^ (1 << bit)], at as u64).expect("write");
        }
        let corrupt = |result: Result<_, EngineError>| matches!(result, Err(EngineError::Corrupt { .. }));
        prop_assert!(corrupt(engine.verify(id).map(drop)));
        if truncate || at >= length {
            prop_assert!(corrupt(engine.open(id).map(drop)));
            prop_assert_eq!(engine.list(None, 10).expect("lists").damaged, vec![id]);
            // A copy from a good replica replaces it.
            prop_assert_eq!(store(&engine, id, &data).expect("stores"), Finished::New);
            prop_assert!(engine.verify(id).is_ok());
            prop_assert_eq!(engine.usage().expect("usage").chunks, 1);
        }
    }
}

#[test]
fn bad_bytes_never_become_visible() {
    let tmp = tempfile::tempdir().expect("tmp");
    let engine = open(tmp.path());
    let (data, id) = (content(200_000, 3), chunk_id(3));
    let mut bad = data.to_vec();
    bad[70_000] ^= 1;
    let mut writer = engine.begin(facts(id, &data)).expect("begins");
    let error = writer.append(&[Bytes::from(bad)]).expect_err("damaged");
    assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
    drop(writer);
    for length in [199_999, 200_001] {
        let mut writer = engine.begin(facts(id, &data)).expect("begins");
        let error = writer.append(&[content(length, 3)]).and_then(|()| writer.finish()).expect_err("length");
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
    }
    assert!(!engine.contains(id).expect("asks"));
    assert_eq!(tmp_files(tmp.path()), 0);
    assert_eq!(engine.usage().expect("usage").used_bytes, 0);
}

#[test]
fn the_same_chunk_twice_is_one_and_another_content_is_refused() {
    let tmp = tempfile::tempdir().expect("tmp");
    let engine = open(tmp.path());
    let (data, id) = (content(100_000, 4), chunk_id(4));
    assert_eq!(store(&engine, id, &data).expect("stores"), Finished::New);
    assert_eq!(store(&engine, id, &data).expect("stores"), Finished::AlreadyThere);
    assert!(matches!(store(&engine, id, &content(100_000, 5)), Err(EngineError::Conflict(_))));
    assert_eq!(engine.usage().expect("usage").chunks, 1);
    assert!(engine.verify(id).is_ok());
    assert!(engine.delete(id).expect("deletes"));
    assert!(!engine.delete(id).expect("deletes"));
    assert!(matches!(engine.open(id), Err(EngineError::Missing(_))));
    assert_eq!(engine.usage().expect("usage").used_bytes, 0);
    assert_eq!(tmp_files(tmp.path()), 0);
}

#[test]
fn leftovers_of_a_crash_are_dropped_and_the_rest_is_counted() {
    let tmp = tempfile::tempdir().expect("tmp");
    let engine = open(tmp.path());
    for n in 0..20 {
        store(&engine, chunk_id(n), &content(1000, n)).expect("stores");
    }
    let usage = engine.usage().expect("usage");
    // As a crash would: a file half written, never dropped.
    let mut writer = engine.begin(facts(chunk_id(99), &content(5000, 99))).expect("begins");
    writer.append(&[content(5000, 99).slice(..2000)]).expect("appends");
    std::mem::forget(writer);
    assert_eq!(tmp_files(tmp.path()), 1);
    drop(engine);
    // Foreign files are left alone and not counted.
    let leaf = chunk_file(tmp.path(), chunk_id(0));
    fs::write(leaf.with_file_name("notes.txt"), b"x").expect("write");
    fs::write(leaf.with_file_name(format!("{}.chunk", "0".repeat(64))), b"x").expect("write");
    let engine = open(tmp.path());
    assert_eq!(tmp_files(tmp.path()), 0);
    let again = engine.usage().expect("usage");
    assert_eq!((again.chunks, again.used_bytes), (20, usage.used_bytes));
    assert!(!engine.contains(chunk_id(99)).expect("asks"));
    assert_eq!(engine.list(None, 100).expect("lists").chunks.len(), 20);
    assert!(leaf.with_file_name("notes.txt").exists());
}

#[test]
fn a_chunk_under_another_name_is_corrupt() {
    let tmp = tempfile::tempdir().expect("tmp");
    let engine = open(tmp.path());
    store(&engine, chunk_id(1), &content(100, 1)).expect("stores");
    let target = chunk_file(tmp.path(), chunk_id(2));
    fs::create_dir_all(target.parent().expect("has one")).expect("mkdir");
    fs::rename(chunk_file(tmp.path(), chunk_id(1)), target).expect("rename");
    assert!(matches!(engine.open(chunk_id(2)), Err(EngineError::Corrupt { .. })));
}

#[test]
fn pages_list_everything_once_in_order() {
    let tmp = tempfile::tempdir().expect("tmp");
    let engine = open(tmp.path());
    let mut ids: Vec<ChunkId> = (0..200).map(chunk_id).collect();
    // Several in one directory, too.
    for n in 0..50u8 {
        let mut id = chunk_id(7);
        id.0[31] = n;
        ids.push(id);
    }
    for id in &ids {
        store(&engine, *id, &content(10, 1)).expect("stores");
    }
    ids.sort_unstable();
    ids.dedup();
    for limit in [1, 7, 250, 1000] {
        let (mut found, mut after) = (vec![], None);
        loop {
            let page = engine.list(after, limit).expect("lists");
            assert!(page.chunks.len() <= limit);
            found.extend(page.chunks.iter().map(|held| held.id));
            after = found.last().copied();
            if page.last {
                break;
            }
        }
        assert!(found == ids, "limit {limit}");
    }
}

#[test]
fn capacity_is_a_limit_before_the_first_byte() {
    let tmp = tempfile::tempdir().expect("tmp");
    let engine = DiskEngine::open(tmp.path(), Some(300_000), Some(0)).expect("opens");
    store(&engine, chunk_id(1), &content(200_000, 1)).expect("fits");
    let error = store(&engine, chunk_id(2), &content(200_000, 2)).expect_err("full");
    assert_eq!(error.code(), ErrorCode::NoSpace);
    assert_eq!(tmp_files(tmp.path()), 0);
    engine.delete(chunk_id(1)).expect("deletes");
    store(&engine, chunk_id(2), &content(200_000, 2)).expect("fits again");
}

/// Needs root for a file system of its own; says so and passes where there is none.
#[test]
fn a_full_disk_is_no_space_and_leaves_nothing() {
    let tmp = tempfile::tempdir().expect("tmp");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "dfs-test"]).arg(tmp.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: cannot mount a tmpfs here");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        let engine = open(tmp.path());
        // Somebody else fills the disk behind the engine's back, after it reserved the space.
        let mut writer = engine.begin(facts(chunk_id(1), &content(1 << 20, 1))).expect("begins");
        fs::write(tmp.path().join("other"), vec![1; 1800 << 10]).expect("fill");
        let error = writer.append(&[content(1 << 20, 1)]).and_then(|()| writer.finish()).expect_err("full");
        assert_eq!(error.code(), ErrorCode::NoSpace);
        assert_eq!(tmp_files(tmp.path()), 0);
        assert_eq!(store(&engine, chunk_id(2), &content(1 << 20, 2)).expect_err("full").code(), ErrorCode::NoSpace);
        fs::remove_file(tmp.path().join("other")).expect("remove");
        store(&engine, chunk_id(1), &content(1 << 20, 1)).expect("fits again");
    });
    let unmounted = Command::new("umount").arg(tmp.path()).status().expect("umount runs");
    assert!(unmounted.success());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn only_what_is_bad_is_set_aside_and_its_place_is_free_then() {
    let tmp = tempfile::tempdir().expect("tmp");
    let engine = open(tmp.path());
    let data = content(300_000, 5);
    for n in 1..=3 {
        store(&engine, chunk_id(n), &data).expect("stores");
    }
    let flip = |n: u64| {
        let file =
            fs::OpenOptions::new().read(true).write(true).open(chunk_file(tmp.path(), chunk_id(n))).expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 200_000).expect("read");
        file.write_all_at(&[byte[0] ^ 1], 200_000).expect("write");
    };
    assert_eq!(engine.judge(chunk_id(1), false).expect("reads"), Judged::Whole(facts(chunk_id(1), &data)));
    assert_eq!(engine.judge(chunk_id(9), false).expect("looks"), Judged::Missing);
    let opened = engine.open(chunk_id(2)).expect("opens");
    flip(2);
    assert!(matches!(engine.judge(chunk_id(2), false), Ok(Judged::SetAside { reason }) if reason.contains("block")));
    assert!(matches!(engine.open(chunk_id(2)), Err(EngineError::Missing(_))), "nobody gets it from the cache");
    drop(opened);
    assert_eq!((engine.counts().0, engine.quarantine_size().0), (2, 1));
    assert_eq!(store(&engine, chunk_id(2), &data).expect("stores"), Finished::New);
    // A footer that does not fit is found when a good copy comes, and the bad one is kept as well.
    fs::OpenOptions::new()
        .write(true)
        .open(chunk_file(tmp.path(), chunk_id(3)))
        .expect("open")
        .set_len(1000)
        .expect("cut");
    assert_eq!(store(&engine, chunk_id(3), &data).expect("stores"), Finished::New);
    let kept: Vec<ChunkId> = engine.quarantined().expect("lists").into_iter().map(|copy| copy.id).collect();
    assert_eq!(kept.len(), 2);
    assert!(kept.contains(&chunk_id(2)) && kept.contains(&chunk_id(3)));
    drop(engine);
    let engine = open(tmp.path());
    assert_eq!((engine.counts().0, engine.quarantine_size().0), (3, 2), "counted at the start");
    assert_eq!(engine.ids(None, 2).expect("lists").len(), 2);
}
