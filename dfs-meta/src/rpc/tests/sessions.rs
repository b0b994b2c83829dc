//! Sessions, mutations and reads.

use dfs_common::{ChunkId, ErrorCode, FileId, InodeId};
use dfs_proto::{
    convert::id_bytes,
    v1::{self, get_file_request::By, mutate_request::Op},
};

use super::cluster::{CHUNK_SIZE, Client, Cluster, code, create, quick, unlink};
use crate::control::Settings;

#[tokio::test]
async fn a_repeated_sequence_number_has_its_effect_once() {
    let cluster = Cluster::start(Settings::default()).await;
    let mut client = Client::open(&cluster, 1).await;
    let first = client.send(1, create("f")).await.expect("creates");
    let again = client.send(1, create("f")).await.expect("is remembered");
    assert_eq!(first, again);
    assert_eq!(client.send(2, create("f")).await.expect_err("exclusive").code, ErrorCode::AlreadyExists);
    assert_eq!(client.send(2, create("f")).await.expect_err("remembered too").code, ErrorCode::AlreadyExists);
    assert_eq!(client.send(0, create("g")).await.expect_err("starts at 1").code, ErrorCode::InvalidArgument);
    client.session += 100;
    assert_eq!(client.send(1, create("h")).await.expect_err("nobody").code, ErrorCode::SessionExpired);
    cluster.stop().await;
}

#[tokio::test]
async fn others_see_a_file_when_it_is_published() {
    let cluster = Cluster::start(Settings::default()).await;
    let (mut a, mut b) = (Client::open(&cluster, 1).await, Client::open(&cluster, 2).await);
    let file = a.create("f").await;
    assert!(a.lookup("f").await.is_ok());
    assert_eq!(b.lookup("f").await, Err(ErrorCode::NotFound));
    let list =
        |session_id| v1::ReadDirRequest { ino: InodeId::ROOT.0, session_id, with_attrs: true, ..Default::default() };
    let mut names = async |session| {
        let page = a.meta.read_dir(list(session)).await.expect("lists").into_inner();
        page.entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    };
    assert_eq!((names(a.session).await.len(), names(0).await.len()), (1, 0));
    let commit = v1::CommitFile { file_id: id_bytes(file.as_bytes()), size: 0, done: true, ..Default::default() };
    a.mutate(Op::CommitFile(commit)).await.expect("an empty file has no chunks");
    let attr = b.lookup("f").await.expect("published");
    assert_eq!((attr.size, &attr.file_id[..]), (0, file.as_bytes()));
    let found =
        b.meta.get_file(v1::GetFileRequest { by: Some(By::Ino(attr.ino)) }).await.expect("a layout").into_inner();
    assert_eq!(found.layout.expect("a layout").chunk_size, CHUNK_SIZE);
    let listed = b.meta.list_files(v1::ListFilesRequest::default()).await.expect("lists").into_inner();
    assert_eq!((listed.files[0].path.as_ref(), listed.files.len(), listed.end), (&b"/f"[..], 1, true));
    let close = v1::CloseSessionRequest { session_id: a.session };
    a.meta.close_session(close).await.expect("closes");
    a.meta.close_session(close).await.expect("closes again");
    assert_eq!(a.mutate(unlink("f")).await.expect_err("is closed").code, ErrorCode::SessionExpired);
    cluster.stop().await;
}

#[tokio::test]
async fn a_session_that_is_not_renewed_ends_with_its_reservations() {
    let settings = Settings { session_lease: std::time::Duration::from_millis(300), ..quick() };
    let cluster = Cluster::start(settings).await;
    let mut a = Client::open(&cluster, 1).await;
    a.create("f").await;
    let mut last = a.lookup("f").await;
    for _ in 0..200 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        last = a.lookup("f").await;
        if last.is_err() {
            break;
        }
    }
    assert_eq!(last, Err(ErrorCode::NotFound));
    let renewal = v1::RenewSessionRequest { session_id: a.session, ..Default::default() };
    assert_eq!(code(a.meta.renew_session(renewal).await), ErrorCode::SessionExpired);
    cluster.stop().await;
}

#[tokio::test]
async fn renewals_tell_whether_the_leader_knows_all_pins() {
    let cluster = Cluster::start(quick()).await;
    let mut a = Client::open(&cluster, 1).await;
    let answer = a.renew(false, &[FileId([1; 16])], &[]).await;
    assert!(!answer.need_full, "a session that was opened here has no other pins");
    assert_eq!(answer.leader_term, cluster.meta_status().await.term);
    cluster.stop().await;
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let cluster = Cluster::start(Settings::default()).await;
    let mut a = Client::open(&cluster, 1).await;
    let mut meta = cluster.meta();
    assert_eq!(code(meta.open_session(v1::OpenSessionRequest::default()).await), ErrorCode::InvalidArgument);
    assert_eq!(code(meta.get_file(v1::GetFileRequest::default()).await), ErrorCode::InvalidArgument);
    let short = v1::GetFileRequest { by: Some(By::FileId(vec![1; 3].into())) };
    assert_eq!(code(meta.get_file(short).await), ErrorCode::InvalidArgument);
    let gone = v1::GetFileRequest { by: Some(By::FileId(vec![1; 16].into())) };
    assert_eq!(code(meta.get_file(gone).await), ErrorCode::Stale);
    let unknown = v1::GetChunkLocationsRequest { chunk_ids: vec![id_bytes(ChunkId([1; 32]).as_bytes())] };
    assert!(meta.get_chunk_locations(unknown).await.expect("answers").into_inner().chunks.is_empty());
    let many = v1::AllocateChunksRequest { session_id: a.session, count: 257, ..Default::default() };
    assert_eq!(code(meta.allocate_chunks(many).await), ErrorCode::InvalidArgument);
    assert_eq!(code(meta.mutate(v1::MutateRequest { seq: 1, ..Default::default() }).await), ErrorCode::InvalidArgument);
    let nobody = v1::RegisterNodeRequest { wire_version: dfs_proto::WIRE_VERSION, ..Default::default() };
    assert_eq!(code(meta.register_node(nobody).await), ErrorCode::InvalidArgument);
    let long = a.mutate(create(&"x".repeat(256))).await.expect_err("too long");
    assert_eq!(long.code, ErrorCode::NameTooLong);
    cluster.stop().await;
}
