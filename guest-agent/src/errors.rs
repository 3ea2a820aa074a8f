//! From an error inside the agent to what the host is told: one table, from kinds of error to ttRPC codes.
//!
//! The text is the error with its causes. It travels to `kubectl describe pod`, so it must help, and it leaves the guest, so no
//! error type in this crate may hold a secret, an environment or an argument list.

use kata_cc_agent_protocol::rpc::ttrpc::{self, Code};
use thiserror::Error;

use crate::container::rootfs::RootfsError;
use crate::container::runtime::RuntimeError;
use crate::container::spec::SpecError;
use crate::container::{ContainerError, InvalidId};
use crate::copy_file::CopyError;
use crate::image::ImageError;
use crate::network::NetworkError;
use crate::sealed::UnsealError;
use crate::storage::StorageError;

/// Why a request was not carried out.
#[derive(Debug, Error)]
pub(crate) enum RpcError {
    /// The policy says no.
    #[error(transparent)]
    Denied(#[from] kata_cc_policy::Denied),
    /// A policy was not taken.
    #[error(transparent)]
    Gate(#[from] kata_cc_policy::GateError),
    /// A policy's signature was not accepted.
    #[error(transparent)]
    Envelope(#[from] kata_cc_policy::envelope::EnvelopeError),
    /// The container is not there, or not as it should be.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The specification was refused.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The root file system failed.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The image was not to be had.
    #[error(transparent)]
    Image(Box<ImageError>),
    /// A sealed secret was not opened.
    #[error(transparent)]
    Sealed(Box<UnsealError>),
    /// It could not be recorded, so it was not done.
    #[error(transparent)]
    Log(#[from] kata_cc_attester::runtime_log::RuntimeLogError),
    /// A storage was refused.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file was not copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The network was not set up.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A request that makes no sense, in words.
    #[error("{0}")]
    Invalid(String),
    /// A request that makes no sense now, in words.
    #[error("{0}")]
    State(&'static str),
    /// This agent has no such method.
    #[error("the agent of a confidential guest does not implement {0}")]
    Unimplemented(&'static str),
    /// The process has ended, or takes no more input.
    #[error("the process has ended or has closed its input")]
    Ended,
    /// The kernel refused.
    #[error("{step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

impl From<ImageError> for RpcError {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

impl From<UnsealError> for RpcError {
    fn from(error: UnsealError) -> Self {
        Self::Sealed(Box::new(error))
    }
}

impl From<InvalidId> for RpcError {
    fn from(error: InvalidId) -> Self {
        Self::Container(error.into())
    }
}

/// Names a step for [`RpcError::Io`].
pub(crate) fn at<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> RpcError {
    move |source| RpcError::Io { step, source: source.into() }
}

impl RpcError {
    /// The code the host sees.
    #[must_use]
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Denied(_) | Self::Gate(_) | Self::Envelope(_) => Code::PERMISSION_DENIED,
            Self::Container(error) => match error {
                ContainerError::Id(_) => Code::INVALID_ARGUMENT,
                ContainerError::Exists(_) | ContainerError::Used(_) | ContainerError::ProcessExists(..) => Code::ALREADY_EXISTS,
                ContainerError::NotFound(_) | ContainerError::NoProcess(..) => Code::NOT_FOUND,
                ContainerError::State { .. } => Code::FAILED_PRECONDITION,
                ContainerError::TooMany(_) => Code::RESOURCE_EXHAUSTED,
            },
            Self::Spec(_) | Self::Storage(_) | Self::Copy(_) | Self::Invalid(_) => Code::INVALID_ARGUMENT,
            Self::Network(error) => match error {
                NetworkError::Value { .. } | NetworkError::Loopback => Code::INVALID_ARGUMENT,
                NetworkError::NoInterface(_) => Code::NOT_FOUND,
                NetworkError::Socket(_) | NetworkError::Kernel { .. } => Code::INTERNAL,
            },
            Self::Image(error) => error.code(),
            Self::Sealed(error) => error.code(),
            Self::State(_) | Self::Log(_) => Code::FAILED_PRECONDITION,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            // What containerd knows as "process already finished".
            Self::Ended => Code::NOT_FOUND,
            Self::Runtime(_) | Self::Rootfs(_) | Self::Io { .. } => Code::INTERNAL,
        }
    }
}

impl From<RpcError> for ttrpc::Error {
    fn from(error: RpcError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), with_causes(&error)))
    }
}

/// An error and its causes, each once.
#[must_use]
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_who_is_to_act() {
        let id = "c".parse().unwrap();
        let cases = [
            (RpcError::from(ContainerError::NotFound(id)), Code::NOT_FOUND),
            (RpcError::from(InvalidId), Code::INVALID_ARGUMENT),
            (RpcError::from(SpecError::Missing("process")), Code::INVALID_ARGUMENT),
            (RpcError::from(NetworkError::Loopback), Code::INVALID_ARGUMENT),
            (RpcError::Unimplemented("AddSwap"), Code::UNIMPLEMENTED),
            (RpcError::Ended, Code::NOT_FOUND),
            (RpcError::State("x"), Code::FAILED_PRECONDITION),
        ];
        for (error, code) in cases {
            assert_eq!(error.code(), code, "{error}");
        }
    }

    #[test]
    fn causes_are_told_once() {
        let error = at("writing")(std::io::Error::other("disk full"));
        assert_eq!(with_causes(&error), "writing: disk full");
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else {
            panic!("expected a status");
        };
        assert_eq!(status.message, "writing: disk full");
    }
}
