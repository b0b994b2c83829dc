//! Any sequence of writes, truncations, publications and reads gives what a plain vector gives.

use proptest::prelude::*;

use dfs_client::NewFile;
use dfs_common::{InodeId, SetAttr};

use crate::{CHUNK, Cluster, pattern, write::content};

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        len: usize,
    },
    Append {
        len: usize,
    },
    Truncate {
        size: u64,
    },
    Read {
        at: u64,
        len: usize,
    },
    /// Takes content of a published file over, as far as whole chunks go.
    Share {
        from: u64,
        at: u64,
        len: u64,
    },
    Zero {
        at: u64,
        len: u64,
    },
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
        2 => (0..5u64, 0..6u64, 1..5 * u64::from(CHUNK)).prop_map(|(from, at, len)| Step::Share {
            from: from * u64::from(CHUNK),
            at: at * u64::from(CHUNK),
            len,
        }),
        2 => (0..reach, 1..3 * u64::from(CHUNK)).prop_map(|(at, len)| Step::Zero { at, len }),
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
    let lent = pattern(4 * CHUNK as usize + 777, 4711);
    let lender = dfs.create(InodeId::ROOT, b"lender", NewFile::default()).await.expect("created");
    let lending = dfs.open_new_writer(&lender).await.expect("opens");
    lending.write_at(0, &lent).await.expect("written");
    lending.publish_and_finish(SetAttr::default()).await.expect("published");
    let lender = dfs.open_reader(lender.attr.ino).await.expect("opens");
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
            Step::Share { from, at, len } => {
                let shared = writer.share_from(&lender, from, at, len).await.expect("shared");
                let (from, at) = (usize::try_from(from).expect("small"), usize::try_from(at).expect("small"));
                let shared = usize::try_from(shared).expect("small");
                let wanted = usize::try_from(len).expect("small").min(lent.len().saturating_sub(from));
                let is_whole = wanted == lent.len().saturating_sub(from) && at + wanted >= model.len();
                prop_assert_eq!(shared, if is_whole { wanted } else { wanted - wanted % CHUNK as usize });
                if shared > 0 {
                    model.resize(model.len().max(at + shared), 0);
                    model[at..at + shared].copy_from_slice(&lent[from..from + shared]);
                }
            }
            Step::Zero { at, len } => {
                writer.zero_range(at, len).await.expect("zeroed");
                let start = usize::try_from(at).expect("small").min(model.len());
                let end = usize::try_from(at + len).expect("small").min(model.len());
                model[start..end].fill(0);
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
