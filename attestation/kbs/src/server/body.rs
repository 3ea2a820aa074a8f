//! Request bodies: bounded in size and in time, before anything is parsed.

use super::error::ApiError;
use axum::body::{Bytes, HttpBody as _};
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use std::time::Duration;

/// Largest body.
pub const MAX_BODY: usize = 2 * 1024 * 1024;
/// Largest body of `/auth`, which is some hundred bytes and which anybody may send.
pub const MAX_AUTH_BODY: usize = 16 * 1024;
/// A client that needs longer to send its body is cut off.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

fn too_large() -> ApiError {
    let detail = format!("the body is larger than this path takes: {MAX_AUTH_BODY} bytes for /auth, {MAX_BODY} for others");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge", detail)
}

/// A body within the limits.
#[derive(Debug)]
pub struct Bounded(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Bounded {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // What will be too large need not be waited for.
        if request.body().size_hint().lower() > MAX_BODY as u64 {
            return Err(too_large());
        }
        match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await {
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            Ok(Err(BytesRejection::FailedToBufferBody(e))) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
            Ok(Err(_)) => Err(ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", "the body could not be read")),
            Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "Timeout", "the body did not arrive in time")),
        }
    }
}
