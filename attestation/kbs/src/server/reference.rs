//! Reference values: administrators register and read them.
//!
//! Three forms are taken: a signed manifest in its envelope ([`manifest`]), a plain `{"id": …, "values": […]}`, and the RVPS message of type `sample`, whose payload is the base64 of a map
//! from ids to values. The last two are not signed: only the administrator's token vouches for them, so they are taken, and count, only where
//! the configuration says `allow_unsigned`.

use super::Broker;
use super::body::Bounded;
use super::error::ApiError;
use super::manifest;
use crate::admin::role::Permission;
use crate::audit::{Action, Decision};
use crate::rego::Lookup;
use crate::store::ReferenceValues;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::sync::Arc;

const RVPS_VERSION: &str = "0.1.0";
const MAX_ID: usize = 128;
const MAX_VALUES: usize = 4096;

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Message {
    Plain(Plain),
    Rvps(Rvps),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain {
    id: String,
    values: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rvps {
    version: String,
    #[serde(rename = "type")]
    kind: String,
    payload: String,
}

/// What an envelope is known by.
#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "payloadType")]
    _payload_type: IgnoredAny,
}

/// `POST reference-value`.
pub async fn register(
    State(broker): State<Arc<Broker>>,
    options: Result<Query<manifest::Options>, QueryRejection>,
    headers: HeaderMap,
    Bounded(body, _part): Bounded,
) -> Result<Response, ApiError> {
    let by = broker.require_admin(&headers, Permission::WriteReference, "/kbs/v0/reference-value").await?;
    if serde_json::from_slice::<Envelope>(&body).is_ok() {
        return Ok(Json(manifest::put(&broker, &by, options, &body).await?).into_response());
    }
    if !broker.references.allow_unsigned() {
        let detail = "this broker takes no unsigned reference values: sign them (`kata-cc measure … --sign`, `kata-cc kbs set-reference-manifest`), or set \
                      `allow_unsigned = true` in [references]";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "UnsignedReferenceValues", detail));
    }
    let values = parse(&body).map_err(|detail| ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", detail))?;
    let mut decision = Decision::by(&by, broker.now(), Action::SetReferenceValue, "set");
    decision.subject = Some(values.keys().cloned().collect::<Vec<_>>().join(" "));
    decision.claims = values.iter().map(|(id, value)| (id.clone(), value.clone())).collect::<serde_json::Map<_, _>>().into();
    broker.store.put_reference_values(values).await?;
    broker.record(decision).await?;
    Ok(StatusCode::OK.into_response())
}

/// `GET reference-value/<id>`.
pub async fn query(State(broker): State<Arc<Broker>>, Path(id): Path<String>, headers: HeaderMap) -> Result<Json<Value>, ApiError> {
    broker.require_admin(&headers, Permission::ReadReference, &format!("/kbs/v0/reference-value/{id}")).await?;
    let values = in_force(&broker).await?;
    let shown: String = id.chars().take(MAX_ID).collect();
    values
        .values()
        .get(&id)
        .cloned()
        .map(Json)
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "ReferenceValueNotFound", format!("there is no reference value {shown:?}")))
}

/// What an appraisal would compare with now, whether signed or not.
async fn in_force(broker: &Broker) -> Result<Arc<Lookup>, ApiError> {
    let registered = broker.store.registered().await?;
    Ok(Arc::clone(&broker.in_force.in_force(&broker.references, &registered, broker.now()).values))
}

/// `GET reference-value`: all of them.
pub async fn list(State(broker): State<Arc<Broker>>, headers: HeaderMap) -> Result<Json<ReferenceValues>, ApiError> {
    broker.require_admin(&headers, Permission::ReadReference, "/kbs/v0/reference-value").await?;
    Ok(Json(in_force(&broker).await?.values().clone()))
}

/// `DELETE reference-value/<id>`.
pub async fn delete(State(broker): State<Arc<Broker>>, Path(id): Path<String>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    let by = broker.require_admin(&headers, Permission::WriteReference, &format!("/kbs/v0/reference-value/{id}")).await?;
    let mut decision = Decision::by(&by, broker.now(), Action::SetReferenceValue, "deleted");
    decision.subject = Some(id.chars().take(MAX_ID).collect());
    let shown: String = id.chars().take(MAX_ID).collect();
    if !broker.store.delete_reference_value(id).await? {
        let detail = format!("there is no unsigned reference value {shown:?}; those of a manifest go with the manifest");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "ReferenceValueNotFound", detail));
    }
    broker.record(decision).await?;
    Ok(StatusCode::OK)
}

fn parse(body: &[u8]) -> Result<ReferenceValues, String> {
    let message: Message = serde_json::from_slice(body)
        .map_err(|_| "expected a signed manifest {\"payloadType\", \"payload\", \"signatures\"}, {\"id\", \"values\"}, or an RVPS message {\"version\", \"type\", \"payload\"}".to_owned())?;
    let values = match message {
        Message::Plain(Plain { id, values }) => ReferenceValues::from([(id, Value::Array(values))]),
        Message::Rvps(rvps) => {
            if rvps.version != RVPS_VERSION {
                return Err(format!("RVPS message version, expected {RVPS_VERSION}"));
            }
            if rvps.kind != "sample" {
                return Err("RVPS message type, expected \"sample\": this broker has no extractor for others".into());
            }
            let payload = STANDARD.decode(rvps.payload).map_err(|_| "RVPS payload is not base64".to_owned())?;
            serde_json::from_slice(&payload).map_err(|_| "RVPS payload is not a JSON map from ids to values".to_owned())?
        }
    };
    for (id, value) in &values {
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(format!("reference value id: expected 1 to {MAX_ID} letters, digits, '-', '_', '.'"));
        }
        if !is_value(value) {
            return Err(format!("reference value {id}: expected a string, number or boolean, or a list of at most {MAX_VALUES} of them"));
        }
    }
    Ok(values)
}

fn is_value(value: &Value) -> bool {
    let scalar = |v: &Value| v.is_string() || v.is_number() || v.is_boolean();
    match value {
        Value::Array(list) => list.len() <= MAX_VALUES && list.iter().all(scalar),
        other => scalar(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rvps(kind: &str, version: &str, payload: &str) -> Vec<u8> {
        json!({"version": version, "type": kind, "payload": STANDARD.encode(payload)}).to_string().into_bytes()
    }

    #[test]
    fn takes_both_forms() {
        let expected = ReferenceValues::from([("snp_launch_measurement".to_owned(), json!(["aa"]))]);
        assert_eq!(parse(br#"{"id":"snp_launch_measurement","values":["aa"]}"#).unwrap(), expected);
        assert_eq!(parse(&rvps("sample", "0.1.0", r#"{"snp_launch_measurement":["aa"]}"#)).unwrap(), expected);
        assert_eq!(parse(&rvps("sample", "0.1.0", r#"{"snp_smt_enabled":true}"#)).unwrap()["snp_smt_enabled"], json!(true));
    }

    #[test]
    fn refuses_everything_else() {
        for bad in [
            b"".to_vec(),
            b"[]".to_vec(),
            br#"{"id":"a b","values":[]}"#.to_vec(),
            br#"{"id":"","values":[]}"#.to_vec(),
            br#"{"id":"a","values":[{}]}"#.to_vec(),
            br#"{"id":"a","values":[null]}"#.to_vec(),
            br#"{"id":"a","values":[],"x":1}"#.to_vec(),
            rvps("corim", "0.1.0", "{}"),
            rvps("sample", "0.2.0", "{}"),
            rvps("sample", "0.1.0", "[]"),
            rvps("sample", "0.1.0", r#"{"a":{"b":1}}"#),
        ] {
            assert!(parse(&bad).is_err(), "{}", String::from_utf8_lossy(&bad));
        }
    }
}
