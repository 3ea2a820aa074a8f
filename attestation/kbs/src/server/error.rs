//! Refusals on the wire: CoCo's body `{"type", "detail"}` with the status code that says whose fault it is.

use crate::rego::PolicyError;
use crate::resources::{ResourceError, VaultError};
use crate::session::SessionError;
use crate::store::StoreError;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kata_cc_kbs_protocol::ServerError;
use kata_cc_kbs_protocol::message::{ErrorBody, MessageError};

/// A refusal.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

impl ApiError {
    /// With CoCo's variant name and a text that is safe for whoever asked.
    pub fn new(status: StatusCode, variant: &str, detail: impl Into<String>) -> Self {
        Self { status, body: ErrorBody::new(variant, detail.into()) }
    }

    /// Status code.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Something of ours failed. The caller learns only that; the log has the cause.
    pub fn internal(what: &'static str, cause: &dyn std::error::Error) -> Self {
        tracing::error!(error = %causes(cause), "{what}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal", "internal error; the broker's log has the cause")
    }
}

/// An error and what caused it, on one line, for the log.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut causes = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        causes = format!("{causes}: {source}");
        next = source.source();
    }
    causes
}

impl From<ServerError> for ApiError {
    fn from(e: ServerError) -> Self {
        let status = StatusCode::from_u16(e.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if status.is_server_error() {
            return Self::internal("protocol", &e);
        }
        Self { status, body: e.body() }
    }
}

impl From<MessageError> for ApiError {
    fn from(e: MessageError) -> Self {
        ServerError::from(e).into()
    }
}

impl From<SessionError> for ApiError {
    fn from(e: SessionError) -> Self {
        let (status, variant) = match e {
            SessionError::Full => (StatusCode::TOO_MANY_REQUESTS, "TooManySessions"),
            SessionError::Unknown => (StatusCode::UNAUTHORIZED, "SessionNotFound"),
            SessionError::Attested => (StatusCode::CONFLICT, "SessionAttested"),
            SessionError::Store(e) => return e.into(),
        };
        Self::new(status, variant, e.to_string())
    }
}

impl From<StoreError> for ApiError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Full(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, "StoreFull", e.to_string()),
            StoreError::Unavailable(_) => {
                tracing::error!(error = %causes(&e), "store");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "StoreUnavailable",
                    "the broker's store does not answer now: try again in a while",
                )
            }
            e => Self::internal("store", &e),
        }
    }
}

impl From<ResourceError> for ApiError {
    fn from(e: ResourceError) -> Self {
        match e {
            ResourceError::Store(e) => e.into(),
            ResourceError::Vault(e) => e.into(),
        }
    }
}

impl From<VaultError> for ApiError {
    /// The caller learns whose fault it is, and the mount: not the caller's, who has no part in it.
    fn from(e: VaultError) -> Self {
        tracing::error!(error = %causes(&e), "vault");
        let (status, variant) = match e {
            VaultError::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "VaultUnavailable"),
            VaultError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge"),
            VaultError::TooMany(_) => (StatusCode::INSUFFICIENT_STORAGE, "StoreFull"),
            VaultError::Denied { .. }
            | VaultError::NoMount(_)
            | VaultError::Engine(_)
            | VaultError::Form { .. }
            | VaultError::Status { .. } => (StatusCode::BAD_GATEWAY, "VaultRefused"),
            VaultError::TokenFile(..) | VaultError::TokenMode(_) | VaultError::TokenForm(_) => {
                return Self::internal("the Vault's token", &e);
            }
        };
        Self::new(status, variant, e.to_string())
    }
}

impl From<PolicyError> for ApiError {
    /// A stored policy that fails is the administrator's to repair; a guest is told that there is no decision.
    fn from(e: PolicyError) -> Self {
        Self::internal("policy", &e)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.body).unwrap_or_default();
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}
