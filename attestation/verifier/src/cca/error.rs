//! Why a CCA token is refused.

use kata_cc_evidence::ReportData;

/// One variant for each check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CcaError {
    /// Not a token.
    #[error("{what} is not {expected}")]
    Form {
        /// Which part.
        what: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A token of another profile of the specification.
    #[error("the platform token is of profile {found:?}, expected {expected:?}")]
    Profile {
        /// What it says.
        found: String,
        /// The profile that is known here.
        expected: &'static str,
    },
    /// A machine nobody registered.
    #[error("the platform's instance {instance} is none of the {trusted} trusted ones; register its key, or do not trust the machine")]
    Untrusted {
        /// Instance id, hexadecimal.
        instance: String,
        /// How many are trusted.
        trusted: usize,
    },
    /// A trust anchor that cannot be used.
    #[error("trust anchors: {reason}")]
    Anchor {
        /// Why.
        reason: String,
    },
    /// The platform did not sign it.
    #[error("the platform token is not signed by the platform's key")]
    PlatformSignature,
    /// The machine is open to its owner.
    #[error("the platform's life cycle is {found:#06x}, expected 0x3000 to 0x30ff: secured")]
    Lifecycle {
        /// What the platform says.
        found: u16,
    },
    /// The platform vouches for another realm key.
    #[error("the realm key's hash is {found}, but the platform vouches for {vouched}")]
    RealmKey {
        /// Hash of the key in the realm token.
        found: String,
        /// Challenge of the platform token.
        vouched: String,
    },
    /// The realm manager did not sign it.
    #[error("the realm token is not signed by the realm key")]
    RealmSignature,
    /// Not made for this exchange.
    #[error("the realm's challenge is {found}, expected {expected}: the evidence was not made for this exchange")]
    ReportData {
        /// What the exchange asks for.
        expected: Box<ReportData>,
        /// What the realm says.
        found: Box<ReportData>,
    },
    /// Launched with other initdata.
    #[error("the realm's personalization value is {found}, expected {expected}, which is the initdata digest")]
    InitData {
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
}

impl CcaError {
    /// Name of the check that failed, without values: what a guest may know.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Form { .. } | Self::Profile { .. } => "evidence-form",
            Self::Untrusted { .. } | Self::Anchor { .. } => "platform-key",
            Self::PlatformSignature => "platform-signature",
            Self::Lifecycle { .. } => "lifecycle",
            Self::RealmKey { .. } => "realm-key",
            Self::RealmSignature => "realm-signature",
            Self::ReportData { .. } => "report-data",
            Self::InitData { .. } => "init-data",
        }
    }
}
