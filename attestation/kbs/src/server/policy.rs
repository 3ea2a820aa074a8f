//! Policies: administrators set and read them. What is not Rego of the right shape is refused before it is stored.

use super::Broker;
use super::attest::POLICY_ID;
use super::body::Bounded;
use super::error::ApiError;
use crate::admin::Administrator;
use crate::admin::role::Permission;
use crate::appraise;
use crate::audit::{Action, Decision};
use crate::rego::{Kind, Policy};
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
    broker.require_admin(&headers, Permission::ReadPolicy, "/kbs/v0/resource-policy").await?;
    let rego = broker.store.policy(PolicyName::Resource).await?;
    Ok(Json(ResourcePolicy { policy: BASE64URL.encode(rego.as_deref().unwrap_or(release::DEFAULT_POLICY)) }))
}

/// `POST resource-policy`.
pub async fn set_resource(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    Bounded(body, _part): Bounded,
) -> Result<StatusCode, ApiError> {
    let by = broker.require_admin(&headers, Permission::WritePolicy, "/kbs/v0/resource-policy").await?;
    let message: ResourcePolicy = parse(&body)?;
    set(&broker, &by, PolicyName::Resource, Kind::Resource, &message.policy).await
}

/// `GET attestation-policy/<id>`.
pub async fn get_attestation(
    State(broker): State<Arc<Broker>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<ResourcePolicy>, ApiError> {
    broker.require_admin(&headers, Permission::ReadPolicy, &format!("/kbs/v0/attestation-policy/{id}")).await?;
    known_id(&id)?;
    let rego = broker.store.policy(PolicyName::Attestation(id)).await?;
    Ok(Json(ResourcePolicy { policy: BASE64URL.encode(rego.as_deref().unwrap_or(appraise::DEFAULT_POLICY)) }))
}

/// `POST attestation-policy`.
pub async fn set_attestation(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    Bounded(body, _part): Bounded,
) -> Result<StatusCode, ApiError> {
    let by = broker.require_admin(&headers, Permission::WritePolicy, "/kbs/v0/attestation-policy").await?;
    let message: AttestationPolicy = parse(&body)?;
    if message.kind != "rego" {
        return Err(invalid(format!("policy type {:?}, expected \"rego\"", message.kind.chars().take(32).collect::<String>())));
    }
    known_id(&message.policy_id)?;
    set(&broker, &by, PolicyName::Attestation(message.policy_id), Kind::Attestation, &message.policy).await
}

/// `DELETE resource-policy`: the built-in one is in force again.
pub async fn reset_resource(State(broker): State<Arc<Broker>>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    let by = broker.require_admin(&headers, Permission::WritePolicy, "/kbs/v0/resource-policy").await?;
    reset(&broker, &by, PolicyName::Resource).await
}

/// Attestation policies, and which are the built-in ones.
#[derive(Debug, Serialize)]
pub struct AttestationPolicies {
    policies: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct Listed {
    policy_id: &'static str,
    built_in: bool,
}

/// `GET attestation-policy`.
pub async fn list_attestation(State(broker): State<Arc<Broker>>, headers: HeaderMap) -> Result<Json<AttestationPolicies>, ApiError> {
    broker.require_admin(&headers, Permission::ReadPolicy, "/kbs/v0/attestation-policy").await?;
    let set = broker.store.policy(PolicyName::Attestation(POLICY_ID.into())).await?;
    Ok(Json(AttestationPolicies { policies: vec![Listed { policy_id: POLICY_ID, built_in: set.is_none() }] }))
}

/// `DELETE attestation-policy/<id>`: the built-in one is in force again.
pub async fn reset_attestation(
    State(broker): State<Arc<Broker>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let by = broker.require_admin(&headers, Permission::WritePolicy, &format!("/kbs/v0/attestation-policy/{id}")).await?;
    known_id(&id)?;
    reset(&broker, &by, PolicyName::Attestation(id)).await
}

async fn reset(broker: &Broker, by: &Administrator, name: PolicyName) -> Result<StatusCode, ApiError> {
    let mut decision = Decision::by(by, broker.now(), Action::SetPolicy, "reset");
    decision.subject = Some(subject(&name));
    broker.store.delete_policy(name).await?;
    broker.record(decision).await?;
    Ok(StatusCode::OK)
}

fn subject(name: &PolicyName) -> String {
    match name {
        PolicyName::Resource => "resource-policy".into(),
        PolicyName::Attestation(id) => format!("attestation-policy {id}"),
    }
}

async fn set(broker: &Broker, by: &Administrator, name: PolicyName, kind: Kind, encoded: &str) -> Result<StatusCode, ApiError> {
    let rego = BASE64URL.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let rego = rego.ok_or_else(|| invalid("`policy` is not base64url of UTF-8 text"))?;
    let (rego, checked) = broker
        .evaluate(move || {
            let checked = Policy::read(kind, &rego).map(drop);
            (rego, checked)
        })
        .await?;
    checked.map_err(|e| invalid(e.to_string()))?;
    let mut decision = Decision::by(by, broker.now(), Action::SetPolicy, "set");
    decision.subject = Some(subject(&name));
    decision.detail = format!("sha256 {}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(rego.as_bytes())));
    broker.store.put_policy(name, rego).await?;
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
