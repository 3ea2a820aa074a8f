//! Why TDX evidence is refused: one variant a check, each with what was found and what was expected.

use std::fmt;

use kata_cc_evidence::tdx::QuoteError;
use kata_cc_evidence::{MrConfigId, ReportData};

use super::cert::CertError;
use super::needs::Missing;

/// A certificate of the hierarchy, by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The trusted root.
    Root,
    /// The intermediate that issues PCK certificates.
    PckCa,
    /// The certificate of the platform's PCK key.
    Pck,
    /// The certificate that signs TCB infos.
    TcbInfoSigner,
    /// The certificate that signs the quoting enclave's identity.
    QeIdentitySigner,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root certificate",
            Self::PckCa => "PCK CA certificate",
            Self::Pck => "PCK certificate",
            Self::TcbInfoSigner => "TCB signing certificate of the TCB info",
            Self::QeIdentitySigner => "TCB signing certificate of the QE identity",
        })
    }
}

/// A piece of collateral that is signed and has its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// The root's revocation list.
    RootCrl,
    /// The PCK CA's revocation list.
    PckCrl,
    /// The TCB info.
    TcbInfo,
    /// The quoting enclave's identity.
    QeIdentity,
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RootCrl => "revocation list of the root",
            Self::PckCrl => "revocation list of the PCK CA",
            Self::TcbInfo => "TCB info",
            Self::QeIdentity => "QE identity",
        })
    }
}

/// Why a quote is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TdxError {
    /// The quote cannot be put into raw form.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// Made by a quoting enclave that is not Intel's.
    #[error("quote was made by a quoting enclave of vendor {found}, expected {expected} (Intel)")]
    Vendor {
        /// QE_VENDOR_ID, hexadecimal.
        found: String,
        /// Intel's.
        expected: String,
    },
    /// The quote does not bring its PCK certificate.
    #[error(
        "quote has certification data of type {found}, expected 5 (PCK certificate chain): the platform is not set up to put its PCK certificate into quotes"
    )]
    CertificationData {
        /// The type.
        found: u16,
    },
    /// A certificate is malformed.
    #[error("{part}: {source}")]
    Certificate {
        /// Which.
        part: Part,
        /// Why.
        source: CertError,
    },
    /// A chain of another length or order.
    #[error("{part}: the chain has {found} certificates, expected {expected}")]
    ChainLength {
        /// Of which leaf.
        part: Part,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: &'static str,
    },
    /// No trusted root carries this chain.
    #[error("{part}: the chain leads to {found:?}, which is not a root this verifier trusts (it trusts {trusted})")]
    UnknownRoot {
        /// Of which leaf.
        part: Part,
        /// Issuer at the end of the chain.
        found: String,
        /// Names of the trusted roots.
        trusted: String,
    },
    /// Collateral under another root than the quote.
    #[error("{part} hangs from {found:?}, the quote from {expected:?}")]
    OtherRoot {
        /// Which.
        part: Part,
        /// Its root.
        found: String,
        /// The quote's root.
        expected: String,
    },
    /// A signature of the chain is wrong.
    #[error("{part} is not signed by its issuer")]
    ChainSignature {
        /// Which.
        part: Part,
    },
    /// A certificate that may not do what it does.
    #[error("{part} {found:?} is not one: {reason}")]
    Role {
        /// What it should be.
        part: Part,
        /// Its common name.
        found: String,
        /// What it lacks.
        reason: &'static str,
    },
    /// A certificate's time is over or has not come.
    #[error("{part} is valid from {not_before} to {not_after}, it is {now}")]
    Time {
        /// Which.
        part: Part,
        /// Start of validity, seconds since the epoch.
        not_before: u64,
        /// End of validity.
        not_after: u64,
        /// Now.
        now: u64,
    },
    /// The quoting enclave's report is not signed by the PCK key.
    #[error("report of the quoting enclave is not signed by the platform's PCK key")]
    QeReportSignature,
    /// The quoting enclave vouches for another key.
    #[error("report of the quoting enclave is for another attestation key: its report data is {found}, expected {expected}")]
    AttestationKey {
        /// REPORTDATA of the quoting enclave, hexadecimal.
        found: String,
        /// SHA-256 of attestation key and authentication data, then zeros.
        expected: String,
    },
    /// The quote's signature is wrong.
    #[error("quote's signature does not verify with its attestation key")]
    QuoteSignature,
    /// Collateral that is not there.
    #[error("collateral is missing: {0}")]
    Missing(Missing),
    /// Collateral that is malformed.
    #[error("{piece} is malformed: {reason}")]
    Malformed {
        /// Which.
        piece: Piece,
        /// Why.
        reason: String,
    },
    /// Collateral that its maker did not sign.
    #[error("{piece} is not signed by its issuer")]
    CollateralSignature {
        /// Which.
        piece: Piece,
    },
    /// Collateral whose time is over or has not come.
    #[error("{piece} is valid from {from} to {until}, it is {now}: fetch it again")]
    CollateralTime {
        /// Which.
        piece: Piece,
        /// Issued at, seconds since the epoch.
        from: u64,
        /// Next update is due at.
        until: u64,
        /// Now.
        now: u64,
    },
    /// Collateral older than another that was asked for.
    #[error(
        "{piece} has tcbEvaluationDataNumber {found}, expected at least {minimum}: it was rolled back, or the minimum is ahead of Intel's"
    )]
    Evaluation {
        /// Which.
        piece: Piece,
        /// What it has.
        found: u32,
        /// What is asked for.
        minimum: u32,
    },
    /// A certificate was revoked.
    #[error("{part} was revoked by its issuer")]
    Revoked {
        /// Which.
        part: Part,
    },
    /// TCB info of another kind or version.
    #[error("TCB info has {found}, expected id \"TDX\", version 3, tcbType 0")]
    TcbInfoForm {
        /// What it says.
        found: String,
    },
    /// TCB info of another platform model.
    #[error("TCB info is for {found}, the PCK certificate for {expected}")]
    TcbInfoPlatform {
        /// Of the TCB info.
        found: String,
        /// Of the PCK certificate.
        expected: String,
    },
    /// A QE identity of another kind or version.
    #[error("QE identity has {found}, expected id \"TD_QE\", version 2")]
    QeIdentityForm {
        /// What it says.
        found: String,
    },
    /// Another quoting enclave.
    #[error("quoting enclave has {field} {found}, Intel's has {expected}")]
    QeIdentity {
        /// Which field.
        field: &'static str,
        /// Of the report.
        found: String,
        /// Of the identity.
        expected: String,
    },
    /// A TDX module whose version Intel does not list.
    #[error("TCB info lists no TDX module {id}")]
    UnknownModule {
        /// The identity that would be needed.
        id: String,
    },
    /// A TDX module of another signer.
    #[error("TDX module is signed by {found}, expected {expected}")]
    ModuleSigner {
        /// MRSIGNERSEAM.
        found: String,
        /// Of the TCB info.
        expected: String,
    },
    /// A TDX module with other attributes.
    #[error("TDX module has attributes {found}, expected {expected}")]
    ModuleAttributes {
        /// SEAMATTRIBUTES.
        found: String,
        /// Of the TCB info.
        expected: String,
    },
    /// Older than everything Intel lists.
    #[error("no TCB level of the {what} matches: {found} is below all that Intel lists")]
    NoTcbLevel {
        /// Platform, TDX module or quoting enclave.
        what: &'static str,
        /// Its versions.
        found: String,
    },
    /// Intel has withdrawn its trust.
    #[error("TCB status is Revoked: Intel does not vouch for this platform, module or quoting enclave any more ({advisories})")]
    TcbRevoked {
        /// Advisories, separated by commas.
        advisories: String,
    },
    /// The host may look into the TD.
    #[error("TD attributes {found} have a bit of the group TUD set: the host can debug or profile this TD")]
    Debug {
        /// TDATTRIBUTES, as in the quote.
        found: String,
    },
    /// Attributes nobody here knows.
    #[error("TD attributes {found} have reserved bits set, of which nobody here knows the meaning")]
    ReservedAttributes {
        /// TDATTRIBUTES, as in the quote.
        found: String,
    },
    /// The host may inject exceptions by taking pages away.
    #[error("TD attributes {found} lack SEPT_VE_DISABLE: the host can raise exceptions in this TD by taking its pages away")]
    SeptVe {
        /// TDATTRIBUTES, as in the quote.
        found: String,
    },
    /// Not bound to this exchange.
    #[error("report data is {found}, expected {expected}: the evidence is for another nonce or key")]
    ReportData {
        /// What this exchange needs.
        expected: Box<ReportData>,
        /// REPORTDATA.
        found: Box<ReportData>,
    },
    /// Made with other initdata.
    #[error(
        "MRCONFIGID is {found}, expected {expected}: the TD was launched with {}",
        if *found == MrConfigId::ZERO { "no initdata at all" } else { "other initdata" }
    )]
    MrConfigId {
        /// By the initdata sent.
        expected: MrConfigId,
        /// MRCONFIGID.
        found: MrConfigId,
    },
    /// A log that is not this guest's.
    #[error("event log beside the quote: {reason}")]
    EventLog {
        /// What the parser or the replay says.
        reason: String,
    },
}

impl TdxError {
    /// A short stable name for metrics and audit: never contains values.
    #[must_use]
    pub const fn rule(&self) -> &'static str {
        match self {
            Self::Quote(_) => "quote",
            Self::Vendor { .. } => "qe-vendor",
            Self::CertificationData { .. } => "certification-data",
            Self::Certificate { .. } => "certificate",
            Self::ChainLength { .. } => "chain-length",
            Self::UnknownRoot { .. } => "unknown-root",
            Self::OtherRoot { .. } => "other-root",
            Self::ChainSignature { .. } => "chain-signature",
            Self::Role { .. } => "certificate-role",
            Self::Time { .. } => "certificate-time",
            Self::QeReportSignature => "qe-report-signature",
            Self::AttestationKey { .. } => "attestation-key",
            Self::QuoteSignature => "quote-signature",
            Self::Missing(_) => "collateral-missing",
            Self::Malformed { .. } => "collateral-form",
            Self::CollateralSignature { .. } => "collateral-signature",
            Self::CollateralTime { .. } => "collateral-time",
            Self::Evaluation { .. } => "tcb-evaluation-data-number",
            Self::Revoked { .. } => "revoked",
            Self::TcbInfoForm { .. } | Self::TcbInfoPlatform { .. } => "tcb-info",
            Self::QeIdentityForm { .. } | Self::QeIdentity { .. } => "qe-identity",
            Self::UnknownModule { .. } | Self::ModuleSigner { .. } | Self::ModuleAttributes { .. } => "tdx-module",
            Self::NoTcbLevel { .. } => "tcb-level",
            Self::TcbRevoked { .. } => "tcb-revoked",
            Self::Debug { .. } => "debug",
            Self::ReservedAttributes { .. } => "td-attributes",
            Self::SeptVe { .. } => "sept-ve-disable",
            Self::ReportData { .. } => "report-data",
            Self::MrConfigId { .. } => "mr-config-id",
            Self::EventLog { .. } => "event-log",
        }
    }
}
