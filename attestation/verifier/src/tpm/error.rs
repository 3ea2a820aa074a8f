//! Why a quote of a TPM is refused.

use kata_cc_evidence::ReportData;

/// One variant for each check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TpmError {
    /// No key that could have signed a quote.
    #[error("the attestation key cannot be used: {reason}")]
    Key {
        /// Why.
        reason: &'static str,
    },
    /// A key nobody configured.
    #[error(
        "the quote names an attestation key that is none of the {trusted} trusted ones; \
         register the machine's key, or do not trust the machine"
    )]
    Untrusted {
        /// How many are.
        trusted: usize,
    },
    /// The signature is wrong.
    #[error("the quote is not signed by the attestation key")]
    Signature,
    /// The PCR values are not those that were quoted.
    #[error("the PCR values have the digest {found}, but the quote is over {quoted}")]
    PcrDigest {
        /// Digest of the values beside the quote.
        found: String,
        /// Digest that was signed.
        quoted: String,
    },
    /// Not made for this exchange.
    #[error("the quote's extra data are {found:?}, expected the report data {expected}: the evidence was not made for this exchange")]
    ReportData {
        /// What the exchange asks for.
        expected: Box<ReportData>,
        /// What the quote has, hexadecimal.
        found: String,
    },
    /// A digest that cannot be extended into a register of the SHA-256 bank.
    #[error("the initdata digest has {found} bytes, but PCR 8 takes 32: use initdata with algorithm sha256")]
    InitDataDigest {
        /// Its size.
        found: usize,
    },
    /// Other initdata, or none, or measured where it does not show.
    #[error("PCR 8 is {found}, expected {expected}, which is the initdata digest extended once")]
    InitData {
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl TpmError {
    /// Name of the check that failed, without values: what a guest may know.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Key { .. } | Self::Untrusted { .. } => "attestation-key",
            Self::Signature => "quote-signature",
            Self::PcrDigest { .. } => "pcr-digest",
            Self::ReportData { .. } => "report-data",
            Self::InitDataDigest { .. } | Self::InitData { .. } => "init-data",
        }
    }
}
