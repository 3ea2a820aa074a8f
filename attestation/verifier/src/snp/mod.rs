//! AMD SEV-SNP: report, certificate chain and binding, checked in the order that gives the most telling error.
//!
//! ```text
//! ARK (trusted by configuration) -> ASK | ASVK -> VCEK | VLEK -> report -> report data, host data
//! ```
//!
//! Chain and endorsement key first, then that the key is for the TCB and chip the report states, then the signature, and only then
//! what the signed fields say. Nothing of the report is believed before its signature, except which certificate to look for.
//!
//! Specifications: AMD 56860 (SNP firmware ABI), AMD 57230 (VCEK certificate and KDS interface).

mod cert;
mod chain;
mod claims;
mod crl;
mod error;
mod kds;
mod roots;
mod rules;

use crate::checks::Checks;
use crate::collateral::{Collateral, Need};
use crate::{Expected, Verified, Verifier, VerifyError};
pub use cert::CertError;
pub use crl::RevocationGap;
pub use error::{ChainPart, SnpError};
use kata_cc_evidence::snp::{Evidence, Generation, Report, SIGNATURE_ALGO_ECDSA_P384_SHA384};
use kata_cc_evidence::{HostData, ReportData, TeeType};
pub use kds::vcek_url;
pub use roots::{RootError, RootSet};
pub use rules::SnpRules;
use serde::Deserialize as _;
use serde_json::Value;

use cert::Cert;
use chain::LeafKind;
use roots::Root;

/// What is trusted of SNP.
#[derive(Clone, Debug)]
pub struct SnpTrust {
    /// Trusted roots.
    pub roots: RootSet,
    /// Endorsement certificates (VCEK or VLEK, DER or PEM) known beforehand, for evidence that comes without.
    pub endorsements: Vec<Vec<u8>>,
    /// What is asked beyond genuine signatures.
    pub rules: SnpRules,
}

impl From<RootSet> for SnpTrust {
    fn from(roots: RootSet) -> Self {
        Self { roots, endorsements: Vec::new(), rules: SnpRules::default() }
    }
}

/// What a report must be bound to.
#[derive(Clone, Copy, Debug)]
pub struct SnpExpected<'a> {
    /// REPORT_DATA; `None` only offline, where there was no exchange and it is not compared.
    pub report_data: Option<&'a ReportData>,
    /// HOST_DATA; `None` only where the client sent no initdata to compare. What the guest was launched with is in the claims either way.
    pub host_data: Option<&'a HostData>,
    /// Now, in seconds since the epoch: certificates must be in their time.
    pub now_unix: u64,
}

/// Proof that a report was verified. Private fields: only [`verify`] makes it.
#[derive(Clone, Debug)]
pub struct VerifiedSnp {
    report: Report,
    root_name: String,
    simulated: bool,
    generation: Option<Generation>,
}

impl VerifiedSnp {
    /// The report, every word of which the hardware (or the simulated root) signed.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Name of the root the evidence hangs from.
    #[must_use]
    pub fn root_name(&self) -> &str {
        &self.root_name
    }

    /// Name of the root if it is a simulated one.
    #[must_use]
    pub fn simulated_root(&self) -> Option<&str> {
        self.simulated.then_some(self.root_name.as_str())
    }

    /// Processor generation: by the report, or by AMD's root where the report's version does not say.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.generation
    }

    /// Claims for tokens and policies.
    #[must_use]
    pub fn claims(&self) -> Value {
        claims::claims(self)
    }
}

/// Verifies SNP evidence, recording each check.
///
/// # Errors
/// One variant a check; see [`SnpError`].
pub fn verify(
    evidence: &Evidence,
    expected: &SnpExpected<'_>,
    trust: &SnpTrust,
    collateral: &Collateral,
    checks: &mut Checks,
) -> Result<VerifiedSnp, SnpError> {
    let report = evidence.report();
    let form = format!("version {}, signature algorithm {}", report.version, report.signature_algo);
    checks.record("report", form, "version 2, 3 or 5, algorithm 1 (ECDSA P-384 with SHA-384)", check_algorithm(report))?;
    let kind = checks.record("signing key", chain::signer(report), "VCEK or VLEK", LeafKind::of(report))?;

    let leaf = chain::endorsement(evidence, kind, trust, collateral, checks)?;
    let root = chain::verify(&leaf, kind, evidence, trust, collateral, expected.now_unix, checks)?;
    let generation = check_generation(&leaf, root, report, checks)?;
    let (found, certified, outcome) = compare_tcb(&leaf, report);
    checks.record("TCB", found, certified, outcome)?;
    match kind {
        LeafKind::Vcek => {
            let (certified, outcome) = compare_chip(&leaf, report);
            checks.record("chip", hex::encode(report.chip_id), certified, outcome)?;
        }
        // A VLEK is a provider's, for all chips it holds.
        LeafKind::Vlek => checks.not_compared("chip", hex::encode(report.chip_id)),
    }
    checks.record("report signature", "ECDSA P-384", "by the endorsement key", check_signature(&leaf, report))?;

    // From here on the report's fields are the signer's words.
    let outcome = if report.vmpl == 0 { Ok(()) } else { Err(SnpError::Vmpl { found: report.vmpl }) };
    checks.record("VMPL", report.vmpl, "0", outcome)?;
    let debug = report.policy.debug_allowed();
    checks.record(
        "debugging",
        if debug { "allowed" } else { "not allowed" },
        "not allowed",
        if debug { Err(SnpError::Debug) } else { Ok(()) },
    )?;
    trust.rules.check(report, kind, generation, checks)?;
    let found = report.report_data;
    match expected.report_data {
        Some(expected) => {
            let mismatch = || SnpError::ReportData { expected: Box::new(*expected), found: Box::new(found) };
            checks.record("report data", found, expected, (found == *expected).then_some(()).ok_or_else(mismatch))?;
        }
        None => checks.not_compared("report data", found),
    }
    let found = report.host_data;
    match expected.host_data {
        Some(expected) => {
            let mismatch = SnpError::HostData { expected: *expected, found };
            checks.record("host data", found, expected, (found == *expected).then_some(()).ok_or(mismatch))?;
        }
        None => checks.not_compared("host data", found),
    }
    Ok(VerifiedSnp { report: report.clone(), root_name: root.name.clone(), simulated: root.simulated, generation })
}

/// Collateral that [`verify`] will look for.
pub(crate) fn needs(evidence: &Evidence) -> Vec<Need> {
    kds::needs(evidence)
}

fn check_algorithm(report: &Report) -> Result<(), SnpError> {
    match report.signature_algo {
        SIGNATURE_ALGO_ECDSA_P384_SHA384 => Ok(()),
        found => Err(SnpError::SignatureAlgorithm { found }),
    }
}

/// Report, certificate and root must be of one generation, as far as each says: reports of version 2 do not, simulated roots need not.
fn check_generation(leaf: &Cert, root: &Root, report: &Report, checks: &mut Checks) -> Result<Option<Generation>, SnpError> {
    let stated = [("report", report.generation()), ("certificate", leaf.generation()), ("root", root.generation)];
    let mut known = stated.into_iter().filter_map(|(_, generation)| generation);
    let first = known.next();
    let outcome = match (first, known.find(|other| first != Some(*other))) {
        (Some(first), Some(other)) => Err(SnpError::Generation { report: first.name().into(), certificates: other.name().into() }),
        _ => Ok(first),
    };
    let found = stated.map(|(who, generation)| format!("{who} {}", generation.map_or("silent", Generation::name))).join(", ");
    checks.record("generation", found, "the same of all that say", outcome)
}

/// The endorsement key was derived for exactly this TCB and, if it is a VCEK, for exactly this chip.
fn check_leaf_is_for(leaf: &Cert, kind: LeafKind, report: &Report) -> Result<(), SnpError> {
    compare_tcb(leaf, report).2?;
    if kind == LeafKind::Vcek { compare_chip(leaf, report).1 } else { Ok(()) }
}

/// What the report states, what the certificate is for, and whether that is the same.
fn compare_tcb(leaf: &Cert, report: &Report) -> (String, String, Result<(), SnpError>) {
    let stated = report.reported_tcb;
    let (certified, outcome) = match leaf.tcb() {
        Ok(certificate) if certificate == stated => (certificate.to_string(), Ok(())),
        Ok(certificate) => (certificate.to_string(), Err(SnpError::Tcb { certificate, report: stated })),
        Err(source) => ("that of the certificate".into(), Err(SnpError::Certificate { part: ChainPart::Leaf, source })),
    };
    (stated.to_string(), certified, outcome)
}

/// Which chip the certificate is for, and whether it is the report's.
fn compare_chip(leaf: &Cert, report: &Report) -> (String, Result<(), SnpError>) {
    match leaf.hwid() {
        Ok(hwid) if hwid == report.chip_id => (hex::encode(hwid), Ok(())),
        Ok(hwid) => {
            let certificate = hex::encode(hwid);
            (certificate.clone(), Err(SnpError::ChipId { certificate, report: hex::encode(report.chip_id) }))
        }
        Err(source) => ("that of the certificate".into(), Err(SnpError::Certificate { part: ChainPart::Leaf, source })),
    }
}

fn check_signature(leaf: &Cert, report: &Report) -> Result<(), SnpError> {
    let signature = report.signature.to_p384_fixed().ok_or(SnpError::ReportSignature)?;
    let genuine =
        leaf.verify_p384(&report.signed_bytes()?, &signature).map_err(|source| SnpError::Certificate { part: ChainPart::Leaf, source })?;
    genuine.then_some(()).ok_or(SnpError::ReportSignature)
}

/// SNP among the kinds of evidence.
pub(crate) struct SnpVerifier {
    pub(crate) trust: SnpTrust,
}

impl Verifier for SnpVerifier {
    fn tee(&self) -> TeeType {
        TeeType::Snp
    }

    fn needs(&self, evidence: &Value) -> Vec<Need> {
        Evidence::deserialize(evidence).map_or_else(|_| Vec::new(), |evidence| needs(&evidence))
    }

    fn parse_raw(&self, raw: &[u8]) -> Result<Value, VerifyError> {
        let refused = |reason: String| VerifyError::Raw { tee: TeeType::Snp, reason };
        let evidence = Evidence::from_raw(raw, &[]).map_err(|error| refused(error.to_string()))?;
        serde_json::to_value(evidence).map_err(|error| refused(error.to_string()))
    }

    fn verify(
        &self,
        evidence: &Value,
        expected: &Expected<'_>,
        collateral: &Collateral,
        checks: &mut Checks,
    ) -> Result<Verified, VerifyError> {
        let tee = TeeType::Snp;
        let evidence = Evidence::deserialize(evidence).map_err(|source| VerifyError::Malformed { tee, source })?;
        let host_data = expected.initdata_digest.map(HostData::from_digest);
        let expected = SnpExpected { report_data: expected.report_data, host_data: host_data.as_ref(), now_unix: expected.now_unix };
        let verified = verify(&evidence, &expected, &self.trust, collateral, checks)?;
        Ok(Verified { tee, claims: verified.claims(), simulated_root: verified.simulated_root().map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests;
