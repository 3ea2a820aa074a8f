//! `POST /kbs/v0/attest`: evidence in, token out.
//!
//! Evidence that does not verify gets no token. Evidence that verifies but is appraised badly gets a token that says so, which the resource
//! policy then refuses: this is how the protocol has it, and it lets a guest see the names of the claims that failed.

use super::body::Bounded;
use super::error::ApiError;
use super::{Broker, session_id};
use crate::appraise::{Refusal, Verdict};
use crate::audit::{Action, Comparison, Decision, evidence_digest};
use crate::session::SessionError;
use crate::store::{AppraisalInput, PolicyName};
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use kata_cc_kbs_protocol::ToVerify;
use kata_cc_kbs_protocol::ear::{EAT_PROFILE, Ear, Status, VerifierId};
use kata_cc_kbs_protocol::message::{Attestation, TokenResponse};
use kata_cc_kbs_protocol::token::MAX_TOKEN;
use kata_cc_verifier::checks::Checks;
use kata_cc_verifier::collateral::Collateral;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The policy id the broker appraises CPUs with.
pub const POLICY_ID: &str = "default_cpu";

/// Evidence to token.
pub async fn attest(
    State(broker): State<Arc<Broker>>,
    headers: HeaderMap,
    Bounded(body, _part): Bounded,
) -> Result<Json<TokenResponse>, ApiError> {
    let _turn = broker.attests.acquire().await.map_err(|e| ApiError::internal("attest", &e))?;
    let id = session_id(&headers).ok_or(SessionError::Unknown)?;
    let attestation = Attestation::from_json(&body)?;
    let now = broker.now();
    let received = broker.store.take_waiting(&id, now).await?.attest(attestation, now)?;
    let tee = received.tee();
    let evidence_sha256 = evidence_digest(received.evidence());

    let AppraisalInput { policy, registered } = broker.store.appraisal_input(PolicyName::Attestation(POLICY_ID.into())).await?;
    let references = broker.in_force.in_force(&broker.references, &registered, now);
    let (received, collateral) = collect(&broker, received, now).await?;
    let (appraiser, values) = (broker.appraiser.clone(), Arc::clone(&references.values));
    let appraise = move || -> (ToVerify, Result<Verdict, Refusal>, Checks) {
        let mut checks = Checks::default();
        let outcome = appraiser.appraise(&received, policy.as_deref(), &values, &collateral, now, &mut checks);
        (received, outcome, checks)
    };
    let (received, outcome, checks) = if broker.appraiser.is_quick(tee) { appraise() } else { broker.evaluate(appraise).await? };

    let verdict = match outcome {
        Ok(verdict) => verdict,
        Err(refusal) => {
            broker.metrics.attestation(tee.as_str(), "refused");
            let mut decision = Decision::new(now, Action::Attest, false, "refused", refusal.check());
            decision.tee = Some(tee.as_str().into());
            decision.evidence_sha256 = Some(evidence_sha256);
            decision.detail = refusal.to_string();
            decision.comparisons = checks.all().iter().map(Comparison::from).collect();
            broker.record(decision).await?;
            return Err(match refusal {
                Refusal::Policy(e) => e.into(),
                refusal => {
                    ApiError::new(StatusCode::UNAUTHORIZED, "EvidenceRefused", format!("the evidence was refused: {}", refusal.check()))
                }
            });
        }
    };

    let status = verdict.appraisal.status;
    let outcome = match status {
        Status::None => "none",
        Status::Affirming => "affirming",
        Status::Warning => "warning",
        Status::Contraindicated => "contraindicated",
    };
    broker.metrics.attestation(tee.as_str(), outcome);
    let mut decision = Decision::new(now, Action::Attest, status == Status::Affirming, outcome, verdict.policy_id.clone());
    decision.tee = Some(tee.as_str().into());
    decision.evidence_sha256 = Some(evidence_sha256);
    decision.comparisons = verdict.comparisons;
    for (name, value) in verdict.appraisal.trust_vector.claims() {
        if Status::of_claim(value) > Status::Affirming {
            let claim = format!("trust vector: {name}");
            decision.comparisons.push(Comparison { claim, expected: "affirming, 2 to 31".into(), found: value.into() });
        }
    }
    decision.claims = verdict.claims;
    decision.detail = format!("trust vector {:?}", verdict.appraisal.trust_vector.claims());
    if !references.manifests.is_empty() {
        decision.detail = format!("{}; reference manifests {}", decision.detail, references.manifests.join(", "));
    }
    let exp = now.saturating_add(broker.token_lifetime.as_secs());
    let ear = Ear {
        eat_profile: EAT_PROFILE.into(),
        iat: now,
        exp,
        iss: broker.issuer.clone(),
        verifier_id: VerifierId { developer: "kata-cc".into(), build: concat!("kata-cc-kbs ", env!("CARGO_PKG_VERSION")).into() },
        submods: BTreeMap::from([("cpu0".to_owned(), verdict.appraisal)]),
    };
    // The token is made while the decision is written; it is given out only when that is done.
    let (recorded, token) = tokio::join!(broker.record(decision), async { broker.tokens.issue(ear) });
    recorded?;
    let token = token.map_err(|e| ApiError::internal("token", &e))?;
    if token.len() > MAX_TOKEN {
        // Nobody would accept it, and it would be kept until it expires.
        let detail =
            format!("a token of {} bytes, at most {MAX_TOKEN} are allowed: the initdata shown to policies is too large", token.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge", detail));
    }
    broker.store.keep_attested(received.accept(token.clone(), exp), now).await?;
    Ok(Json(TokenResponse { token }))
}

/// What the evidence needs and does not bring, as far as it is to be had. Looked for before anything of the evidence is verified: how much of
/// that anybody may cause is the collector's business.
async fn collect(broker: &Broker, received: ToVerify, now: u64) -> Result<(ToVerify, Collateral), ApiError> {
    if broker.collector.is_nowhere() {
        return Ok((received, Collateral::none()));
    }
    let appraiser = broker.appraiser.clone();
    let (received, needs) = broker
        .evaluate(move || {
            let needs = appraiser.needs(&received);
            (received, needs)
        })
        .await?;
    Ok((received, broker.collector.collect(&needs, now).await))
}
