//! What others change of that which this client keeps: asked of the leader again and again, each question waiting there until
//! there is something to tell.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use dfs_common::InodeId;
use dfs_proto::v1;
use tokio::time::Instant;

use crate::{Dfs, Error, cluster::metadata};

/// Up to where this client has been told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Told {
    epoch: u64,
    number: u64,
}

/// What others have changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// Nobody knows any more what happened: everything that is kept may be out of date.
    pub is_reset: bool,
    /// Names that appeared, went, or name something else now, with their directories.
    pub entries: Vec<(InodeId, Vec<u8>)>,
    /// Inodes whose attributes or content changed, or that are gone.
    pub inodes: Vec<InodeId>,
    /// Everything that was acknowledged before this moment has been told; `None` if there is more to ask for.
    pub as_of: Option<std::time::Instant>,
}

impl Dfs {
    /// Waits for changes by others behind `told`, which moves on; for `wait` if there are none, at most a second. With `own` what
    /// this client itself changes is told, too.
    ///
    /// # Errors
    /// No leader answered before `deadline`. What was told so far stays valid for its time.
    ///
    /// # Cancel safety
    /// A dropped call leaves `told` as it was.
    pub async fn watch(
        &self,
        told: &mut Told,
        own: bool,
        wait: Duration,
        deadline: std::time::Instant,
    ) -> Result<News, Error> {
        let cluster = &self.shared.cluster;
        let session = cluster.session().await?;
        let request = v1::WatchRequest {
            session_id: if own { 0 } else { session.id.0 },
            epoch: told.epoch,
            number: told.number,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(0),
        };
        // Of the attempt that was answered.
        let asked = Mutex::new(std::time::Instant::now());
        let what = || "watching for changes".to_owned();
        let ask = |channel, request| {
            *asked.lock().unwrap_or_else(PoisonError::into_inner) = std::time::Instant::now();
            async move { metadata(channel).watch(request).await }
        };
        let answer = cluster.call_until(Instant::from_std(deadline), &what, request, ask).await;
        let answer = answer.map_err(|failed| failed.error)?;
        *told = Told { epoch: answer.epoch, number: answer.number };
        let asked = *asked.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(News {
            is_reset: answer.reset,
            entries: answer.entries.into_iter().map(|entry| (InodeId(entry.parent), entry.name.to_vec())).collect(),
            inodes: answer.inodes.into_iter().map(InodeId).collect(),
            as_of: answer.complete.then(|| asked + Duration::from_micros(answer.as_of_us)),
        })
    }
}
