//! Watching: what others change of that which a client keeps.

use std::time::Duration;

use bytes::Bytes;
use dfs_common::SessionId;
use dfs_proto::{status::RpcError, v1};
use tokio::time::{Instant, sleep, sleep_until};

use super::Service;
use crate::{
    fsm::Change,
    raft::{News, Position},
};

/// Changes in one answer: less than a MiB of names.
const CHANGES_MAX: usize = 2048;
/// Longest wait for a change.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long further changes are waited for once there is one: a busy cluster tells everybody fifty times a second, and not
/// with every change.
const GATHER: Duration = Duration::from_millis(20);

impl Service {
    pub(super) async fn handle_watch(&self, request: v1::WatchRequest) -> Result<v1::WatchResponse, RpcError> {
        let session = SessionId(request.session_id);
        let position = Position { epoch: request.epoch, number: request.number };
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(request.wait_ms).min(WAIT_MAX);
        let mut newest = self.raft.newest_change();
        loop {
            newest.mark_unchanged();
            let as_of = begun.elapsed();
            let news = self.raft.read(|_| self.raft.changes_since(position, session, CHANGES_MAX)).await?;
            if news.is_reset || !news.changes.is_empty() || Instant::now() >= deadline {
                return Ok(to_wire(news, as_of));
            }
            tokio::select! {
                _ = newest.changed() => sleep(GATHER).await,
                // Read again: only a leader may say that nothing happened.
                () = sleep_until(deadline) => {}
            }
        }
    }
}

fn to_wire(news: News, as_of: Duration) -> v1::WatchResponse {
    let News { position, is_reset, changes, is_complete } = news;
    let mut answer = v1::WatchResponse {
        epoch: position.epoch,
        number: position.number,
        reset: is_reset,
        complete: is_complete,
        as_of_us: u64::try_from(as_of.as_micros()).unwrap_or(u64::MAX),
        ..v1::WatchResponse::default()
    };
    for change in changes {
        match change {
            Change::Inode(ino) => answer.inodes.push(ino.0),
            Change::Entry { parent, name } => {
                answer.entries.push(v1::ChangedEntry { parent: parent.0, name: Bytes::copy_from_slice(&name) });
            }
        }
    }
    answer
}
