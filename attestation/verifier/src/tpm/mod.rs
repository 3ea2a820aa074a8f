//! TPM 2.0: an attestation key somebody registered, its quote, and the registers the quote is over.
//!
//! ```text
//! attestation key (trusted by configuration) -> quote -> PCR values, report data, initdata (PCR 8)
//! ```
//! A TPM vouches for what was started, and for nothing else: memory is not encrypted, and whoever owns the machine can read it. Nothing is
//! trusted that was not configured: there is no chain from makers of TPMs here, since the protocol carries none.
//!
//! Specification: Trusted Computing Group, "TPM 2.0 Library", part 1, sections on attestation; formats in [`kata_cc_evidence::tpm`].

mod error;
mod key;
mod quote;
#[cfg(test)]
mod tests;

use crate::checks::Checks;
use crate::collateral::Collateral;
use crate::{Expected, Verified, Verifier, VerifyError};
pub use error::TpmError;
use kata_cc_evidence::TeeType;
use kata_cc_evidence::tpm::Evidence;
pub use key::AttestationKey;
pub(crate) use quote::verify as verify_quote;
use serde::Deserialize as _;
use serde_json::{Value, json};

/// What is trusted of TPMs.
#[derive(Clone, Debug, Default)]
pub struct TpmTrust {
    keys: Vec<(String, AttestationKey)>,
}

impl TpmTrust {
    /// Trusts an attestation key as well, a SubjectPublicKeyInfo in DER or PEM. The name is the claim `attestation_key`.
    ///
    /// # Errors
    /// When it is no key that can sign quotes.
    pub fn with_key(mut self, name: &str, spki: &[u8]) -> Result<Self, TpmError> {
        self.keys.push((name.to_owned(), AttestationKey::from_spki(spki)?));
        Ok(self)
    }

    /// Whether no key is trusted, and so no TPM.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// TPMs among the kinds of evidence.
pub(crate) struct TpmVerifier {
    pub(crate) trust: TpmTrust,
}

/// Finds the key the evidence names among the trusted ones.
fn trusted_key<'a>(evidence: &Evidence, trust: &'a TpmTrust) -> Result<&'a (String, AttestationKey), TpmError> {
    let claimed = AttestationKey::from_spki(&evidence.ak_public)?;
    trust.keys.iter().find(|(_, key)| *key == claimed).ok_or(TpmError::Untrusted { trusted: trust.keys.len() })
}

impl Verifier for TpmVerifier {
    fn tee(&self) -> TeeType {
        TeeType::Tpm
    }

    /// None: what was started is in many registers, of which no one stands for all.
    fn measurement<'a>(&self, _claims: &'a Value) -> Option<&'a str> {
        None
    }

    fn verify(
        &self,
        evidence: &Value,
        expected: &Expected<'_>,
        _collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, VerifyError> {
        let tee = TeeType::Tpm;
        let evidence = Evidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee, source })?;
        let key = trusted_key(&evidence, &self.trust);
        let found = key.as_ref().map_or("none that is trusted", |(name, _)| name.as_str()).to_owned();
        let (name, key) = checks.record("attestation key", found, format!("one of {}", self.trust.keys.len()), key)?;
        let verified = verify_quote(&evidence.quote, key, expected, checks)?;
        let mut claims = verified.claims();
        claims.insert("init_data".into(), verified.init_data());
        claims.insert("attestation_key".into(), json!(name));
        claims.insert("simulated".into(), json!(false));
        Ok(Verified { tee, claims: claims.into(), simulated_root: None })
    }
}
