//! AMD's key distribution service: where it serves the certificate for a report (AMD 57230, section 4).

use kata_cc_evidence::snp::{Generation, Report, SigningKey};

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
    let has_fmc = report.reported_tcb.fmc.is_some();
    let fits = |generation: &Generation| match report.generation() {
        Some(stated) => stated == *generation,
        None => (*generation == Generation::Turin) == has_fmc,
    };
    Generation::ALL.into_iter().filter(fits).map(|generation| vcek(report, generation)).collect()
}
