//! What can go wrong in a task request, and the one table that turns it into a ttRPC status.
//!
//! What the agent answered travels on unchanged: it was written for the pod's owner.

use std::io;

use kata_cc_policy::initdata::InitdataError;
use kata_cc_vmm::config::ConfigError;
use kata_cc_vmm::plan::PlanError;
use kata_cc_vmm::qmp::QmpError;
use kata_cc_vmm::run::LaunchError;
use kata_cc_vmm::tee::snp::id_block::IdBlockFileError;

use crate::kind::KindError;
use crate::network::NetworkError;
use crate::oci::SpecError;
use crate::volumes::VolumeError;

/// An error and its cause, which a status has no other place for.
fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Why a task request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The runtime class.
    #[error("runtime configuration: {0}")]
    Config(#[from] ConfigError),
    /// A file that the runtime class names.
    #[error("runtime configuration: {}", with_cause(.0))]
    IdBlock(#[from] IdBlockFileError),
    /// The bundle.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The annotations.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// The initdata annotation.
    #[error("annotation {name}: {0}", name = kata_cc_vmm::plan::INITDATA_ANNOTATION)]
    Initdata(#[from] InitdataError),
    /// The request for a machine.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The pod's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The machine.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The machine's monitor.
    #[error(transparent)]
    Monitor(#[from] QmpError),
    /// A mount.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A file, socket or pipe of the host's.
    #[error("{step}: {source}")]
    Host {
        /// What was being done.
        step: String,
        /// What the system said.
        source: io::Error,
    },
    /// The guest went away.
    #[error("{0}")]
    Guest(String),
    /// The machine ended, or its time did, before anything in it reached the host.
    #[error("{0}")]
    Silent(String),
    /// The agent's own words, or the transport's.
    #[error("agent: {0}")]
    Agent(ttrpc::Error),
    /// Nobody of that name.
    #[error("{0} does not exist")]
    NotFound(String),
    /// Somebody of that name.
    #[error("{0} exists already")]
    Exists(String),
    /// Not in this state.
    #[error("{0}")]
    State(String),
    /// A request that cannot be meant.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// For `map_err` on I/O.
    pub(crate) fn host(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Host { step, source }
    }
}

impl From<ttrpc::Error> for Error {
    fn from(error: ttrpc::Error) -> Self {
        Self::Agent(error)
    }
}

/// The message with the causes that the message itself does not repeat.
fn full_message(error: &Error) -> String {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        cause = error.source();
    }
    message
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        use ttrpc::Code;
        let code = match &error {
            Error::Agent(_) => Code::UNKNOWN,
            Error::Spec(_) | Error::Kind(_) | Error::Initdata(_) | Error::Plan(_) | Error::Volume(_) | Error::Invalid(_) => {
                Code::INVALID_ARGUMENT
            }
            Error::Config(_) | Error::IdBlock(_) | Error::State(_) => Code::FAILED_PRECONDITION,
            Error::NotFound(_) => Code::NOT_FOUND,
            Error::Exists(_) => Code::ALREADY_EXISTS,
            Error::Guest(_) | Error::Silent(_) => Code::UNAVAILABLE,
            Error::Network(_) | Error::Launch(_) | Error::Monitor(_) | Error::Host { .. } => Code::INTERNAL,
        };
        match error {
            Error::Agent(theirs) => theirs,
            ours => Self::RpcStatus(ttrpc::get_status(code, full_message(&ours))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(error: Error) -> (ttrpc::Code, String) {
        match ttrpc::Error::from(error) {
            ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_agents_words_travel_unchanged() {
        let theirs = ttrpc::get_status(ttrpc::Code::PERMISSION_DENIED, "CreateContainerRequest is denied by policy");
        let (code, message) = status(Error::Agent(ttrpc::Error::RpcStatus(theirs)));
        assert_eq!((code, message.as_str()), (ttrpc::Code::PERMISSION_DENIED, "CreateContainerRequest is denied by policy"));
    }

    #[test]
    fn each_fault_has_its_code_and_names_its_cause() {
        assert_eq!(status(Error::NotFound("container a".into())), (ttrpc::Code::NOT_FOUND, "container a does not exist".into()));
        assert_eq!(status(PlanError::NoInitdata.into()).0, ttrpc::Code::INVALID_ARGUMENT);
        let missing = SpecError::Read { path: "/x/config.json".into(), source: io::Error::other("gone") };
        assert_eq!(status(missing.into()).1, "cannot read /x/config.json: gone");
    }
}
