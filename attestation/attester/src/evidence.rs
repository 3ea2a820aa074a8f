//! Evidence of whichever TEE this is, in the form brokers take.

use kata_cc_evidence::{se, snp, tdx};
use serde::Serialize;

/// Evidence of one kind. Serialises to that kind's JSON form.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Evidence {
    /// An SNP report, with the host's certificates if it gave any.
    Snp(Box<snp::Evidence>),
    /// A TDX quote, with the event log that replays to its RTMRs if there is one.
    Tdx(Box<tdx::Evidence>),
    /// An answer of the ultravisor.
    Se(Box<se::Evidence>),
}

/// What came is not evidence.
#[derive(Debug, thiserror::Error)]
pub enum MalformedEvidence {
    /// No SNP report.
    #[error(transparent)]
    Snp(#[from] snp::EvidenceError),
    /// No TDX quote, or a log too large.
    #[error(transparent)]
    Tdx(#[from] tdx::EvidenceError),
}
