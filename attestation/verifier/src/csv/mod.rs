//! Hygon CSV: report, platform key, chip key, Hygon's keys.
//!
//! ```text
//! HRK (trusted by configuration) -> HSK -> CEK (chip) -> PEK (platform) -> report -> report data
//! ```
//! Guests often send the PEK alone; then the chip's certificates must be configured, since nothing here fetches them. Initdata have no
//! field in the report, and are refused. Event logs are not looked at.
//!
//! A report of version 1 is XORed with a nonce that nobody signed (see [`kata_cc_evidence::csv::Report`]): a policy must compare
//! `measure`, without which the other claims can be shifted.
//!
//! Specifications: Hygon's `csv-rs` for formats; GM/T 0003 (SM2) and GM/T 0004 (SM3).

mod error;
#[cfg(test)]
mod tests;
mod trust;

use crate::checks::Checks;
use crate::collateral::Collateral;
use crate::{Expected, Verified, Verifier, VerifyError};
pub use error::CsvError;
use kata_cc_evidence::TeeType;
use kata_cc_evidence::csv::{Evidence, Policy, Report, Version};
use serde::Deserialize as _;
use serde_json::{Value, json};
pub use trust::CsvTrust;

/// Verifies evidence, recording each check, and says what it claims.
fn verify(evidence: &Evidence, expected: &Expected<'_>, trust: &CsvTrust, checks: &mut Checks) -> Result<Value, CsvError> {
    let Evidence { report, chain } = evidence;
    let chip = trust.chip(evidence);
    let found = chip.as_ref().map_or("none", |(_, from)| from);
    let (chip, _) = checks.record("HSK and CEK", found, "certificates of the chip", chip)?;
    let root = trust.verify(chip, &chain.pek);
    let found = root.as_ref().map_or_else(|_| "PEK < CEK < HSK".to_owned(), |root| format!("PEK < CEK < HSK < {root}"));
    let root = checks.record("chain", found, "each signed by the next, to a trusted root", root)?;
    let genuine = trust::is_signed(&chain.pek.key, report.signed_bytes(), &report.signature);
    checks.record("report signature", "SM2", "by the PEK", genuine.then_some(()).ok_or(CsvError::ReportSignature))?;

    // From here on the report's fields are the signer's words; of version 1, as far as its nonce was left alone.
    let no_debug = report.policy.no_debug();
    let found = if no_debug { "not allowed" } else { "allowed" };
    checks.record("debugging", found, "not allowed", no_debug.then_some(()).ok_or(CsvError::Debug))?;
    let found = report.report_data;
    match expected.report_data {
        Some(expected) => {
            let mismatch = || CsvError::ReportData { expected: Box::new(*expected), found: Box::new(found) };
            checks.record("report data", found, expected, (found == *expected).then_some(()).ok_or_else(mismatch))?;
        }
        None => checks.not_compared("report data", found),
    }
    if let Some(digest) = expected.initdata_digest {
        checks.record("initdata", "no field for it", hex::encode(digest), Err(CsvError::InitData))?;
    }
    Ok(claims(report, root))
}

/// Claims for tokens and policies: CoCo's names first.
fn claims(report: &Report, root: &str) -> Value {
    let mut claims = json!({
        "version": if report.version == Version::V1 { "1" } else { "2" },
        "policy": policy(report.policy),
        "user_pubkey_digest": hex::encode(report.user_pubkey_digest),
        "vm_id": hex::encode(report.vm_id),
        "vm_version": hex::encode(report.vm_version),
        "report_data": hex::encode(report.report_data),
        "mnonce": hex::encode(report.mnonce),
        "measure": hex::encode(report.measure),
        "sig_usage": hex::encode(report.sig_usage.to_le_bytes()),
        "sig_algo": hex::encode(report.sig_algo.to_le_bytes()),
        "root": root,
        "simulated": false,
    });
    if let Value::Object(map) = &mut claims {
        if let Some(anonce) = report.anonce {
            map.insert("anonce".into(), json!(hex::encode(anonce.to_le_bytes())));
        }
        if let Some(extension) = &report.extension {
            map.insert("build".into(), json!(extension.build));
            map.insert("rtmr_version".into(), json!(extension.rtmr_version));
            for (index, register) in extension.rtmr.iter().enumerate() {
                map.insert(format!("rtmr{index}"), json!(hex::encode(register)));
            }
        }
    }
    claims
}

fn policy(policy: Policy) -> Value {
    json!({
        "nodbg": policy.bits(0, 1),
        "noks": policy.bits(1, 1),
        "es": policy.bits(2, 1),
        "nosend": policy.bits(3, 1),
        "domain": policy.bits(4, 1),
        "csv": policy.bits(5, 1),
        "csv3": policy.bits(6, 1),
        "asid_reuse": policy.bits(7, 1),
        "hsk_version": policy.bits(8, 4),
        "cek_version": policy.bits(12, 4),
        "api_major": policy.bits(16, 8),
        "api_minor": policy.bits(24, 8),
    })
}

/// CSV among the kinds of evidence.
pub(crate) struct CsvVerifier {
    pub(crate) trust: CsvTrust,
}

impl Verifier for CsvVerifier {
    fn tee(&self) -> TeeType {
        TeeType::Csv
    }

    fn measurement<'a>(&self, claims: &'a Value) -> Option<&'a str> {
        claims.get("measure")?.as_str()
    }

    fn verify(
        &self,
        evidence: &Value,
        expected: &Expected<'_>,
        _collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, VerifyError> {
        let tee = TeeType::Csv;
        let evidence = Evidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee, source })?;
        let claims = verify(&evidence, expected, &self.trust, checks)?;
        Ok(Verified { tee, claims, simulated_root: None })
    }
}
