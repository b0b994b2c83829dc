//! `ErrorCode` <-> `tonic::Status`.
//!
//! The code travels in the status details; the gRPC code beside it is for tools that do not know dfs.

use bytes::Bytes;
use dfs_common::ErrorCode;
use prost::Message;
use tonic::{Code, Status};

use crate::v1::ErrorDetail;

/// A failed call in domain terms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct RpcError {
    /// Why.
    pub code: ErrorCode,
    /// What failed, on what.
    pub message: String,
    /// Address of the metadata leader, when the answering node knew it.
    pub leader: Option<String>,
}

impl RpcError {
    /// An error without a leader hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), leader: None }
    }
}

impl From<ErrorCode> for RpcError {
    fn from(code: ErrorCode) -> Self {
        Self::new(code, code.to_string())
    }
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Self {
        let detail = ErrorDetail {
            code: error.code as u32,
            message: error.message.clone(),
            leader: error.leader.unwrap_or_default(),
        };
        Self::with_details(grpc_code(error.code), error.message, Bytes::from(detail.encode_to_vec()))
    }
}

impl From<Status> for RpcError {
    /// A status without our detail comes from the transport: the connection could not be made or broke. Whether the request
    /// took effect is then unknown.
    fn from(status: Status) -> Self {
        if !status.details().is_empty()
            && let Ok(detail) = ErrorDetail::decode(status.details())
            && let Some(code) = ErrorCode::from_wire(detail.code)
        {
            return Self { code, message: detail.message, leader: Some(detail.leader).filter(|l| !l.is_empty()) };
        }
        let mut message = status.message().to_owned();
        let mut source = std::error::Error::source(&status);
        while let Some(error) = source {
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = error.source();
        }
        Self::new(transport_code(status.code()), message)
    }
}

fn grpc_code(code: ErrorCode) -> Code {
    match code {
        ErrorCode::NotFound | ErrorCode::NoAttribute | ErrorCode::ChunkMissing => Code::NotFound,
        ErrorCode::AlreadyExists => Code::AlreadyExists,
        ErrorCode::NameTooLong | ErrorCode::InvalidArgument => Code::InvalidArgument,
        ErrorCode::NotPermitted | ErrorCode::PermissionDenied | ErrorCode::ReadOnly => Code::PermissionDenied,
        ErrorCode::NotDirectory
        | ErrorCode::IsDirectory
        | ErrorCode::NotEmpty
        | ErrorCode::TooManyLinks
        | ErrorCode::NotLeader
        | ErrorCode::SessionExpired
        | ErrorCode::Stale
        | ErrorCode::WrongNode
        | ErrorCode::WrongCluster
        | ErrorCode::Incompatible => Code::FailedPrecondition,
        ErrorCode::TooLarge => Code::OutOfRange,
        ErrorCode::NoSpace | ErrorCode::Overloaded | ErrorCode::NotEnoughNodes => Code::ResourceExhausted,
        ErrorCode::NotSupported => Code::Unimplemented,
        ErrorCode::Unavailable => Code::Unavailable,
        ErrorCode::Indeterminate => Code::Unknown,
        ErrorCode::TimedOut => Code::DeadlineExceeded,
        ErrorCode::Corrupt => Code::DataLoss,
        ErrorCode::Io | ErrorCode::Internal => Code::Internal,
    }
}

fn transport_code(code: Code) -> ErrorCode {
    match code {
        Code::DeadlineExceeded => ErrorCode::TimedOut,
        Code::Unimplemented => ErrorCode::Incompatible,
        Code::InvalidArgument | Code::OutOfRange => ErrorCode::InvalidArgument,
        Code::PermissionDenied | Code::Unauthenticated => ErrorCode::PermissionDenied,
        Code::ResourceExhausted => ErrorCode::Overloaded,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => ErrorCode::Indeterminate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for code in ErrorCode::ALL {
            let sent = RpcError { code, message: "m".into(), leader: Some("h:1".into()) };
            assert_eq!(RpcError::from(Status::from(sent.clone())), sent);
        }
    }

    #[test]
    fn a_broken_connection_is_indeterminate_and_retryable() {
        let error = RpcError::from(Status::unavailable("tcp connect error"));
        assert_eq!(error.code, ErrorCode::Indeterminate);
        assert!(error.code.is_retryable());
    }
}
