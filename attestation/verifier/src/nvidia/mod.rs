//! NVIDIA GPUs (Hopper): device certificate, report and nonce, offline.
//!
//! ```text
//! root (trusted by configuration) -> ... -> device certificate (for this firmware) -> report -> nonce
//! ```
//! A GPU is a device beside a TEE, never one itself: the nonce says that *some* genuine GPU was asked, not that it is in the guest that
//! asks. So a broker does not take this kind for a guest's evidence; it is for `kata-cc verify evidence`. Whether the measurements are
//! those of NVIDIA's releases (RIM) is not checked, and nobody is asked whether a certificate was revoked (OCSP).
//!
//! Specifications: DMTF DSP0274; formats in [`kata_cc_evidence::nvidia`].

mod chain;
mod claims;
mod error;
#[cfg(test)]
mod tests;

use crate::checks::Checks;
use crate::collateral::Collateral;
use crate::{Expected, Verified, Verifier, VerifyError};
use chain::Cert;
pub use error::NvidiaError;
use kata_cc_evidence::nvidia::{Device, Evidence, Report};
use kata_cc_evidence::{ReportData, TeeType};
use serde::Deserialize as _;
use serde_json::{Value, json};

/// What is trusted of NVIDIA.
#[derive(Clone, Debug, Default)]
pub struct NvidiaTrust {
    roots: Vec<(String, Cert)>,
}

impl NvidiaTrust {
    /// Trusts a root as well: NVIDIA's device identity CA, PEM. The name is the claim `root`.
    ///
    /// # Errors
    /// When it is none.
    pub fn with_root(mut self, name: &str, pem: &[u8]) -> Result<Self, NvidiaError> {
        self.roots.push((name.to_owned(), Cert::root(pem)?));
        Ok(self)
    }

    /// Whether no root is trusted, and so no GPU.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// The trusted root that a chain ends at.
    fn root_of(&self, chain: &[Cert]) -> Result<&str, NvidiaError> {
        let root = self.roots.iter().find(|(_, root)| chain.last().is_some_and(|last| last.is(root)));
        root.map(|(name, _)| name.as_str()).ok_or(NvidiaError::UnknownRoot { trusted: self.roots.len() })
    }
}

/// Verifies one device, recording each check, and says what it claims.
fn verify(device: &Device, expected: &Expected<'_>, trust: &NvidiaTrust, checks: &mut Checks) -> Result<Value, NvidiaError> {
    let report = &device.report;
    let chain = chain::parse(&device.certificates);
    let found = chain.as_ref().map_or_else(|_| "none".into(), |chain| format!("{} certificates", chain.len()));
    let chain = checks.record("chain", found, "the device's to the root's", chain)?;
    let root = trust.root_of(&chain);
    let found = root.as_ref().map_or("another", |root| root).to_owned();
    let root = checks.record("root", found, format!("one of {}", trust.roots.len()), root)?;
    let device = chain.first().ok_or(NvidiaError::Length { found: 0 })?;

    let stated = report.opaque(Report::FWID).map_or_else(|| "none".into(), hex::encode);
    let certified = device.firmware().map(hex::encode);
    let outcome = match &certified {
        None => Err(NvidiaError::Certificate { index: 0, reason: "has no firmware id (2.23.133.5.4.1), so it is no device's" }),
        Some(certificate) if *certificate != stated => {
            Err(NvidiaError::Firmware { certificate: certificate.clone(), report: stated.clone() })
        }
        Some(_) => Ok(()),
    };
    checks.record("firmware", stated, certified.unwrap_or_else(|| "that of the certificate".into()), outcome)?;
    let steps = chain::verify(&chain, expected.now_unix);
    checks.record("certificates", format!("{} steps", chain.len().saturating_sub(1)), "each signed by the next, and valid", steps)?;
    let genuine = device.has_signed_report(report.signed_bytes(), &report.signature);
    checks.record("report signature", "ECDSA P-384", "by the device's key", genuine.then_some(()).ok_or(NvidiaError::ReportSignature))?;
    check_nonce(report, expected.report_data, checks)?;
    Ok(claims::claims(report, root))
}

/// The field has 32 bytes: the first half of the report data.
fn check_nonce(report: &Report, expected: Option<&ReportData>, checks: &mut Checks) -> Result<(), NvidiaError> {
    let found = hex::encode(report.nonce);
    let Some(expected) = expected else {
        checks.not_compared("nonce", found);
        return Ok(());
    };
    let expected = hex::encode(expected.0.first_chunk::<32>().copied().unwrap_or([0; 32]));
    let outcome = if found == expected { Ok(()) } else { Err(NvidiaError::Nonce { expected: expected.clone(), found: found.clone() }) };
    checks.record("nonce", found, expected, outcome)
}

/// GPUs among the kinds of evidence.
pub(crate) struct NvidiaVerifier {
    pub(crate) trust: NvidiaTrust,
}

impl NvidiaVerifier {
    fn check(&self, evidence: &Evidence, expected: &Expected<'_>, checks: &mut Checks) -> Result<Value, NvidiaError> {
        if let Some(digest) = expected.initdata_digest {
            checks.record("initdata", "no field for it", hex::encode(digest), Err(NvidiaError::InitData))?;
        }
        let devices = evidence.devices.iter().map(|device| verify(device, expected, &self.trust, checks));
        Ok(json!({ "devices": devices.collect::<Result<Vec<_>, _>>()?, "simulated": false }))
    }
}

impl Verifier for NvidiaVerifier {
    fn tee(&self) -> TeeType {
        TeeType::Nvidia
    }

    /// None: a device has 64 measurements, of which no one stands for all.
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
        let tee = TeeType::Nvidia;
        let evidence = Evidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee, source })?;
        Ok(Verified { tee, claims: self.check(&evidence, expected, checks)?, simulated_root: None })
    }
}
