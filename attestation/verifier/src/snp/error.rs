//! Why SNP evidence is refused: one variant a check, so that every refusal can be traced to its rule.

use kata_cc_evidence::snp::{Generation, ReportError, SigningKey, TcbVersion};
use kata_cc_evidence::{HostData, ReportData};

use super::cert::{CertError, utc};
use super::crl::RevocationGap;

/// Which certificate of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainPart {
    /// VCEK or VLEK.
    Leaf,
    /// ASK or ASVK.
    Intermediate,
    /// ARK.
    Root,
}

impl std::fmt::Display for ChainPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Leaf => "endorsement key certificate (VCEK or VLEK)",
            Self::Intermediate => "intermediate certificate (ASK or ASVK)",
            Self::Root => "root certificate (ARK)",
        })
    }
}

/// Why a report is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnpError {
    /// The report cannot be put into raw form.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// Another signature algorithm than ECDSA P-384 with SHA-384.
    #[error("report's SIGNATURE_ALGO is {found}, expected 1 (ECDSA P-384 with SHA-384)")]
    SignatureAlgorithm {
        /// What the report says.
        found: u32,
    },
    /// Signed by no key or one AMD has not defined.
    #[error("report was signed by {found:?}, expected VCEK or VLEK")]
    SigningKey {
        /// What the report says.
        found: SigningKey,
    },
    /// The platform is set not to sign.
    #[error("report's MASK_CHIP_KEY is set: this platform does not sign reports")]
    Unsigned,
    /// The host sent no endorsement certificate and none is known.
    #[error("no {kind} certificate came with the report{}", fetch.as_ref().map(|url| format!(": fetch it from {url}")).unwrap_or_default())]
    NoEndorsement {
        /// `VCEK` or `VLEK`.
        kind: &'static str,
        /// Where AMD gives it.
        fetch: Option<String>,
    },
    /// A certificate is malformed.
    #[error("{part}: {source}")]
    Certificate {
        /// Which.
        part: ChainPart,
        /// Why.
        source: CertError,
    },
    /// No trusted root carries this chain.
    #[error("certificate chain leads to \"{found}\", which is not a root this verifier trusts (it trusts {trusted})")]
    UnknownRoot {
        /// Issuer at the end of the chain.
        found: String,
        /// Names of the trusted roots.
        trusted: String,
    },
    /// A signature of the chain is wrong.
    #[error("{part} is not signed by its issuer")]
    ChainSignature {
        /// Which.
        part: ChainPart,
    },
    /// A certificate that may not issue certificates did.
    #[error("{part} is not a certificate authority")]
    NotAnAuthority {
        /// Which.
        part: ChainPart,
    },
    /// A certificate's time is over.
    #[error("{part} expired at {}, it is {}", utc(*not_after), utc(*now))]
    Expired {
        /// Which.
        part: ChainPart,
        /// End of validity, seconds since the epoch.
        not_after: u64,
        /// Now.
        now: u64,
    },
    /// A certificate's time has not come.
    #[error("{part} is valid from {}, it is {}", utc(*not_before), utc(*now))]
    NotYetValid {
        /// Which.
        part: ChainPart,
        /// Start of validity.
        not_before: u64,
        /// Now.
        now: u64,
    },
    /// AMD has revoked the certificate.
    #[error("{part} was revoked by its root")]
    Revoked {
        /// Which.
        part: ChainPart,
    },
    /// No current list of what the root has withdrawn, and the rules ask for one.
    #[error("revocation cannot be ruled out: for the root {root:?} there is {gap}; give its list, or let it be fetched")]
    RevocationList {
        /// Name of the root.
        root: String,
        /// What is wanting.
        gap: RevocationGap,
    },
    /// A VCEK where a VLEK must be, or the reverse.
    #[error("report was signed by a {expected}, but the certificate chain is one of \"{found}\" under \"{issuer}\"")]
    LeafKind {
        /// What the report says.
        expected: &'static str,
        /// Common name of the leaf.
        found: String,
        /// Common name of its issuer.
        issuer: String,
    },
    /// Report and certificates are of different processor generations.
    #[error("report is from a {report} processor, its certificates are for {certificates}")]
    Generation {
        /// By the report's CPUID.
        report: String,
        /// By the certificates.
        certificates: String,
    },
    /// The certificate is for another TCB than the one the report states.
    #[error("endorsement key is for TCB {certificate}, the report states {report}")]
    Tcb {
        /// By the certificate.
        certificate: TcbVersion,
        /// REPORTED_TCB.
        report: TcbVersion,
    },
    /// The certificate is for another chip.
    #[error("endorsement key is for chip {certificate}, the report states chip {report}")]
    ChipId {
        /// HWID of the certificate, hexadecimal.
        certificate: String,
        /// CHIP_ID, hexadecimal.
        report: String,
    },
    /// The report's signature is wrong.
    #[error("report's signature does not verify with the endorsement key")]
    ReportSignature,
    /// Asked for at another privilege level than the guest kernel's.
    #[error("report is for VMPL {found}, expected 0")]
    Vmpl {
        /// What the report says.
        found: u32,
    },
    /// The host may read the guest's memory.
    #[error("guest policy allows debugging: the host can read this guest's memory")]
    Debug,
    /// The rules take no VLEK.
    #[error("report was signed by a VLEK, expected a VCEK: the rules here take no keys of cloud providers (allow_vlek)")]
    VlekDenied,
    /// Rules are set for generations, and this report's is not known.
    #[error("neither report nor root says which generation of processor this is, so the rules set for generations cannot be applied")]
    UnknownGeneration,
    /// The rules deny the generation.
    #[error("processors of the generation {} are denied here (deny_generations)", generation.name())]
    GenerationDenied {
        /// Which.
        generation: Generation,
    },
    /// The platform's firmware is older than the rules allow.
    #[error("{which} is {found}, expected at least {floor} for {}: the platform's firmware is too old", generation.name())]
    TcbBelowMinimum {
        /// Field of the report.
        which: &'static str,
        /// Generation whose minimum it is.
        generation: Generation,
        /// By the report.
        found: TcbVersion,
        /// The minimum.
        floor: TcbVersion,
    },
    /// Not bound to this exchange.
    #[error("report data is {found}, expected {expected}: the evidence is for another nonce or key")]
    ReportData {
        /// What this exchange needs.
        expected: Box<ReportData>,
        /// REPORT_DATA.
        found: Box<ReportData>,
    },
    /// Launched with other initdata.
    #[error("host data is {found}, expected {expected}: the guest was launched with other initdata")]
    HostData {
        /// By the initdata sent.
        expected: HostData,
        /// HOST_DATA.
        found: HostData,
    },
}

impl SnpError {
    /// A short stable name for metrics and audit: never contains values.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Report(_) => "report",
            Self::SignatureAlgorithm { .. } => "signature-algorithm",
            Self::SigningKey { .. } => "signing-key",
            Self::Unsigned => "unsigned",
            Self::NoEndorsement { .. } => "no-endorsement",
            Self::Certificate { .. } => "certificate",
            Self::UnknownRoot { .. } => "unknown-root",
            Self::ChainSignature { .. } => "chain-signature",
            Self::NotAnAuthority { .. } => "not-an-authority",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::Revoked { .. } => "revoked",
            Self::RevocationList { .. } => "revocation-list",
            Self::LeafKind { .. } => "leaf-kind",
            Self::Generation { .. } => "generation",
            Self::Tcb { .. } => "tcb",
            Self::ChipId { .. } => "chip-id",
            Self::ReportSignature => "report-signature",
            Self::Vmpl { .. } => "vmpl",
            Self::Debug => "debug",
            Self::VlekDenied => "vlek-denied",
            Self::UnknownGeneration => "unknown-generation",
            Self::GenerationDenied { .. } => "generation-denied",
            Self::TcbBelowMinimum { .. } => "minimum-tcb",
            Self::ReportData { .. } => "report-data",
            Self::HostData { .. } => "host-data",
        }
    }
}
