//! Locks of files.

use dfs_common::ErrorCode;
use dfs_proto::{status::RpcError, v1};

use super::cluster::{Client, Cluster};
use crate::control::Settings;

fn lock(client: &Client, action: v1::LockAction, exclusive: bool) -> v1::LockRequest {
    let lock = v1::FileLock { ino: 7, record: false, owner: 1, exclusive, start: 0, end: 99, pid: 5 };
    v1::LockRequest { session_id: client.session, lock: Some(lock), action: action.into() }
}

async fn ask(client: &mut Client, action: v1::LockAction, exclusive: bool) -> Option<v1::FileLock> {
    let request = lock(client, action, exclusive);
    client.meta.lock(request).await.expect("is answered").into_inner().conflict
}

#[tokio::test]
async fn a_lock_is_granted_once_and_waited_for() {
    let cluster = Cluster::start(Settings::default()).await;
    let (mut a, mut b) = (Client::open(&cluster, 1).await, Client::open(&cluster, 2).await);
    assert_eq!(ask(&mut a, v1::LockAction::Take, true).await, None);
    assert_eq!(ask(&mut a, v1::LockAction::Take, true).await, None, "again is the same");
    assert!(ask(&mut b, v1::LockAction::Test, false).await.is_some_and(|found| found.exclusive && found.pid == 5));
    assert!(ask(&mut b, v1::LockAction::Wait, false).await.is_some(), "waits a moment and tells");
    let request = lock(&b, v1::LockAction::Wait, true);
    let mut meta = b.meta.clone();
    let waiting = tokio::spawn(async move { meta.lock(request).await });
    assert_eq!(ask(&mut a, v1::LockAction::GiveUp, true).await, None);
    let granted = waiting.await.expect("does not panic").expect("is answered").into_inner();
    assert_eq!(granted.conflict, None);
    assert!(ask(&mut a, v1::LockAction::Take, false).await.is_some());
    // The end of a session is the end of its locks.
    b.meta.close_session(v1::CloseSessionRequest { session_id: b.session }).await.expect("closes");
    assert_eq!(ask(&mut a, v1::LockAction::Take, false).await, None);
    cluster.stop().await;
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let cluster = Cluster::start(Settings::default()).await;
    let mut client = Client::open(&cluster, 1).await;
    let good = lock(&client, v1::LockAction::Take, true);
    let mut backwards = good;
    backwards.lock.as_mut().expect("is there").start = 100;
    for (request, code) in [
        (v1::LockRequest { lock: None, ..good }, ErrorCode::InvalidArgument),
        (v1::LockRequest { action: 0, ..good }, ErrorCode::InvalidArgument),
        (backwards, ErrorCode::InvalidArgument),
        (v1::LockRequest { session_id: 77, ..good }, ErrorCode::SessionExpired),
    ] {
        let refused = client.meta.lock(request).await.expect_err("refused");
        assert_eq!(RpcError::from(refused).code, code, "{request:?}");
    }
    cluster.stop().await;
}
