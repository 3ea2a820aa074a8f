//! AMD's key distribution service: where it serves the certificate for a report (AMD 57230, section 4).

use kata_cc_evidence::snp::{CertKind, Evidence, Generation, Report, SigningKey};

use super::cert::Cert;
use crate::collateral::{Need, Source};

/// Where AMD serves the VCEK for a report.
#[must_use]
pub fn vcek_url(report: &Report, generation: Generation) -> String {
    format!("https://kdsintf.amd.com/{}", vcek(report, generation).path)
}

/// The VCEK for a report from a processor of this generation.
fn vcek(report: &Report, generation: Generation) -> Need {
    let tcb = report.reported_tcb;
    let (id, fmc) = match tcb.fmc {
        Some(fmc) => (report.chip_id.first_chunk::<8>().map(hex::encode).unwrap_or_default(), format!("fmcSPL={fmc:02}&")),
        None => (hex::encode(report.chip_id), String::new()),
    };
    let path = format!(
        "vcek/v1/{}/{id}?{fmc}blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
        generation.name(),
        tcb.bootloader,
        tcb.tee,
        tcb.snp,
        tcb.microcode
    );
    Need { source: Source::AmdKds, path }
}

/// Places where the VCEK for a report may be: one where the report says its generation, as many as fit where it does not (version 2).
/// None where the report is not signed by a VCEK: AMD hands VLEKs to providers only.
pub(super) fn vceks(report: &Report) -> Vec<Need> {
    // A masked chip id is that of no chip.
    if report.key_info.signing_key() != SigningKey::Vcek || report.chip_id == [0; 64] {
        return Vec::new();
    }
    generations(report).map(|generation| vcek(report, generation)).collect()
}

/// Generations a report may be of.
fn generations(report: &Report) -> impl Iterator<Item = Generation> {
    let (stated, has_fmc) = (report.generation(), report.reported_tcb.fmc.is_some());
    Generation::ALL.into_iter().filter(move |generation| match stated {
        Some(stated) => stated == *generation,
        None => (*generation == Generation::Turin) == has_fmc,
    })
}

/// Revocation lists that may be of the report's root: AMD has one for each generation, and serves it beside VCEKs and VLEKs.
pub(super) fn lists(evidence: &Evidence, root: Option<Generation>) -> Vec<Need> {
    let report = evidence.report();
    let service = if report.key_info.signing_key() == SigningKey::Vlek { "vlek" } else { "vcek" };
    let list = |generation: Generation| Need { source: Source::AmdKds, path: format!("{service}/v1/{}/crl", generation.name()) };
    match root {
        Some(generation) => vec![list(generation)],
        None => generations(report).map(list).collect(),
    }
}

/// All that may help to verify this evidence, by what it says of itself.
pub(super) fn needs(evidence: &Evidence) -> Vec<Need> {
    let kinds = [CertKind::Vcek, CertKind::Vlek];
    let leaf = evidence.certs().and_then(|table| kinds.into_iter().find_map(|kind| table.get(kind)));
    let mut needs = if leaf.is_some() { Vec::new() } else { vceks(evidence.report()) };
    // A certificate's word on the product is taken only as a choice among the names known here.
    let product = leaf.and_then(|bytes| Cert::parse(bytes).ok()).and_then(|cert| cert.generation());
    needs.extend(lists(evidence, evidence.report().generation().or(product)));
    needs
}
