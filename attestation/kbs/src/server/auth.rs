//! `POST /kbs/v0/auth`: opens a session and hands out its challenge. Open to everybody.

use super::Broker;
use super::body::Bounded;
use super::error::ApiError;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use kata_cc_kbs_protocol::AwaitAttest;
use kata_cc_kbs_protocol::message::Request;
use std::sync::Arc;

/// Request to challenge.
pub async fn auth(State(broker): State<Arc<Broker>>, Bounded(body): Bounded) -> Result<Response, ApiError> {
    let request = Request::from_json(&body)?;
    let now = broker.now();
    let (session, challenge) = AwaitAttest::open(&request, now, broker.session_lifetime.as_secs())?;
    let cookie = session.set_cookie(broker.secure);
    broker.sessions.open(session, now)?;
    Ok(([(header::SET_COOKIE, cookie)], Json(challenge)).into_response())
}
