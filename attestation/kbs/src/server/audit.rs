//! `GET /kbs/v0/audit`: the last decisions, for administrators.

use super::Broker;
use super::error::ApiError;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use std::sync::Arc;

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// `?limit=`.
#[derive(Debug, Deserialize)]
pub struct Limit {
    limit: Option<u32>,
}

/// Newest first.
pub async fn list(
    State(broker): State<Arc<Broker>>,
    query: Result<Query<Limit>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Vec<serde_json::Value>>, ApiError> {
    broker.require_admin(&headers, "GET audit").await?;
    let Query(Limit { limit }) =
        query.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", "expected ?limit=<number> or no query"))?;
    let limit = limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
    Ok(Json(broker.store.run(move |db| db.decisions(limit)).await?))
}
