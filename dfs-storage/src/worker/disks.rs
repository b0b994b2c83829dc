//! Looks after the disks: takes out what has failed, and back what works again.
//!
//! Each disk is probed every few seconds, and at once when somebody met an error on it. Probes run beside the disk pool: the threads of
//! the pool may all be waiting for the very disk. What follows is [`crate::disks`]'s to say.

use std::{sync::Arc, time::Duration};

use dfs_common::{
    ChunkId, Uuid,
    disk::{DiskEvent, DiskNotice},
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    data_dir::Trouble,
    disks::{Disk, Disks, Verdict},
    engine::{ChunkEngine as _, EngineError},
    node::Node,
    scrub::Scrub,
};

/// Time between two probes of a disk that is well.
const EVERY: Duration = Duration::from_secs(5);
/// Time between two that write.
const WRITE_EVERY: Duration = Duration::from_secs(30);
/// Time between two of a disk that is not well.
const SOON: Duration = Duration::from_secs(1);
/// A probe that is not back after this long counts as one that failed, and is waited for on.
const PATIENCE: Duration = Duration::from_secs(15);

/// Starts to look after the disk of `scrub`; ends with the node. `uuid` is the node's.
pub fn start(node: &Arc<Node>, scrub: &Arc<Scrub>, uuid: Uuid) {
    let (node, scrub) = (node.clone(), scrub.clone());
    node.tasks.clone().spawn(async move {
        node.stop.clone().run_until_cancelled(work(&node, &scrub, uuid)).await;
    });
}

/// Ids listed at once.
const IDS: usize = 512;

type Probing = JoinHandle<Result<(), Trouble>>;

async fn work(node: &Arc<Node>, scrub: &Arc<Scrub>, uuid: Uuid) {
    let disk = scrub.disk().clone();
    let mut under_way: Option<Probing> = None;
    let (mut pause, mut since_written) = (EVERY, Duration::ZERO);
    loop {
        let troubled = tokio::select! {
            () = sleep(pause) => pause == SOON,
            () = disk.troubled(), if pause == EVERY => true,
        };
        since_written += pause;
        let write = troubled || since_written >= WRITE_EVERY;
        if write {
            since_written = Duration::ZERO;
        }
        let probing = under_way.take().unwrap_or_else(|| probe(&disk, uuid, write));
        let probed = finish(probing, &mut under_way).await;
        let is_well = matches!(probed, Ok(()) | Err(Trouble::Full));
        pause = if is_well && disk.failure().is_none() { EVERY } else { SOON };
        match disk.judge(probed) {
            Some(Verdict::TakeOut(reason)) => take_out(node, &disk, &reason),
            Some(Verdict::BringBack) => bring_back(node, scrub, uuid).await,
            None => {}
        }
    }
}

fn probe(disk: &Arc<Disk>, uuid: Uuid, write: bool) -> Probing {
    let disk = disk.clone();
    dfs_proto::machine::spawn_blocking(move || disk.probe(uuid, write))
}

/// The answer of a probe, or that there is none yet: it is kept then, since a second one would hang as well.
async fn finish(mut probing: Probing, under_way: &mut Option<Probing>) -> Result<(), Trouble> {
    match timeout(PATIENCE, &mut probing).await {
        Ok(Ok(probed)) => probed,
        Ok(Err(error)) => Err(Trouble::Error(error.to_string())),
        Err(_) => {
            *under_way = Some(probing);
            Err(Trouble::Gone(format!("it has not answered for {} s", PATIENCE.as_secs())))
        }
    }
}

fn take_out(node: &Arc<Node>, disk: &Disk, reason: &str) {
    disk.take_out(reason);
    let path = disk.path().display().to_string();
    tracing::error!(
        disk = path,
        reason,
        chunks = disk.lost(),
        "a disk has failed and is taken out; its chunks are reported gone"
    );
    if !node.disks.any_works() {
        tracing::error!("every disk of this node has failed: it serves nothing until one works again");
    }
    let what = DiskEvent::Failed { reason: reason.to_owned(), copies: disk.lost() };
    node.changes.notice(DiskNotice { id: disk.id(), path, what });
    node.changes.want_inventory();
}

async fn bring_back(node: &Arc<Node>, scrub: &Arc<Scrub>, uuid: Uuid) {
    let disk = scrub.disk().clone();
    let path = disk.path().display().to_string();
    let (name, membership) = (node.name.clone(), node.membership.get().copied());
    let back = {
        let scrub = scrub.clone();
        dfs_proto::machine::spawn_blocking(move || {
            scrub.disk().bring_back(uuid, &name, membership)?;
            scrub.reload();
            Ok::<(), String>(())
        })
    };
    let error = match back.await {
        Ok(Ok(())) => {
            tracing::warn!(disk = path, "a disk works again; its chunks count again");
            node.changes.notice(DiskNotice { id: disk.id(), path, what: DiskEvent::Returned });
            node.changes.want_inventory();
            drop_doubles(node, &disk).await;
            return;
        }
        Ok(Err(error)) => error,
        Err(error) => error.to_string(),
    };
    tracing::warn!(disk = path, error, "a disk that seemed to work again cannot be used");
    disk.stays_out();
}

/// Deletes from a disk that came back what was copied to another disk of this node meanwhile: it would count once and take space
/// twice. The other copy is read in full before.
async fn drop_doubles(node: &Arc<Node>, disk: &Arc<Disk>) {
    let (mut cursor, mut dropped) = (None, 0_u64);
    loop {
        let (listed, after) = (disk.clone(), cursor);
        let ids = match node.disk.run(move || listed.with(|engine| engine.ids(after, IDS))).await {
            Ok(Ok(ids)) if !ids.is_empty() => ids,
            Ok(Ok(_)) => break,
            // What is there twice stays so until its chunk is deleted.
            Ok(Err(error)) => return tracing::warn!(%error, "copies that are there twice stay"),
            Err(error) => return tracing::debug!(%error, "copies that are there twice stay"),
        };
        cursor = ids.last().copied();
        for id in ids {
            let (disks, disk) = (node.disks.clone(), disk.clone());
            match node.disk.run(move || drop_double(&disks, &disk, id)).await {
                Ok(Ok(true)) => dropped += 1,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(chunk = %id, %error, "a copy that is there twice stays"),
                Err(error) => tracing::debug!(chunk = %id, %error, "a copy that is there twice stays"),
            }
        }
    }
    if dropped > 0 {
        tracing::info!(disk = %disk.path().display(), copies = dropped, "copies that were there twice were dropped");
    }
}

fn drop_double(disks: &Disks, disk: &Arc<Disk>, id: ChunkId) -> Result<bool, EngineError> {
    for other in disks.iter().filter(|other| !Arc::ptr_eq(other, disk) && other.failure().is_none()) {
        if other.with(|engine| engine.contains(id))? && other.with(|engine| engine.verify(id)).is_ok() {
            return disk.with(|engine| engine.delete(id));
        }
    }
    Ok(false)
}
