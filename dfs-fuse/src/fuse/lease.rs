//! Keeps the lease on what the kernel keeps: asks the cluster what others change, and has the kernel forget it.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use dfs_client::{Dfs, News, Told};
use dfs_common::InodeId;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout_at},
};

use crate::fs::Fs;

/// Longest wait for a change: several such questions fit into the lease.
const WAIT_MAX: Duration = Duration::from_millis(250);
/// Parts of the bound that one question may wait.
const WAITS: u32 = 4;
/// Pause before the cluster is asked again that did not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// Keeps the lease of `fs` for as long as it is there.
pub(crate) async fn keep(fs: Weak<Fs<Dfs>>, dfs: Dfs) {
    let mut told = Told::default();
    let mut forgetting = None;
    loop {
        let Some(fs) = fs.upgrade() else { return };
        let bound = fs.coherence().bound();
        let until = fs.coherence().leased_until().unwrap_or_else(|| Instant::now() + bound.max(PAUSE));
        let own = fs.coherence().is_in_doubt();
        fs.coherence().forget_again(Instant::now());
        // The question ends with the lease, also while it looks for a session.
        match timeout_at(until.into(), dfs.watch(&mut told, own, WAIT_MAX.min(bound / WAITS), until)).await {
            Ok(Ok(news)) => {
                if !own && fs.coherence().is_in_doubt() {
                    // The doubt came after the question: of this mount's own changes nothing was told yet.
                    fs.doubt();
                }
                take(&fs, news, until, &mut forgetting).await;
            }
            Ok(Err(error)) if Instant::now() >= until => lose(&fs, &error.to_string()),
            Err(_) => lose(&fs, "no metadata leader answered in time"),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the cluster does not say what others change");
                sleep(PAUSE.min(until.saturating_duration_since(Instant::now()))).await;
            }
        }
    }
}

fn lose(fs: &Fs<Dfs>, why: &str) {
    if fs.lose_lease() {
        tracing::info!(why, "others may have changed what the kernel keeps: it asks for everything again");
    }
}

async fn take(fs: &Arc<Fs<Dfs>>, news: News, until: Instant, forgetting: &mut Option<JoinHandle<()>>) {
    if news.is_reset {
        lose(fs, "the metadata leader does not know any more what changed");
    }
    fs.coherence().attrs_changed(&news.inodes);
    let dirs: Vec<InodeId> = news.entries.iter().map(|(dir, _)| *dir).collect();
    dirs.into_iter().for_each(|dir| fs.coherence().changed_here(dir));
    news.entries.iter().for_each(|(dir, name)| fs.unsee(*dir, name));
    if !news.entries.is_empty() && !forget(fs, news.entries, until, forgetting).await {
        lose(fs, "a directory is busy, so the kernel cannot forget single names");
    }
    if let Some(as_of) = news.as_of
        && fs.coherence().renew(as_of)
    {
        tracing::info!("what others change is told: names and attributes are kept until then");
    }
}

/// Has the kernel forget names. That waits for operations in their directories, so a thread does it; whether it was done
/// before the lease ends.
async fn forget(
    fs: &Arc<Fs<Dfs>>,
    entries: Vec<(InodeId, Vec<u8>)>,
    until: Instant,
    forgetting: &mut Option<JoinHandle<()>>,
) -> bool {
    // The one before still waits: another one would, too.
    if forgetting.as_ref().is_some_and(|task| !task.is_finished()) {
        return false;
    }
    let fs = Arc::clone(fs);
    let mut task = tokio::task::spawn_blocking(move || {
        fs.coherence().forget_entries(&entries);
    });
    let is_done = timeout_at(until.into(), &mut task).await.is_ok();
    *forgetting = (!is_done).then_some(task);
    is_done
}
