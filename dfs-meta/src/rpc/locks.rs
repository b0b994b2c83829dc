//! Locks of files.

use std::time::Duration;

use dfs_common::SessionId;
use dfs_proto::{convert, status::RpcError, v1};

use super::{Service, invalid};

/// How long a call may wait for a lock; the client then asks again. Shorter than the silence after which it looks for another
/// leader.
const WAIT: Duration = Duration::from_millis(500);

impl Service {
    pub(super) async fn handle_lock(&self, request: v1::LockRequest) -> Result<v1::LockResponse, RpcError> {
        let wire = request.lock.ok_or_else(|| invalid("a request about no lock"))?;
        let (ino, lock) = convert::lock(SessionId(request.session_id), &wire)?;
        let conflict = match convert::lock_action(request.action)? {
            convert::LockAction::Take => self.control.take_lock(ino, lock, Duration::ZERO).await?,
            convert::LockAction::Wait => self.control.take_lock(ino, lock, WAIT).await?,
            convert::LockAction::Test => self.control.test_lock(ino, lock).await?,
            convert::LockAction::GiveUp => {
                self.control.give_up_lock(ino, lock).await?;
                None
            }
        };
        Ok(v1::LockResponse { conflict: conflict.map(|lock| convert::lock_to_wire(ino, &lock)) })
    }
}
