//! The services of a storage node.
//!
//! Calls that carry chunk bytes are taken before the generated server, which would copy the bytes, and handled on raw bodies
//! ([`dfs_proto::stream`]); all others go to the generated server. Both speak the same protocol.

mod check;
mod control;
mod get;
mod put;
mod replica;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use dfs_proto::v1::storage_service_server::StorageServiceServer;
use http::{Request, Response};
use tonic::{body::Body, server::NamedService};
use tower_service::Service;

use crate::node::Node;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// `dfs.v1.StorageService`.
#[derive(Clone, Debug)]
pub struct Storage {
    node: Arc<Node>,
    control: StorageServiceServer<control::Control>,
}

impl Storage {
    /// The service of `node`.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        let control = StorageServiceServer::new(control::Control::new(node.clone()));
        Self { node, control }
    }
}

impl NamedService for Storage {
    const NAME: &'static str = "dfs.v1.StorageService";
}

impl Service<Request<Body>> for Storage {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let node = self.node.clone();
        match request.uri().path() {
            "/dfs.v1.StorageService/PutChunk" => {
                Box::pin(async move { Ok(put::put_chunk(node, request.into_body()).await) })
            }
            "/dfs.v1.StorageService/GetChunk" => {
                Box::pin(async move { Ok(get::get_chunk(node, request.into_body()).await) })
            }
            _ => Box::pin(self.control.call(request)),
        }
    }
}

/// `dfs.v1.ReplicationService`.
#[derive(Clone, Debug)]
pub struct Replication {
    node: Arc<Node>,
}

impl Replication {
    /// The service of `node`.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl NamedService for Replication {
    const NAME: &'static str = "dfs.v1.ReplicationService";
}

impl Service<Request<Body>> for Replication {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        let node = self.node.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                crate::replicate::PATH => replica::replicate_chunk(&node, request.into_body()),
                _ => tonic::Status::unimplemented("no such call").into_http(),
            })
        })
    }
}
