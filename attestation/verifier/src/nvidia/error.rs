//! Why evidence of GPUs is refused.

/// One variant for each check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NvidiaError {
    /// Certificates that cannot be used.
    #[error("certificate {index} of the chain: {reason}")]
    Certificate {
        /// Counted from the device's, which is 0.
        index: usize,
        /// Why.
        reason: &'static str,
    },
    /// Not a chain.
    #[error("the chain has {found} certificates, expected 2 to 8: the device's first, the root last")]
    Length {
        /// How many.
        found: usize,
    },
    /// The chain ends elsewhere.
    #[error("the chain ends at a root that is none of the {trusted} trusted ones")]
    UnknownRoot {
        /// How many are.
        trusted: usize,
    },
    /// The certificate is for other firmware.
    #[error("the device's certificate is for firmware {certificate}, but the report says {report}")]
    Firmware {
        /// FWID of the certificate.
        certificate: String,
        /// FWID of the report.
        report: String,
    },
    /// The report's signature is wrong.
    #[error("the report is not signed by the device's key")]
    ReportSignature,
    /// Not made for this exchange.
    #[error("the report's nonce is {found}, expected {expected}: the evidence was not made for this exchange")]
    Nonce {
        /// What the exchange asks for.
        expected: String,
        /// What the report has.
        found: String,
    },
    /// Nothing binds initdata to a GPU.
    #[error("initdata cannot be used with kind \"nvidia\": a GPU knows nothing of them")]
    InitData,
}

impl NvidiaError {
    /// Name of the check that failed, without values: what a guest may know.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Certificate { .. } | Self::Length { .. } | Self::UnknownRoot { .. } => "chain",
            Self::Firmware { .. } => "firmware",
            Self::ReportSignature => "report-signature",
            Self::Nonce { .. } => "report-data",
            Self::InitData => "init-data",
        }
    }
}
