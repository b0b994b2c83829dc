//! Changes of the metadata membership.

use dfs_proto::{status::RpcError, transport::check_address, v1};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};

use super::{Service, invalid};
use crate::{
    config::{check_name, raft_id},
    fsm::Fact,
    raft::{Handle, Member, Step},
};

/// Messages of progress that wait for the client.
const STEPS_MAX: usize = 16;

fn find(raft: &Handle, name: &str) -> Option<Member> {
    raft.members().into_iter().map(|status| status.member).find(|member| member.name == name)
}

fn removed(member: Member) -> Fact {
    let Member { raft_id, name, address } = member;
    Fact::MemberRemoved { raft_id, name, address }
}

impl Service {
    /// Answers with progress; the change goes on when the client leaves.
    pub(super) fn handle_add_meta_node(
        &self,
        request: v1::AddMetaNodeRequest,
    ) -> Result<impl Stream<Item = Result<v1::MetaChange, tonic::Status>> + Send + use<>, RpcError> {
        check_name(&request.name).map_err(invalid)?;
        check_address(&request.address).map_err(|error| invalid(error.to_string()))?;
        let new = Member { raft_id: raft_id(&request.name), name: request.name, address: request.address };
        let (steps, progress) = mpsc::channel::<Step>(STEPS_MAX);
        let (answers, stream) = mpsc::channel(STEPS_MAX);
        let (raft, control) = (self.raft.clone(), self.control.clone());
        tokio::spawn(async move {
            let leaves = find(&raft, &request.replaces);
            let added = new.clone();
            let replaces = Some(request.replaces.as_str()).filter(|name| !name.is_empty());
            let adding = raft.add_member(new, replaces, &steps);
            let told = answers.clone();
            let telling = async move {
                let mut progress = ReceiverStream::new(progress);
                while let Some(Step { what, have, want }) = progress.next().await {
                    let change = v1::MetaChange { step: what, have_index: have, want_index: want, done: false };
                    // A client that does not read must not stop the change.
                    drop(told.try_send(Ok(change)));
                }
            };
            let outcome = tokio::select! {
                outcome = adding => outcome,
                () = telling => Ok(()),
            };
            if outcome.is_ok() {
                let Member { raft_id, name, address } = added;
                control.record_event(Fact::MemberAdded { raft_id, name, address });
                leaves.into_iter().for_each(|member| control.record_event(removed(member)));
            }
            let last = outcome.map(|()| v1::MetaChange { done: true, ..v1::MetaChange::default() });
            // Nobody listens if the client has left.
            drop(answers.send(last.map_err(tonic::Status::from)).await);
        });
        Ok(ReceiverStream::new(stream))
    }

    pub(super) async fn handle_remove_meta_node(
        &self,
        request: v1::RemoveMetaNodeRequest,
    ) -> Result<v1::RemoveMetaNodeResponse, RpcError> {
        let leaves = find(&self.raft, &request.name);
        let voters = self.raft.remove_member(&request.name).await?;
        leaves.into_iter().for_each(|member| self.control.record_event(removed(member)));
        Ok(v1::RemoveMetaNodeResponse { voters })
    }

    pub(super) async fn handle_transfer_leader(
        &self,
        request: v1::TransferLeaderRequest,
    ) -> Result<v1::TransferLeaderResponse, RpcError> {
        let to = Some(request.to.as_str()).filter(|name| !name.is_empty());
        let (leader, pause) = self.raft.hand_over(to).await?;
        let pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        Ok(v1::TransferLeaderResponse { leader, pause_us })
    }
}
