//! `/kbs/v0/resource/<repository>/<type>/<tag>`: guests read, administrators write and delete.
//!
//! The policy is asked before the store, so that whoever may not read a name does not learn whether it exists.

use super::body::Bounded;
use super::error::ApiError;
use super::{Broker, session_id, text};
use crate::admin::role::Permission;
use crate::admin::{Administrator, bearer};
use crate::audit::{Action, Comparison, Decision};
use crate::rego::{Kind, Policy};
use crate::release::{self, Decided, Disclosure};
use crate::tokens::Shown;
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use kata_cc_kbs_protocol::ResourcePath;
use kata_cc_kbs_protocol::jwe::Jwe;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

type Segments = Result<Path<(String, String, String)>, PathRejection>;

/// Releases a secret, encrypted to the guest's key.
pub async fn read(
    State(broker): State<Arc<Broker>>,
    segments: Segments,
    query: Result<Query<BTreeMap<String, String>>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Jwe>, ApiError> {
    let outcome = try_read(&broker, segments, query, &headers).await;
    broker.metrics.resource_read(match &outcome {
        Ok(_) => "released",
        Err(e) => match e.status() {
            StatusCode::UNAUTHORIZED => "unauthenticated",
            StatusCode::FORBIDDEN => "denied",
            StatusCode::NOT_FOUND => "not-found",
            _ => "error",
        },
    });
    outcome.map(Json)
}

async fn try_read(
    broker: &Broker,
    segments: Segments,
    query: Result<Query<BTreeMap<String, String>>, QueryRejection>,
    headers: &HeaderMap,
) -> Result<Jwe, ApiError> {
    let path = resource_path(segments)?;
    let Query(query) = query.map_err(|_| ApiError::new(StatusCode::BAD_REQUEST, "InvalidRequest", "malformed query"))?;
    let now = broker.now();
    let token = token(broker, headers, now).await?;
    let policy = broker.store.resource_policy().await?;
    let custom = policy.is_some();
    let query = query.into_iter().map(|(name, value)| (name, value.into())).collect();
    let request = Arc::new(Asked { token, path, query });
    let decided = decide(broker, policy, &request).await?;
    let Asked { token, path, .. } = &*request;

    let allowed = matches!(decided.allowed, Ok(true));
    let rule = if custom { "resource policy set by an administrator" } else { "default resource policy" };
    let mut decision = Decision::new(now, Action::ReadResource, allowed, if allowed { "released" } else { "denied" }, rule);
    decision.subject = Some(path.to_string());
    for (submod, appraisal) in &token.ear().submods {
        decision.comparisons.push(Comparison {
            claim: format!("{submod}/ear.status"),
            expected: "affirming".into(),
            found: serde_json::to_value(appraisal.status).unwrap_or_default(),
        });
        decision.claims = serde_json::to_value(appraisal.trust_vector).unwrap_or_default();
    }
    if let (Err(e), _) | (_, Err(e)) = (&decided.allowed, &decided.disclosure) {
        decision.detail = e.to_string();
    }
    if !allowed {
        broker.record(decision).await?;
        decided.allowed?;
        // A rule that gives no answer discloses nothing; the audit log has what is wrong with it.
        let detail = release::refusal(token.ear(), path, decided.disclosure.unwrap_or(Disclosure::Nothing));
        return Err(ApiError::new(StatusCode::FORBIDDEN, "PolicyDeny", detail));
    }
    let key = token.tee_key().map_err(|e| ApiError::new(StatusCode::UNAUTHORIZED, "TokenInvalid", e.to_string()))?;
    let seal = |secret: Option<Zeroizing<Vec<u8>>>| secret.map(|secret| Jwe::seal(&secret, key));
    let sealed = broker.resources.release(&broker.store, path, decision.clone(), seal).await?;
    decision.of_found(sealed.is_some()).log();
    let missing = || ApiError::new(StatusCode::NOT_FOUND, "ResourceNotFound", format!("there is no resource {path}"));
    sealed.ok_or_else(missing)?.map_err(|e| ApiError::internal("encryption", &e))
}

/// What a guest asks for.
struct Asked {
    token: Arc<Shown>,
    path: ResourcePath,
    query: serde_json::Map<String, serde_json::Value>,
}

/// Asks the policy: here where it is known to be quick, on another thread where not.
async fn decide(broker: &Broker, policy: Option<Arc<str>>, request: &Arc<Asked>) -> Result<Decided, ApiError> {
    fn text(policy: &Option<Arc<str>>) -> &str {
        policy.as_deref().unwrap_or(release::DEFAULT_POLICY)
    }
    let ask = |policy: &Policy, request: &Asked| release::decide(policy, &request.token, &request.path, &request.query);
    if let Some(policy) = broker.resource_policies.quick(Kind::Resource, text(&policy)) {
        return Ok(ask(&policy, request));
    }
    let (policies, request) = (Arc::clone(&broker.resource_policies), Arc::clone(request));
    broker
        .evaluate(move || match policies.get(Kind::Resource, text(&policy)) {
            Ok(policy) => ask(&policy, &request),
            Err(error) => Decided { allowed: Err(error), disclosure: Ok(Disclosure::Nothing) },
        })
        .await
}

/// Stores a secret.
pub async fn write(
    State(broker): State<Arc<Broker>>,
    segments: Segments,
    headers: HeaderMap,
    Bounded(body, _part): Bounded,
) -> Result<StatusCode, ApiError> {
    let path = resource_path(segments)?;
    let by = broker.require_admin(&headers, Permission::WriteResource, &format!("/kbs/v0/resource/{path}")).await?;
    let existed = broker.resources.put(&path, body).await?;
    record_change(&broker, &by, Action::WriteResource, &path, if existed { "replaced" } else { "created" }).await?;
    Ok(StatusCode::OK)
}

/// Deletes a secret.
pub async fn delete(State(broker): State<Arc<Broker>>, segments: Segments, headers: HeaderMap) -> Result<StatusCode, ApiError> {
    let path = resource_path(segments)?;
    let by = broker.require_admin(&headers, Permission::DeleteResource, &format!("/kbs/v0/resource/{path}")).await?;
    if !broker.resources.delete(&path).await? {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "ResourceNotFound", format!("there is no resource {path}")));
    }
    record_change(&broker, &by, Action::DeleteResource, &path, "deleted").await?;
    Ok(StatusCode::OK)
}

/// Names of all secrets.
#[derive(Debug, Serialize)]
pub struct Names {
    resources: Vec<String>,
}

/// Lists names, never values.
pub async fn list(State(broker): State<Arc<Broker>>, headers: HeaderMap) -> Result<Json<Names>, ApiError> {
    broker.require_admin(&headers, Permission::ListResources, "/kbs/v0/resource").await?;
    Ok(Json(Names { resources: broker.resources.names().await? }))
}

async fn record_change(broker: &Broker, by: &Administrator, action: Action, path: &ResourcePath, outcome: &str) -> Result<(), ApiError> {
    let mut decision = Decision::by(by, broker.now(), action, outcome);
    decision.subject = Some(path.to_string());
    broker.record(decision).await
}

fn resource_path(segments: Segments) -> Result<ResourcePath, ApiError> {
    let invalid = |detail: String| ApiError::new(StatusCode::NOT_FOUND, "InvalidRequestPath", detail);
    let Path((repository, kind, tag)) = segments.map_err(|_| invalid("the path is not UTF-8".into()))?;
    ResourcePath::new(&repository, &kind, &tag).map_err(|e| invalid(e.to_string()))
}

/// The token a request rests on: of its session, or else the bearer's. Verified in both cases.
async fn token(broker: &Broker, headers: &HeaderMap, now: u64) -> Result<Arc<Shown>, ApiError> {
    let of_session = match session_id(headers) {
        Some(id) => broker.store.session_token(&id, now).await?,
        None => None,
    };
    let of_bearer = || text(headers, header::AUTHORIZATION).and_then(bearer).map(str::to_owned);
    let token = of_session.or_else(of_bearer).ok_or_else(|| {
        ApiError::new(
            StatusCode::UNAUTHORIZED,
            "Unauthenticated",
            "attest first: neither a live session nor an attestation token was given",
        )
    })?;
    broker.tokens.verify(&token, now).map_err(|e| ApiError::new(StatusCode::UNAUTHORIZED, "TokenInvalid", e.to_string()))
}
