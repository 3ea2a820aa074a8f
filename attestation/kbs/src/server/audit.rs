//! `GET /kbs/v0/audit` and `GET /kbs/v0/audit/<id>`: decisions, for administrators.

use super::Broker;
use super::error::ApiError;
use crate::admin::role::Permission;
use crate::audit::Action;
use crate::store::AuditQuery;
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use std::sync::Arc;

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;

/// `?limit=&since=&before=&action=&allowed=`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filters {
    limit: Option<u32>,
    since: Option<u64>,
    before: Option<i64>,
    action: Option<Action>,
    allowed: Option<bool>,
}

/// Newest first.
pub async fn list(
    State(broker): State<Arc<Broker>>,
    filters: Result<Query<Filters>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Vec<serde_json::Value>>, ApiError> {
    broker.require_admin(&headers, Permission::ReadAudit, "/kbs/v0/audit").await?;
    let Query(filters) = filters.map_err(|_| {
        let expected =
            "expected any of limit=<number>, since=<Unix time>, before=<id>, action=<attest, read-resource, …>, allowed=<true or false>";
        ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", expected)
    })?;
    let query = AuditQuery {
        limit: filters.limit.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT),
        since: filters.since,
        before: filters.before,
        id: None,
        action: filters.action,
        allowed: filters.allowed,
    };
    Ok(Json(broker.store.decisions(query).await?))
}

/// One decision.
pub async fn one(
    State(broker): State<Arc<Broker>>,
    id: Result<Path<i64>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<serde_json::Value>, ApiError> {
    let id = id.map(|Path(id)| id).ok();
    let path = format!("/kbs/v0/audit/{}", id.map_or_else(String::new, |id| id.to_string()));
    broker.require_admin(&headers, Permission::ReadAudit, &path).await?;
    let id = id.ok_or_else(|| ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", "expected the number of a decision"))?;
    let query = AuditQuery { limit: 1, id: Some(id), ..AuditQuery::default() };
    let found = broker.store.decisions(query).await?.pop();
    let gone = || {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "DecisionNotFound",
            format!("there is no decision {id}: it was never made, or newer ones of its kind took its place"),
        )
    };
    found.map(Json).ok_or_else(gone)
}
