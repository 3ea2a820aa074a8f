//! What can go wrong with a snapshot call, and the gRPC code containerd expects for it.
//!
//! containerd decides by these codes (a missing parent makes it unpack, an existing target makes it skip the layer), so the table
//! in [`From<SnapshotError>`] is part of the interface and tested.

use std::path::PathBuf;

/// Why a call was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// No such snapshot.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// The key, the name or the target is taken.
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    /// The call does not fit the state of things.
    #[error("{0}")]
    Precondition(String),
    /// The call itself is malformed.
    #[error("{0}")]
    Invalid(String),
    /// The state directory cannot be read or written.
    #[error("cannot {action} {}; check the state directory's disk and permissions", path.display())]
    State {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// A bug or a dying process.
    #[error("internal error: {0}")]
    Internal(String),
}

impl From<SnapshotError> for tonic::Status {
    fn from(error: SnapshotError) -> Self {
        let code = match &error {
            SnapshotError::NotFound(_) => tonic::Code::NotFound,
            SnapshotError::AlreadyExists(_) => tonic::Code::AlreadyExists,
            SnapshotError::Precondition(_) => tonic::Code::FailedPrecondition,
            SnapshotError::Invalid(_) => tonic::Code::InvalidArgument,
            SnapshotError::State { .. } | SnapshotError::Internal(_) => tonic::Code::Internal,
        };
        let message = match &error {
            SnapshotError::State { source, .. } => format!("{error}: {source}"),
            _ => error.to_string(),
        };
        tonic::Status::new(code, message)
    }
}
