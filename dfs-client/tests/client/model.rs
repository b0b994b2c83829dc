//! Any sequence of writes, truncations, publications and reads gives what a plain vector gives.

use proptest::prelude::*;

use dfs_client::NewFile;
use dfs_common::{InodeId, SetAttr};

use crate::{CHUNK, Cluster, pattern, write::content};

#[derive(Clone, Debug)]
enum Step {
    Write { at: u64, len: usize },
    Append { len: usize },
    Truncate { size: u64 },
    Read { at: u64, len: usize },
    Publish,
    PublishAndFinish,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let reach = 6 * u64::from(CHUNK);
    prop_oneof![
        4 => (0..reach, 1usize..100_000).prop_map(|(at, len)| Step::Write { at, len }),
        4 => (1usize..40_000).prop_map(|len| Step::Append { len }),
        2 => (0..6u64).prop_map(|n| Step::Write { at: n * u64::from(CHUNK), len: CHUNK as usize }),
        2 => prop_oneof![(0..reach), (0..6u64).prop_map(|n| n * u64::from(CHUNK))].prop_map(|size| Step::Truncate { size }),
        4 => (0..reach, 0usize..200_000).prop_map(|(at, len)| Step::Read { at, len }),
        1 => Just(Step::Publish),
        1 => Just(Step::PublishAndFinish),
        1 => Just(Step::Reopen),
    ]
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let cluster = Cluster::start(1, 3).await;
    let dfs = cluster.connect().await;
    let created = dfs.create(InodeId::ROOT, b"f", NewFile::default()).await.expect("created");
    let mut writer = dfs.open_new_writer(&created).await.expect("opens");
    let mut model: Vec<u8> = Vec::new();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Write { at, len } => {
                let data = pattern(len, number as u64);
                writer.write_at(at, &data).await.expect("written");
                let at = usize::try_from(at).expect("small");
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].copy_from_slice(&data);
            }
            Step::Append { len } => {
                let data = pattern(len, number as u64);
                writer.write_at(model.len() as u64, &data).await.expect("written");
                model.extend_from_slice(&data);
            }
            Step::Truncate { size } => {
                writer.truncate(size).await.expect("cut");
                model.resize(usize::try_from(size).expect("small"), 0);
            }
            Step::Read { at, len } => {
                let got = writer.read_at(at, len).await.expect("reads").concat();
                let start = usize::try_from(at).expect("small").min(model.len());
                let end = (start + len).min(model.len());
                prop_assert!(got == model[start..end], "read {len} at {at} in step {number}");
            }
            Step::Publish | Step::PublishAndFinish => {
                let attr = match step {
                    Step::Publish => writer.publish(SetAttr::default()).await,
                    _ => writer.publish_and_finish(SetAttr::default()).await,
                };
                prop_assert_eq!(attr.expect("published").size, model.len() as u64);
                prop_assert!(content(&dfs, writer.ino()).await == model, "published in step {number}");
            }
            Step::Reopen => {
                writer.publish(SetAttr::default()).await.expect("published");
                writer = dfs.open_writer(created.attr.ino, false).await.expect("opens");
            }
        }
        prop_assert_eq!(writer.size(), model.len() as u64);
    }
    writer.publish(SetAttr::default()).await.expect("published");
    prop_assert!(content(&dfs, writer.ino()).await == model, "at the end");
    dfs.close().await;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_writer_is_a_vector(steps in proptest::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        runtime.block_on(run(steps))?;
    }
}
