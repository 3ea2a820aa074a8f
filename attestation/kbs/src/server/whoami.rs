//! `GET /kbs/v0/whoami`: whom the broker takes an administrator for, and what that role may do.

use super::Broker;
use super::error::ApiError;
use crate::admin::role::Granted;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;
use std::sync::Arc;

/// The answer.
#[derive(Debug, Serialize)]
pub struct Whoami {
    /// `key <start of its id>` or `<issuer> <sub>`, as in the audit log.
    subject: String,
    role: String,
    may: Vec<Granted>,
}

/// Needs a token that is good and a role that is known, and no permission.
pub async fn whoami(State(broker): State<Arc<Broker>>, headers: HeaderMap) -> Result<Json<Whoami>, ApiError> {
    let administrator = broker.require_known(&headers, "/kbs/v0/whoami").await?;
    let may = broker.admins.granted(&administrator);
    Ok(Json(Whoami { subject: administrator.name().to_owned(), role: administrator.role().to_owned(), may }))
}
