//! `POST /kbs/v0/auth`: opens a session and hands out its challenge. Open to everybody.

use super::Broker;
use super::body::{Bounded, MAX_AUTH_BODY};
use super::error::ApiError;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use kata_cc_evidence::TeeType;
use kata_cc_kbs_protocol::AwaitAttest;
use kata_cc_kbs_protocol::message::Request;
use serde_json::Value;
use std::sync::Arc;

/// Request to challenge.
pub async fn auth(State(broker): State<Arc<Broker>>, Bounded(body, _part): Bounded<MAX_AUTH_BODY>) -> Result<Response, ApiError> {
    let request = Request::from_json(&body)?;
    let now = broker.now();
    // Said now rather than to evidence that took pains to make.
    let asks = broker.appraiser.asks(request.tee).map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, "TeeUnsupported", e.to_string()))?;
    let lifetime = broker.session_lifetime.as_secs();
    let (session, challenge) = if asks {
        AwaitAttest::open_asking(&request, &ask(&broker, request.tee, now).await?, now, lifetime)?
    } else {
        AwaitAttest::open(&request, now, lifetime)?
    };
    let cookie = session.set_cookie(broker.secure);
    broker.store.open_session(session, now).await?;
    Ok(([(header::SET_COOKIE, cookie)], Json(challenge)).into_response())
}

/// What a guest of this kind is asked. That nothing can be asked is the operator's to repair: the log says what is missing.
async fn ask(broker: &Broker, tee: TeeType, now: u64) -> Result<Value, ApiError> {
    let appraiser = broker.appraiser.clone();
    let asked = broker.evaluate(move || appraiser.challenge(tee, now)).await?;
    let cause = match asked {
        Ok(Some(asked)) => return Ok(asked),
        Ok(None) => "the verifier has nothing to ask".to_owned(),
        Err(error) => error.to_string(),
    };
    tracing::error!(tee = tee.as_str(), error = cause, "no challenge can be made");
    let detail = format!("no challenge for evidence of kind \"{tee}\" can be made now; the broker's log has the cause");
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "NoChallenge", detail))
}
