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
mod claims;
mod error;
mod roots;

pub use cert::CertError;
pub use error::{ChainPart, SnpError};
use kata_cc_evidence::snp::{CertKind, Evidence, Generation, Report, SIGNATURE_ALGO_ECDSA_P384_SHA384, SigningKey};
use kata_cc_evidence::{HostData, ReportData};
pub use roots::{RootError, RootSet};
use serde_json::Value;

use cert::{Cert, common_name};
use roots::Root;

/// What the verification works with.
#[derive(Clone, Copy, Debug)]
pub struct SnpOptions<'a> {
    /// Trusted roots.
    pub roots: &'a RootSet,
    /// Now, in seconds since the epoch: certificates must be in their time.
    pub now_unix: u64,
    /// Endorsement certificates (VCEK or VLEK, DER or PEM) known beforehand, for evidence that comes without.
    pub endorsements: &'a [Vec<u8>],
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

/// Verifies SNP evidence.
///
/// `expected_host_data` is `None` only where the client sent no initdata to compare; what the guest was launched with is in the claims
/// either way.
///
/// # Errors
/// One variant a check; see [`SnpError`].
pub fn verify(
    evidence: &Evidence,
    expected_report_data: &ReportData,
    expected_host_data: Option<&HostData>,
    options: &SnpOptions<'_>,
) -> Result<VerifiedSnp, SnpError> {
    let report = evidence.report();
    if report.signature_algo != SIGNATURE_ALGO_ECDSA_P384_SHA384 {
        return Err(SnpError::SignatureAlgorithm { found: report.signature_algo });
    }
    let kind = match report.key_info.signing_key() {
        SigningKey::Vcek => LeafKind::Vcek,
        SigningKey::Vlek => LeafKind::Vlek,
        found => return Err(SnpError::SigningKey { found }),
    };
    if report.key_info.mask_chip_key() {
        return Err(SnpError::Unsigned);
    }

    let leaf = find_leaf(evidence, kind, options)?;
    let root = verify_chain(&leaf, kind, evidence, options)?;
    let generation = check_generation(&leaf, root, report)?;
    check_leaf_is_for(&leaf, kind, report)?;

    let signature = report.signature.to_p384_fixed().ok_or(SnpError::ReportSignature)?;
    let genuine =
        leaf.verify_p384(&report.signed_bytes()?, &signature).map_err(|source| SnpError::Certificate { part: ChainPart::Leaf, source })?;
    if !genuine {
        return Err(SnpError::ReportSignature);
    }

    // From here on the report's fields are the signer's words.
    if report.vmpl != 0 {
        return Err(SnpError::Vmpl { found: report.vmpl });
    }
    if report.policy.debug_allowed() {
        return Err(SnpError::Debug);
    }
    if report.report_data != *expected_report_data {
        return Err(SnpError::ReportData { expected: Box::new(*expected_report_data), found: Box::new(report.report_data) });
    }
    if let Some(expected) = expected_host_data
        && report.host_data != *expected
    {
        return Err(SnpError::HostData { expected: *expected, found: report.host_data });
    }
    Ok(VerifiedSnp { report: report.clone(), root_name: root.name.clone(), simulated: root.simulated, generation })
}

/// Which endorsement key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LeafKind {
    Vcek,
    Vlek,
}

impl LeafKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
        }
    }
}

/// The endorsement certificate: from the evidence, else the one among those known beforehand that is for this report.
fn find_leaf(evidence: &Evidence, kind: LeafKind, options: &SnpOptions<'_>) -> Result<Cert, SnpError> {
    let wanted = match kind {
        LeafKind::Vcek => CertKind::Vcek,
        LeafKind::Vlek => CertKind::Vlek,
    };
    if let Some(bytes) = evidence.certs().and_then(|table| table.get(wanted)) {
        return Cert::parse(bytes).map_err(|source| SnpError::Certificate { part: ChainPart::Leaf, source });
    }
    options
        .endorsements
        .iter()
        .filter_map(|bytes| Cert::parse(bytes).ok())
        .find(|cert| is_named(cert, kind) && check_leaf_is_for(cert, kind, evidence.report()).is_ok())
        .ok_or_else(|| SnpError::NoEndorsement {
            kind: kind.name(),
            fetch: evidence.report().generation().filter(|_| kind == LeafKind::Vcek).map(|g| vcek_url(evidence.report(), g)),
        })
}

/// AMD names leaves `SEV-VCEK` and `SEV-VLEK`; a simulated hierarchy has its own prefix.
fn is_named(leaf: &Cert, kind: LeafKind) -> bool {
    common_name(leaf.subject()).ends_with(kind.name())
}

/// Finds the trusted root of the leaf and checks every step to it.
fn verify_chain<'a>(leaf: &Cert, kind: LeafKind, evidence: &Evidence, options: &'a SnpOptions<'_>) -> Result<&'a Root, SnpError> {
    let bad = |part| move |source| SnpError::Certificate { part, source };
    let table = evidence.certs();
    let offered = table.and_then(|table| table.get(CertKind::Ask)).map(Cert::parse).transpose().map_err(bad(ChainPart::Intermediate))?;
    let unknown = |name: &x509_cert::name::Name| SnpError::UnknownRoot {
        found: common_name(name),
        trusted: options.roots.names().iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "),
    };

    // Known intermediates come first: what the host offers is looked at only where we have none of that name.
    let known = options
        .roots
        .iter()
        .find_map(|root| root.intermediates.iter().find(|cert| cert.subject() == leaf.issuer()).map(|cert| (root, cert)));
    let (root, intermediate) = match (known, &offered) {
        (Some(found), _) => found,
        (None, Some(cert)) if cert.subject() == leaf.issuer() => {
            let root = options.roots.iter().find(|root| root.ark.subject() == cert.issuer()).ok_or_else(|| unknown(cert.issuer()))?;
            (root, cert)
        }
        _ => return Err(unknown(leaf.issuer())),
    };
    // A root the evidence brings along is no reason for trust, but if it is another than ours of the same name, say so.
    if let Some(bytes) = table.and_then(|table| table.get(CertKind::Ark)) {
        let brought = Cert::parse(bytes).map_err(bad(ChainPart::Root))?;
        if !brought.is_same_issuer_as(&root.ark) {
            return Err(unknown(brought.subject()));
        }
    }

    for (part, cert) in [(ChainPart::Root, &root.ark), (ChainPart::Intermediate, intermediate)] {
        if !cert.is_authority() {
            return Err(SnpError::NotAnAuthority { part });
        }
        check_time(part, cert, options.now_unix)?;
        if !cert.is_signed_by(&root.ark) {
            return Err(SnpError::ChainSignature { part });
        }
    }
    if root.revoked.iter().any(|serial| serial == intermediate.serial()) {
        return Err(SnpError::Revoked { part: ChainPart::Intermediate });
    }
    check_time(ChainPart::Leaf, leaf, options.now_unix)?;
    if !leaf.is_signed_by(intermediate) {
        return Err(SnpError::ChainSignature { part: ChainPart::Leaf });
    }
    // An ASVK signs VLEKs only, an ASK VCEKs only: a key of one kind must not pass as one of the other.
    let issuer = common_name(intermediate.subject());
    if !is_named(leaf, kind) || issuer.contains("VLEK") != (kind == LeafKind::Vlek) {
        return Err(SnpError::LeafKind { expected: kind.name(), found: common_name(leaf.subject()), issuer });
    }
    Ok(root)
}

fn check_time(part: ChainPart, cert: &Cert, now: u64) -> Result<(), SnpError> {
    if now < cert.not_before() {
        return Err(SnpError::NotYetValid { part, not_before: cert.not_before(), now });
    }
    if now > cert.not_after() {
        return Err(SnpError::Expired { part, not_after: cert.not_after(), now });
    }
    Ok(())
}

/// Report, certificate and root must be of one generation, as far as each says.
fn check_generation(leaf: &Cert, root: &Root, report: &Report) -> Result<Option<Generation>, SnpError> {
    let by_report = report.generation();
    let by_product =
        [Generation::Milan, Generation::Genoa, Generation::Turin].into_iter().find(|generation| leaf.product() == Some(generation.name()));
    let mismatch = |report: Generation, certificates: Generation| SnpError::Generation {
        report: report.name().into(),
        certificates: certificates.name().into(),
    };
    for certificates in [by_product, root.generation].into_iter().flatten() {
        if let Some(report) = by_report
            && report != certificates
        {
            return Err(mismatch(report, certificates));
        }
    }
    Ok(by_report.or(root.generation).or(by_product))
}

/// The endorsement key was derived for exactly this TCB and, if it is a VCEK, for exactly this chip.
fn check_leaf_is_for(leaf: &Cert, kind: LeafKind, report: &Report) -> Result<(), SnpError> {
    let bad = |source| SnpError::Certificate { part: ChainPart::Leaf, source };
    let certificate = leaf.tcb().map_err(bad)?;
    if certificate != report.reported_tcb {
        return Err(SnpError::Tcb { certificate, report: report.reported_tcb });
    }
    if kind == LeafKind::Vcek {
        let hwid = leaf.hwid().map_err(bad)?;
        if hwid != report.chip_id {
            return Err(SnpError::ChipId { certificate: hex::encode(hwid), report: hex::encode(report.chip_id) });
        }
    }
    Ok(())
}

/// Where AMD's key distribution service gives the VCEK for a report (AMD 57230, section 4).
#[must_use]
pub fn vcek_url(report: &Report, generation: Generation) -> String {
    let tcb = report.reported_tcb;
    let (id, fmc) = match tcb.fmc {
        Some(fmc) => (report.chip_id.first_chunk::<8>().map(hex::encode).unwrap_or_default(), format!("fmcSPL={fmc:02}&")),
        None => (hex::encode(report.chip_id), String::new()),
    };
    format!(
        "https://kdsintf.amd.com/vcek/v1/{}/{id}?{fmc}blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        generation.name(),
        tcb.bootloader,
        tcb.tee,
        tcb.snp,
        tcb.microcode
    )
}

#[cfg(test)]
mod tests;
