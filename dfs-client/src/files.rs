//! Files as a whole, and the administrator's questions.

use std::{sync::Arc, time::Duration};

use dfs_common::{Attr, ChunkId, ErrorCode, FileId, InodeId, Layout, disk::ScrubVerb};
use dfs_proto::{
    convert::{self, NodeAddress},
    status::RpcError,
    transport,
    v1::{
        self, admin_service_client::AdminServiceClient, mutate_request::Op,
        storage_service_client::StorageServiceClient,
    },
};
use tonic::{Response, Status, transport::Channel};

use crate::{
    Created, Dfs, Error, FilePage, ListedFile, Reader, Writer,
    cluster::{Session, metadata},
    meta::attr,
    write::{self, Start},
};

/// Pause before a change of the membership is asked for again, while a leader is looked for.
const LEADER_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// A backup whose next part does not come within this time is given up.
const BACKUP_STALL: std::time::Duration = std::time::Duration::from_secs(30);

impl Dfs {
    /// Files whose path starts with `prefix`, behind the path `after` (empty: from the start), at most `limit`, in byte
    /// order of their paths.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn list_files(&self, prefix: &[u8], after: &[u8], limit: u32) -> Result<FilePage, Error> {
        let what = || format!("listing files \"{}*\"", prefix.escape_ascii());
        let (prefix, after) = (prefix.to_vec().into(), after.to_vec().into());
        let request = v1::ListFilesRequest { prefix, after, limit };
        let page =
            self.shared.cluster.call(&what, request, |c, q| async move { metadata(c).list_files(q).await }).await?;
        let file = |wire: v1::ListedFile| Ok::<_, Error>(ListedFile { path: wire.path.into(), attr: attr(wire.attr)? });
        Ok(FilePage { files: page.files.into_iter().map(file).collect::<Result<_, _>>()?, end: page.end })
    }

    /// State of the whole cluster, as the leader knows it.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn cluster_status(&self) -> Result<v1::ClusterStatusResponse, Error> {
        let what = || "state of the cluster".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).cluster_status(q).await };
        self.shared.cluster.call(&what, v1::ClusterStatusRequest {}, ask).await
    }

    /// State of the metadata node at `address`, asked once and directly.
    ///
    /// # Errors
    /// It does not answer within the call's timeout.
    pub async fn meta_status(&self, address: &str) -> Result<v1::MetaStatusResponse, Error> {
        let ask = |c| async move { AdminServiceClient::new(c).meta_status(v1::MetaStatusRequest {}).await };
        self.ask_once("metadata node", address, ask).await
    }

    /// Makes the metadata leader write a snapshot now; gives the index of the log that it covers.
    ///
    /// # Errors
    /// No answer within the deadline, or the snapshot failed.
    pub async fn trigger_snapshot(&self) -> Result<u64, Error> {
        let what = || "writing a metadata snapshot".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).trigger_snapshot(q).await };
        Ok(self.shared.cluster.call(&what, v1::TriggerSnapshotRequest {}, ask).await?.applied_index)
    }

    /// A page of the trash in the order of paths: entries that `filter` takes, behind `after`, at most `limit`. `next` says
    /// where to go on; a page may be empty although others follow.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn list_trash(
        &self,
        filter: v1::TrashFilter,
        after: Option<v1::TrashCursor>,
        limit: u32,
    ) -> Result<v1::ListTrashResponse, Error> {
        let what = || "listing the trash".to_owned();
        let request = v1::ListTrashRequest { filter: Some(filter), after, limit };
        let ask = |c, q| async move { AdminServiceClient::new(c).list_trash(q).await };
        self.shared.cluster.call(&what, request, ask).await
    }

    /// Gives up a page of the trash, or with `dry_run` says how much it would be.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn empty_trash(
        &self,
        filter: v1::TrashFilter,
        after: Option<v1::TrashCursor>,
        dry_run: bool,
    ) -> Result<v1::EmptyTrashResponse, Error> {
        let what = || "emptying the trash".to_owned();
        let request = v1::EmptyTrashRequest { filter: Some(filter), after, dry_run };
        let ask = |c, q| async move { AdminServiceClient::new(c).empty_trash(q).await };
        self.shared.cluster.call(&what, request, ask).await
    }

    /// How long the trash keeps content and how many entries it has; changes it first if `retention` is given.
    ///
    /// # Errors
    /// `InvalidArgument` for more than ten years; no answer within the deadline.
    pub async fn trash_retention(&self, retention: Option<Duration>) -> Result<(Duration, u64), Error> {
        let what = || "retention of the trash".to_owned();
        let retention_ms = retention.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let request = v1::TrashRetentionRequest { set: retention.is_some(), retention_ms };
        let ask = |c, q| async move { AdminServiceClient::new(c).trash_retention(q).await };
        let answer = self.shared.cluster.call(&what, request, ask).await?;
        Ok((Duration::from_millis(answer.retention_ms), answer.versions))
    }

    /// Makes content in the trash a file again, under a name that is free.
    ///
    /// # Errors
    /// `NotFound` if it is not in the trash or there is no such directory, `AlreadyExists`; no answer within the deadline.
    pub async fn restore(&self, file_id: FileId, parent: InodeId, name: &[u8]) -> Result<Attr, Error> {
        let what = format!("restoring version {file_id}");
        let (id, name) = (file_id.as_bytes().to_vec().into(), name.to_vec().into());
        let op = Op::Restore(v1::Restore { file_id: id, parent: parent.0, name });
        attr(self.shared.cluster.mutate(what, op).await?.1.attr)
    }

    /// How repair gets on, its limits, and the latest `failures` that hold chunks back.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn repair_status(&self, failures: u32) -> Result<v1::RepairStatusResponse, Error> {
        let what = || "state of repair".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).repair_status(q).await };
        self.shared.cluster.call(&what, v1::RepairStatusRequest { failures_limit: failures }, ask).await
    }

    /// A page of the chunks that lack copies, fewest copies first, behind the `after` of an earlier page.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn repair_queue(
        &self,
        limit: u32,
        after: Option<&v1::QueuedChunk>,
    ) -> Result<v1::RepairQueueResponse, Error> {
        let what = || "chunks that wait for repair".to_owned();
        let after = after.map(|chunk| (chunk.chunk_id.clone(), chunk.live)).unwrap_or_default();
        let request = v1::RepairQueueRequest { limit, after: after.0, after_live: after.1 };
        let ask = |c, q| async move { AdminServiceClient::new(c).repair_queue(q).await };
        self.shared.cluster.call(&what, request, ask).await
    }

    /// Forgets why `chunks` (all without any) were put off, and has them repaired at once.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn repair_now(&self, chunks: &[ChunkId]) -> Result<v1::RepairNowResponse, Error> {
        let what = || "repairing at once".to_owned();
        let chunk_ids = chunks.iter().map(|id| convert::id_bytes(id.as_bytes())).collect();
        let ask = |c, q| async move { AdminServiceClient::new(c).repair_now(q).await };
        self.shared.cluster.call(&what, v1::RepairNowRequest { chunk_ids }, ask).await
    }

    /// Changes limits of repair; what the request does not name stays. Returns those in force.
    ///
    /// # Errors
    /// No answer within the deadline, or nonsense.
    pub async fn set_repair_limits(&self, request: v1::SetRepairLimitsRequest) -> Result<v1::RepairLimits, Error> {
        let what = || "changing the limits of repair".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).set_repair_limits(q).await };
        Ok(self.shared.cluster.call(&what, request, ask).await?.limits.unwrap_or_default())
    }

    /// How far the storage nodes are with verifying what they hold.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn scrub_status(&self) -> Result<v1::ScrubStatusResponse, Error> {
        let what = || "status of scrubs".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).scrub_status(q).await };
        self.shared.cluster.call(&what, v1::ScrubStatusRequest {}, ask).await
    }

    /// Tells storage nodes (all, without any named) about their scrubs. Gives the number of the order.
    ///
    /// # Errors
    /// `NotFound` for an unknown node; no answer within the deadline.
    pub async fn order_scrub(&self, verb: ScrubVerb, nodes: &[u32]) -> Result<u64, Error> {
        let what = || "an order about scrubs".to_owned();
        let verb = convert::disk::scrub_verb_to_wire(verb).into();
        let request = v1::OrderScrubRequest { verb, node_ids: nodes.to_vec() };
        let ask = |c, q| async move { AdminServiceClient::new(c).order_scrub(q).await };
        Ok(self.shared.cluster.call(&what, request, ask).await?.number)
    }

    /// Says what a verb would do to a storage node, and does it unless it is a dry run or needs its losses accepted.
    ///
    /// # Errors
    /// No such node, or it cannot be done; no answer within the deadline.
    pub async fn change_node(&self, request: v1::ChangeNodeRequest) -> Result<v1::ChangeNodeResponse, Error> {
        let what = || "changing a storage node".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).change_node(q).await };
        self.shared.cluster.call(&what, request, ask).await
    }

    /// Begins or ends a rebalance of the storage nodes, or only asks; says how evenly they are filled.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn rebalance(&self, verb: v1::RebalanceVerb) -> Result<v1::RebalanceResponse, Error> {
        let what = || "rebalance of the storage nodes".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).rebalance(q).await };
        self.shared.cluster.call(&what, v1::RebalanceRequest { verb: verb.into() }, ask).await
    }

    /// Who has a pending version of a file, and who has `versions` (1024 at most) open for reading.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn file_users(&self, ino: InodeId, versions: &[FileId]) -> Result<v1::FileUsersResponse, Error> {
        let what = || format!("users of inode {ino}");
        let ask = |c, q| async move { AdminServiceClient::new(c).file_users(q).await };
        let versions = versions.iter().map(|id| convert::id_bytes(id.as_bytes())).collect();
        self.shared.cluster.call(&what, v1::FileUsersRequest { ino: ino.0, versions }, ask).await
    }

    /// Events of the cluster, as [`v1::ListEventsRequest`] asks for them.
    ///
    /// # Errors
    /// `InvalidArgument` for a kind that does not exist; no answer within the deadline.
    pub async fn list_events(&self, request: v1::ListEventsRequest) -> Result<v1::ListEventsResponse, Error> {
        let what = || "events of the cluster".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).list_events(q).await };
        self.shared.cluster.call(&what, request, ask).await
    }

    /// Addresses of all metadata nodes known here: those that the cluster named, else those of the options.
    #[must_use]
    pub fn meta_addresses(&self) -> Vec<String> {
        self.shared.cluster.endpoints.known().iter().map(ToString::to_string).collect()
    }

    /// Makes the node `name` at `address` a metadata node, in place of the member `replaces` if one is named. `step` is told how
    /// far it is.
    ///
    /// # Errors
    /// The cluster refuses, or the leader was lost meanwhile: the change may still happen, and the same call goes on from there.
    pub async fn add_meta_node(
        &self,
        name: &str,
        address: &str,
        replaces: Option<&str>,
        mut step: impl FnMut(&v1::MetaChange),
    ) -> Result<(), Error> {
        let what = || format!("adding metadata node {name}");
        let request = v1::AddMetaNodeRequest {
            name: name.to_owned(),
            address: address.to_owned(),
            replaces: replaces.unwrap_or_default().to_owned(),
        };
        let cluster = &self.shared.cluster;
        let deadline = tokio::time::Instant::now() + cluster.options.deadline;
        loop {
            let ask = |c, q| async move { AdminServiceClient::new(c).add_meta_node(q).await };
            let seen = cluster.endpoints.current();
            let mut changes = cluster.call(&what, request.clone(), ask).await?;
            let error = loop {
                match changes.message().await {
                    Ok(Some(change)) if change.done => return Ok(()),
                    Ok(Some(change)) => step(&change),
                    Ok(None) => return Err(Error::new(ErrorCode::Indeterminate, format!("{}: cut off", what()))),
                    Err(status) => break RpcError::from(status),
                }
            };
            // Any node opens the stream; who leads shows in it. A leader that is to be replaced itself hands over first.
            let again = matches!(error.code, ErrorCode::NotLeader | ErrorCode::Unavailable);
            if !again || tokio::time::Instant::now() >= deadline {
                return Err(Error::new(error.code, format!("{}: {}", what(), error.message)));
            }
            cluster.endpoints.failed(&seen, &error);
            tokio::time::sleep(LEADER_PAUSE).await;
        }
    }

    /// Takes the metadata node `name` out of the cluster; gives the names of those that vote now.
    ///
    /// # Errors
    /// The cluster refuses, or does not answer within the deadline.
    pub async fn remove_meta_node(&self, name: &str) -> Result<Vec<String>, Error> {
        let what = || format!("removing metadata node {name}");
        let ask = |c, q| async move { AdminServiceClient::new(c).remove_meta_node(q).await };
        let request = v1::RemoveMetaNodeRequest { name: name.to_owned() };
        Ok(self.shared.cluster.call(&what, request, ask).await?.voters)
    }

    /// Makes the metadata node `to` the leader, or one that the leader chooses. Gives its name and how long nothing was served.
    ///
    /// # Errors
    /// The node cannot lead, or nobody answers within the deadline.
    pub async fn transfer_leader(&self, to: Option<&str>) -> Result<(String, std::time::Duration), Error> {
        let what = || "handing the leadership over".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).transfer_leader(q).await };
        let request = v1::TransferLeaderRequest { to: to.unwrap_or_default().to_owned() };
        let answer = self.shared.cluster.call(&what, request, ask).await?;
        Ok((answer.leader, std::time::Duration::from_micros(answer.pause_us)))
    }

    /// Streams a backup of the metadata; `part` gets its bytes in order.
    ///
    /// # Errors
    /// No leader, cut off, or `part` failed. What `part` got is then no backup.
    pub async fn backup(&self, mut part: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<(), Error> {
        let what = || "backup of the metadata".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).backup(q).await };
        let mut parts = self.shared.cluster.call(&what, v1::BackupRequest {}, ask).await?;
        loop {
            let next = tokio::time::timeout(BACKUP_STALL, parts.message()).await;
            let next = next.map_err(|_| Error::new(ErrorCode::TimedOut, format!("{}: it stopped coming", what())))?;
            match next {
                Ok(Some(next)) => {
                    part(&next.data).map_err(|error| Error::new(ErrorCode::Io, format!("{}: {error}", what())))?
                }
                Ok(None) => return Ok(()),
                Err(status) => {
                    let error = RpcError::from(status);
                    return Err(Error::new(error.code, format!("{}: {}", what(), error.message)));
                }
            }
        }
    }

    /// Lets the cluster delete chunks that no version lists again, after a restore. Gives whether there was one.
    ///
    /// # Errors
    /// No answer within the deadline.
    pub async fn finish_restore(&self) -> Result<bool, Error> {
        let what = || "ending the time after a restore".to_owned();
        let ask = |c, q| async move { AdminServiceClient::new(c).finish_restore(q).await };
        Ok(self.shared.cluster.call(&what, v1::FinishRestoreRequest {}, ask).await?.was_restored)
    }

    /// State of the storage node at `address`, asked once and directly.
    ///
    /// # Errors
    /// It does not answer within the call's timeout.
    pub async fn node_status(&self, address: &str) -> Result<v1::NodeStatusResponse, Error> {
        let ask = |c| async move { StorageServiceClient::new(c).node_status(v1::NodeStatusRequest {}).await };
        self.ask_once("storage node", address, ask).await
    }

    /// Which of the chunks the storage node at `address` has; asked once and directly.
    ///
    /// # Errors
    /// It does not answer within the call's timeout.
    pub(crate) async fn stat_chunks(&self, address: &str, chunk_ids: Vec<bytes::Bytes>) -> Result<Vec<bool>, Error> {
        let request = v1::StatChunksRequest { chunk_ids };
        let ask = |c| async move { StorageServiceClient::new(c).stat_chunks(request).await };
        Ok(self.ask_once("storage node", address, ask).await?.present)
    }

    async fn ask_once<R, Fut>(&self, what: &str, address: &str, ask: impl FnOnce(Channel) -> Fut) -> Result<R, Error>
    where
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let options = &self.shared.options;
        let channel = transport::connect(address, options.connect_timeout)
            .map_err(|error| Error::new(ErrorCode::InvalidArgument, format!("{what}: {error}")))?;
        match tokio::time::timeout(options.rpc_timeout, ask(channel)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Error::from(RpcError::from(status)).context(&format!("{what} {address}"))),
            Err(_) => {
                let message = format!("{what} {address}: no answer within {:?}", options.rpc_timeout);
                Err(Error::new(ErrorCode::TimedOut, message))
            }
        }
    }

    /// Layout of the published version of a file, with the addresses of the nodes in it.
    ///
    /// # Errors
    /// `NotFound` also if the file was never published; `IsDirectory`; no answer within the deadline.
    pub async fn layout(&self, ino: InodeId) -> Result<(Attr, Layout, Vec<NodeAddress>), Error> {
        let by = v1::get_file_request::By::Ino(ino.0);
        let (known, layout, nodes) = self.get_file(by, &|| format!("layout of inode {ino}")).await?;
        Ok((attr(known)?, layout, nodes))
    }

    async fn get_file(
        &self,
        by: v1::get_file_request::By,
        what: &(dyn Fn() -> String + Sync),
    ) -> Result<(Option<v1::Attr>, Layout, Vec<NodeAddress>), Error> {
        let request = v1::GetFileRequest { by: Some(by) };
        let answer =
            self.shared.cluster.call(what, request, |c, q| async move { metadata(c).get_file(q).await }).await?;
        let layout =
            answer.layout.ok_or_else(|| Error::new(ErrorCode::NotFound, format!("{}: not published", what())))?;
        let (layout, nodes) = convert::layout(layout)?;
        self.shared.nodes.learn(nodes.clone());
        Ok((answer.attr, layout, nodes))
    }

    /// Opens the published version of a file for reading.
    ///
    /// # Errors
    /// As [`Dfs::layout`].
    pub async fn open_reader(&self, ino: InodeId) -> Result<Reader, Error> {
        // The version is pinned in a session.
        self.shared.cluster.session().await?;
        let (attr, layout, _) = self.layout(ino).await?;
        let layout = Arc::new(layout);
        self.shared.layouts.put(&layout);
        Ok(self.reader(attr, layout))
    }

    /// Opens a version for reading that somebody has open, whether it is the published one or not. Should its file have no name
    /// any more, nobody but the caller knows its attributes: those are `last`, but the size.
    ///
    /// # Errors
    /// `Stale` if it is gone; no answer within the deadline.
    pub async fn open_version(&self, file_id: FileId, last: Attr) -> Result<Reader, Error> {
        self.shared.cluster.session().await?;
        // Pinned before it is asked for, so that it cannot go in between.
        let _pin = self.pin(file_id);
        let by = v1::get_file_request::By::FileId(convert::id_bytes(file_id.as_bytes()));
        let (known, layout, _) = self.get_file(by, &|| format!("layout of version {file_id}")).await?;
        let layout = Arc::new(layout);
        self.shared.layouts.put(&layout);
        let attr = known.map_or_else(|| Ok(Attr { size: layout.size(), ..last }), |wire| attr(Some(wire)))?;
        Ok(self.reader(attr, layout))
    }

    /// Keeps a version that this client, or the process before it, has open.
    #[must_use]
    pub fn pin(&self, file_id: FileId) -> crate::Pin {
        self.shared.cluster.sessions.pin(file_id)
    }

    /// Opens the version that `attr` names, which the caller knows to be current enough: without a call if it was open
    /// lately.
    ///
    /// # Errors
    /// As [`Dfs::layout`].
    pub async fn open_reader_of(&self, attr: &Attr) -> Result<Reader, Error> {
        match attr.file_id.and_then(|file_id| self.shared.layouts.get(file_id)) {
            Some(layout) => Ok(self.reader(attr.clone(), layout)),
            None => self.open_reader(attr.ino).await,
        }
    }

    fn reader(&self, attr: Attr, layout: Arc<Layout>) -> Reader {
        let pin = self.shared.cluster.sessions.pin(layout.file_id());
        Reader::new(self.shared.clone(), attr, layout, pin)
    }

    /// A writer of the pending version that [`Dfs::create`] made.
    ///
    /// # Errors
    /// `InvalidArgument` if the file existed (use [`Dfs::open_writer`]); `SessionExpired` if the session has ended since.
    pub async fn open_new_writer(&self, created: &Created) -> Result<Writer, Error> {
        let Some(file_id) = created.file_id else {
            let message = format!("inode {} existed: it has no new pending version", created.attr.ino);
            return Err(Error::new(ErrorCode::InvalidArgument, message));
        };
        let session = self.shared.cluster.session().await?;
        if session.id != created.session {
            let message = format!("inode {}: the session in which it was created has ended", created.attr.ino);
            return Err(Error::new(ErrorCode::SessionExpired, message));
        }
        let start = Start { session, file_id, attr: created.attr.clone(), base: None, published: false };
        Ok(Writer::new(self.shared.clone(), self.settings().chunk_size, start))
    }

    /// A writer of a new version of an existing file, which starts with the published content or empty.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`; no answer within the deadline.
    pub async fn open_writer(&self, ino: InodeId, truncate: bool) -> Result<Writer, Error> {
        // In a task of its own: if the caller leaves meanwhile, dropping the writer ends the pending version.
        let dfs = self.clone();
        let opening = self.shared.cluster.tasks.spawn(async move {
            let what = format!("opening inode {ino} for writing");
            let op = Op::OpenWrite(v1::OpenWrite { ino: ino.0 });
            let (session, answer) = dfs.shared.cluster.mutate(what, op).await?;
            let file_id = convert::file_id(&answer.file_id)?;
            let attr = attr(answer.attr)?;
            let writer = dfs.start_writer(session.clone(), file_id, attr, truncate).await;
            if writer.is_err() {
                write::abandon(&dfs.shared, &session, ino, file_id);
            }
            writer
        });
        opening.await.map_err(|error| Error::new(ErrorCode::Internal, format!("opening inode {ino}: {error}")))?
    }

    async fn start_writer(
        &self,
        session: Arc<Session>,
        file_id: dfs_common::FileId,
        attr: Attr,
        truncate: bool,
    ) -> Result<Writer, Error> {
        let mut start = Start { session, file_id, attr, base: None, published: !truncate };
        if !truncate && start.attr.size > 0 {
            let (attr, layout, _) = self.layout(start.attr.ino).await?;
            let pin = self.shared.cluster.sessions.pin(layout.file_id());
            start.attr = attr;
            start.base = Some((layout, pin));
        }
        Ok(Writer::new(self.shared.clone(), self.settings().chunk_size, start))
    }
}
