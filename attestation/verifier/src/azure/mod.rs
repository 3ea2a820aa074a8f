//! Confidential VMs of Azure on SNP and TDX: the hardware vouches for a TPM's key, and the TPM answers the challenge.
//!
//! ```text
//! SNP report | TD quote (verified as such) -> digest of runtime data -> attestation key -> TPM quote
//! TPM quote -> PCR values, report data, initdata (PCR 8)
//! ```
//! The hardware's part is verified by [`crate::snp`] and [`crate::tdx`], with what is trusted there and nothing more; report data are the
//! runtime data's digest, and the host data are not compared, since Azure does not let owners set them.
//!
//! What this proves and what not: whatever runs in the VM's most privileged level (Azure's paravisor, by the launch measurement) plays the
//! TPM. A VM that was launched with something else can put any key into the runtime data and quote any registers. So **registers are worth
//! what the launch measurement is**, and a policy must look at both.
//!
//! Specification: Microsoft, "Guest attestation for confidential virtual machines"; formats in [`kata_cc_evidence::azure`].

mod error;
mod runtime;
#[cfg(test)]
mod tests;

use crate::checks::Checks;
use crate::collateral::{Collateral, Need};
use crate::snp::{self, SnpExpected, SnpTrust};
use crate::tdx::{self, TdxExpected, TdxTrust};
use crate::tpm::verify_quote;
use crate::{Expected, Verified, Verifier, VerifyError};
pub use error::AzureError;
use kata_cc_evidence::azure::{HardwareReport, HclReport, SnpEvidence, TdxEvidence};
use kata_cc_evidence::tpm::Quote;
use kata_cc_evidence::{ReportData, TeeType};
use runtime::RuntimeData;
use serde::Deserialize as _;
use serde_json::Value;

/// The report data that a hardware report about this HCL report must have.
fn runtime_digest(hcl: &HclReport) -> ReportData {
    ReportData::from_digest(&hcl.runtime_digest())
}

fn check_hardware(hcl: &HclReport, expected: HardwareReport, checks: &mut Checks) -> Result<(), AzureError> {
    let name = |kind| match kind {
        HardwareReport::Snp => "SNP",
        HardwareReport::Tdx => "TDX",
    };
    let (found, expected) = (name(hcl.kind()), name(expected));
    let outcome = if found == expected { Ok(()) } else { Err(AzureError::Hardware { found, expected }) };
    checks.record("HCL report", format_args!("of {found}"), format_args!("of {expected}"), outcome)
}

/// The TPM's part, once the hardware has vouched for the runtime data; adds to the hardware's claims.
fn check_tpm(hcl: &HclReport, quote: &Quote, expected: &Expected<'_>, mut claims: Value, checks: &mut Checks) -> Result<Value, AzureError> {
    let runtime = RuntimeData::parse(hcl.runtime_data());
    let key = runtime.as_ref().map_err(Clone::clone).and_then(RuntimeData::attestation_key);
    let found = key.as_ref().map_or("none that can be used", |_| "RSA");
    let key = checks.record("attestation key", found, "HCLAkPub of the runtime data", key)?;
    let verified = verify_quote(quote, &key, expected, checks)?;
    let runtime = runtime?;
    if let Value::Object(map) = &mut claims {
        map.insert("tpm".into(), verified.claims().into());
        // The hardware's own field for initdata is the cloud's here.
        map.insert("init_data".into(), verified.init_data());
        map.insert("vm_configuration".into(), runtime.vm_configuration);
        map.insert("user_data".into(), runtime.user_data.into());
    }
    Ok(claims)
}

/// VMs on SNP among the kinds of evidence.
pub(crate) struct AzureSnpVerifier {
    pub(crate) trust: SnpTrust,
}

impl AzureSnpVerifier {
    fn check(
        &self,
        evidence: &SnpEvidence,
        expected: &Expected<'_>,
        collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, AzureError> {
        check_hardware(&evidence.hcl, HardwareReport::Snp, checks)?;
        let bound_to = runtime_digest(&evidence.hcl);
        let of_report = SnpExpected { report_data: Some(&bound_to), host_data: None, now_unix: expected.now_unix };
        let report = evidence.snp().map_err(AzureError::from);
        let found = format!("{} bytes", evidence.hcl.hardware_report().len());
        let report = checks.record("SNP report", found, "a report of version 2, 3 or 5", report)?;
        let report = snp::verify(&report, &of_report, &self.trust, collateral, checks)?;
        let claims = check_tpm(&evidence.hcl, &evidence.quote, expected, report.claims(), checks)?;
        Ok(Verified { tee: TeeType::AzSnpVtpm, claims, simulated_root: report.simulated_root().map(str::to_owned) })
    }
}

impl Verifier for AzureSnpVerifier {
    fn tee(&self) -> TeeType {
        TeeType::AzSnpVtpm
    }

    fn needs(&self, evidence: &Value) -> Vec<Need> {
        let report = SnpEvidence::deserialize(evidence).ok().and_then(|evidence| evidence.snp().ok());
        report.map(|report| snp::needs(&report)).unwrap_or_default()
    }

    fn verify(
        &self,
        evidence: &Value,
        expected: &Expected<'_>,
        collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, VerifyError> {
        let evidence = SnpEvidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee: self.tee(), source })?;
        Ok(self.check(&evidence, expected, collateral, checks)?)
    }
}

/// VMs on TDX among the kinds of evidence.
///
/// Azure launches TDs without SEPT_VE_DISABLE as far as is known, so [`tdx::TdxRules::require_sept_ve_disable`] refuses them unless it is
/// turned off; it then is for plain TDs too.
pub(crate) struct AzureTdxVerifier {
    pub(crate) trust: TdxTrust,
}

impl AzureTdxVerifier {
    fn check(
        &self,
        evidence: &TdxEvidence,
        expected: &Expected<'_>,
        collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, AzureError> {
        check_hardware(&evidence.hcl, HardwareReport::Tdx, checks)?;
        let bound_to = runtime_digest(&evidence.hcl);
        let of_quote = TdxExpected { report_data: Some(&bound_to), mr_config_id: None, now_unix: expected.now_unix };
        let quote = tdx::verify(&evidence.td_quote, &of_quote, &self.trust, collateral, checks)?;
        let claims = check_tpm(&evidence.hcl, &evidence.quote, expected, quote.claims(), checks)?;
        Ok(Verified { tee: TeeType::AzTdxVtpm, claims, simulated_root: quote.simulated_root().map(str::to_owned) })
    }
}

impl Verifier for AzureTdxVerifier {
    fn tee(&self) -> TeeType {
        TeeType::AzTdxVtpm
    }

    fn needs(&self, evidence: &Value) -> Vec<Need> {
        TdxEvidence::deserialize(evidence).map_or_else(|_| Vec::new(), |evidence| tdx::needs(&evidence.td_quote))
    }

    /// MRTD, as of plain TDs: here it is the paravisor.
    fn measurement<'a>(&self, claims: &'a Value) -> Option<&'a str> {
        claims.get("mr_td")?.as_str()
    }

    fn verify(
        &self,
        evidence: &Value,
        expected: &Expected<'_>,
        collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, VerifyError> {
        let evidence = TdxEvidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee: self.tee(), source })?;
        Ok(self.check(&evidence, expected, collateral, checks)?)
    }
}
