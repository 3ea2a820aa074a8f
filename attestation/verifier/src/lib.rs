//! Evidence to claims: checks what hardware signed and says what it says, one module per TEE.
//!
//! Not here: whether the claims are *wanted*. Reference values and policy are the broker's business. Nor any network: revocation lists and
//! certificates the host did not send are given by the caller.
//!
//! **Invariant:** claims come out only of a proof type that its TEE's `verify` alone can make. A kind without a verifier is refused;
//! nothing ever falls back to weaker evidence.

#![deny(clippy::indexing_slicing, clippy::panic)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::panic))]

pub mod snp;

use kata_cc_evidence::{HostData, ReportData, TeeType};
use serde::Deserialize as _;
use serde_json::Value;

/// What evidence must be bound to.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The report data that binds nonce and key of this exchange.
    pub report_data: &'a ReportData,
    /// Digest of the initdata the client sent, if it sent any. Each TEE places it in its own field.
    pub initdata_digest: Option<&'a [u8]>,
    /// Now, in seconds since the epoch.
    pub now_unix: u64,
}

/// Verified evidence, whatever the TEE. Private fields: only a [`Verifier`] makes it.
#[derive(Clone, Debug)]
pub struct Verified {
    tee: TeeType,
    claims: Value,
    simulated_root: Option<String>,
}

impl Verified {
    /// Kind of TEE.
    #[must_use]
    pub fn tee(&self) -> TeeType {
        self.tee
    }

    /// The claims, in CoCo's names and more.
    #[must_use]
    pub fn claims(&self) -> &Value {
        &self.claims
    }

    /// Name of the simulated root the evidence hangs from; `None` for hardware.
    #[must_use]
    pub fn simulated_root(&self) -> Option<&str> {
        self.simulated_root.as_deref()
    }
}

/// Why evidence is refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// No verifier for this kind.
    #[error("evidence of kind \"{tee}\" cannot be verified by this broker: it verifies \"snp\"")]
    Unsupported {
        /// The kind.
        tee: TeeType,
    },
    /// Evidence anybody can make.
    #[error("evidence of kind \"{tee}\" proves nothing, since anybody can make it; it is always refused")]
    NoTrust {
        /// The kind.
        tee: TeeType,
    },
    /// Not of the kind's JSON form.
    #[error("evidence of kind \"{tee}\" is malformed: {source}")]
    Malformed {
        /// The kind.
        tee: TeeType,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// SNP evidence did not verify.
    #[error("SNP evidence is refused: {0}")]
    Snp(#[from] snp::SnpError),
}

/// A TEE's verifier.
pub trait Verifier: Send + Sync {
    /// The kind it verifies.
    fn tee(&self) -> TeeType;

    /// Verifies evidence in the kind's JSON form.
    ///
    /// # Errors
    /// When anything about it is not as it must be.
    fn verify(&self, evidence: &Value, expected: &Expected<'_>) -> Result<Verified, VerifyError>;
}

/// All verifiers, and the one place that says which kind has which.
pub struct Verifiers {
    snp: SnpVerifier,
}

impl Verifiers {
    /// With these trusted roots for SNP.
    #[must_use]
    pub fn new(snp_roots: snp::RootSet) -> Self {
        Self { snp: SnpVerifier { roots: snp_roots } }
    }

    /// The verifier for a kind.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, tee: TeeType) -> Result<&dyn Verifier, VerifyError> {
        match tee {
            TeeType::Snp => Ok(&self.snp),
            TeeType::Sample | TeeType::SampleDevice => Err(VerifyError::NoTrust { tee }),
            _ => Err(VerifyError::Unsupported { tee }),
        }
    }
}

struct SnpVerifier {
    roots: snp::RootSet,
}

impl Verifier for SnpVerifier {
    fn tee(&self) -> TeeType {
        TeeType::Snp
    }

    fn verify(&self, evidence: &Value, expected: &Expected<'_>) -> Result<Verified, VerifyError> {
        let tee = TeeType::Snp;
        let evidence = kata_cc_evidence::snp::Evidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee, source })?;
        let host_data = expected.initdata_digest.map(HostData::from_digest);
        let options = snp::SnpOptions { roots: &self.roots, now_unix: expected.now_unix, endorsements: &[] };
        let verified = snp::verify(&evidence, expected.report_data, host_data.as_ref(), &options)?;
        Ok(Verified { tee, claims: verified.claims(), simulated_root: verified.simulated_root().map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_evidence_is_always_refused_and_others_are_unsupported() {
        let verifiers = Verifiers::new(snp::RootSet::amd());
        for tee in TeeType::ALL {
            match (tee, verifiers.get(tee)) {
                (TeeType::Snp, Ok(verifier)) => assert_eq!(verifier.tee(), tee),
                (TeeType::Sample | TeeType::SampleDevice, Err(VerifyError::NoTrust { .. })) => {}
                (_, Err(VerifyError::Unsupported { .. })) => {}
                (tee, _) => panic!("{tee} is treated wrongly"),
            }
        }
    }

    #[test]
    fn malformed_evidence_is_refused_by_name() {
        let verifiers = Verifiers::new(snp::RootSet::amd());
        let expected = Expected { report_data: &ReportData::ZERO, initdata_digest: None, now_unix: 0 };
        for evidence in [Value::Null, serde_json::json!({}), serde_json::json!({"svn": "1", "report_data": "AAAA"})] {
            let refused = verifiers.get(TeeType::Snp).expect("listed").verify(&evidence, &expected);
            assert!(matches!(refused, Err(VerifyError::Malformed { tee: TeeType::Snp, .. })));
        }
    }
}
