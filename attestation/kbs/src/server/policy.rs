//! Policies: administrators set and read them. What is not Rego of the right shape is refused before it is stored.

use super::Broker;
use super::attest::POLICY_ID;
use super::body::Bounded;
use super::error::ApiError;
use crate::appraise;
use crate::audit::{Action, Decision};
use crate::rego::{self, Kind};
use crate::release;
use crate::store::PolicyName;
use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Clients differ about padding.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A policy on the wire.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourcePolicy {
    policy: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttestationPolicy {
    #[serde(rename = "type")]
    kind: String,
    policy_id: String,
    policy: String,
}

/// `GET resource-policy`.
pub async fn get_resource(State(broker): State<Arc<Broker>>, headers: HeaderMap) -> Result<Json<ResourcePolicy>, ApiError> {
    broker.require_admin(&headers, "GET resource-policy").await?;
    let rego = broker.store.run(|db| db.policy(&PolicyName::Resource)).await?;
    Ok(Json(ResourcePolicy { policy: BASE64URL.encode(rego.as_deref().unwrap_or(release::DEFAULT_POLICY)) }))
}

/// `POST resource-policy`.
pub async fn set_resource(State(broker): State<Arc<Broker>>, headers: HeaderMap, Bounded(body): Bounded) -> Result<StatusCode, ApiError> {
    broker.require_admin(&headers, "POST resource-policy").await?;
    let message: ResourcePolicy = parse(&body)?;
    set(&broker, PolicyName::Resource, Kind::Resource, &message.policy).await
}

/// `GET attestation-policy/<id>`.
pub async fn get_attestation(
    State(broker): State<Arc<Broker>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<ResourcePolicy>, ApiError> {
    broker.require_admin(&headers, "GET attestation-policy").await?;
    known_id(&id)?;
    let rego = broker.store.run(move |db| db.policy(&PolicyName::Attestation(id))).await?;
    Ok(Json(ResourcePolicy { policy: BASE64URL.encode(rego.as_deref().unwrap_or(appraise::DEFAULT_POLICY)) }))
}

/// `POST attestation-policy`.
pub async fn set_attestation(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    Bounded(body): Bounded,
) -> Result<StatusCode, ApiError> {
    broker.require_admin(&headers, "POST attestation-policy").await?;
    let message: AttestationPolicy = parse(&body)?;
    if message.kind != "rego" {
        return Err(invalid(format!("policy type {:?}, expected \"rego\"", message.kind.chars().take(32).collect::<String>())));
    }
    known_id(&message.policy_id)?;
    set(&broker, PolicyName::Attestation(message.policy_id), Kind::Attestation, &message.policy).await
}

async fn set(broker: &Broker, name: PolicyName, kind: Kind, encoded: &str) -> Result<StatusCode, ApiError> {
    let rego = BASE64URL.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let rego = rego.ok_or_else(|| invalid("`policy` is not base64url of UTF-8 text"))?;
    let (rego, checked) = broker
        .evaluate(move || {
            let checked = rego::check(kind, &rego);
            (rego, checked)
        })
        .await?;
    checked.map_err(|e| invalid(e.to_string()))?;
    let mut decision = Decision::new(broker.now(), Action::SetPolicy, true, "set", "admin token");
    decision.subject = Some(match &name {
        PolicyName::Resource => "resource-policy".into(),
        PolicyName::Attestation(id) => format!("attestation-policy {id}"),
    });
    decision.detail = format!("sha256 {}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(rego.as_bytes())));
    broker.store.run(move |db| db.put_policy(&name, &rego)).await?;
    broker.record(decision).await?;
    Ok(StatusCode::OK)
}

/// A policy under an id that nothing uses would be believed to be in force: refuse it.
fn known_id(id: &str) -> Result<(), ApiError> {
    if id == POLICY_ID {
        return Ok(());
    }
    Err(invalid(format!(
        "policy id {:?}, expected \"{POLICY_ID}\": this broker appraises with no other",
        id.chars().take(64).collect::<String>()
    )))
}

fn parse<T: for<'de> Deserialize<'de>>(body: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| invalid(format!("not the expected JSON: {e}")))
}

fn invalid(detail: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", detail)
}
