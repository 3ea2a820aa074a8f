//! Arm CCA: a platform that was registered vouches for a realm key, and the realm manager, with that key, for the realm.
//!
//! ```text
//! platform key (trusted by configuration) -> platform token -> realm key -> realm token -> report data, initdata
//! ```
//! Which firmware the platform runs and what the realm was launched with are claims: which will do is for the policy. There is no default
//! for that, so the default policy affirms no realm.
//!
//! Specification: Arm, "Realm Management Monitor specification" (DEN0137), section on attestation.

mod error;
mod signed;
#[cfg(test)]
mod tests;
mod token;
mod trust;

use crate::checks::Checks;
use crate::collateral::Collateral;
use crate::{Expected, Verified, Verifier, VerifyError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub use error::CcaError;
use kata_cc_evidence::cca::Evidence;
use kata_cc_evidence::{ReportData, TeeType};
use ring::digest::{SHA256, SHA384, SHA512, digest};
use serde::Deserialize as _;
use serde_json::{Value, json};
use token::{Component, Platform, Realm, Token};
use trust::Anchor;
pub use trust::CcaTrust;

/// Life cycles in which nobody can look into the platform.
const SECURED: std::ops::RangeInclusive<u16> = 0x3000..=0x30ff;

/// Proof that a token was verified. Private fields: only [`verify`] makes it.
struct VerifiedCca {
    platform: Platform,
    realm: Realm,
}

/// Verifies a token, recording each check.
fn verify(token: &[u8], expected: &Expected<'_>, trust: &CcaTrust, checks: &mut Checks) -> Result<VerifiedCca, CcaError> {
    let parsed = Token::parse(token);
    let token = checks.record("CCA token", format!("{} bytes", token.len()), "platform token and realm token", parsed)?;
    let Token { platform_token, realm_token, platform, realm } = token;

    let instance = hex::encode(platform.instance_id);
    let anchor = anchor(&platform, trust);
    let anchor = checks.record("platform", &instance, format!("one of {} that are trusted", trust.anchors.len()), anchor)?;
    let outcome = platform_token.is_signed_by(&anchor.key).then_some(()).ok_or(CcaError::PlatformSignature);
    checks.record("platform token", "ES384", "by the platform's key", outcome)?;
    let found = platform.lifecycle;
    let outcome = SECURED.contains(&found).then_some(()).ok_or(CcaError::Lifecycle { found });
    checks.record("life cycle", format!("{found:#06x}"), "0x3000 to 0x30ff", outcome)?;

    // The platform's word from here on; with the next two, the realm manager's too.
    let vouched = hex::encode(&platform.challenge);
    let hash = key_hash(&realm).map(hex::encode);
    let found = hash.clone().unwrap_or_else(|_| format!("by {:?}", realm.key_hash));
    let outcome =
        hash.and_then(|found| if found == vouched { Ok(()) } else { Err(CcaError::RealmKey { found, vouched: vouched.clone() }) });
    checks.record("realm key", found, &vouched, outcome)?;
    let outcome = realm_token.is_signed_by(&realm.key).then_some(()).ok_or(CcaError::RealmSignature);
    checks.record("realm token", "ES384", "by the realm key", outcome)?;
    check_binding(&realm, expected, checks)?;
    Ok(VerifiedCca { platform, realm })
}

/// The trusted platform that the token names.
fn anchor<'a>(platform: &Platform, trust: &'a CcaTrust) -> Result<&'a Anchor, CcaError> {
    let same = |anchor: &&Anchor| anchor.instance_id == platform.instance_id && anchor.implementation_id == platform.implementation_id;
    let untrusted = || CcaError::Untrusted { instance: hex::encode(platform.instance_id), trusted: trust.anchors.len() };
    trust.anchors.iter().find(same).ok_or_else(untrusted)
}

fn key_hash(realm: &Realm) -> Result<Vec<u8>, CcaError> {
    let algorithm = match realm.key_hash.as_str() {
        "sha-256" => &SHA256,
        "sha-384" => &SHA384,
        "sha-512" => &SHA512,
        _ => return Err(CcaError::Form { what: "the realm token", expected: "with sha-256, sha-384 or sha-512 for its key (44240)" }),
    };
    Ok(digest(algorithm, &realm.key).as_ref().to_vec())
}

fn check_binding(realm: &Realm, expected: &Expected<'_>, checks: &mut Checks) -> Result<(), CcaError> {
    let found = ReportData(realm.challenge);
    match expected.report_data {
        Some(expected) => {
            let mismatch = || CcaError::ReportData { expected: Box::new(*expected), found: Box::new(found) };
            checks.record("report data", found, expected, (found == *expected).then_some(()).ok_or_else(mismatch))?;
        }
        None => checks.not_compared("report data", found),
    }
    let found = hex::encode(realm.personalization);
    match expected.initdata_digest {
        Some(digest) => {
            let mut padded = [0; 64];
            padded.iter_mut().zip(digest).for_each(|(to, from)| *to = *from);
            let expected = hex::encode(padded);
            let outcome = (realm.personalization == padded && digest.len() <= padded.len()).then_some(());
            let outcome = outcome.ok_or_else(|| CcaError::InitData { expected: expected.clone(), found: found.clone() });
            checks.record("personalization", found, expected, outcome)
        }
        None => {
            checks.not_compared("personalization", found);
            Ok(())
        }
    }
}

impl VerifiedCca {
    /// Claims for tokens and policies: below `platform` and `realm` as CoCo has them, in base64; beside these in hexadecimal, as of other
    /// kinds.
    fn claims(&self) -> Value {
        let Self { platform, realm } = self;
        let components: Vec<Value> = platform.components.iter().map(component).collect();
        json!({
            "platform": {
                "cca-platform-profile": platform.profile,
                "cca-platform-challenge": STANDARD.encode(&platform.challenge),
                "cca-platform-implementation-id": STANDARD.encode(platform.implementation_id),
                "cca-platform-instance-id": STANDARD.encode(platform.instance_id),
                "cca-platform-config": STANDARD.encode(&platform.config),
                "cca-platform-lifecycle": platform.lifecycle,
                "cca-platform-hash-algo-id": platform.hash,
                "cca-platform-sw-components": components,
                "cca-platform-service-indicator": platform.service,
            },
            "realm": {
                "cca-realm-challenge": STANDARD.encode(realm.challenge),
                "cca-realm-personalization-value": STANDARD.encode(realm.personalization),
                "cca-realm-initial-measurement": STANDARD.encode(&realm.initial),
                "cca-realm-extensible-measurements": realm.extensible.iter().map(|value| STANDARD.encode(value)).collect::<Vec<_>>(),
                "cca-realm-hash-algo-id": realm.hash,
                "cca-realm-public-key": STANDARD.encode(realm.key),
                "cca-realm-public-key-hash-algo-id": realm.key_hash,
            },
            "report_data": hex::encode(realm.challenge),
            "init_data": hex::encode(realm.personalization),
            "measurement": hex::encode(&realm.initial),
            "simulated": false,
        })
    }
}

fn component(component: &Component) -> Value {
    json!({
        "measurement-type": component.kind,
        "measurement-value": STANDARD.encode(&component.measurement),
        "version": component.version,
        "signer-id": STANDARD.encode(&component.signer_id),
        "hash-algo-id": component.hash,
    })
}

/// CCA among the kinds of evidence.
pub(crate) struct CcaVerifier {
    pub(crate) trust: CcaTrust,
}

impl Verifier for CcaVerifier {
    fn tee(&self) -> TeeType {
        TeeType::Cca
    }

    fn parse_raw(&self, raw: &[u8]) -> Result<Value, VerifyError> {
        let refused = |reason: String| VerifyError::Raw { tee: TeeType::Cca, reason };
        Token::parse(raw).map_err(|error| refused(error.to_string()))?;
        let evidence = Evidence::new(raw.to_vec()).map_err(|error| refused(error.to_string()))?;
        serde_json::to_value(evidence).map_err(|error| refused(error.to_string()))
    }

    fn verify(
        &self,
        evidence: &Value,
        expected: &Expected<'_>,
        _collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, VerifyError> {
        let tee = TeeType::Cca;
        let evidence = Evidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee, source })?;
        let verified = verify(evidence.token(), expected, &self.trust, checks)?;
        Ok(Verified { tee, claims: verified.claims(), simulated_root: None })
    }
}
