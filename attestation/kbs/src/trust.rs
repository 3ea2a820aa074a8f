//! What is trusted of guests, as the configuration names it: roots, keys and rules, read from its files.

use anyhow::Context;
use kata_cc_kbs::config::{Config, read_bounded, read_bytes};
use kata_cc_verifier::Trust;
use kata_cc_verifier::cca::CcaTrust;
use kata_cc_verifier::csv::CsvTrust;
use kata_cc_verifier::snp::{RootSet, SnpTrust};
use kata_cc_verifier::tdx::{self, TdxTrust};
use kata_cc_verifier::tpm::TpmTrust;

const MAX_CERTIFICATE: u64 = 64 * 1024;
/// Largest store of trust anchors: some thousand platforms.
const MAX_STORE: u64 = 4 << 20;

/// All of it but what changes while the broker runs.
pub(crate) fn configured(config: &Config) -> anyhow::Result<Trust> {
    let sample = config.development.sample_evidence;
    if sample {
        tracing::warn!("evidence of kind \"sample\" will be looked at, which anybody can make; the default policy refuses it");
    }
    Ok(Trust {
        snp: SnpTrust { rules: config.snp.rules(), ..snp_roots(config)?.into() },
        tdx: tdx_trust(config)?,
        tpm: tpm_trust(config)?,
        cca: cca_trust(config)?,
        csv: csv_trust(config)?,
        sample,
        ..Trust::hardware()
    })
}

fn tdx_trust(config: &Config) -> anyhow::Result<TdxTrust> {
    let mut roots = tdx::RootSet::intel();
    for root in &config.tdx.simulated_roots {
        let pem = read_bounded(&root.certificate, MAX_CERTIFICATE)?;
        roots = roots.with_simulated(&root.name, pem.as_bytes()).with_context(|| format!("({})", root.certificate.display()))?;
        tracing::warn!(name = %root.name, "evidence of a simulated TD will be looked at under this root; the default policy refuses it");
    }
    Ok(TdxTrust { roots, rules: config.tdx.rules() })
}

fn tpm_trust(config: &Config) -> anyhow::Result<TpmTrust> {
    let mut trust = TpmTrust::default();
    for path in &config.tpm.attestation_keys {
        let name = path.display().to_string();
        let key = read_bounded(path, MAX_CERTIFICATE)?;
        trust = trust.with_key(&name, key.as_bytes()).with_context(|| format!("[tpm] attestation_keys: {name}"))?;
    }
    Ok(trust)
}

fn cca_trust(config: &Config) -> anyhow::Result<CcaTrust> {
    let Some(cca) = &config.cca else { return Ok(CcaTrust::default()) };
    let store = read_bounded(&cca.trust_anchors, MAX_STORE)?;
    CcaTrust::from_store(store.as_bytes()).with_context(|| format!("[cca] trust_anchors: {}", cca.trust_anchors.display()))
}

fn csv_trust(config: &Config) -> anyhow::Result<CsvTrust> {
    let Some(csv) = &config.csv else { return Ok(CsvTrust::default()) };
    let root = read_bytes(&csv.root, MAX_CERTIFICATE)?;
    let mut trust = CsvTrust::default().with_root("HRK", &root).with_context(|| format!("[csv] root: {}", csv.root.display()))?;
    for path in &csv.chips {
        let chip = read_bytes(path, MAX_CERTIFICATE)?;
        trust = trust.with_chip(&chip).with_context(|| format!("[csv] chips: {}", path.display()))?;
    }
    Ok(trust)
}

fn snp_roots(config: &Config) -> anyhow::Result<RootSet> {
    let mut roots = RootSet::amd();
    for root in &config.simulated_roots {
        let pem = read_bounded(&root.certificate, MAX_CERTIFICATE)?;
        roots = roots
            .with_simulated(&root.name, pem.as_bytes())
            .with_context(|| format!("simulated root {:?} ({})", root.name, root.certificate.display()))?;
        tracing::warn!(name = %root.name, "evidence of a simulated TEE will be looked at under this root; the default policy refuses it");
    }
    Ok(roots)
}
