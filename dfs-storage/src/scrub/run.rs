//! Runs a scrub.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use dfs_common::{
    ChunkId,
    crash::{self, Point},
    disk::{DiskEvent, DiskNotice, ScrubPass},
};
use dfs_proto::status::RpcError;
use tokio::time::{Instant, sleep};

use super::{Next, SAVE_AFTER, SAVE_CHUNKS, Scrub, checkpoint::Pass, nanos, pace::Left, unix_now_ns};
use crate::{
    engine::{ChunkEngine as _, EngineError, Judged},
    node::Node,
};

/// Ids listed at once.
const IDS: usize = 512;
/// How long a pass waits before it goes on when the disk cannot be listed.
const TROUBLE: Duration = Duration::from_secs(10);

/// Scrubs until it is cancelled.
///
/// # Cancel safety
/// Cancel safe: what was read and not noted is read again.
pub(super) async fn run(scrub: &Arc<Scrub>, node: &Arc<Node>) {
    let mut ids = VecDeque::new();
    let mut saved = (Instant::now(), 0);
    loop {
        if scrub.state().unsaved || saved.1 >= SAVE_CHUNKS || (saved.1 > 0 && saved.0.elapsed() >= SAVE_AFTER) {
            save(scrub, node).await;
            saved = (Instant::now(), 0);
        }
        let rest = match scrub.next(unix_now_ns()) {
            Next::Rest(rest) => rest,
            Next::Read(cursor) => match step(scrub, node, cursor, &mut ids).await {
                Ok(pause) => {
                    saved.1 += 1;
                    pause
                }
                Err(error) => {
                    tracing::warn!(disk = %scrub.disk.path().display(), %error, "the scrub cannot go on at the moment");
                    TROUBLE
                }
            },
        };
        // Of no length it must not keep the thread to itself either.
        tokio::select! {
            () = sleep(rest) => {}
            () = scrub.wake.notified() => {}
        }
    }
}

/// Notes on disk how far it has come. Of a disk that was taken out nothing is noted: it may be another one that is there now.
pub(super) async fn save(scrub: &Arc<Scrub>, node: &Node) {
    if scrub.disk.failure().is_some() {
        return;
    }
    let checkpoint = {
        let mut state = scrub.state();
        state.unsaved = false;
        state.checkpoint
    };
    crash::point(Point::ScrubVerified);
    let disk = scrub.disk.clone();
    let saved = node.disk.run(move || checkpoint.save(disk.path())).await;
    let error = match saved {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    // The next note is as good; until then a restart reads some chunks again.
    tracing::warn!(disk = %scrub.disk.path().display(), error, "the checkpoint of the scrub cannot be written");
}

/// Reads the chunk behind `cursor`, or ends the pass. Gives the pause after it.
async fn step(
    scrub: &Arc<Scrub>,
    node: &Arc<Node>,
    cursor: Option<ChunkId>,
    ids: &mut VecDeque<ChunkId>,
) -> Result<Duration, RpcError> {
    // After an order to start anew, or of a page that is used up.
    if ids.front().is_none_or(|id| cursor.is_none_or(|cursor| *id <= cursor)) {
        let disk = scrub.disk.clone();
        *ids = on_disk(node, move || disk.with(|engine| engine.ids(cursor, IDS))).await?.into();
    }
    let Some(id) = ids.pop_front() else {
        end(scrub, node);
        return Ok(Duration::ZERO);
    };
    let started = Instant::now();
    let disk = scrub.disk.clone();
    let judged = node.disk.run(move || disk.with(|engine| engine.judge(id, false))).await?;
    let took = started.elapsed();
    let bytes = match judged {
        Ok(Judged::Whole(facts)) => Some(facts.length),
        Ok(Judged::Missing) => None,
        Ok(Judged::SetAside { reason }) => {
            node.copy_set_aside(&scrub.disk, id, reason);
            None
        }
        Err(error) => {
            tracing::info!(chunk = %id, %error, "a copy cannot be read; it is looked at again");
            node.checks.suspect(id);
            None
        }
    };
    Ok(note(scrub, node, (cursor, id), bytes, took))
}

async fn on_disk<T: Send + 'static>(
    node: &Node,
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, RpcError> {
    node.disk.run(work).await?.map_err(|error| RpcError::new(error.code(), error.to_string()))
}

/// Notes that the chunk behind `from` was read. Gives the pause after it.
fn note(
    scrub: &Scrub,
    node: &Node,
    (from, id): (Option<ChunkId>, ChunkId),
    bytes: Option<u32>,
    took: Duration,
) -> Duration {
    let mut state = scrub.state();
    state.pace.step(took);
    let Some(pass) = state.checkpoint.pass.as_mut().filter(|pass| pass.cursor == from) else {
        return Duration::ZERO; // it was told to start anew meanwhile
    };
    pass.cursor = Some(id);
    if let Some(bytes) = bytes {
        (pass.chunks, pass.bytes) = (pass.chunks + 1, pass.bytes + u64::from(bytes));
    }
    let pass = *pass;
    state.pace.sample(Instant::now(), pass.bytes, pass.done());
    let time = scrub
        .deadline_ns(pass)
        .map(|deadline| Duration::from_nanos(u64::try_from(deadline.saturating_sub(unix_now_ns())).unwrap_or(0)));
    let chunks = scrub.disk.with(|engine| Ok(engine.counts().0)).unwrap_or(0) as f64 * (1.0 - pass.done());
    state.pace.pause(node.disk.busy(), Left { chunks, time })
}

/// Ends the pass: every chunk that was there when it came by was read.
fn end(scrub: &Scrub, node: &Node) {
    let now_ns = unix_now_ns();
    let mut state = scrub.state();
    let Some(Pass { started_ns, chunks, bytes, bad, .. }) = state.checkpoint.pass.take() else { return };
    let pass = ScrubPass { started_ns, ended_ns: now_ns, chunks, bytes, bad };
    state.checkpoint.last = Some(pass);
    let interval = scrub.settings.interval.unwrap_or_default();
    state.checkpoint.next_ns = started_ns.saturating_add(nanos(interval)).max(now_ns);
    state.unsaved = true;
    drop(state);
    tracing::info!(disk = %scrub.disk.path().display(), chunks, bytes, bad, "a pass of the scrub is done");
    let (id, path) = (scrub.disk.id(), scrub.disk.path().display().to_string());
    node.changes.notice(DiskNotice { id, path, what: DiskEvent::Pass(pass) });
}
