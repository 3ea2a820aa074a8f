//! For machines that watch: health, readiness, metrics, and the public key of tokens. Open to everybody; nothing secret in them.

use super::Broker;
use super::error::ApiError;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};
use std::sync::Arc;

/// The process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// Somebody can administer, and the store answers, and the Vault where the resources are in one.
pub async fn readyz(State(broker): State<Arc<Broker>>) -> Result<&'static str, ApiError> {
    if broker.admins.is_empty() {
        let detail = "neither an administrator's key nor an identity provider is there: nothing is served";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "NotReady", detail));
    }
    broker.store.ready().await?;
    broker.resources.ready().await?;
    Ok("ok\n")
}

/// Prometheus text.
pub async fn metrics(State(broker): State<Arc<Broker>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], broker.metrics.render(broker.store.session_count().await.ok()))
}

/// The key that tokens are verified with (RFC 7517).
pub async fn jwks(State(broker): State<Arc<Broker>>) -> Json<Value> {
    Json(json!({"keys": [broker.tokens.signer().public_jwk()]}))
}
