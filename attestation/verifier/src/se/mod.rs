//! IBM Secure Execution: host keys, the request made for them, and the measurement that answers it.
//!
//! ```text
//! challenge: root -> IBM's signing key -> host keys -> request (measurement key and nonce, encrypted to them)
//! verify:    sealed key -> MAC over a trusted image's tags -> host key -> report data, initdata
//! ```
//! The ultravisor knows the measurement key only if the machine has one of the host keys, and it measures the image that runs. Nobody else can: so a
//! right MAC says machine and image at once. The tags that come with the evidence are not believed; the MAC is tried with each trusted image's.
//!
//! Where initdata are bound: the host gives them after launch and Secure Execution has no field for them, so the guest puts their digest into the
//! user data, behind the report data. That is the word of the measured image, not of the hardware.
//!
//! Specifications: "IBM Secure Execution for Linux"; the formats are in [`kata_cc_evidence::se`].

mod cert;
mod error;
mod host_key;
mod name;
mod request;
mod seal;
#[cfg(test)]
mod tests;
mod trust;

use crate::checks::Checks;
use crate::collateral::Collateral;
use crate::{Expected, Verified, Verifier, VerifyError};
pub use cert::CertError;
pub use error::SeError;
pub use host_key::{Documents, File, HostKey, HostKeyError};
use kata_cc_evidence::se::{Challenge, Evidence, Flags, ImageTags};
use kata_cc_evidence::{ReportData, TeeType};
use request::{Ephemeral, random};
use ring::hmac;
pub use seal::SealingKey;
use seal::Secrets;
use serde::Deserialize as _;
use serde_json::{Value, json};
pub use trust::{CurrentTrust, SeTrust};

/// What evidence must be bound to.
#[derive(Clone, Copy, Debug)]
pub struct SeExpected<'a> {
    /// First 64 bytes of the user data; `None` where there was no exchange and it is not compared.
    pub report_data: Option<&'a ReportData>,
    /// The rest of the user data; `None` only where the client sent no initdata to compare.
    pub initdata_digest: Option<&'a [u8]>,
    /// Now, in seconds since the epoch.
    pub now_unix: u64,
}

/// Proof that a measurement was verified. Private fields: only [`verify`] makes it.
#[derive(Clone, Debug)]
pub struct VerifiedSe {
    evidence: Evidence,
    image: ImageTags,
    root: String,
}

impl VerifiedSe {
    /// Tags of the image that runs: one of the trusted ones.
    #[must_use]
    pub fn image(&self) -> &ImageTags {
        &self.image
    }

    /// Name of the root that the host key hangs from.
    #[must_use]
    pub fn root_name(&self) -> &str {
        &self.root
    }

    /// Claims for tokens and policies: CoCo's names first.
    #[must_use]
    pub fn claims(&self) -> Value {
        let (report_data, init_data) = split(&self.evidence.user_data);
        json!({
            "cuid": hex::encode(self.evidence.cuid),
            "report_data": hex::encode(report_data),
            "version": 0x100,
            "image_phkh": hex::encode(self.evidence.additional.image_phkh),
            "attestation_phkh": hex::encode(self.evidence.additional.attestation_phkh),
            "tag": hex::encode(self.image.tag),
            "init_data": hex::encode(init_data),
            "page_list_digest": hex::encode(self.image.pld),
            "address_list_digest": hex::encode(self.image.ald),
            "tweak_list_digest": hex::encode(self.image.tld),
            "root": self.root,
            "simulated": false,
        })
    }
}

/// Report data and what follows it.
fn split(user_data: &[u8]) -> (&[u8], &[u8]) {
    user_data.split_at_checked(ReportData::LEN).unwrap_or((user_data, &[]))
}

/// The host keys that are trusted now. A document that is not is left out: fewer machines can answer, never more.
fn host_keys(trust: &SeTrust, now: u64) -> Result<Vec<HostKey>, SeError> {
    let (mut keys, mut first) = (Vec::new(), None);
    for (document, outcome) in trust.documents.verify(now) {
        match outcome {
            Ok(key) => keys.push(key),
            Err(why) => first = first.or_else(|| Some((document.to_owned(), why))),
        }
    }
    if keys.is_empty() { Err(SeError::NoHostKey { first }) } else { Ok(keys) }
}

/// Makes a challenge: a new request, for all host keys that are trusted now.
///
/// # Errors
/// When no host key or no image is trusted.
pub fn challenge(trust: &SeTrust, now_unix: u64) -> Result<Challenge, SeError> {
    let host_keys = host_keys(trust, now_unix)?;
    let image_tags = *trust.images.first().ok_or(SeError::NoImage)?;
    let secrets = Secrets { issued_at: now_unix, measurement_key: random()?, nonce: random()? };
    let request = request::build(&host_keys, Flags::REQUESTED, &secrets, &Ephemeral::generate()?)?;
    Ok(Challenge { request, sealed_key: secrets.seal(&trust.sealing_key, random()?)?, sealed_nonce: Vec::new(), image_tags })
}

/// Verifies evidence, recording each check.
///
/// # Errors
/// One variant a check; see [`SeError`].
pub fn verify(evidence: &Evidence, expected: &SeExpected<'_>, trust: &SeTrust, checks: &mut Checks) -> Result<VerifiedSe, SeError> {
    let secrets = Secrets::open(&trust.sealing_key, &evidence.sealed_key);
    let secrets = checks.record("measurement key", format!("{} bytes", evidence.sealed_key.len()), "sealed by this broker", secrets)?;
    let age = i128::from(expected.now_unix).saturating_sub(secrets.issued_at.into());
    let in_time = (0..=i128::from(trust.max_age)).contains(&age);
    let outcome = in_time.then_some(()).ok_or(SeError::Expired { age, limit: trust.max_age });
    checks.record("request age", format!("{age} s"), format!("at most {} s", trust.max_age), outcome)?;

    let key = hmac::Key::new(hmac::HMAC_SHA512, &secrets.measurement_key);
    let is_image = |tags: &&ImageTags| hmac::verify(&key, &evidence.measured_bytes(tags, &secrets.nonce), &evidence.measurement).is_ok();
    let image = trust.images.iter().find(is_image).copied();
    let found = image.map_or_else(|| "none of them".into(), |image| format!("of image {}", hex::encode(image.tag)));
    let claimed = hex::encode(evidence.image_tags.tag);
    let outcome = image.ok_or(SeError::Measurement { images: trust.images.len(), claimed });
    let image = checks.record("measurement", found, format!("HMAC-SHA-512 of one of {} images", trust.images.len()), outcome)?;

    // From here on user data and additional data are what the ultravisor measured.
    let found = evidence.additional.attestation_phkh;
    let trusted = host_keys(trust, expected.now_unix);
    let outcome = trusted
        .and_then(|keys| keys.into_iter().find(|key| key.phkh() == found).ok_or_else(|| SeError::HostKey { found: hex::encode(found) }));
    let host_key = checks.record("host key", hex::encode(found), "one that is trusted", outcome)?;
    check_user_data(&evidence.user_data, expected, checks)?;
    Ok(VerifiedSe { evidence: evidence.clone(), image, root: host_key.root().to_owned() })
}

fn check_user_data(user_data: &[u8], expected: &SeExpected<'_>, checks: &mut Checks) -> Result<(), SeError> {
    let (report_data, init_data) = split(user_data);
    let found = hex::encode(report_data);
    match expected.report_data {
        Some(expected) => {
            let mismatch = || SeError::ReportData { expected: Box::new(*expected), found: found.clone() };
            let outcome = (report_data == expected.as_bytes()).then_some(()).ok_or_else(mismatch);
            checks.record("report data", &found, expected, outcome)?;
        }
        None => checks.not_compared("report data", found),
    }
    let found = hex::encode(init_data);
    match expected.initdata_digest {
        Some(digest) => {
            let expected = hex::encode(digest);
            let outcome = (init_data == digest && !digest.is_empty()).then_some(());
            let outcome = outcome.ok_or_else(|| SeError::InitData { expected: expected.clone(), found: found.clone() });
            checks.record("initdata", found, expected, outcome)?;
        }
        None => checks.not_compared("initdata", found),
    }
    Ok(())
}

/// Secure Execution among the kinds of evidence.
pub(crate) struct SeVerifier {
    pub(crate) trust: CurrentTrust,
}

impl Verifier for SeVerifier {
    fn tee(&self) -> TeeType {
        TeeType::Se
    }

    fn asks(&self) -> bool {
        true
    }

    fn challenge(&self, now_unix: u64) -> Result<Option<Value>, VerifyError> {
        let challenge = challenge(&self.trust.get(), now_unix)?;
        serde_json::to_value(challenge).map(Some).map_err(|source| VerifyError::Malformed { tee: TeeType::Se, source })
    }

    fn measurement<'a>(&self, claims: &'a Value) -> Option<&'a str> {
        claims.get("tag")?.as_str()
    }

    fn verify(
        &self,
        evidence: &Value,
        expected: &Expected<'_>,
        _collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, VerifyError> {
        let evidence = Evidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee: TeeType::Se, source })?;
        let expected =
            SeExpected { report_data: expected.report_data, initdata_digest: expected.initdata_digest, now_unix: expected.now_unix };
        let verified = verify(&evidence, &expected, &self.trust.get(), checks)?;
        Ok(Verified { tee: TeeType::Se, claims: verified.claims(), simulated_root: None })
    }
}
