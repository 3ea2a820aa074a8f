//! Why evidence of Secure Execution is refused, or cannot be asked for.

use super::host_key::HostKeyError;
use kata_cc_evidence::ReportData;
use kata_cc_evidence::se::FormError;

/// One variant for each check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeError {
    /// No host key to make a request for.
    #[error("no host key is trusted{}", first.as_ref().map_or_else(
        || "; add host-key documents of the machines".into(),
        |(document, why)| format!("; the first that is not: {document}: {why}")
    ))]
    NoHostKey {
        /// The first document that did not verify.
        first: Option<(String, HostKeyError)>,
    },
    /// No image to expect.
    #[error("no image is trusted: add the header of an image")]
    NoImage,
    /// More host keys than a request has slots.
    #[error("a request cannot be made: {0}")]
    Request(#[from] FormError),
    /// The system gave no random bytes, or the arithmetic refused a key.
    #[error("a request cannot be made: {what} failed")]
    Cryptography {
        /// Which step.
        what: &'static str,
    },
    /// The measurement key did not come back as it went.
    #[error(
        "the measurement key in the evidence is not one that this broker sent: it was changed, or the broker has another sealing key now"
    )]
    Sealed,
    /// The request is too old.
    #[error("the request was made {age} seconds ago, at most {limit} are accepted")]
    Expired {
        /// Seconds since it was made; the clock may have gone back.
        age: i128,
        /// The most.
        limit: u64,
    },
    /// No trusted image has this measurement.
    #[error(
        "the measurement is of none of the {images} trusted images, or data beside it were changed; the guest was told to expect tag {claimed}"
    )]
    Measurement {
        /// How many images are trusted.
        images: usize,
        /// The tag that came back from the guest, hexadecimal.
        claimed: String,
    },
    /// The request was unpacked by a key that is not trusted any more.
    #[error("the request was unpacked by host key {found}, which is not trusted")]
    HostKey {
        /// Its hash, hexadecimal.
        found: String,
    },
    /// Not bound to this exchange.
    #[error("user data begins with {found}, expected {expected}: the evidence is of another exchange")]
    ReportData {
        /// What binds nonce and key.
        expected: Box<ReportData>,
        /// What was found, hexadecimal.
        found: String,
    },
    /// Not bound to the initdata.
    #[error("user data goes on with {found:?}, expected the digest of the initdata, {expected}")]
    InitData {
        /// The digest.
        expected: String,
        /// What was found, hexadecimal.
        found: String,
    },
}

impl SeError {
    /// Name of the check that failed, without values: what a guest may know.
    #[must_use]
    pub fn rule(&self) -> &'static str {
        match self {
            Self::NoHostKey { .. } | Self::NoImage | Self::Request(_) | Self::Cryptography { .. } => "se-configuration",
            Self::Sealed => "measurement-key",
            Self::Expired { .. } => "request-age",
            Self::Measurement { .. } => "measurement",
            Self::HostKey { .. } => "host-key",
            Self::ReportData { .. } => "report-data",
            Self::InitData { .. } => "init-data",
        }
    }
}
