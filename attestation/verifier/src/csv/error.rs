//! Why CSV evidence is refused.

use kata_cc_evidence::{FormError, ReportData};

/// One variant for each check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsvError {
    /// A configured certificate is none.
    #[error("not a certificate of Hygon's: {0}")]
    Form(#[from] FormError),
    /// A configured root that is none.
    #[error("the certificate is not a root of Hygon's: it must be for usage 0 and signed with its own key")]
    NotARoot,
    /// Nobody says whose the platform's key is.
    #[error(
        "no certificates of the chip (HSK and CEK) came with the report, and none of the {configured} \
         configured ones is for it; fetch them from Hygon by the chip's serial number"
    )]
    NoChip {
        /// How many are configured.
        configured: usize,
    },
    /// A certificate for something else.
    #[error("the {part} is a certificate for usage {found:#x}, expected {expected:#x}")]
    Usage {
        /// Which.
        part: &'static str,
        /// What it is for.
        found: u32,
        /// What it must be for.
        expected: u32,
    },
    /// A signature of the chain is wrong.
    #[error("the {part} is not signed by {issuer}")]
    ChainSignature {
        /// Which.
        part: &'static str,
        /// Who should have signed.
        issuer: &'static str,
    },
    /// The report's signature is wrong.
    #[error("the report is not signed by the platform's key")]
    ReportSignature,
    /// The host may look into the guest.
    #[error("the guest's policy allows debugging")]
    Debug,
    /// Not made for this exchange.
    #[error("the report data are {found}, expected {expected}: the evidence was not made for this exchange")]
    ReportData {
        /// What the exchange asks for.
        expected: Box<ReportData>,
        /// What the report has.
        found: Box<ReportData>,
    },
    /// Nothing binds initdata to such a guest.
    #[error("initdata cannot be used with kind \"csv\": no field of its report holds their digest")]
    InitData,
}

impl CsvError {
    /// Name of the check that failed, without values: what a guest may know.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Form(_) | Self::NotARoot => "trust",
            Self::NoChip { .. } => "endorsement",
            Self::Usage { .. } | Self::ChainSignature { .. } => "chain",
            Self::ReportSignature => "report-signature",
            Self::Debug => "debug",
            Self::ReportData { .. } => "report-data",
            Self::InitData => "init-data",
        }
    }
}
