//! Reference manifests: administrators put (by `POST reference-value`), read and delete them. A signer's key vouches for what is in them; the administrator's role only
//! for their being here.

use super::Broker;
use super::error::ApiError;
use crate::admin::Administrator;
use crate::admin::role::Permission;
use crate::audit::{Action, Decision};
use crate::reference::NotAdmitted;
use crate::store::{KeptManifest, Put};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

const MAX_NAME: usize = 128;

/// `?allow_rollback=`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    allow_rollback: bool,
}

/// A manifest as it is listed.
#[derive(Debug, Serialize)]
pub struct Listed {
    #[serde(flatten)]
    kept: KeptManifest,
    /// Whether it counts, or why not.
    standing: &'static str,
}

/// What became of one that was put.
#[derive(Debug, Serialize)]
pub struct Answer {
    name: String,
    serial: u64,
    sha256: String,
    outcome: &'static str,
    standing: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaced: Option<u64>,
}

/// Takes a manifest that came as a DSSE envelope.
pub(super) async fn put(
    broker: &Broker,
    by: &Administrator,
    options: Result<Query<Options>, QueryRejection>,
    body: &Bytes,
) -> Result<Answer, ApiError> {
    let Query(options) = options
        .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", "expected allow_rollback=<true or false>, or nothing"))?;
    let now = broker.now();
    let verified = match broker.references.admit(body, now) {
        Ok(verified) => verified,
        Err(refused) => return Err(not_admitted(broker, by, &refused, now).await?),
    };
    let envelope = String::from_utf8(body.to_vec())
        .map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", "the envelope is not UTF-8"))?;
    let kept = KeptManifest::new(&verified, now, by.described());
    let standing = broker.references.standing(&kept, now).as_str();
    let (name, serial, sha256) = (kept.name.clone(), kept.serial, kept.sha256.clone());

    let mut decision = Decision::by(by, now, Action::SetReferenceManifest, "put");
    decision.subject = Some(name.clone());
    decision.detail = format!(
        "{} serial {serial}, {}, sha256 {sha256}, signed by {}, holds {} to {}",
        kept.release, kept.kind, kept.signer, kept.not_before, kept.expires
    );
    let counts: BTreeMap<_, _> = kept.values.iter().map(|(id, values)| (id.clone(), values.len())).collect();
    decision.claims = serde_json::to_value(counts).unwrap_or_default();

    let allow_rollback = options.allow_rollback;
    let put = broker.store.put_manifest(kept, envelope, allow_rollback).await?;
    let (outcome, replaced) = match put {
        Put::New => ("new", None),
        Put::Replaced { before } => ("replaced", before),
        Put::Same => ("same", None),
        Put::NotNewer { highest } => {
            decision.allowed = false;
            "refused".clone_into(&mut decision.outcome);
            "serial number".clone_into(&mut decision.rule);
            broker.record(decision).await?;
            let detail = format!(
                "the manifest {name:?} has serial number {serial}, and {highest} was here before: sign it with a higher one, or ask for the \
                 rollback by allow_rollback=true"
            );
            return Err(ApiError::new(StatusCode::CONFLICT, "ManifestNotNewer", detail));
        }
    };
    decision.outcome = outcome.into();
    if let Some(before) = replaced {
        decision.detail = format!("{}, in the place of serial {before}", decision.detail);
    }
    broker.record(decision).await?;
    Ok(Answer { name, serial, sha256, outcome, standing, replaced })
}

/// Records that a manifest was refused, and says how that is answered.
async fn not_admitted(broker: &Broker, by: &Administrator, refused: &NotAdmitted, now: u64) -> Result<ApiError, ApiError> {
    let (status, variant) = match refused {
        NotAdmitted::NoSigners | NotAdmitted::Kind(_) => (StatusCode::FORBIDDEN, "ManifestNotAllowed"),
        NotAdmitted::Manifest(_) | NotAdmitted::Expired(_) => (StatusCode::BAD_REQUEST, "InvalidManifest"),
    };
    let mut decision = Decision::by(by, now, Action::SetReferenceManifest, "refused");
    decision.allowed = false;
    "reference manifest".clone_into(&mut decision.rule);
    decision.detail = refused.to_string().chars().take(1000).collect();
    broker.record(decision).await?;
    Ok(ApiError::new(status, variant, refused.to_string()))
}

/// All of them.
#[derive(Debug, Serialize)]
pub struct Manifests {
    manifests: Vec<Listed>,
}

/// `GET reference-manifest`: what is there, whether it counts or not.
pub async fn list(State(broker): State<Arc<Broker>>, headers: HeaderMap) -> Result<Json<Manifests>, ApiError> {
    broker.require_admin(&headers, Permission::ReadReference, "/kbs/v0/reference-manifest").await?;
    let now = broker.now();
    let registered = broker.store.registered().await?;
    let listed = |kept: &KeptManifest| Listed { standing: broker.references.standing(kept, now).as_str(), kept: kept.clone() };
    Ok(Json(Manifests { manifests: registered.manifests.iter().map(listed).collect() }))
}

/// `GET reference-manifest/<name>`: the envelope as it was put, for whoever wants to verify it.
pub async fn one(State(broker): State<Arc<Broker>>, Path(name): Path<String>, headers: HeaderMap) -> Result<impl IntoResponse, ApiError> {
    broker.require_admin(&headers, Permission::ReadReference, &format!("/kbs/v0/reference-manifest/{name}")).await?;
    let missing = not_found(&name);
    let envelope = broker.store.manifest_envelope(name).await?.ok_or(missing)?;
    Ok(([(header::CONTENT_TYPE, "application/json")], envelope))
}

/// `DELETE reference-manifest/<name>`. Its serial number is remembered.
pub async fn delete(State(broker): State<Arc<Broker>>, Path(name): Path<String>, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    let by = broker.require_admin(&headers, Permission::WriteReference, &format!("/kbs/v0/reference-manifest/{name}")).await?;
    let mut decision = Decision::by(&by, broker.now(), Action::SetReferenceManifest, "deleted");
    decision.subject = Some(name.chars().take(MAX_NAME).collect());
    let missing = not_found(&name);
    if !broker.store.delete_manifest(name).await? {
        return Err(missing);
    }
    broker.record(decision).await?;
    Ok(StatusCode::OK)
}

fn not_found(name: &str) -> ApiError {
    let shown: String = name.chars().take(MAX_NAME).collect();
    ApiError::new(StatusCode::NOT_FOUND, "ManifestNotFound", format!("there is no reference manifest {shown:?}"))
}
