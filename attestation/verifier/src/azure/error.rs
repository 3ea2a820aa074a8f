//! Why evidence of an Azure VM is refused.

use crate::snp::SnpError;
use crate::tdx::TdxError;
use crate::tpm::TpmError;
use kata_cc_evidence::azure::EvidenceError;

/// One variant for each step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AzureError {
    /// The HCL report is of the other hardware.
    #[error("the HCL report has a report of {found}, but the evidence is of a VM on {expected}")]
    Hardware {
        /// What it has.
        found: &'static str,
        /// What the evidence is said to be.
        expected: &'static str,
    },
    /// What the HCL report holds is no report.
    #[error("the report within the HCL report is malformed: {0}")]
    Report(#[from] EvidenceError),
    /// The hardware vouches for other runtime data.
    #[error("the HCL report's runtime data have the digest {runtime}, but the hardware's report data are {report}")]
    RuntimeData {
        /// SHA-256 of the runtime data, as report data.
        runtime: String,
        /// What the hardware signed.
        report: String,
    },
    /// The runtime data have no usable attestation key.
    #[error("the HCL report's runtime data cannot be used: {reason}")]
    Runtime {
        /// Why.
        reason: String,
    },
    /// The SNP report did not verify.
    #[error(transparent)]
    Snp(SnpError),
    /// The TD quote did not verify.
    #[error(transparent)]
    Tdx(TdxError),
    /// The TPM's quote did not verify.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

impl AzureError {
    /// Name of the check that failed, without values: what a guest may know.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Hardware { .. } | Self::Report(_) => "hcl-report",
            Self::RuntimeData { .. } | Self::Runtime { .. } => "hcl-runtime-data",
            Self::Snp(error) => error.rule(),
            Self::Tdx(error) => error.rule(),
            Self::Tpm(error) => error.rule(),
        }
    }
}

/// Report data are the runtime data's digest here, so a mismatch is said in those words.
impl From<SnpError> for AzureError {
    fn from(error: SnpError) -> Self {
        match error {
            SnpError::ReportData { expected, found } => Self::RuntimeData { runtime: expected.to_string(), report: found.to_string() },
            other => Self::Snp(other),
        }
    }
}

impl From<TdxError> for AzureError {
    fn from(error: TdxError) -> Self {
        match error {
            TdxError::ReportData { expected, found } => Self::RuntimeData { runtime: expected.to_string(), report: found.to_string() },
            other => Self::Tdx(other),
        }
    }
}
