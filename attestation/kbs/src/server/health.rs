//! For machines that watch: health, readiness, metrics, and the public key of tokens. Open to everybody; nothing secret in them.

use super::Broker;
use super::error::ApiError;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use std::sync::Arc;

/// The process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The store answers too.
pub async fn readyz(State(broker): State<Arc<Broker>>) -> Result<&'static str, ApiError> {
    broker.store.run(|db| db.decisions(1)).await?;
    Ok("ok\n")
}

/// Prometheus text.
pub async fn metrics(State(broker): State<Arc<Broker>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], broker.metrics.render(broker.sessions.len()))
}

/// The key that tokens are verified with (RFC 7517).
pub async fn jwks(State(broker): State<Arc<Broker>>) -> Json<Value> {
    Json(json!({"keys": [broker.signer.public_jwk()]}))
}
