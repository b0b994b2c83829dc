//! The generated traits, each call handed on to its group.

use dfs_proto::v1::{self, admin_service_server::AdminService, metadata_service_server::MetadataService};
use tonic::{Request, Response, Status};

use super::Service;

/// A stream of answers.
type Answers<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;
/// A call that is answered by one.
type Streaming<'future, T> = std::pin::Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send + 'future>>;

/// One method of a generated trait that hands the message on to the inherent method of the same meaning.
macro_rules! hand_on {
    ($($name:ident ( $request:ident ) -> $response:ident => $method:ident;)*) => {
        $(
            fn $name<'life, 'future>(
                &'life self,
                request: Request<v1::$request>,
            ) -> std::pin::Pin<
                Box<dyn Future<Output = Result<Response<v1::$response>, Status>> + Send + 'future>,
            >
            where
                'life: 'future,
                Self: 'future,
            {
                Box::pin(async move {
                    match self.$method(request.into_inner()).await {
                        Ok(response) => Ok(Response::new(response)),
                        Err(error) => Err(error.into()),
                    }
                })
            }
        )*
    };
}

impl MetadataService for Service {
    hand_on! {
        open_session(OpenSessionRequest) -> OpenSessionResponse => handle_open_session;
        renew_session(RenewSessionRequest) -> RenewSessionResponse => handle_renew_session;
        close_session(CloseSessionRequest) -> CloseSessionResponse => handle_close_session;
        lookup(LookupRequest) -> AttrResponse => handle_lookup;
        get_attr(GetAttrRequest) -> AttrResponse => handle_get_attr;
        read_dir(ReadDirRequest) -> ReadDirResponse => handle_read_dir;
        read_link(ReadLinkRequest) -> ReadLinkResponse => handle_read_link;
        get_xattr(GetXattrRequest) -> GetXattrResponse => handle_get_xattr;
        list_xattr(ListXattrRequest) -> ListXattrResponse => handle_list_xattr;
        stat_fs(StatFsRequest) -> StatFsResponse => handle_stat_fs;
        watch(WatchRequest) -> WatchResponse => handle_watch;
        lock(LockRequest) -> LockResponse => handle_lock;
        mutate(MutateRequest) -> MutateResponse => handle_mutate;
        get_file(GetFileRequest) -> GetFileResponse => handle_get_file;
        allocate_chunks(AllocateChunksRequest) -> AllocateChunksResponse => handle_allocate_chunks;
        get_chunk_locations(GetChunkLocationsRequest) -> GetChunkLocationsResponse => handle_get_chunk_locations;
        list_files(ListFilesRequest) -> ListFilesResponse => handle_list_files;
        report_corruption(ReportCorruptionRequest) -> ReportCorruptionResponse => handle_report_corruption;
        register_node(RegisterNodeRequest) -> RegisterNodeResponse => handle_register_node;
        deregister_node(DeregisterNodeRequest) -> DeregisterNodeResponse => handle_deregister_node;
        heartbeat(HeartbeatRequest) -> HeartbeatResponse => handle_heartbeat;
        commit_chunk(CommitChunkRequest) -> CommitChunkResponse => handle_commit_chunk;
        report_repair_result(ReportRepairResultRequest) -> ReportRepairResultResponse => handle_report_repair_result;
    }
}

impl AdminService for Service {
    hand_on! {
        cluster_status(ClusterStatusRequest) -> ClusterStatusResponse => handle_cluster_status;
        meta_status(MetaStatusRequest) -> MetaStatusResponse => handle_meta_status;
        file_users(FileUsersRequest) -> FileUsersResponse => handle_file_users;
        list_events(ListEventsRequest) -> ListEventsResponse => handle_list_events;
        trigger_snapshot(TriggerSnapshotRequest) -> TriggerSnapshotResponse => handle_trigger_snapshot;
        list_trash(ListTrashRequest) -> ListTrashResponse => handle_list_trash;
        empty_trash(EmptyTrashRequest) -> EmptyTrashResponse => handle_empty_trash;
        trash_retention(TrashRetentionRequest) -> TrashRetentionResponse => handle_trash_retention;
        repair_status(RepairStatusRequest) -> RepairStatusResponse => handle_repair_status;
        repair_queue(RepairQueueRequest) -> RepairQueueResponse => handle_repair_queue;
        repair_now(RepairNowRequest) -> RepairNowResponse => handle_repair_now;
        set_repair_limits(SetRepairLimitsRequest) -> SetRepairLimitsResponse => handle_set_repair_limits;
        scrub_status(ScrubStatusRequest) -> ScrubStatusResponse => handle_scrub_status;
        order_scrub(OrderScrubRequest) -> OrderScrubResponse => handle_order_scrub;
        remove_meta_node(RemoveMetaNodeRequest) -> RemoveMetaNodeResponse => handle_remove_meta_node;
        transfer_leader(TransferLeaderRequest) -> TransferLeaderResponse => handle_transfer_leader;
        finish_restore(FinishRestoreRequest) -> FinishRestoreResponse => handle_finish_restore;
        change_node(ChangeNodeRequest) -> ChangeNodeResponse => handle_change_node;
        rebalance(RebalanceRequest) -> RebalanceResponse => handle_rebalance;
    }

    type AddMetaNodeStream = Answers<v1::MetaChange>;
    type BackupStream = Answers<v1::BackupPart>;

    fn add_meta_node<'life, 'future>(
        &'life self,
        request: Request<v1::AddMetaNodeRequest>,
    ) -> Streaming<'future, Self::AddMetaNodeStream>
    where
        'life: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            let answers = self.handle_add_meta_node(request.into_inner()).map_err(Status::from)?;
            Ok(Response::new(Box::pin(answers) as Self::AddMetaNodeStream))
        })
    }

    fn backup<'life, 'future>(
        &'life self,
        request: Request<v1::BackupRequest>,
    ) -> Streaming<'future, Self::BackupStream>
    where
        'life: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            let answers = self.handle_backup(request.into_inner()).await.map_err(Status::from)?;
            Ok(Response::new(Box::pin(answers) as Self::BackupStream))
        })
    }
}
